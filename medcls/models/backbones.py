"""Networks without their last layer, as stages from input to output: torchvision's, and small ones by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torchvision
from torch import Tensor, nn

from medcls.config import nearest
from medcls.errors import ConfigError
from medcls.models.pooling import MaxPool3d
from medcls.models.small import ANTONY, CBR, build_antony, build_cbr, build_vgg_m

VGGS = ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn")
RESNET = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
OWN = (*CBR, *ANTONY, "vgg_m")
"""Networks that torchvision has no ImageNet weights of: trained from scratch, or from a run."""
ARCHITECTURES = (*VGGS, *RESNET, *OWN)
CLINICAL = "clinical"
"""No image network at all: what a wide part says alone."""
RESNET_3D = ("resnet10_3d", "resnet18_3d", "resnet34_3d", "resnet50_3d")
VOLUME_ARCHITECTURES = ("acnn3d", "encoder3d", *RESNET_3D)
_LEAST_SIZES = dict.fromkeys(VGGS, 32) | {"antony2017_class": 31, "antony2017_joint": 61, "vgg_m": 59}

StateDict = dict[str, Tensor]


class Backbone(nn.Module):
    """A network from images or volumes to a feature vector; parameter names under `body` are torchvision's or MONAI's.

    Args:
        body: Maps (N, C, *spatial) float to (N, num_features).
        num_features: Length of the feature vector.
        stages: Stage name -> modules of `body`, from input to output; together they hold every parameter.
        spatial_dims: 2 for images, 3 for volumes.
        levels: Lengths of the parts of the feature vector, where a head may answer from each (deep supervision).
        optional: Beginnings of the names of parameters that a weights file may lack: they stay random, and the
            caller says so.
        convert: Weights as their file names and shapes them -> as `body` does.

    Attributes:
        options: What the architecture was told beside its name; a model card keeps it.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        num_features: int,
        stages: dict[str, list[nn.Module]],
        spatial_dims: int = 2,
        levels: Sequence[int] = (),
        optional: tuple[str, ...] = (),
        convert: Callable[[StateDict], StateDict] = dict,
    ) -> None:
        super().__init__()
        self.body = body
        self.num_features = num_features
        self.spatial_dims = spatial_dims
        self.levels = tuple(levels) or (num_features,)
        self.optional, self.convert = optional, convert
        self.options: dict[str, Any] = {}
        self._stages = {name: nn.ModuleList(modules) for name, modules in stages.items()}

    @property
    def stages(self) -> dict[str, nn.ModuleList]:
        """Stage name -> its modules, from input to output."""
        return self._stages

    def forward(self, images: Tensor) -> Tensor:
        """Returns features (N, num_features) of normalised images (N, C, *spatial)."""
        features: Tensor = self.body(images)
        return features


def least_size(name: str) -> int:
    """Returns the shorter side, in pixels, of the smallest images that a network's strides and pools leave one of."""
    return _LEAST_SIZES.get(name, 1)


def build_backbone(
    name: str, *, dropout: float = 0.0, change: Callable[[nn.Module], None] = lambda body: None
) -> Backbone:
    """Returns a randomly initialised backbone.

    Args:
        name: One of ARCHITECTURES, or CLINICAL.
        dropout: After the fully connected layers of VGG (0.5 in the paper), VGG-M and Antony's networks, [0, 1);
            ResNet and CBR have none inside.
        change: What is done to the network before its stages are named, such as inflation to 3-D.

    Raises:
        ConfigError: unknown name.

    Source: VGG, Simonyan and Zisserman, arXiv 1409.1556, table 1; ResNet, He et al., arXiv 1512.03385, table 1;
    both as torchvision builds them; the others in their own modules.
    """
    if name == CLINICAL:
        return Backbone(_Blind(), num_features=1, stages={})
    if name in VGGS:
        return _build_vgg(name, dropout=dropout, change=change)
    if name in RESNET:
        return _build_resnet(name, change=change)
    if name in OWN:
        return _build_own(name, dropout=dropout, change=change)
    known = (*ARCHITECTURES, CLINICAL)
    raise ConfigError(
        f"model.name={name}: expected one of {', '.join(known)}; for volumes {', '.join(VOLUME_ARCHITECTURES)}, "
        f"or inflated_ or slices_ before one of the first{nearest(name, (*known, *VOLUME_ARCHITECTURES))}"
    )


class _Blind(nn.Module):
    """Images to a zero each: a head has at least one feature, and this one leaves its bias alone."""

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 1)


def count_dims(name: str) -> int:
    """Returns the number of spatial axes that an architecture takes."""
    return 3 if name.endswith("3d") or name.startswith(("inflated_", "slices_")) else 2


def _build_resnet(name: str, *, change: Callable[[nn.Module], None]) -> Backbone:
    body = torchvision.models.get_model(name, weights=None)
    body.fc = nn.Identity()
    change(body)
    stages = {"stem": [body.conv1, body.bn1]}
    stages |= {layer: [getattr(body, layer)] for layer in ("layer1", "layer2", "layer3", "layer4")}
    return Backbone(body, num_features=body.inplanes, stages=stages)


def _build_own(name: str, *, dropout: float, change: Callable[[nn.Module], None]) -> Backbone:
    """Every child that learns is a stage."""
    if name in CBR:
        body, num_features = build_cbr(name)
    else:
        body, num_features = build_antony(name, dropout=dropout) if name in ANTONY else build_vgg_m(dropout=dropout)
    change(body)
    stages = {name: [child] for name, child in body.named_children() if any(True for _ in child.parameters())}
    return Backbone(body, num_features=num_features, stages=stages)


def _build_vgg(name: str, *, dropout: float, change: Callable[[nn.Module], None]) -> Backbone:
    body = torchvision.models.get_model(name, weights=None, dropout=dropout)
    body.classifier[6] = nn.Identity()
    change(body)
    stages = {f"block{i}": block for i, block in enumerate(_split_at_pools(body.features), start=1)}
    stages |= {"fc6": [body.classifier[0]], "fc7": [body.classifier[3]]}
    return Backbone(body, num_features=body.classifier[3].out_features, stages=stages, optional=("classifier.",))


def _split_at_pools(layers: Iterable[nn.Module]) -> list[list[nn.Module]]:
    blocks: list[list[nn.Module]] = [[]]
    for layer in layers:
        blocks[-1].append(layer)
        if isinstance(layer, nn.MaxPool2d | MaxPool3d):
            blocks.append([])
    return [block for block in blocks if block]
