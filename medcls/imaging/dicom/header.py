"""Read attributes of a DICOM header by allow-list: spacing, aspect, macros of enhanced files."""

from __future__ import annotations

import math

from pydicom.multival import MultiValue

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.dicom_file import HEADER_KEYWORDS
from medcls.imaging.dicom.fast_header import Header

MAX_TEXT = 1024
"""Letters of a code or identifier; more is no code, and a table holds no page."""

_IMAGE_REGIONS = {1, 2, 3}  # 2-D, M-mode and spectra; not wave forms, graphics and grey bars
_REGION_ENDS = ("MinX0", "MinY0", "MaxX1", "MaxY1")
_SPACING_KEYWORDS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def read_headers(dataset: Header) -> dict[str, str]:
    """Allow-listed attributes by keyword, several values joined by a backslash, "" where absent."""
    return {keyword: read_text(dataset, keyword) for keyword in HEADER_KEYWORDS}


def read_text(dataset: Header, keyword: str) -> str:
    """Return one attribute as printable text, several values joined by a backslash; "" if absent."""
    value = dataset.get(keyword)
    if value is None:
        return ""
    if isinstance(value, MultiValue | list):
        text = "\\".join([str(part).strip() for part in value])
    else:
        text = str(value).strip()
    if text.isprintable():
        return text
    return "".join(filter(str.isprintable, text))


def is_timed(dataset: Header) -> bool:
    """Return whether the frames of a file are moments of a cine."""
    return any(keyword in dataset for keyword in ("FrameTime", "FrameTimeVector", "CineRate"))


def read_numbers(dataset: Header, keyword: str) -> list[float]:
    """Return the finite numbers of an element, [] where it is absent or empty.

    Raises:
        ImageRefusedError: malformed_element.
    """
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    try:
        if isinstance(value, MultiValue | list):
            numbers = [float(part) for part in value]
        else:
            numbers = [float(value)]
    except (TypeError, ValueError) as error:
        raise ImageRefusedError("malformed_element", f"{keyword} is not a number") from error
    if not all(map(math.isfinite, numbers)):
        raise ImageRefusedError("malformed_element", f"{keyword} is not finite")
    return numbers


def find_macro(dataset: Header, keyword: str, *, frame: int = 0) -> Header:
    """Return the item of a functional group macro of a frame; the dataset itself where there is none.

    Source: PS3.3 C.7.6.16: per-frame groups go before shared ones.
    """
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[frame : frame + 1], *shared[:1]):
        items = groups.get(keyword)
        if items:
            found: Header = items[0]
            return found
    return dataset


def read_spacing(dataset: Header) -> tuple[tuple[float, float] | None, str]:
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


def read_aspect(dataset: Header, spacing_mm: tuple[float, float] | None) -> float:
    """Height over width of a pixel: of the spacing, else of PixelAspectRatio, else 1.

    Source: PS3.3 C.7.6.3.1.7 (vertical size first).
    """
    vertical, horizontal = spacing_mm or _read_positive_pair(dataset, "PixelAspectRatio") or (1.0, 1.0)
    return vertical / horizontal


def read_ultrasound_regions(dataset: Header) -> list[tuple[int, int, int, int]]:
    """Return the ultrasound regions that hold image data, (x, y, width, height) in pixels; [] where none is declared.

    Raises:
        ImageRefusedError: malformed_element where a corner is missing or the corners are the wrong way round.

    Source: PS3.3 C.8.5.5.1.1 (spatial format), C.8.5.5.1.14 (both corners belong to the region).
    """
    regions = []
    for item in dataset.get("SequenceOfUltrasoundRegions") or []:
        if not _IMAGE_REGIONS.intersection(read_numbers(item, "RegionSpatialFormat")):
            continue
        ends = [int(n) for end in _REGION_ENDS for n in read_numbers(item, f"RegionLocation{end}")]
        if len(ends) != 4 or ends[2] < ends[0] or ends[3] < ends[1]:
            raise ImageRefusedError("malformed_element", "an ultrasound region has no two corners")
        regions.append((ends[0], ends[1], ends[2] - ends[0] + 1, ends[3] - ends[1] + 1))
    return regions


def _read_positive_pair(dataset: Header, keyword: str) -> tuple[float, float] | None:
    """Two positive numbers, or None: an impossible spacing is unknown, the pixels are right without it."""
    try:
        numbers = read_numbers(dataset, keyword)
    except ImageRefusedError:
        return None
    if len(numbers) != 2 or min(numbers) <= 0:
        return None
    return numbers[0], numbers[1]
