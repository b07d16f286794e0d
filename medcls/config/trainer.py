"""The schema of the loop: optimizer, schedule, epochs, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field

from medcls.config.checks import check_choice, check_range
from medcls.errors import ConfigError


@dataclass(slots=True)
class OptimizerConfig:
    """conf/optimizer."""

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_choice("optimizer.name", self.name, ("sgd", "adam", "adamw", "adadelta"))
        check_range("optimizer.lr", self.lr, low=0, high=10, open_low=True)
        check_range("optimizer.weight_decay", self.weight_decay, low=0, high=1)
        check_range("optimizer.momentum", self.momentum, low=0, high=0.9999)


@dataclass(slots=True)
class ScheduleConfig:
    """conf/schedule: the learning rate as a factor of optimizer.lr, by optimizer step."""

    name: str = "cosine"
    warmup_epochs: float = 0.0
    step_epochs: list[float] = field(default_factory=list)
    step_factor: float = 0.1

    def __post_init__(self) -> None:
        check_choice("schedule.name", self.name, ("constant", "cosine", "step"))
        check_range("schedule.warmup_epochs", self.warmup_epochs, low=0)
        check_range("schedule.step_factor", self.step_factor, low=0, high=1, open_low=True)
        if self.name == "step" and not self.step_epochs:
            raise ConfigError("schedule.step_epochs=[]: schedule.name=step needs the epochs of its steps")


@dataclass(slots=True)
class TrainerConfig:
    """conf/trainer: the loop."""

    epochs: int = 10
    batch_size: int = 32
    accumulate: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None
    patience: int | None = None
    max_steps: int | None = None
    max_nonfinite: int = 5
    channels_last: bool = True
    activation_checkpointing: bool = False
    sync_batchnorm: bool = False
    compile: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_range("trainer.epochs", self.epochs, low=1)
        check_range("trainer.batch_size", self.batch_size, low=1)
        check_range("trainer.accumulate", self.accumulate, low=1)
        check_range("trainer.max_nonfinite", self.max_nonfinite, low=1)
        if self.clip_norm is not None:
            check_range("trainer.clip_norm", self.clip_norm, low=0, open_low=True)
        if self.ema_decay is not None:
            check_range("trainer.ema_decay", self.ema_decay, low=0, high=0.99999)
        if self.patience is not None:
            check_range("trainer.patience", self.patience, low=1)
        if self.max_steps is not None:
            check_range("trainer.max_steps", self.max_steps, low=1)
        if self.activation_checkpointing and self.compile:
            raise ConfigError("trainer.activation_checkpointing=true with trainer.compile=true: take one of them")


@dataclass(slots=True)
class CheckpointConfig:
    """How an unfinished run is kept; no part of what is learnt, so it may change between two starts."""

    minutes: float = 5.0
    keep: int = 2
    hang_minutes: float | None = 30.0

    def __post_init__(self) -> None:
        check_range("checkpoint.minutes", self.minutes, low=0)
        check_range("checkpoint.keep", self.keep, low=1)
        if self.hang_minutes is not None:
            check_range("checkpoint.hang_minutes", self.hang_minutes, low=0, open_low=True)
