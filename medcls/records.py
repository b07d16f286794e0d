"""Convert dataclasses to JSON and back, checking types: the annotations say what a record holds.

What is read may come from anybody: nothing is converted by guessing, and messages show numbers but never texts.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from medcls.errors import ConfigError, DataError

T = TypeVar("T")

_METADATA = "record"
_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    list: "a list",
    tuple: "a list",
    dict: "an object",
    NoneType: "null",
}


@dataclass(frozen=True, slots=True)
class _Newer:
    """What older records, which lack a field, mean by that; and whether its default is left out when writing."""

    before: Any
    omit: bool


def newer(*, before: Any = MISSING, omit: bool = False) -> dict[str, Any]:
    """Return the metadata of a dataclass field that records of older versions lack; other fields must be there.

    Args:
        before: What those records mean, if it is not the field's default.
        omit: Leave the field out of the JSON at its default, so that checksums of older records stay the same.
    """
    return {_METADATA: _Newer(before, omit)}


def to_json(record: Any) -> dict[str, Any]:
    """Return the JSON object of a dataclass, in the order of its fields; numbers stay as they are, 2 or 2.0."""
    return {
        f.name: _to_plain(getattr(record, f.name))
        for f in fields(record)
        if not (_METADATA in f.metadata and f.metadata[_METADATA].omit and getattr(record, f.name) == _default(f))
    }


def _to_plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)
    if isinstance(value, list | tuple):
        return [_to_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _to_plain(each) for key, each in value.items()}
    return str(value) if isinstance(value, Path) else value


@overload
def from_json(kind: type[T], content: Any, *, name: str = ...) -> T: ...
@overload
def from_json(kind: UnionType, content: Any, *, name: str = ...) -> Any: ...
def from_json(kind: Any, content: Any, *, name: str = "") -> Any:
    """Return the dataclass that `to_json` wrote.

    Annotations may be dataclasses, bool, int, float (which takes whole numbers as they are), str, Path, Literal, Any,
    and lists, tuples, dicts with text keys, and unions of these. Of several dataclasses in a union the one is built
    whose Literal field has the value that is found.

    Args:
        kind: A dataclass, or a union of dataclasses.
        content: Parsed JSON; not changed, and no list or object of a typed field is shared with the record.
        name: Of the record, for messages: "preprocess" makes "preprocess.height: …".

    Raises:
        DataError: an unknown or missing field, a value of another type, or one that the dataclass itself refuses.
    """
    return _read(kind, content, name)


def _read(hint: Any, value: Any, place: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _read_object(hint, value, place)
    if origin in (Union, UnionType):
        return _read_union(hint, value, place)
    if origin is Literal:
        return _expect(any(value == each and type(value) is type(each) for each in inner), hint, value, place)
    if origin is list:
        _expect(isinstance(value, list), hint, value, place)
        return [_read(inner[0], each, f"{place}[{n}]") for n, each in enumerate(value)]
    if origin is tuple:
        return _read_tuple(hint, value, place)
    if origin is dict:
        _expect(isinstance(value, dict), hint, value, place)
        return {key: _read(inner[1], each, f"{place}, value {n}") for n, (key, each) in enumerate(value.items(), 1)}
    if hint is Path:
        return Path(_expect(isinstance(value, str), hint, value, place))
    if hint is float:
        # A whole number stays one: the record gives the same bytes again. One beyond all floats is not a number here.
        fits = isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)
    else:
        fits = isinstance(value, hint)
    return _expect(fits and (hint is bool or not isinstance(value, bool)), hint, value, place)


def _read_object(kind: Any, content: Any, place: str) -> Any:
    _expect(isinstance(content, dict), kind, content, place)
    hints, absent = _hints(kind), _fill_absent(kind)
    where = f"{place}: " if place else ""
    unknown = [name for name in content if name not in hints]
    if unknown:
        raise DataError(f"{where}unknown field {unknown[0][:40]!r}, expected {', '.join(hints)}")
    missing = [name for name in hints if name not in content and name not in absent]
    if missing:
        raise DataError(f"{where}no field {', '.join(missing)}")
    prefix = f"{place}." if place else ""
    found = {name: _read(hints[name], each, prefix + name) for name, each in content.items()}
    try:
        return kind(**absent | found)
    except (ConfigError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(where + " ".join(str(error).split())[:300]) from error


def _read_tuple(hint: Any, value: Any, place: str) -> tuple[Any, ...]:
    inner = get_args(hint)
    _expect(isinstance(value, list), hint, value, place)
    kinds = inner[:1] * len(value) if inner[1:] == (Ellipsis,) else inner
    _expect(len(value) == len(kinds), hint, value, place)
    items = [_read(kind, each, f"{place}[{n}]") for n, (kind, each) in enumerate(zip(kinds, value, strict=True))]
    # Checksums since version 0.2.0 are those of 40.0 for a 40 in a pair such as a window.
    return tuple(float(item) if kind is float else item for kind, item in zip(kinds, items, strict=True))


def _read_union(hint: Any, value: Any, place: str) -> Any:
    options = [each for each in get_args(hint) if each is not NoneType]
    if value is None and NoneType in get_args(hint):
        return None
    if len(options) == 1:
        return _read(options[0], value, place)
    if all(map(is_dataclass, options)):
        _expect(isinstance(value, dict), hint, value, place)
        return _read_object(_choose(options, value, place), value, place)
    for option in options:
        with suppress(DataError):
            return _read(option, value, place)
    return _expect(False, hint, value, place)


def _choose(kinds: list[Any], content: dict[str, Any], place: str) -> Any:
    """Return the dataclass whose Literal field has the value that is found."""
    tag = next(name for name, hint in _hints(kinds[0]).items() if get_origin(hint) is Literal)
    for kind in kinds:
        if (_fill_absent(kind) | content).get(tag) in get_args(_hints(kind)[tag]):
            return kind
    known = " or ".join(_name(_hints(kind)[tag]) for kind in kinds)
    raise DataError(f"{place}.{tag}: {_describe(content.get(tag))}, expected {known}".removeprefix("."))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def _fill_absent(kind: Any) -> dict[str, Any]:
    """Return the fields that a record may lack, with what is meant then."""
    newer = {f: f.metadata[_METADATA].before for f in fields(kind) if _METADATA in f.metadata}
    return {f.name: _default(f) if before is MISSING else before for f, before in newer.items()}


def _default(f: Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def _expect(fits: bool, hint: Any, value: Any, place: str) -> Any:
    if not fits:
        raise DataError(f"{place}: {_describe(value)}, expected {_name(hint)}".removeprefix(": "))
    return value


def _describe(value: Any) -> str:
    """Return what was found; of texts only the length, as they may be anybody's."""
    if isinstance(value, bool | None):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return str(value)[:20] if isinstance(value, float) or abs(value) < 10**20 else "a number of many digits"
    if isinstance(value, str):
        return f"a text of {len(value)} character{'s' * (len(value) != 1)}"
    return f"a list of {len(value)}" if isinstance(value, list) else "an object"


def _name(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_name, inner)))
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is tuple and inner[1:] != (Ellipsis,):
        return f"a list of {len(inner)}"
    return "an object" if is_dataclass(hint) else _NAMES[origin or hint]
