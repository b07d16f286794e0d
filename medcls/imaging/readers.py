"""One file of any supported format to pixels in [0, 1] with their geometry, or a named refusal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom import compute_display, read_frame
from medcls.imaging.headers import read_aspect, read_headers, read_spacing
from medcls.imaging.part10 import is_dicom, refusing_parser_errors
from medcls.imaging.raster import read_raster

__all__ = ["SUPPORTED_SUFFIXES", "RawImage", "ReadOptions", "is_dicom", "read_image"]

SUPPORTED_SUFFIXES = frozenset({".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy"})
"""Suffixes worth trying without a look inside; DICOM files often have none. Lower case."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read an image.

    Attributes:
        max_pixels: Limit of rows x columns x frames x samples, checked before decoding.
        window_index: Which of several VOI LUTs and windows of a DICOM file, LUTs counted first.
        windows_hu: CT: (centre, width) in HU, each becoming one channel, instead of the file's VOI.
    """

    max_pixels: int = 1 << 28
    window_index: int = 0
    windows_hu: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RawImage:
    """An image as it should be seen.

    Attributes:
        pixels: (C, H, W), float32, display values in [0, 1], 0 black (MONOCHROME1 is inverted already); C is
            1 for grey, 3 for RGB, or the number of windows asked for.
        mask: (H, W), True where the pixel is padding (its value is 0); None when there is none.
        spacing_mm: Distance of rows and of columns; None when unknown.
        spacing_source: The attribute spacing_mm came from, "" when unknown.
        aspect: Height over width of one pixel, 1.0 when square or unknown.
        bits: Bits that a sample really holds (BitsStored, or the depth of the file).
        photometric: PhotometricInterpretation, or "L" or "RGB" for other formats.
        headers: Allow-listed DICOM attributes by keyword ("" absent); {} for other formats.
    """

    pixels: NDArray[np.float32]
    mask: NDArray[np.bool_] | None
    spacing_mm: tuple[float, float] | None
    spacing_source: str
    aspect: float
    bits: int
    photometric: str
    headers: dict[str, str]


_DEFAULTS = ReadOptions()


def read_image(path: Path, *, options: ReadOptions = _DEFAULTS) -> RawImage:
    """The image of a PNG, JPEG, TIFF, .npy or single-frame DICOM file, known by its content and not its name.

    Args:
        path: File to read.
        options: Limits, and which window.

    Returns:
        Right pixels; anything else is refused by name.

    Raises:
        ImageRefusedError: reason is a fixed word; detail has no path and no identifying value.

    Source: PS3.3 C.7.6.3, C.11 for DICOM; own choice for other formats: the full range of the file's integer
        type becomes [0, 1].
    """
    with refusing_parser_errors():
        if is_dicom(path):
            return _read_dicom(path, options)
        if options.windows_hu:
            raise ImageRefusedError("not_hounsfield", "windows in HU need a CT in DICOM")
        samples, bits = read_raster(path, max_pixels=options.max_pixels)
        return RawImage(
            pixels=samples,
            mask=None,
            spacing_mm=None,
            spacing_source="",
            aspect=1.0,
            bits=bits,
            photometric="L" if len(samples) == 1 else "RGB",
            headers={},
        )


def _read_dicom(path: Path, options: ReadOptions) -> RawImage:
    """A single-frame DICOM file."""
    frame = read_frame(path, max_pixels=options.max_pixels)
    spacing_mm, source = read_spacing(frame.dataset)
    headers = read_headers(frame.dataset)
    return RawImage(
        pixels=compute_display(frame, window_index=options.window_index, windows_hu=options.windows_hu),
        mask=frame.mask,
        spacing_mm=spacing_mm,
        spacing_source=source,
        aspect=read_aspect(frame.dataset, spacing_mm),
        bits=frame.stored.bits,
        photometric=headers["PhotometricInterpretation"],
        headers=headers,
    )
