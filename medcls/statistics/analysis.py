"""The plan of analysis fixed beforehand: limits, margins and subgroups, and whether they are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medcls.config import nearest
from medcls.errors import ConfigError
from medcls.statistics.definitions import (
    DEFINITIONS,
    choose_headlines,
    choose_task_metrics,
    find_definition,
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
        if self.low is not None and self.high is not None:
            limits = f"between {self.low:g} and {self.high:g}"
        else:
            limits = f"≥ {self.low:g}" if self.low is not None else f"≤ {self.high:g}"
        where = "" if self.level == "image" else f", {self.level} level"
        return f"{name_metric(self.metric)} {limits}{where}" + (f", each {self.each}" if self.each else "")


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
    known = [*(one.metric for one in criteria), *([COMPARISON] if comparison else [])]
    if primary and known.count(primary) != 1:
        found = f"{known.count(primary)} criteria have it"
        raise ConfigError(f"{where}: primary: {found}: expected one of {', '.join(dict.fromkeys(known))}")
    return Analysis(criteria, comparison, str(primary), tuple(subgroups))


def _check_keys(content: Any, known: Sequence[str], where: str) -> dict[str, Any]:
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
        return Criterion(metric, *_read_pair(entry["between"], where), level, each)
    value = _read_limit(entry[limits[0]], f"{where}, {limits[0]}")
    definition = find_definition(metric)
    wrong = {"low": "at_least", "high": "at_most"}.get(str(definition.ideal) if definition else "")
    if limits[0] == wrong:
        right = "at_most" if wrong == "at_least" else "at_least"
        raise ConfigError(
            f"{where}: {metric} is better the {'lower' if wrong == 'at_least' else 'higher'}: use {right}"
        )
    if definition is not None and definition.ideal not in ("low", "high"):
        raise ConfigError(f"{where}: {metric} is best at {definition.ideal}: use between: [LOW, HIGH]")
    low, high = (value, None) if limits[0] == "at_least" else (None, value)
    return Criterion(metric, low, high, level, each)


def _parse_comparison(content: Any, where: str) -> Comparison:
    entry = _check_keys(content, _COMPARISON_KEYS, where)
    metric = _parse_metric(entry, where)
    margin = _read_limit(entry.get("margin", 0.0), f"{where}, margin")
    definition = find_definition(metric)
    if definition is None or definition.ideal not in ("low", "high"):
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


def _read_pair(value: Any, where: str) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise ConfigError(f"{where}: between: expected [LOW, HIGH]")
    low, high = (_read_limit(one, f"{where}, between") for one in value)
    if low >= high:
        raise ConfigError(f"{where}: between: {low:g} is not below {high:g}")
    return low, high


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
        known, what = (shown, "subgroups") if one.each else (names, f"kind={kind}")
        if one.metric not in known:
            raise ConfigError(
                f"{where}: {one.metric} is not a metric of {what}{nearest(one.metric, known)}: choose one of "
                f"{', '.join(list(known)[:12])}{' …' if len(known) > 12 else ''}"
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
    match kind:
        case "binary":
            true, score = np.array([0, 1]), np.array([[0.2], [0.8]])
        case "multilabel":
            true = np.array([[0.0] * number, [1.0] * number])
            score = 0.2 + 0.6 * true
        case "regression":
            true = np.arange(max(number, 2), dtype=np.float64)
            score = true[:, None] + 0.1
        case _:
            true, score = np.arange(number), 0.6 * np.eye(number) + 0.4 / number
    return check_predictions(kind, true, score, class_names=class_names, grades=grades)


def judge_analysis(analysis: Analysis, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what metrics.json holds under "analysis": each criterion, whether it is met, and the conclusion.

    A criterion is met if the whole 95 % interval lies within its limits, not met if the whole interval lies outside,
    and undecided otherwise.

    Args:
        analysis: The plan.
        metrics: As in metrics.json.

    Source: intersection-union: Berger 1982; non-inferiority by the interval: ICH E9, section 3.3.2.
    """
    rows = [entry for one in analysis.criteria for entry in _judge_criterion(one, metrics)]
    if analysis.comparison is not None:
        rows.append(_judge_comparison(analysis.comparison, metrics))
    for row in rows:
        row["primary"] = row["metric" if row["kind"] != COMPARISON else "kind"] == analysis.primary
    deciding = [row for row in rows if row["primary"]] or rows
    verdicts = {row["verdict"] for row in deciding}
    conclusion = NOT_MET if NOT_MET in verdicts else UNDECIDED if UNDECIDED in verdicts else MET
    rows.sort(key=lambda row: not row["primary"])
    return {"criteria": rows, "conclusion": conclusion, "multiplicity": _say_multiplicity(analysis, rows, deciding)}


def _say_multiplicity(
    analysis: Analysis, rows: Sequence[Mapping[str, Any]], deciding: Sequence[Mapping[str, Any]]
) -> str:
    if analysis.primary:
        others = len(rows) - len(deciding)
        secondary = f" The other {others} are secondary, without correction for their number." if others else ""
        return f"The conclusion rests on the primary criterion, judged by 95 % intervals.{secondary}"
    if len(rows) == 1:
        return "One criterion, judged by a 95 % interval."
    return (
        f"The conclusion needs all {len(rows)} criteria, each judged by a 95 % interval: this needs no correction for "
        "their number. A single one that is met is not corrected for the others."
    )


def _judge_criterion(one: Criterion, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    base = {"kind": "limit", "metric": one.metric, "at_least": one.low, "at_most": one.high}
    if one.each:
        groups = [entry for entry in metrics.get("subgroups", []) if entry["column"] == one.each]
        if not groups:
            return [base | _undecided(one.title, f"no groups by {one.each}: no such column, or one value only")]
        return [
            base
            | _judge(
                f"{one.title}: {group['value']}",
                group["metrics"].get(one.metric) or {"reason": group.get("reason", "")},
                low=one.low,
                high=one.high,
            )
            for group in groups
        ]
    found = metrics if one.level == "image" else metrics.get("levels", {}).get(one.level, {}).get("metrics", {})
    entry = found.get(one.metric)
    if not isinstance(entry, Mapping):
        return [base | _undecided(one.title, f"there is no {one.level} level with {one.metric}")]
    return [base | _judge(one.title, entry, low=one.low, high=one.high)]


def _judge_comparison(one: Comparison, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Met if the whole interval of the difference is on the better side of the margin."""
    base = {"kind": COMPARISON, "metric": one.metric, "margin": one.margin}
    entry = metrics.get("comparison", {}).get("metrics", {}).get(one.metric)
    if entry is None:
        return base | _undecided(one.title, "there is no second model")
    definition = find_definition(one.metric)
    lower_is_better = definition is not None and definition.ideal == "low"
    limits = {"low": None, "high": one.margin} if lower_is_better else {"low": -one.margin, "high": None}
    return base | _judge(one.title, {**entry, "value": entry["difference"]}, **limits, strict=True)


def _undecided(title: str, reason: str) -> dict[str, Any]:
    return {"title": title, "value": None, "low": None, "high": None, "verdict": UNDECIDED, "reason": reason}


def _judge(
    title: str, entry: Mapping[str, Any], *, low: float | None, high: float | None, strict: bool = False
) -> dict[str, Any]:
    """Return one verdict.

    Args:
        title: Of the criterion.
        entry: Value and bounds.
        low: Lower limit.
        high: Upper limit.
        strict: A bound on the limit itself does not meet it.
    """
    value, left, right = (entry.get(key) for key in ("value", "low", "high"))
    if value is None or left is None or right is None:
        reason = str(entry.get("reason") or "there is no interval")
        return _undecided(title, reason) | {"value": value}
    inside = (low is None or left > low or (left == low and not strict)) and (
        high is None or right < high or (right == high and not strict)
    )
    outside = (low is not None and right < low) or (high is not None and left > high)
    verdict = MET if inside else NOT_MET if outside else UNDECIDED
    contains = "the interval contains the limit" if verdict == UNDECIDED else ""
    reason = "; ".join(filter(None, [contains, entry.get("note", "")]))
    return {"title": title, "value": value, "low": left, "high": right, "verdict": verdict, "reason": reason}


def format_analysis(judged: Mapping[str, Any]) -> str:
    """Return the verdicts as lines for the terminal."""
    lines = [f"decided beforehand: {judged['conclusion']}", f"  {judged['multiplicity']}"]
    lines += [f"  {note}" for note in judged.get("notes", [])]
    for row in judged["criteria"]:
        known = row["low"] is not None
        found = (
            f" ({format_value(row['value'])}, {format_value(row['low'])} to {format_value(row['high'])})"
            if known
            else ""
        )
        reason = f": {row['reason']}" if row["reason"] else ""
        primary = "primary: " if row["primary"] else ""
        lines.append(f"  {row['verdict']:9s} {primary}{row['title']}{found}{reason}")
    return "\n".join(lines)
