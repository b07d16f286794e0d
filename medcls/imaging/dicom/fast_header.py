"""Read the header of a plain DICOM file without pydicom, if safe: docs/decisions/0012-fast-path.md.

Plain is a file with preamble, in little endian, with ascending elements of known value representation and values
written as the standard asks. Whatever else is met, this reader gives up and pydicom reads the file from its
start: it never refuses a file, and where it answers it must say what pydicom says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, TypeAlias

from pydicom import uid
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from medcls.imaging.dicom import codecs
from medcls.imaging.dicom.fast_values import NotPlainError, check_character_set, convert_value

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

Wanted: TypeAlias = Mapping[int, tuple[str, str]]
"""Tag to keyword and value representation of pydicom's dictionary."""


class Header(Protocol):
    """Header elements by keyword: a pydicom Dataset, or a PlainHeader, which answers alike."""

    def get(self, key: str, default: Any = None, /) -> Any:
        """Return the value of an element; the default where it is absent."""

    def __contains__(self, name: str, /) -> bool: ...


class PlainHeader:
    """The wanted elements of a plain file; values as pydicom gives them, but built-in types and lists."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def get(self, key: str, default: Any = None, /) -> Any:
        """Return the value of an element; the default where it is absent."""
        return self._values.get(key, default)

    def __contains__(self, name: str, /) -> bool:
        return name in self._values

    def __getattr__(self, name: str) -> Any:
        if name in type(self).__slots__ or name not in self._values:  # the slot itself is missed while unpickling
            raise AttributeError(name)
        return self._values[name]


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
        except NotPlainError:
            return None
        except struct.error:  # the header goes on behind the bytes at hand
            if len(data) < prefix:
                return None
    return None


def _read_file(data: bytes, wanted: Wanted) -> tuple[PlainHeader, uid.UID, PixelElement]:
    """Preamble, file meta group and dataset up to the pixel element; struct.error where data ends."""
    if data[128:132] != b"DICM":
        raise NotPlainError
    name, at = b"", 132
    last = 0
    while data[at : at + 2] == b"\x02\x00":
        tag, vr, length, start = _read_explicit(data, at)
        at = start + length
        if tag <= last or at > len(data):
            raise NotPlainError
        if tag == 0x00020010 and vr == b"UI":
            name = data[start:at]
        last = tag
    syntax = _SYNTAXES.get(name.rstrip(b" \0"))
    if syntax is None:
        raise NotPlainError
    values, element = _read_elements(data, at, wanted, implicit=syntax == uid.ImplicitVRLittleEndian)
    return PlainHeader(values), syntax, element


def _read_elements(data: bytes, at: int, wanted: Wanted, *, implicit: bool) -> tuple[dict[str, Any], PixelElement]:
    """Return the wanted values before the pixel element, and that element."""
    if implicit and data[at + 4 : at + 6].isupper():  # pydicom takes such a length for an explicit VR
        raise NotPlainError
    read = _read_implicit if implicit else _read_explicit
    values: dict[str, Any] = {}
    last = 0x0002FFFF
    while True:
        tag, vr, length, start = read(data, at)
        if not last < tag <= _LAST_PIXEL_TAG:
            raise NotPlainError
        if tag in PIXEL_TAGS:
            return values, _build_pixel_element(tag, vr, length, start)
        last, is_wanted = tag, tag in wanted
        if length != UNDEFINED_LENGTH:
            at = start + length
        elif is_wanted:
            raise NotPlainError
        else:
            at = _skip_undefined(data, start, tag, vr, depth=0)
        if is_wanted:
            keyword, kind = wanted[tag]
            values[keyword] = convert_value(_slice(data, start, at, tag), _settle(kind, vr, values))


def _build_pixel_element(tag: int, vr: bytes, length: int, start: int) -> PixelElement:
    """Return the pixel element, if it has one of the value representations it should."""
    keyword = PIXEL_TAGS[tag]
    if vr and vr not in _PIXEL_VRS[keyword]:
        raise NotPlainError
    return PixelElement(keyword, vr.decode() or "OW", length, start)


def _slice(data: bytes, start: int, end: int, tag: int) -> bytes:
    """Return a value; that of the character set must be one that leaves ASCII alone."""
    if end > len(data):
        raise struct.error
    raw = data[start:end]
    if tag == _CHARACTER_SET:
        check_character_set(raw)
    return raw


def _read_explicit(data: bytes, at: int) -> tuple[int, bytes, int, int]:
    """Tag, value representation, length and place of the value of an element in explicit little endian."""
    group, element, vr, length = _EXPLICIT(data, at)
    if vr in _SHORT_VRS:
        return group << 16 | element, vr, length, at + 8
    if vr not in _LONG_VRS:
        raise NotPlainError
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
            raise NotPlainError
        return "SS" if signed else "US"
    if vr and vr != kind.encode():
        raise NotPlainError
    return kind


def _skip_undefined(data: bytes, at: int, tag: int, vr: bytes, *, depth: int) -> int:
    """Return the end of a sequence of undefined length that begins at `at`."""
    if not vr:  # implicit: by the dictionary, and unknown elements by a look at their first item
        known = dictionary_has_tag(tag)
        is_sequence = dictionary_VR(tag) == "SQ" if known else data[at : at + 4] == b"\xfe\xff\x00\xe0"
    else:
        is_sequence = vr == b"SQ"
    if not is_sequence or depth > _DEPTH:
        raise NotPlainError
    while True:
        item, _, length, at = _read_implicit(data, at)
        if item == SEQUENCE_END and length == 0:
            return at
        if item != ITEM:
            raise NotPlainError
        at = _skip_item(data, at, length, implicit=not vr, depth=depth)


def _skip_item(data: bytes, at: int, length: int, *, implicit: bool, depth: int) -> int:
    """Return the end of an item; its elements must fill it exactly, or pydicom would read on elsewhere."""
    read = _read_implicit if implicit else _read_explicit
    end = None if length == UNDEFINED_LENGTH else at + length
    while at != end:
        if end is None and data[at : at + 8] == b"\xfe\xff\x0d\xe0\0\0\0\0":
            return at + 8
        tag, vr, size, start = read(data, at)
        if tag >> 16 == 0xFFFE or (tag == _CHARACTER_SET and vr not in (b"", b"CS")):
            raise NotPlainError
        at = start + size if size != UNDEFINED_LENGTH else _skip_undefined(data, start, tag, vr, depth=depth + 1)
        if end is not None and at > end:
            raise NotPlainError
        if tag == _CHARACTER_SET:
            _slice(data, start, at, tag)
    return at
