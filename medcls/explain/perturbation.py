"""Occlusion maps: the score with parts of the image hidden."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.filters import gaussian
from torch import Tensor

Score = Callable[[Tensor], Tensor]
"""Images (N, C, *spatial) float32 to (N,) float; differentiable where a method asks for gradients."""

# Of the smaller side: nothing smaller than a tenth of the image survives.
_BLUR = 0.1


def build_background(
    image: NDArray[Any], *, kind: str, regions: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Return what stands where the image is hidden, (C, *spatial) float32.

    Args:
        image: (C, *spatial).
        kind: "blur" (Gaussian, sigma a tenth of the smaller side), "mean" (of each channel), "black" (0), or
            "segment" (each region's own mean, as the lime package has it).
        regions: (*spatial) region numbers; for "segment".

    Raises:
        ValueError: unknown kind, or "segment" without regions.

    Source: own choice, docs/decisions/0014-explanations.md.
    """
    pixels = image.astype(np.float32)
    if kind == "black":
        return np.zeros_like(pixels)
    if kind == "mean":
        means = pixels.mean(axis=tuple(range(1, pixels.ndim)), keepdims=True)
        return np.broadcast_to(means, pixels.shape).astype(np.float32)
    if kind == "blur":
        sigma = _BLUR * min(pixels.shape[1:])
        blurred = gaussian(pixels, sigma=sigma, channel_axis=0, preserve_range=True)  # type: ignore[no-untyped-call]
        return np.asarray(blurred, dtype=np.float32)
    if kind != "segment" or regions is None:
        raise ValueError(f"background={kind}: expected blur, mean, black, or segment with regions")
    sizes = np.bincount(regions.ravel())
    means = [np.bincount(regions.ravel(), weights=plane.ravel()) / sizes for plane in pixels]
    return np.stack([each[regions] for each in means]).astype(np.float32)


def score_masked(
    score: Score,
    image: NDArray[Any],
    *,
    background: NDArray[np.float32],
    masks: Iterable[NDArray[np.bool_]],
    batch_size: int = 64,
) -> NDArray[np.float64]:
    """Return the score of the image under each mask, (n,).

    Args:
        score: What is explained.
        image: (C, *spatial).
        background: (C, *spatial): stands where a mask is False.
        masks: (*spatial) each.
        batch_size: Images in one call of `score`.
    """
    shown, hidden = torch.from_numpy(image.astype(np.float32)), torch.from_numpy(background)
    remaining, answers = iter(masks), [np.empty(0)]
    with torch.inference_mode():
        while batch := list(islice(remaining, batch_size)):
            keep = torch.from_numpy(np.stack(batch))[:, None]
            answers.append(score(torch.where(keep, shown, hidden)).double().cpu().numpy())
    return np.concatenate(answers)


def explain_occlusion(
    score: Score, image: NDArray[Any], *, background: NDArray[np.float32], window: float = 0.15, batch_size: int = 64
) -> NDArray[np.float32]:
    """Return the map (*spatial): the mean fall of the score over the windows that hide each pixel.

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
    """Start half a side apart; the last window ends with the image."""
    return sorted({*range(0, length - side, max(1, side // 2)), length - side})


def _hide(shape: tuple[int, ...], box: tuple[slice, ...]) -> NDArray[np.bool_]:
    mask = np.ones(shape, dtype=bool)
    mask[box] = False
    return mask
