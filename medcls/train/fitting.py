"""The loop of a stage: epochs from where they stand to their end, one line of log and of progress each."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from medcls import distributed
from medcls.config import TrainerConfig
from medcls.console import say, show_progress
from medcls.data.dataset import Batch, StoreDataset
from medcls.data.loaders import EpochSampler
from medcls.files import FAULTS, write_json
from medcls.train.resume import Keeper
from medcls.training.faults import describe_fault
from medcls.training.loop import NonFiniteError, draw_step_seed, run_epochs
from medcls.training.state import Best, EpochResult, Learner, StepRules
from medcls.training.tracking import Tracker

# Of one run: the first ones say what there is to say.
_MOST_FAULTS = 5
Epochs = Iterator[tuple[int, EpochResult, dict[str, float], Best]]
"""What `run_epochs` yields."""


@dataclass(frozen=True, slots=True)
class Feed:
    """Where the batches of an epoch come from.

    Attributes:
        loader: Of the training images.
        sampler: Its order.
        images: That its positions are places of.
    """

    loader: DataLoader[Batch]
    sampler: EpochSampler
    images: StoreDataset


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
    piece = learner.piece
    bar = show_progress(total=trainer.epochs * total, unit="image", desc="train", mininterval=1.0)

    def batches(epoch: int, groups: int) -> Iterable[Batch]:
        feed.sampler.epoch, feed.sampler.start = epoch, groups * rules.accumulate
        return keeper.feed(feed.loader, feed.sampler)

    def on_step(result: EpochResult) -> None:
        nonlocal piece
        # A checkpoint that it went back to may be older than the smaller pieces.
        if (learner.piece or math.inf) < (piece or math.inf):
            piece = learner.piece
            say(
                f"notice: out of memory in step {progress.total}: from here on at most {piece} images go through the "
                f"network at once; every step is made of {feed.sampler.batch_size * rules.accumulate} as before"
            )
        bar.update(progress.epoch * total + result.images - bar.n)
        keeper.look()

    def start() -> Epochs:
        return run_epochs(
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
            on_fault=lambda group, loss: write_fault(keeper, feed.images, group, rules=rules, loss=loss),
        )

    for epoch, result, metrics, best in run_again(keeper, start):
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


def run_again(keeper: Keeper, start: Callable[[], Epochs]) -> Epochs:
    """Yields what `start()` yields, and begins again where the keeper could go back after too many non-finite steps."""
    while True:
        try:
            yield from start()
        except NonFiniteError as error:
            keeper.retreat(error)
        else:
            return


def write_fault(keeper: Keeper, images: StoreDataset, group: list[Batch], *, rules: StepRules, loss: float) -> None:
    """Writes what is known of the step that was not finite, under faults/, for the first few of a run.

    Each of several processes describes its own part: the layer may be found in one of them alone.
    """
    learner, progress, rank = keeper.learner, keeper.progress, distributed.get_rank()
    kind = ("-lower-rate" if learner.retreats else "") + (f"-process-{rank}" if rank else "")
    path = keeper.run / FAULTS / f"step-{progress.total:010d}{kind}.json"
    if not path.exists() and len(list(path.parent.glob("*.json"))) >= _MOST_FAULTS * distributed.count_ranks():
        return
    seed = draw_step_seed(rules.seed, epoch=progress.epoch, step=progress.result.groups - 1)
    fault = describe_fault(learner, group, rules, loss=loss, seed=seed)
    rows = [images.rows[batch.positions.numpy()] for batch in group]
    names = [images.store.read("image_id", rows=each).column(0).to_pylist() for each in rows]
    place = {
        "epoch": progress.epoch + 1,
        "step": progress.total,
        "rows": [r.tolist() for r in rows],
        "image_ids": names,
    }
    write_json(path, fault | place)
    where = f"first in {fault['where']} {fault['layer']}".rstrip() if fault["where"] else "its layer is not known"
    say(f"notice: step {progress.total} was not finite ({where}) and is left out; its images are named in {path}")


def describe_epoch(epoch: int, result: EpochResult, metrics: dict[str, float], learner: Learner) -> dict[str, Any]:
    """Returns one row of metrics.jsonl."""
    return {
        # Epochs count from 1 wherever a person reads them: here, on the terminal, in the model card.
        "epoch": epoch + 1,
        "lr": learner.last_rates,
        "train_loss": result.loss,
        "steps": result.steps,
        "skipped_steps": result.skipped,
        **({"images_at_once": learner.piece} if learner.piece else {}),
        "images_per_second": result.images / result.seconds if result.seconds else None,
        "data_wait_share": result.wait_seconds / result.seconds if result.seconds else None,
        "seconds": result.seconds,
        **metrics,
    }
