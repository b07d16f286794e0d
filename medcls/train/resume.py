"""Resume a training: find its newest checkpoint, save on time and on signals, delete checkpoints at the end."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from medcls import distributed
from medcls.config import PretrainJob, TrainJob
from medcls.console import say
from medcls.data.dataset import Batch
from medcls.data.loaders import EpochSampler, WorkerError, read_batches
from medcls.errors import ConfigError, WriteError
from medcls.files import (
    CHECKPOINTS,
    ENVIRONMENT,
    FAULTS,
    METRICS_LOG,
    delete_folder,
    parse_json,
    write_bytes,
    write_json,
)
from medcls.runs.folder import read_environment
from medcls.runs.model_file import compute_digest
from medcls.train.claim import write_settings
from medcls.training.checkpoints import (
    Checkpoint,
    delete_newer,
    name_checkpoint,
    pack_training,
    read_newest,
    set_aside,
    unpack_training,
    write_checkpoint,
)
from medcls.training.loop import NonFiniteError
from medcls.training.optimizers import scale_rates
from medcls.training.preemption import PreemptedError, Watch
from medcls.training.state import Learner, Progress

# What has to be equal for the same bits again; of environment.json.
_SAME_BITS = ("processor", "threads", "processes", "device", "precision", "packages")
# On every learning rate after a training went back (own choice, docs/decisions/0030).
_LOWER = 0.1
_ADVICE = (
    "look whether /dev/shm, memory or open files (ulimit -n) ran out (docs/operations.md, Sizing); fewer workers=, or "
    "workers=0, take less"
)


def _find_checkpoint(run: Path, *, accept: Callable[[dict[str, Any]], bool] = lambda state: True) -> Checkpoint | None:
    """The newest valid one that will do, the same in all processes; says what is damaged and sets it aside.

    Newer sound ones are deleted: they would count among those that are kept, in place of those that are still to come.
    """
    found, damaged = read_newest(run / CHECKPOINTS, accept=accept)
    name = found.path.name if found else "none"
    distributed.check_same(name, what="checkpoints")
    for path, reason in damaged.items() if distributed.is_first() else ():
        aside = set_aside(path)
        say(f"notice: a checkpoint is damaged and set aside as {aside.name} ({reason}); {name} is taken")
    if found and distributed.is_first():
        delete_newer(found.path)
    return found


def resume_training(
    job: TrainJob | PretrainJob, run: Path, learner: Learner, *, environment: dict[str, Any], inputs: str
) -> Progress | None:
    """Puts the learner where the newest valid checkpoint stood, and returns where that is; None without one.

    What the log has beyond it is dropped.

    Args:
        job: The settings; where store and weights lie now is written into the run.
        run: Of the same settings.
        learner: As it was built for the first step.
        environment: Of this process; where it differs from the first one's that is said and recorded.
        inputs: Checksum of store, split, labels and weights.

    Raises:
        ConfigError: the inputs have changed since the run began.
    """
    checkpoint = _find_checkpoint(run)
    if checkpoint is None:
        return None
    if checkpoint.state["inputs"] != inputs:
        raise ConfigError(
            f"run={run} was begun with other data or weights than there are now: restore them, or choose another run="
        )
    progress = unpack_training(learner, checkpoint.tensors, checkpoint.state)
    if not distributed.is_first():
        return progress
    _shorten_log(run / METRICS_LOG, epochs=progress.epoch)
    say(f"resuming {run} in epoch {progress.epoch + 1}, after {progress.total} steps ({checkpoint.path.name})")
    # Version 0.2.0 could be killed with this file deleted and a checkpoint left.
    record = read_environment(run) if (run / ENVIRONMENT).is_file() else {}
    changed = [name for name in _SAME_BITS if record.get(name) != environment.get(name)]
    if changed:
        say(f"notice: {', '.join(changed)} differ from before: the result is the same to rounding, not to the bit")
    resumed = {"step": progress.total, "changed": {name: environment.get(name) for name in changed}}
    write_settings(run, job, environment=record)
    _record(run, "resumed", resumed)
    return progress


def _record(run: Path, name: str, entry: dict[str, Any]) -> None:
    """Adds an entry to a list of environment.json."""
    record = read_environment(run)
    write_json(run / ENVIRONMENT, record | {name: [*record.get(name, []), entry]})


def _shorten_log(path: Path, *, epochs: int) -> None:
    """Keeps the rows of the epochs that are done; a line that a power cut broke off is none of them."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if epochs and path.is_file() else []
    rows = [row for row in map(_read_row, lines) if row is not None and row["epoch"] <= epochs]
    write_bytes(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())


def _read_row(line: str) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("epoch"), int) else None


def check_space(run: Path, learner: Learner) -> None:
    """Raises WriteError where two checkpoints do not fit: a job must not find that out in the middle of a night."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in learner.model.state_dict().values())
    # Weights, two moments of the optimizer, the best epoch's weights, and their average where there is one.
    needed = 2 * weights * (4 + (learner.average is not None))
    free = shutil.disk_usage(run).free
    if free < needed:
        raise WriteError(
            f"run={run}: {free / 1e9:.2f} GB are free and two checkpoints take {needed / 1e9:.2f} GB: free space, or "
            "choose another folder"
        )


@dataclass(slots=True)
class Keeper:
    """Writes checkpoints when they are due, and ends the training where a signal asks for it.

    Attributes:
        run: The run folder.
        learner: What is trained.
        progress: Where it stands.
        watch: Signals.
        inputs: Checksum of store, split, labels and weights.
        seconds: Between two checkpoints.
        keep: How many stay.
        written: When the last one was, by time.monotonic().
        revived: Whether loading processes were started again.
        begun: Steps that were done when this process began.
    """

    run: Path
    learner: Learner
    progress: Progress
    watch: Watch
    inputs: str
    seconds: float
    keep: int
    written: float = field(default_factory=time.monotonic)
    revived: bool = False
    begun: int = field(init=False)

    def __post_init__(self) -> None:
        self.begun = self.progress.total

    def look(self, *, validated: bool = False) -> None:
        """Call it after every step, and with `validated` after every epoch's validation.

        Raises:
            PreemptedError: a signal came; the checkpoint is written.
            WriteError: it cannot be written.
        """
        self.watch.step()
        due = distributed.is_first() and time.monotonic() - self.written >= self.seconds
        ended, due = distributed.any_rank(bool(self.watch.signal), due)
        # In a row of steps that are not finite, none that is due by the clock takes the place of a good one.
        if ended or (due and not self.learner.nonfinite):
            self._write(validated=validated)
        if ended:
            # One process that ends takes the others with it: none before the checkpoint is whole.
            distributed.wait()
            raise PreemptedError(
                f"{self.watch.signal or 'a signal to another process'}: stopped after {self.progress.total} steps, in "
                f"epoch {self.progress.epoch + 1}; run the same command again to go on"
            )

    def feed(self, loader: DataLoader[Batch], sampler: EpochSampler) -> Iterator[Batch]:
        """Yields the batches of a loader; once in this process its loading processes are started again."""
        return read_batches(loader, sampler, on_death=self._revive)

    def look_between(self, loader: DataLoader[Batch], sampler: EpochSampler) -> Iterator[Batch]:
        """Yields the batches of a validation; a signal ends it, and it is made again from its beginning."""
        for batch in self.feed(loader, sampler):
            self.watch.step()
            if distributed.any_rank(bool(self.watch.signal))[0]:
                self.look()
            yield batch

    def _revive(self, reason: str) -> None:
        """Allows one other start of the loading processes.

        Raises:
            PreemptedError: the second time; steps were made and, in one process, are kept: another machine may go on.
            WorkerError: the second time, and not one step was made since the beginning.
        """
        line = f"a loading process died after {self.progress.total} steps ({reason})"
        if not self.revived:
            self.revived = True
            say(f"notice: {line}: all are started again at the same batch, once; {_ADVICE}")
            return
        if self.progress.total == self.begun:
            raise WorkerError(f"{line}, twice without a step between: {_ADVICE}")
        if distributed.count_ranks() == 1:
            self._write(validated=False)
        raise PreemptedError(f"{line}, for the second time: {_ADVICE}; then run the same command again to go on")

    def retreat(self, error: NonFiniteError) -> None:
        """Puts learner and progress where the last good checkpoint stood, once, and lowers all learning rates for good.

        Good is one that no non-finite step had come right before. The same steps at the same rates would end alike.

        Raises:
            NonFiniteError: `error`, with where its steps are described: there is none, or this is the second time.
        """
        step, again = self.progress.total, self.learner.retreats
        good = None if again else _find_checkpoint(self.run, accept=lambda state: not state["nonfinite"])
        if good is None:
            why = "again, at a tenth of the rate" if again else "with no checkpoint to go back to"
            raise NonFiniteError(f"{error} ({why}; {self.run / FAULTS} names the images and the layer)") from error
        at = unpack_training(self.learner, good.tensors, good.state)
        for each in fields(Progress):
            setattr(self.progress, each.name, getattr(at, each.name))
        self.learner.retreats += 1
        scale_rates(self.learner.schedule, _LOWER)
        if not distributed.is_first():
            return
        _shorten_log(self.run / METRICS_LOG, epochs=at.epoch)
        _record(self.run, "retreats", {"from_step": step, "to_step": at.total, "lr_factor": _LOWER})
        say(
            f"notice: {error}; back to step {at.total} ({good.path.name}) once, from there at a tenth of the learning "
            f"rate: environment.json records it, {self.run / FAULTS} names the images and the layer"
        )

    def _write(self, *, validated: bool) -> None:
        self.written = time.monotonic()
        if not distributed.is_first():
            return
        tensors, state = pack_training(self.learner, self.progress)
        state["inputs"] = self.inputs
        name = name_checkpoint(self.progress.total, validated=validated)
        if not (self.run / CHECKPOINTS / name).exists():
            # One within a row of steps that are not finite does not take the place of a good one.
            keep = self.keep + bool(self.learner.nonfinite)
            write_checkpoint(self.run / CHECKPOINTS, name, tensors=tensors, state=state, keep=keep)
            self.written = time.monotonic()


@contextlib.contextmanager
def keep_checkpoints(
    job: TrainJob | PretrainJob, run: Path, learner: Learner, progress: Progress, *, inputs: str
) -> Iterator[Keeper]:
    """Yields what writes the checkpoints of a training as job.checkpoint says; signals are noted meanwhile."""
    chosen = job.checkpoint
    if distributed.count_ranks() > 1:
        weights = {name: tensor.cpu().contiguous() for name, tensor in learner.model.state_dict().items()}
        content = f"{inputs} {progress.total} {compute_digest(weights)}"
        distributed.check_same(content, what="data, weights or checkpoints")
    with Watch(hang_seconds=chosen.hang_minutes and 60 * chosen.hang_minutes) as watch:
        yield Keeper(run, learner, progress, watch, inputs=inputs, seconds=60 * chosen.minutes, keep=chosen.keep)


def delete_checkpoints(run: Path) -> None:
    """Deletes the checkpoints of a run whose model is written, and those that were set aside."""
    delete_folder(run / CHECKPOINTS)
