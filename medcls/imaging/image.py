"""Read one file of any supported format to pixels in [0, 1] with their geometry, or a named refusal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.burnt_in import Box, BurntInRule, find_hidden, find_kept_box
from medcls.imaging.dicom.dicom_file import DicomFile, is_dicom, refusing_parser_errors
from medcls.imaging.dicom.fast_header import Header
from medcls.imaging.dicom.frame import (
    DicomFrame,
    check_display,
    check_single,
    compute_display,
    is_hounsfield,
    read_frame,
)
from medcls.imaging.dicom.grey import find_range
from medcls.imaging.dicom.header import read_aspect, read_headers, read_spacing, read_ultrasound_regions
from medcls.imaging.dicom.pixels import PixelModule
from medcls.imaging.grey_levels import SourceValues, check_hounsfield, take_sample
from medcls.imaging.raster import read_raster

__all__ = ["SUPPORTED_SUFFIXES", "RawImage", "ReadOptions", "is_dicom", "read_image"]

SUPPORTED_SUFFIXES = frozenset({".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy"})
"""Suffixes worth trying without a look inside; DICOM files often have none. Lower case."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read an image.

    Attributes:
        max_pixels: Limit of rows x columns x frames x samples, checked before decoding.
        window_index: Which of several VOI LUTs and windows of a DICOM file, LUTs counted first.
        windows_hu: CT: (centre, width) in HU, each becoming one channel, instead of the file's VOI.
        burnt_in: What is done about text in the pixels.
        grey_range: Grey values (samples of a picture, modality values of DICOM) that become black and white, instead
            of the file's VOI or the largest value of its type.
        implausible_hu: "refuse" or "allow" a CT whose values cannot be HU.
        damaged: "refuse" or "allow" a coded stream that its decoder calls corrupt and decodes all the same.
    """

    max_pixels: int = 1 << 28
    window_index: int = 0
    windows_hu: tuple[tuple[float, float], ...] = ()
    burnt_in: BurntInRule = field(default_factory=BurntInRule)
    grey_range: tuple[float, float] | None = None
    implausible_hu: str = "refuse"
    damaged: str = "refuse"


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
            return _read_dicom(path, options)
        if options.windows_hu:
            raise ImageRefusedError("not_hounsfield", "windows in HU need a CT in DICOM")
        return _read_other(path, options)


def _read_other(path: Path, options: ReadOptions) -> RawImage:
    """A PNG, JPEG, TIFF, BMP or .npy file; it has no header, so only the boxes of the burnt-in rule act on it."""
    samples, bits, source, notes = read_raster(
        path,
        max_pixels=options.max_pixels,
        grey_range=options.grey_range,
        allow_damaged=options.damaged == "allow",
    )
    shape = (samples.shape[1], samples.shape[2])
    hidden = find_hidden({}, regions=(), shape=shape, rule=options.burnt_in)
    return RawImage(
        pixels=_black_out(samples, hidden),
        mask=hidden,
        spacing_mm=None,
        spacing_source="",
        aspect=1.0,
        bits=bits,
        photometric="L" if len(samples) == 1 else "RGB",
        headers={},
        kept_box=None if hidden is None else find_kept_box(hidden),
        source=source,
        notes=notes,
    )


def _read_dicom(path: Path, options: ReadOptions) -> RawImage:
    """Return a single-frame DICOM file."""
    frame = read_frame(
        path,
        max_pixels=options.max_pixels,
        check=partial(check_header, options=options),
        allow_damaged=options.damaged == "allow",
    )
    spacing_mm, source = read_spacing(frame.dataset)
    headers = read_headers(frame.dataset)
    hidden = _find_hidden(frame.dataset, headers, shape=frame.stored.values.shape[:2], rule=options.burnt_in)
    # Before the display: where the file has no window, the range of the values must not see the text.
    frame = replace(frame, mask=_join(frame.mask, hidden))
    pixels, scaling = compute_display(
        frame, window_index=options.window_index, windows_hu=options.windows_hu, grey_range=options.grey_range
    )
    return RawImage(
        pixels=_black_out(pixels, hidden),
        mask=frame.mask,
        spacing_mm=spacing_mm,
        spacing_source=source,
        aspect=read_aspect(frame.dataset, spacing_mm),
        bits=frame.stored.bits,
        photometric=headers["PhotometricInterpretation"],
        headers=headers,
        kept_box=None if hidden is None else find_kept_box(hidden),
        source=_measure(frame, scaling, check_hu=options.implausible_hu == "refuse"),
        notes=frame.stored.notes,
    )


def _measure(frame: DicomFrame, scaling: str, *, check_hu: bool) -> SourceValues | None:
    """Return the grey values outside padding and hidden parts, those of a CT checked; of colours the samples."""
    stored, modality = frame.stored.values, frame.modality
    seen = stored if frame.mask is None else stored[~frame.mask]
    if seen.size == 0:
        return None
    sample = take_sample(seen, None)
    if modality is None:
        return SourceValues(float(seen.min()), float(seen.max()), len(np.unique(sample)), scaling)
    values = modality.apply(sample.astype(np.float64))
    if check_hu and is_hounsfield(frame):
        check_hounsfield(values, intercept=modality.intercept)
    return SourceValues(*find_range(seen, modality), len(np.unique(values)), scaling)


def check_header(file: DicomFile, module: PixelModule, *, options: ReadOptions = _DEFAULTS) -> None:
    """Check all that the header of one image says before its pixels are decoded; the index asks the same.

    Args:
        file: An open file.
        module: Its image pixel module.
        options: How it is to be read.

    Raises:
        ImageRefusedError: those of frame.check_single and frame.check_display; burnt_in, malformed_element.
    """
    check_single(file.dataset, module, options.max_pixels)
    check_display(
        file,
        module,
        window_index=options.window_index,
        windows_hu=options.windows_hu,
        grey_range=options.grey_range,
    )
    shape = (module.rows, module.columns)
    _find_hidden(file.dataset, read_headers(file.dataset), shape=shape, rule=options.burnt_in)


def _find_hidden(
    dataset: Header, headers: dict[str, str], *, shape: tuple[int, ...], rule: BurntInRule
) -> NDArray[np.bool_] | None:
    regions = read_ultrasound_regions(dataset) if rule.policy == "ultrasound_regions" else []
    return find_hidden(headers, regions=regions, shape=(shape[0], shape[1]), rule=rule)


def _join(mask: NDArray[np.bool_] | None, hidden: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """True where either is; all True is left to the caller who needs a range."""
    return mask if hidden is None else hidden if mask is None else mask | hidden


def _black_out(pixels: NDArray[np.float32], hidden: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    return pixels if hidden is None else np.where(hidden, np.float32(0), pixels)
