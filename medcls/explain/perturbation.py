"""What a score says when parts of the image are hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.filters import gaussian
from torch import Tensor

BACKGROUNDS = ("blur", "mean", "black", "segment")
Score = Callable[[Tensor], Tensor]
"""Images (N, C, *spatial) float32 to (N,) float; differentiable where a method asks for gradients."""

# Of the smaller side: nothing smaller than a tenth of the image survives.
_BLUR = 0.1


def build_background(
    image: NDArray[Any], *, kind: str, regions: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Returns what stands where the image is hidden, (C, *spatial) float32.

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
    """Returns the score of the image under each mask, (n,).

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
