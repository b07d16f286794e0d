"""The schema of a network: its architecture, where its weights come from, and which of its stages are trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from medcls.config.checks import check_choice, check_dropout, check_head_width, check_range
from medcls.errors import ConfigError

_HEAD_WIDTH = 256


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
    head: str = "auto"
    head_width: int = _HEAD_WIDTH
    init: str = "full"
    init_to: str | None = None
    width: float = 0.5

    def __post_init__(self) -> None:
        check_choice("model.head", self.head, ("auto", "linear", "mlp", "svm"))
        check_head_width(self.head_width)
        self._check_init()
        check_choice("model.planes", self.planes, ("axial", "orthogonal"))
        check_choice("model.pooling", self.pooling, ("mean", "attention"))
        check_range("model.num_slices", self.num_slices, low=0)
        self._check_effects()
        check_choice("model.normalize", self.normalize, ("auto", "stored", "min_max", "z_score"))
        check_dropout(self.dropout)

    @property
    def head_kind(self) -> str:
        """The form of the head: auto is a linear one, solved or trained (stages.solved_head.find_solver)."""
        return "linear" if self.head == "auto" else self.head

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
