"""Resume a training: find its newest checkpoint, keep it safe while it trains, delete checkpoints at the end."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medcls import distributed
from medcls.config import PretrainJob, TrainJob
from medcls.console import say
from medcls.data.dataset import StoreDataset
from medcls.errors import ConfigError, WriteError
from medcls.files import CHECKPOINTS, ENVIRONMENT, delete_folder
from medcls.runs.folder import read_environment
from medcls.runs.model_file import compute_digest
from medcls.train.claim import write_settings
from medcls.training.checkpoint_manager import CheckpointManager, find_checkpoint, record_event, shorten_log
from medcls.training.checkpoints import unpack_training
from medcls.training.preemption import Watch
from medcls.training.state import Learner, Progress, StepRules

# What has to be equal for the same bits again; of environment.json.
_SAME_BITS = ("processor", "threads", "processes", "device", "precision", "packages")


def resume_training(
    job: TrainJob | PretrainJob, run: Path, learner: Learner, *, environment: dict[str, Any], inputs: str
) -> Progress | None:
    """Put the learner where the newest valid checkpoint stood, and return where that is; None without one.

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
    checkpoint = find_checkpoint(run)
    if checkpoint is None:
        return None
    if checkpoint.state["inputs"] != inputs:
        raise ConfigError(
            f"run={run} was started with other data or weights than those found now: restore them, or choose another "
            f"run="
        )
    progress = unpack_training(learner, checkpoint.tensors, checkpoint.state)
    if not distributed.is_first():
        return progress
    shorten_log(run, epochs=progress.epoch)
    say(f"resuming {run} in epoch {progress.epoch + 1}, after {progress.total} steps ({checkpoint.path.name})")
    # Version 0.2.0 could be killed with this file deleted and a checkpoint left.
    record = read_environment(run) if (run / ENVIRONMENT).is_file() else {}
    changed = [name for name in _SAME_BITS if record.get(name) != environment.get(name)]
    if changed:
        say(f"notice: {', '.join(changed)} differ from before: the result is the same to rounding, not to the bit")
    resumed = {"step": progress.total, "changed": {name: environment.get(name) for name in changed}}
    write_settings(run, job, environment=record)
    record_event(run, "resumed", resumed)
    return progress


def check_space(run: Path, learner: Learner) -> None:
    """Raise WriteError where two checkpoints do not fit: a job must not find that out in the middle of a night."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in learner.model.state_dict().values())
    # Weights, two moments of the optimizer, the best epoch's weights, and their average where there is one.
    needed = 2 * weights * (4 + (learner.average is not None))
    free = shutil.disk_usage(run).free
    if free < needed:
        raise WriteError(
            f"run={run}: {free / 1e9:.2f} GB are free, but two checkpoints take {needed / 1e9:.2f} GB: free space, or "
            "choose another folder"
        )


@contextlib.contextmanager
def keep_checkpoints(
    job: TrainJob | PretrainJob,
    run: Path,
    learner: Learner,
    progress: Progress,
    *,
    rules: StepRules,
    images: StoreDataset,
    inputs: str,
) -> Iterator[CheckpointManager]:
    """Yield the manager that keeps a training as job.checkpoint says; signals are noted meanwhile.

    Args:
        job: The settings.
        run: Run folder.
        learner: What is trained.
        progress: Where it is.
        rules: How a step is made.
        images: Training images, whose rows a fault names.
        inputs: Checksum of store, split, labels and weights.
    """
    chosen = job.checkpoint
    if distributed.count_ranks() > 1:
        weights = {name: tensor.cpu().contiguous() for name, tensor in learner.model.state_dict().items()}
        content = f"{inputs} {progress.total} {compute_digest(weights)}"
        distributed.check_same(content, what="data, weights or checkpoints")
    with Watch(hang_seconds=chosen.hang_minutes and 60 * chosen.hang_minutes) as watch:
        yield CheckpointManager(
            run,
            learner,
            progress,
            rules,
            images,
            watch,
            inputs=inputs,
            seconds=60 * chosen.minutes,
            keep=chosen.keep,
        )


def delete_checkpoints(run: Path) -> None:
    """Delete the checkpoints of a run whose model is written, and those that were set aside."""
    delete_folder(run / CHECKPOINTS)
