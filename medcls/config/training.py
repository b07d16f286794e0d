"""The schema of train: a store to a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from medcls.config.checks import check_range
from medcls.config.machine import device_setting, precision_setting, seed_setting, workers_setting
from medcls.config.model import ModelConfig, TransferConfig
from medcls.config.schema import PATH, check_settings, setting
from medcls.config.task import AugmentConfig, ClinicalConfig, CropConfig, SplitChoice, TaskConfig
from medcls.config.trainer import CheckpointConfig, OptimizerConfig, ScheduleConfig, TrainerConfig
from medcls.errors import ConfigError
from medcls.kinds import KINDS


@dataclass(slots=True)
class TrainJob:
    """python -m medcls.train: store to run."""

    store: str | None = setting(None, "Store to train on, as data_prep wrote it; required.", kind=PATH, common=True)
    run: str | None = setting(
        None,
        "Folder for the model and its logs; an interrupted run in it is resumed; required.",
        kind=PATH,
        common=True,
    )
    seed: int = seed_setting("the initial weights, the order of images and the augmentation")
    precision: str = precision_setting()
    device: str = device_setting()
    weights_dir: str | None = setting(
        None,
        "Folder with files of ImageNet weights, for machines without a network; null takes $MEDCLS_WEIGHTS_DIR, "
        "torch's cache, or a download.",
        kind=PATH,
        common=True,
    )
    workers: int = workers_setting()
    demo: bool = setting(False, "Make the synthetic demo store first if it is missing; for experiment=demo.")
    baseline: bool = setting(
        True, "Also fit a linear model of coarse voxels on volumes, which each evaluation compares the network with."
    )
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
        check_settings(self)
        # BatchNorm cannot take a batch of one.
        check_range("trainer.batch_size", self.trainer.batch_size, low=2)
        self._check_views()
        if self.model.name == "clinical" and not self.clinical.columns:
            raise ConfigError("model=clinical takes no images: set clinical.categorical=[…] or clinical.numeric=[…]")
        if self.model.head == "svm":
            self._check_svm()
        if self.transfer.kind == "scratch" and self.model.weights is not None:
            raise ConfigError(
                f"transfer=scratch with model.weights={self.model.weights}: scratch starts from random weights; "
                "remove model.weights, or set transfer=finetune"
            )

    @property
    def varies(self) -> bool:
        """Whether a training image is another one in every epoch: augmented, or cropped at random."""
        return self.augmented.varies or self.crop.size is not None

    @property
    def augmented(self) -> AugmentConfig:
        """augment.*, with augment=auto as none if the features are to be computed once and the head solved on them."""
        once = self.transfer.kind == "frozen" and self.transfer.views is None and self.transfer.features != "live"
        left_to_us = self.augment.auto and not self.augment.transforms and self.model.head in ("auto", "svm")
        return AugmentConfig(sides=self.augment.sides) if once and left_to_us else self.augment

    def _check_views(self) -> None:
        views = self.transfer.views
        if views is not None and not self.varies:
            raise ConfigError(
                f"transfer.views={views}: without augmentation and random crops there is only one view: remove it"
            )
        if self.transfer.features == "cached" and self.varies and views is None:
            raise ConfigError(
                "transfer.features=cached with augmentation or random crops: set how many views of each image are kept "
                "(transfer.views=10), or set augment=none crop=none"
            )

    def _check_svm(self) -> None:
        if not KINDS[self.task.kind].unordered:
            raise ConfigError(f"model.head=svm with task.kind={self.task.kind}: only binary and multiclass have it")
        if self.transfer.kind != "frozen":
            raise ConfigError(
                f"model.head=svm with transfer={self.transfer.kind}: it is solved on fixed features: train another "
                "head first, then set model.weights=RUN transfer=frozen model.head=svm transfer.val_seen=allow"
            )
        if self.transfer.features == "live" or (self.varies and self.transfer.views is None):
            raise ConfigError(
                "model.head=svm is solved on fixed views of the images: set augment=none crop=none, or "
                "transfer.views=K, and remove transfer.features"
            )
        if self.clinical.columns:
            raise ConfigError("model.head=svm takes only images: remove clinical.*, or set model.head=linear or mlp")
        names = ("loss", "label_smoothing", "class_weights", "sampler")
        changed = [name for name in names if getattr(self.task, name) != getattr(TaskConfig(), name)]
        if changed:
            raise ConfigError(
                f"task.{changed[0]}={getattr(self.task, changed[0])} has no effect on model.head=svm, which has a "
                "squared hinge loss and balanced classes: remove it"
            )
