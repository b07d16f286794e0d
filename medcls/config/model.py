"""The schema of a network: architecture, source of its weights, and which stages are trained."""

from __future__ import annotations

from dataclasses import dataclass

from medcls.config.checks import check_range
from medcls.config.schema import NAME, PATH, TEXT, check_settings, setting
from medcls.errors import ConfigError

_HEAD_WIDTH = 256


@dataclass(slots=True)
class ModelConfig:
    """The network and where its weights come from."""

    name: str = setting(
        "resnet18", "Architecture; model=NAME also sets the weights and the dropout that suit it.", kind=NAME
    )
    library: str = setting(
        "medcls",
        "Library that has the network; model=timm or torchvision sets it, and model.name is a name of that library, as "
        "python -m medcls.networks lists them.",
        choices=("medcls", "timm", "torchvision"),
    )
    weights: str | None = setting(
        "imagenet",
        "Weights to start from: imagenet or pretrained for those published for the network, the folder of another run, "
        "or a file; null starts from random weights.",
        kind=PATH,
        common=True,
    )
    weights_sha256: str | None = setting(
        None,
        "Expected SHA-256 of the file of weights, or its first digits; null checks only a .sha256 beside it.",
        kind=TEXT,
    )
    accept_license: str | None = setting(
        None,
        "Licence of published weights that you accept, as cc-by-nc-4.0; needed if it is unknown or forbids commercial "
        "use.",
        kind=NAME,
    )
    dropout: float = setting(
        0.0, "Share of the features dropped before the head; raise it if the network overfits.", low=0, high=0.95
    )
    normalize: str = setting(
        "auto",
        "How volumes are scaled before the network: as stored, each by its own range, or by mean and deviation of its "
        "foreground; auto chooses by the store.",
        choices=("auto", "stored", "min_max", "z_score"),
    )
    supervision: list[float] = setting(
        [], "Weights of the losses of the two heads of model=acnn3d, as [0.5,1]; [] trains only the last head.", low=0
    )
    planes: str = setting(
        "axial",
        "Slices that a slices_ network sees: axial ones, or the three middle planes.",
        choices=("axial", "orthogonal"),
    )
    num_slices: int = setting(
        0, "Evenly spaced axial slices that a slices_ network sees; 0 takes all.", low=0, unit="slices"
    )
    pooling: str = setting("mean", "How a slices_ network combines its slices.", choices=("mean", "attention"))
    head: str = setting(
        "auto",
        "Decision layer; auto is a linear layer, solved on cached features if the network is frozen, else trained.",
        choices=("auto", "linear", "mlp", "svm"),
    )
    head_width: int = setting(_HEAD_WIDTH, "Hidden units of head=mlp.", low=1, high=65536, unit="units")
    init: str = setting(
        "full",
        "How pretrained weights are used: all; only mean and variance of each tensor; the lower stages; or those of a "
        "shallower VGG.",
        choices=("full", "mean_var", "hybrid", "shallower"),
    )
    init_to: str | None = setting(
        None, "Last stage that init=hybrid takes pretrained, as layer2; the stages above it are new.", kind=NAME
    )
    width: float = setting(
        0.5, "Width of the new stages of init=hybrid, as a share of the original width.", low=0, high=1, open_low=True
    )

    def __post_init__(self) -> None:
        check_settings(self, "model")
        self._add_library()
        self._check_init()
        self._check_effects()

    @property
    def head_kind(self) -> str:
        """The form of the head: auto is a linear one, solved or trained (stages.solved_head.find_solver)."""
        return "linear" if self.head == "auto" else self.head

    def _add_library(self) -> None:
        """Put the library before the name (timm/NAME), as every record of a run has it."""
        if self.library == "medcls":
            return
        if not self.name:
            raise ConfigError(
                f"model={self.library}: set model.name=NAME to a network of it (python -m medcls.networks lists them)"
            )
        if not self.name.startswith(f"{self.library}/"):
            self.name = f"{self.library}/{self.name}"

    def _check_init(self) -> None:
        if self.init != "full" and self.weights is None:
            raise ConfigError(f"model.init={self.init} needs model.weights=: imagenet, a run's folder or a file")
        if (self.init == "hybrid") != (self.init_to is not None):
            raise ConfigError(
                f"model.init={self.init} with model.init_to={self.init_to}: model.init=hybrid needs the last stage "
                "that stays pretrained (model.init_to=layer2), and no other init takes one"
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
                f"[] trains only the last (model.name={self.name})"
            )
        check_range("model.supervision, the last", self.supervision[-1], low=0, open_low=True)


@dataclass(slots=True)
class TransferConfig:
    """Which parts of the network are trained, and how fast."""

    kind: str = setting(
        "finetune",
        "Parts that are trained: all from random weights, only the head, the upper stages, all stages, or one more "
        "stage at a time; transfer=NAME also sets what suits it.",
        choices=("scratch", "frozen", "partial", "finetune", "gradual"),
    )
    layer_decay: float = setting(
        1.0,
        "Factor of the learning rate from each stage to the one below; lower it to change the pretrained stages less.",
        low=0,
        high=1,
        open_low=True,
    )
    batchnorm: str = setting(
        "train",
        "Whether BatchNorm of trained stages learns; frozen keeps the pretrained statistics, for very small batches.",
        choices=("train", "frozen"),
    )
    train_from: str | None = setting(
        None,
        "Lowest stage that transfer=partial or gradual trains: layer1 to layer4 of a resnet, block1 to block5 or fc6 "
        "of a vgg; every run prints the names.",
        kind=NAME,
    )
    thaw_every: int = setting(1, "Epochs after which transfer=gradual trains a further stage.", low=1, unit="epochs")
    features: str = setting(
        "auto",
        "Whether the features of a frozen network are computed once and kept beside the run; auto does so if it can.",
        choices=("auto", "cached", "live"),
    )
    views: int | None = setting(
        None,
        "Augmented views of each image whose features are kept; null keeps the plain image only.",
        low=1,
        high=1000,
    )
    val_seen: str = setting(
        "refuse",
        "Whether weights that were selected on the same validation split may be used; test rows are always refused.",
        choices=("refuse", "allow"),
    )

    def __post_init__(self) -> None:
        check_settings(self, "transfer")
        if self.kind == "partial" and self.train_from is None:
            raise ConfigError("transfer=partial: set transfer.train_from=STAGE (resnet: layer4; vgg: block5, fc6 …)")
        if self.kind not in ("partial", "gradual") and self.train_from is not None:
            raise ConfigError(
                f"transfer.train_from={self.train_from}: transfer={self.kind} has none: set transfer=partial or "
                f"gradual, or remove it"
            )
        if self.views is not None and self.features == "live":
            raise ConfigError(
                f"transfer.views={self.views}: transfer.features=live recomputes them in every epoch: remove one of "
                "the two"
            )
