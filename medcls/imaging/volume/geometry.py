"""Fit slices to a regular stack in space, or name what is wrong with them (gap, jitter, mixed spacing)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medcls.config import StackRule
from medcls.errors import ImageRefusedError

_ANGLE = 1e-3
"""Radians that direction cosines may be off for being rounded: 0.06 degrees, half a pixel across a large stack."""

FARTHEST_MM = 1e6
"""No patient is a kilometre away; numbers beyond make arithmetic overflow, not images."""

SAME_MM = 1e-3
_STRAY = 0.25
"""Distances of slices that differ by less than this fraction of their median are meant to be one distance."""

_MAX_SLOPE = 1.0


@dataclass(frozen=True, slots=True)
class StackGeometry:
    """A regular stack and how its slices come to lie on it.

    Attributes:
        levels: Input indices at every position, in order along the normal; several where a position is taken twice.
        distances_mm: (n,), float64, of the positions along the normal, from the first.
        shifts_px: (n, 2), float64, rows and columns that a slice is moved by to undo a tilt; 0 without one.
        depth: Slices of the regular stack, at k * spacing_mm[0].
        spacing_mm: Distance of slices, rows, columns.
        affine: (4, 4), float64: voxel (d, h, w, 1) -> mm, patient LPS+, before rows and columns are added on the
            upper and left side for a shear.
        notes: Fixed words for what was repaired: resampled_gap, resampled_jitter, resampled_spacing, sheared.
    """

    levels: tuple[tuple[int, ...], ...]
    distances_mm: NDArray[np.float64]
    shifts_px: NDArray[np.float64]
    depth: int
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]
    notes: tuple[str, ...]

    @property
    def margins_px(self) -> tuple[int, int, int, int]:
        """Rows above and below, columns left and right, that the shear needs."""
        low, high = self.shifts_px.min(axis=0), self.shifts_px.max(axis=0)
        above, left = (max(0, -int(np.floor(each))) for each in low)
        below, right = (max(0, int(np.ceil(each))) for each in high)
        return above, below, left, right


def fit_stack(
    orientation: Sequence[float],
    positions_mm: NDArray[np.float64],
    *,
    pixel_spacing_mm: tuple[float, float],
    rule: StackRule,
) -> StackGeometry:
    """Return the regular stack that parallel slices lie on.

    Args:
        orientation: Six direction cosines (row, then column), ImageOrientationPatient.
        positions_mm: (n, 3), ImagePositionPatient of every slice, any order.
        pixel_spacing_mm: Distance of rows, of columns.
        rule: What is repaired and what is refused.

    Raises:
        ImageRefusedError: orientation, too_few_slices, lateral_offset, tilt, gap, jitter, mixed_spacing.

    Source: PS3.3 C.7.6.2.1.1 (equation of the plane); order along row x column, tolerances and names own choice,
        docs/decisions/0008-volumes.md.
    """
    axes = compute_axes(orientation)
    along = positions_mm @ axes.T
    levels = find_levels(along[:, 0], rule)
    if len(levels) < rule.min_slices:
        raise ImageRefusedError("too_few_slices", f"{len(levels)} positions; expected at least {rule.min_slices}")
    firsts = [level[0] for level in levels]
    places = along[firsts] - along[firsts[0]]
    depth, distance, repair = _space(places[:, 0], rule)
    slack = rule.tolerance * distance
    for level in levels:  # slices that share a distance must share the place: tiles side by side are no duplicates
        if len(level) > 1 and np.ptp(along[list(level)], axis=0).max() > max(slack, SAME_MM):
            raise ImageRefusedError("lateral_offset", "slices at one distance along the normal are side by side")
    distances, lateral = places[:, 0], places[:, 1:]
    slope = distances @ lateral / (distances @ distances)  # mm along rows' and columns' axes for every mm of normal
    stray = float(np.abs(lateral - np.outer(distances, slope)).max())
    if stray > slack + 1e-9 or np.abs(slope).max() > _MAX_SLOPE:
        raise ImageRefusedError("lateral_offset", f"slices are up to {stray:.4g} mm off the line of the others")
    tilt = np.where(np.abs(slope) > _ANGLE, slope, 0.0)
    if tilt.any():
        if rule.tilt == "refuse":
            degrees = np.degrees(np.arctan(np.hypot(*slope)))
            raise ImageRefusedError("tilt", f"slices are sheared by {degrees:.2f} degrees; tilt=shear undoes that")
        repair = (*repair, "sheared")
    spacing = (distance, *pixel_spacing_mm)
    step = axes[0] + (slope - tilt) @ axes[1:]  # a drift too small to be meant stays where it is
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([step * spacing[0], axes[1] * spacing[1], axes[2] * spacing[2]])
    affine[:3, 3] = positions_mm[firsts[0]]
    return StackGeometry(
        levels=levels,
        distances_mm=places[:, 0],
        shifts_px=np.round(np.outer(places[:, 0], tilt) / spacing[1:], 6),
        depth=depth,
        spacing_mm=spacing,
        affine=affine,
        notes=repair,
    )


def compute_axes(orientation: Sequence[float]) -> NDArray[np.float64]:
    """(3, 3), float64: unit vectors along which slices, rows and columns are counted.

    The slice axis is the cross product row x column, so slices, rows, columns are a left-handed system and columns,
    rows, slices a right-handed one.

    Raises:
        ImageRefusedError: orientation, where the cosines are not of length 1 or not at right angles.

    Source: PS3.3 C.7.6.2.1.1.
    """
    row, column = np.array(orientation, np.float64).reshape(2, 3)
    lengths, cosine = np.linalg.norm([row, column], axis=1), float(row @ column)
    if not np.isfinite(lengths).all() or np.abs(lengths - 1).max() > _ANGLE or abs(cosine) > _ANGLE:
        found = f"lengths {lengths[0]:.4g} and {lengths[1]:.4g}, product {cosine:.4g}"
        raise ImageRefusedError("orientation", f"direction cosines must be 1 long and at right angles: {found}")
    row = row / lengths[0]
    column = column - (column @ row) * row
    column /= np.linalg.norm(column)
    return np.array([np.cross(row, column), column, row])


def compute_spacing(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Distance of slices, rows, columns, mm: the lengths of an affine's first three columns."""
    depth, row, column = (float(each) for each in np.linalg.norm(affine[:3, :3], axis=0))
    return depth, row, column


def find_levels(along: NDArray[np.float64], rule: StackRule) -> tuple[tuple[int, ...], ...]:
    """Return indices in order along the normal, those at one position together."""
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order])
    real = steps[steps > SAME_MM]
    same = SAME_MM
    if real.size:
        same = max(SAME_MM, rule.tolerance * float(np.median(real)))
    cuts = np.flatnonzero(steps > same) + 1
    return tuple(tuple(sorted(int(i) for i in level)) for level in np.split(order, cuts))


def _space(distances: NDArray[np.float64], rule: StackRule) -> tuple[int, float, tuple[str, ...]]:
    """Number and distance of regular slices over the extent of the given ones, and the repair it takes."""
    steps, extent = np.diff(distances), float(distances[-1])
    mean = extent / len(steps)
    deviation = max(np.abs(steps - mean).max(), np.abs(distances - mean * np.arange(len(distances))).max())
    # Beside the tolerance: the standard's decimal strings and double precision round.
    if deviation <= rule.tolerance * mean + 1e-9:
        return len(distances), mean, ()
    fault, count = _name_fault(steps, rule)
    policy = {"gap": rule.gap, "jitter": rule.jitter, "mixed_spacing": rule.mixed_spacing}[fault]
    widest = float(steps.max())
    if policy == "refuse" or widest > rule.max_gap_mm:
        found = f"{steps.min():.6g} to {widest:.6g} mm apart, at most {100 * deviation / mean:.3g} % off their places"
        if policy != "refuse":
            found += f", resampling spans at most {rule.max_gap_mm:g} mm"
        raise ImageRefusedError(fault, f"slices are {found}")
    return count + 1, extent / count, (f"resampled_{fault.removeprefix('mixed_')}",)


def _name_fault(steps: NDArray[np.float64], rule: StackRule) -> tuple[str, int]:
    """Return the name of an irregularity and the number of regular steps that would replace these."""
    single = float(np.median(steps[steps < 1.5 * steps.min()]))
    counts = np.rint(steps / single)
    missing = int(counts.sum()) - len(steps)
    fits = bool((np.abs(steps - counts * single) <= rule.tolerance * single * counts + 1e-9).all())
    if fits and 0 < missing <= max(1, len(steps) // 4):
        return "gap", int(counts.sum())
    middle = float(np.median(steps))
    if np.abs(steps - middle).max() <= _STRAY * middle:
        return "jitter", len(steps)
    return "mixed_spacing", max(1, round(float(steps.sum()) / middle))
