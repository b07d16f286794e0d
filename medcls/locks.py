"""Locks on what two commands may write: one holds it, the other waits with a line that says so, or ends with 75."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from medcls.errors import BusyError, ConfigError, MedclsError, WriteError
from medcls.files import HOLDER, LOCK, clear_private, make_private, read_json, write_json

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 0.2
"""Far longer than a command that clears the folder holds a lock, to see whether anybody else does."""
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system without locks (Lustre by default, some of FUSE) says: files are written there all the same."""


@contextlib.contextmanager
def lock_folder(
    folder: Path,
    *,
    shared: bool = False,
    command: str = "",
    wait_seconds: float = 0.0,
    on_wait: Callable[[str], None] = lambda line: None,
) -> Iterator[None]:
    """Make `folder`, and hold it against other processes while the block runs; an empty one is removed again.

    The lock is on the folder itself (flock): it ends with the process, however that ends. If there is a `command`,
    a file in the folder says who holds it, for the message of whoever comes meanwhile; it locks nothing.

    Args:
        folder: Folder to create and lock.
        shared: Others may hold it too, if they share it as well.
        command: Name of this command, such as "medcls.train"; "" = none is named.
        wait_seconds: How long to wait for another holder.
        on_wait: Called once before waiting, with a line that says what for.

    Raises:
        BusyError: another process holds it.
        ConfigError: it is a file.
        WriteError: it cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: choose a folder")
    kind, end = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, time.monotonic() + wait_seconds
    waited = False
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another process has just removed the empty folder, or the one around it
        except OSError as error:
            raise WriteError(f"cannot write {folder}: {error.strerror}; free or change the folder") from error
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            holder = _read_holder(folder) or "another process"
            if time.monotonic() >= end:
                raise BusyError(f"{folder} is in use by {holder}: wait for it, or choose another folder") from error
            if not waited:
                on_wait(f"waiting for {folder}, which is in use by {holder}")
            waited = True
            time.sleep(_POLL_SECONDS)
            continue
        if _is_same(descriptor, folder):
            break
        os.close(descriptor)  # it was removed, and perhaps made again, before it was locked
    try:
        with _name_holder(folder, command) if command else contextlib.nullcontext():
            yield
    finally:
        try:
            with contextlib.suppress(OSError):
                folder.rmdir()
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def lock_folders(
    folders: Iterable[Path], *, command: str, wait_seconds: float, on_wait: Callable[[str], None]
) -> Iterator[None]:
    """Hold several folders as `lock_folder` does, in one order for all processes, so that none waits for the other."""
    with contextlib.ExitStack() as stack:
        for folder in sorted({folder.resolve() for folder in folders}):
            stack.enter_context(lock_folder(folder, command=command, wait_seconds=wait_seconds, on_wait=on_wait))
        yield


@contextlib.contextmanager
def lock_file(path: Path, *, suffixes: Sequence[str] = ()) -> Iterator[None]:
    """Hold a file that a command writes at its end against other commands; clear what killed ones have left beside it.

    Args:
        path: The file.
        suffixes: Of the files beside it that the command writes, too.

    Raises:
        BusyError: another process is going to write it.
        WriteError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, lock = _open_lock(path)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror}; free or change the folder") from error
    try:
        clear_private(path.parent, path.name, *(f"{path.name}{suffix}" for suffix in suffixes))
        yield
    finally:
        try:
            with contextlib.suppress(OSError):
                lock.unlink()
        finally:
            os.close(descriptor)
        clear_private(path.parent)


def _open_lock(path: Path) -> tuple[int, Path]:
    """The lock file of a file, open and locked."""
    end = time.monotonic() + _LOOK_SECONDS
    while True:
        try:
            lock = make_private(path.parent) / f"{path.name}{LOCK}"
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise
            continue  # another command has just removed the empty folder
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            if time.monotonic() < end:
                time.sleep(_LOOK_SECONDS / 10)
                continue
            raise BusyError(
                f"{path} is going to be written by another process: wait for it, or choose another file"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
        if _is_same(descriptor, lock):
            return descriptor, lock
        os.close(descriptor)


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of this name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


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
