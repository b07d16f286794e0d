"""Count the grey levels of a file and of its stored image; check the range of Hounsfield units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.errors import ImageRefusedError

FEW_LEVELS = 32
"""An image with fewer stored levels than this looks like steps. Own choice: a display has 256."""

_MANY_TIMES = 4
_SAMPLE = 1 << 16


@dataclass(frozen=True, slots=True)
class SourceValues:
    """The grey values of a file before they are scaled: samples of a picture, modality values of DICOM.

    Attributes:
        low: Smallest value outside padding.
        high: Largest value outside padding.
        levels: Distinct values among at most 65,536 pixels that lie evenly over the image: at least so many.
        scaling: What turns them into [0, 1]: "type" (the largest value of their integer type), "voi_lut" or "window"
            (the file's), "own_range" (the image's smallest and largest value), "unit" (nothing: floats in [0, 1]),
            "range" (image.range) or "windows_hu" (image.windows_hu).
    """

    low: float
    high: float
    levels: int
    scaling: str


def take_sample(values: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Return at most 65,536 values that lie evenly over what is not masked, flat; none if all is masked."""
    if mask is not None:
        values = values[~mask]
    seen = values.ravel()
    return seen[:: -(-seen.size // _SAMPLE) or 1]


def count_levels(stored: NDArray[Any]) -> int:
    """Return the distinct values of a stored image or volume (C, *spatial), of the channel that has most."""
    if stored.size == 0:
        return 0
    if stored.dtype == np.float16:
        stored = stored.view(np.uint16)  # their bits tell half floats apart as well
    low = int(stored.min())
    # By counting, which is faster than sorting.
    return max(int(np.count_nonzero(np.bincount(each.ravel().astype(np.int64) - low))) for each in stored)


def loses_levels(*, source: int, stored: int) -> bool:
    """Return whether an image of many grey levels was stored with few: most of what the file shows is gone."""
    return stored < FEW_LEVELS and source >= _MANY_TIMES * stored


_AIR, _TOO_DENSE, _DENSE = -200, 2000, (800, 1400)
_LEAST_AIR, _MOST_TOO_DENSE, _MOST_DENSE = 0.01, 0.1, 0.25


def check_hounsfield(values: NDArray[Any], *, intercept: float | None = None) -> None:
    """Check that a CT's values can be Hounsfield units: air is near -1000, and little is denser than cortical bone.

    Two faults of headers are known by their values, both without any air: negative values that were stored without a
    sign and became 3096 to 4095 (wrapped by 4096; or 65,536), and an intercept of -1024 or -1000 that is missing, so
    that water is at 1000.

    Args:
        values: HU of a slice or volume outside padding, or an even sample of them.
        intercept: RescaleIntercept; the second fault is looked for only if it is known and near 0.

    Raises:
        ImageRefusedError: implausible_hu.

    Source: own choice, docs/decisions/0043-grey-values.md; the first fault is that of the RSNA 2019 haemorrhage set.
    """
    if not values.size or float((values < _AIR).mean()) >= _LEAST_AIR:
        return
    too_dense = float((values > _TOO_DENSE).mean())
    dense = float(((values > _DENSE[0]) & (values < _DENSE[1])).mean())
    if too_dense > _MOST_TOO_DENSE:
        fault = f"{too_dense:.0%} above {_TOO_DENSE} HU: negative values have wrapped around to high ones"
    elif intercept is not None and intercept > _AIR and dense > _MOST_DENSE and float((values < 0).mean()) < _LEAST_AIR:
        fault = f"{dense:.0%} from {_DENSE[0]} to {_DENSE[1]} HU: the rescale intercept (-1024) is missing"
    else:
        return
    raise ImageRefusedError(
        "implausible_hu",
        f"no air below {_AIR} HU, and {fault}; correct the files, or set image.implausible_hu=allow if this is right",
    )
