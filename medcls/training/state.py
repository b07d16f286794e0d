"""The state of a training: what a step changes, its rules, the plan of a run, the best epoch, the progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from medcls.data.dataset import Batch
from medcls.data.loaders import EpochSampler, build_loader
from medcls.training.losses import Loss


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
        retreats: How often it went back to a checkpoint because of them.
        piece: Most images of one forward pass, since the device had no room for more; None = whole batches.
    """

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    forward: Callable[..., Tensor]
    nonfinite: int = 0
    retreats: int = 0
    piece: int | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and kept: the average where there is one."""
        module: nn.Module = self.average.module if self.average is not None else self.model
        return module

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of each stage now."""
        return {str(group["stage"]): float(group["lr"]) for group in self.optimizer.param_groups}

    @property
    def last_rates(self) -> dict[str, float]:
        """The learning rate of each stage at the last step that was taken; before the first, that of the first."""
        step = max(0, self.schedule.last_epoch - 1)
        rates = [
            float(base) * factor(step)
            for base, factor in zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        ]
        return {str(group["stage"]): rate for group, rate in zip(self.optimizer.param_groups, rates, strict=True)}


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


@dataclass(frozen=True, slots=True)
class Feed:
    """Batches, and the sampler that their loader takes the order from."""

    loader: DataLoader[Batch]
    sampler: EpochSampler


def build_feed(dataset: Dataset[Batch], sampler: EpochSampler, *, workers: int, device: str) -> Feed:
    """Return what feeds a dataset in the sampler's order."""
    return Feed(build_loader(dataset, sampler, workers=workers, device=device), sampler)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run does, besides its steps.

    Attributes:
        train: Training images.
        val: Validation images.
        epochs: Most epochs.
        set_modes: Gets the number of an epoch; puts the model's stages into the modes they are trained in.
        validate: Gets the evaluated network and its batches; returns the score to maximise and the metrics to log.
        max_steps: Most steps, or None.
        patience: Epochs without a better score that end the run, or None.
        after_epoch: Gets the number of an epoch that is logged, before a checkpoint may be written.
    """

    train: Feed
    val: Feed
    epochs: int
    set_modes: Callable[[int], None]
    validate: Callable[[nn.Module, Iterable[Batch]], tuple[float, dict[str, float]]]
    max_steps: int | None = None
    patience: int | None = None
    after_epoch: Callable[[int], None] = lambda epoch: None


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


@dataclass(slots=True)
class Best:
    """The best epoch so far by the validation metric.

    Attributes:
        score: Its metric, larger is better; -inf before the first, and where it is undefined.
        epoch: Zero-based number; -1 before the first.
        loss: Its validation loss, which decides between epochs of one score; NaN if unknown.
        state: Copy of the evaluated network's weights on the CPU.
    """

    score: float = -math.inf
    epoch: int = -1
    loss: float = math.nan
    state: dict[str, Tensor] | None = None

    def update(self, score: float, epoch: int, model: nn.Module, *, loss: float = math.nan) -> bool:
        """Keep the model if its score is better, or equal at a lower loss, or the first; return whether it was kept.

        A coarse score (an AUC of few images, which is soon 1) is shared by many epochs: the first of them is the least
        trained. NaN (outputs not finite) is never kept.
        """
        better = score > self.score or (score == self.score and loss < self.loss)
        better = better or (self.state is None and not math.isnan(score))
        if better:
            self.score, self.epoch, self.loss = score, epoch, loss
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
        """Return whether no epoch is to begin: all are done, or the steps, or the patience."""
        waited = self.epoch - 1 - self.best.epoch
        return (
            self.epoch >= epochs
            or (max_steps is not None and self.groups >= max_steps)
            or (patience is not None and self.epoch > 0 and waited >= patience)
        )
