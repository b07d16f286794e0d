"""Open PNG, JPEG, TIFF, BMP and .npy files: what their headers say, and their samples."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar, Protocol

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medcls.errors import ImageRefusedError
from medcls.imaging.jpeg_damage import find_jpeg_damage, join_tables

_ORIENTATION, _BITS, _PHOTOMETRIC, _PLANAR = 274, 258, 262, 284
_PHOTOGRAPH = "MPO"
"""Pillow's name for a JPEG with more JPEGs behind it: thumbnails, depth, the other eye (CIPA DC-007)."""
_COMPRESSION, _JPEG_TABLES, _STRIPS, _TILES = 259, 347, (273, 279), (324, 325)
_TIFF_JPEG, _TIFF_DEFLATE = 7, (8, 32946)
_PIECE_BYTES = 1 << 20
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, slots=True)
class Samples:
    """What a picture holds.

    Attributes:
        values: (H, W) or (H, W, C), of any type.
        damage: What the decoder says against the file although it decoded it; "" if nothing.
        notes: What was found and is no reason to refuse: a fixed word, and a sentence.
    """

    values: NDArray[Any]
    damage: str = ""
    notes: dict[str, str] = field(default_factory=dict)


class OpenPicture(Protocol):
    """An open picture, whose header can be read and whose pixels were not."""

    @property
    def size(self) -> tuple[int, int, int]:
        """Rows, columns and channels by the header; (0, 0, 1) if only `check` finds them out."""

    def check(self, max_pixels: int) -> None:
        """Raise ImageRefusedError for what the header alone refuses, more than max_pixels samples included."""

    def decode(self) -> Samples:
        """Return the samples of a picture that was checked; raise ImageRefusedError if they cannot be read rightly."""


class PillowPicture:
    """A picture whose header Pillow reads; it reads the pixels too if it keeps every bit."""

    kind: ClassVar[str]

    def __init__(self, stream: BinaryIO) -> None:
        stream.seek(0)
        self.stream = stream
        try:
            self.image: Image.Image = Image.open(stream, formats=(self.kind,))
        except Image.DecompressionBombError as error:
            raise ImageRefusedError("too_large", "more pixels than Pillow would open") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise ImageRefusedError("damaged", f"not a readable {self.kind}: {type(error).__name__}") from error

    @property
    def size(self) -> tuple[int, int, int]:
        """Rows, columns and channels."""
        return self.image.height, self.image.width, len(self.image.getbands())

    def check(self, max_pixels: int) -> None:
        """Refuse by the header alone; Pillow reads some of it only when it is asked for.

        Raises:
            ImageRefusedError: too_large, animated, unsupported_colour, transparent, sample_type, truncated.
        """
        rows, columns, channels = self.size
        if rows * columns * channels > max_pixels:
            raise ImageRefusedError("too_large", f"{rows * columns * channels} samples; the limit is {max_pixels}")
        try:
            if getattr(self.image, "n_frames", 1) != 1 and self.image.format != _PHOTOGRAPH:
                raise ImageRefusedError("animated", "several images in one file: save each as a file of its own")
            self._check_kind()
        except (MemoryError, ImageRefusedError):
            raise
        except Exception as error:
            raise ImageRefusedError("truncated", f"the header cannot be read: {type(error).__name__}") from error

    def decode(self) -> Samples:
        """Return the samples, upright, without an alpha channel that is opaque everywhere.

        Raises:
            ImageRefusedError: truncated, transparent, unsupported_colour, palette, sample_type, damaged_codestream.
        """
        try:
            values = _drop_opaque_alpha(self._read_values())
            damage = self._find_damage()
            notes = {}
            if self.image.format == _PHOTOGRAPH:
                count = getattr(self.image, "n_frames", 1)
                notes["first_picture"] = f"a photograph with {count} pictures in one file (MPO): the first was read"
            return Samples(values, damage, notes)
        except (MemoryError, ImageRefusedError):
            raise
        except Exception as error:
            raise ImageRefusedError("truncated", f"pixels cannot be read: {type(error).__name__}") from error

    def _check_kind(self) -> None:
        """Refuse the colours and depths that are not read of this format."""
        raise NotImplementedError

    def _read_values(self) -> NDArray[Any]:
        """Return the samples, upright: (H, W) or (H, W, C)."""
        raise NotImplementedError

    def _find_damage(self) -> str:
        """Return what a codec says against pixels that it decoded all the same; "" if nothing."""
        return ""


class JpegPicture(PillowPicture):
    """A JPEG; Pillow refuses what ends early."""

    kind = "JPEG"

    def _check_kind(self) -> None:
        if self.image.mode not in ("L", "RGB"):
            raise ImageRefusedError("unsupported_colour", f"JPEG of kind {self.image.mode}")

    def _read_values(self) -> NDArray[Any]:
        orientation = self.image.getexif().get(_ORIENTATION, 1)
        return _orient(np.asarray(self.image), orientation)

    def _find_damage(self) -> str:
        self.stream.seek(0)
        return find_jpeg_damage(self.stream.read())


class PngPicture(PillowPicture):
    """A PNG; libpng decodes it, since Pillow cuts 16-bit colours to 8 bits."""

    kind = "PNG"

    def _check_kind(self) -> None:
        if "transparency" in self.image.info and self.image.mode not in ("P", "L", "RGB"):
            raise ImageRefusedError("transparent", f"a transparent colour in a PNG of kind {self.image.mode}")

    def _read_values(self) -> NDArray[Any]:
        image = self.image
        orientation = image.getexif().get(_ORIENTATION, 1)
        is_keyed = image.mode == "P" or "transparency" in image.info
        image.load()  # checks that no chunk is missing or damaged
        if is_keyed:
            values = np.asarray(image.convert("RGBA"))
        elif image.mode == "1":
            values = np.asarray(image)
        else:
            self.stream.seek(0)
            values = np.asarray(imagecodecs.png_decode(self.stream.read()))
        return _orient(values, orientation)


class TiffPicture(PillowPicture):
    """A TIFF; libtiff decodes it, raw, because Pillow loses bits of 16-bit colours and inverts only some negatives."""

    kind = "TIFF"

    def _check_kind(self) -> None:
        tags, photometric, is_converted = self._read_tags()
        if is_converted or self.image.mode == "1":
            return
        if photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB):
            raise ImageRefusedError("unsupported_colour", f"TIFF of photometric kind {photometric}")
        depths = set(np.atleast_1d(tags.get(_BITS, 1)).tolist())
        if not depths <= {8, 16, 32, 64}:
            raise ImageRefusedError("sample_type", f"TIFF of {sorted(depths)} bits a sample")

    def _read_values(self) -> NDArray[Any]:
        tags, photometric, is_converted = self._read_tags()
        orientation = int(tags.get(_ORIENTATION, 1))
        if is_converted:
            return np.asarray(self.image.convert("RGB"))  # Pillow obeys the orientation itself
        if self.image.mode == "1":
            return np.asarray(self.image)  # and has undone min-is-white
        self.stream.seek(0)
        values = np.asarray(imagecodecs.tiff_decode(self.stream.read()))
        if values.ndim == 3 and int(tags.get(_PLANAR, 1)) == 2:
            values = np.moveaxis(values, 0, -1)
        if photometric == _MIN_IS_WHITE:
            if values.dtype.kind != "u":
                raise ImageRefusedError("sample_type", "TIFF min-is-white needs unsigned integers")
            values = np.iinfo(values.dtype).max - values
        return _orient(values, orientation)

    def _find_damage(self) -> str:
        tags = dict(self.image.getexif())
        compression, tables = tags.get(_COMPRESSION), bytes(tags.get(_JPEG_TABLES, b""))
        if compression not in (_TIFF_JPEG, *_TIFF_DEFLATE):
            return ""
        places, sizes = _STRIPS
        if _TILES[0] in tags:
            places, sizes = _TILES
        for place, size in zip(np.atleast_1d(tags[places]), np.atleast_1d(tags[sizes]), strict=True):
            self.stream.seek(int(place))
            coded = self.stream.read(int(size))
            if compression != _TIFF_JPEG:
                _check_deflate(coded)
            elif damage := find_jpeg_damage(join_tables(tables, coded)):
                return damage
        return ""

    def _read_tags(self) -> tuple[dict[int, Any], int, bool]:
        """Return the tags, the photometric kind, and whether Pillow makes RGB of it."""
        tags = dict(self.image.getexif())
        photometric = int(tags.get(_PHOTOMETRIC, -1))
        return tags, photometric, photometric == _PALETTE or (photometric == _YCBCR and self.image.mode == "RGB")


class BmpPicture(PillowPicture):
    """A BMP; 5 and 6 bits a colour become 8, rows come from the top down."""

    kind = "BMP"

    def _check_kind(self) -> None:
        size = self.stream.seek(0, io.SEEK_END)
        tiles: Any = getattr(self.image, "tile", [])
        for tile in tiles:
            if tile.codec_name == "raw":  # uncompressed: the file must hold the rows before memory is set aside
                _, stride, _ = tile.args
                asked = stride * self.image.height
                if size - tile.offset < asked:
                    raise ImageRefusedError("truncated", f"{asked} bytes of pixels expected, fewer are there")
        if self.image.mode not in ("1", "L", "P", "RGB", "RGBA"):
            raise ImageRefusedError("unsupported_colour", f"BMP of kind {self.image.mode}")

    def _read_values(self) -> NDArray[Any]:
        image = self.image
        image.load()
        values = np.asarray(image)
        if image.mode in ("L", "P") and int(values.max()) >= (colours := self._count_colours()):
            raise ImageRefusedError("palette", f"pixels name colour {values.max()} of {colours}")
        if image.mode == "P":
            return np.asarray(image.convert("RGB"))
        return values

    def _count_colours(self) -> int:
        """Return how many colours the palette has; OS/2's short header always means all of them."""
        self.stream.seek(14)
        header = self.stream.read(40)
        if int.from_bytes(header[:4], "little") < 40:
            return 1 << int.from_bytes(header[10:12], "little")
        return int.from_bytes(header[32:36], "little") or 1 << int.from_bytes(header[14:16], "little")


class NpyPicture:
    """A .npy file with axes (H, W), (H, W, C) or (C, H, W), C 1 or 3, in format 1 or 2."""

    size = (0, 0, 1)  # its axes may vary

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def check(self, max_pixels: int) -> None:
        """Raise ImageRefusedError for what is not an image: damaged, sample_type, too_large, axes."""
        shape, _, dtype = self._read_header()
        if dtype.kind not in "bufi":
            raise ImageRefusedError("sample_type", f".npy of {dtype}")
        count = int(np.prod(shape, dtype=object))
        if count > max_pixels:
            raise ImageRefusedError("too_large", f"{count} samples; the limit is {max_pixels}")
        is_image = len(shape) == 2 or (len(shape) == 3 and (shape[0] in (1, 3)) != (shape[-1] in (1, 3)))
        if not is_image:
            raise ImageRefusedError("axes", f"shape {shape}; expected (H, W), (H, W, C) or (C, H, W), C 1 or 3")

    def decode(self) -> Samples:
        """Return the array, colours last; raise ImageRefusedError (truncated) if it is shorter than its header says."""
        shape, is_fortran, dtype = self._read_header()
        count = int(np.prod(shape, dtype=object))
        data = self._stream.read(count * dtype.itemsize)
        if len(data) < count * dtype.itemsize:
            raise ImageRefusedError("truncated", "the array is shorter than its header says")
        values = np.frombuffer(data, dtype, count)
        values = values.reshape(shape, order="F") if is_fortran else values.reshape(shape)
        if len(shape) == 3 and shape[0] in (1, 3):
            values = np.moveaxis(values, 0, -1)
        return Samples(values)

    def _read_header(self) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        """Return shape, column order and type; the stream is left at the array."""
        self._stream.seek(0)
        try:
            return _NPY_HEADERS[np.lib.format.read_magic(self._stream)](self._stream)
        except Exception as error:  # numpy parses the header as Python: errors of many kinds
            raise ImageRefusedError("damaged", f"not a readable .npy: {type(error).__name__}") from error


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


def _drop_opaque_alpha(values: NDArray[Any]) -> NDArray[Any]:
    """Return (H, W, C) without an alpha channel that is opaque everywhere; any other is refused."""
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] > 4:
        raise ImageRefusedError("unsupported_colour", f"an image of shape {values.shape}")
    if values.shape[2] not in (2, 4):
        return values
    opaque = 1.0
    if values.dtype.kind != "f":
        opaque = np.iinfo(values.dtype).max
    if (values[..., -1] != opaque).any():
        raise ImageRefusedError("transparent", "an alpha channel that is not opaque everywhere")
    return values[..., :-1]


def _orient(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return rows and columns turned and mirrored as the orientation tag says (EXIF 2.32, 4.6.4 A)."""
    if orientation >= 5:  # rows and columns change places
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values
