"""The schema of training: a store to a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from medcls.config.checks import check_choice, check_file_name, check_range
from medcls.errors import ConfigError

TASKS = ("binary", "multiclass", "multilabel", "ordinal", "regression")
_HEAD_WIDTH = 256
# The loss of an ordinal task decides what its outputs are.
_ORDINAL = {"corn": "corn", "cross_entropy": "softmax", "focal": "softmax", "joint": "joint"}


@dataclass(slots=True)
class SplitChoice:
    """Which of a store's split files training uses."""

    name: str = "default"

    def __post_init__(self) -> None:
        check_file_name("split.name", self.name)


@dataclass(slots=True)
class ModelConfig:
    """conf/model: the network and where its weights come from."""

    name: str = "resnet18"
    weights: str | None = "imagenet"
    weights_sha256: str | None = None
    dropout: float = 0.0
    normalize: str = "auto"
    supervision: list[float] = field(default_factory=list)
    planes: str = "axial"
    num_slices: int = 0
    pooling: str = "mean"
    head: str = "linear"
    head_width: int = _HEAD_WIDTH
    init: str = "full"
    init_to: str | None = None
    width: float = 0.5

    def __post_init__(self) -> None:
        check_choice("model.head", self.head, ("linear", "mlp", "svm"))
        check_range("model.head_width", self.head_width, low=1, high=65536)
        self._check_init()
        check_choice("model.planes", self.planes, ("axial", "orthogonal"))
        check_choice("model.pooling", self.pooling, ("mean", "attention"))
        check_range("model.num_slices", self.num_slices, low=0)
        self._check_effects()
        check_choice("model.normalize", self.normalize, ("auto", "stored", "min_max", "z_score"))
        check_range("model.dropout", self.dropout, low=0, high=0.95)

    def _check_init(self) -> None:
        check_choice("model.init", self.init, ("full", "mean_var", "hybrid", "shallower"))
        check_range("model.width", self.width, low=0, high=1, open_low=True)
        if self.init != "full" and self.weights is None:
            raise ConfigError(f"model.init={self.init} needs model.weights=: imagenet, a run's folder or a file")
        if (self.init == "hybrid") != (self.init_to is not None):
            raise ConfigError(
                f"model.init={self.init} with model.init_to={self.init_to}: model.init=hybrid, and it alone, takes the "
                "last stage that stays pretrained (model.init_to=layer2)"
            )

    def _check_effects(self) -> None:
        """A setting that this network does not have would be without effect."""
        if self.name == "clinical" and self.weights is not None:
            raise ConfigError(f"model.weights={self.weights}: model=clinical has no network to load them into")
        if self.head != "mlp" and self.head_width != _HEAD_WIDTH:
            raise ConfigError(f"model.head_width={self.head_width}: only model.head=mlp has it, not {self.head}")
        if not self.name.startswith("slices_"):
            for key, default in (("planes", "axial"), ("num_slices", 0), ("pooling", "mean")):
                if getattr(self, key) != default:
                    raise ConfigError(f"model.{key}={getattr(self, key)}: only slices_NAME has it, not {self.name}")
        if self.planes == "orthogonal" and self.num_slices:
            raise ConfigError(f"model.num_slices={self.num_slices}: model.planes=orthogonal has three, always")
        if not self.supervision:
            return
        if self.name != "acnn3d" or len(self.supervision) != 2:
            raise ConfigError(
                f"model.supervision={self.supervision}: expected [FC1, FC2], the weights of the two heads of acnn3d; "
                f"[] trains the last alone (model.name={self.name})"
            )
        for weight in self.supervision:
            check_range("model.supervision", weight, low=0)
        check_range("model.supervision, the last", self.supervision[-1], low=0, open_low=True)


@dataclass(slots=True)
class TransferConfig:
    """conf/transfer: what of the network is trained, and how fast."""

    kind: str = "finetune"
    layer_decay: float = 1.0
    batchnorm: str = "train"
    train_from: str | None = None
    thaw_every: int = 1
    features: str = "auto"
    views: int | None = None
    val_seen: str = "refuse"

    def __post_init__(self) -> None:
        check_choice("transfer.kind", self.kind, ("scratch", "frozen", "partial", "finetune", "gradual"))
        check_range("transfer.thaw_every", self.thaw_every, low=1)
        if self.kind == "partial" and self.train_from is None:
            raise ConfigError("transfer=partial: say transfer.train_from=STAGE (resnet: layer4; vgg: block5, fc6 …)")
        if self.kind not in ("partial", "gradual") and self.train_from is not None:
            raise ConfigError(
                f"transfer.train_from={self.train_from}: transfer={self.kind} has none; take partial or gradual"
            )
        check_range("transfer.layer_decay", self.layer_decay, low=0, high=1, open_low=True)
        check_choice("transfer.batchnorm", self.batchnorm, ("train", "frozen"))
        check_choice("transfer.val_seen", self.val_seen, ("refuse", "allow"))
        check_choice("transfer.features", self.features, ("auto", "cached", "live"))
        if self.views is not None:
            check_range("transfer.views", self.views, low=1, high=1000)
            if self.features == "live":
                raise ConfigError(f"transfer.views={self.views}: transfer.features=live makes every epoch anew")


@dataclass(slots=True)
class TaskConfig:
    """conf/task: which labels make which classes, the loss and the validation metric."""

    kind: str = "multiclass"
    label: str = "label"
    labels: list[str] = field(default_factory=list)
    classes: dict[Any, int] = field(default_factory=dict)
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
        if self.sampler == "balanced" and self.kind == "regression" and not self.grades:
            raise ConfigError("task.sampler=balanced: task.kind=regression has no classes to balance (grades do)")
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
        if len(self.scales) != 2 or self.scales[0] > self.scales[1]:
            raise ConfigError(f"crop.scales={self.scales}: expected [smallest, largest] shortest side in pixels")
        check_range("crop.scales", self.scales[0], low=8)
        check_range("crop.scales", self.scales[1], high=8192)
        if self.size is not None:
            check_range("crop.size", self.size, low=8, high=self.scales[0])
        elif self.scales[0] < self.scales[1]:
            raise ConfigError(f"crop.scales={self.scales} with crop.size=null: images of one batch need one size")


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
    baseline: bool = True
    split: SplitChoice = field(default_factory=SplitChoice)
    model: ModelConfig = field(default_factory=ModelConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    crop: CropConfig = field(default_factory=CropConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    clinical: ClinicalConfig = field(default_factory=ClinicalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check_range("seed", self.seed, low=0)
        check_range("workers", self.workers, low=-1, high=256)
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        # BatchNorm cannot take a batch of one.
        check_range("trainer.batch_size", self.trainer.batch_size, low=2)
        self._check_views()
        if self.model.name == "clinical" and not self.clinical.columns:
            raise ConfigError("model=clinical takes no images: say clinical.categorical=[…] or clinical.numeric=[…]")
        if self.model.head == "svm":
            self._check_svm()
        if self.transfer.kind == "scratch" and self.model.weights is not None:
            raise ConfigError(
                f"transfer=scratch with model.weights={self.model.weights}: scratch starts from random weights; "
                "leave model.weights out, or take transfer=finetune"
            )

    @property
    def varies(self) -> bool:
        """Whether a training image is another one in every epoch: augmented, or cropped at random."""
        return bool(self.augment.transforms) or self.crop.size is not None

    def _check_views(self) -> None:
        views = self.transfer.views
        if views is not None and not self.varies:
            raise ConfigError(
                f"transfer.views={views}: without augmentation and random crops there is one view only; leave it out"
            )
        if self.transfer.features == "cached" and self.varies and views is None:
            raise ConfigError(
                "transfer.features=cached with augmentation or random crops: say how many views of each image are kept "
                "(transfer.views=10), or augment=none crop=none"
            )

    def _check_svm(self) -> None:
        if self.task.kind not in ("binary", "multiclass"):
            raise ConfigError(f"model.head=svm with task.kind={self.task.kind}: only binary and multiclass have it")
        if self.transfer.kind != "frozen":
            raise ConfigError(
                f"model.head=svm with transfer={self.transfer.kind}: it is solved on features that stand still; train "
                "another head first, then model.weights=RUN transfer=frozen model.head=svm transfer.val_seen=allow"
            )
        if self.transfer.features == "live" or (self.varies and self.transfer.views is None):
            raise ConfigError(
                "model.head=svm is solved on fixed views of the images: say augment=none crop=none, or "
                "transfer.views=K, and leave transfer.features out"
            )
        if self.clinical.columns:
            raise ConfigError("model.head=svm takes images alone: leave clinical.* out, or take linear or mlp")
        names = ("loss", "label_smoothing", "class_weights", "sampler")
        changed = [name for name in names if getattr(self.task, name) != getattr(TaskConfig(), name)]
        if changed:
            raise ConfigError(
                f"task.{changed[0]}={getattr(self.task, changed[0])} has no effect on model.head=svm, which has a "
                "squared hinge loss and balanced classes: leave it out"
            )
