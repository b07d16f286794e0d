"""Counts of true against predicted classes, and what follows from them alone.

Every function takes confusion (…, K, K): true class in rows, predicted class in columns, and keeps the
leading axes, so that one call serves all bootstrap replicates. NaN = undefined.
"""

from __future__ import annotations

import numpy as np

from medcls.statistics.predictions import Floats, Integers
from medcls.statistics.weighted import ratio, sum_by_group


def compute_confusion(
    true: Integers, predicted: Integers, *, num_classes: int, weights: Floats | None = None
) -> Floats:
    """Counts of (true, predicted) pairs; (R, K, K).

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
