"""The loop: a step, an epoch, a run, in the order in which things happen. Training and pretraining both call it.

It knows no command and no run folder. Signals, faults and revival are behind the two calls of `Keeper`. Of several
processes each has its part of every batch, and all of them make every call of `distributed` in the same order.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from medcls import distributed
from medcls.console import say, show_progress
from medcls.data.dataset import Batch
from medcls.data.loaders import read_batches
from medcls.errors import MedclsError
from medcls.models.synchronization import share_statistics, waits_for_others
from medcls.reproducibility import draw_seed
from medcls.training.forward import run_forward
from medcls.training.memory import count_least, cut_batch, explain_update, free_memory, halve_pieces
from medcls.training.state import EpochResult, Feed, Learner, Progress, RunPlan, StepRules
from medcls.training.tracking import Tracker


class NonFiniteError(MedclsError):
    """The loss or its gradient stayed infinite or NaN for several steps in a row."""

    exit_code = 70


class SkippedStepError(MedclsError):
    """A step was left out because its loss or gradient was not finite, and fp16 was not just searching for its scale.

    It is handed to `Keeper.recover`, not raised.

    Attributes:
        group: This process's batches of the step.
        loss: Mean loss over the images of all processes.
        seed: What torch was seeded with before the step.
    """

    def __init__(self, group: list[Batch], *, loss: float, seed: int) -> None:
        super().__init__("the loss or its gradient was not finite in a step")
        self.group, self.loss, self.seed = group, loss, seed


class Keeper:
    """The two calls that keep a training safe. This one keeps nothing; `CheckpointManager` keeps a run."""

    def checkpoint_if_due(self, *, validated: bool = False) -> None:
        """Call it after every step, between batches of the validation, and with `validated` after it.

        Raises:
            PreemptedError: a signal asked the job to end; the checkpoint is written.
        """

    def recover(self, error: MedclsError) -> None:
        """Return if the training may go on from where its progress is now; otherwise raise."""
        if not isinstance(error, SkippedStepError):
            raise error


# --- a step


def train_step(learner: Learner, group: list[Batch], rules: StepRules) -> tuple[float, bool, int]:
    """Take one optimizer step over the batches of `group`: scale, add up, unscale, clip, step, update.

    Returns:
        The mean loss over the images of all processes, whether the step was taken, and how many images those are. A
        step whose loss or gradient is not finite in any process is skipped: it leaves no trace in the model, and counts
        in learner.nonfinite.
    """
    model, optimizer, scaler = learner.model, learner.optimizer, learner.scaler
    optimizer.zero_grad(set_to_none=True)
    # BatchNorm's running statistics follow every forward pass; one infinite activation would stay in them for ever.
    buffers = [buffer.clone() for buffer in model.buffers()]

    # Forward and backward. If the device has no room, again in pieces of half as many images, from here on.
    while True:
        try:
            own_loss = accumulate_gradients(learner, group, rules)
            break
        except torch.OutOfMemoryError as error:
            learner.piece = halve_pieces(group, learner.piece, error, least=count_least(model))
        # Not within the handler: the error holds on to the maps of the pass that failed.
        take_back(learner, buffers)
        free_memory(rules.device)
        torch.manual_seed(torch.initial_seed())  # back to the seed that train_epoch set: the same dropout again

    own = sum(len(batch.images) for batch in group)
    loss_sum, images = distributed.add_up(own_loss * own, own)
    loss, share, scale_before = loss_sum / images, own / images, scaler.get_scale()
    finite, taken = math.isfinite(loss), False
    if finite:
        parameters = [parameter for part in optimizer.param_groups for parameter in part["params"]]
        with explain_update():
            distributed.sum_gradients(parameters, share=share)
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(parameters, rules.clip_norm or math.inf)
            # An active scaler takes infinite gradients as its signal to lower the scale: its step() skips by itself.
            finite = scaler.is_enabled() or bool(torch.isfinite(norm))
            if finite:
                scaler.step(optimizer)
        scaler.update()
        # A scaler that skipped the step has lowered its scale.
        taken = finite and scaler.get_scale() >= scale_before
    if not taken:
        # fp16 skips steps to find its scale; that is a fault only if even the smallest scale overflows.
        learner.nonfinite += not finite or scale_before <= 1
        take_back(learner, buffers)
        return loss, False, int(images)

    share_statistics(model, share=share)
    learner.nonfinite = 0
    learner.schedule.step()
    if learner.average is not None:
        learner.average.update_parameters(model)
    return loss, True, int(images)


def accumulate_gradients(learner: Learner, group: list[Batch], rules: StepRules) -> float:
    """Add up the gradients of a group, in pieces as `learner.piece` says; return its mean loss.

    Stop at a loss that is not finite, unless other processes wait.
    """
    total = sum(len(batch.images) for batch in group)
    least, waited_for = count_least(learner.model), waits_for_others(learner.model)
    mean_loss = 0.0
    for batch in [piece for whole in group for piece in cut_batch(whole, learner.piece, least=least)]:
        logits = run_forward(learner.forward, batch, rules)  # under autocast
        # The loss is computed in float32: log and exp of half precision lose rare classes.
        loss = learner.loss(logits.float(), batch.targets.to(rules.device))
        share = len(batch.images) / total
        mean_loss += float(loss.detach()) * share
        if not math.isfinite(mean_loss) and not waited_for:
            break
        learner.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
    return mean_loss


def take_back(learner: Learner, buffers: list[Tensor]) -> None:
    """Undo the forward and backward passes of a step: drop the gradients, and put the buffers back."""
    learner.optimizer.zero_grad(set_to_none=True)
    for buffer, before in zip(learner.model.buffers(), buffers, strict=True):
        buffer.copy_(before)


def draw_step_seed(seed: int, *, epoch: int, step: int) -> int:
    """Return the seed of what a step draws (dropout); each of several processes draws for its own images."""
    rank = distributed.get_rank()
    return draw_seed("step", seed, epoch, step, *([rank] if rank else []))


# --- an epoch


def train_epoch(
    learner: Learner, progress: Progress, batches: Iterable[Batch], rules: StepRules, keeper: Keeper, bar: Any
) -> None:
    """Train on the batches that are left of an epoch; the model must be in training mode.

    Raises:
        NonFiniteError: rules.max_nonfinite steps in a row were not finite.
    """
    result = progress.result
    start = time.perf_counter() - result.seconds
    iterator = iter(batches)
    while True:
        waiting = time.perf_counter()
        group = list(islice(iterator, rules.accumulate))
        result.wait_seconds += time.perf_counter() - waiting
        if not group:
            return
        seed = draw_step_seed(rules.seed, epoch=progress.epoch, step=result.groups)
        torch.manual_seed(seed)
        piece, nonfinite = learner.piece, learner.nonfinite

        loss, taken, images = train_step(learner, group, rules)

        result.images += images
        result.steps, result.skipped = result.steps + taken, result.skipped + (not taken)
        if learner.nonfinite > nonfinite:
            keeper.recover(SkippedStepError(group, loss=loss, seed=seed))
        if learner.nonfinite >= rules.max_nonfinite:
            raise NonFiniteError(
                f"the loss or its gradient was not finite for {learner.nonfinite} steps in a row: lower "
                "optimizer.lr, set trainer.clip_norm, or precision=fp32"
            )
        if math.isfinite(loss):
            result.loss_sum, result.loss_images = result.loss_sum + loss * images, result.loss_images + images
        result.seconds = time.perf_counter() - start
        bar.update(images)
        if learner.piece != piece:
            say(
                f"notice: out of memory in step {progress.total}: from here on at most {learner.piece} images go "
                "through the network at once; every step is made of as many as before"
            )
        keeper.checkpoint_if_due()


# --- a run


def run_epochs(
    learner: Learner, progress: Progress, plan: RunPlan, *, rules: StepRules, keeper: Keeper, tracker: Tracker | None
) -> None:
    """Train from where `progress` is to the end, and keep the best epoch in `progress.best`.

    The tracker gets one row per epoch, and is closed; it is None in processes that write nothing.
    """
    train, total = plan.train, plan.train.sampler.num_samples
    with show_progress(total=plan.epochs * total, unit="image", desc="train", mininterval=1.0) as bar:
        while not progress.is_over(epochs=plan.epochs, max_steps=plan.max_steps, patience=plan.patience):
            epoch, result = progress.epoch, progress.result
            plan.set_modes(epoch)
            # A resumed epoch begins in its middle.
            train.sampler.epoch, train.sampler.start = epoch, result.groups * rules.accumulate
            bar.update(epoch * total + result.images - bar.n)
            batches_left = (
                None if plan.max_steps is None else max(0, plan.max_steps - progress.total) * rules.accumulate
            )
            try:
                # No name for the batches: loading processes end with the epoch, before those of the validation start.
                train_epoch(
                    learner,
                    progress,
                    islice(read_batches(train.loader, train.sampler, recover=keeper.recover), batches_left),
                    rules,
                    keeper,
                    bar,
                )
            except NonFiniteError as error:
                # Puts learner and progress back to a checkpoint, or raises.
                keeper.recover(error)
                continue

            score, metrics = plan.validate(learner.evaluated, read_validation(plan.val, keeper))
            # On processors of another kind a last bit may differ, and with it who is best and when patience ends.
            # Only the first process contributes, so the sum is its value.
            own = (score, metrics.get("val_loss", math.nan)) if distributed.is_first() else (0.0, 0.0)
            score, loss = distributed.add_up(*own)
            progress.best.update(score, epoch, learner.evaluated, loss=loss)
            progress.epoch, progress.result, progress.groups = epoch + 1, EpochResult(), progress.total

            if tracker is not None:
                row = {
                    # Epochs count from 1 wherever a person reads them: here, on the terminal, in the model card.
                    "epoch": epoch + 1,
                    "lr": learner.last_rates,
                    "train_loss": result.loss,
                    "steps": result.steps,
                    "skipped_steps": result.skipped,
                    "images_per_second": result.images / result.seconds if result.seconds else None,
                    "data_wait_share": result.wait_seconds / result.seconds if result.seconds else None,
                    "seconds": result.seconds,
                    **metrics,
                }
                if learner.piece is not None:
                    row["images_at_once"] = learner.piece
                tracker.write(row)
                mark = " *" if progress.best.epoch == epoch else ""
                shown = ", ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k in ("val_loss", "val_score"))
                bar.write(f"epoch {epoch + 1}/{plan.epochs}: loss {result.loss:.3f}, {shown}{mark}", file=sys.stderr)
            plan.after_epoch(epoch)
            keeper.checkpoint_if_due(validated=True)
    if tracker is not None:
        tracker.close()


def read_validation(val: Feed, keeper: Keeper) -> Iterator[Batch]:
    """Yield the batches of a validation; a signal ends it, and it is then made again from its beginning."""
    for batch in read_batches(val.loader, val.sampler, recover=keeper.recover):
        keeper.checkpoint_if_due()
        yield batch
