"""The schema of data_prep: raw files to a store."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from medcls.config.checks import (
    check_choice,
    check_file_name,
    check_grey_range,
    check_image,
    check_percentiles,
    check_range,
    check_sides,
)
from medcls.config.labelling import LabellingConfig
from medcls.errors import ConfigError


@dataclass(slots=True)
class ImageConfig:
    """conf/image: how one file becomes one stored array (imaging.preprocess.PreprocessSpec)."""

    kind: str = "image"
    size: Any = 224
    spacing_mm: Any = None
    channels: int = 1
    dtype: str = "uint8"
    fit: str = "pad"
    intensity: str = "display"
    range: list[float] | None = None
    few_levels: str = "refuse"
    implausible_hu: str = "refuse"
    # A coded stream that its decoder calls corrupt and decodes all the same.
    damaged: str = "refuse"
    # A file that the disk does not give, after four tries.
    unreadable: str = "stop"
    presentation: str | None = None
    percentiles: list[float] = field(default_factory=lambda: [0.5, 99.5])
    window_index: int = 0
    windows_hu: list[Any] = field(default_factory=list)
    patient_axes: bool = False
    nifti_unit: str = ""
    analyze_axes: str = ""
    nifti_affine: str = "auto"
    nifti_volume: int | None = None
    crop_margin_mm: float | None = None
    max_voxels: int = 1 << 28
    burnt_in: str = "refuse"
    mask_boxes: list[list[int]] = field(default_factory=list)
    keep_box: list[int] | None = None

    def __post_init__(self) -> None:
        check_choice("image.kind", self.kind, ("image", "volume"))
        check_choice("image.few_levels", self.few_levels, ("refuse", "allow"))
        if self.presentation is not None:
            check_choice("image.presentation", self.presentation, ("presentation", "processing", "any"))
        check_choice("image.damaged", self.damaged, ("refuse", "allow"))
        check_choice("image.unreadable", self.unreadable, ("stop", "quarantine"))
        check_choice("image.burnt_in", self.burnt_in, ("refuse", "allow", "ultrasound_regions"))
        sizes, axes = self.sizes, 3 if self.kind == "volume" else 2
        if len(sizes) != axes:
            expected = "[depth, height, width]" if axes == 3 else "[height, width]"
            raise ConfigError(f"image.size={self.size}: expected a number or {expected}")
        check_sides("image.size", sizes, given=self.size)
        if self.kind == "image":
            check_image(self)
            if self.spacing_mm is not None or self.patient_axes:
                raise ConfigError("image.spacing_mm and image.patient_axes apply only to volumes: set image=mr_volume")
        else:
            check_grey_range(self)
            check_percentiles("image.percentiles", self.percentiles)
        if not all(isinstance(window, str) or _is_window(window) for window in self.windows_hu):
            raise ConfigError(f"image.windows_hu={self.windows_hu}: expected [[center, width > 1], …] in HU, or names")

    @property
    def sizes(self) -> list[int]:
        """One size an axis."""
        return self.size if isinstance(self.size, list) else [self.size] * (3 if self.kind == "volume" else 2)


def _is_window(window: Any) -> bool:
    # OmegaConf's list[list[float]] refuses [[40, 400]]: the numbers are whole.
    numbers = isinstance(window, list) and all(isinstance(n, int | float) and math.isfinite(n) for n in window)
    return numbers and len(window) == 2 and window[1] > 1


@dataclass(slots=True)
class SplitConfig:
    """conf/split: how patients are divided, and what happens when a leak is found."""

    name: str = "default"
    test: float = 0.2
    val: float = 0.1
    seed: int = 0
    on_leak: str = "refuse"
    on_missing: str = "refuse"
    # One image under several labels: refuse, leave out all its copies (drop), or keep them (report).
    on_contradiction: str = "refuse"
    # Store, or STORE/splits/NAME.json, whose patients stay where they were.
    extends: str | None = None
    # Patients who share an image count as one, in the split, its folds and intervals.
    merge_linked: bool = False
    near_duplicate_bits: int = 48
    near_duplicate_correlation: float = 0.95

    def __post_init__(self) -> None:
        check_range("split.test", self.test, low=0, high=0.9)
        check_range("split.val", self.val, low=0, high=0.9)
        check_range("split.test + split.val", self.test + self.val, low=0, high=0.95)
        check_range("split.seed", self.seed, low=0)
        check_choice("split.on_leak", self.on_leak, ("refuse", "drop", "report"))
        check_choice("split.on_missing", self.on_missing, ("refuse", "report"))
        check_choice("split.on_contradiction", self.on_contradiction, ("refuse", "drop", "report"))
        check_range("split.near_duplicate_bits", self.near_duplicate_bits, low=0, high=255)
        check_range("split.near_duplicate_correlation", self.near_duplicate_correlation, low=0.5, high=1)
        check_file_name("split.name", self.name)


@dataclass(slots=True)
class PatientConfig:
    """How a patient is found in a file's path where there is no labels.csv."""

    pattern: str | None = None


@dataclass(slots=True)
class DeidentifyConfig:
    """conf/deidentify: keyed pseudonyms (hmac) or the ids as declared in the labels file."""

    kind: str = "auto"
    key_file: str | None = None

    def __post_init__(self) -> None:
        check_choice("deidentify", self.kind, ("auto", "hmac", "declared"))


@dataclass(slots=True)
class SeriesConfig:
    """Which series become volumes (imaging.selection.SeriesRule, which checks the values)."""

    modality: list[str] = field(default_factory=list)
    description: str = ""
    image_type: list[str] = field(default_factory=list)
    not_image_type: list[str] = field(default_factory=list)
    body_part: list[str] = field(default_factory=list)
    plane: list[str] = field(default_factory=list)
    min_slices: int = 1
    max_slices: int | None = None
    per_study: str = "all"


@dataclass(slots=True)
class StackConfig:
    """What is done about irregular slices (imaging.geometry.StackRule, which checks the values)."""

    gap: str = "refuse"
    jitter: str = "refuse"
    mixed_spacing: str = "refuse"
    tilt: str = "shear"
    duplicate: str = "refuse"
    tolerance: float = 0.01
    max_gap_mm: float = 10.0
    min_slices: int = 3
    parts: str = "join"


@dataclass(slots=True)
class LimitsConfig:
    """What decoding one image may use; null = 2 GiB and 60 s of processor time, of volumes 6 GiB and 600 s."""

    memory_gib: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.memory_gib is not None:
            check_range("limits.memory_gib", self.memory_gib, low=0.1, high=1024)
        if self.seconds is not None:
            check_range("limits.seconds", self.seconds, low=0.1, high=86400)


@dataclass(slots=True)
class ShardConfig:
    """How the work is cut: this job's share of the store's shards, and how many images a shard holds at most."""

    index: int = 0
    count: int = 1
    rows: int = 4096

    def __post_init__(self) -> None:
        check_range("shard.count", self.count, low=1)
        check_range("shard.index", self.index, low=0, high=self.count - 1)
        check_range("shard.rows", self.rows, low=1, high=1 << 20)


@dataclass(slots=True)
class PrepareJob:
    """python -m data_prep: raw files to a store."""

    source: str | None = None
    labels: str | None = None
    store: str | None = None
    reuse: str | None = None
    index: str | None = None
    patients: str = "declared"
    patient_id: PatientConfig = field(default_factory=PatientConfig)
    labelling: LabellingConfig = field(default_factory=LabellingConfig)
    columns: list[str] = field(default_factory=list)
    compare: list[str] = field(default_factory=lambda: ["patient", "study", "sex", "age", "side"])
    workers: int = -1
    executor: str = "local"
    max_quarantined: float = 0.05
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    series: SeriesConfig = field(default_factory=SeriesConfig)
    stack: StackConfig = field(default_factory=StackConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    deidentify: DeidentifyConfig = field(default_factory=DeidentifyConfig)

    def __post_init__(self) -> None:
        check_choice("patients", self.patients, ("declared", "per_image"))
        check_choice("executor", self.executor, ("local", "ray"))
        if self.image.kind == "image":
            for name, given, default in (("series", self.series, SeriesConfig()), ("stack", self.stack, StackConfig())):
                if given != default:
                    raise ConfigError(f"{name}.*: rules of volumes, and image.kind=image: image=ct_volume or mr_volume")
        for name in self.compare:
            check_choice("compare", name, ("patient", "study", "sex", "age", "side"))
        check_range("workers", self.workers, low=-1, high=256)
        check_range("max_quarantined", self.max_quarantined, low=0, high=1)


@dataclass(slots=True)
class IndexJob:
    """python -m data_prep.index: what a folder holds, from the headers alone."""

    source: str | None = None
    out: str | None = None
    workers: int = -1
    lines: int = 40

    def __post_init__(self) -> None:
        check_range("workers", self.workers, low=-1, high=256)
        check_range("lines", self.lines, low=0)
