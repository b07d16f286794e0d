"""The schema of a comparison: arms over folds of one store, each an ordinary training and evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from medcls.config.checks import check_choice, check_file_name, check_range
from medcls.config.schema import NAMES, setting
from medcls.errors import ConfigError

FOLD_KINDS = ("kfold", "repeated", "5x2", "holdout")
_DEFAULTS = {"kfold": (5, 1), "repeated": (5, 3), "5x2": (2, 5), "holdout": (1, 3)}
# The linear baseline beside arms on volumes, in results.
VOXELS = "voxels"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(slots=True)
class FoldsConfig:
    """How the rows of the store are divided, the same for all arms."""

    kind: str = "kfold"
    # null = 5 folds; one partition, three of "repeated"; three seeds of "holdout".
    k: int | None = None
    repeats: int | None = None
    over: str = "development"
    # Share of a fold's training patients that becomes its validation part.
    val: float = 0.1
    seed: int = 0
    # One training seed for all repeats, or another for each: seed, seed + 1, …
    same_seed: bool = False
    # The store's split whose train and val rows are divided; of "holdout" the very split.
    split: str = "default"
    # Column of labels.parquet to stratify by; null = label, or every label_NAME.
    label: str | None = None
    on_missing: str = "refuse"
    # First part of the names of the splits that are written; null = by kind and seed.
    name: str | None = None

    def __post_init__(self) -> None:
        check_choice("folds.kind", self.kind, FOLD_KINDS)
        k, repeats = self.shape
        check_range("folds.k", k, low=1 if self.kind == "holdout" else 2, high=100)
        check_range("folds.repeats", repeats, low=2 if self.kind == "repeated" else 1, high=100)
        fixed = {"5x2": (2, 5), "kfold": (k, 1), "holdout": (1, repeats)}.get(self.kind, self.shape)
        if self.shape != fixed:
            raise ConfigError(
                f"folds.k={k}, folds.repeats={repeats}: folds.kind={self.kind} has k={fixed[0]} and "
                f"repeats={fixed[1]}; folds.kind=repeated takes both"
            )
        check_choice("folds.over", self.over, ("development", "all"))
        if self.kind == "holdout" and self.over != "development":
            raise ConfigError("folds.over=all: folds.kind=holdout takes the store's own split as it is")
        check_range("folds.val", self.val, low=0.01, high=0.5)
        check_range("folds.seed", self.seed, low=0)
        check_choice("folds.on_missing", self.on_missing, ("refuse", "report"))
        check_file_name("folds.split", self.split)
        if self.name is not None:
            check_file_name("folds.name", self.name)

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
    # For all arms, beneath their own: common is the comparison's, extra the command line's, over it.
    common: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    only: list[str] = field(default_factory=list)
    store: str | None = None
    # Stores of steps that say store=NAME.
    stores: dict[str, str | None] = field(default_factory=dict)
    out: str | None = None
    folds: FoldsConfig = field(default_factory=FoldsConfig)
    # Training images; 0 = all.
    sizes: list[int] = field(default_factory=lambda: [0])
    metric: str = "auto"
    secondary: list[str] = field(default_factory=list)
    seed: int = 0
    replicates: int = 2000
    executor: str = "local"
    # Processes at once; null = 1, with executor=slurm all.
    jobs: int | None = None
    # Threads of each process; null = the cores divided by jobs.
    threads: int | None = None
    # submitit's own names: slurm.slurm_partition=gpu slurm.timeout_min=120 slurm.gpus_per_node=1 …
    slurm: dict[str, Any] = field(default_factory=dict)
    plan_only: bool = False

    def __post_init__(self) -> None:
        check_choice("executor", self.executor, ("local", "slurm"))
        check_range("seed", self.seed, low=0)
        check_range("replicates", self.replicates, low=100)
        for name in ("jobs", "threads"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), low=1, high=1000)
        for size in self.sizes:
            check_range("sizes", size, low=0)
        if not self.sizes or len(set(self.sizes)) != len(self.sizes):
            raise ConfigError(f"sizes={self.sizes}: expected different numbers of training images, 0 for all of them")
        if self.slurm and self.executor != "slurm":
            raise ConfigError("slurm.… is set: executor=slurm takes it")
        for name, arm in self.arms.items():
            _check_arm(str(name), arm)

    @property
    def shared(self) -> list[str]:
        """The overrides of all arms."""
        return [*self.common, *self.extra]

    def steps(self, arm: str) -> list[list[str]]:
        """The overrides of each training of an arm, in order."""
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
            raise ConfigError(f"arms.{name}: {override!r} is no key=value in quotes or of one word")
