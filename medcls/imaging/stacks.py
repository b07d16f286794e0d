"""The instances of one series sorted into stacks, each of which is one volume, by their headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from pydicom import uid

from medcls.errors import ImageRefusedError
from medcls.imaging.geometry import StackGeometry, StackRule, fit_stack
from medcls.imaging.instances import Instance

__all__ = ["Leftover", "Stack", "StackRule", "build_stacks", "find_fault", "fit_instances"]

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

_FARTHEST_MM = 1e6
"""No patient is a kilometre away; numbers beyond make arithmetic overflow, not images."""

_PARALLEL = 1e-4
"""Largest difference of direction cosines, and of pixel spacing as a fraction, inside one stack."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The instances of one volume.

    Attributes:
        instances: In order along the normal; where a position is taken twice both are here, one after the other. One
            instance for an enhanced multi-frame file.
        name: "" for the largest stack of a series, then "#2", "#3" …
    """

    instances: tuple[Instance, ...]
    name: str

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the instances."""
        return tuple(instance.path for instance in self.instances)


def build_stacks(instances: Iterable[Instance], rule: StackRule) -> tuple[list[Stack], list[Leftover]]:
    """The stacks of one series, the largest first, and the instances that are in none.

    Args:
        instances: Of one SeriesInstanceUID, any order.
        rule: What is repaired and what is refused.

    Returns:
        Every instance is in exactly one stack or in the list. Localizers are skipped. What is quarantined has the
        reason of its group: gap, jitter, mixed_spacing, tilt, lateral_offset, orientation, too_few_slices; or its
        own: no_position, no_orientation, no_spacing, malformed_element, cine, multi_frame, mosaic, not_grey,
        not_dicom and Instance.problem.

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
    built: list[tuple[Instance, ...]] = []
    for group in _group(usable):
        try:
            built.append(_order(group, rule))
        except ImageRefusedError as error:
            leftovers += [(each.path, "quarantined", error.reason, error.detail) for each in group]
    built.sort(key=lambda group: (-_count_slices(group), _exact_key(group[0]), _float_key(group[0])))
    stacks = [Stack(group, f"#{number}" if number > 1 else "") for number, group in enumerate(built, start=1)]
    return stacks, sorted(leftovers)


def fit_instances(instances: Sequence[Instance], rule: StackRule) -> StackGeometry:
    """The geometry of the single-frame instances of one stack; indices count them as they are given.

    Raises:
        ImageRefusedError: as of fit_stack.
    """
    spacing = _median([each.pixel_spacing_mm for each in instances])
    return fit_stack(
        _median([each.orientation for each in instances]),
        np.array([each.position for each in instances], np.float64),
        pixel_spacing_mm=(spacing[0], spacing[1]),
        rule=rule,
    )


def find_fault(instance: Instance) -> tuple[str, str] | None:
    """State and reason of an instance that no volume can be built from, whatever the others are; None for the rest."""
    image_type = instance.image_type.split("\\")
    if instance.problem or instance.kind != "dicom":
        return "quarantined", instance.problem or "not_dicom"
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
    if instance.frames != 1:
        return None if instance.sop_class_uid in _ENHANCED else ("quarantined", "multi_frame")
    return _find_misplacement(instance)


def _find_misplacement(instance: Instance) -> tuple[str, str] | None:
    """The fault of a slice whose place in the patient is not known or cannot be."""
    for reason, numbers, count in (
        ("no_orientation", instance.orientation, 6),
        ("no_position", instance.position, 3),
        ("no_spacing", instance.pixel_spacing_mm, 2),
    ):
        if len(numbers) != count:
            return "quarantined", reason
        if max(map(abs, numbers)) > _FARTHEST_MM or (reason == "no_spacing" and min(numbers) < 1 / _FARTHEST_MM):
            return "quarantined", "malformed_element"
    return None


def _group(instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    """Instances that could be slices of one volume, together; an enhanced file is alone."""
    groups: dict[tuple[str | int, ...], list[list[Instance]]] = {}
    for instance in sorted(instances, key=lambda each: (_float_key(each), each.sop_uid, each.path)):
        candidates = groups.setdefault(_exact_key(instance), [])
        for group in candidates if instance.frames == 1 else []:
            if _is_parallel(group[0], instance):
                group.append(instance)
                break
        else:
            candidates.append([instance])
    for key in sorted(groups):
        yield from groups[key]


def _exact_key(instance: Instance) -> tuple[str | int, ...]:
    """What slices of one volume have in common to the letter."""
    return (
        instance.frames,
        instance.rows,
        instance.columns,
        instance.stack_key,
        instance.image_type,
        instance.modality,
        instance.photometric,
        instance.frame_uid,
        instance.sop_class_uid,
    )


def _float_key(instance: Instance) -> tuple[tuple[float, ...], ...]:
    return instance.orientation, instance.pixel_spacing_mm, instance.position


def _is_parallel(one: Instance, other: Instance) -> bool:
    turned = np.abs(np.subtract(one.orientation, other.orientation)).max()
    scaled = np.abs(np.divide(one.pixel_spacing_mm, other.pixel_spacing_mm) - 1).max()
    return bool(max(turned, scaled) <= _PARALLEL)


def _order(group: list[Instance], rule: StackRule) -> tuple[Instance, ...]:
    """The group along its normal. Raises ImageRefusedError where it is no stack."""
    if group[0].frames > 1:
        return tuple(group)
    return tuple(group[index] for level in fit_instances(group, rule).levels for index in level)


def _count_slices(group: tuple[Instance, ...]) -> int:
    return len(group) if group[0].frames == 1 else group[0].frames


def _median(rows: Sequence[tuple[float, ...]]) -> list[float]:
    """Value by value; unlike the mean it is the same to the bit in any order."""
    medians: list[float] = np.median(np.array(rows, np.float64), axis=0).tolist()
    return medians
