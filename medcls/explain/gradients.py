"""Integrated gradients: the change of the score from a background to the image, shared out over the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medcls.explain.perturbation import Score


def explain_integrated_gradients(
    score: Score, image: NDArray[Any], *, background: NDArray[np.float32], steps: int = 64, batch_size: int = 64
) -> tuple[NDArray[np.float32], float]:
    """Returns the map (*spatial), summed over the channels, and how far its sum misses the change of the score.

    The second value is the completeness gap |sum - (f(image) - f(background))|, in units of the score; more steps make
    it smaller.

    Args:
        score: Differentiable.
        image: (C, *spatial).
        background: (C, *spatial): where the path begins.
        steps: Points on the path (midpoint rule).
        batch_size: Images in one call of `score`.

    Source: Sundararajan, Taly and Yan, arXiv 1703.01365, equation 1; completeness: proposition 1.
    """
    start = torch.from_numpy(background)[None]
    change = torch.from_numpy(image.astype(np.float32))[None] - start
    shares = ((torch.arange(steps) + 0.5) / steps).view(-1, *[1] * (change.ndim - 1))
    total = torch.zeros(change.shape[1:], dtype=torch.float64)
    for part in torch.split(shares, batch_size):
        points = (start + part * change).requires_grad_()
        with torch.enable_grad():
            (slopes,) = torch.autograd.grad(score(points).sum(), points)
        total += slopes.double().sum(dim=0) / steps
    heat = (total * change[0]).sum(dim=0).numpy()
    with torch.inference_mode():
        whole, empty = score(torch.cat([start + change, start])).double().tolist()
    return heat.astype(np.float32), abs(float(heat.sum()) - (whole - empty))
