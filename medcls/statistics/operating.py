"""What a threshold does: error rates, predictive values, likelihood ratios, net benefit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcls.statistics.predictions import Floats
from medcls.statistics.weighted import ratio, sum_by_group


class Counts(NamedTuple):
    """Counts of each replicate at each threshold (a row is called positive at score >= threshold).

    `true_positives` and `false_positives` are (R, T); `positives` and `negatives` (R, 1).
    """

    true_positives: Floats
    false_positives: Floats
    positives: Floats
    negatives: Floats


def count_at_thresholds(
    positive: NDArray[np.bool_], score: Floats, *, thresholds: ArrayLike, weights: Floats | None = None
) -> Counts:
    """Rows called positive at each threshold, by true class.

    Args:
        positive: (N,) whether a row is a case.
        score: (N,) finite.
        thresholds: (T,).
        weights: (R, N) multiplicities; one replicate of ones by default.
    """
    drawn = np.ones((1, len(score))) if weights is None else weights
    chosen = np.asarray(thresholds, dtype=np.float64)
    order = np.argsort(chosen)
    reached = np.searchsorted(chosen[order], score, side="right")
    columns = np.empty_like(order)
    columns[order] = np.arange(len(order))
    hits, alarms = (
        sum_by_group(drawn[:, rows], reached[rows], num_groups=len(chosen) + 1)[:, ::-1].cumsum(axis=1)[:, ::-1]
        for rows in (positive, ~positive)
    )
    return Counts(hits[:, 1:][:, columns], alarms[:, 1:][:, columns], hits[:, :1], alarms[:, :1])


def compute_operating_rates(counts: Counts) -> dict[str, Floats]:
    """Sensitivity, specificity, PPV, NPV and both likelihood ratios; each (R, T), NaN = undefined.

    Predictive values are undefined without cases or without others, as in `agreement.compute_rates`.

    Source: Altman & Bland 1994 (rates); Deeks & Altman 2004 (likelihood ratios).
    """
    hits, alarms = counts.true_positives, counts.false_positives
    rejected, missed = counts.negatives - alarms, counts.positives - hits
    sensitivity, specificity = ratio(hits, counts.positives), ratio(rejected, counts.negatives)
    both = (counts.positives > 0) & (counts.negatives > 0)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": np.where(both, ratio(hits, hits + alarms), np.nan),
        "npv": np.where(both, ratio(rejected, rejected + missed), np.nan),
        "lr_positive": ratio(sensitivity, 1 - specificity),
        "lr_negative": ratio(1 - sensitivity, specificity),
    }


def compute_predictive_values(
    sensitivity: ArrayLike, specificity: ArrayLike, *, prevalence: float
) -> tuple[Floats, Floats]:
    """PPV and NPV at a stated prevalence instead of that of the rows; two arrays of the shape of the inputs.

    Args:
        sensitivity: In [0, 1].
        specificity: In [0, 1].
        prevalence: Share of cases where the model will be used, in (0, 1).

    Raises:
        ValueError: prevalence is not between 0 and 1.

    Source: Altman & Bland 1994 (predictive values by Bayes' theorem).
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence is {prevalence}; expected a share between 0 and 1")
    found = np.asarray(sensitivity, dtype=np.float64) * prevalence
    cleared = np.asarray(specificity, dtype=np.float64) * (1 - prevalence)
    missed, alarmed = prevalence - found, (1 - prevalence) - cleared
    return ratio(found, found + alarmed), ratio(cleared, cleared + missed)


def compute_net_benefit(counts: Counts, *, thresholds: ArrayLike) -> tuple[Floats, Floats]:
    """Net benefit of the model and of calling every row positive; two (R, T). Calling none has 0.

    True positives less false positives at the odds of the threshold, per row: what a reader gains who thinks
    1/t - 1 needless positives as bad as one missed case.

    Args:
        counts: At these thresholds, of calibrated probabilities.
        thresholds: (T,) probabilities, in [0, 1).

    Source: Vickers & Elkin 2006.
    """
    chosen = np.asarray(thresholds, dtype=np.float64)
    odds, total = chosen / (1 - chosen), counts.positives + counts.negatives
    model = ratio(counts.true_positives - odds * counts.false_positives, total)
    return model, ratio(counts.positives - odds * counts.negatives, total)
