"""Tests of differences between ways of training that were measured in folds.

The folds' training sets overlap, so the differences depend on one another, and the plain t test finds differences that
are not there. Nadeau and Bengio correct its variance; Alpaydin's F test needs five halvings of the data.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from medcls.statistics.bounds import LEVEL
from medcls.statistics.predictions import Floats


class FoldTest(NamedTuple):
    """What a test of no difference says.

    Attributes:
        name: Name of the test.
        statistic: t or F; NaN if it is undefined.
        df: Degrees of freedom, one of t, two of F.
        p_value: Two-sided; NaN where it is undefined.
        low: Of the 95 % interval of the mean difference; NaN where the test has none.
        high: Of it.
    """

    name: str
    statistic: float
    df: tuple[int, ...]
    p_value: float
    low: float
    high: float


def compute_corrected_t(differences: ArrayLike, *, test_share: float) -> FoldTest:
    """Return the t test of (repeated) k-fold cross-validation, its variance corrected for overlapping training sets.

    t = mean / sqrt((1/J + test_share) * variance), with J - 1 degrees of freedom. Without any variance it is
    undefined, unless all differences are 0: then t is 0 and p is 1.

    Args:
        differences: (J,) of all folds of all repeats, J >= 2.
        test_share: Test rows over the other rows of a fold, > 0: 1 / (k - 1).

    Raises:
        ValueError: fewer than two differences.

    Source: Nadeau & Bengio 2003, section 5.1 (corrected resampled t test); for repeated k-fold cross-validation
        Bouckaert & Frank 2004, section 3.
    """
    found = np.asarray(differences, dtype=np.float64)
    count = len(found)
    if count < 2:
        raise ValueError(f"{count} differences; a variance needs two")
    mean, variance = float(found.mean()), float(found.var(ddof=1))
    name, df = "corrected resampled t test", (count - 1,)
    if not _has_spread(variance, found):
        return _without_spread(name, df, found)
    error = math.sqrt((1 / count + test_share) * variance)
    reach = float(special.stdtrit(count - 1, (1 + LEVEL) / 2)) * error
    p_value = float(2 * special.stdtr(count - 1, -abs(mean / error)))
    return FoldTest(name, mean / error, df, p_value, mean - reach, mean + reach)


def compute_5x2_f(differences: ArrayLike) -> FoldTest:
    """Return the F test of five repeats of two-fold cross-validation.

    f = sum of all ten squared differences / (2 * sum of the five variances), F-distributed with 10 and 5 degrees of
    freedom. Without any variance it is undefined, unless all differences are 0.

    Args:
        differences: (5, 2), a repeat in each row.

    Raises:
        ValueError: another shape.

    Source: Alpaydin 1999, equation 6.
    """
    found = np.asarray(differences, dtype=np.float64)
    if found.shape != (5, 2):
        raise ValueError(f"differences has shape {found.shape}; the 5x2cv F test needs (5, 2)")
    variances = ((found - found.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    name, df = "5x2cv F test", (10, 5)
    if not _has_spread(float(variances.sum()), found):
        return _without_spread(name, df, found)
    statistic = float((found**2).sum() / (2 * variances.sum()))
    return FoldTest(name, statistic, df, float(special.fdtrc(*df, statistic)), math.nan, math.nan)


def _has_spread(variance: float, found: Floats) -> bool:
    """False where the differences are the same up to rounding, and undefined ones count as having none."""
    return variance > 1e-24 * max(1.0, float(np.max(np.abs(found))) ** 2)


def _without_spread(name: str, df: tuple[int, ...], found: Floats) -> FoldTest:
    """No difference anywhere is no evidence; the same difference everywhere cannot be tested."""
    if np.isfinite(found).all() and np.abs(found).max() < 1e-12:
        return FoldTest(name, 0.0, df, 1.0, math.nan, math.nan)
    return FoldTest(name, math.nan, df, math.nan, math.nan, math.nan)
