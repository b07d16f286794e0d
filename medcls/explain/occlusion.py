"""Occlusion: how far the score falls when a window of the image is hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.explain.perturbation import Score, score_masked


def explain_occlusion(
    score: Score, image: NDArray[Any], *, background: NDArray[np.float32], window: float = 0.15, batch_size: int = 64
) -> NDArray[np.float32]:
    """Returns the map (*spatial): the mean fall of the score over the windows that hide each pixel.

    Args:
        score: What is explained.
        image: (C, *spatial).
        background: (C, *spatial): stands inside the window.
        window: Side of the window as a share of the image's; windows are half a side apart.
        batch_size: Images in one call of `score`.

    Source: Zeiler and Fergus, arXiv 1311.2901, section 4.2.
    """
    shape = image.shape[1:]
    sides = [max(1, round(window * length)) for length in shape]
    starts = [_place(length, side) for length, side in zip(shape, sides, strict=True)]
    boxes = [tuple(slice(a, a + s) for a, s in zip(corner, sides, strict=True)) for corner in product(*starts)]
    masks = (np.ones(shape, dtype=bool), *(_hide(shape, box) for box in boxes))
    answers = score_masked(score, image, background=background, masks=masks, batch_size=batch_size)
    falls, times = np.zeros(shape), np.zeros(shape)
    for box, answer in zip(boxes, answers[1:], strict=True):
        falls[box] += answers[0] - answer
        times[box] += 1
    heat: NDArray[np.float32] = (falls / times).astype(np.float32)
    return heat


def count_windows(shape: Sequence[int], window: float) -> int:
    """Return how many windows hide a part of an image of this shape, (*spatial)."""
    return math.prod(len(_place(length, max(1, round(window * length)))) for length in shape)


def _place(length: int, side: int) -> list[int]:
    """Starts half a side apart; the last window ends with the image."""
    return sorted({*range(0, length - side, max(1, side // 2)), length - side})


def _hide(shape: tuple[int, ...], box: tuple[slice, ...]) -> NDArray[np.bool_]:
    mask = np.ones(shape, dtype=bool)
    mask[box] = False
    return mask
