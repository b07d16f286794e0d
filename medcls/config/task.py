"""The schema of what is learnt from what: the split, the task, and what is done to images on their way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from medcls.config.checks import check_choice, check_crop, check_file_name, check_range
from medcls.config.schema import NAME, NAMES, setting
from medcls.errors import ConfigError

TASKS = ("binary", "multiclass", "multilabel", "ordinal", "regression")
# The loss of an ordinal task decides what its outputs are.
_ORDINAL = {"corn": "corn", "cross_entropy": "softmax", "focal": "softmax", "joint": "joint"}


@dataclass(slots=True)
class SplitChoice:
    """Which of a store's split files training uses."""

    name: str = "default"

    def __post_init__(self) -> None:
        check_file_name("split.name", self.name)


@dataclass(slots=True)
class TaskConfig:
    """conf/task: which labels make which classes, the loss and the validation metric."""

    kind: str = "multiclass"
    label: str = "label"
    labels: list[str] = field(default_factory=list)
    classes: dict[Any, int] = field(default_factory=dict)
    order: list[Any] = setting(
        [], "Labels from least to most severe, if grades are words; [] goes by the numbers in the labels.", kind=NAMES
    )
    positive: Any = setting(
        None,
        "Label that is class 1 of task=binary; null takes the one of two labels that does not mean healthy.",
        kind=NAME,
        common=True,
    )
    grades: bool = False
    loss: str = "auto"
    joint_lambda: float = 0.5
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    class_weights: str = "none"
    sampler: str = "uniform"
    metric: str = "auto"

    def __post_init__(self) -> None:
        check_choice("task.kind", self.kind, TASKS)
        losses = {
            "binary": ("auto", "cross_entropy", "focal"),
            "multiclass": ("auto", "cross_entropy", "focal"),
            "multilabel": ("auto", "cross_entropy", "focal"),
            "ordinal": ("auto", *_ORDINAL),
            "regression": ("auto", "mse", "mae", "huber"),
        }
        check_choice(f"task.loss (of task.kind={self.kind})", self.loss, losses[self.kind])
        check_range("task.joint_lambda", self.joint_lambda, low=0, high=1)
        check_range("task.focal_gamma", self.focal_gamma, low=0, high=10)
        check_range("task.label_smoothing", self.label_smoothing, low=0, high=0.9)
        check_choice("task.class_weights", self.class_weights, ("none", "balanced"))
        check_choice("task.sampler", self.sampler, ("uniform", "balanced"))
        if self.label_smoothing and self.kind != "multiclass":
            raise ConfigError(f"task.label_smoothing={self.label_smoothing}: only task.kind=multiclass has it")
        if self.classes and self.kind in ("multilabel", "regression"):
            raise ConfigError(f"task.classes is set: task.kind={self.kind} takes no classes")
        if self.grades and self.kind != "regression":
            raise ConfigError(f"task.grades=true: only task.kind=regression has it, this is {self.kind}")
        if self.sampler == "balanced" and self.class_weights == "balanced":
            raise ConfigError(
                "task.sampler=balanced with task.class_weights=balanced: rare classes would be corrected for twice; "
                "set one of them only"
            )
        if self.sampler == "balanced" and self.kind == "regression" and not self.grades:
            raise ConfigError("task.sampler=balanced: task.kind=regression has no classes to balance (grades do)")
        if self.order and (self.kind in ("binary", "multilabel") or (self.kind == "regression" and not self.grades)):
            raise ConfigError(f"task.order={self.order}: task.kind={self.kind} has no ordered classes; leave it out")
        if self.order and self.classes:
            raise ConfigError("task.order and task.classes both say which class comes first: leave one out")
        if self.positive is not None and self.kind != "binary":
            raise ConfigError(f"task.positive={self.positive}: only task.kind=binary has it, this is {self.kind}")
        if self.classes:
            self._check_classes(self.classes)

    @property
    def ordinal(self) -> str:
        """How an ordinal task is answered: "corn", "softmax" or "joint"."""
        return _ORDINAL.get(self.loss, "corn") if self.kind == "ordinal" else "corn"

    def _check_classes(self, classes: dict[Any, int]) -> None:
        indices = sorted(set(classes.values()))
        if indices != list(range(len(indices))) or len(indices) < 2:
            raise ConfigError(f"task.classes={classes}: expected indices 0, 1, … without a gap, at least two")
        if self.kind == "binary" and len(indices) != 2:
            raise ConfigError(f"task.classes={classes}: task.kind=binary takes the indices 0 and 1")


@dataclass(slots=True)
class CropConfig:
    """conf/crop: the shortest side that images are rescaled to, [smallest, largest], and the square cut out of them."""

    size: int | None = None
    scales: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.scales:
            if self.size is not None:
                raise ConfigError(f"crop.size={self.size} without crop.scales: say crop.scales=[256,256] or [256,512]")
            return
        check_crop(self.size, self.scales)


@dataclass(slots=True)
class AugmentConfig:
    """conf/augment: albumentations transforms by name, in order: {Name: {argument: value}}.

    With `auto` a preset that suits the store and the task, changed by `transforms`.
    """

    auto: bool = False
    transforms: dict[str, Any] = field(default_factory=dict)
    # Flips where names of classes or columns are sides of the body: refuse, or ignore if the names mean something else.
    sides: str = "refuse"

    def __post_init__(self) -> None:
        check_choice("augment.sides", self.sides, ("refuse", "ignore"))

    @property
    def varies(self) -> bool:
        """Whether a training image differs between epochs."""
        return self.auto or bool(self.transforms)


@dataclass(slots=True)
class ClinicalConfig:
    """clinical.*: columns of the manifest that are added to the logits beside the image (the wide part)."""

    categorical: list[str] = field(default_factory=list)
    numeric: list[str] = field(default_factory=list)
    reference: dict[str, Any] = field(default_factory=dict)
    unseen: str = "refuse"
    lr_scale: float = 0.1
    l2: float = 1e-3

    def __post_init__(self) -> None:
        check_choice("clinical.unseen", self.unseen, ("refuse", "missing"))
        check_range("clinical.lr_scale", self.lr_scale, low=0, high=100)
        check_range("clinical.l2", self.l2, low=0, high=1, open_low=True)

    @property
    def columns(self) -> list[str]:
        """Of the manifest; [] = images alone."""
        return [*self.categorical, *self.numeric]
