"""Parts of stored volumes: a random one for training, the middle one for everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Patch:
    """A box cut out of a stored volume (C, D, H, W), in stored voxels.

    Attributes:
        size: (D, H, W) of the box.
    """

    size: tuple[int, int, int]

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Returns (C, D, H, W) of what is cut out of stored volumes."""
        return (stored[0], *self.size)

    def check(self, stored: tuple[int, ...]) -> None:
        """Raises ConfigError where the store holds images, or volumes smaller than the box."""
        if len(stored) != 4 or any(part > whole for part, whole in zip(self.size, stored[1:], strict=True)):
            holds = f"volumes {stored}" if len(stored) == 4 else f"images {stored}"
            raise ConfigError(
                f"patch.size={list(self.size)}: the store holds {holds}; expected volumes at least as large"
            )

    def take_center(self, image: NDArray[Any]) -> NDArray[Any]:
        """Returns the middle of a volume, a view."""
        return self._take(image, [(side - part) // 2 for side, part in zip(image.shape[1:], self.size, strict=True)])

    def take_random(self, image: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        """Returns a box of a volume, a view; every place is as likely.

        Args:
            image: As stored.
            generator: Of this sample alone; three draws.
        """
        pairs = zip(image.shape[1:], self.size, strict=True)
        return self._take(image, [int(generator.integers(side - part, endpoint=True)) for side, part in pairs])

    def _take(self, image: NDArray[Any], corner: list[int]) -> NDArray[Any]:
        return image[(slice(None), *(slice(a, a + n) for a, n in zip(corner, self.size, strict=True)))]
