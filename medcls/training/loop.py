"""The loop: plain PyTorch, in the order scale, unscale, clip, step, update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medcls import distributed
from medcls.data.dataset import Batch
from medcls.errors import MedclsError
from medcls.reproducibility import draw_seed
from medcls.training.forward import run_forward
from medcls.training.memory import cut_batch, explain_update, free_memory, halve_pieces
from medcls.training.state import Best, EpochResult, Learner, Progress, StepRules


class NonFiniteError(MedclsError):
    """The loss or its gradient stayed infinite or NaN for several steps in a row."""

    exit_code = 70


def train_one_epoch(
    learner: Learner,
    batches: Iterable[Batch],
    rules: StepRules,
    *,
    epoch: int = 0,
    result: EpochResult | None = None,
    max_steps: int | None = None,
    on_step: Callable[[EpochResult], None] = lambda result: None,
    on_fault: Callable[[list[Batch], float], None] = lambda group, loss: None,
) -> EpochResult:
    """Trains on every batch once and returns what happened; the model must be in training mode.

    Args:
        learner: What is trained.
        batches: Of the epoch; of one that was broken off, those that are left.
        rules: How.
        epoch: Its number.
        result: Of the part before it was broken off; it is continued.
        max_steps: Ends the epoch after so many steps.
        on_step: Called after each step, for progress; what it sees is whole, and may be kept.
        on_fault: Called with this process's batches and the loss of a step that was not finite and should have been;
            fp16 that looks for its scale is none.

    Raises:
        NonFiniteError: rules.max_nonfinite skipped steps in a row.
    """
    result = result or EpochResult()
    start = time.perf_counter() - result.seconds
    iterator = iter(batches)
    while max_steps is None or result.groups < max_steps:
        waiting = time.perf_counter()
        group = list(islice(iterator, rules.accumulate))
        result.wait_seconds += time.perf_counter() - waiting
        if not group:
            break
        torch.manual_seed(draw_step_seed(rules.seed, epoch=epoch, step=result.groups))
        before = learner.nonfinite
        loss, taken, images = train_step(learner, group, rules)
        result.images += images
        result.steps, result.skipped = result.steps + taken, result.skipped + (not taken)
        if learner.nonfinite > before:
            on_fault(group, loss)
        if learner.nonfinite >= rules.max_nonfinite:
            raise NonFiniteError(
                f"the loss or its gradient was not finite for {learner.nonfinite} steps in a row: lower "
                "optimizer.lr, set trainer.clip_norm, or precision=fp32"
            )
        if math.isfinite(loss):
            result.loss_sum, result.loss_images = result.loss_sum + loss * images, result.loss_images + images
        result.seconds = time.perf_counter() - start
        on_step(result)
    return result


def draw_step_seed(seed: int, *, epoch: int, step: int) -> int:
    """Returns the seed of what a step draws (dropout); each of several processes draws for its own images."""
    rank = distributed.get_rank()
    return draw_seed("step", seed, epoch, step, *([rank] if rank else []))


def train_step(learner: Learner, group: list[Batch], rules: StepRules) -> tuple[float, bool, int]:
    """Takes one optimizer step over the batches of `group`, of which each of several processes has its part.

    Returns:
        The mean loss over the images of all processes, whether the step was taken, and how many images those are. It is
        skipped, and leaves no trace in the model, where the loss or the gradient is not finite anywhere.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    # BatchNorm's running statistics follow every forward pass; one infinite activation would stay in them for ever.
    buffers = [buffer.clone() for buffer in learner.model.buffers()]
    own = sum(len(batch.images) for batch in group)
    loss_sum, images = distributed.add_up(_accumulate_what_fits(learner, group, rules, buffers=buffers) * own, own)
    loss, share = loss_sum / images, own / images
    if not math.isfinite(loss):
        learner.nonfinite += 1
    if not (math.isfinite(loss) and _update(learner, rules, share=share)):
        take_back(learner, buffers)
        return loss, False, int(images)
    share_statistics(learner.model, share=share)
    learner.nonfinite = 0
    learner.schedule.step()
    if learner.average is not None:
        learner.average.update_parameters(learner.model)
    return loss, True, int(images)


def take_back(learner: Learner, buffers: list[Tensor]) -> None:
    """Undoes the forward and backward passes of a step: gradients go, and buffers are what they were before."""
    learner.optimizer.zero_grad(set_to_none=True)
    for buffer, before in zip(learner.model.buffers(), buffers, strict=True):
        buffer.copy_(before)


def _accumulate_what_fits(learner: Learner, group: list[Batch], rules: StepRules, *, buffers: list[Tensor]) -> float:
    """As `accumulate_gradients`; where the device has no room, again in pieces of half as many images, for good."""
    normed = any(isinstance(module, _BatchNorm) and module.training for module in learner.model.modules())
    # A statistic needs two images; and one over all processes needs every process to make the same passes.
    least = (2**31 if waits_for_others(learner.model) else 2) if normed else 1
    while True:
        try:
            return accumulate_gradients(learner, group, rules, least=least)
        except torch.OutOfMemoryError as error:
            learner.piece = halve_pieces(group, learner.piece, error, least=least)
        # Not within the handler: the error holds on to the maps of the pass that failed.
        take_back(learner, buffers)
        free_memory(rules.device)
        torch.manual_seed(torch.initial_seed())


def waits_for_others(model: nn.Module) -> bool:
    """Returns whether there is BatchNorm over all processes, each of which then has to make the same passes."""
    return any(isinstance(module, nn.SyncBatchNorm) and module.training for module in model.modules())


def accumulate_gradients(learner: Learner, group: list[Batch], rules: StepRules, *, least: int = 1) -> float:
    """Adds up the gradients of the group; returns its mean loss.

    It stops at the first that is not finite, where no other process waits.

    Args:
        learner: Its batches are cut as its `piece` says.
        group: Of one step.
        rules: How.
        least: Images of the smallest piece.
    """
    total = sum(len(batch.images) for batch in group)
    mean_loss = 0.0
    for batch in [piece for whole in group for piece in cut_batch(whole, learner.piece, least=least)]:
        logits = run_forward(learner.forward, batch, rules)
        # The loss is computed in float32: log and exp of half precision lose rare classes.
        loss = learner.loss(logits.float(), batch.targets.to(rules.device))
        share = len(batch.images) / total
        mean_loss += float(loss.detach()) * share
        if not math.isfinite(mean_loss) and not waits_for_others(learner.model):
            break
        learner.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
    return mean_loss


def _update(learner: Learner, rules: StepRules, *, share: float) -> bool:
    """Adds up over processes, unscales, clips, steps and updates the scale; returns whether parameters were changed."""
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    scale = learner.scaler.get_scale()
    with explain_update():
        distributed.sum_gradients(parameters, share=share)
        learner.scaler.unscale_(learner.optimizer)
        if not _clip(learner, parameters, rules):
            learner.nonfinite += 1
            return False
        learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    skipped = learner.scaler.get_scale() < scale
    # The scaler meets infinities and skips, as it is meant to; it is a fault where even the smallest scale overflows.
    learner.nonfinite += skipped and scale <= 1
    return not skipped


def _clip(learner: Learner, parameters: list[nn.Parameter], rules: StepRules) -> bool:
    """Clips the gradient; returns whether it may be used.

    With an active scaler infinite gradients are its signal to lower the scale: step() then skips by itself.
    """
    norm = nn.utils.clip_grad_norm_(parameters, rules.clip_norm or math.inf)
    return learner.scaler.is_enabled() or bool(torch.isfinite(norm))


def share_statistics(model: nn.Module, *, share: float) -> None:
    """Replaces BatchNorm's running statistics by their mean over processes, weighted by the images each has seen."""
    learning = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    statistics = [s for module in learning for s in (module.running_mean, module.running_var) if s is not None]
    distributed.sum_tensors(statistics, share=share)


def run_epochs(
    learner: Learner,
    *,
    epochs: int,
    rules: StepRules,
    batches: Callable[[int, int], Iterable[Batch]],
    set_train_mode: Callable[[int], None],
    validate: Callable[[nn.Module], tuple[float, dict[str, float]]],
    max_steps: int | None = None,
    patience: int | None = None,
    progress: Progress | None = None,
    on_step: Callable[[EpochResult], None] = lambda result: None,
    on_fault: Callable[[list[Batch], float], None] = lambda group, loss: None,
) -> Iterator[tuple[int, EpochResult, dict[str, float], Best]]:
    """Yields (epoch, what it did, validation metrics, best so far) after each epoch, 0 first.

    While an epoch is yielded `progress` stands at the beginning of the next one.

    Args:
        learner: What is trained.
        epochs: Largest number of epochs.
        rules: How a step is made.
        batches: (epoch, groups done) -> the batches that are left of it.
        set_train_mode: Epoch -> nothing; puts the model's stages into the modes they are trained in then.
        validate: Model -> (score to maximise, metrics to log).
        max_steps: Ends the whole training after so many steps.
        patience: Ends it after so many epochs without a better score.
        progress: Where to go on; None begins.
        on_step: As for `train_one_epoch`.
        on_fault: As for `train_one_epoch`.
    """
    at = progress or Progress()
    while not at.is_over(epochs=epochs, max_steps=max_steps, patience=patience):
        set_train_mode(at.epoch)
        left = None if max_steps is None else max_steps - at.groups
        train_one_epoch(
            learner,
            batches(at.epoch, at.result.groups),
            rules,
            epoch=at.epoch,
            result=at.result,
            max_steps=left,
            on_step=on_step,
            on_fault=on_fault,
        )
        score, metrics = validate(learner.evaluated)
        # On processors of another kind a last bit may differ, and with it who is best and when patience ends.
        own = (score, metrics.get("val_loss", math.nan)) if distributed.is_first() else (0.0, 0.0)
        score, loss = distributed.add_up(*own)
        at.best.update(score, at.epoch, learner.evaluated, loss=loss)
        epoch, result = at.epoch, at.result
        at.epoch, at.result, at.groups = epoch + 1, EpochResult(), at.total
        yield epoch, result, metrics, at.best
