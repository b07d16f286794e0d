"""Join stacks that one scan was split into: parts that continue one another become one volume, or one refusal."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.scan import KEY_WORDS
from medcls.imaging.instance import Instance
from medcls.imaging.volume.geometry import SAME_MM, StackGeometry, StackRule, compute_axes, find_levels, fit_stack

Part: TypeAlias = tuple[Instance, ...]

ROUNDING = 1e-4
"""Largest difference of direction cosines, and of pixel spacing as a fraction, inside one stack."""

SAME_COSINES = 1e-3
"""Largest difference of the direction cosines of two parts: they are rounded, by 0.0002 in real files."""

_NEAR = 3
"""Parts are no farther from one another than so many slice distances; farther away is another region."""

_NAMES = {
    "image_type": "ImageType",
    "frame_uid": "FrameOfReferenceUID",
    "orientation": "ImageOrientationPatient",
    "pixel_spacing_mm": "PixelSpacing",
    "rows": "Rows",
    "columns": "Columns",
    "modality": "Modality",
    "photometric": "PhotometricInterpretation",
    "sop_class_uid": "SOPClassUID",
}
"""The fields of an Instance that tell stacks of a series apart, besides stack_key, by the attribute they come from."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The slices of one volume, or of what cannot become one.

    Attributes:
        instances: All slices, any order.
        parted_by: Attributes in which its parts differ; () for a stack that nothing cuts.
        fault: Why its parts are not one volume; None if only the geometry of the slices decides.
    """

    instances: Part
    parted_by: tuple[str, ...] = ()
    fault: ImageRefusedError | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Parts that are taken together, by their places along a normal.

    Attributes:
        parts: One or several.
        levels: (n,), float64, distinct places, mm, ascending.
        step: Median distance of its slices, mm; 0 for a single slice.
        types: ImageType of its slices.
        frames: FrameOfReferenceUID of its slices.
    """

    parts: tuple[Part, ...]
    levels: NDArray[np.float64]
    step: float
    types: frozenset[str]
    frames: frozenset[str]

    @property
    def instances(self) -> Part:
        return tuple(each for part in self.parts for each in part)


def join_parts(groups: Sequence[Part], rule: StackRule) -> list[Scan]:
    """Return the scans of one series: stacks that continue one another together, all others as they are.

    Stacks that differ in ImageType, FrameOfReferenceUID or in the rounding of their cosines are one scan if all slices
    together lie at regular distances, each at a place of its own. Volumes of another ImageType or frame of reference
    that interleave stay apart even then. Parts that continue one another, but not regularly, are one scan too: the
    rule repairs it, or the whole is refused. Stacks that overlap (echoes, phases, passes of a scanner) stay apart.
    Stacks that continue one another and differ in anything else are refused: whether they are one volume cannot be
    known, and half a scan is never taken for a whole.

    Args:
        groups: Single-frame slices of one series by all that could tell volumes apart; an enhanced file is alone.
        rule: What is repaired, and whether parts are joined at all.

    Source: own choice, docs/decisions/0056-one-scan-one-volume.md.
    """
    if rule.parts == "apart":
        return [Scan(group) for group in groups]
    scans: list[Scan] = []
    for parts in _collect(groups):
        scans += _join(parts, rule) if len(parts) > 1 else [Scan(parts[0])]
    return _refuse_cuts(scans, rule) if len(scans) > 1 else scans


def fit_slices(instances: Sequence[Instance], rule: StackRule) -> StackGeometry:
    """Return the geometry of the single-frame instances of one stack; indices count them as they are given.

    Raises:
        ImageRefusedError: as of fit_stack.
    """
    spacing = _median([each.pixel_spacing_mm for each in instances])
    return fit_stack(
        _median([each.orientation for each in instances]),
        _positions(instances),
        pixel_spacing_mm=(spacing[0], spacing[1]),
        rule=rule,
    )


def is_parallel(one: Instance, other: Instance, *, tolerance: float) -> bool:
    """Return whether direction cosines, and pixel spacing as a fraction, differ by no more than a tolerance."""
    turned = np.abs(np.subtract(one.orientation, other.orientation)).max()
    scaled = np.abs(np.divide(one.pixel_spacing_mm, other.pixel_spacing_mm) - 1).max()
    return bool(max(turned, scaled) <= tolerance)


def _collect(groups: Sequence[Part]) -> Iterator[list[Part]]:
    """Yield the groups that could be parts of one scan together."""
    found: dict[tuple[Any, ...], list[list[Part]]] = {}
    for group in groups:
        first = group[0]
        candidates = found.setdefault(_joint_key(first), [])
        for parts in candidates if first.frames == 1 else []:
            if is_parallel(parts[0][0], first, tolerance=SAME_COSINES):
                parts.append(group)
                break
        else:
            candidates.append([group])
    for candidates in found.values():
        yield from candidates


def _joint_key(instance: Instance) -> tuple[Any, ...]:
    """Return what the parts of one scan have in common to the letter."""
    same = (instance.rows, instance.columns, instance.stack_key, instance.modality, instance.photometric)
    return (instance.frames, *same, instance.sop_class_uid)


def _join(parts: list[Part], rule: StackRule) -> list[Scan]:
    """Return the scans of parts that differ in nothing but ImageType, frame of reference and rounding."""
    try:
        axes = compute_axes(_median([each.orientation for part in parts for each in part]))
    except ImageRefusedError:
        return [Scan(part) for part in parts]
    pieces = [_build((part,), axes, rule) for part in parts]
    keys: tuple[Callable[[_Piece], frozenset[str]], ...] = (
        lambda p: p.types,
        lambda p: p.frames,
        lambda p: frozenset(),
    )
    for key in keys:  # two phases of an image that is cut by another attribute are told apart by their ImageType
        alike: dict[frozenset[str], list[_Piece]] = {}
        for piece in pieces:
            alike.setdefault(key(piece), []).append(piece)
        pieces = [joined for each in alike.values() for joined in _merge(each, axes, rule)]
    return list(_settle(pieces, axes, rule))


def _build(parts: tuple[Part, ...], axes: NDArray[np.float64], rule: StackRule) -> _Piece:
    slices = [each for part in parts for each in part]
    along = _positions(slices) @ axes[0]
    levels = np.array([along[list(level)].min() for level in find_levels(along, rule)])
    step = float(np.median(np.diff(levels))) if len(levels) > 1 else 0.0
    types, frames = frozenset(each.image_type for each in slices), frozenset(each.frame_uid for each in slices)
    return _Piece(parts, levels, step, types, frames)


def _put_together(pieces: Sequence[_Piece], axes: NDArray[np.float64], rule: StackRule) -> tuple[_Piece, int]:
    """Return the pieces as one, and how many of their places are taken by several of them."""
    whole = _build(tuple(part for piece in pieces for part in piece.parts), axes, rule)
    return whole, sum(len(piece.levels) for piece in pieces) - len(whole.levels)


def _merge(pieces: list[_Piece], axes: NDArray[np.float64], rule: StackRule) -> list[_Piece]:
    """Return the pieces as one if they make a regular stack, else as they are."""
    whole, doubled = _put_together(pieces, axes, rule)
    is_one = not doubled and _is_regular(whole.instances, rule) and not _are_interleaved(pieces, rule, _is_regular)
    return [whole] if is_one else pieces


def _find_pairs(pieces: Sequence[_Piece]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of pieces that overlap or may be near one another, the one that begins lower first."""
    order = sorted(range(len(pieces)), key=lambda index: float(pieces[index].levels[0]))
    lows = [float(pieces[index].levels[0]) for index in order]
    reach = (_NEAR + 1) * max((piece.step for piece in pieces), default=0.0)
    for place, a in enumerate(order):
        end = bisect_right(lows, float(pieces[a].levels[-1]) + reach)
        yield from ((a, b) for b in order[place + 1 : end])


def _are_interleaved(pieces: Sequence[_Piece], rule: StackRule, is_stack: Callable[..., bool]) -> bool:
    """Return whether all pieces of more than one slice are stacks, and two of them overlap that could be two volumes.

    Positions in two frames of reference cannot be compared, and a scanner may place magnitude and phase half a step
    apart. Pieces that are not regular without one another are parts of one scan.
    """
    stacks = [piece for piece in pieces if len(piece.levels) > 1]
    return any(_are_rivals(stacks[a], stacks[b], rule) for a, b in _find_pairs(stacks)) and all(
        len(each.levels) == 2 or is_stack(each.instances, rule) for each in stacks
    )


def _are_rivals(one: _Piece, other: _Piece, rule: StackRule) -> bool:
    """Return whether two pieces overlap that have no ImageType or no frame of reference in common."""
    is_told = one.types.isdisjoint(other.types) or one.frames.isdisjoint(other.frames)
    return is_told and _measure_gap(one, other) < -_touch(one, other, rule)


def _settle(pieces: list[_Piece], axes: NDArray[np.float64], rule: StackRule) -> Iterator[Scan]:
    """Yield the scans of pieces that make no regular stack together."""
    large = [piece for piece in pieces if len(piece.levels) >= rule.min_slices]
    small = [piece for piece in pieces if len(piece.levels) < rule.min_slices]
    whole, doubled = _put_together(pieces, axes, rule)
    if len(whole.levels) < rule.min_slices:
        yield from (_try([piece], axes, rule) for piece in pieces)
        return
    are_volumes = not small and _are_interleaved(large, rule, _is_regular)
    if not large or (not doubled and not are_volumes and _is_almost_regular(whole.instances, rule)):
        yield _try(pieces, axes, rule)
        return
    small, runs = _gather(small, large, axes, rule)
    small = _absorb(small, large, axes, rule)
    for component in _find_components([*large, *runs], axes, rule):
        scan = _try(component, axes, rule)
        # Beside the line of the others is another region: discs of a spine, stations of a leg.
        if scan.fault is not None and not _is_in_line(scan.instances, rule):
            yield from (_try([piece], axes, rule) for piece in component)
        else:
            yield scan
    yield from (_try([piece], axes, rule) for piece in small)


def _gather(
    small: list[_Piece], large: list[_Piece], axes: NDArray[np.float64], rule: StackRule
) -> tuple[list[_Piece], list[_Piece]]:
    """Return the small pieces that stay, and those that are together the missing end or middle of a scan, as one each.

    Each alone would pass for a reference beside the volume, and half of a scan would be skipped.
    """
    beside: dict[int, list[_Piece]] = {}
    for piece in small:
        if all(_measure_gap(piece, each) > 0 for each in large):
            beside.setdefault(sum(each.levels[-1] < piece.levels[0] for each in large), []).append(piece)
    widest = min(_NEAR * max(piece.step for piece in large), rule.max_gap_mm)
    stay, runs = list(small), []
    for pieces in beside.values():
        whole, doubled = _put_together(pieces, axes, rule)
        if not doubled and len(whole.levels) >= rule.min_slices and whole.step <= widest:
            runs.append(whole)
            stay = [piece for piece in stay if piece not in pieces]
    return stay, runs


def _absorb(small: list[_Piece], large: list[_Piece], axes: NDArray[np.float64], rule: StackRule) -> list[_Piece]:
    """Put each small piece into the large one that it fills or continues; return those that stay."""
    stay, count = small, -1
    while len(stay) != count:  # the next may continue what has just been put in
        small, stay, count = stay, [], len(stay)
        for piece in small:
            alike = sorted(
                range(len(large)),
                key=lambda at: large[at].types.isdisjoint(piece.types) + large[at].frames.isdisjoint(piece.frames),
            )
            for at in alike:
                whole = (*large[at].instances, *piece.instances)
                if _continues(large[at], piece, rule) and _is_in_line(whole, rule):
                    large[at], _ = _put_together([large[at], piece], axes, rule)
                    break
            else:
                stay.append(piece)
    return stay


def _continues(large: _Piece, small: _Piece, rule: StackRule) -> bool:
    """Return whether a few slices lie in holes of a stack, or beyond its end where further slices of it would be."""
    gap, step = _measure_gap(large, small), large.step
    if gap <= 0:
        filled = np.sort(np.concatenate([large.levels, small.levels]))
        return bool(np.diff(filled).min() >= (1 - 2 * rule.tolerance) * np.diff(large.levels).min())
    for each in (step, small.step):
        count = round(gap / each) if 0 < each <= max(step, rule.max_gap_mm) else 0
        if 0 < count <= _NEAR and abs(gap - count * each) <= 2 * rule.tolerance * count * each + 1e-9:
            return True
    return False


def _find_components(pieces: list[_Piece], axes: NDArray[np.float64], rule: StackRule) -> Iterator[list[_Piece]]:
    """Yield the pieces sorted into those that continue one another, or of which that is open."""
    near, meshed = [], []
    for a, b in _find_pairs(pieces):
        if _are_near(pieces[a], pieces[b], rule):
            near.append((a, b))
        elif _are_meshed(pieces[a], pieces[b], axes, rule):
            meshed.append((a, b))
    # Where several are near, those of one ImageType and those that begin where the next slice would be come first.
    alike = [(a, b) for a, b in near if pieces[a].types == pieces[b].types or _is_next(pieces[a], pieces[b], rule)]
    settled = {index for pair in alike for index in pair}
    names = list(range(len(pieces)))
    for a, b in [*meshed, *alike, *(pair for pair in near if settled.isdisjoint(pair))]:
        old, new = names[b], names[a]
        names = [new if each == old else each for each in names]
    for name in dict.fromkeys(names):
        yield [piece for piece, each in zip(pieces, names, strict=True) if each == name]


def _are_near(one: _Piece, other: _Piece, rule: StackRule) -> bool:
    """Return whether one piece begins about where the other ends; a sparse stack accompanies a dense one."""
    gap, steps = _measure_gap(one, other), sorted((one.step, other.step))
    if steps[0] <= rule.max_gap_mm < steps[1]:
        return _is_next(one, other, rule)
    return -_touch(one, other, rule) <= gap <= _NEAR * steps[1]


def _is_next(one: _Piece, other: _Piece, rule: StackRule) -> bool:
    """Return whether one piece begins a slice distance behind the other."""
    step = max(one.step, other.step)
    return abs(_measure_gap(one, other) - step) <= 2 * rule.tolerance * step + 1e-9


def _are_meshed(one: _Piece, other: _Piece, axes: NDArray[np.float64], rule: StackRule) -> bool:
    """Return whether two pieces are every second slice of a stack, and not two volumes by their attributes."""
    step, slack = one.step, 2 * rule.tolerance * one.step
    offset = float(other.levels[0] - one.levels[0]) % step if step else 0.0
    if abs(other.step - step) > slack or abs(offset - step / 2) > slack or _measure_gap(one, other) >= 0:
        return False
    whole, _ = _put_together([one, other], axes, rule)
    return _is_almost_regular(whole.instances, rule) and not _are_interleaved([one, other], rule, _is_regular)


def _try(pieces: Sequence[_Piece], axes: NDArray[np.float64], rule: StackRule) -> Scan:
    """Return pieces as one scan, whose fault is that of its geometry under the rule."""
    if len(pieces) == len(pieces[0].parts) == 1:
        return Scan(pieces[0].instances)
    whole, doubled = _put_together(pieces, axes, rule)
    names = name_differences([part[0] for part in whole.parts])
    remedies: list[str] = []
    try:
        if _are_interleaved(pieces, rule, _is_almost_regular):
            raise ImageRefusedError("several_parts", "some overlap, so their order is ambiguous")
        if 4 * doubled > len(whole.levels) and rule.duplicate == "refuse":
            remedies.append("stack.duplicate=drop keeps the first slice of each place")
            raise ImageRefusedError("several_parts", f"{doubled} of {len(whole.levels)} positions are scanned twice")
        fit_slices(whole.instances, rule)
    except ImageRefusedError as error:
        if error.reason in ("gap", "jitter", "mixed_spacing"):
            widest = float(np.diff(whole.levels).max())
            limit = f" stack.max_gap_mm={np.ceil(widest):.0f}" if widest > rule.max_gap_mm else ""
            remedies.append(f"stack.{error.reason}=resample{limit} joins them")
        is_volume = max(map(len, whole.parts)) >= rule.min_slices
        remedies.append("stack.parts=apart takes each as a volume" if is_volume else f"or correct {_list(names)}")
        said = f"{len(whole.parts)} parts of a series, told apart by {_list(names)}, are not one volume: {error.detail}"
        return Scan(whole.instances, names, ImageRefusedError(error.reason, f"{said}: {', '.join(remedies)}"))
    return Scan(whole.instances, names)


def _refuse_cuts(scans: list[Scan], rule: StackRule) -> list[Scan]:
    """Return the scans, those refused that continue one another and differ in size, echo, voltage ….

    Where these differ the distance of slices may differ, too (the base of a head and the rest), or a slice be missing.
    """
    pieces = [piece for scan in scans if (piece := _measure(scan.instances, rule)) is not None]
    faults: dict[int, ImageRefusedError] = {}
    for a, b in _find_pairs(pieces):
        if _are_cut(pieces[a], pieces[b], rule):
            one, other = pieces[a], pieces[b]
            names = _list(name_differences([one.parts[0][0], other.parts[0][0]]))
            fault = ImageRefusedError(
                "several_parts",
                f"stacks of {len(one.levels)} and {len(other.levels)} slices continue one another and differ in "
                f"{names}: stack.parts=apart takes each by itself",
            )
            faults |= {id(one.parts[0]): fault, id(other.parts[0]): fault}
    return [replace(scan, fault=scan.fault or faults.get(id(scan.instances))) for scan in scans]


def _are_cut(one: _Piece, other: _Piece, rule: StackRule) -> bool:
    """Return whether two scans could be parts of one, by their corners or, in another size, by their centres."""
    first, second = one.instances[0], other.instances[0]
    # Both are measured along their own normal, which is the same up to rounding.
    if np.abs(np.subtract(first.orientation, second.orientation)).max() > SAME_COSINES:
        return False
    small, large = sorted((one, other), key=lambda each: len(each.levels))
    is_judged = _joint_key(first) == _joint_key(second)  # by _settle, unless they are regular together
    whole = (*one.instances, *other.instances)
    ways = [whole] if is_judged else [whole, [_centre(each) for each in whole]]
    if len(small.levels) < rule.min_slices:
        is_part = not is_judged and len(large.levels) >= rule.min_slices and _continues(large, small, rule)
        return is_part and any(_is_in_line(each, rule) for each in ways)
    if not _are_near(one, other, rule):
        return False
    return any(_is_regular(each, rule) or (not is_judged and _is_in_line(each, rule)) for each in ways)


def _measure(instances: Part, rule: StackRule) -> _Piece | None:
    """Return the places of single-frame slices along their own normal; None if they have none."""
    if instances[0].frames > 1:
        return None
    try:
        axes = compute_axes(_median([each.orientation for each in instances]))
    except ImageRefusedError:
        return None
    return _build((instances,), axes, rule)


def measure_step(instances: Part, rule: StackRule) -> float:
    """Return the median distance of the slices of a stack, mm; 0 if it is not known before its file is read."""
    piece = _measure(instances, rule)
    return piece.step if piece is not None else 0.0


def _centre(instance: Instance) -> Instance:
    """Return a slice whose position is its middle: images of another size are often reconstructed around one axis."""
    along, down = np.reshape(instance.orientation, (2, 3))
    height, width = np.multiply(instance.pixel_spacing_mm, (instance.rows - 1, instance.columns - 1)) / 2
    return replace(instance, position=tuple((instance.position + width * along + height * down).tolist()))


def _touch(one: _Piece, other: _Piece, rule: StackRule) -> float:
    """Return the distance below which two slices are at one place, mm."""
    return max(SAME_MM, rule.tolerance * max(one.step, other.step))


def _measure_gap(one: _Piece, other: _Piece) -> float:
    """Return the distance from the end of one to the beginning of the other, mm; 0 or less if they overlap."""
    return float(max(one.levels[0] - other.levels[-1], other.levels[0] - one.levels[-1]))


def _is_regular(instances: Sequence[Instance], rule: StackRule) -> bool:
    """Return whether slices lie at regular distances without a repair; a tilt is no irregularity."""
    strict = replace(rule, gap="refuse", jitter="refuse", mixed_spacing="refuse", tilt="shear", min_slices=2)
    try:
        geometry = fit_slices(instances, strict)
    except ImageRefusedError:
        return False
    return len(geometry.levels) > 2


def _is_almost_regular(instances: Sequence[Instance], rule: StackRule) -> bool:
    """Return whether slices lie at regular distances of which a few, and no three together, are missing."""
    filled = replace(rule, gap="resample", jitter="refuse", mixed_spacing="refuse", tilt="shear", min_slices=2)
    try:
        steps = np.diff(fit_slices(instances, replace(filled, max_gap_mm=1e6)).distances_mm)
    except ImageRefusedError:
        return False
    return len(steps) > 1 and bool(steps.max() <= (_NEAR + rule.tolerance) * steps.min())


def _is_in_line(instances: Sequence[Instance], rule: StackRule) -> bool:
    """Return whether slices at any distances lie on one line, straight or tilted."""
    repairs = replace(rule, gap="resample", jitter="resample", mixed_spacing="resample", tilt="shear", max_gap_mm=1e6)
    try:
        fit_slices(instances, repairs)
    except ImageRefusedError as error:
        return error.reason != "lateral_offset"
    return True


def name_differences(firsts: Sequence[Instance]) -> tuple[str, ...]:
    """Return the attributes in which instances differ, by their keywords."""
    named = [word for name, word in _NAMES.items() if _differ([getattr(each, name) for each in firsts])]
    keys = [dict(pair.split("=", 1) for pair in each.stack_key.split(";") if "=" in pair) for each in firsts]
    short = sorted({name for key in keys for name in key if len({each.get(name) for each in keys}) > 1})
    return (*named, *(KEY_WORDS.get(name, name) for name in short))


def _differ(values: Sequence[Any]) -> bool:
    """Return whether values differ, numbers by more than rounding."""
    if isinstance(values[0], tuple):
        return bool(np.ptp(np.array(values, np.float64), axis=0).max() > ROUNDING)
    return len(set(values)) > 1


def _list(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "nothing that is known"


def _positions(instances: Sequence[Instance]) -> NDArray[np.float64]:
    return np.array([each.position for each in instances], np.float64)


def _median(rows: Sequence[tuple[float, ...]]) -> list[float]:
    """Value by value; unlike the mean it is the same to the bit in any order."""
    medians: list[float] = np.median(np.array(rows, np.float64), axis=0).tolist()
    return medians
