"""2-D networks for volumes: their filters inflated to three axes, or applied to slices (2.5-D)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcls.config import check_value
from medcls.models.backbones import Backbone, Blueprint, StateDict, WeightsLayout
from medcls.models.pooling import AdaptiveAveragePool, MaxPool3d


class InflatedConv(nn.Conv3d):
    """A cubic convolution of a square one's kernel size, stride and padding, at full weight up to the ends of depth.

    Args:
        flat: The convolution that is inflated; its weights are not taken.
    """

    def __init__(self, flat: nn.Conv2d) -> None:
        kernel, stride, padding = flat.kernel_size[0], flat.stride[0], int(flat.padding[0])
        bias = flat.bias is not None
        super().__init__(flat.in_channels, flat.out_channels, kernel, stride=stride, padding=padding, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return (N, C', D', H', W') of (N, C, D, H, W)."""
        maps = F.conv3d(input, self.weight, None, self.stride, self.padding)
        if int(self.padding[0]):
            maps = maps * self._restore(maps, input.shape[2])
        return maps if self.bias is None else maps + self.bias.view(-1, 1, 1, 1).to(maps.dtype)

    def _restore(self, maps: Tensor, depth: int) -> Tensor:
        """(D', 1, 1): slices of the filter by those of them that lie inside the volume, at each place along depth."""
        size, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        first = torch.arange(maps.shape[2], device=maps.device) * stride - padding
        inside = (first + size).clamp(max=depth) - first.clamp(min=0)
        return (size / inside).view(-1, 1, 1).to(maps.dtype)


def build_inflated(plan: Blueprint, build: Callable[[Blueprint], Backbone]) -> Backbone:
    """Return the 3-D form of a network for images, for volumes (N, 3, D, H, W).

    Args:
        plan: Of the network for images, by its own name.
        build: The function of its family.
    """
    backbone = build(replace(plan, change=inflate_layers))
    layout = backbone.layout
    backbone.spatial_dims = 3
    backbone.layout = replace(layout, convert=lambda state: inflate_state(layout.convert(state)))
    return backbone


def inflate_layers(module: nn.Module) -> None:
    """Replace the 2-D layers in a network by their 3-D forms, whose weights are new."""
    for name, layer in module.named_children():
        inflated = _inflate(layer)
        if inflated is None:
            inflate_layers(layer)
        else:
            setattr(module, name, inflated)


def _inflate(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, nn.Conv2d):
        return InflatedConv(layer)
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm3d(layer.num_features)
    if isinstance(layer, nn.MaxPool2d):
        # torchvision gives whole numbers, the same along both axes.
        return MaxPool3d(int(layer.kernel_size), stride=int(layer.stride), padding=int(layer.padding))  # type: ignore[arg-type]
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return AdaptiveAveragePool((1, *np.broadcast_to(np.array(layer.output_size), 2).tolist()))
    return None


def inflate_state(state: StateDict) -> StateDict:
    """Return the weights of a 2-D network with square filters (O, I, k, k) as (O, I, k, k, k), divided by k."""
    return {name: _spread(value) if value.ndim == 4 else value for name, value in state.items()}


def _spread(filters: Tensor) -> Tensor:
    size = filters.shape[-1]
    return filters.unsqueeze(2).repeat(1, 1, size, 1, 1) / size


_HIDDEN = 128


class AttentionPool(nn.Module):
    """A weighted mean of slices whose weights, summing to 1, are learnt from their features.

    Args:
        num_features: Of a slice.

    Source: Ilse, Tomczak and Welling, arXiv 1802.04712 (the form without a gate).
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, _HIDDEN, bias=False)
        self.score = nn.Linear(_HIDDEN, 1, bias=False)

    def weigh(self, features: Tensor) -> Tensor:
        """Return the weights (N, S, 1) of slices."""
        weights: Tensor = self.score(self.hidden(features).tanh()).softmax(dim=1)
        return weights

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, F) of (N, S, F)."""
        return (self.weigh(features) * features).sum(dim=1)


class SliceNetwork(nn.Module):
    """Slices of a volume through one 2-D network, then their mean or attention.

    Args:
        network: (N, 3, H, W) to (N, F).
        attention: AttentionPool, or None for the mean.
        planes: "axial": slices along depth; "orthogonal": the middle slice of each of the three axes.
        num_slices: How many axial slices, evenly spaced over depth; 0 = all.
    """

    def __init__(self, network: nn.Module, attention: AttentionPool | None, *, planes: str, num_slices: int) -> None:
        super().__init__()
        self.network, self.attention = network, attention
        self.planes, self.num_slices = planes, num_slices

    def cut(self, volumes: Tensor) -> list[Tensor]:
        """Return slices (N, S, 3, rows, columns), those of one size together."""
        if self.planes == "orthogonal":
            return [volumes.select(axis, volumes.shape[axis] // 2).unsqueeze(1) for axis in (2, 3, 4)]
        depth = volumes.shape[2]
        count = min(self.num_slices or depth, depth)
        # The middles of `count` equal parts of the depth.
        places = [((2 * i + 1) * depth) // (2 * count) for i in range(count)]
        return [volumes[:, :, places].movedim(2, 1)]

    def forward(self, volumes: Tensor) -> Tensor:
        """Return features (N, F) of normalised volumes (N, 3, D, H, W)."""
        parts = [self.network(s.flatten(0, 1)).unflatten(0, s.shape[:2]) for s in self.cut(volumes)]
        features = torch.cat(parts, dim=1)
        pooled: Tensor = features.mean(dim=1) if self.attention is None else self.attention(features)
        return pooled


def build_slices(plan: Blueprint, build: Callable[[Blueprint], Backbone]) -> Backbone:
    """Return the 2.5-D form of a network for images, for volumes (N, 3, D, H, W).

    Args:
        plan: Of the network for images, by its own name; its options are planes ("axial", or "orthogonal" for the three
            middle planes), num_slices (axial ones; 0 = all) and pooling ("mean" or "attention").
        build: The function of its family.

    Raises:
        ConfigError: unknown planes or pooling.
    """
    planes, pooling = plan.options.get("planes", "axial"), plan.options.get("pooling", "mean")
    check_value("model.planes", planes)
    check_value("model.pooling", pooling)
    flat = build(replace(plan, options={}))
    attention = AttentionPool(flat.num_features) if pooling == "attention" else None
    body = SliceNetwork(flat.body, attention, planes=planes, num_slices=plan.options.get("num_slices", 0))
    stages: dict[str, list[str]] = {s: [f"network.{name}" for name in names] for s, names in flat.stage_names.items()}
    layout = WeightsLayout(
        optional=(*(f"network.{name}" for name in flat.layout.optional), "attention."),
        convert=lambda state: name_network(flat.layout.convert(state)),
    )
    return Backbone(
        body,
        num_features=flat.num_features,
        stages=stages | ({} if attention is None else {"attention": ["attention"]}),
        spatial_dims=3,
        layout=layout,
    )


def name_network(state: StateDict) -> StateDict:
    """Return the weights of a 2-D network by their names inside a SliceNetwork."""
    return {f"network.{name}": value for name, value in state.items()}
