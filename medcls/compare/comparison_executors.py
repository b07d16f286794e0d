"""Executors of a comparison: processes of this machine, or Slurm jobs through submitit.

Submitit by itself pickles a function and its result into a folder that others may write into, and unpickling runs what
they put there. Here it only submits a command line; the result is JSON (docs/decisions/0062-no-pickles-of-jobs.md).
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from medcls.compare.comparison_task import ComparisonTask, read_exit_code, run_task
from medcls.errors import ConfigError
from medcls.files import read_json, write_json

_TASK_MODULE = "medcls.compare.comparison_task"
_RESULT = re.compile(r"result-[0-9a-f]{32}\.json")
_ENDED_BY_CLUSTER = 70
_ASK_SECONDS = 20.0
_PAUSE_SECONDS = 0.2


class Handle(Protocol):
    """A started task; concurrent.futures.Future is such."""

    def done(self) -> bool:
        """Return whether it has ended."""

    def result(self) -> int:
        """Return the exit code of its last command."""


class Executor(Protocol):
    """Starts tasks and ends those that still run."""

    slots: int

    def start(self, task: ComparisonTask) -> Handle:
        """Return at once."""

    def stop(self) -> None:
        """End what still runs, where it would not outlive this process anyway."""


class LocalExecutor:
    """Processes of this machine, `slots` at once."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._pool = ThreadPoolExecutor(slots)
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, task: ComparisonTask) -> Handle:
        """Return at once; the task runs as soon as a slot is free."""
        return self._pool.submit(run_task, task, on_start=self._processes.append)

    def stop(self) -> None:
        """End all processes and wait for them; a training that was broken off starts again next time."""
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
            to try it without one.

    Raises:
        ConfigError: submitit or Slurm is not installed, or submitit does not know an option.
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
        missing = [tool for tool in ("sbatch", "squeue") if not shutil.which(tool)]
        if self._cluster == "slurm" and missing:
            raise ConfigError(
                f"executor=slurm: {' and '.join(missing)} not found on PATH: start it where Slurm takes jobs, "
                "or set executor=local"
            )
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=self._cluster)
            self._executor.update_parameters(name="medcls", **chosen)
        except (NameError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"slurm.*={dict(options)}: submitit says: {reason}") from error

    def start(self, task: ComparisonTask) -> Handle:
        """Submit the task, unless its job of an earlier start is still in the queue.

        Raises:
            ConfigError: Slurm does not take it.
        """
        remedy = "remove it once no job of this comparison is in the queue"
        known = read_json(self._jobs, remedy=remedy) if self._jobs.is_file() else {}
        found = self._find(known.get(task.name))
        if found is not None:
            return found
        result = self._folder / f"result-{uuid.uuid4().hex}.json"
        command = [sys.executable, "-m", _TASK_MODULE, task.to_text(), str(result.resolve())]
        # Not submit(), which pickles; submitit has no other way to a command line.
        inner: Any = self._executor._executor
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            job = inner._submit_command(shlex.join(command))
        except RuntimeError as error:  # submitit's own errors
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"executor=slurm: sbatch refused {task.name}: {reason}: correct slurm.*") from error
        write_json(self._jobs, known | {task.name: {"job": str(job.job_id), "result": result.name}})
        if self._cluster == "slurm":
            return _QueuedJob(str(job.job_id), result)
        return _StartedJob(job, result)

    def _find(self, entry: Any) -> Handle | None:
        """The job of an earlier start, where Slurm still has it in the queue; others may have written the entry."""
        if not isinstance(entry, dict) or self._cluster != "slurm":
            return None
        job_id, name = (str(entry.get(key, "")) for key in ("job", "result"))
        if not job_id.isdecimal() or not _RESULT.fullmatch(name) or not is_queued(job_id):
            return None
        return _QueuedJob(job_id, self._folder / name)

    def stop(self) -> None:
        """Leave the jobs in the queue: the same command finds them again."""


def is_queued(job_id: str) -> bool:
    """Return whether Slurm has the job waiting or running; yes where it does not answer.

    From squeue: sacct, which submitit asks, lags behind and needs accounting that small clusters do not have.
    """
    command = ["squeue", "--noheader", "--jobs", job_id, "--format", "%T"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return True
    if asked.returncode:
        return "invalid job id" not in asked.stderr.lower()
    return bool(asked.stdout.strip())


class _QueuedJob:
    """A job of Slurm; one that the cluster ended (time limit, memory) has an exit code, too."""

    def __init__(self, job_id: str, result: Path) -> None:
        self._job_id, self._result = job_id, result
        self._asked, self._gone = time.monotonic(), False

    def done(self) -> bool:
        # A listing is fresh where a network file system still remembers that there was no such file.
        if self._result.parent.is_dir() and self._result in self._result.parent.iterdir():
            return True
        if time.monotonic() - self._asked < _ASK_SECONDS:
            return False
        # Gone twice: on a network file system the result may come after the end.
        before, self._gone, self._asked = self._gone, not is_queued(self._job_id), time.monotonic()
        return before and self._gone

    def result(self) -> int:
        code = read_exit_code(self._result)
        return _ENDED_BY_CLUSTER if code is None else code


class _StartedJob(_QueuedJob):
    """A job that submitit runs on this machine, to try it without a cluster."""

    def __init__(self, job: Any, result: Path) -> None:
        super().__init__(str(job.job_id), result)
        self._job = job

    def done(self) -> bool:
        return bool(self._job.done())

    def result(self) -> int:
        while not self.done():
            time.sleep(_PAUSE_SECONDS)
        return super().result()
