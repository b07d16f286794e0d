"""Draw a stored image or volume as eight-bit pixels for the eye."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def draw_pixels(image: NDArray[Any], value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Return (H, W, 1) grey or (H, W, 3) RGB of a stored image; of a volume its middle axial slice.

    An axial slice shows no face, which a profile or a rendering of a head would. Of several windows the first is
    shown; three channels are colours.

    Args:
        image: (C, H, W) or (C, D, H, W).
        value_range: (lowest, highest) value that the store's dtype stands for: black and white.
    """
    flat = image[:, image.shape[1] // 2] if image.ndim == 4 else image
    shown = flat if len(flat) == 3 else flat[:1]
    low, high = value_range
    levels = np.clip((shown.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))
