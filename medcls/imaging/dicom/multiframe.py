"""Split a multi-frame file: each frame as if it were a file, with its position in the patient."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom import codecs
from medcls.imaging.dicom.dicom_file import DicomFile
from medcls.imaging.dicom.fast_header import UNDEFINED_LENGTH, Header
from medcls.imaging.dicom.header import find_macro, is_timed, read_numbers
from medcls.imaging.dicom.pixels import PixelModule, check_native_length
from medcls.imaging.instance import Instance

_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
_KEYS = (
    ("FrameContentSequence", "StackID"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("FrameContentSequence", "NominalRespiratoryCyclePosition"),
    ("TemporalPositionSequence", "TemporalPositionTimeOffset"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRModifierSequence", "InversionTimes"),
    ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("MRDiffusionSequence", "DiffusionDirectionality"),
    ("CTXRayDetailsSequence", "KVP"),
    ("CTReconstructionSequence", "ConvolutionKernel"),
)
"""Macro and attribute of what tells volumes inside one file apart."""


def describe_frames(dataset: Header, instance: Instance) -> list[Instance]:
    """Return the frames of an enhanced file as instances of one frame each; a single-frame file is its own only frame.

    Args:
        dataset: Header with its functional groups.
        instance: The whole file.

    Raises:
        ImageRefusedError: cine, where frames are moments; multi_frame, where they have no functional groups;
            frame_count; no_position.

    Source: PS3.3 C.7.6.16 (functional groups), C.7.6.5 (cine).
    """
    if instance.frames == 1:
        return [instance]
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if not groups:
        if is_timed(dataset):
            raise ImageRefusedError("cine", f"the {instance.frames} frames differ in time: they are not slices")
        raise ImageRefusedError("multi_frame", f"the {instance.frames} frames have no functional groups")
    if len(groups) != instance.frames:
        raise ImageRefusedError("frame_count", f"{len(groups)} functional groups of {instance.frames} frames")
    return [_describe_frame(dataset, instance, frame) for frame in range(instance.frames)]


def _describe_frame(dataset: Header, instance: Instance, frame: int) -> Instance:
    """Return one frame with the geometry and the key that its macros give; the path stays the file's."""

    def numbers(macro: str, keyword: str) -> tuple[float, ...]:
        item = find_macro(dataset, macro, frame=frame)
        return () if item is dataset else tuple(read_numbers(item, keyword))

    image_type = ""
    for macro in _FRAME_TYPES:
        item = find_macro(dataset, macro, frame=frame)
        if item is not dataset:
            image_type = _join(item.get("FrameType"))
            break
    spacing = numbers("PixelMeasuresSequence", "PixelSpacing")
    if spacing and min(spacing) <= 0:
        spacing = ()
    return replace(
        instance,
        frames=1,
        sop_uid=f"{instance.sop_uid}#{frame:06}",
        image_type=image_type or instance.image_type,
        stack_key=_compute_key(dataset, frame),
        orientation=numbers("PlaneOrientationSequence", "ImageOrientationPatient"),
        position=numbers("PlanePositionSequence", "ImagePositionPatient"),
        pixel_spacing_mm=spacing,
    )


def _compute_key(dataset: Header, frame: int) -> str:
    """Canonical text of echo, time, b-value … of a frame."""
    found = []
    for macro, keyword in _KEYS:
        item = find_macro(dataset, macro, frame=frame)
        if item is not dataset and item.get(keyword) is not None:
            found.append(f"{keyword}={_join(item.get(keyword))}")
    diffusion = find_macro(dataset, "MRDiffusionSequence", frame=frame)
    if diffusion is not dataset and (directions := diffusion.get("DiffusionGradientDirectionSequence")):
        found.append(f"direction={_join(directions[0].get('DiffusionGradientOrientation'))}")
    return ";".join(found)


def _join(value: object) -> str:
    """Return one value, or several with backslashes between; numbers without regard to how they are written."""
    if isinstance(value, int | float):
        return f"{float(value):.6g}"
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return "\\".join(_join(part) for part in value)
    return str(value)


def split_frames(file: DicomFile, module: PixelModule) -> Iterator[DicomFile]:
    """Yield every frame as a file whose pixel element holds that frame alone.

    Raises:
        ImageRefusedError: pixel_length, frame_count where fragments cannot be told to frames, truncated, and
            bit_depth for frames that do not start at a byte.

    Source: PS3.5 8.1, A.4; PS3.3 C.7.6.3.1.8 (extended offset table).
    """
    if module.frames == 1:
        yield file
    elif file.syntax.is_encapsulated:
        for fragments in _group_fragments(file, module.frames):
            # The same file with these fragments alone, behind an empty offset table.
            items = [b"", *fragments]
            body = b"".join(b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item for item in items)
            element = replace(file.element, length=UNDEFINED_LENGTH, offset=0)
            yield replace(file, element=element, _stream=io.BytesIO(body + b"\xfe\xff\xdd\xe0\0\0\0\0"))
    else:
        bits = module.pixels * module.samples * module.allocated
        size = bits // 8
        if bits % 8:
            raise ImageRefusedError("bit_depth", f"frames of {bits} bits do not start at a byte")
        check_native_length(file, size, frames=module.frames)
        for frame in range(module.frames):
            place = file.element.offset + frame * size
            yield replace(file, element=replace(file.element, length=size, offset=place))


def _group_fragments(file: DicomFile, frames: int) -> list[list[bytes]]:
    """Return the fragments of every frame: by the offset tables, else one each, else where a codestream starts."""
    offsets, fragments = file.read_fragments()
    extended = file.dataset.get("ExtendedOffsetTable")
    if extended:
        offsets = [offset for (offset,) in struct.iter_unpack("<Q", extended[: len(extended) // 8 * 8])]
    if offsets:
        starts = _find_starts(offsets, fragments)
    elif len(fragments) == frames:
        starts = list(range(frames))
    elif file.syntax in codecs.RLE:
        starts = []
    else:
        starts = [i for i, each in enumerate(fragments) if each[:3] in (b"\xff\xd8\xff", b"\xff\x4f\xff")]
    if len(starts) != frames or starts[0] != 0:
        raise ImageRefusedError("frame_count", f"{len(fragments)} fragments cannot be assigned to {frames} frames")
    return [fragments[start:end] for start, end in zip(starts, [*starts[1:], len(fragments)], strict=True)]


def _find_starts(offsets: list[int], fragments: list[bytes]) -> list[int]:
    """Return which fragments the offsets point at; they count bytes of items, headers included, and must ascend."""
    place, index_at = 0, {}
    for index, fragment in enumerate(fragments):
        index_at[place] = index
        place += 8 + len(fragment)
    starts = [index_at.get(offset, -1) for offset in offsets]
    if all(a < b for a, b in pairwise([-1, *starts])):
        return starts
    return []
