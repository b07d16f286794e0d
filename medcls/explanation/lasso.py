"""The Lasso path by least-angle regression: which K features enter first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_TINY = 1e-12


def select_features(X: Floats, y: Floats, count: int) -> NDArray[np.int64]:
    """Returns at most `count` columns, ascending: with a weight at the last corner of the path before it has more.

    Args:
        X: (n, S), centred.
        y: (n,), centred.
        count: K, >= 1.

    Source: Efron et al., Annals of Statistics 32 (2004), section 3.1 (LARS with the Lasso modification).
    """
    gram, target = X.T @ X, X.T @ y
    weights = np.zeros(len(target))
    active: list[int] = []
    chosen = np.flatnonzero(weights)
    limit = _TINY * max(1.0, float(np.abs(target).max(initial=0.0)))
    for _ in range(8 * len(target)):
        agreement = target - gram @ weights
        if float(np.abs(agreement).max(initial=0.0)) <= limit:
            break
        active = active or [int(np.abs(agreement).argmax())]
        step, direction, entering = _find_step(gram, agreement, weights, active=active)
        weights[active] += step * direction
        if entering is None:
            # Nothing joins: a weight reached zero and leaves, or the path has ended in the least-squares fit.
            weights[np.abs(weights) <= _TINY * np.abs(weights).max()] = 0
            active = [i for i in active if weights[i] != 0]
        if np.count_nonzero(weights) > count:
            break
        chosen = np.flatnonzero(weights)
        active += [] if entering is None else [entering]
    return chosen


def _find_step(
    gram: Floats, agreement: Floats, weights: Floats, *, active: list[int]
) -> tuple[float, Floats, int | None]:
    """How far to go along which direction of the active weights, and which feature joins there (None: none does)."""
    height = float(np.abs(agreement[active]).max())
    signs = np.sign(agreement[active])
    direction = np.asarray(np.linalg.lstsq(gram[np.ix_(active, active)], signs, rcond=None)[0], dtype=np.float64)
    fall = gram[:, active] @ direction
    step, entering = height, None
    for j in set(range(len(agreement))) - set(active):
        for reach, rate in ((height - agreement[j], 1 - fall[j]), (height + agreement[j], 1 + fall[j])):
            if rate > _TINY and _TINY * height < reach / rate < step:
                step, entering = float(reach / rate), j
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = np.where(direction != 0, -weights[active] / direction, np.inf)
    crossings[crossings <= _TINY * height] = np.inf
    if len(active) and crossings.min() < step:
        return float(crossings.min()), direction, None
    return step, direction, entering
