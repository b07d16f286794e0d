"""The metadata of a setting's field (help, choices, range, unit, kind), which help and all checks read.

The command line, --help, docs/settings.md and the checks read the field's metadata; nobody keeps a list beside it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from medcls.config.checks import check_choice, check_file_name, check_range

T = TypeVar("T")

PATH, FILE_NAME, NAME, TEXT, NAMES = "path", "file name", "name", "text", "names"
"""Kinds of text, all taken as typed: a file or folder (~/ is the home folder), a plain name of a file, a name that the
data, the run or the network knows, any text; NAMES is a list of texts."""

_METADATA = "setting"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as its field declares it.

    Attributes:
        help: One sentence: what it does, and when to change it.
        choices: Values that it may have; () if they are not a closed list.
        low: Smallest value of a number, or of each number of a list; None if it has no range.
        high: Largest value; None if there is no limit.
        open_low: Whether `low` itself is left out.
        unit: Unit of a number, as "mm"; "" if it has none.
        kind: Kind of text; "" for numbers, switches and YAML, and where the annotation says it (str, list[str]).
        common: Whether it is among the few settings that the short --help of a large command shows.
    """

    help: str
    choices: Sequence[Any] = ()
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    unit: str = ""
    kind: str = ""
    common: bool = False

    def check(self, name: str, value: Any) -> None:
        """Check one value, or each of a list; None and dictionaries are what the annotation allows.

        Raises:
            ConfigError: it is none of the choices, is outside the range, or is not a plain name of a file.
        """
        if isinstance(value, Sequence) and not isinstance(value, str):
            for item in value:
                self.check(name, item)
        elif not isinstance(value, str | int | float):
            return
        elif self.choices:
            check_choice(name, value, self.choices)
        elif self.low is not None and not isinstance(value, str):
            low, high = (None if limit is None or math.isinf(limit) else limit for limit in (self.low, self.high))
            check_range(name, value, low=low, high=high, open_low=self.open_low)
        elif self.kind == FILE_NAME:
            check_file_name(name, str(value))

    @property
    def values(self) -> str:
        """What it may be, for a reader: "a | b", "0 to 1", "> 0", with the unit; "" if anything."""
        if self.choices:
            return " | ".join(str(choice) or "''" for choice in self.choices)
        if self.kind == PATH:
            return "path"
        return ", ".join(part for part in (self._range, self.unit) if part)

    @property
    def _range(self) -> str:
        low, high = self.low, self.high
        if low is None or math.isinf(low):
            return ""
        if high is None:
            return f"{'>' if self.open_low else '>='} {_number(low)}"
        return f"> {_number(low)}, <= {_number(high)}" if self.open_low else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def setting(default: T, help: str, *, record: Mapping[str, Any] | None = None, **known: Any) -> T:
    """Return a dataclass field with its default and what there is to know about it.

    Args:
        default: The default.
        help: As in `Setting`.
        record: What `records.newer` returned, if the group is written into stores and models.
        known: The other attributes of `Setting`.
    """
    metadata = {_METADATA: Setting(help, **known), **(record or {})}
    made: Any
    if isinstance(default, list | dict):
        made = field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    else:
        made = field(default=default, metadata=metadata)
    return made  # type: ignore[no-any-return]


def read_settings(schema: type) -> dict[str, Setting]:
    """Return the settings that a dataclass declares itself, by name; its groups are not among them."""
    return {f.name: f.metadata[_METADATA] for f in fields(schema) if _METADATA in f.metadata}


def check_settings(record: Any, group: str = "", *, schema: type | None = None) -> None:
    """Check every single value of a record; rules between several fields are its own.

    Args:
        record: Dataclass of the schema, or another that has fields of the same names; its properties are its own.
        group: First part of the settings' names ("trainer"), "" for those of a command itself.
        schema: Dataclass that declares the settings; None for the record's own.

    Raises:
        ConfigError: a value is not one of its setting's choices or out of range.
    """
    names = {f.name for f in fields(record)}
    for name, known in read_settings(schema or type(record)).items():
        if name in names:
            known.check(f"{group}.{name}" if group else name, getattr(record, name))
