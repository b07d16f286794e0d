"""Failing disks: tell them from damaged content, retry, and end the command if the failure persists.

A network folder that was mounted again (ESTALE) or a bad cable (EIO) says nothing about the content of a file. Taken
for damage it deletes a checkpoint, decodes a shard again or becomes a defect of a sound image.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from medcls.errors import MedclsError, ReadError, WriteError

Found = TypeVar("Found")

_PIECE_BYTES = 1 << 20
_ABOUT_THE_FILE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENXIO,
        errno.EACCES,
        errno.EPERM,
        errno.EINVAL,
        errno.ENAMETOOLONG,
        errno.EOVERFLOW,
        errno.ENOMEM,
        errno.EBADF,
    }
)
"""What the system says of a path, of an argument or of this process; any other error is the disk's."""

_LIMITS = {
    errno.EMFILE: "raise the limit of open files of a process (ulimit -n)",
    errno.ENFILE: "raise this machine's limit of open files (sysctl fs.file-max)",
    errno.EAGAIN: "raise the limit of processes and threads (ulimit -u, or the container's)",
    errno.ENOMEM: "raise the limit of memory (ulimit -v, or the container's)",
}
"""Errors that say nothing of a disk: a limit of this process or machine was reached."""

SOURCE_FILE = "a file of the source (find SOURCE -type f -exec cat {} + > /dev/null names it)"
"""How messages call a raw file, whose path may tell who a patient is."""

READ_PAUSES = [0.1, 0.5, 2.0]
"""Seconds before each further try to read: a network file system needs some to come back."""


def is_disk_failure(error: BaseException | None) -> bool:
    """Return whether the disk failed (EIO, ESTALE, a timeout …), which says nothing about the content of a file.

    Libraries raise OSError without a number for content that they do not understand.
    """
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _ABOUT_THE_FILE


def find_disk_failure(error: BaseException | None) -> OSError | None:
    """Return the failure of the disk that an error was raised for; None if there is none among its causes."""
    while error is not None:
        if isinstance(error, OSError) and is_disk_failure(error):
            return error
        error = error.__cause__ or error.__context__
    return None


def read_again(read: Callable[[], Found], name: str) -> Found:
    """Return what `read` returns, tried again a few times if the disk fails.

    Args:
        read: Reads from the disk; it can be called again.
        name: What is read, for the message: a path, or words if the path may tell who a patient is.

    Raises:
        ReadError: The disk failed at every try.
    """
    for pause in READ_PAUSES:
        try:
            return read()
        except OSError as error:
            if not is_disk_failure(error):
                raise
        time.sleep(pause)
    try:
        return read()
    except OSError as error:
        if not is_disk_failure(error):
            raise
        raise describe_failure(error, name, tries=len(READ_PAUSES) + 1) from error


def describe_failure(error: OSError, name: str, *, tries: int = 1) -> ReadError:
    """Return the error that ends a command whose input the disk does not give."""
    times = f", {tries} times" if tries > 1 else ""
    remedy = advise(error, "repair the disk or mount the folder again, then run the same command again")
    return ReadError(
        f"cannot read {name} ({error.strerror or type(error).__name__}{times}): {remedy}; nothing was deleted"
    )


def describe_unwritten(error: OSError, name: str, *, remedy: str = "free or change the folder") -> WriteError:
    """Return the error that ends a command whose output the disk does not take.

    Args:
        error: What the system said.
        name: What is written, for the message: most often a path.
        remedy: What helps if it is the disk.
    """
    return WriteError(f"cannot write {name}: {error.strerror or error}; {advise(error, remedy)}")


def advise(error: OSError, remedy: str) -> str:
    """Return `remedy`, or how to raise the limit if the error says that one of this process or machine was reached."""
    limit = _LIMITS.get(error.errno or 0)
    return f"{limit}, or lower workers=, then run the same command again" if limit else remedy


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, says that there was no memory: never a fault of a file's content.

    Libraries in Rust and C++ say it only in their text.
    """
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if "Cannot allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_disk(path: Path, error: BaseException | None = None) -> None:
    """Check that it is the content of a file that a library did not understand, and not the disk that failed.

    Some libraries name no cause: the file is read once more, to its end.

    Args:
        path: The file; one that is not there is left to the caller.
        error: What the library raised.

    Raises:
        ReadError: The disk fails.
        MedclsError: There was no memory to read it.
    """
    if is_out_of_memory(error):
        no_memory = OSError(errno.ENOMEM, "no memory")
        raise MedclsError(f"no memory to read {path}: {advise(no_memory, '')}") from error
    failure = find_disk_failure(error)
    if failure:
        raise describe_failure(failure, str(path)) from error

    def read() -> None:
        with path.open("rb") as file:
            while file.read(_PIECE_BYTES):
                pass

    with contextlib.suppress(OSError):
        read_again(read, str(path))
