"""timm's networks by name: how they are built, their stages, and what stands in their configuration.

timm takes seconds to import: only functions that are asked for one of its networks do so.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from medcls.errors import ConfigError, DataError
from medcls.models.backbones import Backbone, Blueprint, Published, StateDict, WeightsLayout
from medcls.models.stages import cover_all, group_by_tree, name_groups

TIMM = "timm/"
_FEWEST = 4
_UNKNOWN = "unknown"


@functools.cache
def list_timm() -> tuple[str, ...]:
    """Return the names of timm's networks: each architecture, and each with the tag of its published weights."""
    import timm

    return tuple(sorted({*timm.list_models(), *timm.list_pretrained()}))


@functools.cache
def describe_timm(name: str) -> Published:
    """Return what timm's configuration of a network says; without a tag, that of its default weights."""
    from timm.models import get_pretrained_cfg

    config: Any = get_pretrained_cfg(name)
    full = f"{config.architecture}.{config.tag}" if config.tag else name
    published = config.has_weights
    return Published(
        name=full,
        mean=tuple(config.mean),
        std=tuple(config.std),
        size=tuple(config.input_size[1:]),
        fixed=bool(config.fixed_input_size),
        interpolation=config.interpolation,
        licence=(config.license or _UNKNOWN) if published else "",
        url=(config.url or "") if published else "",
        hub=(config.hf_hub_id or "") if published else "",
    )


def build_timm(plan: Blueprint) -> Backbone:
    """Return a network of timm without its classifier.

    One whose input size is fixed is built for the size of the stored images, if it can be.

    Raises:
        ConfigError: it cannot be built for images of this size.
    """
    published = describe_timm(plan.name.removeprefix(TIMM))
    size, settings = plan.options.get("img_size") or plan.shape[1:], {}
    if published.fixed and size and tuple(size) != published.size:
        settings = {"img_size": tuple(size)}
    body = _create(published, settings)
    plan.change(body)
    backbone = Backbone(
        body,
        num_features=body.head_hidden_size,
        stages=cover_all(body, name_groups(_group(body))),
        layout=WeightsLayout(convert=functools.partial(_convert, published, settings), is_library=True),
    )
    if published.fixed:
        backbone.options = {"img_size": list(size or published.size)}
    return backbone


def _create(published: Published, settings: dict[str, Any], **weights: Any) -> Any:
    import timm

    try:
        return timm.create_model(published.name, num_classes=0, in_chans=3, **settings, **weights)
    except (TypeError, AssertionError, ValueError, ZeroDivisionError) as error:
        if not settings:
            raise
        sides = " x ".join(map(str, settings["img_size"]))
        raise ConfigError(published.refuse_size(TIMM + published.name, sides)) from error


def _group(body: Any) -> Sequence[Sequence[str]]:
    """Return timm's own groups of parameters, from input to output: stages of a CNN, blocks of a transformer."""
    from timm.models import group_parameters

    groups: list[list[str]] = []
    for coarse in (True, False):
        try:
            groups = list(group_parameters(body, body.group_matcher(coarse=coarse)).values())
        except (AttributeError, AssertionError, NotImplementedError, TypeError):
            continue
        if len(groups) >= _FEWEST:
            return groups
    return groups or group_by_tree(body)


def _convert(published: Published, settings: dict[str, Any], state: StateDict) -> StateDict:
    """Return the weights of a file as a body of these settings has them: without classifier, places resized.

    timm's own loader does it, in a second network, and every tensor has to fit.

    Raises:
        DataError: the file is of another network.
    """
    from timm.models import get_pretrained_cfg

    config: Any = get_pretrained_cfg(published.name)
    named = config.classifier or ()
    last = tuple(f"{layer}." for layer in ((named,) if isinstance(named, str) else named))
    given = {name: value for name, value in state.items() if not name.startswith(last)}
    # With the classifier left out here, timm loads strictly; it would be silent about anything that is missing.
    overlay = {"state_dict": given, "classifier": None}
    try:
        # Its random numbers are overwritten: the run's own go on as if it had not been built.
        with torch.random.fork_rng(devices=[]):
            loaded: nn.Module = _create(published, settings, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError) as error:
        facts = " ".join(str(error).split())[:200]
        raise DataError(f"these weights are not of {TIMM}{published.name} ({facts}): choose its own") from error
    return dict(loaded.state_dict())
