"""Parts that both demo sets share: the output folder, its tables, the heads of its files, the command line."""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from medcls.errors import UsageError, WriteError
from medcls.files import TEMPORARY

README = "README.txt"
Row = dict[str, object]


def claim_folder(folder: Path) -> None:
    """Make the folder; one that holds an earlier demo set may be written over.

    Raises:
        WriteError: it holds anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    readme = folder / README
    ours = readme.is_file() and readme.read_text(errors="replace").startswith("SYNTHETIC")
    if not ours and any(not file.name.startswith(TEMPORARY) for file in folder.iterdir()):
        raise WriteError(f"out={folder}: contains files that are not a demo set: choose an empty or new folder")


def same_readme(folder: Path, readme: str) -> bool:
    """Return whether the set there was made from the same settings."""
    return (folder / README).is_file() and (folder / README).read_text() == readme


def to_csv(rows: Sequence[Row]) -> bytes:
    """Return rows of the same columns as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def describe_file(sop_class: str, instance: str) -> FileMetaDataset:
    """Return file meta information without a library version, which would change the bytes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(derive_uid("medcls/demo"))
    meta.ImplementationVersionName = "MEDCLS_DEMO"
    return meta


def derive_uid(*parts: str) -> str:
    """Return a UID under 2.25 (PS3.5 B.2), the same for the same parts."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, '/'.join(parts)).int}"


def parse_command(arguments: Sequence[str], *, names: Sequence[str], usage: str) -> tuple[Path, dict[str, int]]:
    """Return the folder and the whole numbers of a command line.

    Args:
        arguments: out=DIR and NAME=NUMBER.
        names: Of the numbers.
        usage: What is expected, for messages.

    Raises:
        UsageError: an unknown argument, no out=, or no whole number.
    """
    values = dict(argument.partition("=")[::2] for argument in arguments)
    unknown = sorted(values.keys() - {"out", *names})
    if unknown or not values.get("out"):
        what = f"unknown argument {unknown[0]!r}" if unknown else "out is missing"
        raise UsageError(f"{what}; expected: {usage}")
    numbers = {name: values[name] for name in names if name in values}
    for name, value in numbers.items():
        if not (value.isascii() and value.isdecimal()):
            raise UsageError(f"{name}={value}: expected a whole number")
    return Path(values["out"]).expanduser(), {name: int(value) for name, value in numbers.items()}
