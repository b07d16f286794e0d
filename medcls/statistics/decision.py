"""The rule by which a run turns scores into answers, the same in evaluation, prediction and every document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medcls.identity import format_count
from medcls.statistics.number_text import format_threshold
from medcls.statistics.predictions import Predictions, or_none
from medcls.statistics.thresholds import NEVER, YOUDEN, Rule

HALF, HIGHEST, ROUNDED, VALUE, NONE = "half", "highest", "rounded", "value", "none"
DEFAULTS = {"binary": "youden", "multilabel": "youden", "multiclass": HIGHEST, "ordinal": HIGHEST}
"""What is used if decision= is not set; a regression rounds its value if it has grades."""
_IN_WORDS = {
    NONE: "none; the scores are not probabilities and no threshold is known",
    HIGHEST: "the class with the highest score",
    ROUNDED: "the value rounded to the nearest grade",
    VALUE: "the value itself",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """How scores become answers.

    Attributes:
        rule: "youden", "sensitivity_0.95" … (a frozen operating point), "given" (as set), "half" (0.5), "highest",
            "rounded", "value", or "none" (margins without a threshold).
        thresholds: Question (the positive class, or each label) to the score from which it is called; infinite =
            never; {} for rules without thresholds.
        chosen_on: The rows that chose the thresholds, in words; "" = nothing was chosen.
        reasons: Question to why its threshold is not the one that the rule asks for.
        intervals: Question to the bootstrap interval of its threshold, where it is known.
    """

    rule: str
    thresholds: dict[str, float] = field(default_factory=dict)
    chosen_on: str = ""
    reasons: dict[str, str] = field(default_factory=dict)
    intervals: dict[str, list[float | None]] = field(default_factory=dict)

    def apply(self, predictions: Predictions) -> Predictions:
        """Return the predictions with this rule's thresholds."""
        return replace(predictions, thresholds=tuple(self.thresholds.values()))

    @property
    def title(self) -> str:
        """The rule as a reader sees it."""
        if self.rule in (HALF, *_IN_WORDS):
            return _IN_WORDS.get(self.rule, "0.5, not chosen on any rows")
        if self.rule == "youden":
            return f"Youden's rule, {YOUDEN}"
        kind, _, target = self.rule.partition("_")
        return Rule(kind, float(target) if target else None).title

    def describe(self) -> str:
        """Return the rule, its thresholds and the rows that chose them as one sentence."""
        if not self.thresholds:
            return f"Decision: {self.title}."
        called = ", ".join(self._describe_threshold(name) for name in self.thresholds)
        where = f", chosen on {self.chosen_on}" if self.chosen_on and self.rule != HALF else ""
        why = "".join(f" {name}: {reason}." for name, reason in self.reasons.items())
        return f"Decision: {called} ({self.title}{where}).{why}"

    def _describe_threshold(self, name: str) -> str:
        """Return "ill if its score is at least 0.2 [95 % interval 0.1 to 0.4]"; no upper bound = never called."""
        if np.isinf(self.thresholds[name]):
            return f"{name} is never called"
        words = f"{name} if its score is at least {format_threshold(self.thresholds[name])}"
        low, high = self.intervals.get(name, (None, None))
        if low is None:
            return words
        return (
            f"{words} [95 % interval {format_threshold(low)} to {'never' if high is None else format_threshold(high)}]"
        )

    def to_json(self) -> dict[str, object]:
        """Return what metrics.json holds; a threshold that is never reached is null."""
        return {
            "rule": self.rule,
            "title": self.title,
            "thresholds": {name: or_none(value) for name, value in self.thresholds.items()},
            "intervals": self.intervals,
            "chosen_on": self.chosen_on or None,
            "reasons": self.reasons,
            "words": self.describe(),
        }


def list_decisions(kind: str, rules: Sequence[Rule], *, grades: bool) -> tuple[str, ...]:
    """Return the rules that a task can decide by, the default first.

    Args:
        kind: Kind of the task.
        rules: The frozen operating points.
        grades: Whether a regression has grades.
    """
    if kind == "regression":
        return (ROUNDED if grades else VALUE,)
    if kind not in ("binary", "multilabel"):
        return (HIGHEST,)
    return (*dict.fromkeys((DEFAULTS[kind], *(rule.name for rule in rules))), HALF)


def build_decision(
    predictions: Predictions, rule: str | None = None, *, points: Sequence[Mapping[str, Any]] = (), chosen_on: str = ""
) -> Decision:
    """Return the decision of a task by one of its frozen operating points.

    Args:
        predictions: Whose kind and class names count; its rows do not.
        rule: One of `list_decisions`; None = the default of the kind. Ignored if the task has no thresholds.
        points: As `choose_operating_points` froze them; () = 0.5 for every question.
        chosen_on: The rows that chose them, in words.
    """
    if not predictions.traits.thresholds:
        return Decision(list_decisions(predictions.kind, (), grades=predictions.grades)[0])
    questions = predictions.class_names[predictions.kind == "binary" :]
    wanted = rule or DEFAULTS[predictions.kind]
    if not points and not predictions.probabilities:
        return Decision(NONE)
    if not points or wanted == HALF:
        return Decision(HALF, dict.fromkeys(questions, 0.5))
    found = {str(point["question"]): point for point in points if Rule(point["kind"], point["target"]).name == wanted}
    decision = Decision(wanted, {}, chosen_on)
    for question in questions:
        point = found.get(question, {"threshold": None, "reason": f"no point {wanted} was frozen"})
        reason = str(point.get("reason", ""))
        if point["threshold"] is not None:
            decision.thresholds[question] = float(point["threshold"])
        elif reason == NEVER:
            decision.thresholds[question], decision.reasons[question] = float("inf"), reason
        else:
            decision.thresholds[question], decision.reasons[question] = 0.5, f"0.5 is used: {reason}"
        if "threshold_interval" in point:
            decision.intervals[question] = list(point["threshold_interval"])
    return decision


def describe_calls(predictions: Predictions) -> list[str]:
    """Return a sentence for each class or label that no row, or every row, was called; one if all are one class."""
    names, rows = predictions.class_names, len(predictions.y_score)
    if predictions.kind == "regression" or not predictions.decides:
        return []
    if predictions.traits.thresholds:
        counts = dict(zip(names[-predictions.called.shape[1] :], predictions.called.sum(axis=0).tolist(), strict=True))
    else:
        called = np.bincount(predictions.grade_predicted, minlength=len(names))
        counts = dict(zip(names, called.tolist(), strict=True))
    everyone = "The only image was" if rows == 1 else f"All {rows} images were"
    constant = rows in counts.values() and predictions.kind != "multilabel"
    sentences = []
    for name, count in counts.items():
        if count == rows:
            sentences.append(f"{everyone} called {name}.")
        elif count == 0 and not constant:
            sentences.append(f"No image was called {name} ({format_count(rows, 'image')}).")
    return sentences
