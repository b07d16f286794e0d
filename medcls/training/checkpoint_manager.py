"""Keep a run safe while it trains: checkpoints when due, signals, and recovery from faults."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from medcls import distributed
from medcls.console import say
from medcls.data.dataset import StoreDataset
from medcls.data.loaders import WorkerError
from medcls.errors import MedclsError
from medcls.files import CHECKPOINTS, ENVIRONMENT, FAULTS, METRICS_LOG, parse_json, read_json, write_bytes, write_json
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
from medcls.training.faults import describe_fault
from medcls.training.loop import Keeper, NonFiniteError, SkippedStepError
from medcls.training.optimizers import scale_rates
from medcls.training.preemption import PreemptedError, Watch
from medcls.training.state import Learner, Progress, StepRules

# On every learning rate after a training went back (own choice, docs/decisions/0030).
_LOWER = 0.1
# Of one run: the first ones say what there is to say.
_MOST_FAULTS = 5
_ADVICE = (
    "check whether /dev/shm, memory or open files (ulimit -n) ran out (docs/operations.md, Sizing), or lower workers= "
    "(workers=0 needs least)"
)


@dataclass(slots=True)
class CheckpointManager(Keeper):
    """Writes checkpoints when they are due, ends the training when a signal asks for it, and answers faults.

    Attributes:
        run: Run folder.
        learner: What is trained.
        progress: Where it is.
        rules: How a step is made.
        images: Training images, whose rows a fault names.
        watch: Signals.
        inputs: Checksum of store, split, labels and weights.
        seconds: Between two checkpoints.
        keep: Number of checkpoints that stay.
        written: When the last one was, by time.monotonic().
        revived: Whether loading processes were started again.
        begun: Steps that were done when this process began.
    """

    run: Path
    learner: Learner
    progress: Progress
    rules: StepRules
    images: StoreDataset
    watch: Watch
    inputs: str
    seconds: float
    keep: int
    written: float = field(default_factory=time.monotonic)
    revived: bool = False
    begun: int = field(init=False)

    def __post_init__(self) -> None:
        self.begun = self.progress.total

    def checkpoint_if_due(self, *, validated: bool = False) -> None:
        """Write a checkpoint if it is time, or if a signal asked the job to end; then end it.

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
                f"epoch {self.progress.epoch + 1}; run the same command again to resume"
            )

    def recover(self, error: MedclsError) -> None:
        """Return if the training may go on from where its progress is now; otherwise raise.

        A skipped step is described under faults/. After too many in a row, learner and progress go back to the last
        good checkpoint, once. Loading processes are started again, once.

        Raises:
            NonFiniteError: there is no checkpoint to go back to, or it is the second time.
            PreemptedError: loading processes died for the second time; another machine may go on.
            WorkerError: they did, and not one step was made since this process began.
        """
        if isinstance(error, SkippedStepError):
            self._describe(error)
        elif isinstance(error, NonFiniteError):
            self._go_back(error)
        elif isinstance(error, WorkerError):
            self._revive(error)
        else:
            raise error

    def _describe(self, step: SkippedStepError) -> None:
        """Write what is known of a skipped step, for the first few of a run.

        Each of several processes describes its own part: the layer may be found in one of them alone.
        """
        learner, progress, rank = self.learner, self.progress, distributed.get_rank()
        kind = ("-lower-rate" if learner.retreats else "") + (f"-process-{rank}" if rank else "")
        path = self.run / FAULTS / f"step-{progress.total:010d}{kind}.json"
        if not path.exists() and len(list(path.parent.glob("*.json"))) >= _MOST_FAULTS * distributed.count_ranks():
            return
        fault = describe_fault(learner, step.group, self.rules, loss=step.loss, seed=step.seed)
        rows = [self.images.rows[batch.positions.numpy()] for batch in step.group]
        names = [self.images.store.read("image_id", rows=each).column(0).to_pylist() for each in rows]
        place = {
            "epoch": progress.epoch + 1,
            "step": progress.total,
            "rows": [each.tolist() for each in rows],
            "image_ids": names,
        }
        write_json(path, fault | place)
        where = f"first in {fault['where']} {fault['layer']}".rstrip() if fault["where"] else "its layer is not known"
        say(f"notice: step {progress.total} was not finite ({where}) and is left out; its images are named in {path}")

    def _go_back(self, error: NonFiniteError) -> None:
        """Put learner and progress where the last good checkpoint was, and lower all learning rates for good.

        Good is one that no non-finite step had come right before. The same steps at the same rates would end alike.
        """
        step, again = self.progress.total, self.learner.retreats
        good = None if again else find_checkpoint(self.run, accept=lambda state: not state["nonfinite"])
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
        shorten_log(self.run, epochs=at.epoch)
        record_event(self.run, "retreats", {"from_step": step, "to_step": at.total, "lr_factor": _LOWER})
        say(
            f"notice: {error}; back to step {at.total} ({good.path.name}) once, from there at a tenth of the learning "
            f"rate: environment.json records it, {self.run / FAULTS} names the images and the layer"
        )

    def _revive(self, death: WorkerError) -> None:
        """Allow one other start of the loading processes."""
        line = f"a loading process died after {self.progress.total} steps ({death})"
        if not self.revived:
            self.revived = True
            say(f"notice: {line}: all are restarted at the same batch, once; {_ADVICE}")
            return
        if self.progress.total == self.begun:
            raise WorkerError(f"{line}, twice without a step between: {_ADVICE}")
        if distributed.count_ranks() == 1:
            self._write(validated=False)
        raise PreemptedError(f"{line}, for the second time: {_ADVICE}; then run the same command again to resume")

    def _write(self, *, validated: bool) -> None:
        self.written = time.monotonic()
        if not distributed.is_first():
            return
        name = name_checkpoint(self.progress.total, validated=validated)
        if (self.run / CHECKPOINTS / name).exists():
            return
        tensors, state = pack_training(self.learner, self.progress)
        # One within a row of steps that are not finite does not take the place of a good one.
        keep = self.keep + bool(self.learner.nonfinite)
        write_checkpoint(
            self.run / CHECKPOINTS, name, tensors=tensors, state=state | {"inputs": self.inputs}, keep=keep
        )
        self.written = time.monotonic()


def find_checkpoint(run: Path, *, accept: Callable[[dict[str, Any]], bool] = lambda state: True) -> Checkpoint | None:
    """Return the newest valid checkpoint that will do, the same in all processes; set damaged ones aside and say so.

    Newer sound ones are deleted: they would count among those that are kept, in place of those that are still to come.
    """
    found, damaged = read_newest(run / CHECKPOINTS, accept=accept)
    name = found.path.name if found else "none"
    distributed.check_same(name, what="checkpoints")
    for path, reason in damaged.items() if distributed.is_first() else ():
        aside = set_aside(path)
        say(f"notice: a checkpoint is damaged and set aside as {aside.name} ({reason}); {name} is used")
    if found and distributed.is_first():
        delete_newer(found.path)
    return found


def record_event(run: Path, name: str, entry: dict[str, Any]) -> None:
    """Add an entry to a list of environment.json."""
    record = read_json(run / ENVIRONMENT, remedy="restore it from a copy of the run")
    write_json(run / ENVIRONMENT, record | {name: [*record.get(name, []), entry]})


def shorten_log(run: Path, *, epochs: int) -> None:
    """Keep the rows of the epochs that are done in metrics.jsonl, without a line that a power cut broke off."""
    path = run / METRICS_LOG
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if epochs and path.is_file() else []
    rows = []
    for line in lines:
        try:
            row = parse_json(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("epoch"), int) and row["epoch"] <= epochs:
            rows.append(json.dumps(row, sort_keys=True) + "\n")
    write_bytes(path, "".join(rows).encode())
