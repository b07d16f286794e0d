"""Parts that both demo sets share: the command line, the output folder, its tables, the heads of its files."""

from __future__ import annotations

import csv
import inspect
import io
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from medcls.disk import describe_unwritten
from medcls.errors import MedclsError, UsageError, WriteError
from medcls.files import TEMPORARY

README = "README.txt"
LABELS, TRUTH = "labels.csv", "labels-truth.csv"
MOST_SEED = 2**63 - 1
Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class DemoCommand:
    """A command that writes a demo set.

    Attributes:
        program: The command as a user types it.
        about: What it does, for --help.
        numbers: Help of each number that it takes; the defaults are those of `write`.
        write: Writes the set into a folder, the numbers given by name; returns a path of it.
        made: What was written, for the last line; {path} is the path.
    """

    program: str
    about: str
    numbers: Mapping[str, str]
    write: Callable[..., Path]
    made: str

    def run(self, arguments: Sequence[str]) -> int:
        """Print the help, or write the set and print where it is; return the exit code."""
        if {"-h", "--help"} & set(arguments):
            print(self.describe())
            return 0
        try:
            path = self._write(arguments)
        except MedclsError as error:
            print(f"{self.program}: {error}", file=sys.stderr)
            return error.exit_code
        print(self.made.format(path=path))
        return 0

    def describe(self) -> str:
        """Return the text of --help: use, purpose, and a line for each setting."""
        folder = "Folder for the set; required. The same set is kept if it is complete, another demo set is replaced."
        settings = {"out=DIR": folder}
        for name, text in self.numbers.items():
            settings[f"{name}={self._default(name)}"] = text
        width = max(map(len, settings))
        lines = [f"  {setting:<{width}}  {text}" for setting, text in settings.items()]
        return "\n".join([self.usage, "", self.about, "", *lines])

    @property
    def usage(self) -> str:
        """The command with its settings, those with a default in brackets."""
        return f"{self.program} out=DIR [{' '.join(f'{name}={self._default(name)}' for name in self.numbers)}]"

    def _default(self, name: str) -> int:
        return int(inspect.signature(self.write).parameters[name].default)

    def _write(self, arguments: Sequence[str]) -> Path:
        values = dict(argument.partition("=")[::2] for argument in arguments)
        unknown = sorted(values.keys() - {"out", *self.numbers})
        if unknown:
            raise UsageError(f"unknown argument {unknown[0]!r}; expected: {self.usage}")
        if not values.get("out"):
            raise UsageError(f"out is missing; expected: {self.usage}")
        folder = Path(values.pop("out")).expanduser()
        for name, value in values.items():
            if not (value.isascii() and value.isdecimal()):
                raise UsageError(f"{name}={value}: expected a whole number")
        try:
            return self.write(folder, **{name: int(value) for name, value in values.items()})
        except OSError as error:
            raise describe_unwritten(error, f"out={folder}", remedy="free space or choose another") from error


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
