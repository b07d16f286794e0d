"""Colour frames to RGB in [0, 1]: palettes and YCbCr. ICC profiles are not applied."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.fast_header import Header

_YBR_TO_RGB = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]], np.float32)


def convert_ybr_to_rgb(samples: NDArray[np.uint8]) -> NDArray[np.float32]:
    """RGB (3, H, W) in [0, 1], of 8-bit accuracy, from YBR_FULL samples (H, W, 3).

    Source: PS3.3 C.7.6.3.1.2 (ITU-R BT.601, full range); rounded to integers as decoders do.
    """
    centred = samples.astype(np.float32) - np.array([0, 128, 128], np.float32)
    rgb: NDArray[np.float32] = np.einsum("cs,hws->chw", _YBR_TO_RGB, centred)
    return np.clip(np.rint(rgb), 0, 255).astype(np.float32) / np.float32(255)


def expand_422(data: bytes, rows: int, columns: int) -> NDArray[np.uint8]:
    """YBR_FULL samples (H, W, 3) from uncompressed YBR_FULL_422: Y1 Y2 Cb Cr for two pixels of a row.

    Raises:
        ImageRefusedError: unsupported_colour where the columns are odd, which the standard does not define.

    Source: PS3.3 C.7.6.3.1.2.
    """
    if columns % 2:
        raise ImageRefusedError("unsupported_colour", "uncompressed YBR_FULL_422 with odd columns")
    pairs = np.frombuffer(data, np.uint8, rows * columns * 2).reshape(rows, columns // 2, 4)
    samples = np.empty((rows, columns, 3), np.uint8)
    samples[..., 0] = pairs[..., :2].reshape(rows, columns)
    samples[..., 1:] = np.repeat(pairs[..., 2:], 2, axis=1)
    return samples


def apply_palette(indices: NDArray[np.integer], dataset: Header, *, little_endian: bool) -> NDArray[np.float32]:
    """RGB (3, H, W) in [0, 1] of PALETTE COLOR values (H, W); values off the table take its ends.

    Raises:
        ImageRefusedError: palette, where the tables are missing, short or contradict themselves.

    Source: PS3.3 C.7.6.3.1.5, C.7.6.3.1.6, C.7.9.2.
    """
    tables = read_palettes(dataset, little_endian=little_endian)
    first, length = tables[0][0], len(tables[0][1])
    position = np.clip(indices.astype(np.int64) - first, 0, length - 1)
    return np.stack([table[position] for _, table in tables])


def read_palettes(dataset: Header, *, little_endian: bool) -> list[tuple[int, NDArray[np.float32]]]:
    """Return the first value mapped and the table of red, green and blue, which are of one length.

    Raises:
        ImageRefusedError: palette.
    """
    if "AlphaPaletteColorLookupTableDescriptor" in dataset:
        raise ImageRefusedError("palette", "palettes with an alpha channel are not supported")
    tables = [read_palette(dataset, name, little_endian=little_endian) for name in ("Red", "Green", "Blue")]
    if len({(first, len(table)) for first, table in tables}) != 1:
        raise ImageRefusedError("palette", "the three tables differ in length or first value")
    return tables


def read_palette(dataset: Header, colour: str, *, little_endian: bool) -> tuple[int, NDArray[np.float32]]:
    """Return the first value mapped and the table of one colour, float32 in [0, 1].

    Raises:
        ImageRefusedError: palette.
    """
    descriptor = dataset.get(f"{colour}PaletteColorLookupTableDescriptor")
    if descriptor is None or len(descriptor) != 3:
        raise ImageRefusedError("palette", f"{colour} has no descriptor of three values")
    length, first, bits = (int(value) for value in descriptor)
    length = (length & 0xFFFF) or 1 << 16  # 65,536 does not fit and is written as 0
    if not dataset.get("PixelRepresentation"):
        first &= 0xFFFF
    if bits not in (8, 16):
        raise ImageRefusedError("palette", f"{bits} bits an entry; expected 8 or 16")
    segmented = dataset.get(f"Segmented{colour}PaletteColorLookupTableData")
    plain = dataset.get(f"{colour}PaletteColorLookupTableData")
    if segmented is not None:
        words = read_lut_words(segmented, bits=bits, little_endian=little_endian)
        entries = _expand_segments(words, length)
    elif plain is not None:
        entries = read_lut_words(plain, bits=bits, little_endian=little_endian, length=length)
    else:
        raise ImageRefusedError("palette", f"{colour} has no data")
    if len(entries) != length or entries.max(initial=0) >= 1 << bits:
        raise ImageRefusedError("palette", f"{len(entries)} entries of {bits} bits, expected {length}")
    return first, entries.astype(np.float32) / np.float32((1 << bits) - 1)


def read_lut_words(
    data: bytes | list[int] | int, *, bits: int, little_endian: bool, length: int | None = None
) -> NDArray[np.int64]:
    """Return the entries of a lookup table; 8-bit ones may lie one or two a word.

    Args:
        data: Value of the element: bytes (OW) or numbers (US, SS).
        bits: Bits an entry, of the descriptor.
        little_endian: Byte order of the dataset.
        length: Entries expected; None takes what is there (segmented tables).

    Source: PS3.3 C.7.6.3.1.6, C.11.1.1.
    """
    if not isinstance(data, bytes | bytearray):
        return np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
    entries: NDArray[Any] = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little_endian else ">u2")
    if bits == 8 and (length is None or len(data) - length in (0, 1)):
        entries = entries.astype("<u2").view(np.uint8)  # the first entry of a word is its low byte in either order
    return entries[:length].astype(np.int64)


def _expand_segments(words: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return the plain table of a segmented one, never longer than it should be. Source: PS3.3 C.7.9.2."""
    entries: list[int] = []
    at = 0
    while at + 1 < len(words) and len(entries) < length:
        kind, count = int(words[at]), int(words[at + 1])
        if kind == 0:  # discrete
            entries += words[at + 2 : at + 2 + count].tolist()
            at += 2 + count
        elif kind == 1 and entries and at + 2 < len(words):  # linear, from the last entry on
            start, stop = entries[-1], int(words[at + 2])
            entries += np.rint(np.linspace(start, stop, count + 1)[1:]).astype(int).tolist()
            at += 3
        else:
            raise ImageRefusedError("palette", "indirect segments are not supported")
    return np.array(entries, np.int64)
