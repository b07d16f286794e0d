"""Compare two models on the same rows: paired differences, tests, and correction for several metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from medcls.statistics.bounds import (
    UNBOUNDED,
    Limits,
    bound_skewed,
    combine_difference,
    combine_mean,
    correct_correlation,
)
from medcls.statistics.curves import list_questions
from medcls.statistics.definitions import choose_headlines
from medcls.statistics.delong import compare_areas
from medcls.statistics.intervals import Drawn, collect, correlate, draw_replicates, explain_plainly
from medcls.statistics.metrics import build_estimator
from medcls.statistics.predictions import Floats, Integers, Predictions, or_none
from medcls.statistics.support import find_support

_QUANTILE = NormalDist().inv_cdf(0.975)


class Tested(TypedDict):
    """An interval and a test of no difference; null where undefined, and then `reason` may say why.

    `p_holm` is p within its family, `note` what a reader must know of the interval.
    """

    low: float | None
    high: float | None
    p_value: float | None
    p_holm: NotRequired[float | None]
    reason: NotRequired[str]
    note: NotRequired[str]


class Difference(Tested):
    """A paired difference of metrics.json, with the two numbers; areas compared by DeLong lack these."""

    first: NotRequired[float | None]
    second: NotRequired[float | None]
    difference: float | None


class Discordance(NamedTuple):
    """Rows that only the first, and only the second model has right, and the two-sided p value of no difference."""

    only_first: int
    only_second: int
    p_value: float
    method: str


def compute_mcnemar(first_right: ArrayLike, second_right: ArrayLike, *, patients: Integers) -> Discordance:
    """Test exactly whether two models are right equally often on the same rows.

    A patient's rows depend on one another, so the patient is the unit: if neither model is better, the difference of
    a patient's right rows is as likely to have the other sign. With one row per patient this is the exact McNemar test.

    Args:
        first_right: (N,) whether the first model has the row right.
        second_right: (N,) whether the second has.
        patients: (N,) patient number of each row.

    Source: McNemar 1947, exact by the binomial distribution; patients by the sign-flip permutation test, Fisher 1935,
    section 21, all 2^P flips counted.
    """
    one, two = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
    net = np.bincount(patients, weights=one.astype(np.float64) - two)
    method = "exact" if len(np.unique(patients)) == len(patients) else "exact, by sign flips of patients"
    return Discordance(only_first, only_second, compute_sign_flip_p(net.astype(np.int64)), method)


def compute_sign_flip_p(differences: Integers) -> float:
    """Return the two-sided p value of a sum of whole numbers, over all flips of their signs.

    Args:
        differences: (P,) of independent patients.

    Source: Fisher 1935, section 21.
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    flips = np.ones(1)  # probability of each sum of the parts that are flipped
    for size, count in zip(sizes, counts, strict=True):
        k = np.arange(count + 1)
        logs = special.gammaln(count + 1) - special.gammaln(k + 1) - special.gammaln(count - k + 1)
        chances = np.zeros(size * count + 1)
        chances[::size] = np.exp(logs - count * np.log(2))
        flips = np.convolve(flips, chances)
    total = len(flips) - 1
    sums = total - 2 * np.arange(total + 1)
    return min(1.0, float(flips[np.abs(sums) >= abs(int(differences.sum()))].sum()))


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """P values that hold for the whole family; NaN stays NaN and does not count.

    Source: Holm 1979.
    """
    adjusted = [math.nan] * len(p_values)
    order = sorted((k for k, p in enumerate(p_values) if not math.isnan(p)), key=lambda k: p_values[k])
    reached = 0.0
    for rank, k in enumerate(order):
        reached = max(reached, min(1.0, (len(order) - rank) * p_values[k]))
        adjusted[k] = reached
    return adjusted


def add_holm(family: Iterable[Any]) -> None:
    """Add to each test, an object with "p_value", the p value that holds for the whole family."""
    tests = list(family)
    adjusted = adjust_holm([math.nan if test["p_value"] is None else test["p_value"] for test in tests])
    for test, p_value in zip(tests, adjusted, strict=True):
        test["p_holm"] = or_none(p_value)


class ComparedPredictions(TypedDict):
    """Two models on the same rows: metrics by name, areas by question, and right or wrong by row."""

    metrics: dict[str, Difference]
    auc: dict[str, Difference]
    mcnemar: NotRequired[dict[str, int | float | str]]


def compare_predictions(
    first: Predictions, second: Predictions, patients: Integers, *, replicates: int = 2000, seed: int = 0
) -> ComparedPredictions:
    """Differences (first less second) on the same rows: metrics, AUCs, and right or wrong by row.

    Args:
        first: Of N rows.
        second: Of the same rows: the same truth.
        patients: (N,) patient number of each row.
        replicates: Bootstrap samples, the same for both.
        seed: Seed of the bootstrap.

    Returns:
        "metrics": the headlines by paired bootstrap over patients; "auc": each question by DeLong; "mcnemar".

    Raises:
        ValueError: The two have another task or other labels.

    Source: paired bootstrap: Efron & Tibshirani 1993, chapter 16; intervals and p values as
    `describe_difference`; Holm 1979 over the metrics, and over the questions.
    """
    if (first.kind, first.class_names) != (second.kind, second.class_names) or not np.array_equal(
        first.y_true, second.y_true, equal_nan=first.y_true.dtype.kind == "f"
    ):
        raise ValueError("the two predictions are not of the same task, rows and labels")
    one, two = draw_pair(first, second, patients, replicates=replicates, seed=seed)
    headlines = [name for name in choose_headlines(first) if name in one.values]
    compared: ComparedPredictions = {
        "metrics": {name: describe_difference(name, one, two) for name in headlines},
        "auc": describe_areas(first, second, patients),
    }
    add_holm(compared["metrics"].values())
    add_holm(compared["auc"].values())
    if first.decides and second.decides and first.has_classes:
        right = [model.grade_predicted == model.grade_true for model in (first, second)]
        compared["mcnemar"] = compute_mcnemar(*right, patients=patients)._asdict()
    return compared


def draw_pair(
    first: Predictions, second: Predictions, patients: Integers, *, replicates: int, seed: int
) -> tuple[Drawn, Drawn]:
    """Return all metrics of two models of the same rows, in the same bootstrap samples; as `compare_predictions`."""
    one, two = build_estimator(first), build_estimator(second)
    chunks = [(one(weights), two(weights)) for weights in draw_replicates(patients, replicates=replicates, seed=seed)]
    ones = np.ones((1, len(patients)))
    drawn = []
    for side, (model, values) in enumerate([(first, one(ones)), (second, two(ones))]):
        drawn.append(collect(values, [chunk[side] for chunk in chunks], find_support(model, values), patients))
    return drawn[0], drawn[1]


def describe_difference(name: str, first: Drawn, second: Drawn, *, rests: Drawn | None = None) -> Difference:
    """Return two values, their difference with its interval, the p value of no difference, and a note if it is unsure.

    The interval follows from those of the two and the correlation of their replicates; of numbers without bounds from
    the replicates of the difference; of means from the differences of their parts. p is 1 less the coverage of the
    interval that just reaches 0.

    Args:
        name: Number that both have.
        first: Its replicates, from the same draws as those of the second.
        second: Likewise.
        rests: What the difference rests on; None = what the first number does.

    Source: Newcombe 1998, method 10 (paired shares); Zou 2007 (any numbers); Zou & Donner 2008 (means).
    """
    rests = rests or first
    entries = [drawn.describe_one(name, explain_plainly) for drawn in (first, second)]
    one, two = (entry["value"] for entry in entries)
    found: Difference = {
        "first": one, "second": two, "difference": None, "low": None, "high": None, "p_value": None
    }  # fmt: skip
    if one is None or two is None:
        return found
    found["difference"] = difference = one - two
    if difference == 0 and np.array_equal(first.replicates[name], second.replicates[name], equal_nan=True):
        found["p_value"] = 1.0
        return found
    for entry in entries:
        if entry["low"] is None:
            found["reason"] = entry["reason"]
            return found
    low, high = _limit_difference(name, first, second, rests=rests)
    found["low"], found["high"] = low, high
    reach = difference - low if difference > 0 else high - difference
    if reach > 0:
        found["p_value"] = math.erfc(abs(difference) / reach * _QUANTILE / math.sqrt(2))
    note = rests.find_note(name)
    if note:
        found["note"] = note
    return found


def _limit_difference(name: str, first: Drawn, second: Drawn, *, rests: Drawn) -> Limits:
    """Return the limits of the difference of two numbers that both have an interval."""
    basis, base = rests.support[name], rests.counts[name]
    if basis.scale == "mean":
        parts = basis.parts
        limits = [_limit_difference(part, first, second, rests=rests) for part in parts]
        apart = [first.replicates[part] - second.replicates[part] for part in parts]
        return combine_mean([first.values[part] - second.values[part] for part in parts], limits, correlate(apart))[1]
    one, two = first.values[name], second.values[name]
    if basis.scale in UNBOUNDED:
        moved = first.replicates[name] - second.replicates[name]
        found = bound_skewed(one - two, moved[np.isfinite(moved)], base)
        if found is not None:
            return found
    correlation = float(correlate([first.replicates[name], second.replicates[name]])[0, 1])
    if basis.scale == "share":
        correlation = correct_correlation(correlation, one, two, base.rows[0])
    of_first, of_second = first.limit(name), second.limit(name)
    if isinstance(of_first, str) or isinstance(of_second, str):
        raise TypeError(f"{name} has no interval")  # describe_difference asks only where both have one
    return combine_difference(one, two, of_first, of_second, correlation)


def describe_areas(first: Predictions, second: Predictions, patients: Integers) -> dict[str, Difference]:
    """Return the difference of the AUCs of each yes-or-no question by paired DeLong; arguments of `draw_pair`."""
    pairs = zip(list_questions(first), list_questions(second), strict=True)
    return {one.name: describe_area(one.positive, one.score, two.score, patients[one.rows]) for one, two in pairs}


def describe_area(positive: ArrayLike, first: Floats, second: Floats, patients: Integers) -> Difference:
    """Return the difference of two AUCs of one question by paired DeLong.

    Args:
        positive: (n,) whether a row is a case.
        first: (n,) scores.
        second: (n,) scores of the same rows.
        patients: (n,) patient number of each row.
    """
    units = np.unique(patients, return_inverse=True)[1].astype(np.int64)
    try:
        found = compare_areas(positive, first, second, patients=units)
    except ValueError as error:
        return {"difference": None, "low": None, "high": None, "p_value": None, "reason": str(error)}
    return {
        "difference": or_none(found.difference),
        "low": or_none(found.low),
        "high": or_none(found.high),
        "p_value": or_none(found.p_value),
    }
