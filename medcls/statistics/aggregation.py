"""Combine the predictions of several images into one per study or patient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NotRequired, TypedDict

import numpy as np

from medcls.statistics.definitions import TASK_METRICS, score_metric
from medcls.statistics.metrics import build_estimator
from medcls.statistics.predictions import Floats, Integers, Predictions

RULES = ("mean", "max", "noisy_or")
NOISY_OR = "noisy-or, the chance that at least one image is positive if images are independent"


@dataclass(frozen=True, slots=True)
class Aggregated:
    """Predictions of units instead of images.

    Attributes:
        predictions: One row a unit.
        first: (U,) the first row of each of them: its patient is the unit's.
        left_out: Units without one label of their own (images of several classes).
    """

    predictions: Predictions
    first: Integers
    left_out: int


def aggregate(predictions: Predictions, units: Integers, *, rule: str) -> Aggregated:
    """Return one prediction and one label for each unit.

    Score: mean, highest, or noisy-or (1 less the product of the chances of none) of the images' probabilities; of
    ordered classes the same of P(grade > k), of other classes divided by their sum afterwards; of a number mean or
    highest. Label: a yes-or-no label is yes where one image's is, and unknown where none is but one is unknown; a
    grade is the highest; a number the mean; a unit with images of several unordered classes is left out.

    Args:
        predictions: Of N images.
        units: (N,) number of the study or patient of each, 0 … U-1, each present.
        rule: One of `RULES`.

    Raises:
        ValueError: An unknown rule, or noisy-or of a regression; every unit is left out.

    Source: noisy-or: Pearl 1988, section 4.3.2; labels: own choice, docs/decisions/0013-evaluation.md.
    """
    probabilities = predictions.probabilities and not predictions.traits.numeric
    if rule not in RULES or (rule == "noisy_or" and not probabilities):
        raise ValueError(f"rule is {rule!r}; expected one of {', '.join(RULES)}; noisy_or needs probabilities")
    first = np.unique(units, return_index=True)[1].astype(np.int64)
    true, kept = _label(predictions, units)
    if not kept.any():
        raise ValueError("every unit has images of several classes: there is no label of the unit")
    score = _score(predictions, units, rule=rule)
    merged = replace(predictions, y_true=true[kept], y_score=score[kept])
    return Aggregated(merged, first[kept], int((~kept).sum()))


class ChosenAggregation(TypedDict):
    """The rule, by which metric, and the metric of every rule; `reason` if it is undefined for all."""

    rule: str
    metric: str
    values: dict[str, float | None]
    reason: NotRequired[str]


def choose_aggregation(predictions: Predictions, units: Integers) -> ChosenAggregation:
    """Return the rule that is best on these rows, by which metric, and the values of all; the first of equals.

    The metric is the AUC, of ordered classes the quadratic kappa, of a number the mean absolute error.
    """
    metric = TASK_METRICS[predictions.kind].joining
    chosen: ChosenAggregation = {"rule": RULES[0], "metric": metric, "values": {}}
    known = {}
    for rule in RULES if not predictions.traits.numeric and predictions.probabilities else RULES[:2]:
        merged = aggregate(predictions, units, rule=rule).predictions
        value = float(build_estimator(merged)(np.ones((1, len(merged.y_score))))[metric][0])
        chosen["values"][rule] = None
        if np.isfinite(value):
            chosen["values"][rule], known[rule] = value, round(score_metric(metric, value), 12)
    if known:
        chosen["rule"] = max(known, key=lambda rule: known[rule])
    else:
        chosen["reason"] = f"{metric} is undefined: a class lacks"
    return chosen


def _label(predictions: Predictions, units: Integers) -> tuple[Any, Any]:
    """Label of each unit, and whether it has one."""
    true, number = predictions.y_true, int(units.max()) + 1
    everyone = np.ones(number, dtype=bool)
    if predictions.traits.multiple:
        unknown = np.isnan(true)
        yes = _reduce(np.maximum, np.where(unknown, 0.0, true), units)
        doubt = _reduce(np.maximum, unknown.astype(np.float64), units)
        return np.where((yes == 0) & (doubt == 1), np.nan, yes), everyone
    column = np.asarray(true, dtype=np.float64)[:, None]
    highest = _reduce(np.maximum, column, units)[:, 0]
    if predictions.traits.numeric and not predictions.grades:
        return np.bincount(units, weights=column[:, 0]) / np.bincount(units), everyone
    if predictions.kind == "multiclass" and not predictions.grades:
        everyone = highest == -_reduce(np.maximum, -column, units)[:, 0]
    return (highest if predictions.traits.numeric else highest.astype(np.int64)), everyone


def _score(predictions: Predictions, units: Integers, *, rule: str) -> Floats:
    score = predictions.y_score
    if not (predictions.traits.exclusive and predictions.probabilities):
        return _merge(score, units, rule=rule)
    if predictions.has_grades:
        above = np.clip(score[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:], 0.0, 1.0)
        merged = _merge(above, units, rule=rule)
        ends = np.ones((len(merged), 1))
        return np.asarray(np.concatenate([ends, merged], axis=1) - np.concatenate([merged, 0 * ends], axis=1))
    merged = _merge(score, units, rule=rule)
    return np.asarray(merged / merged.sum(axis=1, keepdims=True))


def _merge(score: Floats, units: Integers, *, rule: str) -> Floats:
    if rule == "max":
        return _reduce(np.maximum, score, units)
    if rule == "mean":
        return _reduce(np.add, score, units) / np.bincount(units)[:, None]
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(_reduce(np.add, np.log1p(-np.clip(score, 0.0, 1.0)), units)))


def _reduce(operation: np.ufunc, rows: Floats, units: Integers) -> Floats:
    """Sum or maximum over the rows of each unit; (U, K)."""
    order = np.argsort(units, kind="stable")
    starts = np.searchsorted(units[order], np.arange(int(units.max()) + 1))
    return np.asarray(operation.reduceat(rows[order], starts, axis=0), dtype=np.float64)
