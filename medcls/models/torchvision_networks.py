"""torchvision's classification networks by name: how they are built, their stages, and what is published of them."""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from medcls.errors import ConfigError
from medcls.models.backbones import TORCHVISION_LICENCE, Backbone, Blueprint, Published, StateDict, WeightsLayout
from medcls.models.normalization import IMAGENET_MEAN, IMAGENET_STD
from medcls.models.stages import cover_all, group_by_tree, name_groups

TORCHVISION = "torchvision/"
_SWAG = "cc-by-nc-4.0"
_SIZE = (224, 224)
# Built with so many classes that no other layer has as many outputs: the one that has is the classifier.
_MARK = 1009
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


@functools.cache
def list_torchvision() -> tuple[str, ...]:
    """Return the names of torchvision's networks for images, each also with the tag of its published weights."""
    names = torchvision.models.list_models(module=torchvision.models)
    tags = [f"{name}.{tag}" for name in names for tag in torchvision.models.get_model_weights(name).__members__]
    return tuple(sorted({*names, *tags} - {f"{name}.DEFAULT" for name in names}))


@functools.cache
def describe_torchvision(name: str) -> Published:
    """Return what torchvision says of a network; without a tag, of IMAGENET1K_V1, else of its default weights."""
    architecture, _, tag = name.partition(".")
    known: Any = torchvision.models.get_model_weights(architecture).__members__
    tag = tag or ("IMAGENET1K_V1" if "IMAGENET1K_V1" in known else next(iter(known), ""))
    fixed = architecture.startswith(("vit_", "maxvit"))
    if not tag:
        return Published(architecture, IMAGENET_MEAN, IMAGENET_STD, _SIZE, fixed=fixed)
    entry = known[tag].value
    view = entry.transforms()
    return Published(
        name=f"{architecture}.{tag}",
        mean=tuple(view.mean),
        std=tuple(view.std),
        size=(view.crop_size[0], view.crop_size[0]),
        fixed=fixed,
        interpolation=view.interpolation.value,
        licence=_SWAG if "SWAG" in tag else TORCHVISION_LICENCE,
        url=entry.url,
    )


def build_torchvision(plan: Blueprint) -> Backbone:
    """Return a network of torchvision without its last layer.

    Its own dropout is the plan's. One whose input size is fixed is built for the size of the stored images, if it can
    be.

    Raises:
        ConfigError: it cannot be built for images of this size.
    """
    published = describe_torchvision(plan.name.removeprefix(TORCHVISION))
    architecture = published.name.partition(".")[0]
    size = tuple(plan.options.get("img_size") or plan.shape[1:]) or published.size
    body = _create(architecture, published, size)
    for module in body.modules():
        if isinstance(module, nn.Dropout) and module.p:
            module.p = plan.dropout
    last, num_features = _remove_last(body)
    plan.change(body)
    backbone = Backbone(
        body,
        num_features=num_features,
        stages=cover_all(body, name_groups(group_by_tree(body))),
        layout=WeightsLayout(convert=functools.partial(_convert, architecture, size, last), is_library=True),
    )
    if published.fixed:
        backbone.options = {"img_size": list(size)}
    return backbone


def _create(architecture: str, published: Published, size: tuple[int, ...]) -> Any:
    settings: dict[str, Any] = {"num_classes": _MARK}
    if architecture in ("googlenet", "inception_v3"):
        # Its weights are TensorFlow's, for values in [-1, 1]; this is how torchvision feeds them.
        settings |= {"aux_logits": False, "transform_input": True, "init_weights": True}
    if architecture.startswith("maxvit"):
        settings |= {"input_size": size}
    if architecture.startswith("vit_"):
        settings |= {"image_size": size[0]}
    device = torch.empty(0).device
    try:
        if published.fixed and architecture.startswith("vit_") and len(set(size)) != 1:
            raise ValueError("it takes squares")
        # RegNet computes its widths with tensors, which the device meta has no numbers for.
        with torch.device("cpu" if architecture.startswith("regnet") else device):
            body: Any = torchvision.models.get_model(architecture, weights=None, **settings)
    except (ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        if not published.fixed:
            raise
        sides = " x ".join(map(str, size))
        raise ConfigError(published.refuse_size(TORCHVISION + published.name, sides)) from error
    if isinstance(body, torchvision.models.MNASNet):
        body.__class__ = _MNASNet
    return body.to(device) if architecture.startswith("regnet") else body


class _MNASNet(torchvision.models.MNASNet):  # type: ignore[misc]
    """MNASNet that loads plain tensors: torchvision's asks each file for a version, for the sake of files of 2019."""

    def _load_from_state_dict(self, *arguments: Any) -> None:
        nn.Module._load_from_state_dict(self, *arguments)


def _remove_last(body: nn.Module) -> tuple[str, int]:
    """Replace the classifier by the identity; return its name and the number of features it took."""
    for name, layer in body.named_modules():
        if isinstance(layer, nn.Linear) and layer.out_features == _MARK:
            body.set_submodule(name, nn.Identity())
            return name, layer.in_features
        if isinstance(layer, nn.Conv2d) and layer.out_channels == _MARK:
            body.set_submodule(name, nn.Identity())
            return name, layer.in_channels
    raise ValueError("no layer has the outputs that were asked for")


def _convert(architecture: str, size: tuple[int, ...], last: str, state: StateDict) -> StateDict:
    """Return the weights of torchvision's file as a body has them."""
    given = {
        _OLD_DENSENET.sub(r"\1\2", name) if architecture.startswith("densenet") else name: value
        for name, value in state.items()
        if not name.startswith((f"{last}.", *_AUXILIARY))
    }
    if not architecture.startswith("vit_"):
        return given
    patch = given["conv_proj.weight"].shape[-1]
    resized: StateDict = dict(interpolate_embeddings(size[0], patch, given))
    return resized
