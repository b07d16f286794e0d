"""Score an image with parts of it hidden; occlusion maps.

Everywhere in this room an image and the background that hides parts of it are (C, *spatial), maps, masks and regions
(*spatial); batch_size is the number of images in one call of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """Return what replaces hidden pixels, (C, *spatial) float32.

    Args:
        image: Image (C, *spatial), any real dtype.
        kind: "blur" (Gaussian, sigma a tenth of the smaller side), "mean" (of each channel), "black" (0), or
            "segment" (each region's own mean, as the lime package has it).
        regions: Region numbers from 0, for "segment".

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
    """Return the score of the image under each mask, (n,); the background is shown where a mask is False."""
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

    Windows are half a side apart; `window` is their side as a share of the image's.

    Source: Zeiler and Fergus, arXiv 1311.2901, section 4.2.
    """
    shape = image.shape[1:]
    boxes = _place_windows(shape, window)

    def draw_masks() -> Iterator[NDArray[np.bool_]]:
        yield np.ones(shape, dtype=bool)
        for box in boxes:
            mask = np.ones(shape, dtype=bool)
            mask[box] = False
            yield mask

    answers = score_masked(score, image, background=background, masks=draw_masks(), batch_size=batch_size)
    falls, times = np.zeros(shape), np.zeros(shape)
    for box, answer in zip(boxes, answers[1:], strict=True):
        falls[box] += answers[0] - answer
        times[box] += 1
    heat: NDArray[np.float32] = (falls / times).astype(np.float32)
    return heat


def count_windows(shape: Sequence[int], window: float) -> int:
    """Return how many windows hide a part of an image of this shape, (*spatial)."""
    return len(_place_windows(shape, window))


def _place_windows(shape: Sequence[int], window: float) -> list[tuple[slice, ...]]:
    """Return windows half a side apart; the last one ends with the image."""
    axes = []
    for length in shape:
        side = max(1, round(window * length))
        starts = sorted({*range(0, length - side, max(1, side // 2)), length - side})
        axes.append([slice(start, start + side) for start in starts])
    return list(product(*axes))
