"""Read the header of a plain DICOM file without pydicom, if safe: docs/decisions/0012-fast-path.md.

Plain is a file with preamble, in little endian, with ascending elements of known value representation and values
written as the standard asks. Whatever else is met, this reader gives up and pydicom reads the file from its
start: it never refuses a file, and where it answers it must say what pydicom says.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Protocol, TypeAlias

from pydicom import uid
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from medcls.imaging.dicom import codecs

PIXEL_TAGS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

_PREFIXES = (1 << 15, 1 << 18, 1 << 22)
"""Bytes from the start of a file in which its header is looked for, in turn."""

_DEPTH = 16
_CHARACTER_SET, _LAST_PIXEL_TAG = 0x00080005, 0x7FE00010
_SHORT_VRS = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_16)
_LONG_VRS = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
_PIXEL_VRS = {"FloatPixelData": (b"OF",), "DoubleFloatPixelData": (b"OD",), "PixelData": (b"OB", b"OW")}
_SYNTAXES = {
    name.encode(): uid.UID(name)
    for name in (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, *codecs.COMPRESSED)
}
_EXPLICIT = struct.Struct("<HH2sH").unpack_from
_IMPLICIT = struct.Struct("<HHL").unpack_from
_LENGTH = struct.Struct("<L").unpack_from

_DECIMAL = re.compile(rb" *[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)? *")
_INTEGER = re.compile(rb" *[+-]?[0-9]{1,9} *")
_ASCII_SETS = frozenset({"", *(f"ISO_IR {number}" for number in (6, 100, 101, 109, 110, 144, 148, 192))})
"""Single character sets in which ASCII bytes are ASCII letters."""

Wanted: TypeAlias = Mapping[int, tuple[str, str]]
"""Tag to keyword and value representation of pydicom's dictionary."""


class _NotPlainError(Exception):
    """Something that pydicom must judge."""


class Header(Protocol):
    """Header elements by keyword: a pydicom Dataset, or a PlainHeader, which answers alike."""

    def get(self, key: str, default: Any = None, /) -> Any:
        """Return the value of an element; the default where it is absent."""

    def __contains__(self, name: str, /) -> bool: ...


class PlainHeader(dict[str, Any]):
    """The wanted elements of a plain file; values as pydicom gives them, but built-in types and lists."""


@dataclass(frozen=True, slots=True)
class PixelElement:
    """Where the pixel element stands: keyword, value representation, length, offset of its value."""

    keyword: str
    vr: str
    length: int
    offset: int


def index_keywords(keywords: Iterable[str]) -> Wanted:
    """Return the elements that `read_plain` is to find, by tag."""
    tags = {tag: keyword for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None}
    return {tag: (keyword, dictionary_VR(tag)) for tag, keyword in tags.items()}


def read_plain(stream: BinaryIO, wanted: Wanted) -> tuple[PlainHeader, uid.UID, PixelElement] | None:
    """Return the header, transfer syntax and pixel element of a plain file; None where pydicom must look.

    Args:
        stream: At the start of the file; where it stands afterwards is not said.
        wanted: From `index_keywords`.

    Source: PS3.5 7.1 (elements), 7.5 (sequences), PS3.10 7.1; conversions as of pydicom 3.0.
    """
    data = b""
    for prefix in _PREFIXES:
        data += stream.read(prefix - len(data))
        try:
            return _read_file(data, wanted)
        except _NotPlainError:
            return None
        except struct.error:  # the header goes on behind the bytes at hand
            if len(data) < prefix:
                return None
    return None


def _read_file(data: bytes, wanted: Wanted) -> tuple[PlainHeader, uid.UID, PixelElement]:
    """Read preamble, file meta group and dataset up to the pixel element; struct.error if data ends before it."""
    if data[128:132] != b"DICM":
        raise _NotPlainError
    name, at = b"", 132
    last = 0
    while data[at : at + 2] == b"\x02\x00":
        tag, vr, length, start = _read_explicit(data, at)
        at = start + length
        if tag <= last or at > len(data):
            raise _NotPlainError
        if tag == 0x00020010 and vr == b"UI":
            name = data[start:at]
        last = tag
    syntax = _SYNTAXES.get(name.rstrip(b" \0"))
    if syntax is None:
        raise _NotPlainError
    if syntax != uid.ImplicitVRLittleEndian:
        values, element = _read_elements(data, at, wanted, read=_read_explicit)
    elif data[at + 4 : at + 6].isupper():  # pydicom takes such a length for an explicit VR
        raise _NotPlainError
    else:
        values, element = _read_elements(data, at, wanted, read=_read_implicit)
    return values, syntax, element


def _read_elements(
    data: bytes, at: int, wanted: Wanted, *, read: Callable[[bytes, int], tuple[int, bytes, int, int]]
) -> tuple[PlainHeader, PixelElement]:
    """Return the wanted values before the pixel element, and that element, which must have a VR that it may have."""
    values = PlainHeader()
    last = 0x0002FFFF
    while True:
        tag, vr, length, start = read(data, at)
        if not last < tag <= _LAST_PIXEL_TAG:
            raise _NotPlainError
        if tag in PIXEL_TAGS:
            keyword = PIXEL_TAGS[tag]
            if vr and vr not in _PIXEL_VRS[keyword]:
                raise _NotPlainError
            return values, PixelElement(keyword, vr.decode() or "OW", length, start)
        last, is_wanted = tag, tag in wanted
        if length != UNDEFINED_LENGTH:
            at = start + length
        elif is_wanted:
            raise _NotPlainError
        else:
            at = _skip_undefined(data, start, tag, vr, depth=0)
        if is_wanted:
            keyword, kind = wanted[tag]
            values[keyword] = _convert_value(_slice(data, start, at, tag), _settle(kind, vr, values))


def _slice(data: bytes, start: int, end: int, tag: int) -> bytes:
    """Return a value; that of the character set must be one that leaves ASCII alone."""
    if end > len(data):
        raise struct.error
    raw = data[start:end]
    if tag == _CHARACTER_SET and "\\".join(_split_codes(raw)) not in _ASCII_SETS:
        raise _NotPlainError
    return raw


def _read_explicit(data: bytes, at: int) -> tuple[int, bytes, int, int]:
    """Tag, value representation, length and place of the value of an element in explicit little endian."""
    group, element, vr, length = _EXPLICIT(data, at)
    if vr in _SHORT_VRS:
        return group << 16 | element, vr, length, at + 8
    if vr not in _LONG_VRS:
        raise _NotPlainError
    return group << 16 | element, vr, _LENGTH(data, at + 8)[0], at + 12


def _read_implicit(data: bytes, at: int) -> tuple[int, bytes, int, int]:
    """Return the same in implicit little endian, where the value representation is not said."""
    group, element, length = _IMPLICIT(data, at)
    return group << 16 | element, b"", length, at + 8


def _settle(kind: str, vr: bytes, values: Mapping[str, Any]) -> str:
    """Return the value representation to read a wanted element with."""
    if kind == "US or SS":
        signed = values.get("PixelRepresentation")
        if vr in (b"US", b"SS"):
            return vr.decode()
        if vr or not isinstance(signed, int):
            raise _NotPlainError
        return ("US", "SS")[bool(signed)]
    if vr and vr != kind.encode():
        raise _NotPlainError
    return kind


def _skip_undefined(data: bytes, at: int, tag: int, vr: bytes, *, depth: int) -> int:
    """Return the end of a sequence of undefined length that begins at `at`."""
    if vr:
        is_sequence = vr == b"SQ"
    elif dictionary_has_tag(tag):  # implicit: by the dictionary, and unknown elements by a look at their first item
        is_sequence = dictionary_VR(tag) == "SQ"
    else:
        is_sequence = data[at : at + 4] == b"\xfe\xff\x00\xe0"
    if not is_sequence or depth > _DEPTH:
        raise _NotPlainError
    while True:
        item, _, length, at = _read_implicit(data, at)
        if item == SEQUENCE_END and length == 0:
            return at
        if item != ITEM:
            raise _NotPlainError
        at = _skip_item(data, at, length, implicit=not vr, depth=depth)


def _skip_item(data: bytes, at: int, length: int, *, implicit: bool, depth: int) -> int:
    """Return the end of an item; its elements must fill it exactly, or pydicom would read on elsewhere."""
    read, end = _read_explicit, at + length
    if implicit:
        read = _read_implicit
    if length == UNDEFINED_LENGTH:
        end = -1
    while at != end:
        if end < 0 and data[at : at + 8] == b"\xfe\xff\x0d\xe0\0\0\0\0":
            return at + 8
        tag, vr, size, start = read(data, at)
        if tag >> 16 == 0xFFFE or (tag == _CHARACTER_SET and vr not in (b"", b"CS")):
            raise _NotPlainError
        if size == UNDEFINED_LENGTH:
            at = _skip_undefined(data, start, tag, vr, depth=depth + 1)
        else:
            at = start + size
        if 0 <= end < at:
            raise _NotPlainError
        if tag == _CHARACTER_SET:
            _slice(data, start, at, tag)
    return at


def _convert_value(raw: bytes, vr: str) -> Any:
    """Return the value of an element as pydicom 3.0 gives it (PS3.5 6.2), but as built-in types and lists.

    Args:
        raw: Bytes of the value, little endian; text in a character set that leaves ASCII alone.
        vr: Value representation.
    """
    if vr not in _CONVERTERS:
        raise _NotPlainError
    if raw:
        parts = _CONVERTERS[vr](raw)
        return parts[0] if len(parts) == 1 else parts
    return "" if vr in _TEXTS else None


def _split_codes(raw: bytes) -> list[str]:
    return raw.decode("latin-1").rstrip(" \0").split("\\")


def _split_uids(raw: bytes) -> list[str]:
    return [part.strip() for part in _split_codes(raw)]


def _split_texts(raw: bytes) -> list[str]:
    """Text in a character set that only pydicom reads beyond ASCII."""
    if not raw.isascii() or b"\x1b" in raw:
        raise _NotPlainError
    return [part.rstrip("\0 ") for part in raw.decode("ascii").split("\\")]


def _split_numbers(raw: bytes, *, pattern: re.Pattern[bytes], kind: type) -> list[Any]:
    parts = raw.rstrip(b" \0").split(b"\\")
    if not all(map(pattern.fullmatch, parts)):
        raise _NotPlainError
    return [kind(part) for part in parts]


def _unpack(raw: bytes, *, code: str) -> list[Any]:
    count, rest = divmod(len(raw), struct.calcsize(f"<{code}"))
    if rest:
        raise _NotPlainError
    return list(struct.unpack(f"<{count}{code}", raw))


_TEXTS: dict[str, Callable[[bytes], list[Any]]] = {
    **dict.fromkeys(("AS", "CS", "DA", "TM"), _split_codes),
    **dict.fromkeys(("LO", "SH"), _split_texts),
    "UI": _split_uids,
}
_NUMBERS = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d"}
_CONVERTERS: dict[str, Callable[[bytes], list[Any]]] = {
    **_TEXTS,
    "DS": partial(_split_numbers, pattern=_DECIMAL, kind=float),
    "IS": partial(_split_numbers, pattern=_INTEGER, kind=int),
    **{vr: partial(_unpack, code=code) for vr, code in _NUMBERS.items()},
}
