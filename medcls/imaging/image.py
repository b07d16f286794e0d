"""Read one file of any supported format to pixels in [0, 1] with their geometry, or a named refusal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.burnt_in import Box, find_hidden, find_kept_box
from medcls.imaging.dicom.dicom_file import DicomFile, is_dicom, open_dicom, refusing_parser_errors
from medcls.imaging.dicom.frame import (
    DicomFrame,
    check_display,
    check_kind,
    check_single,
    compute_display,
    decode_frame,
    is_hounsfield,
)
from medcls.imaging.dicom.grey import find_range
from medcls.imaging.dicom.header import read_aspect, read_headers, read_spacing, read_ultrasound_regions
from medcls.imaging.dicom.pixels import PixelModule, read_pixel_module
from medcls.imaging.grey_levels import SourceValues, check_hounsfield, take_sample
from medcls.imaging.raster import read_raster
from medcls.imaging.read_options import ReadOptions

__all__ = ["DICOM_SUFFIXES", "RawImage", "ReadOptions", "is_dicom", "read_image"]

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
"""Suffixes of DICOM files, lower case; many have none. Those of pictures are in raster.FORMATS."""


@dataclass(frozen=True, slots=True)
class RawImage:
    """An image as it should be seen.

    Attributes:
        pixels: (C, H, W), float32, display values in [0, 1], 0 black (MONOCHROME1 is inverted already); C is
            1 for grey, 3 for RGB, or the number of windows asked for.
        mask: (H, W), True where the pixel is padding or blacked out (its value is 0); None when there is none.
        spacing_mm: Distance of rows and of columns; None when unknown.
        spacing_source: The attribute spacing_mm came from, "" when unknown.
        aspect: Height over width of one pixel, 1.0 when square or unknown.
        bits: Bits that a sample really holds (BitsStored, or the depth of the file).
        photometric: PhotometricInterpretation, or "L" or "RGB" for other formats.
        headers: Allow-listed DICOM attributes by keyword ("" absent); {} for other formats.
        kept_box: (x, y, width, height) around what the burnt-in rule left, pixels; None where it hid nothing.
        source: The grey values of the file; None for an image that was not read from one.
        notes: What was found on the way and is no reason to refuse: a fixed word (corrupt_stream,
            first_picture, bytes_behind_image), and a sentence.
    """

    pixels: NDArray[np.float32]
    mask: NDArray[np.bool_] | None
    spacing_mm: tuple[float, float] | None
    spacing_source: str
    aspect: float
    bits: int
    photometric: str
    headers: dict[str, str]
    kept_box: Box | None = None
    source: SourceValues | None = None
    notes: dict[str, str] = field(default_factory=dict)


_DEFAULTS = ReadOptions()


def read_image(path: Path, *, options: ReadOptions = _DEFAULTS) -> RawImage:
    """Return the image of a PNG, JPEG, TIFF, BMP, .npy or single-frame DICOM file, known by its content.

    Args:
        path: File to read.
        options: Limits, which window, and what is done about text in the pixels.

    Returns:
        Right pixels, black where the burnt-in rule hides them; anything else is refused by name.

    Raises:
        ImageRefusedError: reason is a fixed word; detail has no path and no identifying value.

    Source: PS3.3 C.7.6.3, C.11 for DICOM; own choice for other formats: the full range of the file's integer
        type becomes [0, 1].
    """
    with refusing_parser_errors():
        if is_dicom(path):
            image, hidden = _read_dicom(path, options)
        elif options.windows_hu:
            raise ImageRefusedError("not_hounsfield", "windows in HU need a CT in DICOM")
        else:
            image, hidden = _read_picture(path, options)
        if hidden is None:
            return image
        return replace(image, pixels=np.where(hidden, np.float32(0), image.pixels), kept_box=find_kept_box(hidden))


def _read_picture(path: Path, options: ReadOptions) -> tuple[RawImage, NDArray[np.bool_] | None]:
    """Return a picture and what is to be black: it has no header, so only the boxes of the burnt-in rule act on it."""
    samples, bits, source, notes = read_raster(path, options)
    photometric = "RGB"
    if len(samples) == 1:
        photometric = "L"
    hidden = find_hidden({}, regions=(), shape=(samples.shape[1], samples.shape[2]), rule=options.burnt_in)
    image = RawImage(
        pixels=samples,
        mask=hidden,
        spacing_mm=None,
        spacing_source="",
        aspect=1.0,
        bits=bits,
        photometric=photometric,
        headers={},
        source=source,
        notes=notes,
    )
    return image, hidden


def _read_dicom(path: Path, options: ReadOptions) -> tuple[RawImage, NDArray[np.bool_] | None]:
    """Return a single-frame DICOM file and what is to be black."""
    with open_dicom(path, max_inflated_bytes=4 * options.max_pixels + (1 << 24)) as file:
        check_kind(file)
        module = read_pixel_module(file)
        hidden = check_header(file, module, options)
        frame = decode_frame(file, module, allow_damaged=options.allow_damaged)
    if hidden is not None:
        # Before the display: if the file has no window, the range of the values must not see the text.
        mask = hidden
        if frame.mask is not None:
            mask = hidden | frame.mask
        frame = replace(frame, mask=mask)
    pixels, scaling = compute_display(frame, options)
    spacing_mm, spacing_source = read_spacing(frame.dataset)
    headers = read_headers(frame.dataset)
    image = RawImage(
        pixels=pixels,
        mask=frame.mask,
        spacing_mm=spacing_mm,
        spacing_source=spacing_source,
        aspect=read_aspect(frame.dataset, spacing_mm),
        bits=frame.stored.bits,
        photometric=headers["PhotometricInterpretation"],
        headers=headers,
        source=_measure(frame, scaling, check_hu=options.implausible_hu == "refuse"),
        notes=frame.stored.notes,
    )
    return image, hidden


def _measure(frame: DicomFrame, scaling: str, *, check_hu: bool) -> SourceValues | None:
    """Return the grey values outside padding and hidden parts, those of a CT checked; of colours the samples."""
    seen, modality = frame.stored.values, frame.modality
    if frame.mask is not None:
        seen = seen[~frame.mask]
    if seen.size == 0:
        return None
    sample = take_sample(seen, None)
    if modality is None:
        return SourceValues(float(seen.min()), float(seen.max()), len(np.unique(sample)), scaling)
    values = modality.apply(sample.astype(np.float64))
    if check_hu and is_hounsfield(frame):
        check_hounsfield(values, intercept=modality.intercept)
    return SourceValues(*find_range(seen, modality), len(np.unique(values)), scaling)


def check_header(file: DicomFile, module: PixelModule, options: ReadOptions = _DEFAULTS) -> NDArray[np.bool_] | None:
    """Check all that the header of one image says before its pixels are decoded; the index asks the same.

    Args:
        file: An open file.
        module: Its image pixel module.
        options: How it is to be read.

    Returns:
        (H, W), True for what the burnt-in rule hides; None if it hides nothing.

    Raises:
        ImageRefusedError: those of frame.check_single and frame.check_display; burnt_in, malformed_element.
    """
    check_single(file.dataset, module, options.max_pixels)
    check_display(file, module, options)
    rule = options.burnt_in
    headers = read_headers(file.dataset)
    regions: list[Box] = []
    if rule.policy == "ultrasound_regions":
        regions = read_ultrasound_regions(file.dataset)
    return find_hidden(headers, regions=regions, shape=(module.rows, module.columns), rule=rule)
