"""The loop of a stage: epochs from where they stand to their end, one line of log and of progress each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from medcls import distributed
from medcls.config import PretrainJob, TrainerConfig, TrainJob
from medcls.data.dataset import Batch
from medcls.data.loaders import EpochSampler
from medcls.stages.resume import Keeper
from medcls.training.engine import run_epochs
from medcls.training.learner import Learner, StepRules
from medcls.training.optimizers import build_schedule
from medcls.training.progress import EpochResult
from medcls.training.tracking import Tracker


@dataclass(frozen=True, slots=True)
class Feed:
    """Where the batches of an epoch come from.

    Attributes:
        loader: Of the training images.
        sampler: Its order.
    """

    loader: Iterable[Batch]
    sampler: EpochSampler


def start_schedule(job: TrainJob | PretrainJob, optimizer: Optimizer, *, batches: int, rules: StepRules) -> LambdaLR:
    """Returns the schedule of trainer.epochs epochs of `batches` each, from their first step."""
    return build_schedule(
        optimizer,
        name=job.schedule.name,
        steps_per_epoch=-(-batches // rules.accumulate),
        epochs=job.trainer.epochs,
        warmup_epochs=job.schedule.warmup_epochs,
        step_epochs=job.schedule.step_epochs,
        step_factor=job.schedule.step_factor,
    )


def run_loop(
    keeper: Keeper,
    feed: Feed,
    trainer: TrainerConfig,
    *,
    rules: StepRules,
    set_modes: Callable[[int], None],
    validate: Callable[[nn.Module], tuple[float, dict[str, float]]],
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Trains from where `keeper.progress` stands to the end, and leaves the best epoch there.

    Args:
        keeper: What is trained, and how it is kept.
        feed: Its batches.
        trainer: Epochs, patience and steps.
        rules: How a step is made.
        set_modes: Epoch -> nothing; puts the model's stages into the modes they are trained in then.
        validate: Model -> (score to maximise, metrics to log).
        on_epoch: Called with each epoch's number when it is logged, before a checkpoint may be written.
    """
    learner, progress, total = keeper.learner, keeper.progress, feed.sampler.num_samples
    tracker = Tracker(keeper.run, tensorboard=trainer.tensorboard) if distributed.is_first() else None
    bar = tqdm(total=trainer.epochs * total, unit="image", desc="train", mininterval=1.0)

    def batches(epoch: int, groups: int) -> Iterable[Batch]:
        feed.sampler.epoch, feed.sampler.start = epoch, groups * rules.accumulate
        return feed.loader

    def on_step(result: EpochResult) -> None:
        bar.update(progress.epoch * total + result.images - bar.n)
        keeper.look()

    for epoch, result, metrics, best in run_epochs(
        learner,
        epochs=trainer.epochs,
        rules=rules,
        batches=batches,
        set_train_mode=set_modes,
        validate=validate,
        max_steps=trainer.max_steps,
        patience=trainer.patience,
        progress=progress,
        on_step=on_step,
    ):
        if tracker is not None:
            tracker.write(describe_epoch(epoch, result, metrics, learner))
        mark = " *" if best.epoch == epoch else ""
        shown = ", ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k in ("val_loss", "val_score"))
        bar.write(f"epoch {epoch + 1}/{trainer.epochs}: loss {result.loss:.3f}, {shown}{mark}", file=sys.stderr)
        on_epoch(epoch)
        keeper.look(validated=True)
    bar.close()
    if tracker is not None:
        tracker.close()


def describe_epoch(epoch: int, result: EpochResult, metrics: dict[str, float], learner: Learner) -> dict[str, Any]:
    """Returns one row of metrics.jsonl."""
    rates = {str(group["stage"]): float(group["lr"]) for group in learner.optimizer.param_groups}
    return {
        "epoch": epoch,
        "lr": rates,
        "train_loss": result.loss,
        "steps": result.steps,
        "skipped_steps": result.skipped,
        "images_per_second": result.images / result.seconds if result.seconds else None,
        "data_wait_share": result.wait_seconds / result.seconds if result.seconds else None,
        "seconds": result.seconds,
        **metrics,
    }
