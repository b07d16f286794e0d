"""Decode compressed frames with imagecodecs (BSD) only: docs/decisions/0002-jpeg-decoders.md.

A codestream is asked for its own size, bits, sign and colour before it is decoded, so that a small file
cannot claim a large memory, and so that colours are converted exactly once, by medcls and not by a decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid

from medcls.errors import ImageRefusedError
from medcls.imaging.jpeg_damage import find_dicom_jpeg_damage

JPEG = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1})
JPEG_LS = frozenset({uid.JPEGLSLossless, uid.JPEGLSNearLossless})
JPEG_2000 = frozenset(uid.JPEG2000TransferSyntaxes)
RLE = frozenset({uid.RLELossless})
COMPRESSED = JPEG | JPEG_LS | JPEG_2000 | RLE

_LARGE_BYTES = 1 << 26
_EXPANSION = 4096
"""A frame over 64 MiB must have one byte of codestream for 4096 of pixels: real blank frames are smaller."""


@dataclass(frozen=True, slots=True)
class Codestream:
    """What a codestream says about itself.

    Attributes:
        colour: "RGB" or "YBR" where markers state it; "TRANSFORMED" where the decoder itself undoes a colour
            transform (JPEG 2000's) and returns RGB; "" where the DICOM header alone knows.
    """

    rows: int
    columns: int
    samples: int
    bits: int
    signed: bool
    colour: str


def read_codestream(data: bytes, syntax: str) -> Codestream:
    """Return the size, bits, sign and colour that a JPEG, JPEG-LS or JPEG 2000 codestream declares.

    Raises:
        ImageRefusedError: truncated (no end marker) or damaged_codestream.

    Source: ITU-T T.81 B.2, T.87 C.2, T.800 A.4-A.6.
    """
    try:
        # Coded data start behind the headers, whose bytes may look like an end marker.
        if syntax in JPEG_2000:
            found, start = _read_jpeg_2000(data), data.rfind(b"\xff\x93")
        else:
            found, start = _read_jpeg(data), data.find(b"\xff\xda")
    except (struct.error, IndexError) as error:
        raise ImageRefusedError("truncated", "the codestream ends inside its header") from error
    # JPEG decoders fill a missing end with grey and say nothing, so the end marker must be there. It cannot occur in
    # coded data; what is behind it is not of the image (T.81 B.1.1.2), whatever devices leave there.
    if data.rfind(b"\xff\xd9") < start:
        raise ImageRefusedError("truncated", "the codestream has no end marker")
    return found


def count_trailing(data: bytes) -> int:
    """Return how many bytes follow the end marker of a codestream, the padding of writers (00 and FF) apart."""
    return len(data.rstrip(b"\x00\xff")) - (data.rfind(b"\xff\xd9") + 2)


def find_damage(data: bytes, syntax: str, values: NDArray[np.integer], *, bits: int) -> str:
    """Return what is wrong with a codestream that its decoder decodes all the same; "" if nothing.

    Only libjpeg repairs damage; the decoders of JPEG-LS and JPEG 2000 refuse what they cannot read.

    Args:
        data: The codestream.
        syntax: Its transfer syntax.
        values: What it was decoded to.
        bits: The precision that it declares. Lossless JPEG adds differences up, and wrong ones lead beyond it.
    """
    if syntax not in JPEG:
        return ""
    damage = find_dicom_jpeg_damage(data)
    if not damage and bits < 8 * values.dtype.itemsize and int(values.max()) >> bits:
        damage = f"samples of more than {bits} bits"
    return damage


def check_expansion(*, pixel_bytes: int, stream_bytes: int) -> None:
    """Refuse a large frame that comes from next to nothing: a decompression bomb.

    Raises:
        ImageRefusedError: compression_bomb.

    Source: own choice.
    """
    if pixel_bytes > _LARGE_BYTES and pixel_bytes > _EXPANSION * stream_bytes:
        raise ImageRefusedError("compression_bomb", f"{stream_bytes} bytes claim to hold {pixel_bytes} bytes of pixels")


def decode_codestream(data: bytes, syntax: str, *, samples: int) -> NDArray[np.integer]:
    """Return samples (H, W) or (H, W, S) as the codestream holds them; of colours only JPEG 2000's own are undone.

    Raises:
        ImageRefusedError: damaged_codestream.
    """
    try:
        if syntax in JPEG_2000:
            values = imagecodecs.jpeg2k_decode(data[_find_jpeg_2000(data) :])
        elif syntax in JPEG_LS:
            values = imagecodecs.jpegls_decode(data)
        elif samples == 1:
            values = imagecodecs.jpeg8_decode(data)
        else:  # equal colour spaces on both sides switch libjpeg's own conversion off
            values = imagecodecs.jpeg8_decode(data, colorspace="YCBCR", outcolorspace="YCBCR")
    except MemoryError:
        raise
    except Exception as error:
        raise ImageRefusedError("damaged_codestream", f"the decoder refused it: {type(error).__name__}") from error
    return np.asarray(values)


def decode_rle(data: bytes, *, pixels: int, samples: int, sample_bytes: int) -> tuple[NDArray[np.uint8], str]:
    """Return the byte planes of an RLE frame, (samples, sample_bytes, pixels), most significant byte first.

    The second value says what is wrong with a frame that can be decoded all the same; "" if nothing.

    Raises:
        ImageRefusedError: damaged_codestream where the segments are not what the header asks for.

    Source: PS3.5 annex G.
    """
    count, *offsets = struct.unpack("<16L", data[:64].ljust(64, b"\x00"))
    planes = samples * sample_bytes
    if count != planes or offsets[0] != 64:
        raise ImageRefusedError("damaged_codestream", f"{count} RLE segments, expected {planes}")
    ends = [*offsets[1:planes], len(data)]
    decoded = [_decode_segment(data[start:end], pixels) for start, end in zip(offsets, ends, strict=False)]
    # Runs end where the plane does (PS3.5 G.3.1): a wrong count is one byte or many too long.
    longest, damage = max(map(len, decoded)), ""
    if longest > pixels:
        damage = f"an RLE segment holds {longest} bytes for {pixels} pixels"
    values = np.stack([np.frombuffer(plane, np.uint8, pixels) for plane in decoded])
    return values.reshape(samples, sample_bytes, pixels), damage


def _decode_segment(segment: bytes, pixels: int) -> bytes:
    """Return one PackBits segment; the bound keeps a hostile one from growing 64-fold."""
    if len(segment) > 2 * pixels + 128:
        raise ImageRefusedError("damaged_codestream", "an RLE segment is longer than the plane it holds")
    try:
        plane = bytes(imagecodecs.packbits_decode(segment))
    except Exception as error:
        raise ImageRefusedError("damaged_codestream", "an RLE segment cannot be decoded") from error
    # The pad byte that makes a segment even may decode to one more run of nothing, never to fewer pixels.
    if len(plane) < pixels:
        raise ImageRefusedError("truncated", f"an RLE segment holds {len(plane)} of {pixels} pixels")
    return plane


def _read_jpeg(data: bytes) -> Codestream:
    """Walk the markers of a JPEG or JPEG-LS stream up to its first scan."""
    frame: bytes | None = None
    kind, colour = 0, ""
    for marker, body in _iterate_markers(data):
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            kind, frame = marker, body
        elif marker == 0xE0 and body.startswith(b"JFIF"):
            colour = colour or "YBR"
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12 and body[11] <= 1:
            colour = ("RGB", "YBR")[body[11]]
    if frame is None:
        raise ImageRefusedError("damaged_codestream", "a scan without a frame header")
    bits, rows, columns, samples = struct.unpack_from(">BHHB", frame)
    if bytes(frame[6::3]) in (b"RGB", b"rgb"):
        colour = "RGB"
    # Lossless processes transform no colours, whatever an application marker says: the DICOM header knows.
    if samples != 3 or kind not in (0xC0, 0xC1, 0xC2):
        colour = ""
    return Codestream(rows, columns, samples, bits, False, colour)


def _iterate_markers(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The marker segments between the start of the image and its first scan."""
    if data[:2] != b"\xff\xd8":
        raise ImageRefusedError("damaged_codestream", "no start-of-image marker")
    at = 2
    while data[at + 1] != 0xDA:
        if data[at] != 0xFF:
            raise ImageRefusedError("damaged_codestream", "a marker was expected")
        if data[at + 1] == 0xFF:  # fill byte
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield data[at + 1], data[at + 4 : at + 2 + length]
        at += 2 + length


def _read_jpeg_2000(data: bytes) -> Codestream:
    """Read the SIZ and COD segments of a JPEG 2000 codestream."""
    at = _find_jpeg_2000(data)
    right, bottom, left, top = struct.unpack_from(">4L", data, at + 8)
    (samples,) = struct.unpack_from(">H", data, at + 40)
    if samples not in (1, 3):
        raise ImageRefusedError("unsupported_colour", f"{samples} components; 1 and 3 are known")
    components = {data[at + 42 + 3 * each : at + 45 + 3 * each] for each in range(samples)}
    if len(components) != 1 or next(iter(components))[1:] != b"\x01\x01":
        raise ImageRefusedError("unsupported_colour", "components differ in bits, sign or sampling")
    depth, colour, segment = data[at + 42], "", at + 2
    while data[segment : segment + 2] != b"\xff\x52":  # COD, which has the flag of the multiple component transform
        if data[segment : segment + 2] == b"\xff\x90":  # start of the first tile part
            raise ImageRefusedError("damaged_codestream", "no coding style in the main header")
        segment += 2 + struct.unpack_from(">H", data, segment + 2)[0]
    if data[segment + 8] == 1:
        colour = "TRANSFORMED"
    return Codestream(bottom - top, right - left, samples, (depth & 0x7F) + 1, depth >= 0x80, colour)


def _find_jpeg_2000(data: bytes) -> int:
    """Return where the codestream starts: at once, or behind a JP2 header, which DICOM forbids and files have."""
    if data[:4] == b"\xff\x4f\xff\x51":
        return 0
    start = data.find(b"jp2c\xff\x4f\xff\x51")
    if data[4:8] != b"jP  " or start < 0:
        raise ImageRefusedError("damaged_codestream", "no JPEG 2000 start of codestream")
    return start + 4
