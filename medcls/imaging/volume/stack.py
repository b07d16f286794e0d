"""Sort the instances of one series into stacks, one per volume, from their headers only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pydicom import uid

from medcls.config import StackRule
from medcls.errors import ImageRefusedError
from medcls.imaging.companions import name_companion
from medcls.imaging.instance import Instance
from medcls.imaging.volume.geometry import FARTHEST_MM
from medcls.imaging.volume.parts import ROUNDING, SAME_COSINES, Scan, join_parts
from medcls.imaging.volume.pieces import Part, fit_slices, is_parallel, measure_piece
from medcls.imaging.volume.select import name_plane

__all__ = ["Leftover", "Stack", "build_stacks", "find_fault"]

Leftover: TypeAlias = tuple[str, str, str, str]
"""(path, state, reason, detail) of an instance that is in no stack; state is "skipped" or "quarantined"."""

_ENHANCED = frozenset(
    {
        uid.EnhancedCTImageStorage,
        uid.EnhancedMRImageStorage,
        uid.EnhancedPETImageStorage,
        uid.LegacyConvertedEnhancedCTImageStorage,
        uid.LegacyConvertedEnhancedMRImageStorage,
        uid.LegacyConvertedEnhancedPETImageStorage,
        uid.XRay3DAngiographicImageStorage,
        uid.XRay3DCraniofacialImageStorage,
        uid.BreastTomosynthesisImageStorage,
    }
)
"""Classes whose frames have positions of their own (PS3.3 annex A)."""

_CINE = frozenset(
    {
        uid.UltrasoundMultiFrameImageStorage,
        uid.XRayAngiographicImageStorage,
        uid.XRayRadiofluoroscopicImageStorage,
        uid.EnhancedXAImageStorage,
        uid.EnhancedXRFImageStorage,
    }
)
"""Classes whose frames are moments."""

PICTURES = frozenset({"not_grey", "cine", "multi_frame"})
"""Reasons of files that are pictures, whole and readable, and never slices."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The instances of one volume.

    Attributes:
        instances: In order along the normal; where a position is taken twice both are here, one after the other. One
            instance for an enhanced multi-frame file.
        name: "" for the largest stack of a series, then "#2", "#3" …
        parted_by: Attributes in which the parts differ that were joined to it; () if nothing was joined.
    """

    instances: Part
    name: str
    parted_by: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the instances."""
        return tuple(instance.path for instance in self.instances)


def build_stacks(instances: Iterable[Instance], rule: StackRule) -> tuple[list[Stack], list[Leftover]]:
    """Return the stacks of one series, the largest first, and the instances that are in none.

    Args:
        instances: Of one SeriesInstanceUID, any order.
        rule: What is repaired and what is refused.

    Returns:
        Every instance is in exactly one stack or in the list. Skipped are localizers, objects that are not images, and
        beside a stack pictures and references: slices that are too few or too far apart, or irregular ones in another
        plane. What is quarantined has the reason of its group: gap, jitter, mixed_spacing, tilt, lateral_offset,
        orientation, too_few_slices, several_parts; or its own: no_position, no_orientation, no_spacing,
        malformed_element, cine, multi_frame, mosaic, not_grey, not_dicom and Instance.problem.

    Source: own choice, docs/decisions/0008-volumes.md.
    """
    usable: list[Instance] = []
    leftovers: list[Leftover] = []
    for instance in instances:
        fault = find_fault(instance)
        if fault is None:
            usable.append(instance)
        else:
            leftovers.append((instance.path, *fault, ""))
    built: list[tuple[Part, tuple[str, ...]]] = []
    failed: list[tuple[Scan, ImageRefusedError]] = []
    for scan in join_parts([tuple(group) for group in _group(usable)], rule):
        try:
            built.append((_order(scan, rule), scan.parted_by))
        except ImageRefusedError as error:
            failed.append((scan, error))
    built.sort(key=lambda each: (-_count_slices(each[0]), _exact_key(each[0][0]), _float_key(each[0][0])))
    sparse = _find_sparse([group for group, _ in built], [scan.instances for scan, _ in failed], rule)
    stacks: list[Stack] = []
    for group, names in built:
        if id(group) in sparse:
            leftovers += [(each.path, "skipped", "sparse_stack", "") for each in group]
        else:
            stacks.append(Stack(group, f"#{len(stacks) + 1}" if stacks else "", names))
    for scan, cause in failed:
        verdict = ("skipped", "sparse_stack", "")
        if id(scan.instances) not in sparse:
            verdict = _judge_failure(scan, cause, [stack.instances for stack in stacks])
        leftovers += [(each.path, *verdict) for each in scan.instances]
    if stacks:
        leftovers = [_excuse(each) for each in leftovers]
    return stacks, sorted(leftovers)


def _find_sparse(built: list[Part], failed: list[Part], rule: StackRule) -> set[int]:
    """Return the ids of groups whose slices are too far apart, and fewer than a volume of the series has."""
    if rule.parts != "join" or len(built) + len(failed) < 2:
        return set()
    coarse = []
    for group in (*built, *failed):
        piece = measure_piece(group, rule)
        if piece is not None and piece.step > rule.max_gap_mm:
            coarse.append(group)
    ids = {id(group) for group in coarse}
    most = max((_count_slices(group) for group in built if id(group) not in ids), default=0)
    return {id(group) for group in coarse if len(group) < most}


def _judge_failure(scan: Scan, cause: ImageRefusedError, stacks: Sequence[Part]) -> tuple[str, str, str]:
    """Return state, reason and detail of slices that make no volume, beside the volumes of their series.

    Too few slices are a reference; so are fewer irregular slices than a volume has, in another plane or size. A stack
    along a volume of the series is another echo or phase of it, and an axial one, or one of more than half as many
    slices, beside volumes none of which is axial may be the scan itself: each is missed if it cannot be read.
    """
    if not stacks:
        return "quarantined", cause.reason, cause.detail
    if cause.reason == "too_few_slices":
        return "skipped", cause.reason, cause.detail
    first, count, most = scan.instances[0], len(scan.instances), max(map(_count_slices, stacks))
    is_along = any(
        (each.rows, each.columns) == (first.rows, first.columns) and is_parallel(each, first, tolerance=SAME_COSINES)
        for each in (stack[0] for stack in stacks if stack[0].frames == 1)
    )
    is_beside_axial = "axial" in {name_plane(stack[0].orientation) for stack in stacks}
    is_scan = not is_beside_axial and (name_plane(first.orientation) == "axial" or 2 * count > most)
    if count < most and not is_along and not is_scan:
        return "skipped", "leftover_stack", f"{cause.reason}: {cause.detail}"
    detail = cause.detail
    if count < most and scan.fault is None:
        detail += f": stack.min_slices={count + 1} leaves these {count} slices out, beside a volume of {most}"
    return "quarantined", cause.reason, detail


def _excuse(leftover: Leftover) -> Leftover:
    """Return a picture beside a volume as skipped: a dose sheet or a cine is not an image of a job of volumes."""
    path, state, reason, detail = leftover
    if reason in PICTURES:
        state = "skipped"
    return path, state, reason, detail


def find_fault(instance: Instance) -> tuple[str, str] | None:
    """State and reason of an instance that no volume can be built from, whatever the others are; None for the rest."""
    image_type = instance.image_type.split("\\")
    if companion := name_companion(instance.problem, instance.sop_class_uid):
        return "skipped", companion
    if instance.problem or instance.kind != "dicom":
        return "quarantined", instance.problem or "not_dicom"
    if instance.sop_class_uid == uid.RTDoseStorage:
        return "skipped", "not_an_image"
    if "LOCALIZER" in image_type:
        return "skipped", "localizer"
    if "MOSAIC" in image_type:
        return "quarantined", "mosaic"
    if instance.frames != 1 and instance.sop_class_uid in _CINE:
        return "quarantined", "cine"
    if instance.samples != 1 or not instance.photometric.startswith("MONOCHROME"):
        return "quarantined", "not_grey"
    if instance.frames < 1:
        return "quarantined", "malformed_element"  # NumberOfFrames says 0 or nothing that can be read
    if instance.frames != 1 and instance.sop_class_uid not in _ENHANCED:
        return "quarantined", "multi_frame"
    return _find_misplacement(instance)


def _find_misplacement(instance: Instance) -> tuple[str, str] | None:
    """Return the fault of a slice whose place in the patient is not known or cannot be; frames are judged later."""
    if instance.frames != 1:
        return None
    for reason, numbers, count in (
        ("no_orientation", instance.orientation, 6),
        ("no_position", instance.position, 3),
        ("no_spacing", instance.pixel_spacing_mm, 2),
    ):
        if len(numbers) != count:
            return "quarantined", reason
        if max(map(abs, numbers)) > FARTHEST_MM or (reason == "no_spacing" and min(numbers) < 1 / FARTHEST_MM):
            return "quarantined", "malformed_element"
    return None


def _group(instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    """Instances that could be slices of one volume, together; an enhanced file is alone."""
    groups: dict[tuple[str | int, ...], list[list[Instance]]] = {}
    for instance in sorted(instances, key=lambda each: (_float_key(each), each.sop_uid, each.path)):
        candidates = groups.setdefault(_exact_key(instance), [])
        for group in candidates:
            if instance.frames == 1 and is_parallel(group[0], instance, tolerance=ROUNDING):
                group.append(instance)
                break
        else:
            candidates.append([instance])
    for key in sorted(groups):
        yield from groups[key]


def _exact_key(instance: Instance) -> tuple[str | int, ...]:
    """Return what slices of one volume have in common to the letter."""
    size = (instance.frames, instance.rows, instance.columns)
    kind = (instance.image_type, instance.modality, instance.photometric)
    return (*size, instance.stack_key, *kind, instance.frame_uid, instance.sop_class_uid)


def _float_key(instance: Instance) -> tuple[tuple[float, ...], ...]:
    return instance.orientation, instance.pixel_spacing_mm, instance.position


def _order(scan: Scan, rule: StackRule) -> Part:
    """Return the slices of a scan along its normal. Raises ImageRefusedError if they are not a stack."""
    if scan.fault is not None:
        raise scan.fault
    # Slices at one place stay in an order that the cut into parts does not change.
    group = sorted(scan.instances, key=lambda each: (_float_key(each), each.sop_uid, each.path))
    if group[0].frames > 1:
        return tuple(group)
    return tuple(group[index] for level in fit_slices(group, rule).levels for index in level)


def _count_slices(group: Part) -> int:
    if group[0].frames == 1:
        return len(group)
    return group[0].frames
