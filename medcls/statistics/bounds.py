"""The two limits of a number's interval: the scale on which they are symmetric, and their bounds.

A percentile interval has no width if all of n cases are right, and is too narrow for few patients. So the replicates
only say how much the number varies; where the limits are follows from its scale and from how many patients it rests on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from medcls.identity import format_count
from medcls.statistics.predictions import Floats

Limits = tuple[float, float]
LEVEL = 0.95
"""Nominal coverage of every interval."""
UNBOUNDED = ("error", "explained", "real")
"""Scales without two bounds: differences are taken as they are."""

LEAST_IN_CLASS = 4
"""Patients of the smallest class from which the interval of an error or a coefficient held the truth as promised."""

FEW_EXCEPTIONS = 1.5  # patients' worth of rows on the smaller side of a share that say nothing of its variance
MOST_EXCEPTIONS = (
    3 + 1e-9
)  # rows on the smaller side of a share whose limit is a Poisson number's; (1 - 54/57) * 57 > 3
LEAST_FREEDOM = 4  # fewer degrees of freedom would widen an interval beyond use: a note says that it is too narrow
PRIOR_PATIENTS = 10  # patients of the smaller class whose measured variance weighs as much as the expected one


@dataclass(frozen=True, slots=True)
class Base:
    """How many patients and rows a number rests on.

    Attributes:
        patients: On each side: of a share one (the rows it is a share of), of an area two (cases and others), of other
            numbers those of each class.
        rows: Likewise.
        clustered: A patient has several rows.
        smallest: Patients of the question's smallest class, also if the number is over all rows; None = no classes.
        folds: The number is a mean over so many folds of other patients.
    """

    patients: tuple[int, ...]
    rows: tuple[int, ...]
    clustered: bool
    smallest: int | None = None
    folds: int = 1

    @property
    def fewest(self) -> int:
        """Patients of the smallest side."""
        return min(self.patients)


def bound(scale: str, value: float, drawn: Floats, base: Base) -> Limits | None:
    """Return the interval of a number on its scale; None if its replicates do not vary and its scale has no way out.

    Args:
        scale: As in `definitions.Definition`.
        value: Finite.
        drawn: (R,) finite values of the bootstrap replicates over patients.
        base: What the number rests on.

    Raises:
        ValueError: An unknown scale.
    """
    if scale not in UNBOUNDED:
        return bound_by_variance(scale, value, float(drawn.var(ddof=1)) * _correct(base), base)
    if scale == "real":
        return bound_coefficient(value, drawn, base)
    limits = bound_skewed(value, drawn, base)
    if limits is None or scale != "error":
        return limits
    return max(0.0, limits[0]), limits[1]


def bound_by_variance(scale: str, value: float, variance: float, base: Base) -> Limits | None:
    """Return the interval of a number with two bounds from its measured variance; None as in `bound`.

    Args:
        scale: "share", "area", "precision" or "agreement".
        value: Finite.
        variance: Over patients.
        base: What the number rests on.

    Raises:
        ValueError: Another scale.
    """
    match scale:
        case "share":
            return _bound_share(value, variance, base)
        case "area":
            return bound_area(value, variance, base.patients)
        case "precision" | "agreement":
            return _bound_by_size(scale, value, variance, base)
    raise ValueError(f"scale is {scale!r}")


def note_undercoverage(scale: str, base: Base) -> str:
    """Return what a reader must know of an interval that holds the truth less often than it promises; "" for others.

    Source: simulation, docs/results/coverage.md.
    """
    if scale not in ("error", "real") or base.smallest is None or base.smallest >= LEAST_IN_CLASS:
        return ""
    few = f"{format_count(base.smallest, 'patient')} in the smallest class, fewer than {LEAST_IN_CLASS}"
    return f"{few}: such intervals contain the truth less often than 95 % (docs/results/coverage.md)"


def compute_wilson(share: float, number: float) -> Limits:
    """Return Wilson's interval of a share of `number` independent rows; also for a share of 0 or 1 it has a width.

    Of one to three rows on the smaller side the limit near 0, or 1, is that of a Poisson number: Wilson's is too far
    inside, so that a share that is nearly 0 or 1 was missed as often as a row went the other way.

    Source: Wilson 1927; Brown, Cai & DasGupta 2001, section 4.1.1 (modified Wilson interval).
    """
    z2 = _NORMAL**2
    middle = (share + z2 / (2 * number)) / (1 + z2 / number)
    reach = math.sqrt(z2 * (share * (1 - share) / number + z2 / (4 * number**2))) / (1 + z2 / number)
    low, high = max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))
    few, others = share * number, (1 - share) * number
    if 0 < few <= MOST_EXCEPTIONS:
        low = min(low, float(special.gammaincinv(few, 1 - LEVEL)) / number)
    if 0 < others <= MOST_EXCEPTIONS:
        high = max(high, 1 - float(special.gammaincinv(others, 1 - LEVEL)) / number)
    return low, high


def _bound_share(value: float, variance: float, base: Base) -> Limits | None:
    """Return Wilson's interval, of patients with several rows by the effective number of independent rows.

    The effective number is what a binomial share with this variance has: at most the rows, and the patients if all
    rows but those of one or two patients are on one side (as if the rows of a patient were copies): so few say nothing
    of the variance. Student's quantile for the normal one allows for few patients. None for several rows of one
    patient.

    Source: Wilson 1927; effective sample size: Korn & Graubard 1998; Wilson for clusters: Saha, Miller & Wang 2016.
    """
    rows, patients = base.rows[0], base.patients[0]
    if not base.clustered:
        return compute_wilson(value, rows)
    if patients < 2:
        return None
    effective = min(float(rows), _effective(value, variance, otherwise=patients))
    if min(value, 1 - value) * patients <= FEW_EXCEPTIONS:
        effective = min(effective, patients)
    return compute_wilson(value, effective * (_NORMAL / _student(patients - 1)) ** 2)


def bound_area(value: float, variance: float, patients: tuple[int, ...]) -> Limits:
    """Return the score-type interval of an AUC, which also has a width where the classes are separated completely.

    The limits are the areas A at which |A - value| is the normal quantile times the standard error that A would have
    under exponential scores, scaled to the measured one: from many patients by all of it, from few by less.

    Args:
        value: In [0, 1].
        variance: Measured.
        patients: With a case, and with another row.

    Source: Newcombe 2006, method 5; the scaling is our own choice, docs/decisions/0047.
    """
    cases, others = patients
    areas = np.linspace(0.0, 1.0, 2001)
    expected = _expect_variance(areas, cases, others)
    here = float(_expect_variance(np.array([value]), cases, others)[0])
    fewest = min(patients)
    trust = (fewest - 1) / (fewest - 1 + PRIOR_PATIENTS)
    factor = 1 - trust + trust * variance / here if here > 0 and variance > 0 else 1.0
    inside = areas[(areas - value) ** 2 <= _NORMAL**2 * factor * expected]
    return float(min(value, *inside[:1])), float(max(value, *inside[-1:]))


def _expect_variance(areas: Floats, cases: int, others: int) -> Floats:
    """Variance of an AUC of exponential scores.

    Source: Hanley & McNeil 1982, with both classes as large as their mean in the last term, as Newcombe 2006.
    """
    size = (cases + others) / 2 - 1
    shape = 1 + size * ((1 - areas) / (2 - areas) + areas / (1 + areas))
    return np.asarray(areas * (1 - areas) * shape / (cases * others))


def _bound_by_size(scale: str, value: float, variance: float, base: Base) -> Limits:
    """Wilson's interval of a number that is no share, by the size of the share that would vary as much."""
    share, spread, otherwise = value, variance, float(base.fewest)
    if scale == "agreement":
        # From -1 to 1: half of it, shifted, is a share.
        share, spread = (value + 1) / 2, variance / 4
        otherwise = len(base.patients) ** 2 / sum(1 / patients for patients in base.patients)
    effective = _effective(share, spread, otherwise=otherwise)
    low, high = compute_wilson(share, effective * (_NORMAL / _student(_count_freedom(base, base.fewest))) ** 2)
    if scale == "agreement":
        return 2 * low - 1, 2 * high - 1
    return low, high


def bound_skewed(value: float, drawn: Floats, base: Base) -> Limits | None:
    """Return Student's interval, corrected for skewness; None if the replicates do not vary.

    A mean of squares or logarithms over few patients is skewed: if the rare large ones are missing it is too small, and
    so is its spread. Hall's transformation makes the upper side longer.

    Source: Hall 1992, "On the removal of skewness by transformation", equation 2.1 with the cubic form.
    """
    spread = float(drawn.std(ddof=1)) * math.sqrt(_correct(base))
    if spread <= 1e-9 * max(1.0, abs(value)):
        return None
    skewness = float(((drawn - drawn.mean()) ** 3).mean() / drawn.std() ** 3)
    skewness *= skewness**2 / (skewness**2 + 6 / len(drawn))
    smallest = base.fewest if base.smallest is None else base.smallest
    reach = _student(_count_freedom(base, smallest))

    def unskew(quantile: float) -> float:
        if abs(skewness) < 1e-6:
            return quantile
        return 3 / skewness * (float(np.cbrt(1 + skewness * (quantile - skewness / 6))) - 1)

    return min(value, value - spread * unskew(reach)), max(value, value - spread * unskew(-reach))


def bound_coefficient(value: float, drawn: Floats, base: Base) -> Limits | None:
    """Return the symmetric interval of a regression's coefficient; None if the replicates do not vary.

    Its standard error is half the width of the middle 68 % of the replicates: those in which a column nearly separates
    the classes are far away and would widen every interval.

    Source: Efron & Tibshirani 1993, chapter 12 (normal interval); the middle part is our own choice, decision 0047.
    """
    below, above = np.quantile(drawn, [special.ndtr(-1), special.ndtr(1)])
    spread = float(above - below) / 2 * math.sqrt(_correct(base))
    if spread <= 1e-9 * max(1.0, abs(value)):
        return None
    reach = _student(max(1, sum(base.patients) - 1)) * spread
    return value - reach, value + reach


def _effective(share: float, variance: float, *, otherwise: float) -> float:
    return share * (1 - share) / variance if variance > 1e-15 and 0 < share < 1 else otherwise


def _correct(base: Base) -> float:
    """The bootstrap's variance is that of P patients with divisor P, not P - 1; the smallest side has most of it.

    Of a mean over folds P is the number in one fold.
    """
    number = base.fewest / base.folds
    return max(number, 2) / (max(number, 2) - 1) if base.fewest > 1 else 1.0


def _count_freedom(base: Base, smallest: int) -> int:
    """Degrees of freedom of Student's quantile: most of the variance is that of the smallest class, if few are in it.

    Source: our own choice, by simulation, docs/decisions/0053.
    """
    return max(1, min(sum(base.patients) - 1, max(smallest - 1, LEAST_FREEDOM)))


_NORMAL = float(special.ndtri((1 + LEVEL) / 2))


def _student(freedom: int) -> float:
    return float(special.stdtrit(freedom, (1 + LEVEL) / 2))


def combine_mean(values: Sequence[float], limits: Sequence[Limits], correlation: Floats) -> tuple[float, Limits]:
    """Return the mean of several numbers and its interval, from theirs.

    Args:
        values: Of K numbers.
        limits: Of each of them.
        correlation: (K, K) of their estimates.

    Source: Zou & Donner 2008 (method of variance estimates recovery).
    """
    down = np.array([value - low for value, (low, _) in zip(values, limits, strict=True)])
    up = np.array([high - value for value, (_, high) in zip(values, limits, strict=True)])
    mean = float(np.mean(values))
    below, above = (math.sqrt(max(0.0, float(side @ correlation @ side))) / len(values) for side in (down, up))
    return mean, (mean - below, mean + above)


def combine_difference(first: float, second: float, one: Limits, two: Limits, correlation: float) -> Limits:
    """Return the interval of the difference of two numbers, from theirs and the correlation of their estimates.

    Source: Newcombe 1998 (method 10, paired shares); Zou 2007 (any numbers).
    """
    sides = ((first - one[0], two[1] - second), (one[1] - first, second - two[0]))
    below, above = (math.sqrt(max(0.0, a * a + b * b - 2 * correlation * a * b)) for a, b in sides)
    return first - second - below, first - second + above


def correct_correlation(correlation: float, first: float, second: float, rows: int) -> float:
    """Return the correlation of two shares of the same rows, with Newcombe's correction for continuity.

    Without it the interval of their difference is too narrow if the two disagree on few rows.

    Source: Newcombe 1998, method 10: half of the rows is taken from the product of the fourfold table, down to 0.
    """
    spread = math.sqrt(first * (1 - first) * second * (1 - second))
    if correlation <= 0 or spread == 0:
        return correlation
    return max(0.0, correlation - 1 / (2 * rows * spread))


def combine_ratio(top: float, bottom: float, above: Limits, below: Limits) -> Limits:
    """Return the interval of the ratio of two shares from theirs; infinity above if the lower one may be 0.

    Source: Donner & Zou 2012, equation 9.
    """
    product = top * bottom

    def solve(of_top: float, of_bottom: float, *, sign: int) -> float:
        constant, leading = of_top * (2 * top - of_top), of_bottom * (2 * bottom - of_bottom)
        root = math.sqrt(max(0.0, product**2 - constant * leading))
        if sign < 0:
            return constant / (product + root) if product + root > 0 else 0.0
        return (product + root) / leading if leading > 0 else math.inf

    return max(0.0, solve(above[0], below[1], sign=-1)), solve(above[1], below[0], sign=1)
