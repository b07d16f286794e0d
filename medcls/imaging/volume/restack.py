"""Slices moved to where a regular volume has them: the shear of a tilted gantry, and irregular distances."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WHOLE = 1e-6
"""Fractions of a pixel below this are rounding."""

_NEAR = 0.01
"""A given slice that lies this near to a wanted one, as a fraction of the distance of slices, is taken as it is."""


def shear_slices(
    values: NDArray[np.float32],
    mask: NDArray[np.bool_],
    *,
    shifts_px: NDArray[np.float64],
    margins_px: tuple[int, int, int, int],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Slices moved inside their planes so that they lie above one another; linear interpolation.

    Args:
        values: (D, H, W), float32.
        mask: (D, H, W), True where a value means nothing.
        shifts_px: (D, 2), by how many rows and columns each slice is moved.
        margins_px: Rows added above and below, columns left and right, enough for every shift.

    Returns:
        Values and mask of the larger size; the mask is True outside a slice and wherever a masked value would take
        part.

    Source: own choice, docs/decisions/0008-volumes.md (linear interpolation along rows and along columns).
    """
    above, below, left, right = margins_px
    shape = (len(values), values.shape[1] + above + below, values.shape[2] + left + right)
    moved, hidden = np.zeros(shape, np.float32), np.ones(shape, bool)
    for plane, (rows, columns) in enumerate(shifts_px):
        valid = (~mask[plane]).astype(np.float32)
        shown = np.where(mask[plane], np.float32(0), values[plane])
        for axis, (shift, size) in enumerate(((rows + above, shape[1]), (columns + left, shape[2]))):
            if size == values.shape[axis + 1]:
                continue  # no slice of the stack moves along this axis
            shown = _shift(shown, shift, axis=axis, size=size)
            valid = _shift(valid, shift, axis=axis, size=size)
        moved[plane], hidden[plane] = shown, valid < 1 - 1e-4
    return moved, hidden


def _shift(image: NDArray[np.float32], shift: float, *, axis: int, size: int) -> NDArray[np.float32]:
    """An image (H, W) moved along an axis by shift >= 0 pixels into a frame of that size, 0 outside."""
    whole = int(np.floor(shift + _WHOLE))
    part = np.float32(max(0.0, shift - whole))
    source = np.moveaxis(image, axis, 0)
    result = np.zeros((size, source.shape[1]), np.float32)
    result[whole : whole + len(source)] += (1 - part) * source
    if part > _WHOLE:
        result[whole + 1 : whole + 1 + len(source)] += part * source
    return np.moveaxis(result, 0, axis)


def resample_depth(
    values: NDArray[np.float32],
    mask: NDArray[np.bool_],
    *,
    distances_mm: NDArray[np.float64],
    wanted_mm: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Slices at the wanted places along the normal; linear interpolation between the two neighbours.

    Args:
        values: (D, H, W), float32.
        mask: (D, H, W), True where a value means nothing.
        distances_mm: (D,), ascending places of the slices.
        wanted_mm: Ascending places, regular, inside the given ones.

    Returns:
        Values and mask; the mask is True where either neighbour's is. A slice that is there already is copied.

    Source: own choice, docs/decisions/0008-volumes.md.
    """
    near = _NEAR * float(wanted_mm[1] - wanted_mm[0])
    planes = np.empty((len(wanted_mm), *values.shape[1:]), np.float32)
    hidden = np.empty(planes.shape, bool)
    for index, place in enumerate(wanted_mm):
        nearest = int(np.abs(distances_mm - place).argmin())
        if abs(distances_mm[nearest] - place) <= near:
            planes[index], hidden[index] = values[nearest], mask[nearest]
            continue
        high = int(np.searchsorted(distances_mm, place))
        part = np.float32((place - distances_mm[high - 1]) / (distances_mm[high] - distances_mm[high - 1]))
        planes[index] = (1 - part) * values[high - 1] + part * values[high]
        hidden[index] = mask[high - 1] | mask[high]
    return planes, hidden
