"""The schema of pretraining: a store of volumes to an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass, field

from medcls.config.machine import device_setting, precision_setting, seed_setting, workers_setting
from medcls.config.model import ModelConfig
from medcls.config.schema import PATH, check_settings, setting
from medcls.config.task import AugmentConfig, SplitChoice
from medcls.config.trainer import CheckpointConfig, OptimizerConfig, ScheduleConfig, TrainerConfig
from medcls.errors import ConfigError


@dataclass(slots=True)
class CorruptionConfig:
    """What is done to a volume that the autoencoder has to undo."""

    kind: str = setting(
        "none",
        "Damage to undo: none, Gaussian noise, blanked blocks, or boxes filled with noise.",
        choices=("none", "noise", "mask", "inpaint"),
    )
    noise_std: float = setting(
        0.1, "Standard deviation of the noise, as a share of the volume's range.", low=0, high=10, open_low=True
    )
    mask_ratio: float = setting(
        0.5,
        "Share of the blocks that corruption=mask blanks; raise it to make the task harder.",
        low=0,
        high=0.95,
        open_low=True,
    )
    mask_size: int = setting(8, "Side of a blanked block.", low=1, unit="voxels")
    max_boxes: int = setting(5, "Most boxes that corruption=inpaint fills in a volume.", low=1, high=100)

    def __post_init__(self) -> None:
        check_settings(self, "corruption")


@dataclass(slots=True)
class PatchConfig:
    """The part of a volume that is seen at a time."""

    size: list[int] = setting(
        [],
        "[depth,height,width] of a random part of each volume; [] takes whole volumes.",
        low=1,
        unit="voxels",
        common=True,
    )

    def __post_init__(self) -> None:
        check_settings(self, "patch")
        if self.size and len(self.size) != 3:
            raise ConfigError(f"patch.size={self.size}: expected [depth, height, width], or [] for whole volumes")


@dataclass(slots=True)
class PretrainJob:
    """python -m medcls.pretrain: store to run, without labels."""

    store: str | None = setting(
        None,
        "Store of volumes to learn from, labelled or not, as data_prep wrote it; required.",
        kind=PATH,
        common=True,
    )
    run: str | None = setting(
        None,
        "Folder for the autoencoder and its logs; an interrupted run in it is resumed; required.",
        kind=PATH,
        common=True,
    )
    seed: int = seed_setting("the initial weights, the order of volumes and the corruption")
    precision: str = precision_setting()
    device: str = device_setting()
    workers: int = workers_setting("load volumes")
    stacking: str = setting(
        "auto",
        "Whether levels are trained one after the other, each for trainer.epochs, or together; auto follows the "
        "paper of the model, else trains together.",
        choices=("auto", "greedy", "joint"),
        common=True,
    )
    loss: str = setting(
        "auto",
        "Error between a volume and its reconstruction; auto is half_sse for autoencoder3d_hosseini, else mse.",
        choices=("auto", "mse", "l1", "ssim", "half_sse"),
        common=True,
    )
    figures: int = setting(
        4, "Held-out volumes shown in reconstructions.png; 0 draws none.", low=0, high=32, unit="volumes", common=True
    )
    split: SplitChoice = field(default_factory=SplitChoice)
    model: ModelConfig = field(default_factory=ModelConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    patch: PatchConfig = field(default_factory=PatchConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.trainer.sync_batchnorm:
            raise ConfigError("trainer.sync_batchnorm=true: the autoencoders have no BatchNorm: remove it")
        if self.model.weights is not None:
            raise ConfigError(f"model.weights={self.model.weights}: an autoencoder starts from random numbers (null)")
        if self.model.dropout:
            raise ConfigError(
                f"model.dropout={self.model.dropout}: an autoencoder has none: set corruption=noise instead"
            )
        if self.greedy and self.trainer.max_steps is not None:
            raise ConfigError(
                f"trainer.max_steps={self.trainer.max_steps} with stacking=greedy: training would end before the last "
                "level: lower trainer.epochs, which counts for each level"
            )

    @property
    def is_paper(self) -> bool:
        """Whether "auto" means what Hosseini-Asl et al. 2016 did."""
        return self.model.name == "autoencoder3d_hosseini"

    @property
    def greedy(self) -> bool:
        """Whether levels are trained one after the other, each for trainer.epochs."""
        return self.stacking == "greedy" or (self.stacking == "auto" and self.is_paper)

    @property
    def loss_name(self) -> str:
        """The loss that "auto" stands for."""
        return self.loss if self.loss != "auto" else "half_sse" if self.is_paper else "mse"
