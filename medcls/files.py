"""The file contract: atomic writes, checksums, and the names inside a store and a run.

Every write goes to a temporary name in the same folder, is flushed and fsynced, and is then renamed; so a
reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from medcls.disk import read_again
from medcls.errors import BusyError, ConfigError, DataError, MedclsError, MissingInputError, WriteError

DATASET = "dataset.json"
MANIFEST = "manifest.parquet"
LABELS = "labels.parquet"
LABELLING = "labels.json"
LEDGER = "ledger.parquet"
SPLITS = "splits"
MODEL = "model.safetensors"
METRICS_LOG = "metrics.jsonl"
PATIENTS = "patients.parquet"
IMAGES = "images.parquet"
ANCESTORS = "ancestors.parquet"
CONTACT_SHEET = "contact_sheet.png"
BASELINE = "baseline.json"
BASELINE_WEIGHTS = "baseline.safetensors"
RECONSTRUCTIONS = "reconstructions.png"
CHECKPOINTS = "checkpoints"
FAULTS = "faults"
ODDS_RATIOS = "odds_ratios.json"
FEATURE_DISTANCE = "feature_distance.safetensors"
ENVIRONMENT = "environment.json"
OPENED = "opened.jsonl"
HOLDER = ".holder.json"
CONFIG = "config/config.yaml"
TEMPORARY = ".partial-"


@contextlib.contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Yields a binary file that becomes `path` when the block ends without an error.

    Args:
        path: Of the file; its folder is made.
        private: Only the owner may read it (mode 0600).

    Raises:
        WriteError: the disk is full, the folder read-only or gone.
    """
    if path.exists() and not path.is_file():
        raise WriteError(f"cannot write {path}: it is a folder or a device; choose a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = _open_temporary(path.parent, path.name)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror}; free or change the folder") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o600 if private else 0o666 & ~_umask())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}; free or change the folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def _open_temporary(folder: Path, name: str) -> tuple[int, str]:
    """A new file, locked as long as it is written: `delete_partial` knows by that whether its process is gone."""
    while True:
        handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, suffix=name, dir=folder)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have deleted it before it was locked.
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)


def delete_partial(folder: Path) -> None:
    """Delete what killed writes have left in a folder, if it exists; files that are being written stay.

    Temporary folders have no lock: only the holder of the folder's lock may call this where some are made.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif not _is_locked(path):
            path.unlink(missing_ok=True)


def _is_locked(path: Path) -> bool:
    """Whether another process, or another part of this one, holds a lock on the file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # a link, a pipe or a file of somebody else: nobody who locks would have made it
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def delete_folder(path: Path) -> None:
    """Delete a folder, or a file, in one step: a kill leaves nothing half deleted, but rubbish for `delete_partial`."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    rubbish = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}{path.name}")
    try:
        path.replace(rubbish)
    except OSError:  # a full disk may have no room for another name
        rubbish = path
    shutil.rmtree(rubbish, ignore_errors=True)


@contextlib.contextmanager
def lock_folder(folder: Path, *, shared: bool = False, command: str = "") -> Iterator[None]:
    """Makes `folder`, and holds it against other processes while the block runs; an empty one is removed again.

    The lock lies on the folder itself (flock): it ends with the process, however that ends. Where there is a `command`
    a file in the folder says who holds it, for the message of whoever comes meanwhile; it locks nothing.

    Args:
        folder: To hold.
        shared: Others may hold it too, if they share it as well.
        command: The holder's, such as "medcls.train"; "" = none is named.

    Raises:
        BusyError: another process holds it.
        ConfigError: it is a file.
        WriteError: it cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: choose a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise WriteError(f"cannot write {folder}: {error.strerror}; free or change the folder") from error
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _read_holder(folder) or "another process"
            raise BusyError(f"{folder} is in use by {holder}: wait for it, or choose another folder") from error
        with _name_holder(folder, command) if command else contextlib.nullcontext():
            yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
        os.close(descriptor)


@contextlib.contextmanager
def _name_holder(folder: Path, command: str) -> Iterator[None]:
    """A folder that cannot be written may still be locked, and read."""
    started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    content = {"command": command, "pid": os.getpid(), "host": platform.node(), "started": started}
    with contextlib.suppress(WriteError):
        write_json(folder / HOLDER, content)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink()


def _read_holder(folder: Path) -> str:
    """Who holds the folder, in words; "" where that is not known. A file that is no such record says nothing."""
    try:
        found = {} if (folder / HOLDER).is_symlink() else read_json(folder / HOLDER)
        command, host, started = (str(found[key])[:100] for key in ("command", "host", "started"))
        return f"another process: {command}, process {int(found['pid'])} on {host} since {started} UTC"
    except (MedclsError, OSError, KeyError, ValueError, TypeError):
        return ""


def _umask() -> int:
    """Mkstemp makes 0600 files; outputs get the mode any other program would give them."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Writes `content` to `path` atomically; a private file only its owner can read."""
    with atomic_file(path, private=private) as file:
        file.write(content)


def write_json(path: Path, content: Any) -> None:
    """Writes indented UTF-8 JSON with sorted keys; NaN and infinity are refused (ValueError)."""
    write_bytes(path, format_json(content))


def format_json(content: Any) -> bytes:
    """Returns what `write_json` writes."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        MissingInputError: no such file, or a pipe or device, which would never end.
        DataError: not a JSON object.
    """
    _check_regular(path)
    try:
        content = json.loads(read_again(lambda: path.read_text(encoding="utf-8"), str(path)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _check_regular(path: Path) -> None:
    if not read_again(path.is_file, str(path)):
        raise MissingInputError(f"{path} is {'no regular file' if path.exists() else 'missing'}")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a JSON-lines file; [] where there is none.

    Raises:
        DataError: a line is not JSON, such as one that a power cut broke off.
    """
    if not read_again(path.is_file, str(path)):
        return []
    try:
        text = read_again(lambda: path.read_text(encoding="utf-8"), str(path))
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} has a line that is not JSON ({error}): remove that line") from error
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} has a line that is no JSON object: remove that line")
    return rows


def append_json_line(path: Path, content: dict[str, Any]) -> None:
    """Appends one JSON line and syncs it to disk; a link is not followed: it would write into another file.

    Raises:
        WriteError: the disk is full, the folder read-only, or the file a link.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(json.dumps(content, sort_keys=True, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror}; free or change the folder") from error


def sha256_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's bytes.

    Raises:
        MissingInputError: no such file, or a pipe or device, which would never end.
    """
    _check_regular(path)

    def read() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return read_again(read, str(path))


def sha256_json(content: Any) -> str:
    """Returns the hexadecimal SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
