"""One task of a comparison: its commands in sequence, in this process or as a cluster job.

As a job it is `python -m medcls.compare.comparison_task TASK RESULT`: the task comes on the command line, and its exit
code goes into a JSON file. Nothing that lies in the shared folder is run or unpickled.
"""

from __future__ import annotations

import medcls.entry  # noqa: F401 (before all others: it keeps the working folder's files from being imported)

# isort: split
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcls.entry import INTERRUPTED
from medcls.errors import DataError, MedclsError, MissingInputError, UsageError
from medcls.files import parse_json, read_json, write_json
from medcls.records import from_json, to_json

EXIT_CODE = "exit_code"


@dataclass(frozen=True, slots=True)
class ComparisonTask:
    """Commands that follow one another in one process after the other.

    Attributes:
        name: For messages.
        commands: Argument lists; "python" as the first means this interpreter.
        makes: The file that each command writes last: where it is there before, the command's seconds do not count.
        log: Where their output goes, one after the other, appended.
        seconds: JSON file: module -> wall time.
        environment: Variables over those of this process.
    """

    name: str
    commands: list[list[str]]
    makes: list[Path]
    log: Path
    seconds: Path
    environment: dict[str, str]

    def to_text(self) -> str:
        """Return the task as one argument of a command line."""
        return json.dumps(to_json(self))

    @classmethod
    def from_text(cls, text: str) -> ComparisonTask:
        """Return what `to_text` made.

        Raises:
            DataError: it is not the whole text, or not such a text.
        """
        try:
            task = from_json(cls, parse_json(text))
            if len(task.commands) != len(task.makes) or not all(task.commands):
                raise ValueError(f"{len(task.commands)} commands, {len(task.makes)} files that they make")
        except (ValueError, RecursionError, DataError) as error:
            raise DataError(
                f"TASK is not a task of medcls.compare ({type(error).__name__}): run the same medcls.compare command "
                "again, which submits it again"
            ) from error
        return task


def run_task(task: ComparisonTask, *, on_start: Callable[[subprocess.Popen[bytes]], None] | None = None) -> int:
    """Return the exit code of the first command that fails, or 0.

    `on_start` is told each process.
    """
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log:
        for command, made in zip(task.commands, task.makes, strict=True):
            was_there = made.is_file()
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            started = time.monotonic()
            executable = sys.executable if command[0] == "python" else command[0]
            process = subprocess.Popen(
                [executable, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | task.environment,
            )
            if on_start:
                on_start(process)
            code = process.wait()
            if code in (0, INTERRUPTED) and not was_there:
                _add_seconds(task.seconds, command, time.monotonic() - started)
            if code:
                return code
    return 0


def _add_seconds(path: Path, command: Sequence[str], seconds: float) -> None:
    known, name = read_json(path) if path.is_file() else {}, command[2].removeprefix("medcls.")
    write_json(path, known | {name: round(known.get(name, 0.0) + seconds, 3)})


def main(arguments: Sequence[str]) -> int:
    """Run a task and write its exit code.

    Args:
        arguments: The task as `ComparisonTask.to_text` makes it, and the file for the exit code.
    """
    if len(arguments) != 2:
        print("comparison_task: medcls.compare executor=slurm starts it, with TASK RESULT", file=sys.stderr)
        return UsageError.exit_code
    try:
        return _run_job(ComparisonTask.from_text(arguments[0]), Path(arguments[1]))
    except MedclsError as error:
        print(f"comparison_task: {error}", file=sys.stderr)
        return error.exit_code


def _run_job(task: ComparisonTask, result: Path) -> int:
    running: list[subprocess.Popen[bytes]] = []

    def hand_on(*_: Any) -> None:
        # A training that is told to end keeps a checkpoint and exits 75; without one nothing is lost either.
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, hand_on)
    code = run_task(task, on_start=running.append)
    write_json(result, {EXIT_CODE: code})
    return code


def read_exit_code(result: Path) -> int | None:
    """Return the exit code that a job wrote; None if there is none, or none that it could have written."""
    try:
        code = read_json(result).get(EXIT_CODE)
    except (DataError, MissingInputError, OSError):
        return None
    return code if isinstance(code, int) and not isinstance(code, bool) else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
