"""Check by weight randomisation: a map that survives a scrambled network does not depend on the network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import nn

from medcls.reproducibility import make_generator

Heat = NDArray[np.float32]

# Mean |rank correlation| with the maps of the wholly scrambled network from which a method fails.
SANITY_LIMIT = 0.5


class Staged(Protocol):
    """A network that names its stages, from input to output."""

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        """Stage name -> module."""
        ...


Network = TypeVar("Network", bound=Staged)


def plan_cascade(names: Sequence[str]) -> list[list[str]]:
    """Return the stages that are scrambled at each level: the last one, the upper half, all; from output to input."""
    upwards = list(reversed(names))
    depths = sorted({1, (len(upwards) + 1) // 2, len(upwards)})
    return [upwards[:depth] for depth in depths]


def scramble(model: Network, stages: Sequence[str], *, seed: tuple[object, ...]) -> Network:
    """Return a copy of `model` in which the numbers of each tensor of some stages are shuffled.

    Shuffled, not drawn anew: means and spreads stay, so that the scores stay in a usual range.

    Args:
        model: The network; it stays as it is.
        stages: To scramble, running statistics of BatchNorm included.
        seed: The shuffles are a pure function of it.

    Source: Adebayo et al., arXiv 1810.03292, section 3.1 (cascading randomisation).
    """
    scrambled = copy.deepcopy(model)
    for stage in stages:
        for name, tensor in scrambled.stages[stage].state_dict(keep_vars=True).items():
            if tensor.is_floating_point() and tensor.numel() > 1:
                order = make_generator("scramble", *seed, stage, name).permutation(tensor.numel())
                with torch.no_grad():
                    tensor.copy_(tensor.reshape(-1)[torch.from_numpy(order)].reshape(tensor.shape))
    return scrambled


def correlate_ranks(first: NDArray[np.floating], second: NDArray[np.floating]) -> float | None:
    """Return Spearman's rank correlation of two arrays of one shape; None where one is constant.

    Source: Spearman 1904; ties take their mean rank.
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(_rank(first), _rank(second))[0, 1])


def _rank(values: NDArray[np.floating]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()]
    return ranks


def compare_structure(first: Heat, second: Heat) -> float | None:
    """Return the structural similarity of two maps, each stretched to [0, 1]; None where one is constant.

    Source: Wang et al., IEEE TIP 13 (2004), as in scikit-image; window of 7 pixels, or less in small maps.
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    stretched = [(each - each.min()) / np.ptp(each) for each in (first, second)]
    window = min(7, *first.shape)
    size = window - (window + 1) % 2
    return float(structural_similarity(*stretched, win_size=size, data_range=1.0))  # type: ignore[no-untyped-call]
