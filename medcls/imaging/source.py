"""List the files of a source folder, each exactly once, and tell which are images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from medcls.disk import describe_failure, is_disk_failure
from medcls.errors import DataError, ReadError
from medcls.imaging.image import DICOM_SUFFIXES, is_dicom
from medcls.imaging.raster import has_picture_suffix, is_picture

SKIP_REASONS = ("symbolic_link", "special_file", "hidden", "system_file")
"""Why files are listed and not read."""

_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
)
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})


def list_files(source: Path) -> Iterator[tuple[str, str]]:
    """Yield (relative path with /, skip reason or "") for every file under `source`, in sorted order.

    Links are listed and not followed: one that leaves the source would read somebody else's files. Pipes, sockets
    and devices are listed and never opened: they may not end. No more than the open folders is held in memory.

    Raises:
        DataError: a folder may not be read, or a name is not UTF-8, which no table could hold.
        ReadError: the disk fails.
    """
    pending = [_list_folder(source, "")]
    while pending:
        for name, entry in pending[-1]:
            if entry is None:
                pending.append(_list_folder(source, name))
                break
            yield name, _skip_reason(name, entry)
        else:
            pending.pop()


def _list_folder(source: Path, folder: str) -> Iterator[tuple[str, os.DirEntry[str] | None]]:
    """(path, entry) of each file and (path with a last /, None) of each folder in one folder.

    A folder is sorted as "name/", so that the walk comes in the order of whole paths: "a-b" before "a/c".
    """
    try:
        with os.scandir(source / folder) as entries:
            found = {f"{folder}{e.name}/" if e.is_dir(follow_symlinks=False) else folder + e.name: e for e in entries}
        if not os.access(source / folder, os.X_OK):  # it lists names, and opens none of them
            raise PermissionError
        "".join(found).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"source={source} has names that are not UTF-8: find them by LC_ALL=C.UTF-8 grep -axv '.*'"
        ) from error
    except PermissionError as error:
        raise DataError(
            f"source={source} has folders that may not be read: find them by find … -type d ! -readable "
            "-o -type d ! -executable, and change their permissions"
        ) from error
    except OSError as error:
        if is_disk_failure(error):
            raise describe_failure(error, f"a folder of source={source}") from error
        raise DataError(f"source={source} has a folder that cannot be listed: {error.strerror}") from error
    for name in sorted(found):
        yield name, None if name.endswith("/") else found[name]


def _skip_reason(name: str, entry: os.DirEntry[str]) -> str:
    """Return why a file is not to be read, "" where it is."""
    if entry.is_symlink():
        return "symbolic_link"
    if not entry.is_file(follow_symlinks=False):
        return "special_file"
    if name.startswith(".") or "/." in name:
        return "hidden"
    *folders, last = name.lower().split("/")
    return "system_file" if last in _SYSTEM_FILES or not _SYSTEM_FOLDERS.isdisjoint(folders) else ""


def is_system_folder(name: str) -> bool:
    """Return whether a folder of this name is hidden, or left by an operating system or a file server."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def is_image(path: Path) -> bool:
    """Return whether a file is worth reading: an image by its suffix, or DICOM or a picture by its content."""
    suffix = path.suffix.lower()
    return suffix in DICOM_SUFFIXES or has_picture_suffix(suffix) or is_dicom(path) or is_picture(path)


def choose_identity(
    kind: str, source: Path, files: Iterable[tuple[str, str]], *, refuse_unreadable: bool = False
) -> str:
    """Return "hmac" or "declared" for deidentify=auto, and any other kind as it is.

    auto: pseudonyms wherever a DICOM file is met, since its ids are real until somebody says otherwise.

    Args:
        kind: "auto", "hmac" or "declared".
        source: The folder.
        files: What `list_files` yielded.
        refuse_unreadable: A file that the disk does not give is passed over, instead of a ReadError.
    """
    if kind != "auto":
        return kind

    def look(path: Path) -> bool:
        try:
            return is_dicom(path)
        except ReadError:
            if not refuse_unreadable:
                raise
            return False

    return "hmac" if any(not skip and look(source / path) for path, skip in files) else "declared"
