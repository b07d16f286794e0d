"""Hybrid networks: the lower stages as they are, those above slimmer and new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision.models import VGG, ResNet

from medcls.config import nearest
from medcls.errors import ConfigError

_LEAST_WIDTH = 8


@dataclass(frozen=True, slots=True)
class Slim:
    """What of a network is slimmer than it is by name.

    Attributes:
        above: The last stage that is as wide as ever.
        width: Factor on the channels of all stages above it, (0, 1].
    """

    above: str
    width: float


def make_slim(body: nn.Module, slim: Slim) -> None:
    """Makes a VGG or ResNet of torchvision's slimmer above a stage.

    Raises:
        ConfigError: another network, or no stage above.
    """
    if isinstance(body, ResNet):
        slim_resnet(body, slim)
    elif isinstance(body, VGG):
        slim_vgg(body, slim)
    else:
        raise ConfigError("model.init=hybrid: this network cannot be slimmer above a stage; take a VGG or ResNet")


def check_slim(slim: Slim, stages: Sequence[str]) -> None:
    """Raises ConfigError where a network of these stages, without the head, has none above slim.above."""
    if slim.above not in stages[:-1]:
        raise ConfigError(
            f"model.init_to={slim.above}: this network can be slimmer above {', '.join(stages[:-1])}"
            f"{nearest(slim.above, stages[:-1])}"
        )


def slim_resnet(body: Any, slim: Slim) -> None:
    """Replaces the layers of torchvision's ResNet above a stage by slimmer ones, randomly initialised as torchvision's.

    Source: Raghu et al., arXiv 1902.07208 (pretrained lower layers below a slimmer, randomly initialised top).
    """
    names = ["stem", "layer1", "layer2", "layer3", "layer4"]
    check_slim(slim, names)
    first = names.index(slim.above) + 1
    block = type(body.layer1[0])
    body.inplanes = 64 if first == 1 else 64 * 2 ** (first - 2) * block.expansion
    for place in range(first, len(names)):
        planes = _narrow(64 * 2 ** (place - 1), slim.width)
        depth = len(getattr(body, names[place]))
        layer = body._make_layer(block, planes, depth, stride=1 if place == 1 else 2)
        _initialize(layer)
        setattr(body, names[place], layer)


def slim_vgg(body: Any, slim: Slim) -> None:
    """Replaces the layers of torchvision's VGG above a stage by slimmer ones, randomly initialised as torchvision's.

    Source: as slim_resnet.
    """
    names = [f"block{i}" for i in range(1, 6)] + ["fc6", "fc7"]
    check_slim(slim, names)
    kept = names.index(slim.above)
    channels, block = 3, 0
    for i, layer in enumerate(body.features):
        if isinstance(layer, nn.Conv2d):
            width = layer.out_channels
            if block > kept:
                width = _narrow(width, slim.width)
                body.features[i] = nn.Conv2d(channels, width, 3, padding=1)
            channels = width
        elif isinstance(layer, nn.BatchNorm2d) and block > kept:
            body.features[i] = nn.BatchNorm2d(channels)
        block += isinstance(layer, nn.MaxPool2d)
        if block > kept:
            _initialize(body.features[i])
    inputs = channels * 7 * 7
    for place, name in ((0, "fc6"), (3, "fc7")):
        if names.index(name) > kept:
            width = _narrow(body.classifier[place].out_features, slim.width)
            body.classifier[place] = nn.Linear(inputs, width)
            _initialize(body.classifier[place])
        inputs = body.classifier[place].out_features


def _narrow(width: int, factor: float) -> int:
    return max(_LEAST_WIDTH, round(width * factor))


def _initialize(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
