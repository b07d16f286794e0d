"""Resample a volume to another grid along its own axes: linear in the values, without aliasing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

_NO_BLUR = 1e-6


def build_weights(positions: NDArray[np.float64], *, size: int, step: float) -> Any:
    """Weights (len(positions), size), sparse, float32, rows of sum 1: old samples of one axis to new ones.

    A new sample is the mean of the linear interpolant of the old ones over a box of step - 1 old samples: linear
    interpolation where step <= 1 (the old samples themselves where positions are whole), a low-pass filter as
    wide as the new sample where it shrinks. Values that are linear along the axis stay exactly so; the box is cut
    off at the ends of the axis.

    Args:
        positions: Where the new samples lie, in old samples, each within [-0.5, size - 0.5].
        size: Number of old samples.
        step: Distance of new samples, in old samples, > 0.

    Source: own choice, docs/decisions/0009-volume-preprocessing.md.
    """
    box = max(0.0, step - 1)
    first = np.floor(positions - box / 2).astype(np.int64)
    index = first[:, None] + np.arange(int(np.ceil(box)) + 2)
    distance = positions[:, None] - index
    if box > _NO_BLUR:
        ends = np.clip(np.stack([distance - box / 2, distance + box / 2]), -1, 1)
        low, high = 0.5 + ends - np.sign(ends) * ends**2 / 2  # integrals of max(0, 1 - |t|) from minus infinity
        weights = (high - low) / box
    else:
        weights = np.maximum(0, 1 - np.abs(distance))
    weights[(index < 0) | (index >= size)] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.arange(0, index.size + 1, index.shape[1])
    shape = (len(positions), size)
    matrix = csr_array((weights.ravel().astype(np.float32), np.clip(index, 0, size - 1).ravel(), rows), shape=shape)
    matrix.sum_duplicates()
    return matrix


def resample(values: NDArray[np.float32], weights: Sequence[Any]) -> NDArray[np.float32]:
    """Values (D, H, W) float32 on the grid of the weights of each axis; the axis that shrinks most goes first.

    Every result is a sum in a fixed order, so it does not depend on threads or on the number of workers.
    """
    for axis in sorted(range(3), key=lambda a: (weights[a].shape[0] / weights[a].shape[1], a)):
        matrix = weights[axis]
        if axis == 0:
            rest = values.shape[1:]
            values = (matrix @ values.reshape(values.shape[0], -1)).reshape(-1, *rest)
        elif axis == 1:
            values = np.stack([matrix @ plane for plane in values])
        else:
            values = np.stack([(matrix @ plane.T).T for plane in values])
    return np.ascontiguousarray(values)


def resample_masked(
    values: NDArray[np.float32], mask: NDArray[np.bool_] | None, weights: Sequence[Any]
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Values and mask on the grid of the weights; masked values take no part in the mean of their neighbours.

    Args:
        values: (D, H, W), float32.
        mask: (D, H, W), True where the value means nothing; None when there is none.
        weights: Of the three axes (build_weights).

    Returns:
        The values, 0 where masked, and the mask: True where less than half of the weight is unmasked.
    """
    if mask is None:
        return resample(values, weights), None
    seen = resample((~mask).astype(np.float32), weights)
    padding = seen < 0.5
    sums = resample(np.where(mask, np.float32(0), values), weights)
    found: NDArray[np.float32] = np.where(padding, np.float32(0), sums / np.where(padding, np.float32(1), seen))
    if not padding.any():
        return found, None
    return found, padding


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
    """Return an image (H, W) moved along an axis by shift >= 0 pixels into a frame of that size, 0 outside."""
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
