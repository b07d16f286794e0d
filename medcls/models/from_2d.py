"""2-D networks and their weights made 3-D: every k x k filter becomes k x k x k, the same in each slice and 1/k of it.

A volume that is constant along depth gives the features of the 2-D network on one of its slices, borders included:
where a filter reaches over the end of the volume along depth, what is left of it is scaled up to its full weight, so
that padding with zeros takes nothing away (in plane nothing changes: the 2-D network pads with zeros there, too).

Source: inflation and 1/k, Carreira and Zisserman, arXiv 1705.07750; the scaling at the ends, partial
convolution, Liu et al., arXiv 1811.11718, along depth alone; own choice, docs/decisions/0022.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcls.models.backbones import Backbone, StateDict, build_backbone
from medcls.models.pooling import AdaptiveAveragePool, MaxPool3d

PREFIX = "inflated_"


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
        """Returns (N, C', D', H', W') of (N, C, D, H, W)."""
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


def build_inflated(name: str, *, dropout: float = 0.0) -> Backbone:
    """Returns the 3-D form of a VGG or ResNet, randomly initialised, of volumes (N, 3, D, H, W).

    Args:
        name: "inflated_" and one of backbones.ARCHITECTURES.
        dropout: Of VGG's two fully connected layers, [0, 1).

    Raises:
        ConfigError: unknown name.
    """
    backbone = build_backbone(name.removeprefix(PREFIX), dropout=dropout, change=inflate_layers)
    backbone.spatial_dims, backbone.convert = 3, inflate_state
    return backbone


def inflate_layers(module: nn.Module) -> None:
    """Replaces the 2-D layers in a network by their 3-D forms, whose weights are new."""
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
    """Returns the weights of a 2-D network with square filters (O, I, k, k) as (O, I, k, k, k), divided by k."""
    return {name: _spread(value) if value.ndim == 4 else value for name, value in state.items()}


def _spread(filters: Tensor) -> Tensor:
    size = filters.shape[-1]
    return filters.unsqueeze(2).repeat(1, 1, size, 1, 1) / size
