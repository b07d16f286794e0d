"""Pieces of a scan: slices by their places along a normal, and how two pieces lie to one another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medcls.config import StackRule
from medcls.errors import ImageRefusedError
from medcls.imaging.instance import Instance
from medcls.imaging.volume.geometry import SAME_MM, StackGeometry, compute_axes, find_levels, fit_stack

Part: TypeAlias = tuple[Instance, ...]

NEAR = 3
"""Parts are no farther from one another than so many slice distances; farther away is another region."""


def fit_slices(instances: Sequence[Instance], rule: StackRule) -> StackGeometry:
    """Return the geometry of the single-frame instances of one stack; indices count them as they are given.

    Raises:
        ImageRefusedError: as of fit_stack.
    """
    rows, columns = np.median(np.array([each.pixel_spacing_mm for each in instances], np.float64), axis=0).tolist()
    orientation = compute_orientation(instances)
    return fit_stack(orientation, _positions(instances), pixel_spacing_mm=(rows, columns), rule=rule)


def compute_orientation(instances: Sequence[Instance]) -> list[float]:
    """Return the median direction cosines; unlike the mean they are the same to the bit in any order."""
    cosines: list[float] = np.median(np.array([each.orientation for each in instances], np.float64), axis=0).tolist()
    return cosines


def is_parallel(one: Instance, other: Instance, *, tolerance: float) -> bool:
    """Return whether direction cosines, and pixel spacing as a fraction, differ by no more than a tolerance."""
    turned = np.abs(np.subtract(one.orientation, other.orientation)).max()
    scaled = np.abs(np.divide(one.pixel_spacing_mm, other.pixel_spacing_mm) - 1).max()
    return bool(max(turned, scaled) <= tolerance)


class Piece:
    """Parts that are taken together, by their places along a normal.

    Attributes:
        parts: One or several.
        axes: (3, 3), float64, unit vectors of slices, rows and columns.
        instances: The slices of all parts.
        levels: (n,), float64, distinct places, mm, ascending.
        step: Median distance of its slices, mm; 0 for a single slice.
        types: ImageType of its slices.
        frames: FrameOfReferenceUID of its slices.
    """

    def __init__(self, parts: tuple[Part, ...], axes: NDArray[np.float64], rule: StackRule) -> None:
        self.parts, self.axes, self.rule = parts, axes, rule
        self.instances: Part = tuple(each for part in parts for each in part)
        along = _positions(self.instances) @ axes[0]
        self.levels = np.array([along[list(level)].min() for level in find_levels(along, rule)])
        self.step = 0.0
        if len(self.levels) > 1:
            self.step = float(np.median(np.diff(self.levels)))
        self.types = frozenset(each.image_type for each in self.instances)
        self.frames = frozenset(each.frame_uid for each in self.instances)

    def measure_gap(self, other: Piece) -> float:
        """Return the distance from the end of one to the beginning of the other, mm; 0 or less if they overlap."""
        return float(max(self.levels[0] - other.levels[-1], other.levels[0] - self.levels[-1]))

    def overlaps(self, other: Piece) -> bool:
        """Return whether two pieces overlap by more than the distance below which two slices are at one place."""
        return self.measure_gap(other) < -max(SAME_MM, self.rule.tolerance * max(self.step, other.step))

    def is_next(self, other: Piece) -> bool:
        """Return whether one piece begins a slice distance behind the other."""
        step = max(self.step, other.step)
        return abs(self.measure_gap(other) - step) <= 2 * self.rule.tolerance * step + 1e-9

    def is_near(self, other: Piece) -> bool:
        """Return whether one piece begins about where the other ends; a sparse stack accompanies a dense one."""
        small, large = sorted((self.step, other.step))
        if small <= self.rule.max_gap_mm < large:
            return self.is_next(other)
        return not self.overlaps(other) and self.measure_gap(other) <= NEAR * large

    def continues(self, small: Piece) -> bool:
        """Return whether a few slices lie in holes of this stack, or beyond its end where it would have more slices."""
        gap, tolerance = self.measure_gap(small), self.rule.tolerance
        if gap <= 0:
            filled = np.sort(np.concatenate([self.levels, small.levels]))
            return bool(np.diff(filled).min() >= (1 - 2 * tolerance) * np.diff(self.levels).min())
        for step in (self.step, small.step):
            if 0 < step <= max(self.step, self.rule.max_gap_mm):
                count = round(gap / step)
                if 0 < count <= NEAR and abs(gap - count * step) <= 2 * tolerance * count * step + 1e-9:
                    return True
        return False

    def is_meshed(self, other: Piece) -> bool:
        """Return whether two pieces are every second slice of a stack, and not two volumes by their attributes."""
        step, slack, offset = self.step, 2 * self.rule.tolerance * self.step, 0.0
        if step:
            offset = float(other.levels[0] - self.levels[0]) % step
        if abs(other.step - step) > slack or abs(offset - step / 2) > slack or self.measure_gap(other) >= 0:
            return False
        whole, _ = put_together([self, other])
        return is_almost_regular(whole.instances, self.rule) and not are_interleaved([self, other], is_regular)


def measure_piece(instances: Part, rule: StackRule) -> Piece | None:
    """Return single-frame slices by their places along their own normal; None if they have none."""
    if instances[0].frames > 1:
        return None
    try:
        axes = compute_axes(compute_orientation(instances))
    except ImageRefusedError:
        return None
    return Piece((instances,), axes, rule)


def put_together(pieces: Sequence[Piece]) -> tuple[Piece, int]:
    """Return the pieces as one, and how many of their places are taken by several of them."""
    whole = Piece(tuple(part for piece in pieces for part in piece.parts), pieces[0].axes, pieces[0].rule)
    return whole, sum(len(piece.levels) for piece in pieces) - len(whole.levels)


def find_pairs(pieces: Sequence[Piece]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of pieces that overlap or may be near one another, the one that begins lower first."""
    order = sorted(range(len(pieces)), key=lambda index: float(pieces[index].levels[0]))
    lows = [float(pieces[index].levels[0]) for index in order]
    reach = (NEAR + 1) * max((piece.step for piece in pieces), default=0.0)
    for place, a in enumerate(order):
        end = bisect_right(lows, float(pieces[a].levels[-1]) + reach)
        yield from ((a, b) for b in order[place + 1 : end])


def are_interleaved(pieces: Sequence[Piece], is_stack: Callable[[Part, StackRule], bool]) -> bool:
    """Return whether all pieces of more than one slice are stacks, and two of them overlap that could be two volumes.

    These have no ImageType or no frame of reference in common: positions in two frames of reference cannot be compared,
    and a scanner may place magnitude and phase half a step apart. Pieces that are not regular without one another are
    parts of one scan.
    """
    stacks = [piece for piece in pieces if len(piece.levels) > 1]
    for one, other in ((stacks[a], stacks[b]) for a, b in find_pairs(stacks)):
        is_told = one.types.isdisjoint(other.types) or one.frames.isdisjoint(other.frames)
        if is_told and one.overlaps(other):
            return all(len(each.levels) == 2 or is_stack(each.instances, each.rule) for each in stacks)
    return False


def is_regular(instances: Part, rule: StackRule) -> bool:
    """Return whether slices lie at regular distances without a repair; a tilt is no irregularity."""
    strict = replace(rule, gap="refuse", jitter="refuse", mixed_spacing="refuse", tilt="shear", min_slices=2)
    try:
        return len(fit_slices(instances, strict).levels) > 2
    except ImageRefusedError:
        return False


def is_almost_regular(instances: Part, rule: StackRule) -> bool:
    """Return whether slices lie at regular distances of which a few, and no three together, are missing."""
    filled = replace(
        rule, gap="resample", jitter="refuse", mixed_spacing="refuse", tilt="shear", min_slices=2, max_gap_mm=1e6
    )
    try:
        steps = np.diff(fit_slices(instances, filled).distances_mm)
    except ImageRefusedError:
        return False
    return len(steps) > 1 and bool(steps.max() <= (NEAR + rule.tolerance) * steps.min())


def is_in_line(instances: Sequence[Instance], rule: StackRule) -> bool:
    """Return whether slices at any distances lie on one line, straight or tilted."""
    repairs = replace(rule, gap="resample", jitter="resample", mixed_spacing="resample", tilt="shear", max_gap_mm=1e6)
    try:
        fit_slices(instances, repairs)
    except ImageRefusedError as error:
        return error.reason != "lateral_offset"
    return True


def _positions(instances: Sequence[Instance]) -> NDArray[np.float64]:
    return np.array([each.position for each in instances], np.float64)
