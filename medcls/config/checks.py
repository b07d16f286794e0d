"""Checks of single settings; their errors name the setting, the value and what was expected."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from medcls.errors import ConfigError

SPLITS = ("train", "val", "test")
IMAGE_DTYPES = ("uint8", "uint16")
VOLUME_DTYPES = ("uint8", "uint16", "int16", "float16")
IMAGE_INTENSITIES = ("display", "range", "minmax", "percentile")
VOLUME_INTENSITIES = ("percentile", "minmax", "window", "hounsfield")
AFFINES = ("auto", "sform", "qform", "refuse")
"""Which affine of a NIfTI file is taken if sform and qform lead to different spaces."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (nearest: x)" for the known name most like `name`, or "" where none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (nearest: {matches[0]})" if matches else ""


def check_choice(name: str, value: object, known: Iterable[object]) -> None:
    """Raise ConfigError where `value` is not one of `known`, with the nearest of them."""
    known = list(known)
    if value not in known:
        listed = [str(each) or "''" for each in known]
        raise ConfigError(f"{name}={value}: expected one of {', '.join(listed)}{nearest(str(value), listed)}")


def check_range(
    name: str, value: float, *, low: float | None = None, high: float | None = None, open_low: bool = False
) -> None:
    """Raise ConfigError where `value` is not finite or lies outside [low, high] ((low, high] if open_low)."""
    below = low is not None and (value < low or (open_low and value == low))
    above = high is not None and value > high
    if below or above or not math.isfinite(value):
        bounds = [f"{'>' if open_low else '>='} {low:g}" if low is not None else ""]
        bounds.append(f"<= {high:g}" if high is not None else "")
        raise ConfigError(f"{name}={value}: expected {' and '.join(b for b in bounds if b) or 'a finite number'}")


SIDES = (8, 8192)
"""Fewest and most pixels along a side of a stored image."""


def check_sides(name: str, sizes: Sequence[object], *, given: object) -> None:
    """Check the sides of an image or a volume.

    Args:
        name: Setting, for the message.
        sizes: Each side.
        given: The value as it was given, for the message.

    Raises:
        ConfigError: a side is not a whole number within SIDES.
    """
    low, high = SIDES
    if not all(isinstance(n, int) and low <= n <= high for n in sizes):
        raise ConfigError(f"{name}={given}: expected whole numbers, {low} to {high} pixels")


def check_image(image: Any) -> None:
    """Check what settings of 2-D images may be together, as a user gives them or a store or a model file records them.

    Args:
        image: Fields dtype, intensity, range, percentiles, channels, windows_hu.

    Raises:
        ConfigError: a value is not for 2-D images or contradicts another.
    """
    check_choice("image.dtype", image.dtype, IMAGE_DTYPES)
    check_choice("image.intensity", image.intensity, IMAGE_INTENSITIES)
    if image.channels not in (1, 3):
        raise ConfigError(f"image.channels={image.channels}: expected 1 (grey) or 3 (colour)")
    if image.windows_hu and len(image.windows_hu) != image.channels:
        raise ConfigError(
            f"image.windows_hu has {len(image.windows_hu)} windows: expected image.channels={image.channels}"
        )
    check_percentiles("image.percentiles", image.percentiles)
    check_grey_range(image)


def check_percentiles(name: str, values: Sequence[float]) -> None:
    """Raise ConfigError where two percentiles are not ascending within 0 to 100."""
    low, high = values if len(values) == 2 else (1.0, 0.0)
    if not 0 <= low < high <= 100:
        raise ConfigError(f"{name}={list(values)}: expected [low, high] within 0 to 100")


def check_grey_range(image: Any) -> None:
    """Raise ConfigError where image.range and image.intensity do not go together, or the range is none."""
    if (image.intensity == "range") != (image.range is not None):
        raise ConfigError(
            "image.intensity=range and image.range=[low,high] go together: set both (the grey values that become "
            "black and white: [0,1023] for 10 bits, [0,4095] for 12, [0,16383] for 14), or neither"
        )
    if image.range is None:
        return
    low, high = image.range if len(image.range) == 2 else (1.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"image.range={list(image.range)}: expected [low,high] with low < high")
    if image.windows_hu:
        raise ConfigError("image.windows_hu and image.intensity=range both scale grey values: remove one")


def check_crop(size: int | None, scales: Sequence[int]) -> None:
    """Raise ConfigError where no square of `size` can be cut out of images whose shortest side is within `scales`."""
    if len(scales) != 2 or scales[0] > scales[1]:
        raise ConfigError(f"crop.scales={list(scales)}: expected [smallest, largest] shortest side in pixels")
    low, high = SIDES
    check_range("crop.scales", scales[0], low=low)
    check_range("crop.scales", scales[1], high=high)
    if size is not None:
        check_range("crop.size", size, low=low, high=scales[0])
    elif scales[0] < scales[1]:
        raise ConfigError(f"crop.scales={list(scales)} with crop.size=null: images of one batch need one size")


def check_file_name(name: str, value: str) -> None:
    """Raise ConfigError where `value` cannot be a plain file name."""
    if not value or value != Path(value).name or value.startswith("."):
        raise ConfigError(f"{name}={value}: expected a plain name without / and leading dots")
