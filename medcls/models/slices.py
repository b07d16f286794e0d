"""2.5-D: a 2-D network over slices of a volume, and one feature vector of theirs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medcls.errors import ConfigError
from medcls.models.backbones import Backbone, StateDict, build_backbone

PREFIX = "slices_"
PLANES = ("axial", "orthogonal")
POOLINGS = ("mean", "attention")
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
        """Returns the weights (N, S, 1) of slices."""
        weights: Tensor = self.score(self.hidden(features).tanh()).softmax(dim=1)
        return weights

    def forward(self, features: Tensor) -> Tensor:
        """Returns (N, F) of (N, S, F)."""
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
        """Returns slices (N, S, 3, rows, columns), those of one size together."""
        if self.planes == "orthogonal":
            return [volumes.select(axis, volumes.shape[axis] // 2).unsqueeze(1) for axis in (2, 3, 4)]
        depth = volumes.shape[2]
        count = min(self.num_slices or depth, depth)
        # The middles of `count` equal parts of the depth.
        places = [((2 * i + 1) * depth) // (2 * count) for i in range(count)]
        return [volumes[:, :, places].movedim(2, 1)]

    def forward(self, volumes: Tensor) -> Tensor:
        """Returns features (N, F) of normalised volumes (N, 3, D, H, W)."""
        parts = [self.network(s.flatten(0, 1)).unflatten(0, s.shape[:2]) for s in self.cut(volumes)]
        features = torch.cat(parts, dim=1)
        pooled: Tensor = features.mean(dim=1) if self.attention is None else self.attention(features)
        return pooled


def build_slices(
    name: str, *, dropout: float = 0.0, planes: str = "axial", num_slices: int = 0, pooling: str = "mean"
) -> Backbone:
    """Returns a randomly initialised 2.5-D backbone of volumes (N, 3, D, H, W).

    Args:
        name: "slices_" and one of backbones.ARCHITECTURES.
        dropout: Of VGG's two fully connected layers, [0, 1).
        planes: One of PLANES.
        num_slices: How many axial slices; 0 = all.
        pooling: One of POOLINGS.

    Raises:
        ConfigError: unknown name, planes or pooling.
    """
    if planes not in PLANES or pooling not in POOLINGS:
        raise ConfigError(
            f"model.planes={planes}, model.pooling={pooling}: expected {' or '.join(PLANES)}, {' or '.join(POOLINGS)}"
        )
    flat = build_backbone(name.removeprefix(PREFIX), dropout=dropout)
    attention = AttentionPool(flat.num_features) if pooling == "attention" else None
    body = SliceNetwork(flat.body, attention, planes=planes, num_slices=num_slices)
    stages: dict[str, Any] = {stage: list(modules) for stage, modules in flat.stages.items()}
    return Backbone(
        body,
        num_features=flat.num_features,
        stages=stages | ({} if attention is None else {"attention": [attention]}),
        spatial_dims=3,
        optional=(*(f"network.{name}" for name in flat.optional), "attention."),
        convert=name_network,
    )


def name_network(state: StateDict) -> StateDict:
    """Returns the weights of a 2-D network by their names inside a SliceNetwork."""
    return {f"network.{name}": value for name, value in state.items()}
