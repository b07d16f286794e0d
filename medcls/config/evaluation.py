"""The schema of what looks at a store or a run: evaluate, predict, explain, show."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcls.config.checks import SPLITS, check_choice, check_range
from medcls.config.preparation import DeidentifyConfig
from medcls.config.schema import PATH, setting
from medcls.config.task import TASKS, AugmentConfig
from medcls.errors import ConfigError


def _list_runs(typed: Any) -> list[Path]:
    """The command line hands over run=[A,B] as it was typed: paths need no quoting there."""
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
        None, "Run folder to evaluate; [DIR,DIR] averages the scores of several runs.", kind=PATH, common=True
    )
    store: str | None = None
    split: str = "val"
    out: str | None = None
    batch_size: int = 64
    device: str = "auto"
    precision: str = "auto"
    workers: int = -1
    replicates: int = 2000
    seed: int = 0
    views: str = "center"
    # Shortest sides in pixels; [] = the middle of the training scales. flips: null = true but for views=center.
    scales: list[int] = field(default_factory=list)
    flips: bool | None = None
    crops_per_side: int = 5
    # Chosen on the validation split and frozen there; null = as frozen, or else the defaults.
    sensitivity_at_least: list[float] | None = None
    specificity_at_least: list[float] | None = None
    miss_costs: list[float] | None = None
    alpha: float | None = None
    # The frozen point that calls images positive: youden, sensitivity_0.95 …, half (0.5); null = as frozen, or youden.
    decision: str | None = None
    prevalences: list[float] = field(default_factory=list)
    subgroups: list[str] = field(default_factory=lambda: ["sex", "age", "manufacturer", "modality", "side"])
    least_patients: int = 20
    against: str | None = None
    gallery: int = 12
    robustness: bool = False
    shortcuts: list[str] = field(default_factory=list)
    # true: pages and documents list ids of patients and images, which may be paths (deidentify=declared).
    show_ids: bool = False
    # false: metrics.json and predictions.parquet alone, for other programs to read.
    report: bool = True
    # Decided beforehand: limits and margins (YAML), the intended size (medcls.samplesize). Readers of the same images.
    analysis: str | None = None
    samplesize: str | None = None
    readers: str | None = None
    # A file of scores of any tool instead of a run (docs/evaluation.md), and the file that thresholds are chosen on.
    predictions: str | None = None
    choices: str | None = None
    kind: str = "auto"
    positive: str | None = None
    classes: list[str] = field(default_factory=list)
    grades: bool = False
    threshold: float | None = None
    sums: str = "refuse"
    patients: str = "declared"
    # allow: rows that were trained on are evaluated, and every figure is marked as in-sample.
    in_sample: str = "refuse"

    def __post_init__(self) -> None:
        _check_runs(self.run)
        check_choice("split", self.split, (*SPLITS, "all"))
        check_choice("in_sample", self.in_sample, ("refuse", "allow"))
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        check_range("batch_size", self.batch_size, low=1)
        check_range("workers", self.workers, low=-1, high=256)
        self._check_views()
        self._check_scores()
        if len(self.runs) > 1 and (self.against or self.robustness or self.shortcuts):
            raise ConfigError(f"run={self.run}: against, robustness and shortcuts are measured of one run: name one")
        # What a reader or a test of two runs rests on is never drawn from a handful of resamples.
        check_range("replicates", self.replicates, low=100 if self.report or self.against else 1)
        check_range("seed", self.seed, low=0)
        for name in ("sensitivity_at_least", "specificity_at_least", "prevalences"):
            for value in getattr(self, name) or []:
                check_range(name, value, low=0, high=1, open_low=True)
        for value in self.miss_costs or []:
            check_range("miss_costs", value, low=0, open_low=True)
        if self.alpha is not None:
            check_range("alpha", self.alpha, low=0.001, high=0.5)
        if any(value >= 1 for value in self.prevalences):
            raise ConfigError(f"prevalences={self.prevalences}: expected shares between 0 and 1")
        check_range("least_patients", self.least_patients, low=2)
        check_range("gallery", self.gallery, low=0, high=60)

    @property
    def runs(self) -> list[Path]:
        """The run folders."""
        return _list_runs(self.run)

    def _check_scores(self) -> None:
        check_choice("kind", self.kind, ("auto", *TASKS))
        check_choice("sums", self.sums, ("refuse", "normalize"))
        check_choice("patients", self.patients, ("declared", "per_image"))
        if self.threshold is not None:
            check_range("threshold", self.threshold)
        if self.predictions is not None:
            if self.run is not None:
                raise ConfigError("run= and predictions= are both set: evaluate a run, or a file of scores")
            return
        for name in ("choices", "positive", "classes", "threshold", "grades"):
            if getattr(self, name):
                raise ConfigError(f"{name}={getattr(self, name)} belongs to predictions=FILE: set that, or remove it")

    def _check_views(self) -> None:
        check_choice("views", self.views, ("center", "dense", "multicrop", "both"))
        check_range("crops_per_side", self.crops_per_side, low=2, high=20)
        for scale in self.scales:
            check_range("scales", scale, low=8, high=8192)
        if self.crops_per_side != 5 and self.views not in ("multicrop", "both"):
            raise ConfigError(f"crops_per_side={self.crops_per_side}: only views=multicrop and both have crops")
        if (self.robustness or self.shortcuts) and (self.views != "center" or self.scales or self.flips):
            raise ConfigError("robustness and shortcuts are measured on the middle of each image: leave views out")


FORMATS = ("parquet", "csv", "json", "jsonl")
"""What predictions are written as, each named as the suffix of its files."""


@dataclass(slots=True)
class PredictJob:
    """python -m medcls.predict: one or several runs and raw images to a table of scores."""

    run: Any = setting(None, "Run folder to predict with; [DIR,DIR] averages several runs.", kind=PATH, common=True)
    source: str | None = None
    out: str | None = None
    clinical_file: str | None = None
    boxes: str | None = None
    # Folder of frozen choices: the out= of `evaluate run=[A,B]`; null = as frozen in the run, and of several none.
    choices: str | None = None
    format: str | None = None
    out_of_domain: str = "refuse"
    batch_size: int = 64
    device: str = "auto"
    precision: str = "auto"
    workers: int = -1
    deidentify: DeidentifyConfig = field(default_factory=DeidentifyConfig)

    def __post_init__(self) -> None:
        _check_runs(self.run)
        if self.format is not None:
            check_choice("format", self.format, FORMATS)
        check_choice("out_of_domain", self.out_of_domain, ("refuse", "note", "allow"))
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        check_range("batch_size", self.batch_size, low=1)
        check_range("workers", self.workers, low=-1, high=256)

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
                f"format={self.format} with out={self.out}: set out= to a .{self.format} file, or leave format out"
            )
        return suffix


@dataclass(slots=True)
class ExplainJob:
    """python -m medcls.explain: run and store to maps of where the answers come from, and whether they are true."""

    run: str | None = None
    store: str | None = None
    split: str = "val"
    out: str | None = None
    method: str = "gradcam"
    images: list[str] = field(default_factory=list)
    worst: int = 20
    target: str = "auto"
    stage: str | None = None
    background: str = "auto"
    superpixels: str = "slic"
    num_superpixels: int = 50
    num_samples: int = 1000
    num_features: int | None = 10
    steps: int = 64
    window: float = 0.15
    boxes: str | None = None
    # Ids of images on the page; they may be paths (deidentify=declared).
    show_ids: bool = False
    curves: bool = True
    sanity_images: int = 5
    batch_size: int = 64
    device: str = "auto"
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("split", self.split, (*SPLITS, "all"))
        check_choice("method", self.method, ("lime", "gradcam", "gradcam++", "integrated_gradients", "occlusion"))
        check_choice("background", self.background, ("auto", "blur", "mean", "black", "segment"))
        check_choice("superpixels", self.superpixels, ("slic", "quickshift", "grid"))
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        check_range("worst", self.worst, low=1, high=1000)
        check_range("num_superpixels", self.num_superpixels, low=2, high=5000)
        check_range("num_samples", self.num_samples, low=10)
        check_range("steps", self.steps, low=1)
        check_range("window", self.window, low=0, high=0.9, open_low=True)
        check_range("sanity_images", self.sanity_images, low=0)
        check_range("batch_size", self.batch_size, low=1)
        check_range("seed", self.seed, low=0)
        if self.num_features is not None:
            check_range("num_features", self.num_features, low=1)
        if self.background == "segment" and self.method != "lime":
            raise ConfigError(f"background=segment: only method=lime has superpixels, this is {self.method}")
        if self.stage is not None and not self.method.startswith("gradcam"):
            raise ConfigError(f"stage={self.stage}: only method=gradcam and gradcam++ look into a stage")


@dataclass(slots=True)
class ShowJob:
    """python -m data_prep.show: store to a contact sheet."""

    store: str | None = None
    out: str | None = None
    per_class: int = 8
    label: str = "label"
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        check_range("per_class", self.per_class, low=1, high=64)
