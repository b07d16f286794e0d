"""The schema of the commands that score with a run: evaluate, predict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcls.config.checks import SPLITS, check_range
from medcls.config.machine import batch_setting, device_setting, precision_setting, seed_setting, workers_setting
from medcls.config.preparation import DeidentifyConfig
from medcls.config.schema import NAME, NAMES, PATH, check_settings, setting
from medcls.config.task import TASKS
from medcls.errors import ConfigError


def _list_runs(typed: Any) -> list[Path]:
    """Return the command line hands over run=[A,B] as it was typed: paths need no quoting there."""
    if isinstance(typed, str) and typed.startswith("[") and typed.endswith("]"):
        typed = typed[1:-1].split(",")
    if not isinstance(typed, list):
        return [Path(typed)] if typed else []
    names = [str(item).strip() for item in typed if str(item).strip()]
    return [Path(name).expanduser() if name.startswith("~/") else Path(name) for name in names]


def _check_runs(typed: Any) -> None:
    if typed is not None and not _list_runs(typed):
        raise ConfigError(f"run={typed}: expected a run folder, or several as run=[A,B]")


@dataclass(slots=True)
class EvaluateJob:
    """python -m medcls.evaluate: one or several runs and a store to a report."""

    run: Any = setting(
        None,
        "Run folder to evaluate; [DIR,DIR] averages several runs; required unless predictions= is set.",
        kind=PATH,
        common=True,
    )
    store: str | None = setting(
        None,
        "Store to evaluate on; null takes the one of the training, another one is an external test.",
        kind=PATH,
        common=True,
    )
    split: str = setting(
        "val",
        "Split that is evaluated: val also chooses thresholds, test is opened and counted, all is for other stores.",
        choices=(*SPLITS, "all"),
        common=True,
    )
    out: str | None = setting(
        None,
        "Folder for the results; null takes evaluation/ in the run; required for several runs and for predictions=.",
        kind=PATH,
        common=True,
    )
    batch_size: int = batch_setting()
    device: str = device_setting()
    precision: str = precision_setting()
    workers: int = workers_setting()
    replicates: int = setting(
        2000, "Bootstrap resamples of patients behind each interval; at least 100 for a report.", low=1, common=True
    )
    seed: int = seed_setting("the bootstrap")
    views: str = setting(
        "center",
        "Parts of each image that are scored and averaged: the center, the whole image densely, a grid of crops, or "
        "both.",
        choices=("center", "dense", "multicrop", "both"),
    )
    scales: list[int] = setting(
        [],
        "Shortest sides at which each image is scored; [] takes the middle of the training scales.",
        low=8,
        high=8192,
        unit="pixels",
    )
    flips: bool | None = setting(
        None, "Also score mirrored images; null does so unless views=center. Set false if left and right differ."
    )
    crops_per_side: int = setting(5, "Crops along each side with views=multicrop or both.", low=2, high=20)
    sensitivity_at_least: list[float] | None = setting(
        None,
        "Sensitivities for which thresholds are chosen on the validation split, as [0.95]; null keeps what is frozen.",
        low=0,
        high=1,
        open_low=True,
    )
    specificity_at_least: list[float] | None = setting(
        None,
        "Specificities for which thresholds are chosen on the validation split, as [0.95]; null keeps what is frozen.",
        low=0,
        high=1,
        open_low=True,
    )
    miss_costs: list[float] | None = setting(
        None,
        "Costs of a missed case in units of a false alarm, each with its own threshold, as [10]; null keeps what is "
        "frozen.",
        low=0,
        open_low=True,
    )
    alpha: float | None = setting(
        None,
        "Share of cases whose conformal set may miss the truth; null keeps what is frozen, at first 0.1.",
        low=0.001,
        high=0.5,
    )
    decision: str | None = setting(
        None,
        "Operating point that calls images positive: youden, sensitivity_0.95 and the like, or half (0.5); null "
        "keeps what is frozen, at first youden.",
        kind=NAME,
        common=True,
    )
    prevalences: list[float] = setting(
        [],
        "Prevalences for which PPV and NPV are also computed, as [0.01,0.1].",
        low=0,
        high=1,
        open_low=True,
        common=True,
    )
    subgroups: list[str] = setting(
        ["sex", "age", "manufacturer", "modality", "side"],
        "Columns whose groups get metrics of their own; columns that the store does not have are left out.",
        kind=NAMES,
        common=True,
    )
    least_patients: int = setting(20, "Fewest patients of a subgroup whose metrics are shown.", low=2, unit="patients")
    against: str | None = setting(
        None, "Other run, or other file of scores, that is compared on the same patients.", kind=PATH, common=True
    )
    gallery: int = setting(12, "Worst images shown in the report; 0 shows none.", low=0, high=60, unit="images")
    robustness: bool = setting(
        False, "Also measure the metrics under noise, blur, grey shift, resampling, JPEG and rotation.", common=True
    )
    shortcuts: list[str] = setting(
        [],
        "Columns for which it is tested whether the features of the network reveal them, as [manufacturer].",
        kind=NAMES,
    )
    show_ids: bool = setting(
        False, "List ids of patients and images in pages and documents; they may be paths if deidentify=declared."
    )
    report: bool = setting(
        True, "Write the report and its documents; false writes only metrics.json and predictions.parquet."
    )
    analysis: str | None = setting(
        None, "Plan of analysis (YAML) with limits and margins that were decided beforehand.", kind=PATH
    )
    samplesize: str | None = setting(None, "File of medcls.samplesize with the intended number of patients.", kind=PATH)
    readers: str | None = setting(None, "Table of readers' decisions on the same images.", kind=PATH)
    predictions: str | None = setting(
        None, "Table of scores of any tool, evaluated instead of a run.", kind=PATH, common=True
    )
    choices: str | None = setting(
        None,
        "Table of scores on which thresholds for predictions= are chosen; null chooses nothing.",
        kind=PATH,
        common=True,
    )
    kind: str = setting("auto", "Kind of task of predictions=; auto goes by its columns.", choices=("auto", *TASKS))
    positive: str | None = setting(
        None, "Positive class of predictions=; null goes by its columns and labels.", kind=NAME
    )
    classes: list[str] = setting(
        [],
        "Classes of predictions= in order, [NEGATIVE,POSITIVE] if there are two; [] goes by its columns.",
        kind=NAMES,
    )
    grades: bool = setting(False, "Whether the number in predictions= is a grade.")
    threshold: float | None = setting(
        None, "Score of predictions= from which an image is positive; null is 0.5 for probabilities.", low=-math.inf
    )
    sums: str = setting(
        "refuse",
        "What happens to probabilities of predictions= that do not sum to 1; normalize divides them by their sum.",
        choices=("refuse", "normalize"),
    )
    patients: str = setting(
        "declared",
        "Whether predictions= names patients; per_image counts every row as another patient.",
        choices=("declared", "per_image"),
    )
    in_sample: str = setting(
        "refuse",
        "Whether rows that the model was trained on may be evaluated; every figure is then marked as in-sample.",
        choices=("refuse", "allow"),
    )

    def __post_init__(self) -> None:
        _check_runs(self.run)
        check_settings(self)
        self._check_views()
        self._check_scores()
        if len(self.runs) > 1 and (self.against or self.robustness or self.shortcuts):
            raise ConfigError(f"run={self.run}: against, robustness and shortcuts take a single run: set run=DIR")
        # What a reader or a test of two runs rests on is never drawn from a handful of resamples.
        check_range("replicates", self.replicates, low=100 if self.report or self.against else 1)
        if any(value >= 1 for value in self.prevalences):
            raise ConfigError(f"prevalences={self.prevalences}: expected shares between 0 and 1")

    @property
    def runs(self) -> list[Path]:
        """The run folders."""
        return _list_runs(self.run)

    @property
    def choosing(self) -> dict[str, object]:
        """What is set for the choices on other rows; what is not set is as frozen, or has its default."""
        given = {
            "sensitivity": self.sensitivity_at_least,
            "specificity": self.specificity_at_least,
            "cost": self.miss_costs,
            "alpha": self.alpha,
            "decision": self.decision,
        }
        return {name: value for name, value in given.items() if value is not None}

    def _check_scores(self) -> None:
        if self.predictions is not None:
            if self.run is not None:
                raise ConfigError("run= and predictions= are both set: evaluate a run, or a file of scores")
            return
        for name in ("choices", "positive", "classes", "threshold", "grades"):
            if getattr(self, name):
                raise ConfigError(f"{name}={getattr(self, name)} belongs to predictions=FILE: set that, or remove it")

    def _check_views(self) -> None:
        if self.crops_per_side != 5 and self.views not in ("multicrop", "both"):
            raise ConfigError(f"crops_per_side={self.crops_per_side}: only views=multicrop and both have crops")
        if (self.robustness or self.shortcuts) and (self.views != "center" or self.scales or self.flips):
            raise ConfigError("robustness and shortcuts are measured on the center of each image: remove views=")


FORMATS = ("parquet", "csv", "json", "jsonl")
"""What predictions are written as, each named as the suffix of its files."""


@dataclass(slots=True)
class PredictJob:
    """python -m medcls.predict: one or several runs and raw images to a table of scores."""

    run: Any = setting(
        None, "Run folder to predict with; [DIR,DIR] averages several runs; required.", kind=PATH, common=True
    )
    source: str | None = setting(None, "Folder of raw files, or one file; required.", kind=PATH, common=True)
    out: str | None = setting(
        None,
        "File for the predictions; its suffix is the format: .parquet, .csv, .json or .jsonl; required.",
        kind=PATH,
        common=True,
    )
    clinical_file: str | None = setting(
        None, "Table with the clinical columns that the run takes beside images, by path or patient_id.", kind=PATH
    )
    boxes: str | None = setting(
        None, "Table of regions (path, roi_x, roi_y, roi_w, roi_h), for a run that was trained on regions.", kind=PATH
    )
    choices: str | None = setting(
        None,
        "Folder of the choices frozen for these runs together, out= of medcls.evaluate run=[DIR,DIR]; null takes "
        "those of a single run.",
        kind=PATH,
    )
    format: str | None = setting(None, "Format of out=; null goes by its suffix.", choices=FORMATS)
    out_of_domain: str = setting(
        "refuse",
        "What happens to images unlike those of training: no score, a score with the reason, or no judgement of the "
        "distance.",
        choices=("refuse", "note", "allow"),
        common=True,
    )
    batch_size: int = batch_setting()
    device: str = device_setting()
    precision: str = precision_setting()
    workers: int = workers_setting("decode images")
    deidentify: DeidentifyConfig = field(default_factory=DeidentifyConfig)

    def __post_init__(self) -> None:
        _check_runs(self.run)
        check_settings(self)

    @property
    def runs(self) -> list[Path]:
        """The run folders."""
        return _list_runs(self.run)

    @property
    def form(self) -> str:
        """What out= is written as: format, or what its suffix says.

        Raises:
            ConfigError: a suffix of none of the formats, or of another one than format.
        """
        suffix = Path(self.out or "").suffix.lower().removeprefix(".")
        if suffix not in FORMATS:
            listed = ", ".join(f".{name}" for name in FORMATS)
            raise ConfigError(f"out={self.out}: its suffix is not the name of a format: choose one of {listed}")
        if self.format not in (None, suffix):
            raise ConfigError(
                f"format={self.format} with out={self.out}: set out= to a .{self.format} file, or remove format="
            )
        return suffix
