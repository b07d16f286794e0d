"""The schema of a task: split, labels and classes, crop, augmentation and clinical columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medcls.config.checks import SIDES, check_choice, check_crop
from medcls.config.schema import FILE_NAME, NAME, NAMES, check_settings, setting
from medcls.errors import ConfigError
from medcls.kinds import KINDS

TASKS = tuple(KINDS)


@dataclass(slots=True)
class SplitChoice:
    """Which of the store's splits is used."""

    name: str = setting("default", "Split of the store, one of STORE/splits.", kind=FILE_NAME, common=True)

    def __post_init__(self) -> None:
        check_settings(self, "split")


@dataclass(slots=True)
class TaskConfig:
    """Which labels make which classes, the loss and the validation metric."""

    kind: str = setting(
        "multiclass",
        "What is learnt: two classes, several, several labels at once, ordered grades, or a number.",
        choices=TASKS,
    )
    label: str = setting("label", "Column of the store's labels that is learnt.", kind=NAME, common=True)
    labels: list[str] = setting([], "Labels that task=multilabel learns, without label_; [] takes all.", kind=NAMES)
    classes: dict[Any, int] = setting(
        {},
        "Class index of each label, as '{NC: 0, MCI: 1, AD: 1}'; labels that are not named are left out; {} takes "
        "each label as a class.",
    )
    order: list[Any] = setting(
        [], "Labels from least to most severe, if grades are words; [] goes by the numbers in the labels.", kind=NAMES
    )
    positive: Any = setting(
        None,
        "Label that is class 1 of task=binary; null takes the one of two labels that does not mean healthy.",
        kind=NAME,
        common=True,
    )
    grades: bool = setting(
        False, "Whether the number that task=regression learns is a grade; metrics of the rounded grade are then added."
    )
    loss: str = setting(
        "auto",
        "Loss; auto takes cross-entropy for classes and labels, CORN for grades, and the squared error for numbers.",
        choices=tuple(dict.fromkeys(loss for row in KINDS.values() for loss in row.losses)),
    )
    joint_lambda: float = setting(
        0.5, "Weight of the cross-entropy in loss=joint; the squared error has the rest.", low=0, high=1
    )
    focal_gamma: float = setting(2.0, "Focus of loss=focal on hard images; 0 is the cross-entropy.", low=0, high=10)
    label_smoothing: float = setting(
        0.0, "Share of the truth that is spread over all classes; raise it if labels are noisy.", low=0, high=0.9
    )
    class_weights: str = setting(
        "none", "Weights of the loss; balanced gives rare classes more weight.", choices=("none", "balanced")
    )
    sampler: str = setting(
        "uniform",
        "How training images are drawn; balanced draws every class equally often.",
        choices=("uniform", "balanced"),
    )
    metric: str = setting(
        "auto",
        "Validation metric that chooses the epoch, or loss; auto takes auc, quadratic_kappa for ordinal and mse for "
        "regression.",
        kind=NAME,
    )

    def __post_init__(self) -> None:
        check_settings(self, "task")
        row = KINDS[self.kind]
        check_choice(f"task.loss (of task.kind={self.kind})", self.loss, row.losses)
        if self.label_smoothing and (row.ordered or not row.exclusive):
            raise ConfigError(f"task.label_smoothing={self.label_smoothing}: only task.kind=multiclass has it")
        if self.classes and (row.multiple or row.numeric):
            raise ConfigError(f"task.classes is set: task.kind={self.kind} takes no classes")
        if self.grades and not row.numeric:
            raise ConfigError(f"task.grades=true: only task.kind=regression has it, this is {self.kind}")
        if self.sampler == "balanced" and self.class_weights == "balanced":
            raise ConfigError(
                "task.sampler=balanced with task.class_weights=balanced: rare classes would be corrected for twice; "
                "set one of them only"
            )
        if self.sampler == "balanced" and row.numeric and not self.grades:
            raise ConfigError("task.sampler=balanced: task.kind=regression has no classes to balance (grades do)")
        if self.order and not (row.exclusive or self.grades):
            raise ConfigError(f"task.order={self.order}: task.kind={self.kind} has no ordered classes: remove it")
        if self.order and self.classes:
            raise ConfigError("task.order and task.classes both set the order of classes: remove one")
        if self.positive is not None and not row.pair:
            raise ConfigError(f"task.positive={self.positive}: only task.kind=binary has it, this is {self.kind}")
        if self.classes:
            self._check_classes(self.classes)

    @property
    def ordinal(self) -> str:
        """How the network answers, by the loss: "corn" (as the kind does), "softmax" or "joint"."""
        return KINDS[self.kind].losses[self.loss]

    def _check_classes(self, classes: dict[Any, int]) -> None:
        indices = sorted(set(classes.values()))
        if indices != list(range(len(indices))) or len(indices) < 2:
            raise ConfigError(f"task.classes={classes}: expected indices 0, 1, … without a gap, at least two")
        if KINDS[self.kind].pair and len(indices) != 2:
            raise ConfigError(f"task.classes={classes}: task.kind=binary takes the indices 0 and 1")


@dataclass(slots=True)
class CropConfig:
    """The shortest side that images are rescaled to, and the square that is cut out of them."""

    size: int | None = setting(
        None,
        "Side of the random square that is cut out of each training image; null cuts nothing.",
        low=SIDES[0],
        unit="pixels",
    )
    scales: list[int] = setting(
        [],
        "[smallest,largest] shortest side that each training image is rescaled to, at random; [] leaves images as "
        "stored.",
        low=SIDES[0],
        high=SIDES[1],
        unit="pixels",
    )

    def __post_init__(self) -> None:
        check_settings(self, "crop")
        if not self.scales:
            if self.size is not None:
                raise ConfigError(f"crop.size={self.size} without crop.scales: set crop.scales=[256,256] or [256,512]")
            return
        check_crop(self.size, self.scales)


@dataclass(slots=True)
class AugmentConfig:
    """How training images are varied at random."""

    auto: bool = setting(False, "Take the preset that suits the store and the task, changed by transforms.")
    transforms: dict[str, Any] = setting(
        {},
        "Transforms of albumentations, or of MONAI for volumes, by name and in order: "
        "augment.transforms.Affine.rotate=[-5,5].",
    )
    sides: str = setting(
        "refuse",
        "Whether flips are refused if names of classes or columns are sides of the body; ignore if they mean "
        "something else.",
        choices=("refuse", "ignore"),
    )

    def __post_init__(self) -> None:
        check_settings(self, "augment")

    @property
    def varies(self) -> bool:
        """Whether a training image differs between epochs."""
        return self.auto or bool(self.transforms)


@dataclass(slots=True)
class ClinicalConfig:
    """Clinical data beside the image: columns of the manifest that are added to the logits."""

    categorical: list[str] = setting([], "Columns whose values are names, as sex or site.", kind=NAMES, common=True)
    numeric: list[str] = setting([], "Columns whose values are numbers, as age_years.", kind=NAMES, common=True)
    reference: dict[str, Any] = setting(
        {}, "Level that others are compared with, by column, as '{sex: F}'; the most frequent one if not set."
    )
    unseen: str = setting(
        "refuse",
        "What happens to a level, or a missing value, that training did not have; missing reads new levels as missing.",
        choices=("refuse", "missing"),
    )
    lr_scale: float = setting(
        0.1, "Learning rate of the clinical coefficients, as a share of optimizer.lr.", low=0, high=100
    )
    l2: float = setting(
        1e-3, "Penalty on the clinical coefficients; raise it if there are many columns.", low=0, high=1, open_low=True
    )

    def __post_init__(self) -> None:
        check_settings(self, "clinical")

    @property
    def columns(self) -> list[str]:
        """Of the manifest; [] = images alone."""
        return [*self.categorical, *self.numeric]
