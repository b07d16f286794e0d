"""Find damage in a JPEG that libjpeg-turbo decodes with a warning: docs/decisions/0059-damaged-streams.md."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import simplejpeg

from medcls.errors import ImageRefusedError

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _LOSSLESS = frozenset({0xC0, 0xC1}), frozenset({0xC3, 0xCB})
_START_OF_SCAN, _TABLES_AND_SCANS = 0xDA, b"\xff\xd9"


def find_jpeg_damage(data: bytes) -> str:
    """Return what libjpeg-turbo warns of while it decodes a JPEG of 8 bits; "" if it has nothing to say.

    The stream is decoded once more, at an eighth of its size and in grey: all coded data are read. The warnings are
    those that end `djpeg -strict`: a code that is in no table, data that end early or are left over, a restart marker
    that is not the next one. A wrong bit that leaves valid codes in the right number is no warning.

    Args:
        data: From the start-of-image marker on; bytes behind the end of the image are not read.

    Source: ITU-T T.81; libjpeg-turbo's jerror.h (JWRN_…).
    """
    frames = ((marker, data[at + 9]) for marker, at in _iterate_segments(data) if marker in _FRAMES)
    kind, components = next(frames, (-1, 0))
    colours, factor = "GRAY", 8
    if kind in _LOSSLESS:  # of which TurboJPEG neither converts colours nor scales the size
        colours, factor = "RGB" if components == 3 else "GRAY", 1
    try:
        simplejpeg.decode_jpeg(data, colours, min_factor=factor, strict=True)
    except ValueError as error:
        message = str(error)
        if not message.startswith("tj"):
            return message
        # "tj3Decompress8(): …" is TurboJPEG's word for a layout that it does not know; libjpeg's have no such start.
    return ""


def find_dicom_jpeg_damage(data: bytes) -> str:
    """Return what libjpeg-turbo warns of in the coded data of a DICOM frame of any JPEG process, up to 16 bits.

    Coded data do not depend on the precision, so a frame of 9 to 16 bits is read as if it had 8. Parameters of a
    sequential scan that encoders of devices fill in wrongly, and every decoder ignores, are put right first.

    Source: ITU-T T.81 B.2.2, B.2.3.
    """
    checked = bytearray(data)
    kind = -1
    for marker, at in _iterate_segments(data):
        if marker in _FRAMES:
            kind, checked[at + 4] = marker, 8
        elif marker == _START_OF_SCAN:
            tail = at + 5 + 2 * data[at + 4]
            if kind in _SEQUENTIAL:
                checked[tail : tail + 3] = b"\x00\x3f\x00"
            elif kind in _LOSSLESS:
                checked[tail + 2] = 0  # point transform: it may not reach the precision
    return find_jpeg_damage(bytes(checked))


def note_damage(damage: str, *, allow: bool) -> dict[str, str]:
    """Return a note of what a decoder says against a stream, by the word corrupt_stream; {} if it says nothing.

    Args:
        damage: In the decoder's words; "" for a sound stream.
        allow: Read it all the same (image.damaged=allow).

    Raises:
        ImageRefusedError: corrupt_stream, unless allowed.
    """
    if not damage:
        return {}
    found = f"the decoder had to guess pixels: {damage}"
    if not allow:
        raise ImageRefusedError("corrupt_stream", found)
    return {"corrupt_stream": found}


def join_tables(tables: bytes, data: bytes) -> bytes:
    """Return one strip or tile of a TIFF as a JPEG of its own, with the tables that it shares with the others.

    Source: TIFF Technical Note 2 (JPEGTables).
    """
    if not tables:
        return data
    return tables.removesuffix(_TABLES_AND_SCANS) + data[2:]


def _iterate_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and place of each segment up to the first scan's header, which is the last.

    Raises:
        ImageRefusedError: damaged_codestream.
    """
    at = 2
    try:
        while True:
            while data[at + 1] == 0xFF:  # fill byte
                at += 1
            marker = data[at + 1]
            yield marker, at
            if marker == _START_OF_SCAN:
                return
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    except (struct.error, IndexError) as error:
        raise ImageRefusedError("damaged_codestream", "the codestream ends inside its header") from error
