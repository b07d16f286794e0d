"""The schema of a comparison: arms over folds of one store, each an ordinary training and evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from medcls.config.checks import check_choice, check_range
from medcls.config.machine import seed_setting
from medcls.config.schema import FILE_NAME, NAME, NAMES, PATH, check_settings, setting
from medcls.errors import ConfigError

FOLD_KINDS = ("kfold", "repeated", "5x2", "holdout")
_DEFAULTS = {"kfold": (5, 1), "repeated": (5, 3), "5x2": (2, 5), "holdout": (1, 3)}
# The linear baseline beside arms on volumes, in results.
VOXELS = "voxels"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(slots=True)
class FoldsConfig:
    """How the patients of the store are divided, the same for all arms."""

    kind: str = setting(
        "kfold",
        "How test rows are chosen: by folds once, by folds several times, five times in halves, or the store's own "
        "test split.",
        choices=FOLD_KINDS,
        common=True,
    )
    k: int | None = setting(
        None, "Number of folds; null is 5, for kind=holdout 1.", low=1, high=100, unit="folds", common=True
    )
    repeats: int | None = setting(
        None,
        "Times that kind=repeated divides anew, or seeds of kind=holdout; null is 3.",
        low=1,
        high=100,
        common=True,
    )
    over: str = setting(
        "development",
        "Rows that are divided: train and val, or all, which opens the test rows and notes it.",
        choices=("development", "all"),
    )
    val: float = setting(
        0.1, "Share of a fold's training patients that becomes its validation part.", low=0.01, high=0.5
    )
    seed: int = setting(0, "Seed of the folds.", low=0)
    same_seed: bool = setting(False, "Train every repeat with the same seed, instead of seed, seed + 1 and so on.")
    split: str = setting(
        "default",
        "Split of the store whose train and val rows are divided; kind=holdout takes it as it is.",
        kind=FILE_NAME,
    )
    label: str | None = setting(
        None, "Column of the labels by which folds are stratified; null takes label, or every label_NAME.", kind=NAME
    )
    on_missing: str = setting("refuse", "What happens if a class is missing from a fold.", choices=("refuse", "report"))
    name: str | None = setting(
        None, "First part of the names of the splits that are written; null goes by kind and seed.", kind=FILE_NAME
    )

    def __post_init__(self) -> None:
        check_settings(self, "folds")
        k, repeats = self.shape
        check_range("folds.k", k, low=1 if self.kind == "holdout" else 2, high=100)
        check_range("folds.repeats", repeats, low=2 if self.kind == "repeated" else 1, high=100)
        fixed = {"5x2": (2, 5), "kfold": (k, 1), "holdout": (1, repeats)}.get(self.kind, self.shape)
        if self.shape != fixed:
            raise ConfigError(
                f"folds.k={k}, folds.repeats={repeats}: folds.kind={self.kind} has k={fixed[0]} and "
                f"repeats={fixed[1]}; folds.kind=repeated takes both"
            )
        if self.kind == "holdout" and self.over != "development":
            raise ConfigError("folds.over=all: folds.kind=holdout takes the store's own split as it is")

    @property
    def shape(self) -> tuple[int, int]:
        """Folds of a partition, and partitions (of a holdout: seeds)."""
        k, repeats = _DEFAULTS[self.kind]
        return self.k or k, self.repeats or repeats

    @property
    def prefix(self) -> str:
        """First part of the names of the splits."""
        if self.name is not None or self.kind == "holdout":
            return self.name or self.split
        k, repeats = self.shape
        return f"kfold{k}-s{self.seed}" if self.kind == "kfold" else f"{repeats}x{k}-s{self.seed}"


@dataclass(slots=True)
class CompareJob:
    """python -m medcls.compare: arms over folds to comparison.json and a report."""

    arms: dict[str, Any] = setting(
        {},
        "Arms by name, each a list of settings of medcls.train: arms.NAME=[KEY=VALUE,KEY=VALUE]; {steps: [[…],[…]]} "
        "trains in steps, each starting from the one before.",
        kind=NAMES,
        common=True,
    )
    common: list[str] = setting(
        [], "Settings of medcls.train for all arms, beneath their own; for a comparison's file.", kind=NAMES
    )
    extra: list[str] = setting(
        [], "Further settings of medcls.train for all arms, over those of common=.", kind=NAMES, common=True
    )
    only: list[str] = setting([], "Arms that are run, as [ARM,ARM]; [] runs all.", kind=NAMES, common=True)
    store: str | None = setting(None, "Store whose patients are divided; required.", kind=PATH, common=True)
    stores: dict[str, str | None] = setting(
        {}, "Stores of steps that train elsewhere first (store=NAME): stores.NAME=DIR.", kind=PATH
    )
    out: str | None = setting(
        None,
        "Folder for runs, logs and results; an interrupted comparison in it is resumed; required.",
        kind=PATH,
        common=True,
    )
    folds: FoldsConfig = field(default_factory=FoldsConfig)
    sizes: list[int] = setting(
        [0],
        "Numbers of training images, for a learning curve, as [100,250,0]; 0 takes all.",
        low=0,
        unit="images",
        common=True,
    )
    metric: str = setting(
        "auto", "Metric by which arms are compared; auto takes the first of the task.", kind=NAME, common=True
    )
    secondary: list[str] = setting([], "Further metrics that are compared.", kind=NAMES)
    seed: int = seed_setting("the first repeat's training and of the bootstrap")
    replicates: int = setting(2000, "Bootstrap resamples of patients behind each interval.", low=100)
    executor: str = setting(
        "local", "Where runs are started: in processes here, or as jobs of Slurm.", choices=("local", "slurm")
    )
    jobs: int | None = setting(
        None, "Runs at the same time; null is 1, and all with executor=slurm.", low=1, high=1000, common=True
    )
    threads: int | None = setting(None, "Threads of each run; null divides the cores by jobs.", low=1, high=1000)
    slurm: dict[str, Any] = setting(
        {}, "Settings of submitit for executor=slurm: slurm.slurm_partition=gpu slurm.timeout_min=120."
    )
    plan_only: bool = setting(False, "Write the folds and out/plan.json, and stop.", common=True)

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.sizes or len(set(self.sizes)) != len(self.sizes):
            raise ConfigError(f"sizes={self.sizes}: expected different numbers of training images, 0 for all of them")
        if self.slurm and self.executor != "slurm":
            raise ConfigError("slurm.* needs executor=slurm: set it, or remove slurm.*")
        for name, arm in self.arms.items():
            _check_arm(str(name), arm)
        for name in self.only if self.arms else ():
            check_choice("only", name, self.arms)

    @property
    def shared(self) -> list[str]:
        """The overrides of all arms."""
        return [*self.common, *self.extra]

    def steps(self, arm: str) -> list[list[str]]:
        """Return the overrides of each training of an arm, in order."""
        given = self.arms[arm]
        return [list(given)] if isinstance(given, list) else [list(step) for step in given["steps"]]

    @property
    def chosen(self) -> list[str]:
        """The arms that take part, in their order."""
        return [name for name in self.arms if not self.only or name in self.only]


def _check_arm(name: str, arm: Any) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"arms.{name}: expected a name of letters, digits, - _ and .")
    if name == VOXELS:
        raise ConfigError(f"arms.{name}: that is the name of the baseline beside arms on volumes; choose another")
    steps = [arm] if isinstance(arm, list) else arm.get("steps") if isinstance(arm, dict) and len(arm) == 1 else None
    whole = isinstance(steps, list) and steps and all(isinstance(step, list) for step in steps)
    if not whole:
        raise ConfigError(f"arms.{name}={arm}: expected [overrides] or {{steps: [[overrides], [overrides]]}}")
    for override in (override for step in steps or [] for override in step):
        if not isinstance(override, str) or "=" not in override:
            raise ConfigError(f"arms.{name}: {override!r} is not key=value: write it in quotes or without spaces")
