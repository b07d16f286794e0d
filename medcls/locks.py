"""Locks on folders and files that two commands may write: one holds it, the other waits or exits with 75."""

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

from medcls.disk import describe_unwritten
from medcls.errors import BusyError, ConfigError, MedclsError, WriteError
from medcls.files import (
    HOLDER,
    LOCK,
    VANISHED_PAUSE_SECONDS,
    VANISHED_TRIES,
    clear_private,
    make_private,
    read_json,
    write_json,
)

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0
"""Far longer than a command that clears the folder holds a lock, to see whether anybody else does."""
_LOOK_PAUSE_SECONDS = 0.02
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL)
"""Errors of a file system without locks (Lustre by default, some of FUSE); EBADF and EINVAL for folders alone."""

_noticed: set[int] = set()
"""File systems without locks, by device, of which this process has told."""


@contextlib.contextmanager
def lock_folder(
    folder: Path,
    *,
    shared: bool = False,
    command: str = "",
    wait_seconds: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[None]:
    """Make `folder`, and hold it against other processes while the block runs; an empty one is removed again.

    The lock is on the folder itself (flock): it ends with the process, however that ends. If there is a `command`,
    a file in the folder says who holds it, for the message of whoever comes meanwhile; it locks nothing. On a file
    system without locks the block runs all the same.

    Args:
        folder: Folder to create and lock.
        shared: Others may hold it too, if they share it as well.
        command: Name of this command, such as "medcls.train"; "" = none is named.
        wait_seconds: How long to wait for another holder.
        say: Called with a line before waiting, and with one if there are no locks.

    Raises:
        BusyError: another process holds it.
        ConfigError: it is a file.
        WriteError: it cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: choose a folder")
    end, waited = time.monotonic() + wait_seconds, False

    def open_folder() -> tuple[int, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder, os.O_RDONLY), folder

    def wait() -> None:
        nonlocal waited
        holder = _read_holder(folder) or "another process"
        if time.monotonic() >= end:
            raise BusyError(f"{folder} is in use by {holder}: wait for it, or choose another folder")
        if not waited:
            say(f"waiting for {folder}, which is in use by {holder}")
        waited = True
        time.sleep(_POLL_SECONDS)

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    name_holder = _name_holder(folder, command) if command else contextlib.nullcontext()
    with _hold(folder, open_folder, kind=kind, wait=wait, say=say), name_holder:
        yield


@contextlib.contextmanager
def lock_folders(
    folders: Iterable[Path], *, command: str, wait_seconds: float, say: Callable[[str], None]
) -> Iterator[None]:
    """Hold several folders as `lock_folder` does, in one order for all processes, so that none waits for the other."""
    with contextlib.ExitStack() as stack:
        for folder in sorted({folder.resolve() for folder in folders}):
            stack.enter_context(lock_folder(folder, command=command, wait_seconds=wait_seconds, say=say))
        yield


@contextlib.contextmanager
def lock_file(
    path: Path, *, suffixes: Sequence[str] = (), say: Callable[[str], None] = lambda line: None
) -> Iterator[None]:
    """Hold a file that a command writes at its end against other commands; clear what killed ones have left beside it.

    Args:
        path: The file.
        suffixes: Of the files beside it that the command writes, too.
        say: Called with a line if the file system has no locks; the block runs all the same.

    Raises:
        BusyError: another process is going to write it.
        WriteError: nothing can be written there.
    """
    end = time.monotonic() + _LOOK_SECONDS

    def open_lock() -> tuple[int, Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = make_private(path.parent) / f"{path.name}{LOCK}"
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), lock

    def wait() -> None:
        if time.monotonic() >= end:
            raise BusyError(f"{path} is going to be written by another process: wait for it, or choose another file")
        time.sleep(_LOOK_PAUSE_SECONDS)

    try:
        with _hold(path, open_lock, wait=wait, say=say):
            clear_private(path.parent, path.name, *(f"{path.name}{suffix}" for suffix in suffixes))
            yield
    finally:
        clear_private(path.parent)


@contextlib.contextmanager
def _hold(
    target: Path,
    make: Callable[[], tuple[int, Path]],
    *,
    kind: int = fcntl.LOCK_EX,
    wait: Callable[[], None],
    say: Callable[[str], None],
) -> Iterator[None]:
    """Make and lock what `make` opens while the block runs, then remove it (a folder only if it is empty).

    Args:
        target: What is held, for messages.
        make: Makes what carries the lock; returns its descriptor and its path.
        kind: LOCK_EX or LOCK_SH.
        wait: Called if another process has it, before each further try; raises to give up.
        say: Called with a line if the file system has no locks.
    """
    vanished = 0
    while True:
        try:
            descriptor, path = make()
        except FileNotFoundError as error:
            # Another process has just removed the empty folder, or the one around it; or nobody can make one there, as
            # below a mount point of autofs, in /proc, or in a working folder that was deleted.
            vanished += 1
            if vanished == VANISHED_TRIES:
                raise describe_unwritten(error, str(target)) from error
            time.sleep(VANISHED_PAUSE_SECONDS)
            continue
        except OSError as error:
            raise describe_unwritten(error, str(target)) from error
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            wait()
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise WriteError(f"cannot lock {target}: {error.strerror}; free or change the folder") from error
            _notice_no_locks(descriptor, target, error, say)
        if _is_same(descriptor, path):
            break
        os.close(descriptor)  # it was removed, and perhaps made again, before it was locked
    try:
        yield
    finally:
        try:
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        finally:
            os.close(descriptor)


def _notice_no_locks(descriptor: int, target: Path, error: OSError, say: Callable[[str], None]) -> None:
    device = os.fstat(descriptor).st_dev
    if device not in _noticed:
        _noticed.add(device)
        say(
            f"notice: {target} cannot be locked, its file system has no locks ({error.strerror}): do not run a second "
            "command that writes there at the same time"
        )


def _is_same(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one of this name."""
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
