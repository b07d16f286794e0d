"""AUCs of several scores on the same rows: covariance without resampling, intervals, paired tests."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medcls.statistics.bounds import bound_area, combine_difference
from medcls.statistics.predictions import Floats, Integers


class Areas(NamedTuple):
    """AUC of each score, (M,), and their covariance, (M, M)."""

    auc: Floats
    covariance: Floats


class AreaDifference(NamedTuple):
    """First AUC less the second, its interval, and the two-sided test of no difference."""

    difference: float
    low: float
    high: float
    z: float
    p_value: float


def compute_delong(positive: ArrayLike, scores: ArrayLike, *, patients: Integers | None = None) -> Areas:
    """AUCs of scores on the same rows with their covariance matrix.

    With `patients`, rows of one patient may depend on one another, as two knees do; without, or with one row
    for each patient, it is the estimate of DeLong et al.

    Args:
        positive: (N,) 0/1 or bool; two of each at least.
        scores: (N, M) finite, or (N,) for one score.
        patients: (N,) patient number of each row, 0 … P-1.

    Raises:
        ValueError: Fewer than two rows, or with `patients` two patients, of a class.

    Source: DeLong, DeLong & Clarke-Pearson 1988; ranks after Sun & Xu 2014; patients after Obuchowski 1997.
    """
    cases = np.asarray(positive, dtype=bool)
    values = np.asarray(scores, dtype=np.float64).reshape(len(cases), -1)
    units = np.arange(len(cases)) if patients is None else np.asarray(patients, dtype=np.int64)
    for name, rows in (("positive", cases), ("negative", ~cases)):
        if len(np.unique(units[rows])) < 2:
            raise ValueError(f"fewer than two independent {name} rows; a variance of the AUC needs two")
    wins = np.stack([_compute_win_shares(cases, column) for column in values.T], axis=1)
    auc = wins[cases].mean(axis=0)
    residuals = wins - auc
    of_cases, of_others = np.zeros((2, int(units.max()) + 1, values.shape[1]))
    np.add.at(of_cases, units[cases], residuals[cases])
    np.add.at(of_others, units[~cases], residuals[~cases])
    of_cases, of_others = of_cases / cases.sum(), of_others / (~cases).sum()
    cross = _correct(units) * of_cases.T @ of_others
    covariance = (
        _correct(units[cases]) * of_cases.T @ of_cases
        + _correct(units[~cases]) * of_others.T @ of_others
        + cross
        + cross.T
    )
    return Areas(auc, covariance)


def compare_areas(
    positive: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    patients: Integers | None = None,
) -> AreaDifference:
    """Return the difference of two AUCs on the same rows with interval and two-sided p value.

    Without any variance the test is undefined (NaN), unless the scores rank alike: then z is 0 and p is 1.

    Args:
        positive: (N,) 0/1 or bool.
        first: (N,) scores.
        second: (N,) scores of the same rows.
        patients: As in `compute_delong`.

    Source: DeLong, DeLong & Clarke-Pearson 1988 (test); patients after Obuchowski 1997; interval from those of the two
        areas and their correlation, Zou 2007.
    """
    areas = compute_delong(positive, np.stack([np.asarray(first), np.asarray(second)], axis=1), patients=patients)
    difference = float(areas.auc[0] - areas.auc[1])
    contrast = np.array([1.0, -1.0])
    error = math.sqrt(max(0.0, float(contrast @ areas.covariance @ contrast)))
    if error < 1e-12:
        z = 0.0 if abs(difference) < 1e-12 else math.nan
    else:
        z = difference / error
    cases = np.asarray(positive, dtype=bool)
    units = np.arange(len(cases)) if patients is None else patients
    number = (len(np.unique(units[cases])), len(np.unique(units[~cases])))
    variances = np.diag(areas.covariance)
    one, two = (
        bound_area(float(auc), float(variance), number) for auc, variance in zip(areas.auc, variances, strict=True)
    )
    moving = float(np.prod(variances))
    correlation = float(areas.covariance[0, 1]) / math.sqrt(moving) if moving > 0 else 0.0
    low = high = difference
    if error >= 1e-12 or abs(difference) >= 1e-12:
        low, high = combine_difference(float(areas.auc[0]), float(areas.auc[1]), one, two, correlation)
    return AreaDifference(difference, low, high, z, math.erfc(abs(z) / math.sqrt(2)))


def _compute_win_shares(cases: np.ndarray[tuple[int], np.dtype[np.bool_]], score: Floats) -> Floats:
    """Share of the other class that each row ranks rightly against, ties one half; (N,)."""
    shares = np.empty(len(score))
    for rows, others, side in ((cases, ~cases, 1), (~cases, cases, -1)):
        rivals = np.sort(side * score[others])
        mine = side * score[rows]
        won = np.searchsorted(rivals, mine, side="left") + np.searchsorted(rivals, mine, side="right")
        shares[rows] = won / (2 * len(rivals))
    return shares


def _correct(units: Integers) -> float:
    """I / (I - 1) for I independent units."""
    number = len(np.unique(units))
    return number / (number - 1)
