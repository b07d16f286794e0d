"""The schema of the loop: optimizer, schedule, epochs, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from medcls.config.schema import check_settings, setting
from medcls.errors import ConfigError


@dataclass(slots=True)
class OptimizerConfig:
    """How the weights are updated; each option brings the rates that suit it."""

    name: str = setting(
        "adamw",
        "Update rule; optimizer=NAME also sets the rates that suit it.",
        choices=("sgd", "adam", "adamw", "adadelta"),
    )
    lr: float = setting(
        1e-3,
        "Highest learning rate, that of the head; lower it if the loss jumps, raise it when training from scratch.",
        low=0,
        high=10,
        open_low=True,
        common=True,
    )
    weight_decay: float = setting(
        0.0, "Strength of weight decay; raise it if training fits far better than validation.", low=0, high=1
    )
    momentum: float = setting(0.9, "Momentum of optimizer=sgd; the others ignore it.", low=0, high=0.9999)

    def __post_init__(self) -> None:
        check_settings(self, "optimizer")


@dataclass(slots=True)
class ScheduleConfig:
    """The learning rate as a factor of optimizer.lr, by optimizer step."""

    name: str = setting(
        "cosine",
        "Course of the learning rate after the warm-up: falling to 0, unchanged, or falling at step_epochs.",
        choices=("constant", "cosine", "step"),
    )
    warmup_epochs: float = setting(
        0.0, "Epochs during which the rate rises from 0; raise it if the first steps diverge.", low=0, unit="epochs"
    )
    step_epochs: list[float] = setting([], "Epochs at which schedule=step lowers the rate.", low=0, unit="epochs")
    step_factor: float = setting(
        0.1, "Factor by which schedule=step lowers the rate each time.", low=0, high=1, open_low=True
    )

    def __post_init__(self) -> None:
        check_settings(self, "schedule")
        if self.name == "step" and not self.step_epochs:
            raise ConfigError("schedule.step_epochs=[]: schedule.name=step needs the epochs of its steps")


@dataclass(slots=True)
class TrainerConfig:
    """The loop: how long, in which batches, with which safeguards."""

    epochs: int = setting(
        10, "Passes over the training images; the best epoch on the validation split is kept.", low=1, common=True
    )
    batch_size: int = setting(
        32,
        "Images per batch, divided among the processes; lower it if the GPU runs out of memory.",
        low=1,
        unit="images",
        common=True,
    )
    accumulate: int = setting(
        1, "Batches per optimizer step; raise it to train with larger batches than fit into memory.", low=1
    )
    clip_norm: float | None = setting(
        None, "Largest norm of the gradient, above which it is scaled down; null never clips.", low=0, open_low=True
    )
    ema_decay: float | None = setting(
        None,
        "Decay per step of a moving average of the weights, which is then validated and kept; null keeps no average.",
        low=0,
        high=0.99999,
    )
    patience: int | None = setting(
        None,
        "Epochs without a better validation metric after which training stops; null trains all epochs.",
        low=1,
        unit="epochs",
        common=True,
    )
    max_steps: int | None = setting(
        None, "Optimizer steps after which training stops, for a quick trial; null sets no limit.", low=1, unit="steps"
    )
    max_nonfinite: int = setting(
        5,
        "Consecutive steps with a loss or gradient that is not finite after which training fails.",
        low=1,
        unit="steps",
    )
    channels_last: bool = setting(
        True, "Keep images channels last in memory, which is faster on most GPUs; false keeps PyTorch's order."
    )
    activation_checkpointing: bool = setting(
        False, "Compute activations again in the backward pass: saves memory in deep networks, up to a third slower."
    )
    sync_batchnorm: bool = setting(
        False, "Compute BatchNorm over the batches of all processes; set it if each process has only a few images."
    )
    compile: bool = setting(False, "Compile the network with torch.compile; faster after a slow first epoch.")
    tensorboard: bool = setting(
        False, "Also write the curves for TensorBoard to the run; needs pip install 'medcls[tensorboard]'."
    )

    def __post_init__(self) -> None:
        check_settings(self, "trainer")
        if self.activation_checkpointing and self.compile:
            raise ConfigError("trainer.activation_checkpointing=true with trainer.compile=true: remove one of the two")


@dataclass(slots=True)
class CheckpointConfig:
    """How an unfinished run is kept; it does not change what is learnt, so it may differ when a run is resumed."""

    minutes: float = setting(
        5.0, "Minutes between two checkpoints; 0 writes one after each step.", low=0, unit="minutes"
    )
    keep: int = setting(2, "Checkpoints that are kept; an older one is used if the newest is damaged.", low=1)
    hang_minutes: float | None = setting(
        30.0,
        "Minutes without progress after which the run ends with what each thread was doing; null waits forever.",
        low=0,
        open_low=True,
        unit="minutes",
    )

    def __post_init__(self) -> None:
        check_settings(self, "checkpoint")
