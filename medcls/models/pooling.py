"""Pooling of volumes with a deterministic backward pass, on CUDA too.

torch has no deterministic CUDA backward for MaxPool3d, AvgPool3d and AdaptiveAvgPool3d (they add with atomics). These
are made of slices, maxima and matrix products alone, and give the same numbers (own choice, docs/decisions/0022).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ATOMIC = (nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
_ATOMIC_UNLESS_GLOBAL = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


class MaxPool3d(nn.Module):
    """The largest value of each window, as torch's MaxPool3d; on CUDA with a backward pass that is deterministic.

    Args:
        kernel_size: Of the window along each of depth, height and width.
        stride: From window to window.
        padding: On both sides, with minus infinity.
    """

    def __init__(self, kernel_size: int = 2, *, stride: int = 2, padding: int = 0) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, maps: Tensor) -> Tensor:
        """Return (N, C, D', H', W') of (N, C, D, H, W), D' = (D + 2 padding - kernel_size) // stride + 1."""
        if not maps.is_cuda:
            # The CPU's own is deterministic, and four times as fast as slices.
            return F.max_pool3d(maps, self.kernel_size, self.stride, self.padding)
        return max_of_slices(maps, self.kernel_size, stride=self.stride, padding=self.padding)


def max_of_slices(maps: Tensor, kernel_size: int, *, stride: int, padding: int) -> Tensor:
    """Return what MaxPool3d does; equal largest values of a window share its gradient."""
    if padding:
        maps = F.pad(maps, [padding] * 6, value=-math.inf)
    for axis in (2, 3, 4):
        windows = (maps.shape[axis] - kernel_size) // stride + 1
        every = (slice(None),) * axis + (slice(None, None, stride),)
        slices = [maps.narrow(axis, k, stride * (windows - 1) + 1)[every] for k in range(kernel_size)]
        maps = functools.reduce(torch.maximum, slices)
    return maps


class GlobalAveragePool(nn.Module):
    """The mean over all spatial axes, which stay with length 1."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return (N, C, 1, …) of (N, C, *spatial)."""
        return maps.mean(dim=tuple(range(2, maps.ndim)), keepdim=True)


class AdaptiveAveragePool(nn.Module):
    """Means over windows that divide each axis into a given number of parts, as torch's AdaptiveAvgPool does.

    Args:
        size: Parts along each spatial axis.
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (N, C, *size) of (N, C, *spatial)."""
        for axis, parts in enumerate(self.size, start=2):
            weights = window_weights(maps.shape[axis], parts).to(maps)
            maps = torch.movedim(torch.movedim(maps, axis, -1) @ weights.T, -1, axis)
        return maps


def window_weights(length: int, parts: int) -> Tensor:
    """Return the matrix (parts, length) of adaptive average pooling along one axis.

    Window i goes from floor(i length / parts) to ceil((i + 1) length / parts).
    """
    weights = torch.zeros(parts, length)
    for part in range(parts):
        start, end = part * length // parts, -(-(part + 1) * length // parts)
        weights[part, start:end] = 1 / (end - start)
    return weights


def repeat_to(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (N, C, D, H, W) with every voxel twice along each axis, the last once more where a size is odd."""
    for axis, length in enumerate(size, start=2):
        last = maps.narrow(axis, maps.shape[axis] - 1, 1)
        maps = maps.repeat_interleave(2, dim=axis)
        maps = torch.cat([maps, last], dim=axis) if maps.shape[axis] < length else maps
    return maps


def list_nondeterministic(model: nn.Module) -> list[str]:
    """Return the kinds of layers whose backward pass is not deterministic on CUDA, for the environment record."""
    return sorted({type(module).__name__ for module in model.modules() if _adds_with_atomics(module)})


def _adds_with_atomics(module: nn.Module) -> bool:
    if isinstance(module, _ATOMIC_UNLESS_GLOBAL):
        # torch takes a plain mean where the result is one value a map, as in a ResNet.
        return set(np.ravel(np.array(module.output_size))) != {1}
    return isinstance(module, _ATOMIC)
