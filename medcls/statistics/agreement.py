"""Agreement of true and predicted values: confusion counts, accuracy, kappa, errors, correlations."""

from __future__ import annotations

import numpy as np

from medcls.statistics.predictions import Floats, Integers, ratio, sum_by_group, weighted_mean


def compute_confusion(
    true: Integers, predicted: Integers, *, num_classes: int, weights: Floats | None = None
) -> Floats:
    """Return counts of (true, predicted) pairs; (R, K, K).

    Args:
        true: (N,) in [0, K).
        predicted: (N,) in [0, K).
        num_classes: K.
        weights: (R, N) multiplicities; one replicate of ones by default.
    """
    drawn = np.ones((1, len(true))) if weights is None else weights
    cells = sum_by_group(drawn, true * num_classes + predicted, num_groups=num_classes**2)
    return cells.reshape(-1, num_classes, num_classes)


def compute_accuracy(confusion: Floats) -> Floats:
    """Share of right predictions; (…,)."""
    return ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1)))


def compute_rates(confusion: Floats) -> dict[str, Floats]:
    """Recall, specificity, PPV, NPV and F1 of each class against the rest; each (…, K).

    Recall and F1 are undefined for a class that has no true row, specificity for one that has all rows, and
    the predictive values in both cases: they would say 0 or 1 whatever the model does. PPV is undefined also
    for a class that is never predicted, NPV for one that is always predicted.

    Source: Altman & Bland 1994 (sensitivity, specificity, predictive values); van Rijsbergen 1979 (F1).
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    present, called = confusion.sum(axis=-1), confusion.sum(axis=-2)
    absent = confusion.sum(axis=(-2, -1))[..., None] - present
    rejected = absent - (called - hits)
    both = (present > 0) & (absent > 0)
    return {
        "recall": ratio(hits, present),
        "specificity": ratio(rejected, absent),
        "ppv": np.where(both, ratio(hits, called), np.nan),
        "npv": np.where(both, ratio(rejected, rejected + present - hits), np.nan),
        "f1": np.where(present > 0, ratio(2 * hits, present + called), np.nan),
    }


def compute_mcc(confusion: Floats) -> Floats:
    """Matthews correlation of true and predicted class; (…,), in [-1, 1].

    Undefined where all rows have one true class or one predicted class.

    Source: Matthews 1975; for more than two classes Gorodkin 2004 (R_K).
    """
    total = confusion.sum(axis=(-2, -1))
    present, called = confusion.sum(axis=-1), confusion.sum(axis=-2)
    covariance = np.trace(confusion, axis1=-2, axis2=-1) * total - (present * called).sum(axis=-1)
    spread_true = total**2 - (present**2).sum(axis=-1)
    spread_predicted = total**2 - (called**2).sum(axis=-1)
    return ratio(covariance, np.sqrt(spread_true * spread_predicted))


def compute_quadratic_kappa(confusion: Floats) -> Floats:
    """Agreement beyond chance with squared distances between grades; (…,), at most 1.

    Undefined where all true and predicted grades are one and the same grade.

    Source: Cohen 1968, weights (i - j)^2.
    """
    total = confusion.sum(axis=(-2, -1))
    present, called = confusion.sum(axis=-1), confusion.sum(axis=-2)
    distance = _grade_distance(confusion) ** 2
    observed = (distance * confusion).sum(axis=(-2, -1))
    expected = ratio((distance * present[..., :, None] * called[..., None, :]).sum(axis=(-2, -1)), total)
    return 1 - ratio(observed, expected)


def compute_grade_errors(confusion: Floats) -> tuple[Floats, Floats]:
    """Mean absolute and mean squared distance between true and predicted grade; two (…,)."""
    distance, total = _grade_distance(confusion), confusion.sum(axis=(-2, -1))
    absolute = ratio((distance * confusion).sum(axis=(-2, -1)), total)
    return absolute, ratio((distance**2 * confusion).sum(axis=(-2, -1)), total)


def _grade_distance(confusion: Floats) -> Floats:
    grade = np.arange(confusion.shape[-1], dtype=np.float64)
    distance: Floats = np.abs(grade[:, None] - grade[None, :])
    return distance


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
    correlation = ratio(covariance, np.sqrt(_variance(true, weights) * _variance(predicted, weights)))
    return np.clip(correlation, -1.0, 1.0)


def compute_spearman(true: Floats, predicted: Floats, *, weights: Floats) -> Floats:
    """Spearman correlation of each replicate, ties by midranks; (R,), NaN where either side is constant.

    Source: Spearman 1904.
    """
    x, y = _centred_midranks(true, weights), _centred_midranks(predicted, weights)
    covariance = (weights * x * y).sum(axis=1)
    spread = (weights * x**2).sum(axis=1) * (weights * y**2).sum(axis=1)
    return np.clip(ratio(covariance, np.sqrt(spread)), -1.0, 1.0)


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
