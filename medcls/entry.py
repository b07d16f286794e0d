"""Protect a command before other libraries are imported: search path, early signals, failing log.

`python -m` puts the working folder first on the search path: a folder of data with an albumentations.py in it would run
that file. A scheduler's SIGTERM may arrive while the libraries are still being imported. And the log of a command may
go away: its reader ends, its disk is full, its descriptors were closed. None of that may change what a command does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

INTERRUPTED = 75
_PACKAGES = ("medcls", "data_prep")


class LossyStream:
    """A stream of text whose writes never fail: what cannot be written is lost, and all that follows it.

    Args:
        stream: Standard output or standard error.
        descriptor: Its number, 1 or 2, which is led to the null device as soon as a write fails.

    Attributes:
        lost: The error of the first write that failed; None if all was taken.
    """

    def __init__(self, stream: TextIO, descriptor: int) -> None:
        self._stream, self._descriptor = stream, descriptor
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
        """Write the text if that is possible; return its length."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: Exception) -> None:
        self.lost = self.lost or error
        # The text that the stream still holds goes there, too; Python would exit 120 if it could not be flushed.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._descriptor)
        os.close(null)


def _leave_working_folder() -> None:
    """Take the working folder off the search path, here and in child processes, unless this code is run from it."""
    try:
        here = Path.cwd()
    except OSError as error:
        _end(
            f"the working folder cannot be found ({error.strerror}): cd to another folder",
            66,
        )
    home = Path(__file__).resolve().parents[1]
    if here == home or sys.flags.safe_path:
        return
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != here]
    os.environ["PYTHONSAFEPATH"] = "1"


def _end_at_once(number: int, _: Any) -> None:
    _end("interrupted: run the same command again", INTERRUPTED)


def _end(line: str, code: int) -> NoReturn:
    """Say the line and exit: nothing has begun, or the next start of a small command clears what this one leaves."""
    with contextlib.suppress(OSError):  # standard error is closed
        os.write(2, f"{line}\n".encode())
    os._exit(code)


def _keep_output() -> None:
    """Make sure that 0, 1 and 2 are open, and that a log that goes away costs its lines only."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Else the next file that is opened would be standard error, and messages would be written into it. So it
            # would in child processes, which do not inherit what Python opens unless told so.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or os.fdopen(descriptor, "w", encoding="utf-8", closefd=False)
        # A name that a locale other than UTF-8 cannot write is spelt out: it is no log that went away.
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, cast(TextIO, LossyStream(stream, descriptor)))


def _protect_command() -> None:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None or spec.name.partition(".")[0] not in _PACKAGES:
        return
    _leave_working_folder()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        # A command in the background of a script is started with SIGINT ignored, and goes on ignoring it.
        if number != signal.SIGINT or signal.getsignal(number) is signal.default_int_handler:
            signal.signal(number, _end_at_once)
    _keep_output()
    # A page of a mapped file that the disk does not give is SIGBUS, which Python cannot turn into an error: its
    # place is printed before the process ends with 135.
    faulthandler.enable(2)


_protect_command()
