"""Check a dataclass read from a file against its type hints; the file is untrusted."""

from __future__ import annotations

import types
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints


def check_types(record: Any) -> None:
    """Raises TypeError for the first field, nested dataclasses included, whose value is not of its annotated type."""
    for name, hint in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if not _fits(value, hint):
            raise TypeError(f"{name} is {str(value)[:60]!r}, expected {hint}")


def _fits(value: Any, hint: Any) -> bool:
    """True is no integer here, and an integer is a float."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is tuple:
        return isinstance(value, tuple) and _fit_tuple(value, inner)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if is_dataclass(hint) and isinstance(value, hint if isinstance(hint, type) else type(None)):
        check_types(value)
        return True
    return isinstance(value, hint)


def _fit_tuple(value: tuple[Any, ...], inner: tuple[Any, ...]) -> bool:
    if inner[1:] == (Ellipsis,):
        return all(_fits(item, inner[0]) for item in value)
    return len(value) == len(inner) and all(map(_fits, value, inner))
