"""Read one DICOM frame: stored values to modality values (such as HU) to display values in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.colour import apply_palette, convert_ybr_to_rgb, read_palettes
from medcls.imaging.dicom.dicom_file import DicomFile, refusing_parser_errors
from medcls.imaging.dicom.fast_header import Header
from medcls.imaging.dicom.grey import (
    Display,
    Modality,
    build_range,
    build_window,
    check_unit_range,
    find_range,
    find_voi,
    read_modality,
)
from medcls.imaging.dicom.header import MAX_TEXT, find_macro, is_timed, read_headers, read_numbers
from medcls.imaging.dicom.pixels import PixelModule, StoredFrame, check_encoding, read_stored
from medcls.imaging.read_options import ReadOptions

_NO_IMAGES = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
"""Segmentation and label map segmentation: labels drawn on other images (PS3.3 A.51), nothing to classify."""

_TABLE_BITS = 16
_LUT_TAKES_WORDS = int(cv2.__version__.split(".")[0]) >= 5


@dataclass(frozen=True, slots=True)
class DicomFrame:
    """A decoded frame with its header; what follows is arithmetic.

    Attributes:
        dataset: Header elements of dicom_file.KEYWORDS.
        stored: The stored values.
        mask: (H, W), True where the pixel is padding; None when there is none.
        modality: Stored to modality values; None for colour and palette images.
    """

    dataset: Header
    stored: StoredFrame
    mask: NDArray[np.bool_] | None
    modality: Modality | None
    little_endian: bool


def decode_frame(file: DicomFile, module: PixelModule, *, frame: int = 0, allow_damaged: bool = False) -> DicomFrame:
    """Return one frame decoded, with the padding and the modality transform that are its own.

    Args:
        file: An open file whose pixel element holds this one frame (multiframe.split_frames).
        module: Its image pixel module, frames = 1.
        frame: Which item of the per-frame functional groups is its.
        allow_damaged: As of pixels.read_stored.

    Raises:
        ImageRefusedError: as of read_stored, and all_padding, not_finite, rescale, lut.

    Source: PS3.3 C.7.6.3; padding C.7.5.1.1.2; functional groups C.7.6.16.
    """
    stored = read_stored(file, module, allow_damaged=allow_damaged)
    mask, modality, little_endian = None, None, file.syntax.is_little_endian
    if module.photometric.startswith("MONOCHROME"):
        mask = _find_padding(file, module, stored)
    if stored.values.dtype.kind == "f":
        values = stored.values
        if mask is not None:
            values = np.where(mask, 0, values)  # so that padding takes part in no range
        if not np.isfinite(values).all():
            raise ImageRefusedError("not_finite", "float pixels hold NaN or infinity")
        stored = replace(stored, values=values)
    if module.photometric.startswith("MONOCHROME"):
        source = find_macro(file.dataset, "PixelValueTransformationSequence", frame=frame)
        modality = read_modality(source, signed=stored.signed, little_endian=little_endian)
    return DicomFrame(
        dataset=file.dataset,
        stored=stored,
        mask=mask,
        modality=modality,
        little_endian=little_endian,
    )


def check_display(file: DicomFile, module: PixelModule, options: ReadOptions) -> None:
    """Check all that the header of a single-frame image says of how its pixels are stored and shown.

    Whoever decodes the image refuses it for the same reasons, in the same order; data_prep.index asks this alone.

    Raises:
        ImageRefusedError: mosaic, those of pixels.check_encoding, palette, unsupported_colour, rescale, lut,
            supplemental_palette, presentation_conflict, window, no_window.
    """
    dataset, little_endian = file.dataset, file.syntax.is_little_endian
    if "MOSAIC" in (dataset.get("ImageType") or ()):
        raise ImageRefusedError("mosaic", "many slices tiled into one picture (Siemens)")
    check_encoding(file, module)
    if module.photometric == "PALETTE COLOR":
        read_palettes(dataset, little_endian=little_endian)
        return
    if module.samples == 3:
        if module.signed:
            raise ImageRefusedError("unsupported_colour", "signed colour samples")
        return
    _read_padding(file, module, signed=module.signed)
    source = find_macro(dataset, "PixelValueTransformationSequence")
    modality = read_modality(source, signed=module.signed, little_endian=little_endian)
    if options.windows_hu:
        return
    _check_polarity(dataset, module.photometric)
    if options.grey_range is None:
        is_float = file.element.keyword != "PixelData"
        low, _ = modality.compute_limits(bits=module.stored, signed=module.signed or is_float)
        find_voi(
            find_macro(dataset, "FrameVOILUTSequence"),
            signed=low < 0,
            window_index=options.window_index,
            little_endian=little_endian,
            is_ct=dataset.get("Modality") == "CT",
        )


def _check_polarity(dataset: Header, photometric: str) -> None:
    """Refuse grey values that are meant to be shown in colour, or inverted by one word and not by another."""
    if str(dataset.get("PixelPresentation") or "") in ("COLOR", "MIXED", "TRUE_COLOR"):
        raise ImageRefusedError("supplemental_palette", "grey values meant to be shown in colour")
    shape = str(dataset.get("PresentationLUTShape") or "")
    if (photometric, shape) in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")):
        raise ImageRefusedError("presentation_conflict", f"{photometric} with PresentationLUTShape {shape}")


def compute_display(frame: DicomFrame, options: ReadOptions) -> tuple[NDArray[np.float32], str]:
    """Compute display values (C, H, W) in [0, 1], 0 black, padding 0; C is 1, 3 for colour, or the number of windows.

    Returns:
        The values, and the word for what scaled them (grey_levels.SourceValues.scaling).

    Raises:
        ImageRefusedError: window, no_window, not_hounsfield, presentation_conflict, float_range, all_padding, palette,
            not_grey.

    Source: PS3.3 C.11.2 (VOI), C.7.6.3.1.2 (MONOCHROME1, inverted once, after VOI), C.8.11.3.1.2.
    """
    with refusing_parser_errors():
        modality = frame.modality
        if options.windows_hu and not is_hounsfield(frame):
            raise ImageRefusedError("not_hounsfield", "windows in HU need a CT with a rescale to HU")
        if modality is None:
            if options.grey_range is not None:
                raise ImageRefusedError("not_grey", "image.intensity=range scales grey values: image.intensity=display")
            return _display_colour(frame), "type"
        if options.windows_hu:
            displays = [build_window("LINEAR", center, width) for center, width in options.windows_hu]
            scaling = "windows_hu"
        else:
            display, scaling = _find_display(frame, modality, options)
            displays = [display]
        channels = [map_values(frame.stored, partial(_apply_both, modality, each)) for each in displays]
        pixels = channels[0][None] if len(channels) == 1 else np.stack(channels)
        if frame.mask is not None:
            np.copyto(pixels, 0, where=frame.mask)
        return pixels, scaling


def _apply_both(modality: Modality, display: Display, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return display(modality.apply(values))


def map_values(stored: StoredFrame, function: Display) -> NDArray[np.float32]:
    """Apply a function to every stored value, float32; up to 16 bits by a table of the range seen."""
    values = stored.values
    if values.dtype.kind == "f" or stored.bits > _TABLE_BITS:
        return function(values.astype(np.float64)).astype(np.float32)
    low, high = int(values.min()), int(values.max())
    if high - low >= values.size:
        return function(values.astype(np.float64)).astype(np.float32)
    inputs = np.arange(low, high + 1)
    table = np.empty(1 << _TABLE_BITS, np.float32)
    table[inputs] = function(inputs.astype(np.float64))  # negative inputs stand at the end, as negative indices do
    if _LUT_TAKES_WORDS and values.dtype.itemsize == 2:  # four times as fast as numpy
        found: NDArray[np.float32] = np.asarray(
            cv2.LUT(np.ascontiguousarray(values).view(np.uint16), table), np.float32
        )
        return found
    return table.take(values, mode="wrap")


def check_kind(file: DicomFile) -> None:
    """Check that a file holds an image, whole, with codes that can be codes; a volume's slices included.

    Raises:
        ImageRefusedError: not_an_image (a segmentation), truncated, malformed_element.
    """
    if str(file.dataset.get("SOPClassUID") or "").strip() in _NO_IMAGES:
        raise ImageRefusedError("not_an_image", "a segmentation: labels drawn on other images")
    if not file.holds_pixels():
        raise ImageRefusedError("truncated", f"{file.element.length} bytes of pixels expected, fewer are there")
    if any(len(text) > MAX_TEXT for text in read_headers(file.dataset).values()):
        raise ImageRefusedError("malformed_element", "a code or an identifier longer than a page")


def check_single(dataset: Header, module: PixelModule, max_pixels: int) -> None:
    """Check that a file is one whole image, and not larger than allowed, before anything is decoded.

    Raises:
        ImageRefusedError: too_large, cine, multi_frame, tiled.
    """
    asked = module.pixels * module.frames * module.samples
    if asked > max_pixels:
        raise ImageRefusedError("too_large", f"{asked} samples; the limit is {max_pixels}")
    if module.frames > 1:
        reason = "cine" if is_timed(dataset) else "multi_frame"
        raise ImageRefusedError(reason, f"{module.frames} frames; expected one")
    whole = read_numbers(dataset, "TotalPixelMatrixRows") + read_numbers(dataset, "TotalPixelMatrixColumns")
    if whole and whole != [module.rows, module.columns]:
        raise ImageRefusedError("tiled", "one tile of a larger image")


def _find_padding(file: DicomFile, module: PixelModule, stored: StoredFrame) -> NDArray[np.bool_] | None:
    """Return where stored values are the padding value or lie in its range, both ends included."""
    numbers, is_float = _read_padding(file, module, signed=stored.signed)
    if not numbers:
        return None
    values = stored.values
    mask: NDArray[np.bool_]
    if len(numbers) == 1:
        mask = values == numbers[0]
    else:
        mask = (values >= min(numbers)) & (values <= max(numbers))
    if is_float and np.isnan(numbers).any():
        mask = np.isnan(values)
    if mask.all():
        raise ImageRefusedError("all_padding", "every pixel is padding")
    if not mask.any():
        return None
    return mask


def _read_padding(file: DicomFile, module: PixelModule, *, signed: bool) -> tuple[list[float], bool]:
    """Return the ends of the padding as stored values, [] where there is none, and whether they are floats."""
    prefix = {"FloatPixelData": "Float", "DoubleFloatPixelData": "DoubleFloat"}.get(file.element.keyword, "")
    ends: list[float] = []
    for name in ("Value", "RangeLimit"):
        value = file.dataset.get(f"{prefix}PixelPadding{name}")
        if value is None or value == "":
            continue
        if prefix:
            ends.append(float(value))
        else:  # the value of a cell, whatever sign its own element was written with
            end = int(value) & ((1 << module.allocated) - 1)
            ends.append(end - (1 << module.allocated) if signed and end >> (module.allocated - 1) else end)
    return ends, bool(prefix)


def _display_colour(frame: DicomFrame) -> NDArray[np.float32]:
    """RGB channels of a colour or palette frame; VOI does not apply to them."""
    stored = frame.stored
    if stored.photometric == "PALETTE COLOR":
        return apply_palette(stored.values, frame.dataset, little_endian=frame.little_endian)
    if stored.signed:
        raise ImageRefusedError("unsupported_colour", "signed colour samples")
    if stored.photometric == "YBR_FULL":
        return convert_ybr_to_rgb(stored.values)
    full = np.float64((1 << stored.bits) - 1)
    return np.moveaxis(stored.values / full, -1, 0).astype(np.float32)


def is_hounsfield(frame: DicomFrame) -> bool:
    """Return whether the header says that the values are HU: a CT with a rescale, of no other type."""
    modality = frame.modality
    in_hu = modality is not None and modality.stated and modality.unit in ("", "HU")
    return in_hu and frame.dataset.get("Modality") == "CT"


def _find_display(frame: DicomFrame, modality: Modality, options: ReadOptions) -> tuple[Display, str]:
    """Return the range asked for, else the file's own VOI transform or a stated fall-back; inverted for MONOCHROME1.

    Without a VOI: 8 bits and fewer are display values already and keep their full range; CT is refused; deeper images
    map the smallest and largest unpadded value to 0 and 1, because their full range is mostly unused (16 bits stored
    with a maximum of 900 would keep 4 of 256 grey levels). Floats must lie in [0, 1].

    Source: PS3.3 C.11.2 and own choice.
    """
    stored = frame.stored
    _check_polarity(frame.dataset, stored.photometric)
    low, high = modality.compute_limits(bits=stored.bits, signed=stored.signed)
    found: tuple[Display, str] | None = None
    if options.grey_range is None:
        found = find_voi(
            find_macro(frame.dataset, "FrameVOILUTSequence"),
            signed=low < 0,
            window_index=options.window_index,
            little_endian=frame.little_endian,
            is_ct=frame.dataset.get("Modality") == "CT",
        )
    if options.grey_range is not None:
        display, scaling = build_range(*options.grey_range), "range"
    elif found is not None:
        display, scaling = found
    elif stored.values.dtype.kind == "f":
        display, scaling = check_unit_range, "unit"
    elif stored.bits <= 8:
        display, scaling = build_range(low, high), "type"
    else:
        seen = stored.values
        if frame.mask is not None:
            seen = seen[~frame.mask]
        display, scaling = build_range(*find_range(seen, modality)), "own_range"
    if stored.photometric == "MONOCHROME1":
        return lambda values: 1.0 - display(values), scaling
    return display, scaling
