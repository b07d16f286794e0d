"""Numbers of metrics.json as text, the same on the terminal, the page and every document."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medcls.statistics.definitions import DEFINITIONS


@dataclass(frozen=True, slots=True)
class Number:
    """One metric as a reader sees it.

    Attributes:
        text: The value, "—" where there is none.
        interval: "0.870 – 0.941", or "" without one.
        reason: Why the value or the interval is missing, or "".
        bar: Left end, length and mark in percent of [0, 1]; None where the metric has another range.
    """

    text: str
    interval: str
    reason: str
    bar: tuple[float, float, float] | None


def format_number(name: str, entry: Mapping[str, Any]) -> Number:
    """Return one entry of metrics.json as text."""
    value, low, high = entry["value"], entry["low"], entry["high"]
    bar = None
    if name in DEFINITIONS and DEFINITIONS[name].unit_range and low is not None:
        bar = (100 * low, max(100 * (high - low), 0.8), 100 * value)
    reason = str(entry.get("reason") or entry.get("note") or "")
    return Number(format_value(value), format_interval(low, high), reason, bar)


def format_difference(entry: Mapping[str, Any]) -> Number:
    """Return a paired difference of metrics.json as text."""
    return format_number("difference", {"low": None, "high": None, **entry, "value": entry["difference"]})


def format_reason(reason: str) -> Number:
    """Return why there is no number, beside the dash that is shown for it."""
    return Number("—", "", reason, None)


def format_interval(low: float | None, high: float | None) -> str:
    """Return "0.870 – 0.941"; "" without an interval."""
    return "" if low is None else f"{format_value(low)} – {format_value(high)}"


def format_value(value: float | None) -> str:
    """Three decimals, fewer for large numbers; a real minus sign; "—" for None."""
    if value is None:
        return "—"
    decimals = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:.{decimals}f}".replace("-", "−")


def format_threshold(value: float) -> str:
    """Return a threshold with three decimals, or as many as tell it from 0 and 1 by two digits."""
    distance = min(abs(value), abs(1 - value))
    decimals = 3 if distance in (0, 1) or not 0 < value < 1 else max(3, 1 + math.ceil(-math.log10(distance)))
    return f"{value:.{decimals}f}".replace("-", "−")


def format_p(value: float | None) -> str:
    """Return a p-value with three decimals: "< 0.001" below them, "—" for None."""
    if value is None:
        return "—"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
