"""Whether the values of a CT can be Hounsfield units: a header that is wrong by one number shows in them."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from medcls.errors import ImageRefusedError

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
