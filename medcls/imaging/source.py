"""The files of a source folder, each exactly once, and which of them are images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from medcls.errors import DataError
from medcls.imaging.readers import SUPPORTED_SUFFIXES, is_dicom


def list_files(source: Path) -> Iterator[tuple[str, str]]:
    """Yields (relative path with /, skip reason or "") for every file under `source`, in sorted order.

    Links are listed and not followed: one that leaves the source would read somebody else's files.

    Raises:
        DataError: a folder may not be read, or a name is not UTF-8, which no table could hold.
    """
    closed = [folder for folder, _, _ in os.walk(source) if not os.access(folder, os.R_OK | os.X_OK)]
    if closed:
        raise DataError(f"source={source} has {len(closed)} folders that may not be read: change their permissions")
    for path in sorted(source.rglob("*"), key=lambda p: p.relative_to(source).as_posix()):
        name = path.relative_to(source).as_posix()
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(f"source={source} has names that are not UTF-8: find them by LC_ALL=C.UTF-8 grep -axv '.*'")
        if path.is_symlink():
            yield name, "symbolic_link"
        elif path.is_file():
            hidden = any(part.startswith(".") for part in Path(name).parts)
            yield name, "hidden" if hidden else ""


def is_image(path: Path) -> bool:
    """Returns whether a file is worth reading: an image by its suffix, or DICOM by its content."""
    return path.suffix.lower() in SUPPORTED_SUFFIXES or is_dicom(path)


def choose_identity(kind: str, source: Path, files: Sequence[tuple[str, str]]) -> str:
    """Returns "hmac" or "declared" for deidentify=auto, and any other kind as it is.

    auto: pseudonyms wherever a DICOM file is met, since its ids are real until somebody says otherwise.

    Args:
        kind: "auto", "hmac" or "declared".
        source: The folder.
        files: What `list_files` yielded.
    """
    if kind != "auto":
        return kind
    return "hmac" if any(not skip and is_dicom(source / path) for path, skip in files) else "declared"
