"""Optimizers by name, the learning-rate schedule, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medcls.config import ScheduleConfig
from medcls.errors import ConfigError


def build_optimizer(name: str, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float = 0.9) -> Optimizer:
    """Return the optimizer over parameter groups that carry their own lr and weight_decay.

    Args:
        name: "sgd" (Nesterov momentum), "adam", "adamw" (decoupled weight decay) or "adadelta" (rho 0.95, eps 1e-6;
            lr 1 is the paper's, which has none).
        groups: From transfer.build_parameter_groups.
        lr: Rate of groups without their own.
        momentum: Momentum of SGD, [0, 1).

    Raises:
        ConfigError: unknown name.

    Source: Adadelta, Zeiler, arXiv 1212.5701, algorithm 1; its numbers, code of Hosseini-Asl et al. 2016.
    """
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    if name == "adadelta":
        return torch.optim.Adadelta(groups, lr=lr, rho=0.95, eps=1e-6)
    raise ConfigError(f"optimizer.name={name}: expected sgd, adam, adamw or adadelta")


def lr_factor(
    step: int,
    *,
    name: str,
    total_steps: int,
    warmup_steps: int = 0,
    milestones: Sequence[int] = (),
    step_factor: float = 0.1,
) -> float:
    """Return the factor on the learning rate at an optimizer step: a pure function of the step.

    Args:
        step: 0 is the first step.
        name: "constant", "cosine" (to 0 at total_steps) or "step".
        total_steps: Steps of the whole training.
        warmup_steps: Linear rise from 1 / warmup_steps.
        milestones: Steps at which name="step" multiplies by step_factor.
        step_factor: Factor at each milestone.

    Source: cosine, Loshchilov and Hutter, arXiv 1608.03983, equation 5; warm-up, Goyal et al., arXiv 1706.02677,
    section 2.2.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if name == "cosine":
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if name == "step":
        return float(step_factor ** sum(step >= milestone for milestone in milestones))
    return 1.0


def build_schedule(
    optimizer: Optimizer, config: ScheduleConfig, *, steps_per_epoch: int, epochs: int, max_steps: int | None = None
) -> LambdaLR:
    """Return the schedule; call its step() after each optimizer step.

    The training ends after `max_steps`, and the cosine with it.

    Raises:
        ConfigError: the warm-up is longer than the training.
    """
    warmup = config.warmup_epochs
    if warmup >= epochs and warmup > 1:
        raise ConfigError(
            f"schedule.warmup_epochs={warmup}: trainer.epochs={epochs} ends before the warm-up: lower it, or "
            "raise trainer.epochs"
        )
    total = min(steps_per_epoch * epochs, max_steps or steps_per_epoch * epochs)
    warmup_steps = min(round(warmup * steps_per_epoch), max(0, total - 1))
    milestones = [round(epoch * steps_per_epoch) for epoch in config.step_epochs]

    # A plain function: of any other callable LambdaLR would put the attributes into each checkpoint.
    def factor(step: int) -> float:
        return lr_factor(
            step,
            name=config.name,
            total_steps=total,
            warmup_steps=warmup_steps,
            milestones=milestones,
            step_factor=config.step_factor,
        )

    return LambdaLR(optimizer, factor)


def scale_rates(schedule: LRScheduler, factor: float) -> None:
    """Multiply every learning rate from now on, also in schedules that are built on its optimizer later."""
    schedule.base_lrs = [rate * factor for rate in schedule.base_lrs]
    for group in schedule.optimizer.param_groups:
        group["lr"], group["initial_lr"] = group["lr"] * factor, group["initial_lr"] * factor


Tensors = tuple[Tensor, ...] | list[Tensor]


def build_average(model: nn.Module, *, decay: float | None) -> AveragedModel | None:
    """Return the exponential moving average of a model's weights and buffers; None without a decay.

    The decay warms up: after n steps it is at most (1 + n) / (10 + n). With a decay of 0.9999 from the first step, a
    training of 100 steps would be evaluated with weights that are 99 % those of its first step.

    Source: TensorFlow's ExponentialMovingAverage with num_updates.
    """
    if decay is None:
        return None

    def update(averaged: Tensors, current: Tensors, _: Tensor | int) -> None:
        # Counted on the CPU: the count that torch hands over is on the device, and reading it would wait for each step.
        steps = int(average.n_averaged)
        warm = min(decay, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(warm)(averaged, current, _)  # type: ignore[no-untyped-call]

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average
