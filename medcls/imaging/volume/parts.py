"""One scan that its headers cut into parts: stacks that continue one another are one volume, or one refusal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.scan import KEY_WORDS
from medcls.imaging.instance import Instance
from medcls.imaging.volume.geometry import StackGeometry, StackRule, compute_axes, find_levels, fit_stack

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


@dataclass(frozen=True, slots=True)
class _Piece:
    """Parts that are taken together, with their distinct places along a normal, mm, ascending."""

    parts: tuple[Part, ...]
    levels: NDArray[np.float64]

    @property
    def instances(self) -> Part:
        return tuple(each for part in self.parts for each in part)

    @property
    def step(self) -> float:
        """Median distance of its slices, mm; 0 for a single slice."""
        return float(np.median(np.diff(self.levels))) if len(self.levels) > 1 else 0.0


def join_parts(groups: Sequence[Part], rule: StackRule) -> list[Scan]:
    """Return the scans of one series: stacks that continue one another together, all others as they are.

    Stacks that differ in ImageType, FrameOfReferenceUID or in the rounding of their cosines are one scan if no two
    have a slice at one place and all slices together lie at regular distances; volumes of different ImageType that
    overlap stay apart even then. If they continue one another, but not regularly, the rule may repair the whole; else
    the whole is refused. Stacks that overlap (echoes, phases, passes of
    a scanner) stay apart. Stacks that continue one another regularly and differ in anything else are refused: whether
    they are one volume cannot be known, and half a scan is never taken for a whole.

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
    """What the parts of one scan have in common to the letter."""
    same = (instance.rows, instance.columns, instance.stack_key, instance.modality, instance.photometric)
    return (instance.frames, *same, instance.sop_class_uid)


def _join(parts: list[Part], rule: StackRule) -> list[Scan]:
    """Return the scans of parts that differ in nothing but ImageType, frame of reference and rounding."""
    try:
        axes = compute_axes(_median([each.orientation for part in parts for each in part]))
    except ImageRefusedError:
        return [Scan(part) for part in parts]
    pieces = [_build((part,), axes, rule) for part in parts]
    keys: tuple[Callable[[Instance], str], ...] = (lambda i: i.image_type, lambda i: i.frame_uid, lambda i: "")
    for key in keys:  # two phases of an image that is cut by another attribute are told apart by their ImageType
        alike: dict[tuple[str, ...], list[_Piece]] = {}
        for piece in pieces:
            alike.setdefault(tuple(sorted({key(each) for each in piece.instances})), []).append(piece)
        pieces = [joined for each in alike.values() for joined in _merge(each, axes, rule)]
    return list(_settle(pieces, axes, rule))


def _build(parts: tuple[Part, ...], axes: NDArray[np.float64], rule: StackRule) -> _Piece:
    along = _positions([each for part in parts for each in part]) @ axes[0]
    return _Piece(parts, np.array([along[list(level)].min() for level in find_levels(along, rule)]))


def _combine(pieces: Sequence[_Piece], axes: NDArray[np.float64], rule: StackRule) -> _Piece | None:
    """Return the pieces as one; None if two of them have a slice at one place."""
    whole = _build(tuple(part for piece in pieces for part in piece.parts), axes, rule)
    return whole if len(whole.levels) == sum(len(piece.levels) for piece in pieces) else None


def _merge(pieces: list[_Piece], axes: NDArray[np.float64], rule: StackRule) -> list[_Piece]:
    """Return the pieces with those joined that make a regular stack: all of them, or rows of them."""
    if len(pieces) == 1:
        return pieces
    whole = _combine(pieces, axes, rule)
    if whole is not None and _is_regular(whole.instances, rule) and not _are_interleaved(pieces, rule):
        return [whole]
    while chains := list(_find_chains(pieces, rule)):
        used = {index for chain in chains for index in chain}
        joined = [_build(tuple(p for i in chain for p in pieces[i].parts), axes, rule) for chain in chains]
        pieces = [piece for index, piece in enumerate(pieces) if index not in used] + joined
    return pieces


def _are_interleaved(pieces: list[_Piece], rule: StackRule) -> bool:
    """Return whether two volumes of different ImageType overlap: magnitude and phase half a step apart, projections."""
    volumes = [p for p in pieces if len(p.levels) >= rule.min_slices and _is_regular(p.instances, rule)]
    return any(
        _measure_gap(one, other) < 0
        and {each.image_type for each in one.instances}.isdisjoint({each.image_type for each in other.instances})
        for one, other in combinations(volumes, 2)
    )


def _find_chains(pieces: list[_Piece], rule: StackRule) -> Iterator[list[int]]:
    """Yield regular rows of pieces of which each is the only continuation of the one before, and of no other."""
    links = _find_links(pieces, rule)
    firsts, seconds = Counter(a for a, _ in links), Counter(b for _, b in links)
    following = {a: b for a, b in links if firsts[a] == seconds[b] == 1}
    for start in sorted(set(following) - set(following.values())):
        chain = [start]
        while chain[-1] in following:
            chain.append(following[chain[-1]])
        if _is_regular([each for index in chain for each in pieces[index].instances], rule):
            yield chain


def _find_links(pieces: list[_Piece], rule: StackRule) -> list[tuple[int, int]]:
    """Return the pairs of pieces of which the second begins where the next slice of the first would be."""
    found = []
    for a, b in combinations(range(len(pieces)), 2):
        one, other = pieces[a], pieces[b]
        step, gap = max(one.step, other.step), _measure_gap(one, other)
        slack = 2 * rule.tolerance * step + 1e-9
        if step and abs(gap - step) <= slack and _is_regular((*one.instances, *other.instances), rule):
            found.append((a, b) if one.levels[0] < other.levels[0] else (b, a))
    return found


def _settle(pieces: list[_Piece], axes: NDArray[np.float64], rule: StackRule) -> Iterator[Scan]:
    """Yield the scans of pieces that make no regular stack together."""
    large = [piece for piece in pieces if len(piece.levels) >= rule.min_slices]
    small = [piece for piece in pieces if len(piece.levels) < rule.min_slices]
    if not large:
        whole = _build(tuple(part for piece in small for part in piece.parts), axes, rule)
        if len(small) > 1 and len(whole.levels) >= rule.min_slices:
            yield _try(small, axes, rule)
        else:
            yield from (_close(piece) for piece in small)
        return
    for piece in list(small):  # such a slice was rounded otherwise, and another one is missing elsewhere
        for at, each in enumerate(large):
            filled = _combine((each, piece), axes, rule)
            if filled is not None and _measure_gap(each, piece) < 0 and _is_as_dense(filled, each, rule):
                large[at] = filled
                small = [other for other in small if other is not piece]
                break
    small, runs = _gather(small, large, axes, rule)
    for component in _find_neighbours([*large, *runs]):
        scan = _try(component, axes, rule)
        # Beside the line of the others is another region: discs of a spine, stations of a leg.
        if scan.fault is not None and not _is_in_line(scan.instances, rule):
            yield from (_close(piece) for piece in component)
        else:
            yield scan
    yield from (_close(piece) for piece in small)


def _is_as_dense(whole: _Piece, part: _Piece, rule: StackRule) -> bool:
    """Return whether slices that came to a part fill its holes, and lie nowhere between its slices."""
    return bool(np.diff(whole.levels).min() >= (1 - 2 * rule.tolerance) * np.diff(part.levels).min())


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
    longest = max(piece.step for piece in large)
    stay, runs = list(small), []
    for pieces in beside.values():
        whole = _combine(pieces, axes, rule)
        if whole is not None and len(whole.levels) >= rule.min_slices and whole.step <= _NEAR * longest:
            runs.append(whole)
            stay = [piece for piece in stay if all(piece is not each for each in pieces)]
    return stay, runs


def _try(pieces: Sequence[_Piece], axes: NDArray[np.float64], rule: StackRule) -> Scan:
    """Return pieces as one scan, whose fault is that of its geometry under the rule."""
    if len(pieces) == 1:
        return _close(pieces[0])
    parts = tuple(part for piece in pieces for part in piece.parts)
    instances = tuple(each for part in parts for each in part)
    names = name_differences([part[0] for part in parts])
    fault, joins = None, ""
    if _combine(pieces, axes, rule) is None or any(_measure_gap(*pair) <= 0 for pair in combinations(pieces, 2)):
        fault = ImageRefusedError("several_parts", "some have slices at one place, so which continues which is open")
    else:
        try:
            fit_slices(instances, rule)
        except ImageRefusedError as error:
            fault = error
            if error.reason in ("gap", "jitter", "mixed_spacing"):
                joins = f"stack.{error.reason}=resample joins them, "
    if fault is not None:
        said = f"{len(parts)} parts of a series, told apart by {_list(names)}, are not one volume: {fault.detail}"
        fault = ImageRefusedError(fault.reason, f"{said}: {joins}stack.parts=apart takes each as a volume")
    return Scan(instances, names, fault)


def _close(piece: _Piece) -> Scan:
    return Scan(piece.instances, name_differences([part[0] for part in piece.parts]))


def _find_neighbours(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Return the pieces sorted into those that lie near one another and do not overlap."""
    near = [
        (a, b)
        for a, b in combinations(range(len(pieces)), 2)
        if 0 < _measure_gap(pieces[a], pieces[b]) <= _NEAR * max(pieces[a].step, pieces[b].step)
    ]

    def is_alike(a: int, b: int) -> bool:
        return {each.image_type for each in pieces[a].instances} == {each.image_type for each in pieces[b].instances}

    settled = {index for pair in near if is_alike(*pair) for index in pair}
    component = list(range(len(pieces)))
    for a, b in near:
        if is_alike(a, b) or settled.isdisjoint((a, b)):
            old, new = component[b], component[a]
            component = [new if each == old else each for each in component]
    return [[pieces[i] for i, at in enumerate(component) if at == name] for name in dict.fromkeys(component)]


def _refuse_cuts(scans: list[Scan], rule: StackRule) -> list[Scan]:
    """Return the scans, those refused that continue one another and differ in size, echo, voltage ….

    Where these differ the distance of slices may differ, too (the base of a head and the rest), or a slice be missing.
    """
    places = {i: piece for i, scan in enumerate(scans) if (piece := _measure(scan, rule)) is not None}
    found = list(scans)
    for a, b in combinations(places, 2):
        one, other = places[a], places[b]
        first, second = scans[a].instances[0], scans[b].instances[0]
        # Both are measured along their own normal, which is the same up to rounding.
        step, gap = max(one.step, other.step), _measure_gap(one, other)
        turned = np.abs(np.subtract(first.orientation, second.orientation)).max()
        if turned > SAME_COSINES or not 0 < gap <= _NEAR * step:
            continue
        whole = (*scans[a].instances, *scans[b].instances)
        is_judged = _joint_key(first) == _joint_key(second)  # by _settle, unless they are regular together
        if _is_regular(whole, rule) or (not is_judged and _is_in_line(whole, rule)):
            names = _list(name_differences([first, second]))
            counts = f"{len(one.levels)} and {len(other.levels)} slices"
            fault = ImageRefusedError(
                "several_parts",
                f"stacks of {counts} continue one another and differ in {names}: stack.parts=apart takes each as a "
                "volume",
            )
            found[a], found[b] = replace(scans[a], fault=fault), replace(scans[b], fault=fault)
    return found


def _measure(scan: Scan, rule: StackRule) -> _Piece | None:
    """Return a scan's places along its normal if it is a volume by itself."""
    first = scan.instances[0]
    if scan.fault is not None or first.frames > 1 or len(scan.instances) < rule.min_slices:
        return None
    try:
        axes = compute_axes(_median([each.orientation for each in scan.instances]))
    except ImageRefusedError:
        return None
    piece = _build((scan.instances,), axes, rule)
    return piece if len(piece.levels) >= rule.min_slices else None


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
