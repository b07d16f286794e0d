"""Normalise stored volumes to a 3-D network's input, on the device that computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medcls.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NORMALIZATIONS = ("stored", "min_max", "z_score")
_SPATIAL = (2, 3, 4)
_LEAST_RANGE = 1e-6


class VolumeNormalization(nn.Module):
    """Stored values to float32, every channel of every volume by itself.

    "stored" maps the range of the store's dtype (of Hounsfield units, HU_RANGE) to [0, 1]: one scale for all volumes.
    "min_max" maps each volume's own range to [0, 1]. "z_score" gives each volume mean 0 and standard deviation 1 over
    its foreground, which is what lies above the lowest stored value: padding and empty air do not count. All three
    are rising lines, so that the background stays the darkest; by z_score it is below zero and never the mean.
    A volume of one value becomes zeros.

    Args:
        kind: One of NORMALIZATIONS.
        value_range: (lowest, highest) value that the store's dtype stands for.

    Raises:
        ConfigError: an unknown kind.

    Source: min_max: the code of Hosseini-Asl et al. 2016 divides by the maximum after subtracting the minimum. z_score:
    own choice after the foreground statistics of Isensee et al. 2021 (nnU-Net), which sets the background to 0.
    """

    def __init__(self, kind: str, value_range: tuple[float, float]) -> None:
        super().__init__()
        if kind not in NORMALIZATIONS:
            raise ConfigError(f"model.normalize={kind}: expected one of {', '.join(NORMALIZATIONS)}")
        self.kind = kind
        self.low, self.high = value_range

    def forward(self, volumes: Tensor, like: Tensor | None = None) -> Tensor:
        """Return (N, C, D, H, W) float32 of stored volumes (N, C, D, H, W).

        Args:
            volumes: As stored.
            like: As many volumes, by whose numbers these are normalised (corrupted by intact ones); None = their own.
        """
        scaled = self._scale(volumes)
        if self.kind == "stored":
            return scaled
        shift, spread = self._measure(scaled if like is None else self._scale(like))
        return (scaled - shift) / spread.clamp(min=_LEAST_RANGE)

    def _scale(self, volumes: Tensor) -> Tensor:
        return (volumes.float() - self.low) / (self.high - self.low)

    def _measure(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Return what becomes 0 and how much becomes 1, (N, C, 1, 1, 1) each."""
        if self.kind == "min_max":
            low = scaled.amin(dim=_SPATIAL, keepdim=True)
            return low, scaled.amax(dim=_SPATIAL, keepdim=True) - low
        inside = scaled > 0
        count = inside.sum(dim=_SPATIAL, keepdim=True).clamp(min=1)
        mean = (scaled * inside).sum(dim=_SPATIAL, keepdim=True) / count
        variance = ((scaled - mean).square() * inside).sum(dim=_SPATIAL, keepdim=True) / count
        return mean, variance.sqrt()


class ColourNormalization(nn.Module):
    """Stored volumes to the three channels that the weights of a network for images expect; grey is repeated.

    z_score has mean 0 and deviation 1 already; values in [0, 1] are normalised as colours are.

    Args:
        inner: Stored values to float.
        mean: What becomes 0, of each channel.
        std: What becomes 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        inner: VolumeNormalization,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.inner = inner
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1, 1), persistent=False)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return (N, 3, D, H, W) float32 of stored volumes (N, 1 or 3, D, H, W)."""
        normalised: Tensor = self.inner(volumes)
        if self.inner.kind == "z_score":
            return normalised.expand(-1, 3, -1, -1, -1)
        return (normalised - self.mean) / self.std
