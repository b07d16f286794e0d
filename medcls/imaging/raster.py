"""The table of picture formats, and their files read to samples in [0, 1]."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medcls.disk import SOURCE_FILE, read_again
from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.dicom_file import BoundedReader, starts_without_meta
from medcls.imaging.grey_levels import SourceValues, take_sample
from medcls.imaging.jpeg_damage import note_damage
from medcls.imaging.picture_readers import BmpPicture, JpegPicture, NpyPicture, OpenPicture, PngPicture, TiffPicture
from medcls.imaging.read_options import ReadOptions

_START_BYTES = 32


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """A row of FORMATS.

    Attributes:
        name: As messages say it.
        magic: Pattern of the first 32 bytes.
        suffixes: With the point, lower case; a file of such a name that begins otherwise is refused, not passed over.
        reader: Opens a stream as a picture, or refuses it (damaged, too_large); None for a format that is known and not
            read.
        is_picture: False for files that are no pictures, though users take them for images.
    """

    name: str
    magic: bytes
    suffixes: tuple[str, ...] = ()
    reader: Callable[[BinaryIO], OpenPicture] | None = None
    is_picture: bool = True


FORMATS: tuple[PictureFormat, ...] = (
    PictureFormat("PNG", rb"\x89PNG", (".png",), PngPicture),
    PictureFormat("JPEG", rb"\xff\xd8\xff", (".jpg", ".jpeg"), JpegPicture),
    # "+" is BigTIFF, of 64-bit offsets.
    PictureFormat("TIFF", rb"II[*+]\0|MM\0\*", (".tif", ".tiff"), TiffPicture),
    # "BM" alone also begins texts: behind it is the size of one of the headers that exist.
    PictureFormat("BMP", rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", (".bmp",), BmpPicture),
    PictureFormat(".npy", rb"\x93NUM", (".npy",), NpyPicture),
    PictureFormat("big-endian BigTIFF", rb"MM\0\+"),
    PictureFormat("GIF", rb"GIF8[79]a"),
    PictureFormat("WebP", rb"RIFF.{4}WEBP"),
    PictureFormat("JPEG 2000", rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51"),
    PictureFormat("JPEG XL", rb"\0\0\0\x0cJXL |\xff\x0a"),
    PictureFormat("JPEG XR", rb"II\xbc\x01"),
    PictureFormat("HEIF", rb".{4}ftyp(hei|hev|mif1|msf1|avif)"),
    PictureFormat("Netpbm", rb"P[1-7][ \t\r\n]+(#|\d|WIDTH)"),
    PictureFormat("Photoshop", rb"8BPS\0"),
    PictureFormat("NRRD", rb"NRRD\d{4}", is_picture=False),
    PictureFormat("MetaImage", rb"(ObjectType|NDims) *=", is_picture=False),
    PictureFormat("PDF", rb"%PDF-", is_picture=False),
)
"""The formats of pictures. Source: their own specifications; a BMP's second header as of Windows and OS/2."""


def find_format(start: bytes) -> PictureFormat | None:
    """Return the format of a file by its first bytes (at least 32, or the whole file); None if it is not known."""
    for each in FORMATS:
        if re.match(each.magic, start, re.DOTALL):
            return each
    return None


def has_picture_suffix(suffix: str) -> bool:
    """Return whether a suffix (with the point, lower case) is that of a format that is read."""
    return any(suffix in each.suffixes for each in FORMATS)


def is_picture(path: Path) -> bool:
    """Return whether a file begins like a picture, in a format that is read or not; False if it cannot be opened.

    Raises:
        ReadError: the disk fails.
    """

    def look() -> bool:
        with path.open("rb") as stream:
            found = find_format(stream.read(_START_BYTES))
        return found is not None and found.is_picture

    try:
        return read_again(look, SOURCE_FILE)
    except OSError:
        return False


def read_raster(path: Path, options: ReadOptions) -> tuple[NDArray[np.float32], int, SourceValues, dict[str, str]]:
    """Return samples (C, H, W), float32 in [0, 1], C 1 or 3, their bits in the file, the values there, and notes.

    The notes are what was found and is no reason to refuse: a fixed word (corrupt_stream, first_picture), a sentence.

    Integers are divided by the largest value of their type (1, 8 or 16 bits), whatever they are: 12 bits
    in a 16-bit file are dark, and the same for every file. Orientation tags are obeyed.

    Args:
        path: File, known by its first bytes.
        options: Limit of pixels, black and white (grey_range: then integers and floats of every kind are read), and
            whether damage is allowed.

    Raises:
        ImageRefusedError: corrupt_stream, damaged_codestream, format_not_read, unknown_format, too_large, palette,
            animated, unsupported_colour, transparent, truncated, sample_type, float_range, axes, zero_pixels.

    Source: own choice; TIFF 6.0 for photometric kinds, EXIF 2.32 4.6.4 for orientation.
    """
    with BoundedReader(path) as stream:
        start = stream.read(_START_BYTES)
        found = find_format(start)
        if found is None:
            if starts_without_meta(start):
                raise ImageRefusedError("no_file_meta", "DICOM without file meta: its transfer syntax is unknown")
            *names, last = (each.name for each in FORMATS if each.reader is not None)
            raise ImageRefusedError("unknown_format", f"neither DICOM, {', '.join(names)} nor {last}")
        if found.reader is None:
            raise ImageRefusedError("format_not_read", f"{found.name}: convert it to PNG, TIFF or DICOM without loss")
        picture = found.reader(stream)
        picture.check(options.max_pixels)
        samples = picture.decode()
        notes = note_damage(samples.damage, allow=options.allow_damaged) | samples.notes
    values = samples.values
    if values.ndim == 2:
        values = values[..., None]
    return *_scale(values, options.grey_range), notes


def _scale(
    samples: NDArray[Any], grey_range: tuple[float, float] | None
) -> tuple[NDArray[np.float32], int, SourceValues]:
    """Return (C, H, W) in [0, 1], bits a sample and the values there, from (H, W, C) of any supported type."""
    dtype = samples.dtype
    if samples.size == 0:
        raise ImageRefusedError("zero_pixels", f"an image of shape {samples.shape}")
    if dtype.kind == "f" and not np.isfinite(samples).all():
        raise ImageRefusedError("float_range", "float pixels hold NaN or infinity")
    bits = dtype.itemsize * 8
    if dtype.kind == "b":
        bits = 1
    low, high = float(samples.min()), float(samples.max())
    if grey_range is not None:
        scaling = "range"
        black, white = grey_range
        scaled = np.clip((samples.astype(np.float64) - black) / (white - black), 0, 1).astype(np.float32)
    elif dtype.kind == "f":
        scaling = "unit"
        if low < 0 or high > 1:
            raise ImageRefusedError(
                "float_range",
                f"floats from {low:g} to {high:g}, expected 0 to 1: image.intensity=range image.range=[…]",
            )
        scaled = samples.astype(np.float32)
    elif dtype.kind in "bu" and bits <= 16:
        scaling = "type"
        scaled = samples.astype(np.float32) / np.float32((1 << bits) - 1)
    else:
        raise ImageRefusedError(
            "sample_type", f"{dtype} pixels; expected bool, uint8, uint16 or float: image.intensity=range reads others"
        )
    found = SourceValues(low, high, len(np.unique(take_sample(samples, None))), scaling)
    return np.ascontiguousarray(np.moveaxis(scaled, -1, 0)), bits, found
