"""The plan of analysis fixed beforehand: limits, margins and subgroups, and whether they are met."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from medcls.config import nearest
from medcls.errors import ConfigError
from medcls.statistics.definitions import (
    DEFINITIONS,
    HIGH,
    LOW,
    choose_headlines,
    choose_task_metrics,
    find_definition,
    find_stem,
    name_metric,
)
from medcls.statistics.metrics import build_estimator
from medcls.statistics.number_text import format_value
from medcls.statistics.predictions import Predictions, check_predictions

MET, NOT_MET, UNDECIDED = "met", "not met", "undecided"
COMPARISON = "comparison"
LEVELS = ("image", "study", "patient")
_KEYS = ("metrics", "comparison", "primary", "subgroups")
_CRITERION_KEYS = ("metric", "at_least", "at_most", "between", "level", "each")
_COMPARISON_KEYS = ("metric", "margin")


@dataclass(frozen=True, slots=True)
class Criterion:
    """A metric and the limits that its interval has to lie within.

    Attributes:
        metric: Name in metrics.json.
        low: The value has to be at least this; None = no limit.
        high: The value has to be at most this; None = no limit.
        level: "image", "study" or "patient".
        each: Column whose every group has to meet it; "" = all rows together.
    """

    metric: str
    low: float | None
    high: float | None
    level: str = "image"
    each: str = ""

    @property
    def title(self) -> str:
        """The criterion as a reader sees it."""
        title = name_metric(self.metric)
        if self.low is None:
            title += f" ≤ {self.high:g}"
        elif self.high is None:
            title += f" ≥ {self.low:g}"
        else:
            title += f" between {self.low:g} and {self.high:g}"
        if self.level != "image":
            title += f", {self.level} level"
        if self.each:
            title += f", each {self.each}"
        return title


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the paired difference to the other model has to show.

    Attributes:
        metric: Name in metrics.json.
        margin: How much worse it may be; 0 = it has to be better.
    """

    metric: str
    margin: float = 0.0

    @property
    def title(self) -> str:
        """The comparison as a reader sees it."""
        name = name_metric(self.metric)
        return f"{name} not inferior by {self.margin:g} or more" if self.margin else f"{name} better than the other"


@dataclass(frozen=True, slots=True)
class Analysis:
    """A plan of analysis.

    Attributes:
        criteria: Limits.
        comparison: With the other model, or None.
        primary: Metric of the criterion that the conclusion rests on, "comparison", or "" = on all of them.
        subgroups: Columns that are reported in any case.
    """

    criteria: tuple[Criterion, ...]
    comparison: Comparison | None
    primary: str
    subgroups: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of subgroups that it needs."""
        return tuple(dict.fromkeys([*self.subgroups, *(one.each for one in self.criteria if one.each)]))


def parse_analysis(content: Any, *, where: str) -> Analysis:
    """Return the plan that a file holds.

    Args:
        content: What the YAML file says.
        where: "analysis=FILE", for messages.

    Raises:
        ConfigError: An unknown key, a missing one, or a value of the wrong kind.
    """
    plan = _check_keys(content, _KEYS, where)
    listed = plan.get("metrics") or []
    if not isinstance(listed, list):
        raise ConfigError(f"{where}: metrics: expected a list of entries like '- {{metric: auc, at_least: 0.8}}'")
    criteria = tuple(_parse_criterion(one, f"{where}, metrics, entry {k}") for k, one in enumerate(listed, start=1))
    comparison = _parse_comparison(plan["comparison"], f"{where}, comparison") if "comparison" in plan else None
    if not criteria and comparison is None:
        raise ConfigError(f"{where}: no criterion: add metrics, or comparison")
    subgroups = plan.get("subgroups") or []
    if not isinstance(subgroups, list) or not all(isinstance(name, str) for name in subgroups):
        raise ConfigError(f"{where}: subgroups: expected a list of columns like [sex, age]")
    primary = plan.get("primary", "")
    known = [one.metric for one in criteria]
    if comparison:
        known.append(COMPARISON)
    if primary and known.count(primary) != 1:
        found = f"{known.count(primary)} criteria have it"
        raise ConfigError(f"{where}: primary: {found}: expected one of {', '.join(dict.fromkeys(known))}")
    return Analysis(criteria, comparison, str(primary), tuple(subgroups))


def _check_keys(content: Any, known: Sequence[str], where: str) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected keys and values ({', '.join(known)})")
    for key in content:
        if key not in known:
            shown = nearest(str(key), known)
            raise ConfigError(f"{where}: unknown key {str(key)[:30]!r}{shown}: expected {', '.join(known)}")
    return content


def _parse_criterion(content: Any, where: str) -> Criterion:
    entry = _check_keys(content, _CRITERION_KEYS, where)
    metric = _parse_metric(entry, where)
    limits = [key for key in ("at_least", "at_most", "between") if key in entry]
    if len(limits) != 1:
        raise ConfigError(f"{where}: {len(limits)} limits: expected one of at_least, at_most, between")
    level, each = entry.get("level", "image"), entry.get("each", "")
    if level not in LEVELS:
        raise ConfigError(f"{where}: level: expected one of {', '.join(LEVELS)}{nearest(str(level), LEVELS)}")
    if not isinstance(each, str) or (each and level != "image"):
        raise ConfigError(f"{where}: each: expected the name of a column, without level")
    if limits == ["between"]:
        pair = entry["between"]
        if not isinstance(pair, list) or len(pair) != 2:
            raise ConfigError(f"{where}: between: expected [LOW, HIGH]")
        low, high = (_read_limit(value, f"{where}, between") for value in pair)
        if low >= high:
            raise ConfigError(f"{where}: between: {low:g} is not below {high:g}")
        return Criterion(metric, low, high, level, each)
    value = _read_limit(entry[limits[0]], f"{where}, {limits[0]}")
    ideal = DEFINITIONS[find_stem(metric)].ideal
    if isinstance(ideal, float):
        raise ConfigError(f"{where}: {metric} is best at {ideal}: use between: [LOW, HIGH]")
    right = {LOW: "at_most", HIGH: "at_least"}[ideal]
    if limits != [right]:
        raise ConfigError(f"{where}: {metric} is better the {ideal}er: use {right}")
    if right == "at_least":
        return Criterion(metric, value, None, level, each)
    return Criterion(metric, None, value, level, each)


def _parse_comparison(content: Any, where: str) -> Comparison:
    entry = _check_keys(content, _COMPARISON_KEYS, where)
    metric = _parse_metric(entry, where)
    margin = _read_limit(entry.get("margin", 0.0), f"{where}, margin")
    if isinstance(DEFINITIONS[find_stem(metric)].ideal, float):
        raise ConfigError(f"{where}: {metric} has no better direction: choose another metric")
    if margin < 0:
        raise ConfigError(f"{where}: margin: {margin:g} is below 0: give how much worse the model may be")
    return Comparison(metric, margin)


def _parse_metric(entry: Mapping[str, Any], where: str) -> str:
    metric = entry.get("metric")
    if not isinstance(metric, str) or find_definition(metric) is None:
        hint = nearest(metric, DEFINITIONS) if isinstance(metric, str) else ""
        raise ConfigError(f"{where}: metric: not a metric of metrics.json{hint}: expected one such as auc")
    return metric


def _read_limit(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        raise ConfigError(f"{where}: expected a number")
    return float(value)


def check_analysis(
    analysis: Analysis, kind: str, *, class_names: Sequence[str], grades: bool, against: bool, where: str
) -> None:
    """Check that the plan can be judged by an evaluation of this task, before any row is opened.

    Args:
        analysis: The plan.
        kind: Kind of the task.
        class_names: K names.
        grades: A regression of grades.
        against: Whether a second model is evaluated.
        where: "analysis=FILE", for messages.

    Raises:
        ConfigError: A metric that the task, its subgroups or its comparison does not have, or no second model.
    """
    example = _build_example(kind, class_names, grades=grades)
    names = list(build_estimator(example)(np.ones((1, len(example.y_score)))))
    shown = choose_task_metrics(kind, grades=grades).subgroups
    compared = [name for name in choose_headlines(example) if name in names]
    for one in analysis.criteria:
        known, what = list(names), f"kind={kind}"
        if one.each:
            known, what = list(shown), "subgroups"
        if one.metric not in known:
            raise ConfigError(
                f"{where}: {one.metric} is not a metric of {what}{nearest(one.metric, known)}: choose one of "
                f"{', '.join(known[:12])}{' …' * (len(known) > 12)}"
            )
    if analysis.comparison is not None:
        if analysis.comparison.metric not in compared:
            raise ConfigError(
                f"{where}: comparison: {analysis.comparison.metric}: expected one of {', '.join(compared)}"
            )
        if not against:
            raise ConfigError(f"{where}: it contains a comparison, but there is no second model: set against=")


def _build_example(kind: str, class_names: Sequence[str], *, grades: bool) -> Predictions:
    """Predictions of one row of each class: enough to know the names of the metrics."""
    number = len(class_names)
    true: NDArray[np.float64] = np.arange(max(number, 2), dtype=np.float64)
    score = true[:, None]
    if kind == "multilabel":
        true = score = np.array([[0.0] * number, [1.0] * number])
    elif kind in ("multiclass", "ordinal"):
        score = np.eye(number)
    return check_predictions(kind, true, score, class_names=class_names, grades=grades)


class Verdict(TypedDict):
    """One criterion judged: its limits ("limit") or its margin ("comparison"), the number, and why it is undecided."""

    kind: str
    metric: str
    title: str
    value: float | None
    low: float | None
    high: float | None
    verdict: str
    reason: str
    primary: bool
    at_least: NotRequired[float | None]
    at_most: NotRequired[float | None]
    margin: NotRequired[float]


def judge_analysis(analysis: Analysis, metrics: Mapping[str, Any]) -> dict[str, object]:
    """Return what metrics.json holds under "analysis": each criterion, whether it is met, and the conclusion.

    A criterion is met if the whole 95 % interval is within its limits, not met if the whole interval is outside,
    and undecided otherwise.

    Source: intersection-union: Berger 1982; non-inferiority by the interval: ICH E9, section 3.3.2.
    """
    rows: list[Verdict] = []
    for one in analysis.criteria:
        for title, entry in _find_numbers(one, metrics):
            row = _judge("limit", one.metric, title, entry, limits=(one.low, one.high))
            row["at_least"], row["at_most"] = one.low, one.high
            rows.append(row)
    if analysis.comparison is not None:
        rows.append(_judge_comparison(analysis.comparison, metrics))
    for row in rows:
        row["primary"] = analysis.primary == (COMPARISON if row["kind"] == COMPARISON else row["metric"])
    deciding = [row for row in rows if row["primary"]] or rows
    verdicts = {row["verdict"] for row in deciding}
    conclusion = next((verdict for verdict in (NOT_MET, UNDECIDED) if verdict in verdicts), MET)
    rows.sort(key=lambda row: not row["primary"])
    multiplicity = (
        f"The conclusion needs all {len(rows)} criteria, each judged by a 95 % interval: this needs no correction for "
        "their number. A single one that is met is not corrected for the others."
    )
    others = len(rows) - len(deciding)
    if analysis.primary:
        multiplicity = "The conclusion rests on the primary criterion, judged by 95 % intervals."
        if others:
            multiplicity += f" The other {others} are secondary, without correction for their number."
    elif len(rows) == 1:
        multiplicity = "One criterion, judged by a 95 % interval."
    return {"criteria": rows, "conclusion": conclusion, "multiplicity": multiplicity}


def _find_numbers(one: Criterion, metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return title and entry of each number that a criterion is about; an entry may say only why there is none."""
    if one.each:
        groups = [entry for entry in metrics.get("subgroups", []) if entry["column"] == one.each]
        if not groups:
            return [(one.title, {"reason": f"no groups by {one.each}: no such column, or one value only"})]
        return [
            (
                f"{one.title}: {group['value']}",
                group["metrics"].get(one.metric) or {"reason": group.get("reason", "")},
            )
            for group in groups
        ]
    found = metrics
    if one.level != "image":
        found = metrics.get("levels", {}).get(one.level, {}).get("metrics", {})
    entry = found.get(one.metric)
    if not isinstance(entry, Mapping):
        return [(one.title, {"reason": f"there is no {one.level} level with {one.metric}"})]
    return [(one.title, entry)]


def _judge_comparison(one: Comparison, metrics: Mapping[str, Any]) -> Verdict:
    """Met if the whole interval of the difference is on the better side of the margin."""
    entry = metrics.get("comparison", {}).get("metrics", {}).get(one.metric)
    definition = find_definition(one.metric)
    limits: tuple[float | None, float | None] = (-one.margin, None)
    if definition is not None and definition.ideal == LOW:
        limits = (None, one.margin)
    entry = {"reason": "there is no second model"} if entry is None else {**entry, "value": entry["difference"]}
    row = _judge(COMPARISON, one.metric, one.title, entry, limits=limits)
    row["margin"] = one.margin
    return row


def _judge(
    kind: str, metric: str, title: str, entry: Mapping[str, Any], *, limits: tuple[float | None, float | None]
) -> Verdict:
    """Return one verdict; a bound on the margin of a comparison does not meet it, one on another limit does."""
    value, left, right = (entry.get(key) for key in ("value", "low", "high"))
    row: Verdict = {
        "kind": kind, "metric": metric, "title": title, "value": value, "low": None, "high": None,
        "verdict": UNDECIDED, "reason": str(entry.get("reason") or "there is no interval"), "primary": False,
    }  # fmt: skip
    if value is None or left is None or right is None:
        return row
    low, high = (-math.inf if limits[0] is None else limits[0]), (math.inf if limits[1] is None else limits[1])
    contains = ""
    if right < low or left > high:
        row["verdict"] = NOT_MET
    elif left < low or right > high or (kind == COMPARISON and (left == low or right == high)):
        contains = "the interval contains the limit"
    else:
        row["verdict"] = MET
    row["low"], row["high"], row["reason"] = left, right, "; ".join(filter(None, [contains, entry.get("note")]))
    return row


def format_analysis(judged: Mapping[str, Any]) -> str:
    """Return the verdicts as lines for the terminal."""
    lines = [f"decided beforehand: {judged['conclusion']}", f"  {judged['multiplicity']}"]
    lines += [f"  {note}" for note in judged.get("notes", [])]
    for row in judged["criteria"]:
        line = f"  {row['verdict']:9s} {'primary: ' * row['primary']}{row['title']}"
        if row["low"] is not None:
            line += " ({}, {} to {})".format(*(format_value(row[key]) for key in ("value", "low", "high")))
        lines.append(": ".join(filter(None, [line, row["reason"]])))
    return "\n".join(lines)
