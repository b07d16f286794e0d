"""Initialise weights other than from a file as it is: drawn by mean and variance, hybrid, shallower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medcls.config import nearest
from medcls.errors import ConfigError
from medcls.models.backbones import VGGS, Backbone
from medcls.reproducibility import make_generator

PRETRAINED, IN_PART, MEAN_VAR, RANDOM = "pretrained", "in part", "mean_var", "random"
_FIRST_CONVOLUTIONS = 4


def draw_mean_variance(state: dict[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """Return tensors of the same names and shapes, drawn from normal distributions: the scale of weights, no features.

    Each tensor of weights (filters, biases, BatchNorm's scale and shift) is drawn i.i.d. with its own mean and standard
    deviation in `state`. BatchNorm's running statistics describe the answers of filters that are no more: they start
    anew, at mean 0 and variance 1.

    Args:
        state: Pretrained weights, float32.
        seed: Every tensor is a pure function of (seed, its name).

    Source: Raghu et al., arXiv 1902.07208 ("Mean Var Init"); the running statistics, own choice.
    """
    return {name: _draw(name, value, seed) for name, value in state.items()}


def _draw(name: str, value: Tensor, seed: int) -> Tensor:
    if name.endswith("running_var"):
        return torch.ones_like(value)
    if name.endswith(("running_mean", "num_batches_tracked")):
        return torch.zeros_like(value)
    mean, deviation = float(value.double().mean()), float(value.double().std(correction=0))
    numbers = make_generator("mean_var", seed, name).normal(mean, deviation, tuple(value.shape))
    return torch.from_numpy(np.asarray(numbers, dtype=np.float32))


def choose_below(backbone: Backbone, state: dict[str, Tensor], *, stage: str) -> dict[str, Tensor]:
    """Return the tensors of the stages up to and including one, by their names in the backbone's body."""
    stages = list(backbone.stage_names)
    kept = [name for s in stages[: stages.index(stage) + 1] for name in backbone.stage_names[s]]
    prefixes = tuple(f"{name}." for name in kept)
    return {name: value for name, value in state.items() if name.startswith(prefixes) or name in kept}


def list_shallower(name: str) -> list[str]:
    """Return the VGGs with fewer layers than one, and BatchNorm as it has; [] for any other network."""
    return [n for n in VGGS if name in VGGS and n.endswith("_bn") == name.endswith("_bn") and n < name]


def choose_shallower(shallow: Backbone, deep: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what a deeper VGG takes over from a shallower one, by the deeper one's names.

    These are the first four convolutions of the shallower network, each at its own place in its own block, where the
    channels agree (from vgg11 the second convolution of blocks 1 and 2 stays new), and fc6 and fc7.

    Args:
        shallow: The shallower VGG.
        deep: The deeper VGG; with BatchNorm where the shallower one has it.
        state: Tensors of the shallower one's body.

    Source: Simonyan and Zisserman, arXiv 1409.1556, section 3.1. The third fully connected layer there is the head
    here, which is new. Own choice: the other layers keep He's initialisation; the paper has N(0, 0.01), and says that
    Glorot's does as well.
    """
    places = dict(_list_convolutions(deep))
    taken: dict[str, Tensor] = {}
    for place, index in list(_list_convolutions(shallow))[:_FIRST_CONVOLUTIONS]:
        for step in (0, 1):  # the convolution, and the BatchNorm behind it where there is one
            old, new = f"features.{index + step}.", f"features.{places[place] + step}."
            taken |= {new + n.removeprefix(old): value for n, value in state.items() if n.startswith(old)}
    return taken | {name: value for name, value in state.items() if name.startswith("classifier.")}


def _list_convolutions(backbone: Backbone) -> Iterator[tuple[tuple[int, int], int]]:
    """((block, place in it), index in body.features) of each convolution."""
    block, place = 1, 0
    features: nn.Sequential = backbone.body.features  # type: ignore[assignment]
    for index, layer in enumerate(features):
        if isinstance(layer, nn.Conv2d):
            yield (block, place), index
            place += 1
        if isinstance(layer, nn.MaxPool2d):
            block, place = block + 1, 0


def describe_origins(backbone: Backbone, left: set[str], *, init: str) -> dict[str, str]:
    """Return where the numbers of each stage come from.

    Args:
        backbone: The network.
        left: Parameters of its body that were left as they were: random.
        init: "full", "mean_var", "hybrid" or "shallower".
    """
    names = {id(parameter): name for name, parameter in backbone.body.named_parameters()}
    origins = {}
    for stage, modules in backbone.stages.items():
        missing = [names[id(parameter)] in left for parameter in modules.parameters()]
        whole = MEAN_VAR if init == "mean_var" else PRETRAINED
        origins[stage] = RANDOM if all(missing) else IN_PART if any(missing) else whole
    return origins


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


def check_slim(slim: Slim, stages: Sequence[str]) -> None:
    """Raise ConfigError where a network of these stages, without the head, has none above slim.above."""
    if slim.above not in stages[:-1]:
        raise ConfigError(
            f"model.init_to={slim.above}: this network can be slimmer above {', '.join(stages[:-1])}"
            f"{nearest(slim.above, stages[:-1])}"
        )


def slim_resnet(slim: Slim, body: Any) -> None:
    """Replace the layers of torchvision's ResNet above a stage by slimmer ones, randomly initialised as torchvision's.

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


def slim_vgg(slim: Slim, body: Any) -> None:
    """Replace the layers of torchvision's VGG above a stage by slimmer ones, randomly initialised as torchvision's.

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
