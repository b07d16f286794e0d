"""Areas under the ROC and the precision-recall curve, and the curves themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcls.statistics.predictions import Floats, ratio, sum_by_group

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rows put in slots once by score, so that a replicate costs one count of its weights, without sorting.

    Only the M distinct scores of positives matter: slot 2k + 1 holds the rows that have the k-th of them, slot 2k
    those between it and the one before, slot 2M those above all.

    Attributes:
        rows: (n,) rows that take part, or None for all.
        slot: (n,) slot of each of these rows.
        positives: (p,) rows of the positive class.
        level: (p,) index k of the score of each of them.
        num_levels: M.
    """

    rows: Indices | None
    slot: Indices
    positives: Indices
    level: Indices
    num_levels: int


def build_ranking(positive: NDArray[np.bool_], score: Floats, *, rows: Indices | None = None) -> Ranking:
    """Return the slots of the scores.

    Args:
        positive: (N,) whether a row is of the positive class.
        score: (N,) finite; higher means more likely positive.
        rows: Rows that take part (labels known); all by default.
    """
    chosen = np.arange(len(score)) if rows is None else rows
    positives = chosen[positive[chosen]]
    levels, level = np.unique(score[positives], return_inverse=True)
    below, up_to = (np.searchsorted(levels, score[chosen], side=side) for side in ("left", "right"))
    everyone = len(chosen) == len(score)
    return Ranking(None if everyone else chosen, below + up_to, positives, level, len(levels))


def compute_areas(ranking: Ranking, weights: Floats) -> tuple[Floats, Floats]:
    """AUC and average precision of each replicate; two (R,), NaN where a class is absent.

    The AUC is the probability that a random positive scores above a random negative, ties counting one half.
    Average precision is the sum of precision times the step in recall over the distinct scores, without
    interpolation.

    Args:
        ranking: Of N rows.
        weights: (R, N) multiplicities.

    Source: Hanley & McNeil 1982 (AUC as the Mann-Whitney statistic, ties by half); average precision as in
        scikit-learn, after Manning, Raghavan & Schütze 2008, chapter 8.
    """
    taking_part = weights if ranking.rows is None else weights[:, ranking.rows]
    counted = sum_by_group(taking_part, ranking.slot, num_groups=2 * ranking.num_levels + 1).cumsum(axis=1)
    below, up_to, total = counted[:, :-1:2], counted[:, 1::2], counted[:, -1]
    hits = sum_by_group(weights[:, ranking.positives], ranking.level, num_groups=ranking.num_levels)
    positive = hits.sum(axis=1)
    # Positives beat or tie one another in exactly half of all pairs, so they need no ranking of their own.
    wins = 0.5 * (hits * (below + up_to)).sum(axis=1) - 0.5 * positive**2
    auc = ratio(wins, positive * (total - positive))
    recalled = hits[:, ::-1].cumsum(axis=1)[:, ::-1]
    precision = np.nan_to_num(ratio(recalled, total[:, None] - below))
    average = ratio((hits * precision).sum(axis=1), positive)
    return auc, np.where(np.isnan(auc), np.nan, average)


def compute_auc(ranking: Ranking, weights: Floats) -> Floats:
    """Return the AUC of `compute_areas` alone, several times faster; (R,), NaN where a class is absent.

    Only the positives are counted by level; every other row looks up how many of them it loses to.

    Args:
        ranking: Of N rows.
        weights: (R, N) multiplicities.

    Source: Hanley & McNeil 1982.
    """
    areas = np.empty(len(weights))
    for number, drawn in enumerate(weights):
        hits = np.bincount(ranking.level, weights=drawn[ranking.positives], minlength=ranking.num_levels)
        # Slot 2k + 1 ties with the k-th level and loses to those above; slot 2k loses to the k-th level, too.
        above = np.zeros(2 * ranking.num_levels + 1)
        above[:-1:2] = hits[::-1].cumsum()[::-1]
        above[1::2] = above[:-1:2] - 0.5 * hits
        taking_part = drawn if ranking.rows is None else drawn[ranking.rows]
        positive, total = hits.sum(), taking_part.sum()
        wins = taking_part @ above.take(ranking.slot) - 0.5 * positive**2
        areas[number] = ratio(wins, positive * (total - positive))
    return areas


class Curve(NamedTuple):
    """Counts at every distinct score, from the strictest threshold down; all (T,).

    `thresholds` starts with infinity (nothing is called positive).
    """

    thresholds: Floats
    true_positives: Floats
    false_positives: Floats


def compute_curve(positive: ArrayLike, score: ArrayLike, *, weights: ArrayLike | None = None) -> Curve:
    """Cumulative true and false positives over all thresholds.

    Args:
        positive: (N,) 0/1 or bool.
        score: (N,) finite.
        weights: (N,) multiplicities; ones by default.

    Source: Fawcett 2006, algorithm 1.
    """
    is_positive = np.asarray(positive, dtype=bool)
    values = np.asarray(score, dtype=np.float64)
    drawn = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    hits = np.cumsum(np.where(is_positive, drawn, 0.0)[order])[ends]
    alarms = np.cumsum(np.where(is_positive, 0.0, drawn)[order])[ends]
    return Curve(np.append(np.inf, ordered[ends]), np.append(0.0, hits), np.append(0.0, alarms))


def compute_roc(curve: Curve) -> tuple[Floats, Floats]:
    """False-positive rate and sensitivity; two (T,), NaN where a class is absent.

    Source: Fawcett 2006.
    """
    return (
        ratio(curve.false_positives, curve.false_positives[-1]),
        ratio(curve.true_positives, curve.true_positives[-1]),
    )


def compute_precision_recall(curve: Curve) -> tuple[Floats, Floats]:
    """Recall and precision at each distinct score, without the point of no alarms; two (T-1,).

    Source: Manning, Raghavan & Schütze 2008, chapter 8.
    """
    hits, alarms = curve.true_positives[1:], curve.false_positives[1:]
    return ratio(hits, curve.true_positives[-1]), ratio(hits, hits + alarms)
