"""The schema of every command: one slotted dataclass for each conf/ group, checked when it is built.

`load(cfg)` is the border: below it there are only these plain objects, never a DictConfig.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from medcls.errors import ConfigError

TASKS = ("binary", "multiclass", "multilabel", "ordinal", "regression")
SPLITS = ("train", "val", "test")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns " (nearest: x)" for the known name most like `name`, or "" where none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (nearest: {matches[0]})" if matches else ""


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raises ConfigError where `value` is not one of `known`, with the nearest of them."""
    known = list(known)
    if value not in known:
        raise ConfigError(f"{name}={value}: expected one of {', '.join(known)}{nearest(str(value), known)}")


def check_range(
    name: str, value: float, *, low: float | None = None, high: float | None = None, open_low: bool = False
) -> None:
    """Raises ConfigError where `value` is not finite or lies outside [low, high] ((low, high] if open_low)."""
    below = low is not None and (value < low or (open_low and value == low))
    above = high is not None and value > high
    if below or above or not math.isfinite(value):
        bounds = [f"{'>' if open_low else '>='} {low:g}" if low is not None else ""]
        bounds.append(f"<= {high:g}" if high is not None else "")
        raise ConfigError(f"{name}={value}: expected {' and '.join(b for b in bounds if b)}")


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
    percentiles: list[float] = field(default_factory=lambda: [0.5, 99.5])
    window_index: int = 0
    windows_hu: list[Any] = field(default_factory=list)
    patient_axes: bool = False
    nifti_unit: str = ""
    max_voxels: int = 1 << 28
    burnt_in: str = "refuse"
    mask_boxes: list[list[int]] = field(default_factory=list)
    keep_box: list[int] | None = None

    def __post_init__(self) -> None:
        check_choice("image.kind", self.kind, ("image", "volume"))
        check_choice("image.fit", self.fit, ("pad", "crop", "stretch"))
        check_choice("image.burnt_in", self.burnt_in, ("refuse", "allow", "ultrasound_regions"))
        sizes, axes = self.sizes, 3 if self.kind == "volume" else 2
        if not all(isinstance(n, int) and 8 <= n <= 8192 for n in sizes) or len(sizes) != axes:
            expected = "[depth, height, width]" if axes == 3 else "[height, width]"
            raise ConfigError(f"image.size={self.size}: expected a number or {expected}, 8 to 8192 pixels")
        if self.kind == "image":
            self._check_image()
        low, high = self.percentiles if len(self.percentiles) == 2 else (1.0, 0.0)
        if not 0 <= low < high <= 100:
            raise ConfigError(f"image.percentiles={self.percentiles}: expected [low, high] within 0 to 100")
        if not all(isinstance(window, str) or _is_window(window) for window in self.windows_hu):
            raise ConfigError(f"image.windows_hu={self.windows_hu}: expected [[center, width > 1], …] in HU, or names")

    @property
    def sizes(self) -> list[int]:
        """One size an axis."""
        return self.size if isinstance(self.size, list) else [self.size] * (3 if self.kind == "volume" else 2)

    def _check_image(self) -> None:
        check_choice("image.dtype", self.dtype, ("uint8", "uint16"))
        check_choice("image.intensity", self.intensity, ("display", "minmax", "percentile"))
        if self.channels not in (1, 3):
            raise ConfigError(f"image.channels={self.channels}: expected 1 (grey) or 3 (colour)")
        if self.spacing_mm is not None or self.patient_axes:
            raise ConfigError("image.spacing_mm and image.patient_axes are of volumes: image=ct_volume or mr_volume")
        check_range("image.window_index", self.window_index, low=0)
        if self.windows_hu and len(self.windows_hu) != self.channels:
            raise ConfigError(
                f"image.windows_hu has {len(self.windows_hu)} windows: expected image.channels={self.channels}"
            )


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
    near_duplicate_bits: int = 48
    near_duplicate_correlation: float = 0.95

    def __post_init__(self) -> None:
        check_range("split.test", self.test, low=0, high=0.9)
        check_range("split.val", self.val, low=0, high=0.9)
        check_range("split.test + split.val", self.test + self.val, low=0, high=0.95)
        check_range("split.seed", self.seed, low=0)
        check_choice("split.on_leak", self.on_leak, ("refuse", "drop", "report"))
        check_choice("split.on_missing", self.on_missing, ("refuse", "report"))
        check_range("split.near_duplicate_bits", self.near_duplicate_bits, low=0, high=255)
        check_range("split.near_duplicate_correlation", self.near_duplicate_correlation, low=0.5, high=1)
        check_file_name("split.name", self.name)


@dataclass(slots=True)
class SplitChoice:
    """Which of a store's split files training uses."""

    name: str = "default"

    def __post_init__(self) -> None:
        check_file_name("split.name", self.name)


def check_file_name(name: str, value: str) -> None:
    """Raises ConfigError where `value` cannot be a plain file name."""
    if not value or value != Path(value).name or value.startswith("."):
        raise ConfigError(f"{name}={value}: expected a plain name without / and leading dots")


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
class ModelConfig:
    """conf/model: the network and where its weights come from."""

    name: str = "resnet18"
    weights: str | None = "imagenet"
    weights_sha256: str | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_range("model.dropout", self.dropout, low=0, high=0.95)


@dataclass(slots=True)
class TransferConfig:
    """conf/transfer: what of the network is trained, and how fast."""

    kind: str = "finetune"
    layer_decay: float = 1.0
    batchnorm: str = "train"

    def __post_init__(self) -> None:
        check_choice("transfer.kind", self.kind, ("scratch", "frozen", "finetune"))
        check_range("transfer.layer_decay", self.layer_decay, low=0, high=1, open_low=True)
        check_choice("transfer.batchnorm", self.batchnorm, ("train", "frozen"))


@dataclass(slots=True)
class TaskConfig:
    """conf/task: which labels make which classes, the loss and the validation metric."""

    kind: str = "multiclass"
    label: str = "label"
    labels: list[str] = field(default_factory=list)
    classes: dict[Any, int] = field(default_factory=dict)
    grades: bool = False
    loss: str = "auto"
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
            "ordinal": ("auto", "corn"),
            "regression": ("auto", "mse", "mae", "huber"),
        }
        check_choice(f"task.loss (of task.kind={self.kind})", self.loss, losses[self.kind])
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
        if self.sampler == "balanced" and self.kind == "regression" and not self.grades:
            raise ConfigError("task.sampler=balanced: task.kind=regression has no classes to balance (grades do)")
        if self.classes:
            self._check_classes(self.classes)

    def _check_classes(self, classes: dict[Any, int]) -> None:
        indices = sorted(set(classes.values()))
        if indices != list(range(len(indices))) or len(indices) < 2:
            raise ConfigError(f"task.classes={classes}: expected indices 0, 1, … without a gap, at least two")
        if self.kind == "binary" and len(indices) != 2:
            raise ConfigError(f"task.classes={classes}: task.kind=binary takes the indices 0 and 1")


@dataclass(slots=True)
class AugmentConfig:
    """conf/augment: albumentations transforms by name, in order: {Name: {argument: value}}."""

    transforms: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class OptimizerConfig:
    """conf/optimizer."""

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_choice("optimizer.name", self.name, ("sgd", "adam", "adamw"))
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
    compile: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_range("trainer.epochs", self.epochs, low=1)
        check_range("trainer.batch_size", self.batch_size, low=2)
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


@dataclass(slots=True)
class LimitsConfig:
    """What decoding one image may use; null = 2 GiB and 60 s for images, 6 GiB and 600 s for volumes."""

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
class TrainJob:
    """python -m medcls.train: store to run."""

    store: str | None = None
    run: str | None = None
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    weights_dir: str | None = None
    workers: int = -1
    demo: bool = False
    split: SplitChoice = field(default_factory=SplitChoice)
    model: ModelConfig = field(default_factory=ModelConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        check_range("seed", self.seed, low=0)
        check_range("workers", self.workers, low=-1, high=256)
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        if self.transfer.kind == "scratch" and self.model.weights is not None:
            raise ConfigError(
                f"transfer=scratch with model.weights={self.model.weights}: scratch starts from random weights; "
                "leave model.weights out, or take transfer=finetune"
            )


@dataclass(slots=True)
class EvaluateJob:
    """python -m medcls.evaluate: run and store to report."""

    run: str | None = None
    store: str | None = None
    split: str = "val"
    out: str | None = None
    batch_size: int = 64
    device: str = "auto"
    precision: str = "auto"
    workers: int = -1
    replicates: int = 2000
    seed: int = 0
    # Chosen on the validation split and frozen there; null = as frozen, or else the defaults.
    sensitivity_at_least: list[float] | None = None
    specificity_at_least: list[float] | None = None
    miss_costs: list[float] | None = None
    alpha: float | None = None
    prevalences: list[float] = field(default_factory=list)
    subgroups: list[str] = field(default_factory=lambda: ["sex", "age", "manufacturer", "modality", "side"])
    least_patients: int = 20
    against: str | None = None
    gallery: int = 12
    robustness: bool = False
    shortcuts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_choice("split", self.split, (*SPLITS, "all"))
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        check_range("batch_size", self.batch_size, low=1)
        check_range("workers", self.workers, low=-1, high=256)
        check_range("replicates", self.replicates, low=100)
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


@dataclass(slots=True)
class PredictJob:
    """python -m medcls.predict: one or several runs and raw images to a table of scores."""

    run: Any = None
    source: str | None = None
    out: str | None = None
    format: str = "parquet"
    out_of_domain: str = "refuse"
    batch_size: int = 64
    device: str = "auto"
    precision: str = "auto"
    workers: int = -1
    deidentify: DeidentifyConfig = field(default_factory=DeidentifyConfig)

    def __post_init__(self) -> None:
        if self.run is not None and not self.runs:
            raise ConfigError(f"run={self.run}: expected a run folder, or several as run=[A,B]")
        check_choice("format", self.format, ("parquet", "json"))
        check_choice("out_of_domain", self.out_of_domain, ("refuse", "allow"))
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        check_range("batch_size", self.batch_size, low=1)
        check_range("workers", self.workers, low=-1, high=256)

    @property
    def runs(self) -> list[Path]:
        """The run folders. The command line hands over run=[A,B] as it was typed: paths need no quoting there."""
        typed = self.run if isinstance(self.run, list) else [self.run or ""]
        if isinstance(self.run, str) and self.run.startswith("[") and self.run.endswith("]"):
            typed = self.run[1:-1].split(",")
        return [Path(str(item).strip()).expanduser() for item in typed if str(item).strip()]


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


SCHEMAS: dict[str, type] = {
    "index": IndexJob,
    "train": TrainJob,
    "prepare": PrepareJob,
    "merge": PrepareJob,
    "evaluate": EvaluateJob,
    "show": ShowJob,
    "predict": PredictJob,
    "explain": ExplainJob,
}


def register_schemas() -> None:
    """Makes each schema known to Hydra as `<name>_schema`, the first entry of conf/<name>.yaml's defaults."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)


def conf_folder() -> Path:
    """Returns conf/: beside the package in a checkout, inside it in a wheel.

    Raises:
        ConfigError: neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError("conf/ is missing beside and inside the medcls package: install medcls again")


def load(cfg: DictConfig) -> Any:
    """Returns the plain, checked dataclass (TrainJob, PrepareJob, …) of a composed configuration.

    Raises:
        ConfigError: a value is out of range or contradicts another.
    """
    return OmegaConf.to_object(cfg)
