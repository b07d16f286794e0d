"""Where the commands of a comparison run: processes of this machine, or jobs of a Slurm cluster through submitit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medcls.errors import ConfigError
from medcls.files import read_json, write_json

PREEMPTED = 75  # of a training that goes on when it is started again
_ENDED_BY_CLUSTER = 70
_ASK_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Task:
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


class Handle(Protocol):
    """A started task; concurrent.futures.Future and submitit.Job are such."""

    def done(self) -> bool:
        """Whether it has ended."""

    def result(self) -> int:
        """The exit code of its last command."""


class Executor(Protocol):
    """Starts tasks and ends those that still run."""

    slots: int

    def start(self, task: Task) -> Handle:
        """Returns at once."""

    def stop(self) -> None:
        """Ends what still runs, where it would not outlive this process anyway."""


def run_task(task: Task, *, on_start: Callable[[subprocess.Popen[bytes]], None] | None = None) -> int:
    """Returns the exit code of the first command that fails, or 0.

    Args:
        task: To run.
        on_start: Is told each process.
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
            if code in (0, PREEMPTED) and not was_there:
                _add_seconds(task.seconds, command, time.monotonic() - started)
            if code:
                return code
    return 0


def _add_seconds(path: Path, command: Sequence[str], seconds: float) -> None:
    known, name = read_json(path) if path.is_file() else {}, command[2].removeprefix("medcls.")
    write_json(path, known | {name: round(known.get(name, 0.0) + seconds, 3)})


class LocalExecutor:
    """Processes of this machine, `slots` at once."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._pool = ThreadPoolExecutor(slots)
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, task: Task) -> Handle:
        """Returns at once; the task runs as soon as a slot is free."""
        return self._pool.submit(run_task, task, on_start=self._processes.append)

    def stop(self) -> None:
        """Ends all processes and waits for them; a training that was broken off starts again next time."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        self._pool.shutdown(wait=True)


class SlurmExecutor:
    """Jobs of a Slurm cluster, one for each task; they outlive this process, and are found again by it.

    Args:
        folder: Of submitit's own files and logs; every node has to see it.
        slots: Jobs in the queue at once.
        options: submitit's own names: slurm_partition, timeout_min, cpus_per_task …; "cluster" is "slurm", or "local"
            or "debug" to try it without one.

    Raises:
        ConfigError: submitit is not installed, or does not know an option.
    """

    def __init__(self, folder: Path, *, slots: int, options: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError(
                "executor=slurm needs submitit: pip install 'medcls[slurm]', or executor=local"
            ) from error
        self.slots = slots
        self._folder = folder
        self._jobs = folder / "jobs.json"
        chosen = dict(options)
        self._cluster = str(chosen.pop("cluster", "slurm"))
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=self._cluster)
            self._executor.update_parameters(name="medcls", **chosen)
        except (NameError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"slurm.*={dict(options)}: submitit says: {reason}") from error

    def start(self, task: Task) -> Handle:
        """Submits the task, unless its job of an earlier start is still in the queue."""
        known = read_json(self._jobs) if self._jobs.is_file() else {}
        job: Any = self._find(known.get(task.name))
        if job is None:
            job = self._executor.submit(run_task, task)
            write_json(self._jobs, known | {task.name: job.job_id})
        return _QueuedJob(job) if self._cluster == "slurm" else job

    def _find(self, job_id: str | None) -> Any:
        """The job of an earlier start, where Slurm still has it in the queue."""
        if job_id is None or self._cluster != "slurm" or not is_queued(job_id):
            return None
        import submitit

        return submitit.SlurmJob(folder=self._folder, job_id=job_id, tasks=[0])

    def stop(self) -> None:
        """Leaves the jobs in the queue: the same command finds them again."""


def is_queued(job_id: str) -> bool:
    """Returns whether Slurm has the job waiting or running; yes where it does not answer.

    From squeue: sacct, which submitit asks, lags behind and needs accounting that small clusters do not have.
    """
    command = ["squeue", "--noheader", "--jobs", job_id, "--format", "%T"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return True
    if asked.returncode:
        return "invalid job id" not in asked.stderr.lower()
    return bool(asked.stdout.strip())


class _QueuedJob:
    """A job of Slurm; one that the cluster ended (time limit, memory) has an exit code, too."""

    def __init__(self, job: Any) -> None:
        self._job = job
        self._asked, self._gone = time.monotonic(), False

    def done(self) -> bool:
        if self._has_result():
            return True
        if time.monotonic() - self._asked < _ASK_SECONDS:
            return False
        # Gone twice: on a network file system the result may come after the end.
        before, self._gone, self._asked = self._gone, not is_queued(self._job.job_id), time.monotonic()
        return before and self._gone

    def result(self) -> int:
        return int(self._job.result()) if self._has_result() else _ENDED_BY_CLUSTER

    def _has_result(self) -> bool:
        path = self._job.paths.result_pickle
        # A listing is fresh where a network file system still remembers that there was no such file.
        return path.parent.is_dir() and path in path.parent.iterdir()
