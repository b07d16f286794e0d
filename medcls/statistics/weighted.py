"""Sums over rows for many bootstrap replicates at once.

A replicate is a row of integer multiplicities: how often each image was drawn. All metrics of this room take
weights (R, N) and answer (R,) values; the plain metric is the replicate of all ones. So the number in the
table and the numbers behind its interval come from the same lines.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcls.statistics.predictions import Floats


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Quotient of the two, broadcast; NaN where the denominator is not above zero.

    Source: own choice: an undefined share is NaN, never 0.
    """
    above, below = np.broadcast_arrays(
        np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    )
    quotient: Floats = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return quotient


def weighted_mean(weights: Floats, rows: Floats) -> Floats:
    """Mean of `rows` in each replicate; (R,).

    Args:
        weights: (R, N) multiplicities, >= 0.
        rows: (N,) values, finite.
    """
    return ratio(weights @ rows, weights.sum(axis=1))


def sum_by_group(weights: Floats, group: NDArray[np.integer], *, num_groups: int) -> Floats:
    """Sum of the weights in each group; (R, num_groups).

    Args:
        weights: (R, N).
        group: (N,) group of each row, in [0, num_groups).
        num_groups: Number of groups; those without rows get 0.
    """
    return np.stack([np.bincount(group, weights=replicate, minlength=num_groups) for replicate in weights])
