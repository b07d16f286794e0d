"""Thresholds of scores: chosen on one split, applied unchanged to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np

from medcls.statistics.curves import (
    Question,
    compute_operating_rates,
    compute_predictive_values,
    count_at_thresholds,
    list_questions,
)
from medcls.statistics.intervals import LEAST_REPLICATES, draw_replicates, summarize
from medcls.statistics.metrics import Estimates, Estimator
from medcls.statistics.predictions import Floats, Integers, Predictions, or_none
from medcls.statistics.ranking import Curve, compute_curve
from medcls.statistics.support import RATES, Basis, find_rate_support, name_sides

RULES = ("youden", "sensitivity", "specificity", "cost")
YOUDEN = "the largest sum of sensitivity and specificity"
GIVEN = "given"  # set on the command line, not chosen on any rows
THRESHOLD_REPLICATES = 200
ONE_CLASS = ("no case where it was chosen", "nothing but cases where it was chosen")
FROM_FILE = "file"  # of the run whose scores are in the file
NEVER = "only calling nobody positive meets this rule where it was chosen"


@dataclass(frozen=True, slots=True)
class Rule:
    """How a threshold is chosen.

    Attributes:
        kind: "youden", "sensitivity" or "specificity" (at least `target`), or "cost" (a missed case costs `target`
            false alarms).
        target: None for "youden".
    """

    kind: str
    target: float | None = None

    @property
    def name(self) -> str:
        """The rule as settings and columns name it: "youden", "sensitivity_0.95"."""
        return self.kind if self.target is None else f"{self.kind}_{self.target:g}"

    @property
    def title(self) -> str:
        """The rule as a reader sees it."""
        named = {
            "youden": "Youden",
            GIVEN: "as set, not chosen on any rows",
            FROM_FILE: "as the file gives it; which rows chose it is unknown here",
        }
        if self.kind == "cost":
            return f"a miss = {self.target:g} false alarms"
        return named.get(self.kind, f"{self.kind} ≥ {self.target}")

    def mark(self, decided: str) -> str:
        """Return the title, marked if this is the rule of the decision, which is given by name."""
        return f"{self.title} (decision)" if self.name == decided else self.title


class Point(TypedDict):
    """A rule's threshold for a yes-or-no question as operating_points.json keeps it; null = `reason` says why.

    `seen` are sensitivity and specificity where it was chosen, `threshold_interval` the bootstrap's.
    """

    question: str
    kind: str
    target: float | None
    threshold: float | None
    reason: NotRequired[str]
    seen: NotRequired[dict[str, float]]
    threshold_interval: NotRequired[list[float | None]]


def list_rules(
    *, sensitivity: Sequence[float], specificity: Sequence[float], cost: Sequence[float]
) -> tuple[Rule, ...]:
    """Youden's rule, and one for each target."""
    asked = {"sensitivity": sensitivity, "specificity": specificity, "cost": cost}
    return (Rule("youden"), *(Rule(kind, float(target)) for kind, targets in asked.items() for target in targets))


def choose_threshold(question: Question, rule: Rule) -> float | None:
    """Return the score from which a row is called positive; None where only "call nobody" meets the rule.

    Of equally good thresholds the strictest is taken, except for a specificity, where the laxest is: each rule
    gives away no more of the other rate than it must.

    Raises:
        ValueError: A class is absent.

    Source: Youden 1950; cost: minimum of target * misses + false alarms on these rows, after Metz 1978.
    """
    if question.positive.all() or not question.positive.any():
        lacking = "negative" if question.positive.any() else "positive"
        raise ValueError(f"{question.name}: no {lacking} row to choose a threshold on")
    threshold = _choose_on_curve(compute_curve(question.positive, question.score), rule)
    return or_none(threshold)


def _choose_on_curve(curve: Curve, rule: Rule) -> float:
    """Return the threshold; infinite if only "call nobody" meets the rule."""
    if rule.kind not in RULES:
        raise ValueError(f"rule is {rule.kind!r}; expected one of {', '.join(RULES)}")
    if rule.target is None and rule.kind != "youden":
        raise ValueError(f"rule {rule.kind!r} needs a target")
    target = rule.target or 0.0
    positives, negatives = curve.true_positives[-1], curve.false_positives[-1]
    sensitivity, specificity = curve.true_positives / positives, 1 - curve.false_positives / negatives
    match rule.kind:
        case "youden":
            best = np.argmax(np.round(sensitivity + specificity, 12))
        case "sensitivity":
            best = np.flatnonzero(sensitivity >= target - 1e-12)[0]
        case "specificity":
            best = np.flatnonzero(specificity >= target - 1e-12)[-1]
        case _:
            best = np.argmin(target * (positives - curve.true_positives) + curve.false_positives)
    return float(curve.thresholds[best])


def choose_operating_points(
    predictions: Predictions, rules: Sequence[Rule], *, patients: Integers | None = None, seed: int = 0
) -> list[Point]:
    """Return one entry for each yes-or-no question and rule, as it is kept in operating_points.json.

    Args:
        predictions: Of the split that thresholds are chosen on (validation).
        rules: At least one.
        patients: (N,) patient number of each row, for "threshold_interval"; None = without it.
        seed: Seed of its bootstrap.
    """
    points: list[Point] = []
    for question in list_questions(predictions):
        of_question: list[Point] = [
            {"question": question.name, "kind": rule.kind, "target": rule.target, "threshold": None} for rule in rules
        ]
        points += of_question
        if question.positive.all() or not question.positive.any():
            for point in of_question:
                point["reason"] = ONE_CLASS[bool(question.positive.any())]
            continue
        for point, rule in zip(of_question, rules, strict=True):
            threshold = choose_threshold(question, rule)
            point["threshold"] = threshold
            if threshold is None:
                point["reason"] = NEVER
            rates = _rates_at(question, np.inf if threshold is None else threshold)(np.ones((1, len(question.score))))
            point["seen"] = {name: float(rates[name][0]) for name in RATES}
        if patients is not None:
            bounds = _bound_thresholds(question, rules, patients, seed=seed)
            for point, interval in zip(of_question, bounds, strict=True):
                point["threshold_interval"] = interval
    return points


def _bound_thresholds(
    question: Question, rules: Sequence[Rule], patients: Integers, *, seed: int
) -> list[list[float | None]]:
    """95 % interval of each rule's threshold if other patients had chosen it; null above = nobody would be called.

    Source: percentile bootstrap over patients, Efron & Tibshirani 1993; resamples without both classes are left out.
    """
    drawn: list[list[float]] = []
    for weights in draw_replicates(patients, replicates=THRESHOLD_REPLICATES, seed=seed):
        for row in weights[:, question.rows].astype(np.int64):
            chosen = np.repeat(np.arange(len(row)), row)
            positive = question.positive[chosen]
            if positive.any() and not positive.all():
                curve = compute_curve(positive, question.score[chosen])
                drawn.append([_choose_on_curve(curve, rule) for rule in rules])
    if len(drawn) < LEAST_REPLICATES:
        return [[None, None] for _ in rules]
    bounds = np.quantile(np.array(drawn), [0.025, 0.975], axis=0, method="inverted_cdf").T
    return [[or_none(float(bound)) for bound in pair] for pair in bounds]


def apply_operating_points(
    predictions: Predictions,
    points: Sequence[Mapping[str, Any]],
    patients: Integers,
    *,
    prevalences: Sequence[float] = (),
    replicates: int = 2000,
    seed: int = 0,
) -> list[Mapping[str, Any]]:
    """Return what the frozen thresholds do on these rows: counts, and every rate with its interval over patients.

    Args:
        predictions: Of N rows.
        points: Of `choose_operating_points`, on other rows.
        patients: (N,) patient number of each row.
        prevalences: Shares of cases for which PPV and NPV are given beside those of these rows.
        replicates: Bootstrap samples.
        seed: Seed of the bootstrap.
    """
    questions = {question.name: question for question in list_questions(predictions)}
    stated = {
        f"{name}_at_{prevalence:g}": Basis("predictive", (), RATES, name == "ppv", prevalence)
        for prevalence in prevalences
        for name in ("ppv", "npv")
    }
    applied: list[Mapping[str, Any]] = []
    for point in points:
        question = questions.get(point["question"])
        if point["threshold"] is None or question is None:
            applied.append(dict(point))
            continue
        called = question.score >= float(point["threshold"])
        names = name_sides(predictions, question.metric_suffix)
        support = find_rate_support(question.positive, called, question.rows, total=len(patients), side_names=names)
        at_threshold = _rates_at(question, float(point["threshold"]), prevalences)
        rates = summarize(
            lambda weights, rows=question.rows, rate=at_threshold: rate(weights[:, rows]),  # type: ignore[misc]
            patients,
            support | stated,
            replicates=replicates,
            seed=seed,
        )
        hits, alarms = int((called & question.positive).sum()), int((called & ~question.positive).sum())
        positives, negatives = int(question.positive.sum()), int((~question.positive).sum())
        cells = {"tp": hits, "fn": positives - hits, "fp": alarms, "tn": negatives - alarms}
        applied.append({**point, "counts": cells, "rates": rates})
    return applied


def _rates_at(question: Question, threshold: float, prevalences: Sequence[float] = ()) -> Estimator:
    """Return the estimator, of the question's rows, of the rates at a threshold; PPV and NPV also at prevalences."""

    def estimate(weights: Floats) -> Estimates:
        counts = count_at_thresholds(question.positive, question.score, thresholds=[threshold], weights=weights)
        rates = {name: value[:, 0] for name, value in compute_operating_rates(counts).items()}
        for prevalence in prevalences:
            values = compute_predictive_values(rates["sensitivity"], rates["specificity"], prevalence=prevalence)
            rates |= {f"{name}_at_{prevalence:g}": value for name, value in zip(("ppv", "npv"), values, strict=True)}
        return rates

    return estimate
