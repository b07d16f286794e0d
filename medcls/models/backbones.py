"""The class of networks without their last layer, as stages from input to output, and torchvision's networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torchvision
from torch import Tensor, nn

from medcls.models.pooling import MaxPool3d
from medcls.models.stages import Stage, name_modules

VGGS = ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn")
RESNET = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
CLINICAL = "clinical"
"""No image network at all: what a wide part says alone."""

StateDict = dict[str, Tensor]


TORCHVISION_LICENCE = (
    "code BSD-3-Clause; trained on ImageNet, whose images are for non-commercial research and education"
)


@dataclass(frozen=True, slots=True)
class Published:
    """What a library says of a network and of the weights that are published for it.

    Attributes:
        name: Of the library, with the tag of the weights.
        mean: What becomes 0 in each of the three channels, of values in [0, 1].
        std: What becomes 1.
        size: (H, W) of the images that the weights were trained on, pixels.
        fixed: Whether the network is built for one size.
        interpolation: How those images were resized, "bicubic" …; "" if unknown.
        licence: Of the weights, "unknown" where the library does not know; "" where there are none.
        url: Address of the weights; "" where there is none.
        hub: Repository of the weights on Hugging Face; "" where there is none.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, ...]
    fixed: bool = False
    interpolation: str = ""
    licence: str = ""
    url: str = ""
    hub: str = ""

    def refuse_size(self, architecture: str, sides: str) -> str:
        """Return the message that a network, by its model.name, cannot take images of these sides ("96 x 64")."""
        own = " x ".join(map(str, self.size))
        return (
            f"model.name={architecture} cannot be built for images of {sides} pixels (its weights were trained at "
            f"{own}): prepare the store with that size, image.size=[{self.size[0]},{self.size[1]}], or choose "
            "another network"
        )


@dataclass(frozen=True, slots=True)
class WeightsLayout:
    """How published files of weights fit the body of a backbone.

    Attributes:
        optional: Beginnings of the names of parameters that a file may lack: they stay random, and the caller says so.
        convert: Weights as their file names and shapes them -> as the body does.
        is_library: Whether it is a library's network by name: of its layers nothing is known but their stages.
    """

    optional: tuple[str, ...] = ()
    convert: Callable[[StateDict], StateDict] = dict
    is_library: bool = False


AS_THE_BODY = WeightsLayout()
"""A file has the body's own names and shapes, and all of them."""


class Backbone(nn.Module):
    """A network from images or volumes to a feature vector; parameter names under `body` are torchvision's or MONAI's.

    Args:
        body: Maps (N, C, *spatial) float to (N, num_features).
        num_features: Length of the feature vector.
        stages: Stage name -> modules of `body`, or names of its modules and parameters, from input to output; together
            they hold every parameter.
        spatial_dims: 2 for images, 3 for volumes.
        levels: Lengths of the parts of the feature vector, where a head may answer from each (deep supervision).
        layout: How published weights fit `body`.

    Attributes:
        options: What the architecture was told beside its name; a model card keeps it.
        stage_names: Stage name -> names of modules and of single parameters of `body`, from input to output.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        num_features: int,
        stages: Mapping[str, Sequence[nn.Module | str]],
        spatial_dims: int = 2,
        levels: Sequence[int] = (),
        layout: WeightsLayout = AS_THE_BODY,
    ) -> None:
        super().__init__()
        self.body = body
        self.num_features = num_features
        self.spatial_dims = spatial_dims
        self.levels = tuple(levels) or (num_features,)
        self.layout = layout
        self.options: dict[str, Any] = {}
        self.stage_names = {stage: name_modules(body, parts) for stage, parts in stages.items()}

    @property
    def stages(self) -> dict[str, Stage]:
        """Stage name -> its modules and single parameters, from input to output."""
        return {stage: Stage(self.body, names) for stage, names in self.stage_names.items()}

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, num_features) of normalised images (N, C, *spatial)."""
        features: Tensor = self.body(images)
        return features


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What the function of a family (families.Family) builds a network from.

    Attributes:
        name: Architecture, one of the family's names.
        shape: (C, *spatial) of the stored images; only weights that depend on it read it.
        dropout: Of the network's own fully connected layers, [0, 1); a network without any leaves it to the head.
        change: Apply it to the body before its stages are named: it inflates layers to 3-D, or makes them slimmer.
        options: What the architecture is told beside its name, by the names in Family.options.
    """

    name: str
    shape: tuple[int, ...] = (3,)
    dropout: float = 0.0
    change: Callable[[nn.Module], None] = lambda body: None
    options: Mapping[str, Any] = field(default_factory=dict)


def stage_by_child(body: nn.Module, num_features: int, plan: Blueprint) -> Backbone:
    """Return a backbone in which every child of the body that has parameters is a stage of its name."""
    plan.change(body)
    stages = {name: [child] for name, child in body.named_children() if any(True for _ in child.parameters())}
    return Backbone(body, num_features=num_features, stages=stages)


def find_torchvision_url(name: str) -> str:
    """Return the address of torchvision's weights IMAGENET1K_V1; the file's name ends in digits of its sha256."""
    weights: Any = torchvision.models.get_model_weights(name)
    url: str = weights.IMAGENET1K_V1.url
    return url


def build_blind(plan: Blueprint) -> Backbone:
    """Return the backbone of a model without an image network: a zero for each image."""
    return Backbone(_Blind(), num_features=1, stages={})


class _Blind(nn.Module):
    """Images to a zero each: a head has at least one feature, and this one leaves its bias alone."""

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 1)


def build_resnet(plan: Blueprint) -> Backbone:
    """Return a ResNet of torchvision.

    Source: He et al., arXiv 1512.03385, table 1.
    """
    body: Any = torchvision.models.get_model(plan.name, weights=None)
    body.fc = nn.Identity()
    plan.change(body)
    stages = {"stem": [body.conv1, body.bn1]}
    stages |= {layer: [getattr(body, layer)] for layer in ("layer1", "layer2", "layer3", "layer4")}
    return Backbone(body, num_features=body.inplanes, stages=stages)


def build_vgg(plan: Blueprint) -> Backbone:
    """Return a VGG of torchvision; the paper's dropout is 0.5.

    Source: Simonyan and Zisserman, arXiv 1409.1556, table 1.
    """
    body: Any = torchvision.models.get_model(plan.name, weights=None, dropout=plan.dropout)
    body.classifier[6] = nn.Identity()
    plan.change(body)
    stages = {f"block{i}": block for i, block in enumerate(_split_at_pools(body.features), start=1)}
    stages |= {"fc6": [body.classifier[0]], "fc7": [body.classifier[3]]}
    layout = WeightsLayout(optional=("classifier.",))
    return Backbone(body, num_features=body.classifier[3].out_features, stages=stages, layout=layout)


def _split_at_pools(layers: Iterable[nn.Module]) -> list[list[nn.Module]]:
    blocks: list[list[nn.Module]] = [[]]
    for layer in layers:
        blocks[-1].append(layer)
        if isinstance(layer, nn.MaxPool2d | MaxPool3d):
            blocks.append([])
    return [block for block in blocks if block]
