"""What a training step changes, and the rules that it is made by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

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
