"""What a DICOM header says besides pixels: allow-listed attributes, spacing, macros of enhanced files."""

from __future__ import annotations

import math

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from medcls.errors import ImageRefusedError
from medcls.imaging.part10 import HEADER_KEYWORDS

_SPACING_KEYWORDS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def read_headers(dataset: Dataset) -> dict[str, str]:
    """Allow-listed attributes by keyword, several values joined by a backslash, "" where absent."""
    return {keyword: _read_text(dataset, keyword) for keyword in HEADER_KEYWORDS}


def _read_text(dataset: Dataset, keyword: str) -> str:
    """One attribute as printable text."""
    value = dataset.get(keyword)
    if value is None:
        return ""
    parts = value if isinstance(value, MultiValue) else [value]
    text = "\\".join(str(part).strip() for part in parts)
    return "".join(letter for letter in text if letter.isprintable())


def read_numbers(dataset: Dataset, keyword: str) -> list[float]:
    """The finite numbers of an element, [] where it is absent or empty.

    Raises:
        ImageRefusedError: malformed_element.
    """
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    try:
        numbers = [float(part) for part in (value if isinstance(value, MultiValue | list) else [value])]
    except (TypeError, ValueError) as error:
        raise ImageRefusedError("malformed_element", f"{keyword} is not a number") from error
    if not all(map(math.isfinite, numbers)):
        raise ImageRefusedError("malformed_element", f"{keyword} is not finite")
    return numbers


def find_macro(dataset: Dataset, keyword: str, *, frame: int = 0) -> Dataset:
    """The item of a functional group macro of a frame; the dataset itself where there is none.

    Source: PS3.3 C.7.6.16: per-frame groups go before shared ones.
    """
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[frame : frame + 1], *shared[:1]):
        items = groups.get(keyword)
        if items:
            found: Dataset = items[0]
            return found
    return dataset


def read_spacing(dataset: Dataset) -> tuple[tuple[float, float] | None, str]:
    """Distance of rows and of columns in mm with the attribute it came from; (None, "") where unknown.

    PixelSpacing lies in the patient (or is calibrated), ImagerPixelSpacing at the detector, in front of which
    the body is magnified: the caller decides what it may compare.

    Source: PS3.3 10.7.1, C.8.11.4 (row spacing is named first).
    """
    measures = find_macro(dataset, "PixelMeasuresSequence")
    for source in (measures, dataset):
        for keyword in _SPACING_KEYWORDS:
            spacing = _read_positive_pair(source, keyword)
            if spacing is not None:
                return spacing, keyword
    return None, ""


def read_aspect(dataset: Dataset, spacing_mm: tuple[float, float] | None) -> float:
    """Height over width of a pixel: of the spacing, else of PixelAspectRatio, else 1.

    Source: PS3.3 C.7.6.3.1.7 (vertical size first).
    """
    pair = spacing_mm or _read_positive_pair(dataset, "PixelAspectRatio")
    return pair[0] / pair[1] if pair else 1.0


def _read_positive_pair(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    """Two positive numbers, or None: an impossible spacing is unknown, the pixels are right without it."""
    try:
        numbers = read_numbers(dataset, keyword)
    except ImageRefusedError:
        return None
    return (numbers[0], numbers[1]) if len(numbers) == 2 and min(numbers) > 0 else None
