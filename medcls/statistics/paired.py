"""Compare two models on the same rows: paired differences, tests, and correction for several metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from medcls.statistics.bounds import (
    UNBOUNDED,
    Base,
    Limits,
    bound_skewed,
    combine_difference,
    combine_mean,
    correct_correlation,
)
from medcls.statistics.curves import list_questions
from medcls.statistics.definitions import choose_headlines
from medcls.statistics.delong import compare_areas
from medcls.statistics.intervals import (
    correlate,
    describe_estimates,
    draw_replicates,
    find_note,
    join_replicates,
)
from medcls.statistics.metrics import build_estimator
from medcls.statistics.predictions import Floats, Integers, Predictions
from medcls.statistics.support import Support, find_support

Entries = Mapping[str, Mapping[str, Any]]
_QUANTILE = NormalDist().inv_cdf(0.975)


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


def compare_predictions(
    first: Predictions, second: Predictions, patients: Integers, *, replicates: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Differences (first less second) on the same rows: metrics, AUCs, and right or wrong by row.

    Args:
        first: Of N rows.
        second: Of the same rows: the same truth.
        patients: (N,) patient number of each row.
        replicates: Bootstrap samples, the same for both.
        seed: Of the bootstrap.

    Returns:
        "metrics": name to {"first", "second", "difference", "low", "high", "p_value", "p_holm"} by paired bootstrap
        over patients; "auc": the same of each question by DeLong; "mcnemar". Undefined numbers are None.

    Raises:
        ValueError: The two have another task or other labels.

    Source: paired bootstrap: Efron & Tibshirani 1993, chapter 16; intervals and p values as
    `describe_difference`; Holm 1979 over the metrics, and over the questions.
    """
    if (first.kind, first.class_names) != (second.kind, second.class_names) or not np.array_equal(
        first.y_true, second.y_true, equal_nan=first.y_true.dtype.kind == "f"
    ):
        raise ValueError("the two predictions are not of the same task, rows and labels")
    names = choose_headlines(first)
    metrics = _compare_metrics(first, second, patients, names=names, replicates=replicates, seed=seed)
    compared = {"metrics": metrics, "auc": describe_areas(first, second, patients)}
    for family in compared.values():
        holm = adjust_holm([or_nan(entry["p_value"]) for entry in family.values()])
        for entry, p_value in zip(family.values(), holm, strict=True):
            entry["p_holm"] = or_none(p_value)
    answers = first.decides and second.decides
    if not answers or first.kind == "multilabel" or (first.kind == "regression" and not first.grades):
        return compared
    right = [one.grade_predicted == one.grade_true for one in (first, second)]
    return compared | {"mcnemar": compute_mcnemar(*right, patients=patients)._asdict()}


def _compare_metrics(
    first: Predictions, second: Predictions, patients: Integers, *, names: Sequence[str], replicates: int, seed: int
) -> dict[str, dict[str, Any]]:
    estimators = [build_estimator(one) for one in (first, second)]
    ones = np.ones((1, len(patients)))
    values = [estimate(ones) for estimate in estimators]
    chunks = [
        [estimate(weights) for estimate in estimators]
        for weights in draw_replicates(patients, replicates=replicates, seed=seed)
    ]
    drawn = [join_replicates([chunk[side] for chunk in chunks]) for side in (0, 1)]
    described: list[dict[str, dict[str, Any]]] = []
    supports: list[Support] = []
    counted: list[dict[str, Base]] = []
    for model, value, replicated in zip((first, second), values, drawn, strict=True):
        supports.append(find_support(model, value))
        counted.append({name: basis.count(patients) for name, basis in supports[-1].items()})
        numbers = {name: float(one[0]) for name, one in value.items()}
        described.append(describe_estimates(numbers, replicated, supports[-1], counted[-1]))
    first_entries, second_entries = described
    return {
        name: describe_difference(
            name, (first_entries, second_entries), (drawn[0], drawn[1]), support=supports[0], counts=counted[0]
        )
        for name in names
        if name in values[0]
    }


def describe_difference(
    name: str,
    entries: tuple[Entries, Entries],
    drawn: tuple[Mapping[str, Floats], Mapping[str, Floats]],
    *,
    support: Support,
    counts: Mapping[str, Base],
) -> dict[str, Any]:
    """Return two values, their difference with its interval, the p value of no difference, and a note if it is unsure.

    The interval follows from those of the two and the correlation of their replicates; of numbers without bounds from
    the replicates of the difference; of means from the differences of their parts. p is 1 less the coverage of the
    interval that just reaches 0.

    Args:
        name: Of the number.
        entries: Of both models, by name, as `intervals.describe_estimates` has them; with the parts of a mean.
        drawn: (R,) replicates of the numbers of both, from the same draws.
        support: What each number of the first model rests on.
        counts: Its patients and rows.

    Source: Newcombe 1998, method 10 (paired shares); Zou 2007 (any numbers); Zou & Donner 2008 (means).
    """
    first, second = (side[name] for side in entries)
    values = first["value"], second["value"]
    entry: dict[str, Any] = {"first": values[0], "second": values[1], "difference": None, "low": None, "high": None}
    if None in values:
        return entry | {"p_value": None}
    entry["difference"] = difference = values[0] - values[1]
    if np.array_equal(drawn[0][name], drawn[1][name], equal_nan=True) and difference == 0:
        return entry | {"p_value": 1.0}
    if first["low"] is None or second["low"] is None:
        return entry | {"p_value": None, "reason": (first if first["low"] is None else second)["reason"]}
    low, high = _limit_difference(name, entries, drawn, support=support, counts=counts)
    reach = difference - low if difference > 0 else high - difference
    p_value = math.erfc(abs(difference) / reach * _QUANTILE / math.sqrt(2)) if reach > 0 else None
    note = find_note(name, support, counts)
    return entry | {"low": low, "high": high, "p_value": p_value} | ({"note": note} if note else {})


def _limit_difference(
    name: str,
    entries: tuple[Entries, Entries],
    drawn: tuple[Mapping[str, Floats], Mapping[str, Floats]],
    *,
    support: Support,
    counts: Mapping[str, Base],
) -> Limits:
    """Return the limits of the difference of two numbers that both have an interval."""
    first, second = (side[name] for side in entries)
    basis, base = support[name], counts[name]
    if basis.scale == "mean":
        limits = [_limit_difference(part, entries, drawn, support=support, counts=counts) for part in basis.parts]
        apart = [drawn[0][part] - drawn[1][part] for part in basis.parts]
        values = [entries[0][part]["value"] - entries[1][part]["value"] for part in basis.parts]
        return combine_mean(values, limits, correlate(apart))[1]
    if basis.scale in UNBOUNDED:
        apart_here = drawn[0][name] - drawn[1][name]
        found = bound_skewed(first["value"] - second["value"], apart_here[np.isfinite(apart_here)], base)
        if found is not None:
            return found
    correlation = float(correlate([drawn[0][name], drawn[1][name]])[0, 1])
    if basis.scale == "share":
        correlation = correct_correlation(correlation, first["value"], second["value"], base.rows[0])
    one, two = ((side["low"], side["high"]) for side in (first, second))
    return combine_difference(first["value"], second["value"], one, two, correlation)


def describe_areas(first: Predictions, second: Predictions, patients: Integers) -> dict[str, dict[str, Any]]:
    """Return the difference of the AUCs of each yes-or-no question by paired DeLong.

    Args:
        first: Of N rows.
        second: Of the same rows.
        patients: (N,) patient number of each row.
    """
    pairs = zip(list_questions(first), list_questions(second), strict=True)
    return {one.name: describe_area(one.positive, one.score, two.score, patients[one.rows]) for one, two in pairs}


def describe_area(positive: ArrayLike, first: Floats, second: Floats, patients: Integers) -> dict[str, Any]:
    """Return the difference of two AUCs of one question, as `describe_areas` has it.

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
    return {name: or_none(value) for name, value in found._asdict().items() if name != "z"}


def or_none(value: float) -> float | None:
    """None for what is not finite, as JSON takes it."""
    return value if math.isfinite(value) else None


def or_nan(value: float | None) -> float:
    """NaN for None."""
    return math.nan if value is None else value
