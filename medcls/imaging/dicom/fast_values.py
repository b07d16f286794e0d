"""Convert the bytes of plain DICOM elements as pydicom does, for the value representations that are needed."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

_DECIMAL = re.compile(rb" *[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)? *")
_INTEGER = re.compile(rb" *[+-]?[0-9]{1,9} *")
_ASCII_SETS = frozenset({"", *(f"ISO_IR {number}" for number in (6, 100, 101, 109, 110, 144, 148, 192))})
"""Single character sets in which ASCII bytes are ASCII letters."""


class NotPlainError(Exception):
    """Something that pydicom must judge."""


def check_character_set(raw: bytes) -> None:
    """Raise NotPlainError for character sets, or several, that may change the meaning of ASCII bytes."""
    if "\\".join(_split_codes(raw)) not in _ASCII_SETS:
        raise NotPlainError


def convert_value(raw: bytes, vr: str) -> Any:
    """Return the value of an element as pydicom gives it, but as built-in types and lists.

    Args:
        raw: Bytes of the value, little endian; text in a character set that leaves ASCII alone.
        vr: Value representation.

    Raises:
        NotPlainError: pydicom must judge.

    Source: PS3.5 6.2; conversions as of pydicom 3.0.
    """
    if vr not in _CONVERTERS:
        raise NotPlainError
    if not raw:
        return "" if vr in _TEXTS else None
    parts = _CONVERTERS[vr](raw)
    return parts[0] if len(parts) == 1 else parts


def _split_codes(raw: bytes) -> list[str]:
    return raw.decode("latin-1").rstrip(" \0").split("\\")


def _split_uids(raw: bytes) -> list[str]:
    return [part.strip() for part in _split_codes(raw)]


def _split_texts(raw: bytes) -> list[str]:
    """Text in a character set that only pydicom reads beyond ASCII."""
    if not raw.isascii() or b"\x1b" in raw:
        raise NotPlainError
    return [part.rstrip("\0 ") for part in raw.decode("ascii").split("\\")]


def _split_decimals(raw: bytes) -> list[float]:
    parts = raw.rstrip(b" \0").split(b"\\")
    if not all(map(_DECIMAL.fullmatch, parts)):
        raise NotPlainError
    return [float(part) for part in parts]


def _split_integers(raw: bytes) -> list[int]:
    parts = raw.rstrip(b" \0").split(b"\\")
    if not all(map(_INTEGER.fullmatch, parts)):
        raise NotPlainError
    return [int(part) for part in parts]


def _unpack(code: str) -> Callable[[bytes], list[Any]]:
    """Read a value of binary numbers."""
    size = struct.calcsize(f"<{code}")

    def unpack(raw: bytes) -> list[Any]:
        if len(raw) % size:
            raise NotPlainError
        return list(struct.unpack(f"<{len(raw) // size}{code}", raw))

    return unpack


_TEXTS: dict[str, Callable[[bytes], list[Any]]] = {
    **dict.fromkeys(("AS", "CS", "DA", "TM"), _split_codes),
    **dict.fromkeys(("LO", "SH"), _split_texts),
    "UI": _split_uids,
}
_NUMBERS = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d"}
_CONVERTERS: dict[str, Callable[[bytes], list[Any]]] = {
    **_TEXTS,
    "DS": _split_decimals,
    "IS": _split_integers,
    **{vr: _unpack(code) for vr, code in _NUMBERS.items()},
}
