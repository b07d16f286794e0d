"""Errors that a user can cause or meet, each with its exit code.

A message is one line: the name, the value, what was expected, and what to do next.
It never carries a value of an identifying attribute.
"""

from __future__ import annotations


class MedclsError(Exception):
    """Base of all errors that end a command with one line instead of a traceback.

    Exit codes follow sysexits.h where it has one: 64 usage, 65 bad data, 66 missing input, 70 failed (do not
    retry), 74 cannot read or write, 75 preempted (run the same command again), 78 configuration.
    """

    exit_code = 70


class UsageError(MedclsError):
    """The command line itself is wrong."""

    exit_code = 64


class DataError(MedclsError):
    """Input is there and is wrong."""

    exit_code = 65


class MissingInputError(MedclsError):
    """A file or folder that the command needs is not there."""

    exit_code = 66


class WriteError(MedclsError):
    """An output cannot be written: disk full, read-only, gone."""

    exit_code = 74


class ReadError(MedclsError):
    """The disk does not give a file that is there: its content is unknown, so nothing is deleted or judged for it."""

    exit_code = 74


class BusyError(MedclsError):
    """Another process is at work on the same folder: run the command again when it has ended."""

    exit_code = 75


class ConfigError(MedclsError):
    """A configuration value is unknown, of the wrong type, out of range or contradicts another."""

    exit_code = 78


class ImageRefusedError(DataError):
    """One image cannot be turned into right pixels; the rest of the job goes on.

    Args:
        reason: Short fixed word for counting, snake_case, such as "truncated".
        detail: What was found and what was expected; no identifying value.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ImageRefusedError], tuple[str, str]]:
        """Keep both fields when the error crosses from a worker process."""
        return type(self), (self.reason, self.detail)


def locate(error: BaseException) -> str:
    """Return the type and place of an error: its message may carry a patient's name, so that stays out."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}{place}"
