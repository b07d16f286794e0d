"""How many grey values a file holds, and how many of them are left in the stored image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW_LEVELS = 32
"""An image with fewer stored levels than this looks like steps. Own choice: a display has 256."""

_MANY_TIMES = 4
_SAMPLE = 1 << 16


@dataclass(frozen=True, slots=True)
class SourceValues:
    """The grey values of a file before they are scaled: samples of a picture, modality values of DICOM.

    Attributes:
        low: Smallest value outside padding.
        high: Largest value outside padding.
        levels: Distinct values among at most 65,536 pixels that lie evenly over the image: at least so many.
        scaling: What turns them into [0, 1], a word of grey.SCALINGS.
    """

    low: float
    high: float
    levels: int
    scaling: str


def take_sample(values: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Return at most 65,536 values that lie evenly over what is not masked, flat; none if all is masked."""
    seen = values.ravel() if mask is None else values[~mask].ravel()
    return seen[:: -(-seen.size // _SAMPLE) or 1]


def count_levels(stored: NDArray[Any]) -> int:
    """Return the distinct values of a stored image or volume (C, *spatial), of the channel that has most."""
    # Half floats sort slowly, and their bits tell them apart as well.
    whole = stored.view(np.uint16) if stored.dtype == np.float16 else stored
    return max(_count(channel) for channel in whole)


def loses_levels(*, source: int, stored: int) -> bool:
    """Return whether an image of many grey levels was stored with few: most of what the file shows is gone."""
    return stored < FEW_LEVELS and source >= _MANY_TIMES * stored


def _count(channel: NDArray[Any]) -> int:
    """Distinct integers; by counting, which is faster than sorting."""
    if channel.size == 0:
        return 0
    low = int(channel.min())
    return int(np.count_nonzero(np.bincount(channel.ravel().astype(np.int64) - low)))
