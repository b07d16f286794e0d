"""Crops of stored images and patches of volumes: random for training, central otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medcls.errors import ConfigError

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Crop:
    """How a stored image (C, H, W) reaches the network: its shortest side is rescaled, and a square is cut out.

    Attributes:
        size: Side of the square, pixels; None = the whole rescaled image.
        scale_min: Smallest shortest side in training, pixels.
        scale_max: Largest.

    Source: Simonyan and Zisserman, arXiv 1409.1556, sections 3.1 (training scale S) and 3.2 (test scale Q).
    """

    size: int | None
    scale_min: int
    scale_max: int

    @property
    def scale(self) -> int:
        """Shortest side outside training, Q: the middle of the training scales."""
        return (self.scale_min + self.scale_max) // 2

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return (C, H, W) of what is cut out of stored images (C, H, W)."""
        return (stored[0], self.size, self.size) if self.size else (stored[0], *scale_sides(stored[1:], self.scale))

    def check(self, stored: tuple[int, ...]) -> None:
        """Raise ConfigError where stored images (C, H, W) are smaller than the largest scale: none is enlarged."""
        if len(stored) != 3:
            raise ConfigError(f"crop.scales: the store holds volumes {stored}; only images are rescaled and cropped")
        if min(stored[1:]) < self.scale_max:
            raise ConfigError(
                f"crop.scales=[{self.scale_min},{self.scale_max}]: the store has images of {stored[1]} x {stored[2]}, "
                "which are never enlarged: prepare it with a larger image.size, or lower crop.scales"
            )

    def take_center(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the middle of an image (C, H, W) at the scale Q, `shape` large, of the same dtype."""
        scaled = rescale(image, self.scale)
        if self.size is None:
            return scaled
        top, left = ((side - self.size) // 2 for side in scaled.shape[1:])
        return scaled[:, top : top + self.size, left : left + self.size]

    def take_random(self, image: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        """Return a part of an image (C, H, W), `shape` large, of the same dtype, at a random scale and place.

        Args:
            image: As stored.
            generator: Of this sample alone; three draws: scale, top, left.
        """
        scaled = rescale(image, int(generator.integers(self.scale_min, self.scale_max, endpoint=True)))
        if self.size is None:
            return scaled
        top, left = (int(generator.integers(side - self.size, endpoint=True)) for side in scaled.shape[1:])
        return scaled[:, top : top + self.size, left : left + self.size]

    def place_box(self, box: Box, stored: tuple[int, ...]) -> Box | None:
        """Return a box (y, x, height, width) of stored pixels in pixels of `take_center`; None where it lies outside.

        Args:
            box: Whole pixels; it is widened to whole pixels.
            stored: (C, H, W) of the stored images.
        """
        sides = scale_sides(stored[1:], self.scale)
        ends = []
        for start, length, before, after in zip(box[:2], box[2:], stored[1:], sides, strict=True):
            kept = self.size or after
            offset = (after - kept) // 2
            low = max(0, start * after // before - offset)
            high = min(kept, -(-(start + length) * after // before) - offset)
            ends.append((low, high - low))
        (y, height), (x, width) = ends
        return (y, x, height, width) if min(height, width) > 0 else None


def scale_sides(sides: tuple[int, ...], scale: int) -> tuple[int, ...]:
    """Return (H, W) with `scale` as the shorter one, proportions kept to the pixel."""
    shortest = min(sides)
    return tuple((2 * side * scale + shortest) // (2 * shortest) for side in sides)


def rescale(image: NDArray[Any], scale: int) -> NDArray[Any]:
    """Return an image (C, H, W), uint8 or uint16, shrunk by area until its shortest side has `scale` pixels.

    Raises:
        ValueError: the image is smaller.
    """
    sides = image.shape[1:]
    if min(sides) == scale:
        return image
    if min(sides) < scale:
        raise ValueError(f"shortest side {min(sides)} < scale {scale}: images are never enlarged")
    height, width = scale_sides(sides, scale)
    return np.stack([cv2.resize(channel, (width, height), interpolation=cv2.INTER_AREA) for channel in image])


@dataclass(frozen=True, slots=True)
class Patch:
    """A box cut out of a stored volume (C, D, H, W), in stored voxels.

    Attributes:
        size: (D, H, W) of the box.
    """

    size: tuple[int, int, int]

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return (C, D, H, W) of what is cut out of stored volumes."""
        return (stored[0], *self.size)

    def check(self, stored: tuple[int, ...]) -> None:
        """Raise ConfigError where the store holds images, or volumes smaller than the box."""
        if len(stored) != 4 or any(part > whole for part, whole in zip(self.size, stored[1:], strict=True)):
            holds = f"volumes {stored}" if len(stored) == 4 else f"images {stored}"
            raise ConfigError(
                f"patch.size={list(self.size)}: the store holds {holds}; expected volumes at least as large"
            )

    def take_center(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the middle of a volume, a view."""
        return self._take(image, [(side - part) // 2 for side, part in zip(image.shape[1:], self.size, strict=True)])

    def take_random(self, image: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        """Return a box of a volume, a view; every place is as likely.

        Args:
            image: As stored.
            generator: Of this sample alone; three draws.
        """
        pairs = zip(image.shape[1:], self.size, strict=True)
        return self._take(image, [int(generator.integers(side - part, endpoint=True)) for side, part in pairs])

    def _take(self, image: NDArray[Any], corner: list[int]) -> NDArray[Any]:
        return image[(slice(None), *(slice(a, a + n) for a, n in zip(corner, self.size, strict=True)))]
