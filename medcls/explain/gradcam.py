"""Maps from gradients: Grad-CAM, Grad-CAM++ and integrated gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from medcls.errors import ConfigError
from medcls.explain.perturbation import Score
from medcls.models.stages import Stage

Arrange = Callable[[Tensor], Tensor]
_MOST_TOKENS = 8
"""Class tokens and registers of a transformer."""


def find_layer(stages: Mapping[str, nn.Module], name: str | None = None) -> tuple[str, nn.Module]:
    """Return a stage's name and its last module before the pooling that ends it, whose output is explained.

    A pool at the end of a stage, also inside its last Sequential, is left out: the map before it is larger.

    Args:
        stages: Stage name -> module, from input to output; a Stage stands for its modules in a row.
        name: Of the stage; None = the last one with a convolution.

    Raises:
        ConfigError: no such stage, or no convolution in it.
    """
    spatial = [stage for stage, module in stages.items() if any(isinstance(m, _ConvNd) for m in module.modules())]
    if not spatial or (name is not None and name not in spatial):
        raise ConfigError(f"stage={name}: expected a stage with convolutions, one of {', '.join(spatial) or 'none'}")
    chosen = spatial[-1] if name is None else name
    module = stages[chosen]
    row = _unfold(module)
    while _is_pool(row[-1]):
        row.pop()
    return chosen, row[-1]


def _unfold(module: nn.Module) -> list[nn.Module]:
    """Return the modules that run one after the other: of a list, a Sequential, or a block that ends in a pool."""
    children = list(module.children())
    if type(module) in (Stage, nn.Sequential) or (children and _is_pool(children[-1])):
        return [each for child in children for each in _unfold(child)]
    return [module]


def _is_pool(module: nn.Module) -> bool:
    """Pools of torch, MONAI and our own models have no class in common, only the name."""
    return "Pool" in type(module).__name__ and not any(True for _ in module.parameters())


def find_grid(
    score: Score, image: NDArray[Any], stages: Mapping[str, nn.Module], name: str | None = None
) -> tuple[str, nn.Module, Arrange]:
    """Return a stage's name, its last module whose map the score depends on place by place, and how to read the map.

    For networks of which nothing else is known: the image goes through once. Behind the pooling there are no places,
    and what a class token alone is read from has no gradient at the others: both are passed over.

    Args:
        score: As for explain_gradcam.
        image: (C, H, W).
        stages: Stage name -> module, from input to output, without the head.
        name: Of the stage; None = the last one with such a map.

    Raises:
        ConfigError: no such stage, or it has no such map.
    """
    places = {id(module): stage for stage, part in stages.items() for module in part.modules()}
    kept: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: object) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        kept.append((module, output))
        return output.clone()

    handles = [module.register_forward_hook(keep) for part in stages.values() for module in part.modules()]
    try:
        pixels = torch.from_numpy(image.astype(np.float32))[None].requires_grad_()
        with torch.enable_grad():
            value = score(pixels).sum()
            slopes = torch.autograd.grad(value, [output for _, output in kept], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, tuple[str, nn.Module, Arrange]] = {}
    for (module, output), slope in zip(kept, slopes, strict=True):
        arrange = find_arrangement(output, image.shape[1:])
        if arrange is not None and slope is not None and bool(arrange(slope).any()):
            found[places[id(module)]] = (places[id(module)], module, arrange)
    chosen = name if name is not None else next((stage for stage in reversed(list(stages)) if stage in found), None)
    if chosen not in found:
        raise ConfigError(
            f"stage={name}: expected a stage with a map of places, one of {', '.join(s for s in stages if s in found)}"
        )
    return found[chosen]


def find_arrangement(maps: Tensor, size: Sequence[int]) -> Arrange | None:
    """Return how a module's output of one image becomes (1, K, h, w) with h w > 1; None if it has no places.

    Maps have channels before or after their places; tokens (1, T, K) are a grid of the image's form, row by row, behind
    class tokens and registers.

    Args:
        maps: What the module returned.
        size: (H, W) of the image.
    """
    if maps.ndim == 4 and _has_form(maps.shape[2:], size):
        return lambda values: values
    if maps.ndim == 4 and _has_form(maps.shape[1:3], size):
        return lambda values: values.permute(0, 3, 1, 2)
    if maps.ndim != 3 or maps.shape[0] != 1:
        return None
    for prefix in range(_MOST_TOKENS + 1):
        count = maps.shape[1] - prefix
        height = round(math.sqrt(count * size[0] / size[1])) if count > 1 else 0
        if height and count % height == 0 and _has_form((height, count // height), size):
            return partial(_place_tokens, start=prefix, grid=(height, count // height))
    return None


def _place_tokens(tokens: Tensor, *, start: int, grid: tuple[int, int]) -> Tensor:
    placed: Tensor = tokens[:, start:].transpose(1, 2).unflatten(2, grid)  # type: ignore[no-untyped-call]
    return placed


def _has_form(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Return whether a grid of more than one place has an image's form, to one place: sizes are rounded in strides."""
    height, width = grid
    if height * width < 2 or height > size[0] or width > size[1]:
        return False
    return abs(height * size[1] - width * size[0]) < max(size)


def explain_gradcam(
    score: Score, image: NDArray[Any], *, layer: nn.Module, plus: bool = False, arrange: Arrange | None = None
) -> NDArray[np.float32]:
    """Return the map (*spatial), >= 0, enlarged to the image (bilinear or trilinear); `plus` is Grad-CAM++.

    The score is a logit, before softmax; it runs `layer` once, whose output is (1, K, *spatial), or becomes it by
    `arrange`.

    Source: Selvaraju et al., arXiv 1610.02391, equations 1 and 2; Grad-CAM++: Chattopadhyay et al., arXiv 1710.11063,
    equations 10 and 19, the score's exponential taken as Y.
    """
    features, slopes = _run(score, image, layer)
    if arrange is not None:
        features, slopes = arrange(features), arrange(slopes)
    axes = tuple(range(2, features.ndim))
    channel = slopes.mean(dim=axes, keepdim=True)
    if plus:
        # exp(score), common to all weights, is left out.
        squares = slopes**2
        below = 2 * squares + features.sum(dim=axes, keepdim=True) * slopes**3
        alpha = torch.where(below != 0, squares / torch.where(below != 0, below, 1), 0)
        channel = (alpha * slopes.relu()).sum(dim=axes, keepdim=True)
    coarse = (channel * features).sum(dim=1, keepdim=True).relu()
    mode = "trilinear" if len(axes) == 3 else "bilinear"
    fine = F.interpolate(coarse.float(), size=image.shape[1:], mode=mode, align_corners=False)
    heat: NDArray[np.float32] = fine[0, 0].cpu().numpy()
    return heat


def _run(score: Score, image: NDArray[Any], layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the layer's output (1, K, *spatial), and the score's gradient by it."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        kept.append(output)
        # A copy goes on: layers that work in place would change what is kept.
        return output.clone()

    handle = layer.register_forward_hook(keep)
    try:
        # Through the image there is a graph even where every weight is frozen.
        pixels = torch.from_numpy(image.astype(np.float32))[None].requires_grad_()
        with torch.enable_grad():
            value = score(pixels).sum()
            (slopes,) = torch.autograd.grad(value, kept[-1])
    finally:
        handle.remove()
    return kept[-1].detach(), slopes.detach()


def explain_integrated_gradients(
    score: Score, image: NDArray[Any], *, background: NDArray[np.float32], steps: int = 64, batch_size: int = 64
) -> tuple[NDArray[np.float32], float]:
    """Return the map (*spatial), summed over the channels, and how far its sum misses the change of the score.

    The path begins at the background and has `steps` points (midpoint rule). The second value is the completeness gap
    |sum - (f(image) - f(background))|, in units of the score; more steps make it smaller.

    Source: Sundararajan, Taly and Yan, arXiv 1703.01365, equation 1; completeness: proposition 1.
    """
    start = torch.from_numpy(background)[None]
    change = torch.from_numpy(image.astype(np.float32))[None] - start
    shares = ((torch.arange(steps) + 0.5) / steps).view(-1, *[1] * (change.ndim - 1))
    total = torch.zeros(change.shape[1:], dtype=torch.float64)
    for part in torch.split(shares, batch_size):
        points = (start + part * change).requires_grad_()
        with torch.enable_grad():
            (slopes,) = torch.autograd.grad(score(points).sum(), points)
        total += slopes.double().sum(dim=0) / steps
    heat = (total * change[0]).sum(dim=0).numpy()
    with torch.inference_mode():
        whole, empty = score(torch.cat([start + change, start])).double().tolist()
    return heat.astype(np.float32), abs(float(heat.sum()) - (whole - empty))
