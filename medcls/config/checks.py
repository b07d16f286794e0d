"""Checks of single values, whose errors name the setting, the value and what was expected."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from pathlib import Path

from medcls.errors import ConfigError

SPLITS = ("train", "val", "test")
# Metadata of a field of any type that says how it is typed; str and list[str] say it by themselves.
TYPED, TEXT, NAMES = "typed", "text", "names"


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns " (nearest: x)" for the known name most like `name`, or "" where none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (nearest: {matches[0]})" if matches else ""


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raises ConfigError where `value` is not one of `known`, with the nearest of them."""
    known = list(known)
    if value not in known:
        raise ConfigError(f"{name}={value}: expected one of {', '.join(known)}{nearest(str(value), known)}")


def check_range(
    name: str, value: float, *, low: float | None = None, high: float | None = None, open_low: bool = False
) -> None:
    """Raises ConfigError where `value` is not finite or lies outside [low, high] ((low, high] if open_low)."""
    below = low is not None and (value < low or (open_low and value == low))
    above = high is not None and value > high
    if below or above or not math.isfinite(value):
        bounds = [f"{'>' if open_low else '>='} {low:g}" if low is not None else ""]
        bounds.append(f"<= {high:g}" if high is not None else "")
        raise ConfigError(f"{name}={value}: expected {' and '.join(b for b in bounds if b)}")


def check_file_name(name: str, value: str) -> None:
    """Raises ConfigError where `value` cannot be a plain file name."""
    if not value or value != Path(value).name or value.startswith("."):
        raise ConfigError(f"{name}={value}: expected a plain name without / and leading dots")
