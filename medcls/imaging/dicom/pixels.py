"""Read the stored values of one frame: undo bits, sign, byte order, planes and compression, and no more."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom import codecs
from medcls.imaging.dicom.colour import expand_422
from medcls.imaging.dicom.dicom_file import DicomFile
from medcls.imaging.dicom.fast_header import UNDEFINED_LENGTH, Header
from medcls.imaging.dicom.terms import name_photometric
from medcls.imaging.jpeg_damage import note_damage

_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_FLOAT_DTYPES = {"FloatPixelData": "f4", "DoubleFloatPixelData": "f8"}
_MOST_PADDING = 4096
"""Bytes behind the pixels: older programs fill up to a block of their medium. More is a header that is wrong."""


@dataclass(frozen=True, slots=True)
class PixelModule:
    """The checked attributes of the image pixel module (PS3.3 C.7.6.3, C.7.6.24 for floats)."""

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    planar: int | None
    allocated: int
    stored: int
    high: int
    signed: bool

    @property
    def pixels(self) -> int:
        """Pixels of one frame."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """Stored values (H, W), or (H, W, 3) where photometric is RGB or YBR_FULL, with their true bits.

    Attributes:
        notes: What was found on the way and is no reason to refuse: a fixed word, and a sentence.
    """

    values: NDArray[Any]
    bits: int
    signed: bool
    photometric: str
    notes: dict[str, str] = field(default_factory=dict)


def read_pixel_module(file: DicomFile) -> PixelModule:
    """Return the image pixel module, checked for what decoding relies on.

    Raises:
        ImageRefusedError: missing_element, malformed_element, bit_depth, unsupported_colour.

    Source: PS3.3 C.7.6.3.1; high bits other than BitsStored - 1 as in PS3.5 8.1.1 of 2008.
    """
    ds = file.dataset
    photometric = str(ds.get("PhotometricInterpretation") or "").strip()
    samples = read_integer(ds, "SamplesPerPixel")
    if photometric not in {1: _GREY, 3: _COLOUR}.get(samples, ()):
        # Of a word that is no term of the standard nothing is repeated: it may be anything, a name even.
        name = name_photometric(photometric) or "an unknown kind"
        raise ImageRefusedError("unsupported_colour", f"{samples} samples of {name}")
    is_float = file.element.keyword in _FLOAT_DTYPES
    allocated = read_integer(ds, "BitsAllocated")
    stored, high, signed, planar = allocated, allocated - 1, False, None
    if not is_float:
        stored = read_integer(ds, "BitsStored")
    rows, columns = read_integer(ds, "Rows"), read_integer(ds, "Columns")
    frames = read_integer(ds, "NumberOfFrames", default=1)
    if samples > 1:
        planar = read_integer(ds, "PlanarConfiguration", default=-1)
    if not is_float:
        high = read_integer(ds, "HighBit", default=stored - 1)
        signed = bool(read_integer(ds, "PixelRepresentation"))
    module = PixelModule(
        rows=rows,
        columns=columns,
        frames=frames,
        samples=samples,
        photometric=photometric,
        planar=planar,
        allocated=allocated,
        stored=stored,
        high=high,
        signed=signed,
    )
    if min(rows, columns, frames) < 1:
        raise ImageRefusedError("zero_pixels", f"{frames} frames of {rows} x {columns}")
    widths = {"FloatPixelData": (32,), "DoubleFloatPixelData": (64,)}.get(file.element.keyword, (1, 8, 16, 32))
    if allocated not in widths or not 1 <= stored <= high + 1 <= allocated:
        raise ImageRefusedError("bit_depth", f"{stored} bits stored of {allocated}, high bit {high}")
    return module


def read_integer(dataset: Header, keyword: str, *, default: int | None = None) -> int:
    """Return the single whole number of an element.

    Raises:
        ImageRefusedError: missing_element without a default, malformed_element.
    """
    value = dataset.get(keyword)
    if value is None or value == "":
        if default is None:
            raise ImageRefusedError("missing_element", keyword)
        return default
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ImageRefusedError("malformed_element", f"{keyword} is not one whole number") from error


def check_encoding(file: DicomFile, module: PixelModule) -> None:
    """Check what the header says of how the pixels of a single-frame file are stored, before they are read.

    Raises:
        ImageRefusedError: pixel_length, colour_conflict, unsupported_colour, unsupported_transfer_syntax.

    Source: PS3.5 8.1, annex A.
    """
    if file.syntax.is_encapsulated and file.element.keyword not in _FLOAT_DTYPES:
        if file.syntax not in codecs.COMPRESSED:
            raise ImageRefusedError("unsupported_transfer_syntax", str(file.syntax.name))
        if file.element.length != UNDEFINED_LENGTH:
            raise ImageRefusedError("pixel_length", "compressed pixel data must have undefined length")
    else:
        check_native_length(file, count_native_bytes(file, module))


def count_native_bytes(file: DicomFile, module: PixelModule) -> int:
    """Return the bytes of uncompressed pixels that the header asks for.

    Raises:
        ImageRefusedError: colour_conflict, unsupported_colour.
    """
    if file.element.keyword in _FLOAT_DTYPES:
        return module.pixels * np.dtype(_FLOAT_DTYPES[file.element.keyword]).itemsize
    if module.photometric in ("YBR_RCT", "YBR_ICT"):
        raise ImageRefusedError("colour_conflict", f"{module.photometric} in uncompressed data")
    if module.photometric == "YBR_FULL_422":
        _require_8_bits(module)
    return (_count_samples(module) * module.allocated + 7) // 8


def _count_samples(module: PixelModule) -> int:
    """Return the samples of an uncompressed frame; two pixels of YBR_FULL_422 share their colour."""
    if module.photometric == "YBR_FULL_422":
        return module.pixels * 2
    return module.pixels * module.samples


def read_stored(file: DicomFile, module: PixelModule, *, allow_damaged: bool = False) -> StoredFrame:
    """Return the stored values of a single-frame file.

    Args:
        file: An open file.
        module: Its image pixel module.
        allow_damaged: Take the pixels that a decoder makes of a stream that it calls corrupt, and note it.

    Raises:
        ImageRefusedError: pixel_length, truncated, size_mismatch, sign_mismatch, colour_conflict,
            damaged_codestream, corrupt_stream, compression_bomb, unsupported_transfer_syntax.

    Source: PS3.5 8.1, 8.2, annexes A and G.
    """
    if file.element.keyword in _FLOAT_DTYPES:
        order = "<" if file.syntax.is_little_endian else ">"
        dtype = np.dtype(order + _FLOAT_DTYPES[file.element.keyword])
        values = np.frombuffer(_read_exact_native(file, module), dtype, module.pixels)
        return StoredFrame(values.reshape(module.rows, module.columns), module.allocated, True, module.photometric)
    check_encoding(file, module)
    if not file.syntax.is_encapsulated:
        return _read_native(file, module)
    offsets, fragments = file.read_fragments()
    if len(offsets) > 1:
        raise ImageRefusedError("frame_count", f"the offset table has {len(offsets)} frames, the header 1")
    data = b"".join(fragments)
    if file.syntax in codecs.RLE:
        return _decode_rle(data, module, allow_damaged=allow_damaged)
    return _decode_codestream(data, file.syntax, module, allow_damaged=allow_damaged)


def _read_native(file: DicomFile, module: PixelModule) -> StoredFrame:
    """Uncompressed pixel data of 1, 8, 16 or 32 bits."""
    little = file.syntax.is_little_endian
    count = _count_samples(module)
    data = _read_exact_native(file, module)
    if not little and file.element.vr == "OW" and module.allocated <= 8:
        data = np.frombuffer(data[: len(data) // 2 * 2], "<u2").byteswap().tobytes()
    if module.photometric == "YBR_FULL_422":
        return StoredFrame(expand_422(data, module.rows, module.columns), 8, False, "YBR_FULL")
    if module.allocated == 1:
        raw = np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little")
        return StoredFrame(_arrange(raw, module), 1, False, module.photometric)
    dtype = f"{'<' if little else '>'}u{module.allocated // 8}"
    raw = np.frombuffer(data, dtype, count).astype(f"=u{module.allocated // 8}", copy=False)
    values = _arrange(_extract_bits(raw, module.high, module.stored, module.signed), module)
    return StoredFrame(values, module.stored, module.signed, module.photometric)


def _read_exact_native(file: DicomFile, module: PixelModule) -> bytes:
    expected = count_native_bytes(file, module)
    check_native_length(file, expected)
    return file.read_native()[: expected + expected % 2]


def check_native_length(file: DicomFile, frame_bytes: int, *, frames: int = 1) -> None:
    """Check that a value is as long as the header asks for, one byte longer to be even, or padded with zeros.

    Zeros alone are padding, and fewer than a frame: the rest is pixels of an image that is larger than its header says.

    Raises:
        ImageRefusedError: pixel_length.

    Source: PS3.5 8.1.1 (padding behind the last pixel); _MOST_PADDING own choice.
    """
    length, expected = file.element.length, frame_bytes * frames
    if length == UNDEFINED_LENGTH:
        raise ImageRefusedError("pixel_length", "encapsulated pixels under an uncompressed transfer syntax")
    if length in (expected, expected + expected % 2):
        return
    most = expected + min(_MOST_PADDING, frame_bytes - 1)
    if not expected < length <= most or any(file.read_native(start=expected)):
        raise ImageRefusedError("pixel_length", f"{length} bytes of pixels, the header states {expected}")


def _arrange(raw: NDArray[Any], module: PixelModule) -> NDArray[Any]:
    """Values in the shape of the frame, colours last."""
    if module.samples == 1:
        return raw.reshape(module.rows, module.columns)
    if module.planar not in (0, 1):
        raise ImageRefusedError("missing_element", "PlanarConfiguration of a colour image")
    if module.planar == 0:
        return raw.reshape(module.rows, module.columns, module.samples)
    return np.moveaxis(raw.reshape(module.samples, module.rows, module.columns), 0, -1)


def _extract_bits(raw: NDArray[Any], high: int, stored: int, signed: bool) -> NDArray[Any]:
    """Return the stored bits of each cell, sign-extended; overlays in the other bits fall away."""
    width = raw.dtype.itemsize * 8
    if high + 1 < width:
        raw = raw << (width - 1 - high)
    if signed:
        raw = raw.view(f"i{raw.dtype.itemsize}")
    if stored == width:
        return raw
    return raw >> (width - stored)


def _decode_rle(data: bytes, module: PixelModule, *, allow_damaged: bool) -> StoredFrame:
    """Return an RLE frame: byte planes to cells."""
    if module.allocated == 1 or module.photometric in ("YBR_FULL_422", "YBR_RCT", "YBR_ICT"):
        raise ImageRefusedError("unsupported_colour", f"{module.allocated} bits {module.photometric} in RLE")
    size = module.allocated // 8
    planes, damage = codecs.decode_rle(data, pixels=module.pixels, samples=module.samples, sample_bytes=size)
    notes = note_damage(damage, allow=allow_damaged)
    cells = np.ascontiguousarray(planes.swapaxes(1, 2)).view(f">u{size}").astype(f"=u{size}")
    values = np.moveaxis(cells.reshape(module.samples, module.rows, module.columns), 0, -1)
    values = _extract_bits(values, module.high, module.stored, module.signed)
    if module.samples == 1:
        values = values[..., 0]
    return StoredFrame(values, module.stored, module.signed, module.photometric, notes)


def _decode_codestream(data: bytes, syntax: str, module: PixelModule, *, allow_damaged: bool) -> StoredFrame:
    """Return a JPEG, JPEG-LS or JPEG 2000 frame, after its own header was held against the DICOM header."""
    stream = codecs.read_codestream(data, syntax)
    found = (stream.rows, stream.columns, stream.samples)
    wanted = (module.rows, module.columns, module.samples)
    if found != wanted:
        raise ImageRefusedError("size_mismatch", f"the codestream is {found}, the header says {wanted}")
    codecs.check_expansion(
        pixel_bytes=module.pixels * module.samples * ((stream.bits + 7) // 8), stream_bytes=len(data)
    )
    photometric = _resolve_colour(module, stream.colour)
    values = codecs.decode_codestream(data, syntax, samples=module.samples)
    shape: tuple[int, ...] = wanted
    if module.samples == 1:
        shape = wanted[:2]
    if values.shape != shape:
        raise ImageRefusedError("size_mismatch", f"decoded to {values.shape}, expected {shape}")
    notes = note_damage(codecs.find_damage(data, syntax, values, bits=stream.bits), allow=allow_damaged)
    if (trailing := codecs.count_trailing(data)) > 1:
        notes["bytes_behind_image"] = f"{trailing} bytes behind the end marker of the codestream are ignored"
    if syntax in codecs.JPEG_2000:
        # It states its own bits and sign, and they hold. Unsigned samples under a header that says signed are, in real
        # files, either right as they are or signed values whose bits an encoder took for unsigned: if no sample has the
        # top bit the two are the same, and else the contradiction cannot be settled.
        if module.signed and not stream.signed and int(values.max()) >= 1 << (stream.bits - 1):
            raise ImageRefusedError("sign_mismatch", "the header says signed, the JPEG 2000 codestream unsigned")
        return StoredFrame(values, stream.bits, stream.signed, photometric, notes)
    bits = min(stream.bits, module.stored)
    return StoredFrame(_extract_bits(values, bits - 1, bits, module.signed), bits, module.signed, photometric, notes)


def _resolve_colour(module: PixelModule, stream_colour: str) -> str:
    """Return what the decoded samples are: the codestream's own word first, then the header's."""
    named = module.photometric
    if module.samples == 1:
        return named
    if stream_colour == "TRANSFORMED" and named in ("RGB", "YBR_RCT", "YBR_ICT"):
        return "RGB"
    if named in ("YBR_RCT", "YBR_ICT") or stream_colour == "TRANSFORMED":
        raise ImageRefusedError("colour_conflict", f"{named} contradicts the codestream's colour transform")
    if stream_colour == "YBR" or (not stream_colour and named.startswith("YBR")):
        _require_8_bits(module)
        return "YBR_FULL"
    return "RGB"


def _require_8_bits(module: PixelModule) -> None:
    """YBR_FULL is defined for 8 bits only (PS3.3 C.7.6.3.1.2)."""
    if (module.allocated, module.stored) != (8, 8):
        raise ImageRefusedError("unsupported_colour", f"{module.photometric} of {module.stored} bits")
