"""The file contract: atomic writes, checksums, and the names inside a store and a run.

Every write goes to a temporary name in the same folder, is flushed and fsynced, and is then renamed; so a
reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from medcls.disk import describe_unwritten, read_again
from medcls.errors import DataError, MissingInputError, WriteError

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
EVALUATION = "evaluation"
CHECKSUMS = "checksums.json"
HOLDER = ".holder.json"
CONFIG = "config/config.yaml"
TEMPORARY = ".partial-"
PRIVATE = ".private"
LOCK = ".lock"


@contextlib.contextmanager
def atomic_file(path: Path, *, private: bool = False, apart: bool = False) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends without an error.

    Args:
        path: Of the file; its folder is made.
        private: Only the owner may read it (mode 0600), and it is written apart.
        apart: It may name persons and is not within a store or run: what a kill leaves of it is in PRIVATE, where only
            the owner sees it, until the next command clears it.

    Raises:
        WriteError: the disk is full, the folder read-only or gone.
    """
    if path.exists() and not path.is_file():
        raise WriteError(f"cannot write {path}: it is a folder or a device; choose a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = _open_temporary(path.parent, path.name, apart=apart or private)
    except OSError as error:
        raise describe_unwritten(error, str(path)) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Before the file is closed: its lock ends then, and whoever clears the folder would delete it.
            temporary.chmod(0o600 if private else 0o666 & ~_umask())
            temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise describe_unwritten(error, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
        if apart or private:
            with contextlib.suppress(OSError):  # another file is being written in it
                temporary.parent.rmdir()


VANISHED_TRIES = 50
"""What is gone so often between making and opening it, over a second, was never made: no other command deletes it."""
VANISHED_PAUSE_SECONDS = 0.02


def _open_temporary(folder: Path, name: str, *, apart: bool) -> tuple[int, str]:
    """Return a new file, locked as long as it is written: `delete_partial` knows by that whether its process is gone.

    Other commands may delete the folder or the file before it is locked, but not so often.
    """
    for left in reversed(range(VANISHED_TRIES)):
        try:
            place = make_private(folder) if apart else folder
            handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, suffix=name, dir=place)
        except FileNotFoundError:
            if not apart or not folder.is_dir() or not left:
                raise
            time.sleep(VANISHED_PAUSE_SECONDS)
            continue  # another command has just removed the empty folder
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Another process looks whether anybody writes it, sees nobody, and deletes it.
            os.close(handle)
            Path(temporary).unlink(missing_ok=True)
            continue
        except OSError:  # a file system without locks
            pass
        # Another process may have deleted it before it was locked.
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def make_private(folder: Path) -> Path:
    """Make and return the folder for temporary files that may name persons: in `folder`, so that they can be renamed.

    Mode 0700; where somebody else's is in its place, one with the number of the user.

    Raises:
        FileNotFoundError: Another command has just removed it, or there is no `folder`.
        OSError: It cannot be made.
    """
    for name in (PRIVATE, f"{PRIVATE}-{os.geteuid()}"):
        path = folder / name
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
            path.chmod(0o700)
            return path
    raise PermissionError(errno.EACCES, "its folder for temporary files is somebody else's", str(path))


def clear_private(folder: Path, *names: str) -> None:
    """Delete what killed commands have left in the folder for temporary files; files being written stay.

    Args:
        folder: Folder of the files that are written.
        names: Names of such files: what version 0.2.0 left of them is in `folder` itself.
    """
    for name in names:
        for rubbish in folder.glob(f"{TEMPORARY}????????{glob.escape(name)}"):
            rubbish.unlink(missing_ok=True)
    for name in (PRIVATE, f"{PRIVATE}-{os.geteuid()}"):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # somebody else's
                delete_partial(path)
                for lock in path.glob(f"*{LOCK}"):
                    _delete_unheld(lock)
                path.rmdir()


def delete_partial(folder: Path) -> None:
    """Delete what killed writes have left in a folder, if it exists; files that are being written stay.

    Temporary folders have no lock: only the holder of the folder's lock may call this where some are made.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            _delete_unheld(path)


def _delete_unheld(path: Path) -> None:
    """Delete a file, unless another process, or another part of this one, holds a lock on it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # a link, a pipe or a file of somebody else: nobody who locks would have made it
        path.unlink(missing_ok=True)
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        # The lock is held until the file is gone: whoever made it just now would otherwise lock it in between, and lose
        # it. Without a link it is gone already, and the name may be another command's.
        if os.fstat(descriptor).st_nlink:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


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


def _umask() -> int:
    """Mkstemp makes 0600 files; outputs get the mode any other program would give them."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes, *, private: bool = False, apart: bool = False) -> None:
    """Write `content` to `path` as `atomic_file` does."""
    with atomic_file(path, private=private, apart=apart) as file:
        file.write(content)


def write_json(path: Path, content: dict[str, Any], *, apart: bool = False) -> None:
    """Write an object as indented UTF-8 JSON with sorted keys and its own checksum in it (`seal`).

    NaN and infinity are refused (ValueError).
    """
    write_bytes(path, format_json(seal(content)), apart=apart)


SEAL = "content_sha256"
"""Key, in a JSON object, of the checksum of all its other keys."""


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with its own checksum under SEAL.

    The checksum is that of the values, not of the bytes: another indentation or order of keys is the same content.
    """
    return content | {SEAL: sha256_json({key: value for key, value in content.items() if key != SEAL})}


def is_sealed(path: Path) -> bool:
    """Return whether a JSON file carries its own checksum; raises as `read_json` does."""
    return SEAL in _read_object(path, remedy="")


def open_seal(content: dict[str, Any], path: Path, *, remedy: str) -> dict[str, Any]:
    """Return the content without its own checksum, after checking it.

    What has none was written by version 0.2.0 and comes back as it is (docs/decisions/0061-checksums.md).

    Args:
        content: What was read.
        path: File that it was read from, for the message.
        remedy: What brings the file back, for the message.

    Raises:
        DataError: the content is not the one that was written.
    """
    if not content:
        raise DataError(f"{path} is an empty object, so it is damaged: {remedy}")
    # Where a byte of the key itself was damaged, the checksum of all others is there under another name.
    key = SEAL if SEAL in content else next((name for name in content if _is_seal(content, name)), None)
    plain = {name: value for name, value in content.items() if name != SEAL}
    if key is not None and content != seal(plain):
        raise DataError(f"{path} has changed since it was written (its own checksum differs): {remedy}")
    return plain


def _is_seal(content: dict[str, Any], name: str) -> bool:
    value = content[name]
    if not isinstance(value, str) or len(value) != 64:
        return False
    return value == sha256_json({key: each for key, each in content.items() if key != name})


def format_json(content: Any) -> bytes:
    """Return indented UTF-8 JSON with sorted keys; NaN and infinity are refused (ValueError)."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def read_json(path: Path, *, remedy: str = "restore it from a copy, or make it again") -> dict[str, Any]:
    """Return the object in a JSON file, without the checksum that it may carry, after checking it.

    Args:
        path: File.
        remedy: What brings the file back, for the message.

    Raises:
        MissingInputError: no such file, or a pipe or device, which would never end.
        DataError: not a JSON object, or changed since it was written.
    """
    try:
        return open_seal(_read_object(path, remedy=remedy), path, remedy=remedy)
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply: {remedy}") from error


def _read_object(path: Path, *, remedy: str) -> dict[str, Any]:
    _check_regular(path)
    try:
        content = parse_json(read_again(lambda: path.read_text(encoding="utf-8"), str(path)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(content).__name__}: {remedy}")
    return content


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; Python's own reader takes more than JSON, and the last of two equal keys.

    Raises:
        ValueError: not JSON, a number that is not finite, or a key that is there twice.
        RecursionError: nested too deeply.
    """
    return json.loads(
        text, object_pairs_hook=_build_object, parse_constant=_parse_finite_float, parse_float=_parse_finite_float
    )


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice")
    return content


def _parse_finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _check_regular(path: Path) -> None:
    if not read_again(path.is_file, str(path)):
        raise MissingInputError(f"{path} is {'not a regular file' if path.exists() else 'missing'}")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; [] where there is none.

    A last line that is broken off was never written: `append_json_line` syncs whole lines and removes it.

    Raises:
        DataError: a line is not JSON.
    """
    if not read_again(path.is_file, str(path)):
        return []
    try:
        *lines, last = read_again(path.read_bytes, str(path)).split(b"\n")
        rows = [parse_json(line.decode()) for line in lines if line.strip()]
        rest = last.decode(errors="replace")
        if _is_whole_object(rest):
            rows += [parse_json(rest)]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} has a line that is not JSON ({error}): remove that line") from error
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} has a line that is not a JSON object: remove that line")
    return rows


def _is_whole_object(text: str) -> bool:
    """Return whether a last line without its end holds a whole object: what a kill broke off does not."""
    try:
        json.JSONDecoder().raw_decode(text)
    except ValueError:
        return False
    return True


def append_json_line(path: Path, content: dict[str, Any]) -> None:
    """Append one JSON line and syncs it to disk; a link is not followed: it would write into another file.

    A last line that a kill or a full disk broke off was never written: it is removed first.

    Raises:
        WriteError: the disk is full, the folder read-only, or the file a link; the file is as it was.
    """
    line = json.dumps(content, sort_keys=True, allow_nan=False) + "\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            size = _cut_broken_line(descriptor)
            try:
                rest = memoryview(line.encode())
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
    except OSError as error:
        raise describe_unwritten(error, str(path)) from error


def _cut_broken_line(descriptor: int) -> int:
    """Remove a last line without an end, and return the file's size; 0 for a device."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return 0
    content = os.pread(descriptor, status.st_size, 0)
    whole = content.rfind(b"\n") + 1
    with contextlib.suppress(ValueError):
        json.loads(content[whole:])
        # Whole, but for its end, as an editor leaves it.
        os.write(descriptor, b"\n")
        return status.st_size + 1
    if whole < status.st_size:
        os.ftruncate(descriptor, whole)
    return whole


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes.

    Raises:
        MissingInputError: no such file, or a pipe or device, which would never end.
    """
    _check_regular(path)

    def read() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return read_again(read, str(path))


def sha256_json(content: Any) -> str:
    """Return the hexadecimal SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
