"""The schema of pretraining: a store of volumes to an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass, field

from medcls.config.checks import check_choice, check_range
from medcls.config.model import ModelConfig
from medcls.config.task import AugmentConfig, SplitChoice
from medcls.config.trainer import CheckpointConfig, OptimizerConfig, ScheduleConfig, TrainerConfig
from medcls.errors import ConfigError


@dataclass(slots=True)
class CorruptionConfig:
    """conf/corruption: what is done to a volume that the autoencoder has to undo; sizes as shares or voxels."""

    kind: str = "none"
    noise_std: float = 0.1
    mask_ratio: float = 0.5
    mask_size: int = 8
    max_boxes: int = 5

    def __post_init__(self) -> None:
        check_choice("corruption.kind", self.kind, ("none", "noise", "mask", "inpaint"))
        check_range("corruption.noise_std", self.noise_std, low=0, high=10, open_low=True)
        check_range("corruption.mask_ratio", self.mask_ratio, low=0, high=0.95, open_low=True)
        check_range("corruption.mask_size", self.mask_size, low=1)
        check_range("corruption.max_boxes", self.max_boxes, low=1, high=100)


@dataclass(slots=True)
class PatchConfig:
    """patch.size: (D, H, W) of a random part of each volume, in stored voxels; [] takes volumes whole."""

    size: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.size and len(self.size) != 3:
            raise ConfigError(f"patch.size={self.size}: expected [depth, height, width], or [] for whole volumes")
        for length in self.size:
            check_range("patch.size", length, low=1)


@dataclass(slots=True)
class PretrainJob:
    """python -m medcls.pretrain: store to run, without labels."""

    store: str | None = None
    run: str | None = None
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    workers: int = -1
    stacking: str = "auto"
    loss: str = "auto"
    figures: int = 4
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
        check_range("seed", self.seed, low=0)
        check_range("workers", self.workers, low=-1, high=256)
        check_range("figures", self.figures, low=0, high=32)
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("stacking", self.stacking, ("auto", "greedy", "joint"))
        if self.trainer.sync_batchnorm:
            raise ConfigError("trainer.sync_batchnorm=true: the autoencoders have no BatchNorm; leave it out")
        check_choice("loss", self.loss, ("auto", "mse", "l1", "ssim", "half_sse"))
        if self.model.weights is not None:
            raise ConfigError(f"model.weights={self.model.weights}: an autoencoder starts from random numbers (null)")
        if self.model.dropout:
            raise ConfigError(
                f"model.dropout={self.model.dropout}: an autoencoder has none; corruption=noise is near it"
            )
        if self.greedy and self.trainer.max_steps is not None:
            raise ConfigError(
                f"trainer.max_steps={self.trainer.max_steps} with stacking=greedy: it would end below the last level; "
                "lower trainer.epochs, which every level has"
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
