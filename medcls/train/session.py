"""A session of a training or pretraining: resume the run or start it, keep it safe while it trains, log its epochs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from medcls import distributed
from medcls.config import ModelConfig
from medcls.config.trainer import CheckpointConfig
from medcls.console import say
from medcls.data.crops import Crop
from medcls.errors import ConfigError, WriteError
from medcls.files import ENVIRONMENT
from medcls.models.pooling import list_nondeterministic
from medcls.reproducibility import describe_environment
from medcls.runs.folder import read_environment
from medcls.runs.lineage import hash_seen
from medcls.runs.model_file import ModelCard, compute_digest
from medcls.train.claim import RunRequest, start_run, write_settings
from medcls.train.learner import Recipe
from medcls.train.network import choose_normalization
from medcls.train.training_data import TrainingData, look_at_data, read_domain, write_seen
from medcls.training.checkpoint_manager import CheckpointManager, find_checkpoint, record_event, shorten_log
from medcls.training.checkpoints import unpack_training
from medcls.training.loop import run_epochs
from medcls.training.preemption import Watch
from medcls.training.state import Best, Learner, Progress, RunPlan, StepRules
from medcls.training.tracking import Tracker

# What has to be equal for the same bits again; of environment.json.
_SAME_BITS = ("processor", "threads", "processes", "device", "precision", "packages")


@dataclass(frozen=True, slots=True)
class Session:
    """One start of a training, ready for its first step.

    Attributes:
        asked: The run.
        data: What it learns from.
        learner: As built for the first step; a checkpoint puts it where that one was.
        recipe: How its steps are made.
        inputs: Checksum of store, split, labels and weights.
        environment: What this process runs with, as environment.json keeps it.
    """

    asked: RunRequest
    data: TrainingData
    learner: Learner
    recipe: Recipe
    inputs: str
    environment: Mapping[str, object]

    def begin(self, write_more: Callable[[Path], None] = lambda run: None) -> Progress:
        """Resume the run from its newest checkpoint, or start it, and return where it is.

        Raises:
            ConfigError: the inputs have changed since the run began.
            WriteError: the disk has no room for two checkpoints.
        """
        run = self.asked.folder
        progress = self._resume(run)
        if progress is not None:
            return progress
        if distributed.is_first():
            start_run(self.asked, environment=self.environment)
            write_seen(run, self.data)
            look_at_data(run, self.data)
            write_more(run)
            check_space(run, self.learner)
        return Progress()

    def _resume(self, run: Path) -> Progress | None:
        """Put the learner where the newest valid checkpoint was; what the log has beyond it is dropped."""
        checkpoint = find_checkpoint(run)
        if checkpoint is None:
            return None
        if checkpoint.state["inputs"] != self.inputs:
            raise ConfigError(
                f"run={run} was started with other data or weights than those found now: restore them, or choose "
                f"another run="
            )
        progress = unpack_training(self.learner, checkpoint.tensors, checkpoint.state)
        if not distributed.is_first():
            return progress
        shorten_log(run, epochs=progress.epoch)
        say(f"resuming {run} in epoch {progress.epoch + 1}, after {progress.total} steps ({checkpoint.path.name})")
        # Version 0.2.0 could be killed with this file deleted and a checkpoint left.
        record = read_environment(run) if (run / ENVIRONMENT).is_file() else {}
        now = self.environment
        changed = {name: now.get(name) for name in _SAME_BITS if record.get(name) != now.get(name)}
        if changed:
            say(f"notice: {', '.join(changed)} differ from before: the result is the same to rounding, not to the bit")
        write_settings(self.asked, environment=record)
        record_event(run, "resumed", {"step": progress.total, "changed": changed})
        return progress

    def run(self, progress: Progress, plan: RunPlan, checkpoint: CheckpointConfig) -> None:
        """Run the loop from where it is to its end; signals are noted meanwhile."""
        learner, run = self.learner, self.asked.folder
        if distributed.count_ranks() > 1:
            weights = {name: tensor.cpu().contiguous() for name, tensor in learner.model.state_dict().items()}
            content = f"{self.inputs} {progress.total} {compute_digest(weights)}"
            distributed.check_same(content, what="data, weights or checkpoints")
        with Watch(hang_seconds=checkpoint.hang_minutes and 60 * checkpoint.hang_minutes) as watch:
            keeper = CheckpointManager(
                run,
                learner,
                progress,
                self.recipe.rules,
                self.data.train,
                watch,
                inputs=self.inputs,
                seconds=60 * checkpoint.minutes,
                keep=checkpoint.keep,
            )
            tracker = Tracker(run, self.recipe.trainer) if distributed.is_first() else None
            run_epochs(learner, progress, plan, rules=self.recipe.rules, keeper=keeper, tracker=tracker)


def describe_process(model: nn.Module, rules: StepRules) -> dict[str, object]:
    """Return what this process trains a network with: what has to be equal for the same bits again."""
    environment = describe_environment(device=rules.device, precision=rules.precision)
    network = {"processes": distributed.count_ranks(), "not_deterministic_on_cuda": list_nondeterministic(model)}
    return environment | network


def describe_model(session: Session, config: ModelConfig, best: Best, training: Mapping[str, object]) -> ModelCard:
    """Return the card of what a session trained."""
    data, spec = session.data, session.data.store.spec
    counts = {
        "seed": session.recipe.rules.seed,
        "best_epoch": best.epoch + 1,
        "train_images": len(data.train),
        "val_images": len(data.val),
    }
    return ModelCard(
        architecture=config.name,
        dropout=config.dropout,
        in_channels=spec.channels,
        max_value=int(spec.value_range[1]),
        task=data.task,
        preprocess=spec,
        store_sha256=data.store.sha256,
        split_name=session.asked.split,
        split_sha256=data.certificate["split_sha256"],
        labels_sha256=data.labels_sha256,
        training={**counts, **training},
        domain=read_domain(data),
        crop=data.train.crop if isinstance(data.train.crop, Crop) else None,
        deidentify=data.store.info["deidentify"],
        seen_sha256=hash_seen(session.asked.folder),
        normalize=choose_normalization(config.normalize, spec),
        clinical=data.clinical,
        positive_class=data.task.positive,
    )


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
