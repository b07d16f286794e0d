"""Join stacks that one scan was split into: parts that continue one another become one volume, or one refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medcls.config import StackRule
from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.scan import KEY_WORDS
from medcls.imaging.instance import Instance
from medcls.imaging.volume.geometry import compute_axes
from medcls.imaging.volume.pieces import (
    NEAR,
    Part,
    Piece,
    are_interleaved,
    compute_orientation,
    find_pairs,
    fit_slices,
    is_almost_regular,
    is_in_line,
    is_parallel,
    is_regular,
    measure_piece,
    put_together,
)

ROUNDING = 1e-4
"""Largest difference of direction cosines, and of pixel spacing as a fraction, inside one stack."""

SAME_COSINES = 1e-3
"""Largest difference of the direction cosines of two parts: they are rounded, by 0.0002 in real files."""

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
    candidates: dict[tuple[str | int, ...], list[list[Part]]] = {}
    for group in groups:
        first = group[0]
        found = candidates.setdefault(_joint_key(first), [])
        for parts in found:
            if first.frames == 1 and is_parallel(parts[0][0], first, tolerance=SAME_COSINES):
                parts.append(group)
                break
        else:
            found.append([group])
    scans: list[Scan] = []
    for found in candidates.values():
        for parts in found:
            scans += _join(parts, rule)
    if len(scans) > 1:
        return _refuse_cuts(scans, rule)
    return scans


def _joint_key(instance: Instance) -> tuple[str | int, ...]:
    """Return what the parts of one scan have in common to the letter."""
    same = (instance.rows, instance.columns, instance.stack_key, instance.modality, instance.photometric)
    return (instance.frames, *same, instance.sop_class_uid)


def _join(parts: list[Part], rule: StackRule) -> list[Scan]:
    """Return the scans of parts that differ in nothing but ImageType, frame of reference and rounding."""
    if len(parts) == 1:
        return [Scan(parts[0])]
    try:
        axes = compute_axes(compute_orientation([each for part in parts for each in part]))
    except ImageRefusedError:
        return [Scan(part) for part in parts]
    pieces = [Piece((part,), axes, rule) for part in parts]
    keys: tuple[Callable[[Piece], frozenset[str]], ...] = (lambda p: p.types, lambda p: p.frames, lambda p: frozenset())
    for key in keys:  # two phases of an image that is cut by another attribute are told apart by their ImageType
        alike: dict[frozenset[str], list[Piece]] = {}
        for piece in pieces:
            alike.setdefault(key(piece), []).append(piece)
        pieces = []
        for each in alike.values():
            whole, doubled = put_together(each)
            is_one = not doubled and is_regular(whole.instances, rule) and not are_interleaved(each, is_regular)
            pieces += [whole] if is_one else each
    return list(_settle(pieces, rule))


def _settle(pieces: list[Piece], rule: StackRule) -> Iterator[Scan]:
    """Yield the scans of pieces that make no regular stack together."""
    large = [piece for piece in pieces if len(piece.levels) >= rule.min_slices]
    small = [piece for piece in pieces if len(piece.levels) < rule.min_slices]
    whole, doubled = put_together(pieces)
    if len(whole.levels) < rule.min_slices:
        yield from (_try([piece], rule) for piece in pieces)
        return
    are_volumes = not small and are_interleaved(large, is_regular)
    if not large or (not doubled and not are_volumes and is_almost_regular(whole.instances, rule)):
        yield _try(pieces, rule)
        return
    small, runs = _gather(small, large, rule)
    small = _absorb(small, large, rule)
    for component in _find_components([*large, *runs]):
        scan = _try(component, rule)
        # Beside the line of the others is another region: discs of a spine, stations of a leg.
        if scan.fault is not None and not is_in_line(scan.instances, rule):
            yield from (_try([piece], rule) for piece in component)
        else:
            yield scan
    yield from (_try([piece], rule) for piece in small)


def _gather(small: list[Piece], large: list[Piece], rule: StackRule) -> tuple[list[Piece], list[Piece]]:
    """Return the small pieces that stay, and those that are together the missing end or middle of a scan, as one each.

    Each alone would pass for a reference beside the volume, and half of a scan would be skipped.
    """
    beside: dict[int, list[Piece]] = {}
    for piece in small:
        if all(piece.measure_gap(each) > 0 for each in large):
            beside.setdefault(sum(each.levels[-1] < piece.levels[0] for each in large), []).append(piece)
    widest = min(NEAR * max(piece.step for piece in large), rule.max_gap_mm)
    stay, runs = list(small), []
    for pieces in beside.values():
        whole, doubled = put_together(pieces)
        if not doubled and len(whole.levels) >= rule.min_slices and whole.step <= widest:
            runs.append(whole)
            stay = [piece for piece in stay if piece not in pieces]
    return stay, runs


def _absorb(small: list[Piece], large: list[Piece], rule: StackRule) -> list[Piece]:
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
                if large[at].continues(piece) and is_in_line(whole, rule):
                    large[at], _ = put_together([large[at], piece])
                    break
            else:
                stay.append(piece)
    return stay


def _find_components(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Yield the pieces sorted into those that continue one another, or of which that is open."""
    near, meshed = [], []
    for a, b in find_pairs(pieces):
        if pieces[a].is_near(pieces[b]):
            near.append((a, b))
        elif pieces[a].is_meshed(pieces[b]):
            meshed.append((a, b))
    # If several are near, those of one ImageType and those that begin where the next slice would be come first.
    alike = [(a, b) for a, b in near if pieces[a].types == pieces[b].types or pieces[a].is_next(pieces[b])]
    settled = {index for pair in alike for index in pair}
    names = list(range(len(pieces)))
    for a, b in [*meshed, *alike, *(pair for pair in near if settled.isdisjoint(pair))]:
        old, new = names[b], names[a]
        names = [new if each == old else each for each in names]
    for name in dict.fromkeys(names):
        yield [piece for piece, each in zip(pieces, names, strict=True) if each == name]


def _try(pieces: Sequence[Piece], rule: StackRule) -> Scan:
    """Return pieces as one scan, whose fault is that of its geometry under the rule."""
    if len(pieces) == len(pieces[0].parts) == 1:
        return Scan(pieces[0].instances)
    whole, doubled = put_together(pieces)
    names = name_differences([part[0] for part in whole.parts])
    remedies: list[str] = []
    try:
        if are_interleaved(pieces, is_almost_regular):
            raise ImageRefusedError("several_parts", "some overlap, so their order is ambiguous")
        if 4 * doubled > len(whole.levels) and rule.duplicate == "refuse":
            remedies.append("stack.duplicate=drop keeps the first slice of each place")
            raise ImageRefusedError("several_parts", f"{doubled} of {len(whole.levels)} positions are scanned twice")
        fit_slices(whole.instances, rule)
    except ImageRefusedError as error:
        if error.reason in ("gap", "jitter", "mixed_spacing"):
            widest, limit = float(np.diff(whole.levels).max()), ""
            if widest > rule.max_gap_mm:
                limit = f" stack.max_gap_mm={np.ceil(widest):.0f}"
            remedies.append(f"stack.{error.reason}=resample{limit} joins them")
        if max(map(len, whole.parts)) >= rule.min_slices:
            remedies.append("stack.parts=apart takes each as a volume")
        else:
            remedies.append(f"or correct {_list(names)}")
        said = f"{len(whole.parts)} parts of a series, told apart by {_list(names)}, are not one volume: {error.detail}"
        return Scan(whole.instances, names, ImageRefusedError(error.reason, f"{said}: {', '.join(remedies)}"))
    return Scan(whole.instances, names)


def _refuse_cuts(scans: list[Scan], rule: StackRule) -> list[Scan]:
    """Return the scans, those refused that continue one another and differ in size, echo, voltage ….

    Where these differ the distance of slices may differ, too (the base of a head and the rest), or a slice be missing.
    """
    pieces = [piece for scan in scans if (piece := measure_piece(scan.instances, rule)) is not None]
    faults: dict[int, ImageRefusedError] = {}
    for one, other in ((pieces[a], pieces[b]) for a, b in find_pairs(pieces)):
        if _are_cut(one, other, rule):
            names = _list(name_differences([one.parts[0][0], other.parts[0][0]]))
            fault = ImageRefusedError(
                "several_parts",
                f"stacks of {len(one.levels)} and {len(other.levels)} slices continue one another and differ in "
                f"{names}: stack.parts=apart takes each by itself",
            )
            faults |= {id(one.parts[0]): fault, id(other.parts[0]): fault}
    return [replace(scan, fault=scan.fault or faults.get(id(scan.instances))) for scan in scans]


def _are_cut(one: Piece, other: Piece, rule: StackRule) -> bool:
    """Return whether two scans could be parts of one, by their corners or, in another size, by their centres."""
    first, second = one.instances[0], other.instances[0]
    # Both are measured along their own normal, which is the same up to rounding.
    if np.abs(np.subtract(first.orientation, second.orientation)).max() > SAME_COSINES:
        return False
    small, large = sorted((one, other), key=lambda each: len(each.levels))
    is_judged = _joint_key(first) == _joint_key(second)  # by _settle, unless they are regular together
    whole: Part = (*one.instances, *other.instances)
    ways = [whole]
    if not is_judged:
        ways.append(tuple(_centre(each) for each in whole))
    if len(small.levels) < rule.min_slices:
        is_part = not is_judged and len(large.levels) >= rule.min_slices and large.continues(small)
        return is_part and any(is_in_line(each, rule) for each in ways)
    if not one.is_near(other):
        return False
    return any(is_regular(each, rule) or (not is_judged and is_in_line(each, rule)) for each in ways)


def _centre(instance: Instance) -> Instance:
    """Return a slice whose position is its middle: images of another size are often reconstructed around one axis."""
    along, down = np.reshape(instance.orientation, (2, 3))
    height, width = np.multiply(instance.pixel_spacing_mm, (instance.rows - 1, instance.columns - 1)) / 2
    return replace(instance, position=tuple((instance.position + width * along + height * down).tolist()))


def name_differences(firsts: Sequence[Instance]) -> tuple[str, ...]:
    """Return the attributes in which instances differ, by their keywords; numbers by more than rounding."""
    named = []
    for name, keyword in _NAMES.items():
        values = [getattr(each, name) for each in firsts]
        if isinstance(values[0], tuple):
            is_other = np.ptp(np.array(values, np.float64), axis=0).max() > ROUNDING
        else:
            is_other = len(set(values)) > 1
        if is_other:
            named.append(keyword)
    keys = [dict(pair.split("=", 1) for pair in each.stack_key.split(";") if "=" in pair) for each in firsts]
    short = sorted({name for key in keys for name in key if len({each.get(name) for each in keys}) > 1})
    return (*named, *(KEY_WORDS.get(name, name) for name in short))


def _list(names: Sequence[str]) -> str:
    if not names:
        return "nothing that is known"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
