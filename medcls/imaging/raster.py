"""Read PNG, JPEG, TIFF, BMP and .npy files to samples in [0, 1]."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medcls.disk import SOURCE_FILE, read_again
from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.dicom_file import BoundedReader, starts_without_meta
from medcls.imaging.grey_levels import SourceValues, take_sample
from medcls.imaging.jpeg_damage import find_jpeg_damage, join_tables, note_damage

_START_BYTES = 32
_READ = {
    "PNG": rb"\x89PNG",
    "JPEG": rb"\xff\xd8\xff",
    "TIFF": rb"II[*+]\0|MM\0\*",  # + is BigTIFF, of 64-bit offsets
    # "BM" alone also begins texts: behind it lies the size of one of the headers that there are.
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "NPY": rb"\x93NUM",
}
_UNREAD_PICTURES = {
    "big-endian BigTIFF": rb"MM\0\+",
    "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF.{4}WEBP",
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "JPEG XR": rb"II\xbc\x01",
    "HEIF": rb".{4}ftyp(hei|hev|mif1|msf1|avif)",
    "Netpbm": rb"P[1-7][ \t\r\n]+(#|\d|WIDTH)",
    "Photoshop": rb"8BPS\0",
}
_UNREAD_OTHERS = {"NRRD": rb"NRRD\d{4}", "MetaImage": rb"(ObjectType|NDims) *=", "PDF": rb"%PDF-"}
_MAGIC = _READ | _UNREAD_PICTURES | _UNREAD_OTHERS
READ_FORMATS, PICTURE_FORMATS = frozenset(_READ), frozenset(_READ | _UNREAD_PICTURES)
"""Formats of `find_format` that are read, and those that are pictures whether read or not."""

_ORIENTATION, _BITS, _PHOTOMETRIC, _PLANAR = 274, 258, 262, 284
_PHOTOGRAPH = "MPO"
"""Pillow's name for a JPEG with more JPEGs behind it: thumbnails, depth, the other eye (CIPA DC-007)."""
_COMPRESSION, _JPEG_TABLES, _STRIPS, _TILES = 259, 347, (273, 279), (324, 325)
_TIFF_JPEG, _TIFF_DEFLATE = 7, (8, 32946)
_PIECE_BYTES = 1 << 20
_TIFF_MIN_IS_WHITE, _TIFF_MIN_IS_BLACK, _TIFF_RGB, _TIFF_PALETTE, _TIFF_YCBCR = 0, 1, 2, 3, 6


def find_format(start: bytes) -> str:
    """Return the name of a file's format by its first bytes; "" if they are none of a known format.

    Args:
        start: At least the first 32 bytes, or the whole file if it is shorter.

    Source: the formats' own specifications; sizes of a BMP's second header as of Windows and OS/2.
    """
    return next((name for name, magic in _MAGIC.items() if re.match(magic, start, re.DOTALL)), "")


def is_picture(path: Path) -> bool:
    """Return whether a file begins like a picture, in a format that is read or not; False if it cannot be opened.

    Raises:
        ReadError: the disk fails.
    """

    def look() -> bool:
        with path.open("rb") as stream:
            return find_format(stream.read(_START_BYTES)) in PICTURE_FORMATS

    try:
        return read_again(look, SOURCE_FILE)
    except OSError:
        return False


def read_raster(
    path: Path, *, max_pixels: int, grey_range: tuple[float, float] | None = None, allow_damaged: bool = False
) -> tuple[NDArray[np.float32], int, SourceValues, dict[str, str]]:
    """Return samples (C, H, W), float32 in [0, 1], C 1 or 3, their bits in the file, the values there, and notes.

    The notes are what was found and is no reason to refuse: a fixed word (corrupt_stream, first_picture), a sentence.

    Integers are divided by the largest value of their type (1, 8 or 16 bits), whatever they are: 12 bits
    in a 16-bit file are dark, and the same for every file. Orientation tags are obeyed.

    Args:
        path: File, known by its first bytes.
        max_pixels: Limit of rows x columns x samples, checked before decoding.
        grey_range: Samples that become 0 and 1, instead of 0 and the largest value of the type; then integers and
            floats of every kind are read.
        allow_damaged: Take the pixels that a decoder makes of a stream that it calls corrupt, and note it.

    Raises:
        ImageRefusedError: corrupt_stream, damaged_codestream, format_not_read, unknown_format, too_large, palette,
            animated, unsupported_colour, transparent, truncated, sample_type, float_range, axes, zero_pixels.

    Source: own choice; TIFF 6.0 for photometric kinds, EXIF 2.32 4.6.4 for orientation.
    """
    with BoundedReader(path) as stream:
        start = stream.read(_START_BYTES)
        kind = find_format(start)
        stream.seek(0)
        notes: dict[str, str] = {}
        if kind == "NPY":
            samples = _read_npy(stream, max_pixels)
        elif kind in READ_FORMATS:
            samples, notes = _read_picture(stream, kind, max_pixels, allow_damaged=allow_damaged)
        elif kind:
            raise ImageRefusedError("format_not_read", f"{kind}: convert it to PNG, TIFF or DICOM without loss")
        elif starts_without_meta(start):
            raise ImageRefusedError("no_file_meta", "DICOM without file meta: its transfer syntax is unknown")
        else:
            raise ImageRefusedError("unknown_format", "neither DICOM, PNG, JPEG, TIFF, BMP nor .npy")
    return *_scale(samples, grey_range), notes


def measure_raster(stream: BinaryIO, kind: str) -> tuple[int, int, int]:
    """Return rows, columns and channels of a picture by its header; (0, 0, 1) of a .npy file, whose axes may vary.

    Args:
        stream: A file that begins with the magic of `kind`.
        kind: One of READ_FORMATS.

    Raises:
        ImageRefusedError: damaged, too_large.
    """
    if kind == "NPY":
        return 0, 0, 1
    with _open_picture(stream, kind) as image:
        return image.height, image.width, len(image.getbands())


def check_raster(stream: BinaryIO, kind: str, *, max_pixels: int = 1 << 28) -> None:
    """Check all that the header of a picture says; whoever decodes it refuses it for the same reasons.

    Args:
        stream: A file that begins with the magic of `kind`.
        kind: One of READ_FORMATS.
        max_pixels: Limit of rows x columns x samples.

    Raises:
        ImageRefusedError: damaged, too_large, animated, unsupported_colour, transparent, sample_type, truncated, axes.
    """
    stream.seek(0)
    if kind == "NPY":
        _check_npy(stream, max_pixels)
        return
    with _open_picture(stream, kind) as image:
        _check_picture(stream, image, kind, max_pixels)


def _open_picture(stream: BinaryIO, kind: str) -> Image.Image:
    stream.seek(0)
    try:
        return Image.open(stream, formats=(kind,))
    except Image.DecompressionBombError as error:
        raise ImageRefusedError("too_large", "more pixels than Pillow would open") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageRefusedError("damaged", f"not a readable {kind}: {type(error).__name__}") from error


def _check_picture(stream: BinaryIO, image: Image.Image, kind: str, max_pixels: int) -> None:
    """Refuse by the header alone; Pillow reads some of it only when it is asked for."""
    count = image.width * image.height * len(image.getbands())
    if count > max_pixels:
        raise ImageRefusedError("too_large", f"{count} samples; the limit is {max_pixels}")
    try:
        if getattr(image, "n_frames", 1) != 1 and image.format != _PHOTOGRAPH:
            raise ImageRefusedError("animated", "several images in one file: save each as a file of its own")
        _CHECKS[kind](stream, image)
    except (MemoryError, ImageRefusedError):
        raise
    except Exception as error:
        raise ImageRefusedError("truncated", f"the header cannot be read: {type(error).__name__}") from error


def _read_picture(
    stream: BinaryIO, kind: str, max_pixels: int, *, allow_damaged: bool
) -> tuple[NDArray[Any], dict[str, str]]:
    """Return samples (H, W, C) of a picture and notes; Pillow reads the pixels too where it keeps every bit."""
    with _open_picture(stream, kind) as image:
        _check_picture(stream, image, kind, max_pixels)
        try:
            samples = _drop_opaque_alpha(_DECODERS[kind](stream, image))
            notes = note_damage(_find_damage(stream, image, kind), allow=allow_damaged)
            if image.format == _PHOTOGRAPH:
                count = getattr(image, "n_frames", 1)
                notes["first_picture"] = f"a photograph with {count} pictures in one file (MPO): the first was read"
            return samples, notes
        except (MemoryError, ImageRefusedError):
            raise
        except Exception as error:
            raise ImageRefusedError("truncated", f"pixels cannot be read: {type(error).__name__}") from error


def _find_damage(stream: BinaryIO, image: Image.Image, kind: str) -> str:
    """Return what a codec says against pixels that were decoded all the same; "" if nothing, or if it never could."""
    if kind == "JPEG":
        stream.seek(0)
        return find_jpeg_damage(stream.read())
    if kind != "TIFF":
        return ""
    tags = dict(image.getexif())
    compression, tables = tags.get(_COMPRESSION), bytes(tags.get(_JPEG_TABLES, b""))
    for coded in _read_segments(stream, tags) if compression in (_TIFF_JPEG, *_TIFF_DEFLATE) else ():
        if compression != _TIFF_JPEG:
            _check_deflate(coded)
        elif damage := find_jpeg_damage(join_tables(tables, coded)):
            return damage
    return ""


def _read_segments(stream: BinaryIO, tags: dict[int, Any]) -> Iterator[bytes]:
    """The coded strips or tiles of a TIFF."""
    places, sizes = _TILES if _TILES[0] in tags else _STRIPS
    for place, size in zip(np.atleast_1d(tags[places]), np.atleast_1d(tags[sizes]), strict=True):
        stream.seek(int(place))
        yield stream.read(int(size))


def _check_deflate(coded: bytes) -> None:
    """Refuse a strip with a wrong checksum, which libtiff does not compare if there is more than the strip holds."""
    inflater = zlib.decompressobj()
    try:
        while coded and inflater.decompress(coded, _PIECE_BYTES):
            coded = inflater.unconsumed_tail
    except zlib.error as error:
        raise ImageRefusedError("damaged_codestream", f"deflate in TIFF: {error}") from error
    if not inflater.eof:
        raise ImageRefusedError("truncated", "a deflate stream in TIFF without its checksum")


def _check_jpeg(stream: BinaryIO, image: Image.Image) -> None:
    if image.mode not in ("L", "RGB"):
        raise ImageRefusedError("unsupported_colour", f"JPEG of kind {image.mode}")


def _check_png(stream: BinaryIO, image: Image.Image) -> None:
    if "transparency" in image.info and image.mode not in ("P", "L", "RGB"):
        raise ImageRefusedError("transparent", f"a transparent colour in a PNG of kind {image.mode}")


def _check_tiff(stream: BinaryIO, image: Image.Image) -> None:
    tags = dict(image.getexif())
    photometric = int(tags.get(_PHOTOMETRIC, -1))
    if photometric == _TIFF_PALETTE or (photometric == _TIFF_YCBCR and image.mode == "RGB") or image.mode == "1":
        return
    if photometric not in (_TIFF_MIN_IS_WHITE, _TIFF_MIN_IS_BLACK, _TIFF_RGB):
        raise ImageRefusedError("unsupported_colour", f"TIFF of photometric kind {photometric}")
    depths = set(np.atleast_1d(tags.get(_BITS, 1)).tolist())
    if not depths <= {8, 16, 32, 64}:
        raise ImageRefusedError("sample_type", f"TIFF of {sorted(depths)} bits a sample")


def _check_bmp(stream: BinaryIO, image: Image.Image) -> None:
    size = stream.seek(0, io.SEEK_END)
    tiles: Any = getattr(image, "tile", [])
    for tile in tiles:
        if tile.codec_name == "raw":  # uncompressed: the file must hold the rows before memory is set aside for them
            _, stride, _ = tile.args
            asked = stride * image.height
            if size - tile.offset < asked:
                raise ImageRefusedError("truncated", f"{asked} bytes of pixels expected, fewer are there")
    if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
        raise ImageRefusedError("unsupported_colour", f"BMP of kind {image.mode}")


_CHECKS = {"JPEG": _check_jpeg, "PNG": _check_png, "TIFF": _check_tiff, "BMP": _check_bmp}


def _decode_jpeg(stream: BinaryIO, image: Image.Image) -> NDArray[Any]:
    """Return a JPEG by Pillow, which refuses what ends early."""
    orientation = image.getexif().get(_ORIENTATION, 1)
    return _orient(np.asarray(image), orientation)


def _decode_png(stream: BinaryIO, image: Image.Image) -> NDArray[Any]:
    """Return a PNG by libpng, since Pillow cuts 16-bit colours to 8 bits."""
    orientation = image.getexif().get(_ORIENTATION, 1)
    keyed = image.mode == "P" or "transparency" in image.info
    image.load()  # checks that no chunk is missing or damaged
    if keyed:
        return _orient(np.asarray(image.convert("RGBA")), orientation)
    if image.mode == "1":
        return _orient(np.asarray(image), orientation)
    stream.seek(0)
    return _orient(np.asarray(imagecodecs.png_decode(stream.read())), orientation)


def _decode_tiff(stream: BinaryIO, image: Image.Image) -> NDArray[Any]:
    """Return a TIFF by libtiff, raw, because Pillow loses bits of 16-bit colours and inverts only some negatives."""
    tags = dict(image.getexif())
    photometric = int(tags.get(_PHOTOMETRIC, -1))
    orientation = int(tags.get(_ORIENTATION, 1))
    if photometric == _TIFF_PALETTE or (photometric == _TIFF_YCBCR and image.mode == "RGB"):
        return np.asarray(image.convert("RGB"))  # Pillow obeys the orientation itself
    if image.mode == "1":
        return np.asarray(image)  # and has undone min-is-white
    stream.seek(0)
    samples = np.asarray(imagecodecs.tiff_decode(stream.read()))
    if samples.ndim == 3 and int(tags.get(_PLANAR, 1)) == 2:
        samples = np.moveaxis(samples, 0, -1)
    if photometric == _TIFF_MIN_IS_WHITE:
        if samples.dtype.kind != "u":
            raise ImageRefusedError("sample_type", "TIFF min-is-white needs unsigned integers")
        samples = np.iinfo(samples.dtype).max - samples
    return _orient(samples, orientation)


def _decode_bmp(stream: BinaryIO, image: Image.Image) -> NDArray[Any]:
    """Return a BMP by Pillow; 5 and 6 bits a colour become 8, rows come from the top down."""
    image.load()
    samples = np.asarray(image)
    if image.mode in ("L", "P") and int(samples.max()) >= (colours := _count_colours(stream)):
        raise ImageRefusedError("palette", f"pixels name colour {samples.max()} of {colours}")
    return np.asarray(image.convert("RGB")) if image.mode == "P" else samples


def _count_colours(stream: BinaryIO) -> int:
    """Return how many colours the palette of a BMP has; OS/2's short header always means all of them."""
    stream.seek(14)
    header = stream.read(40)
    if int.from_bytes(header[:4], "little") < 40:
        return 1 << int.from_bytes(header[10:12], "little")
    return int.from_bytes(header[32:36], "little") or 1 << int.from_bytes(header[14:16], "little")


_DECODERS = {"JPEG": _decode_jpeg, "PNG": _decode_png, "TIFF": _decode_tiff, "BMP": _decode_bmp}


def _drop_opaque_alpha(samples: NDArray[Any]) -> NDArray[Any]:
    """(H, W, C) without an alpha channel that is opaque everywhere; any other is refused."""
    samples = samples[..., None] if samples.ndim == 2 else samples
    if samples.ndim != 3 or samples.shape[2] > 4:
        raise ImageRefusedError("unsupported_colour", f"an image of shape {samples.shape}")
    if samples.shape[2] in (2, 4):
        opaque = 1.0 if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max
        if (samples[..., -1] != opaque).any():
            raise ImageRefusedError("transparent", "an alpha channel that is not opaque everywhere")
        samples = samples[..., :-1]
    return samples


def _orient(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Rows and columns turned and mirrored as the orientation tag says (EXIF 2.32, 4.6.4 A)."""
    if orientation >= 5:  # rows and columns change places
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def _check_npy(stream: BinaryIO, max_pixels: int) -> tuple[tuple[int, ...], bool, np.dtype[Any], bool]:
    """Shape, column order, type, and whether the colours come first, of a .npy file that can be an image."""
    shape, fortran, dtype = _read_npy_header(stream)
    if dtype.kind not in "bufi":
        raise ImageRefusedError("sample_type", f".npy of {dtype}")
    count = int(np.prod(shape, dtype=object))
    if count > max_pixels:
        raise ImageRefusedError("too_large", f"{count} samples; the limit is {max_pixels}")
    first, last = (shape[0] in (1, 3), shape[-1] in (1, 3)) if len(shape) == 3 else (False, True)
    if len(shape) not in (2, 3) or first == last:
        raise ImageRefusedError("axes", f"shape {shape}; expected (H, W), (H, W, C) or (C, H, W), C 1 or 3")
    return shape, fortran, dtype, first


def _read_npy(stream: BinaryIO, max_pixels: int) -> NDArray[Any]:
    """Return samples (H, W, C) of a .npy file with axes (H, W), (H, W, C) or (C, H, W), C 1 or 3."""
    shape, fortran, dtype, first = _check_npy(stream, max_pixels)
    count = int(np.prod(shape, dtype=object))
    data = stream.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise ImageRefusedError("truncated", "the array is shorter than its header says")
    samples = np.frombuffer(data, dtype, count).reshape(shape, order="F" if fortran else "C")
    if len(shape) == 2:
        return samples[..., None]
    return np.moveaxis(samples, 0, -1) if first else samples


def _read_npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, column order and type of a .npy file, format 1 or 2."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        return read[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # numpy parses the header as Python: errors of many kinds
        raise ImageRefusedError("damaged", f"not a readable .npy: {type(error).__name__}") from error


def _scale(
    samples: NDArray[Any], grey_range: tuple[float, float] | None
) -> tuple[NDArray[np.float32], int, SourceValues]:
    """(C, H, W) in [0, 1], bits a sample and the values that there were, from (H, W, C) of any supported type."""
    dtype = samples.dtype
    if samples.size == 0:
        raise ImageRefusedError("zero_pixels", f"an image of shape {samples.shape}")
    bits = 1 if dtype.kind == "b" else dtype.itemsize * 8
    if dtype.kind == "f" and not np.isfinite(samples).all():
        raise ImageRefusedError("float_range", "float pixels hold NaN or infinity")
    low, high = float(samples.min()), float(samples.max())
    if grey_range is not None:
        black, white = grey_range
        scaled = np.clip((samples.astype(np.float64) - black) / (white - black), 0, 1).astype(np.float32)
    elif dtype.kind == "f":
        if low < 0 or high > 1:
            raise ImageRefusedError(
                "float_range",
                f"floats from {low:g} to {high:g}, expected 0 to 1: image.intensity=range image.range=[…]",
            )
        scaled = samples.astype(np.float32)
    elif dtype.kind == "b" or (dtype.kind == "u" and dtype.itemsize <= 2):
        scaled = samples.astype(np.float32) / np.float32(1 if dtype.kind == "b" else np.iinfo(dtype).max)
    else:
        raise ImageRefusedError(
            "sample_type", f"{dtype} pixels; expected bool, uint8, uint16 or float: image.intensity=range reads others"
        )
    scaling = "range" if grey_range is not None else "unit" if dtype.kind == "f" else "type"
    found = SourceValues(low, high, len(np.unique(take_sample(samples, None))), scaling)
    return np.ascontiguousarray(np.moveaxis(scaled, -1, 0)), bits, found
