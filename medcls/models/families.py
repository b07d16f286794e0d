"""The families of networks: one table. A new network is one function that builds it, and one row here.

A network for images of a new family also has its forms for volumes, inflated_NAME and slices_NAME.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from medcls.config import nearest
from medcls.errors import ConfigError
from medcls.inputs import INFLATED, SLICES, flat_name
from medcls.models.autoencoder import CLASSIFIER_OF
from medcls.models.backbones import (
    CLINICAL,
    RESNET,
    TORCHVISION_LICENCE,
    VGGS,
    Backbone,
    Blueprint,
    Published,
    build_blind,
    build_resnet,
    build_vgg,
    find_torchvision_url,
)
from medcls.models.from_2d import build_inflated, build_slices
from medcls.models.initialization import Slim, slim_resnet, slim_vgg
from medcls.models.normalization import IMAGENET_MEAN, IMAGENET_STD
from medcls.models.small import CBR, build_antony, build_cbr, build_vgg_m
from medcls.models.timm_networks import TIMM, build_timm, describe_timm, list_timm
from medcls.models.torchvision_networks import TORCHVISION, build_torchvision, describe_torchvision, list_torchvision
from medcls.models.volumetric import RESNET_3D, build_acnn, build_encoder, build_resnet_3d

_MEDICALNET = "MIT"


@dataclass(frozen=True, slots=True)
class Family:
    """Networks that one function builds.

    Attributes:
        names: Values of model.name.
        build: Blueprint -> randomly initialised backbone.
        spatial_dims: 2 for images, 3 for volumes, 0 for a model without images.
        least_size: Shorter side, in pixels, of the smallest images that strides and pools leave a pixel of.
        colour: Whether the network takes three channels, normalised by mean and std; grey is repeated.
        mean: What becomes 0 in each of the three channels, of values in [0, 1].
        std: What becomes 1.
        options: Names that Blueprint.options may have.
        slim: Makes a body slimmer above a stage, for model.init=hybrid; None: this family has no such form.
        url: Name -> address of ImageNet weights, as a file whose name ends in -XXXXXXXX.pth, the first eight digits of
            its sha256; None: there are none, train from scratch or from a run.
        licence: Of published weights, those of url or those that WeightsLayout.convert understands; "" where there are
            none.
        published: What a library says of its network; None for the networks of this table.
    """

    names: tuple[str, ...]
    build: Callable[[Blueprint], Backbone]
    spatial_dims: int = 2
    least_size: int = 1
    colour: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    options: tuple[str, ...] = ()
    slim: Callable[[Slim, nn.Module], None] | None = None
    url: Callable[[str], str] | None = None
    licence: str = ""
    published: Published | None = None


_SLIM = ("above", "width")
FAMILIES: tuple[Family, ...] = (
    Family(
        VGGS,
        build_vgg,
        least_size=32,
        options=_SLIM,
        slim=slim_vgg,
        url=find_torchvision_url,
        licence=TORCHVISION_LICENCE,
    ),
    Family(
        RESNET, build_resnet, options=_SLIM, slim=slim_resnet, url=find_torchvision_url, licence=TORCHVISION_LICENCE
    ),
    Family(CBR, build_cbr),
    Family(("antony2017_class",), build_antony, least_size=31),
    Family(("antony2017_joint",), build_antony, least_size=61),
    Family(("vgg_m",), build_vgg_m, least_size=59),
    Family((CLINICAL,), build_blind, spatial_dims=0, colour=False),
    Family(("acnn3d",), build_acnn, spatial_dims=3, colour=False, options=("all_levels",)),
    Family(("encoder3d",), build_encoder, spatial_dims=3, colour=False),
    Family(RESNET_3D, build_resnet_3d, spatial_dims=3, colour=False, licence=_MEDICALNET),
)


@dataclass(frozen=True, slots=True)
class Library:
    """Networks for images of a package, each by its own name behind a prefix.

    Attributes:
        prefix: Of model.name.
        list_names: () -> the package's names.
        describe: Name -> what the package says of it.
        build: Blueprint -> randomly initialised backbone.
    """

    prefix: str
    list_names: Callable[[], tuple[str, ...]]
    describe: Callable[[str], Published]
    build: Callable[[Blueprint], Backbone]

    def find(self, name: str) -> Family | None:
        """Return the row of one of its networks, prefix included in the name; None if it has none of that name."""
        bare = name.removeprefix(self.prefix)
        if bare not in self.list_names():
            return None
        published = self.describe(bare)
        red, green, blue = published.mean
        return Family(
            (name,),
            self.build,
            mean=(red, green, blue),
            std=published.std,  # type: ignore[arg-type]
            options=("img_size",),
            licence=published.licence,
            published=published,
        )


LIBRARIES: tuple[Library, ...] = (
    Library(TIMM, list_timm, describe_timm, build_timm),
    Library(TORCHVISION, list_torchvision, describe_torchvision, build_torchvision),
)


@dataclass(frozen=True, slots=True)
class VolumeForm:
    """A way to apply every network for images to volumes.

    Attributes:
        prefix: Of model.name, before the name of a network for images.
        build: Blueprint of the network for images and its family's function -> backbone of volumes.
        options: Settings of model that it takes, by their names.
        keeps_depth: Whether the slices of a volume may be fewer than Family.least_size.
    """

    prefix: str
    build: Callable[[Blueprint, Callable[[Blueprint], Backbone]], Backbone]
    options: tuple[str, ...] = ()
    keeps_depth: bool = False


VOLUME_FORMS: tuple[VolumeForm, ...] = (
    VolumeForm(INFLATED, build_inflated),
    VolumeForm(SLICES, build_slices, options=("planes", "num_slices", "pooling"), keeps_depth=True),
)


def list_names(spatial_dims: int) -> list[str]:
    """Return the values of model.name that are networks of so many axes, those of the volume forms left out."""
    return [name for family in FAMILIES if family.spatial_dims == spatial_dims for name in family.names]


def find_family(name: str) -> Family | None:
    """Return the row of an architecture; of a volume form that of its network for images; None for an unknown name."""
    flat = flat_name(name)
    library = find_library(flat)
    family = library.find(flat) if library else next((row for row in FAMILIES if flat in row.names), None)
    return None if family is None or (flat != name and family.spatial_dims != 2) else family


def find_library(name: str) -> Library | None:
    """Return the library that a name without the prefix of a volume form is one of; None for our own networks."""
    return next((library for library in LIBRARIES if name.startswith(library.prefix)), None)


def find_form(name: str) -> VolumeForm | None:
    """Return the volume form that a name begins with; None for a network by its own name."""
    return next((form for form in VOLUME_FORMS if name.startswith(form.prefix)), None)


def choose_family(name: str) -> Family:
    """Return the row of an architecture, as find_family does.

    Raises:
        ConfigError: unknown name, or an autoencoder.
    """
    family = find_family(name)
    if family is not None:
        return family
    if name in CLASSIFIER_OF:
        raise ConfigError(f"model.name={name} is an autoencoder: python -m medcls.pretrain trains it")
    library = find_library(flat_name(name))
    if library is not None:
        bare = flat_name(name).removeprefix(library.prefix)
        raise ConfigError(
            f"model.name={flat_name(name)}: {library.prefix[:-1]} has no network of this name"
            f"{nearest(bare, library.list_names())}: python -m medcls.networks WORD lists those with WORD in their name"
        )
    flat, known, volumes = flat_name(name), [*list_names(2), *list_names(0)], list_names(3)
    prefixes = " or ".join(form.prefix for form in VOLUME_FORMS)
    raise ConfigError(
        f"model.name={flat}: expected one of {', '.join(known)}; for volumes {', '.join(volumes)}, "
        f"or {prefixes} before one of the first{nearest(flat, [*known, *volumes])}"
    )


def count_dims(name: str) -> int:
    """Return the number of spatial axes that an architecture takes, 0 for one that takes no images.

    Raises:
        ConfigError: as choose_family.
    """
    family = choose_family(name)
    return family.spatial_dims if find_form(name) is None else 3


_WITHOUT = {
    "all_levels": "model.supervision: {name} has no fully connected layers but the head; acnn3d has two",
    "above": "model.init=hybrid: {name} cannot be slimmer above a stage: choose a VGG or ResNet",
}


def build_backbone(
    name: str,
    *,
    shape: tuple[int, ...] = (3,),
    dropout: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Backbone:
    """Return a randomly initialised backbone.

    Args:
        name: One of the names in FAMILIES, or the prefix of a volume form before one of a network for images.
        shape: (C, *spatial) of the stored images; only the weights of acnn3d depend on the spatial axes.
        dropout: Of the network's own fully connected layers, [0, 1).
        options: What the architecture is told beside its name; a model card keeps it.

    Raises:
        ConfigError: unknown name, an option that the network does not have, or another number of channels.
    """
    family, form, options = choose_family(name), find_form(name), dict(options or {})
    known = family.options if form is None else form.options
    for option in options:
        if option not in known:
            fault = _WITHOUT.get(option, "model.name={name} does not take the option {option}: remove it")
            raise ConfigError(fault.format(name=name, option=option))
    if family.colour and shape[0] not in (1, 3):
        raise ConfigError(f"the store has {shape[0]} channels: {name} takes 1 (grey) or 3 (colour)")
    plan = Blueprint(flat_name(name), shape, dropout, options=options)
    if form is not None and family.published is not None:
        raise ConfigError(
            f"model.name={name}: networks of a library cannot be applied to volumes: set "
            f"model.name={form.prefix}NAME with one of {', '.join((*VGGS, *RESNET))}"
        )
    if form is not None:
        backbone = form.build(plan, family.build)
    elif family.slim is not None and options:
        backbone = family.build(replace(plan, change=partial(family.slim, Slim(**options))))
    else:
        backbone = family.build(plan)
    # A network of fixed size says which it was built for: the model file keeps it.
    backbone.options = backbone.options | options
    return backbone
