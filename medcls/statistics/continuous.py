"""Errors and correlations of predicted values, for many replicates at once."""

from __future__ import annotations

import numpy as np

from medcls.statistics.predictions import Floats
from medcls.statistics.weighted import ratio, weighted_mean


def compute_value_errors(true: Floats, predicted: Floats, *, weights: Floats) -> dict[str, Floats]:
    """mae, mse, rmse and r2 of each replicate; each (R,).

    r2 is 1 - squared error / squared error of the mean of the true values (of the same replicate); it may be
    negative, and is undefined where the true values are all equal.

    Args:
        true: (N,).
        predicted: (N,).
        weights: (R, N) multiplicities.

    Source: Draper & Smith 1998 (coefficient of determination).
    """
    error = predicted - true
    mse = weighted_mean(weights, error**2)
    return {
        "mae": weighted_mean(weights, np.abs(error)),
        "mse": mse,
        "rmse": np.sqrt(mse),
        "r2": 1 - ratio(mse, _variance(true, weights)),
    }


def compute_pearson(true: Floats, predicted: Floats, *, weights: Floats) -> Floats:
    """Pearson correlation of each replicate; (R,), NaN where either side is constant.

    Source: Pearson 1895.
    """
    x, y = true - true.mean(), predicted - predicted.mean()
    covariance = weighted_mean(weights, x * y) - weighted_mean(weights, x) * weighted_mean(weights, y)
    return _bounded(ratio(covariance, np.sqrt(_variance(true, weights) * _variance(predicted, weights))))


def compute_spearman(true: Floats, predicted: Floats, *, weights: Floats) -> Floats:
    """Spearman correlation of each replicate, ties by midranks; (R,), NaN where either side is constant.

    Source: Spearman 1904.
    """
    x, y = _centred_midranks(true, weights), _centred_midranks(predicted, weights)
    covariance = (weights * x * y).sum(axis=1)
    spread = (weights * x**2).sum(axis=1) * (weights * y**2).sum(axis=1)
    return _bounded(ratio(covariance, np.sqrt(spread)))


def _centred_midranks(values: Floats, weights: Floats) -> Floats:
    """Rank of every row in every replicate, less the mean rank; (R, N)."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    counted = np.zeros((len(weights), len(values) + 1))
    np.cumsum(weights[:, order], axis=1, out=counted[:, 1:])
    below = counted[:, np.searchsorted(ordered, values, side="left")]
    up_to = counted[:, np.searchsorted(ordered, values, side="right")]
    return np.asarray(0.5 * (below + up_to) - 0.5 * counted[:, -1:])


def _variance(values: Floats, weights: Floats) -> Floats:
    """Variance of each replicate, exactly 0 where all drawn values are equal."""
    centred = values - values.mean()
    variance = weighted_mean(weights, centred**2) - weighted_mean(weights, centred) ** 2
    # The difference of two equal numbers leaves rounding, which would make a constant look like a spread.
    return np.where(variance > 1e-12 * (centred**2).max(initial=0.0), variance, 0.0)


def _bounded(correlation: Floats) -> Floats:
    return np.clip(correlation, -1.0, 1.0)
