"""torchvision's VGG and ResNet without their last layer, as a row of stages from input to output."""

from __future__ import annotations

from collections.abc import Iterable

import torchvision
from torch import Tensor, nn

from medcls.errors import ConfigError

VGG = ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn")
RESNET = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
ARCHITECTURES = (*VGG, *RESNET)
CLINICAL = "clinical"
"""No image network at all: what a wide part says alone."""


class Backbone(nn.Module):
    """A network from images to a feature vector; parameter names under `body` are torchvision's.

    Args:
        body: Maps (N, 3, H, W) float to (N, num_features).
        num_features: Length of the feature vector.
        stages: Stage name -> modules of `body`, from input to output; together they hold every parameter.
    """

    def __init__(self, body: nn.Module, *, num_features: int, stages: dict[str, list[nn.Module]]) -> None:
        super().__init__()
        self.body = body
        self.num_features = num_features
        self._stages = {name: nn.ModuleList(modules) for name, modules in stages.items()}

    @property
    def stages(self) -> dict[str, nn.ModuleList]:
        """Stage name -> its modules, from input to output."""
        return self._stages

    def forward(self, images: Tensor) -> Tensor:
        """Returns features (N, num_features) of normalised images (N, 3, H, W)."""
        features: Tensor = self.body(images)
        return features


def build_backbone(name: str, *, dropout: float = 0.0) -> Backbone:
    """Returns a randomly initialised backbone.

    Args:
        name: One of ARCHITECTURES, or CLINICAL.
        dropout: Of VGG's two fully connected layers (0.5 in the paper), [0, 1); ResNet has none inside.

    Raises:
        ConfigError: unknown name.

    Source: VGG, Simonyan and Zisserman, arXiv 1409.1556, table 1; ResNet, He et al., arXiv 1512.03385, table 1;
    both as torchvision builds them.
    """
    if name == CLINICAL:
        return Backbone(_Blind(), num_features=1, stages={})
    if name in VGG:
        return _build_vgg(name, dropout=dropout)
    if name in RESNET:
        return _build_resnet(name)
    raise ConfigError(f"model.name={name}: expected one of {', '.join((*ARCHITECTURES, CLINICAL))}")


class _Blind(nn.Module):
    """Images to a zero each: a head has at least one feature, and this one leaves its bias alone."""

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 1)


def count_dims(name: str) -> int:
    """Returns the number of spatial axes that an architecture takes."""
    return 2


def _build_resnet(name: str) -> Backbone:
    body = torchvision.models.get_model(name, weights=None)
    num_features = body.fc.in_features
    body.fc = nn.Identity()
    stages = {"stem": [body.conv1, body.bn1]}
    stages |= {layer: [getattr(body, layer)] for layer in ("layer1", "layer2", "layer3", "layer4")}
    return Backbone(body, num_features=num_features, stages=stages)


def _build_vgg(name: str, *, dropout: float) -> Backbone:
    body = torchvision.models.get_model(name, weights=None, dropout=dropout)
    num_features = body.classifier[6].in_features
    body.classifier[6] = nn.Identity()
    stages = {f"block{i}": block for i, block in enumerate(_split_at_pools(body.features), start=1)}
    stages |= {"fc6": [body.classifier[0]], "fc7": [body.classifier[3]]}
    return Backbone(body, num_features=num_features, stages=stages)


def _split_at_pools(layers: Iterable[nn.Module]) -> list[list[nn.Module]]:
    blocks: list[list[nn.Module]] = [[]]
    for layer in layers:
        blocks[-1].append(layer)
        if isinstance(layer, nn.MaxPool2d):
            blocks.append([])
    return [block for block in blocks if block]
