"""Grey values: modality LUT or rescale, then VOI LUT or window, each as a function of an array."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.colour import read_lut_words
from medcls.imaging.dicom.fast_header import Header
from medcls.imaging.dicom.header import read_numbers

Display: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A grey lookup table; inputs off its ends take the end entries (PS3.3 C.11.1.1.1)."""

    first: int
    entries: NDArray[np.float64]
    bits: int

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the entry for every value, rounded to the nearest input."""
        position = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        found: NDArray[np.float64] = self.entries[position.astype(np.int64)]
        return found


@dataclass(frozen=True, slots=True)
class Modality:
    """Stored to modality values: a table, or slope and intercept.

    Attributes:
        unit: RescaleType or ModalityLUTType, "" where absent.
        stated: Whether the file states a transform at all.
    """

    slope: float
    intercept: float
    table: LookupTable | None
    unit: str
    stated: bool

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Modality values, float64."""
        if self.table:
            return self.table.apply(values)
        return values * self.slope + self.intercept

    def compute_limits(self, *, bits: int, signed: bool) -> tuple[float, float]:
        """Return the smallest and largest value that the stored bits can become."""
        if self.table:
            return float(self.table.entries.min()), float(self.table.entries.max())
        lowest = 0
        if signed:
            lowest = -(1 << (bits - 1))
        low, high = sorted(self.apply(np.array([lowest, lowest + (1 << bits) - 1], np.float64)).tolist())
        return low, high


def read_modality(source: Header, *, signed: bool, little_endian: bool) -> Modality:
    """Read the modality transform of a dataset or of an item of the pixel value transformation macro.

    A slope of 1 without an intercept, and an intercept of 0 without a slope, are no transform: the values stay as
    they are stored, and their unit is not known.

    Raises:
        ImageRefusedError: rescale, if half of it is missing, it is zero, or it is there beside a modality LUT; lut.

    Source: PS3.3 C.11.1, C.7.6.16.2.9; RT dose C.8.8.3 (DoseGridScaling).
    """
    slope, intercept = read_numbers(source, "RescaleSlope"), read_numbers(source, "RescaleIntercept")
    is_halved = (slope, intercept) in (([1.0], []), ([], [0.0]))
    if is_halved:
        slope = intercept = []
    if len(slope) != len(intercept) or len(slope) > 1:
        raise ImageRefusedError("rescale", "expected one RescaleSlope and one RescaleIntercept, or neither")
    dose = read_numbers(source, "DoseGridScaling")
    stated = bool(slope or dose)
    factors = (slope or dose or [1.0])[0], (intercept or [0.0])[0]
    if factors[0] == 0:
        raise ImageRefusedError("rescale", "a slope of 0 makes every pixel the same")
    table, unit = None, "" if is_halved else str(source.get("RescaleType") or "")
    items = source.get("ModalityLUTSequence")
    if items:
        if factors != (1.0, 0.0):
            raise ImageRefusedError("rescale", "a modality LUT and a rescale contradict each other")
        table = read_table(items[0], signed=signed, little_endian=little_endian)
        unit, stated = str(items[0].get("ModalityLUTType") or ""), True
    return Modality(*factors, table, unit, stated)


def read_table(item: Header, *, signed: bool, little_endian: bool) -> LookupTable:
    """Return the table of a modality or VOI LUT item.

    Args:
        item: Item with LUTDescriptor and LUTData.
        signed: Whether the values that go in can be negative: then so can the first value mapped.
        little_endian: Byte order of the dataset.

    Raises:
        ImageRefusedError: lut.

    Source: PS3.3 C.11.1.1, C.11.2.1.1.
    """
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if descriptor is None or len(descriptor) != 3 or data is None:
        raise ImageRefusedError("lut", "a lookup table without its descriptor or data")
    length, first, bits = (int(value) for value in descriptor)
    length = (length & 0xFFFF) or 1 << 16
    first &= 0xFFFF
    if signed and first >= 1 << 15:
        first -= 1 << 16
    if not 8 <= bits <= 16:
        raise ImageRefusedError("lut", f"{bits} bits an entry; expected 8 to 16")
    entries = read_lut_words(data, bits=bits, little_endian=little_endian, length=length)
    if len(entries) != length or entries.max() >= 1 << bits:
        raise ImageRefusedError("lut", f"{len(entries)} entries; expected {length} of {bits} bits")
    return LookupTable(first, entries.astype(np.float64), bits)


def build_window(function: str, center: float, width: float) -> Display:
    """Return a window as a function from modality values to [0, 1].

    Args:
        function: LINEAR, LINEAR_EXACT or SIGMOID.
        center: Window centre, modality unit.
        width: Window width; at least 1 for LINEAR, more than 0 for the others.

    Raises:
        ImageRefusedError: window.

    Source: PS3.3 C.11.2.1.2.1, C.11.2.1.3.1, C.11.2.1.3.2.
    """
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise ImageRefusedError(
            "window",
            f"width {width:g} is too small for {function}: image.intensity=range image.range=[…] replaces it",
        )
    if function == "SIGMOID":
        return lambda values: 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700, 700)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    elif function != "LINEAR_EXACT":
        raise ImageRefusedError("window", "VOILUTFunction is not LINEAR, LINEAR_EXACT or SIGMOID")
    if width == 0:
        return lambda values: (values > center).astype(np.float64)
    return lambda values: np.clip((values - center) / width + 0.5, 0.0, 1.0)


def find_voi(
    source: Header, *, signed: bool, window_index: int, little_endian: bool, is_ct: bool
) -> tuple[Display, str] | None:
    """Return the VOI transform that a header states and its word (as SourceValues.scaling); None if it states none.

    Args:
        source: Dataset, or item of the frame VOI LUT macro.
        signed: Whether modality values can be negative.
        window_index: Which of the VOI LUTs and windows, LUTs counted first.
        little_endian: Byte order of the dataset.
        is_ct: CT without a VOI is refused, since HU have no range of their own.

    Raises:
        ImageRefusedError: window, lut, no_window.

    Source: PS3.3 C.11.2.
    """
    tables = source.get("VOILUTSequence") or []
    centers, widths = read_numbers(source, "WindowCenter"), read_numbers(source, "WindowWidth")
    if len(centers) != len(widths):
        raise ImageRefusedError("window", f"{len(centers)} centres and {len(widths)} widths")
    count = len(tables) + len(centers)
    if window_index >= count and (window_index or count):
        raise ImageRefusedError("window", f"index {window_index} of {count}")
    if window_index < len(tables):
        table = read_table(tables[window_index], signed=signed, little_endian=little_endian)
        return lambda values: table.apply(values) / ((1 << table.bits) - 1), "voi_lut"
    if centers:
        center, width = centers[window_index - len(tables)], widths[window_index - len(tables)]
        return build_window(str(source.get("VOILUTFunction") or "LINEAR"), center, width), "window"
    if is_ct:
        raise ImageRefusedError("no_window", "CT without a window: give one in HU (image.windows_hu)")
    return None


def find_range(seen: NDArray[Any], modality: Modality) -> tuple[float, float]:
    """Return the smallest and largest modality value of the pixels seen; a table need not be monotonic."""
    if not modality.table:
        seen = np.array([seen.min(), seen.max()])
    values = modality.apply(seen.astype(np.float64))
    return float(values.min()), float(values.max())


def build_range(low: float, high: float) -> Display:
    """Return the map of [low, high] to [0, 1], clipped; an image of one value is black."""
    width = high - low or 1.0
    return lambda values: np.clip((values - low) / width, 0.0, 1.0)


def check_unit_range(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return floats that are display values already; raise ImageRefusedError (float_range) outside [0, 1]."""
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ImageRefusedError("float_range", "float pixels outside [0, 1] and no window in the file")
    return values
