"""The loop: plain PyTorch, in the order scale, unscale, clip, step, update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from medcls.data.dataset import Batch
from medcls.errors import MedclsError
from medcls.reproducibility import draw_seed
from medcls.training.losses import Loss
from medcls.training.precision import autocast


class NonFiniteError(MedclsError):
    """The loss or its gradient stayed infinite or NaN for several steps in a row."""

    exit_code = 70


@dataclass(slots=True)
class Learner:
    """Everything a training step changes.

    Attributes:
        model: Stored images, and clinical columns where it takes them, to logits.
        loss: (logits, targets) to a scalar.
        optimizer: Over the trained parameters.
        schedule: Stepped after each optimizer step.
        scaler: Active for fp16 only.
        average: Exponential moving average of the weights, or None.
        forward: `model`, or a compiled form of it.
        nonfinite: Steps in a row whose loss or gradient was not finite, across epochs.
    """

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    forward: Callable[..., Tensor]
    nonfinite: int = 0

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and kept: the average where there is one."""
        module: nn.Module = self.average.module if self.average is not None else self.model
        return module


@dataclass(frozen=True, slots=True)
class StepRules:
    """How a step is made.

    Attributes:
        device: "cpu" or "cuda".
        precision: "fp32", "bf16" or "fp16".
        accumulate: Batches to one optimizer step, weighted by their images: the gradient of one big batch where
            the loss is a plain mean over images (class weights and masks are normalised within each batch).
        clip_norm: Largest gradient norm, or None.
        max_nonfinite: Stop after so many non-finite steps in a row.
        channels_last: Memory layout of images and volumes.
        seed: Of what a step draws (dropout): a function of (seed, epoch, step), whatever was drawn before.
    """

    device: str = "cpu"
    precision: str = "fp32"
    accumulate: int = 1
    clip_norm: float | None = None
    max_nonfinite: int = 5
    channels_last: bool = True
    seed: int = 0


@dataclass(slots=True)
class EpochResult:
    """What one epoch did so far.

    Attributes:
        loss_sum: Of the images of steps with a finite loss.
        loss_images: How many those are.
        images: Seen.
        steps: Optimizer steps taken.
        skipped: Steps skipped because the loss or the gradient was not finite (fp16 does so to find its scale).
        seconds: Wall clock.
        wait_seconds: Of these, waiting for data.
    """

    loss_sum: float = 0.0
    loss_images: int = 0
    images: int = 0
    steps: int = 0
    skipped: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Mean training loss over the images of steps with a finite loss; NaN where there was none."""
        return self.loss_sum / self.loss_images if self.loss_images else math.nan

    @property
    def groups(self) -> int:
        """Groups of batches that are done: the position in the epoch."""
        return self.steps + self.skipped


def move_images(images: Tensor, rules: StepRules) -> Tensor:
    """Returns the stored integers on the device; conversion to float happens there."""
    return images.to(rules.device, non_blocking=True).contiguous(memory_format=choose_layout(images, rules))


def move_model(model: nn.Module, rules: StepRules) -> None:
    """Puts the model on the device, its filters in the layout of the images or volumes they meet."""
    model.to(rules.device)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous(memory_format=choose_layout(parameter, rules))


def choose_layout(tensor: Tensor, rules: StepRules) -> torch.memory_format:
    """Returns channels_last of images and square filters, channels_last_3d of volumes and cubes, where asked for."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d} if rules.channels_last else {}
    return layouts.get(tensor.ndim, torch.contiguous_format)


def run_forward(forward: Callable[..., Tensor], batch: Batch, rules: StepRules) -> Tensor:
    """Returns the logits (N, L) of a batch, in the precision and on the device of the rules."""
    images = move_images(batch.images, rules)
    with autocast(rules.precision, device=rules.device):
        if not batch.clinical.shape[1]:
            return forward(images)
        return forward(images, batch.clinical.to(rules.device, non_blocking=True))


def train_one_epoch(
    learner: Learner,
    batches: Iterable[Batch],
    rules: StepRules,
    *,
    epoch: int = 0,
    result: EpochResult | None = None,
    max_steps: int | None = None,
    on_step: Callable[[EpochResult], None] = lambda result: None,
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
        torch.manual_seed(draw_seed("step", rules.seed, epoch, result.groups))
        loss, taken = train_step(learner, group, rules)
        images = sum(len(batch.images) for batch in group)
        result.images += images
        result.steps, result.skipped = result.steps + taken, result.skipped + (not taken)
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


def train_step(learner: Learner, group: list[Batch], rules: StepRules) -> tuple[float, bool]:
    """Takes one optimizer step over the batches of `group`.

    Returns:
        The mean loss over images, and whether the step was taken: it is skipped, and leaves no trace in the model,
        where the loss or the gradient is not finite.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    # BatchNorm's running statistics follow every forward pass; one infinite activation would stay in them for ever.
    buffers = [buffer.clone() for buffer in learner.model.buffers()]
    loss = _accumulate(learner, group, rules)
    taken = math.isfinite(loss) and _update(learner, rules)
    if not taken:
        learner.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(learner.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        return loss, False
    learner.nonfinite = 0
    learner.schedule.step()
    if learner.average is not None:
        learner.average.update_parameters(learner.model)
    return loss, True


def _accumulate(learner: Learner, group: list[Batch], rules: StepRules) -> float:
    """Adds up the gradients of the group; returns its mean loss, and stops at the first that is not finite."""
    total = sum(len(batch.images) for batch in group)
    mean_loss = 0.0
    for batch in group:
        logits = run_forward(learner.forward, batch, rules)
        # The loss is computed in float32: log and exp of half precision lose rare classes.
        loss = learner.loss(logits.float(), batch.targets.to(rules.device))
        share = len(batch.images) / total
        mean_loss += float(loss.detach()) * share
        if not math.isfinite(mean_loss):
            learner.nonfinite += 1
            break
        learner.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
    return mean_loss


def _update(learner: Learner, rules: StepRules) -> bool:
    """Unscales, clips, steps and updates the scale; returns whether the parameters were changed."""
    learner.scaler.unscale_(learner.optimizer)
    if not _clip(learner, rules):
        learner.nonfinite += 1
        return False
    scale = learner.scaler.get_scale()
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    skipped = learner.scaler.get_scale() < scale
    # The scaler meets infinities and skips, as it is meant to; it is a fault where even the smallest scale overflows.
    learner.nonfinite += skipped and scale <= 1
    return not skipped


def _clip(learner: Learner, rules: StepRules) -> bool:
    """Clips the gradient; returns whether it may be used.

    With an active scaler infinite gradients are its signal to lower the scale: step() then skips by itself.
    """
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, rules.clip_norm or math.inf)
    return learner.scaler.is_enabled() or bool(torch.isfinite(norm))


@torch.inference_mode()
def predict_logits(model: nn.Module, batches: Iterable[Batch], rules: StepRules) -> NDArray[np.float64]:
    """Returns logits (N, L), float64, ordered by the batches' positions 0 … N-1; puts the model into eval mode."""
    model.eval()
    logits, positions = [], []
    for batch in batches:
        logits.append(run_forward(model, batch, rules).float().cpu())
        positions.append(batch.positions)
    order = torch.cat(positions).argsort()
    result: NDArray[np.float64] = torch.cat(logits)[order].double().numpy()
    return result


@dataclass(slots=True)
class Best:
    """The best epoch so far by the validation metric.

    Attributes:
        score: Its metric, larger is better; -inf before the first, and where it is undefined.
        epoch: Its number; -1 before the first.
        state: Copy of the evaluated network's weights on the CPU.
    """

    score: float = -math.inf
    epoch: int = -1
    state: dict[str, Tensor] | None = None

    def update(self, score: float, epoch: int, model: nn.Module) -> bool:
        """Keeps the model where its score is better, or the first; NaN (outputs not finite) is never kept."""
        better = score > self.score or (self.state is None and not math.isnan(score))
        if better:
            self.score, self.epoch = score, epoch
            self.state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        return better


@dataclass(slots=True)
class Progress:
    """Where a training stands: with the learner all that the next step depends on.

    Attributes:
        epoch: The epoch at work, or the next one.
        result: What it did so far.
        groups: Steps of the epochs before it, taken and skipped.
        best: The best epoch so far.
    """

    epoch: int = 0
    result: EpochResult = field(default_factory=EpochResult)
    groups: int = 0
    best: Best = field(default_factory=Best)

    @property
    def total(self) -> int:
        """Steps since the beginning, taken and skipped."""
        return self.groups + self.result.groups

    def is_over(self, *, epochs: int, max_steps: int | None, patience: int | None) -> bool:
        """Returns whether no epoch is to begin: all are done, or the steps, or the patience."""
        waited = self.epoch - 1 - self.best.epoch
        return (
            self.epoch >= epochs
            or (max_steps is not None and self.groups >= max_steps)
            or (patience is not None and self.epoch > 0 and waited >= patience)
        )


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
    """
    at = progress or Progress()
    while not at.is_over(epochs=epochs, max_steps=max_steps, patience=patience):
        set_train_mode(at.epoch)
        left = None if max_steps is None else max_steps - at.groups
        batches_left = batches(at.epoch, at.result.groups)
        train_one_epoch(learner, batches_left, rules, epoch=at.epoch, result=at.result, max_steps=left, on_step=on_step)
        score, metrics = validate(learner.evaluated)
        at.best.update(score, at.epoch, learner.evaluated)
        epoch, result = at.epoch, at.result
        at.epoch, at.result, at.groups = epoch + 1, EpochResult(), at.total
        yield epoch, result, metrics, at.best
