"""Read the files of one stack to a volume in the modality's unit with its affine, or a named refusal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medcls.config import StackRule
from medcls.errors import ImageRefusedError
from medcls.identity import format_count
from medcls.imaging.dicom.burnt_in import TEXT_KEYWORDS, find_text_risk
from medcls.imaging.dicom.dicom_file import DicomFile, open_dicom, refusing_parser_errors
from medcls.imaging.dicom.frame import DicomFrame, decode_frame, map_values
from medcls.imaging.dicom.header import read_headers
from medcls.imaging.dicom.multiframe import describe_frames, split_frames
from medcls.imaging.dicom.pixels import read_pixel_module
from medcls.imaging.instance import Instance
from medcls.imaging.scan_file import scan_file
from medcls.imaging.volume.geometry import StackGeometry
from medcls.imaging.volume.pieces import fit_slices
from medcls.imaging.volume.resample import resample_depth, shear_slices
from medcls.imaging.volume.stack import build_stacks, find_fault

_HEADER_BYTES = 1 << 26
_MOST_FILLED = 32
"""Slices that resampling may make of one: more is no gap, and a spacing that is not meant."""
NOTES = {
    "sheared": ("a tilted gantry was corrected by shearing", "stack.tilt=refuse refuses them"),
    "resampled_gap": ("missing slices were filled by interpolation", "stack.gap=refuse refuses them"),
    "resampled_jitter": ("irregular distances were resampled", "stack.jitter=refuse refuses them"),
    "resampled_spacing": ("mixed distances were resampled", "stack.mixed_spacing=refuse refuses them"),
    "dropped_duplicates": (
        "different slices at one position: the first was kept",
        "stack.duplicate=refuse refuses them",
    ),
    "dropped_localizers": ("localizers were left out", ""),
    "joined_parts": (
        "parts that continue one another were joined (told apart by ImageType, FrameOfReferenceUID or rounding)",
        "stack.parts=apart takes each as a volume",
    ),
    "axes_assumed": (
        "sform_code and qform_code are 0, so the files do not record which side is left; LAS was assumed, as in "
        "nibabel and FSL",
        "image.analyze_axes=RAS (where i, j and k grow to) takes other axes",
    ),
    "sform_taken": (
        "sform and qform lead to different spaces; the sform was used",
        "image.nifti_affine=qform takes the other, image.nifti_affine=refuse neither",
    ),
    "qform_taken": (
        "sform and qform lead to different spaces; the qform was used",
        "image.nifti_affine=auto takes the sform",
    ),
}
"""By the fixed word in RawVolume.notes: what was repaired or left open, and the setting that decides otherwise."""

_UNITS = frozenset({"OD", "HU", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"})
"""The defined terms of RescaleType (PS3.3 C.11.1.1.2)."""


@dataclass(frozen=True, slots=True)
class RawVolume:
    """A volume as it was measured.

    Attributes:
        values: (D, H, W), float32, in the modality's unit (HU …); the smallest measured value where the mask is True.
        mask: (D, H, W), True where the voxel is padding or lies outside what was measured; None where none is.
        affine: (4, 4), float64: voxel (d, h, w, 1) -> mm, patient LPS+.
        unit: RescaleType ("HU", "US" …), "HU" for a CT with rescale that names none, "" where unknown.
        spacing_mm: Distance of slices, rows, columns; the lengths of the affine's columns.
        photometric: PhotometricInterpretation; MONOCHROME1 is not inverted. "" for NIfTI.
        headers: Allow-listed attributes of the first slice by keyword, and of one that may show text those that say
            so; {} for NIfTI.
        slices_removed: Identical duplicates that were left out.
        notes: Words of NOTES.
        found: What was found in the files and is no reason to refuse: a fixed word, and a sentence.
    """

    values: NDArray[np.float32]
    mask: NDArray[np.bool_] | None
    affine: NDArray[np.float64]
    unit: str
    spacing_mm: tuple[float, float, float]
    photometric: str
    headers: dict[str, str]
    slices_removed: int = 0
    notes: tuple[str, ...] = ()
    found: dict[str, str] = field(default_factory=dict)


def describe_notes(notes: Iterable[str], *, settings: bool) -> Iterator[str]:
    """Yield a line for each word of NOTES, with the number of volumes that have it.

    Args:
        notes: Of each volume, words with a space between.
        settings: Whether the line names the setting; a model's settings can no longer be changed.
    """
    counts = Counter(word for note in notes for word in note.split())
    for word, (fact, setting) in NOTES.items():
        if counts[word]:
            line = f"{format_count(counts[word], 'volume')}: {word}: {fact}"
            if settings and setting:
                line += f"; {setting}"
            yield line


_Frame: TypeAlias = tuple[Instance, Path, int]
"""A frame, its file, and which frame of the file it is."""


def read_volume(
    files: Sequence[Path], *, rule: StackRule, max_voxels: int = 1 << 28, allow_damaged: bool = False
) -> RawVolume:
    """Return the volume that the DICOM files of one stack are the slices of.

    Args:
        files: Of one stack, any order; or one enhanced multi-frame file.
        rule: What is repaired and what is refused.
        max_voxels: Limit of all pixels to decode and of the volume that they become.
        allow_damaged: As of pixels.read_stored.

    Returns:
        Slices in order of their position along row x column, each with its own rescale and padding.

    Raises:
        ImageRefusedError: the reasons of build_stacks; several_series, several_volumes, duplicate_position,
            mixed_units, not_finite, too_large, no_files, and those of frame.decode_frame and multiframe.split_frames.

    Source: PS3.3 C.7.6.2 (plane), C.7.6.16 (functional groups); docs/decisions/0008-volumes.md.
    """
    with refusing_parser_errors():
        instances = _scan(files, max_voxels)
        chosen, notes = _choose(instances, rule)
        geometry = fit_slices([instance for instance, _, _ in chosen], rule)
        _check_size(geometry, chosen[0][0], max_voxels)
        shape = (len(geometry.levels), chosen[0][0].rows, chosen[0][0].columns)
        decoded = _Decoded(np.zeros(shape, np.float32), np.zeros(shape, bool), np.zeros(shape[0], bool), rule)
        level_of = {index: level for level, indices in enumerate(geometry.levels) for index in indices}
        wanted: dict[Path, dict[int, int]] = {}
        for index, (_, file, frame) in enumerate(chosen):
            wanted.setdefault(file, {})[frame] = level_of[index]
        for file, levels in wanted.items():
            with open_dicom(file, max_inflated_bytes=4 * max_voxels + _HEADER_BYTES) as opened:
                decoded.add_file(opened, levels, allow_damaged=allow_damaged)
        if decoded.dropped > shape[0] // 2:
            raise ImageRefusedError("duplicate_position", f"{decoded.dropped} of {shape[0]} positions occur twice")
        if decoded.dropped:
            notes = (*notes, "dropped_duplicates")
        values, mask, affine = _restack(decoded, geometry)
        return RawVolume(
            values=values,
            mask=mask,
            affine=affine,
            unit=_name_unit(decoded),
            spacing_mm=geometry.spacing_mm,
            photometric=decoded.headers["PhotometricInterpretation"],
            headers=decoded.headers,
            slices_removed=decoded.removed,
            notes=(*notes, *geometry.notes),
            found=decoded.found,
        )


def _scan(files: Sequence[Path], max_voxels: int) -> list[_Frame]:
    """Return every frame of the files, by its header; nothing is decoded yet."""
    if not files:
        raise ImageRefusedError("no_files", "a volume needs files")
    found: list[_Frame] = []
    asked = 0
    for number, file in enumerate(sorted(files)):
        instance = scan_file(file, name=f"{number:08}")
        asked += instance.rows * instance.columns * max(1, instance.frames)
        if asked > max_voxels:
            raise ImageRefusedError("too_large", f"more than {max_voxels} pixels to decode")
        _check_instance(instance)
        frames = [instance]
        if instance.frames > 1:
            with open_dicom(file, max_inflated_bytes=4 * max_voxels + _HEADER_BYTES) as opened:
                frames = describe_frames(opened.dataset, instance)
        for index, each in enumerate(frames):
            _check_instance(each)
            found.append((each, file, index))
    if len({instance.series_uid for instance, _, _ in found}) > 1:
        raise ImageRefusedError("several_series", "the files are of more than one SeriesInstanceUID")
    return found


def _check_instance(instance: Instance) -> None:
    """Name the fault of one slice before the gap that it would leave."""
    fault = find_fault(instance)
    if fault and fault[1] != "localizer":
        raise ImageRefusedError(fault[1])


def _choose(found: list[_Frame], rule: StackRule) -> tuple[list[_Frame], tuple[str, ...]]:
    """Return the frames of the one stack in order, and notes of localizers left out and of parts joined."""
    stacks, leftovers = build_stacks([instance for instance, _, _ in found], rule)
    for _, state, reason, detail in leftovers:
        if state == "quarantined" or reason != "localizer" or not stacks:
            raise ImageRefusedError(reason, detail)
    if len(stacks) != 1:
        sizes = ", ".join(str(len(stack.instances)) for stack in stacks)
        raise ImageRefusedError("several_volumes", f"stacks of {sizes} slices; name the files of one")
    frame_of = {(instance.path, instance.sop_uid): frame for frame in found for instance in frame[:1]}
    chosen = [frame_of[instance.path, instance.sop_uid] for instance in stacks[0].instances]
    notes: tuple[str, ...] = ()
    if leftovers:
        notes = ("dropped_localizers",)
    if stacks[0].parted_by:
        notes = (*notes, "joined_parts")
    return chosen, notes


def _check_size(geometry: StackGeometry, first: Instance, max_voxels: int) -> None:
    """A shear and filled gaps make the volume larger than its files."""
    above, below, left, right = geometry.margins_px
    slices = len(geometry.levels)
    if geometry.depth > _MOST_FILLED * slices:
        raise ImageRefusedError("mixed_spacing", f"{geometry.depth} slices would have to be made of {slices}")
    voxels = geometry.depth * (first.rows + above + below) * (first.columns + left + right)
    if voxels > max_voxels:
        raise ImageRefusedError("too_large", f"{voxels} voxels; the limit is {max_voxels}")


@dataclass(slots=True)
class _Decoded:
    """Slices at their positions, before shear and resampling."""

    values: NDArray[np.float32]
    mask: NDArray[np.bool_]
    filled: NDArray[np.bool_]
    rule: StackRule
    headers: dict[str, str] = field(default_factory=dict)
    units: set[tuple[str, bool]] = field(default_factory=set)
    removed: int = 0
    dropped: int = 0
    found: dict[str, str] = field(default_factory=dict)

    def add_file(self, file: DicomFile, levels: dict[int, int], *, allow_damaged: bool) -> None:
        """Decode the frames of a file that are slices, by the position of each frame."""
        module = read_pixel_module(file)
        if (module.rows, module.columns) != self.values.shape[1:] or module.frames <= max(levels):
            raise ImageRefusedError("size_mismatch", "the size in the header differs from the index")
        for frame, part in enumerate(split_frames(file, module)):
            if frame in levels:
                image = decode_frame(part, replace(module, frames=1), frame=frame, allow_damaged=allow_damaged)
                self.add(image, levels[frame])
        headers = read_headers(file.dataset)
        self.headers = self.headers or headers
        if find_text_risk(headers):  # one slice with text in it is a volume with text in it
            self.headers = self.headers | {name: headers[name] for name in TEXT_KEYWORDS}

    def add(self, frame: DicomFrame, level: int) -> None:
        """Put a slice at its position, or compare it with the one that is there."""
        if frame.modality is None:
            raise ImageRefusedError("not_grey", "a colour image has no modality values")
        self.found |= frame.stored.notes
        self.units.add((frame.modality.unit, frame.modality.stated))
        values = map_values(frame.stored, frame.modality.apply)
        mask = frame.mask
        if mask is None:
            mask = np.zeros(values.shape, bool)
        if not (np.isfinite(values) | mask).all():
            raise ImageRefusedError("not_finite", "the rescale exceeds the range of 32-bit floats")
        if not self.filled[level]:
            self.values[level], self.mask[level], self.filled[level] = values, mask, True
        elif np.array_equal(values, self.values[level]) and np.array_equal(mask, self.mask[level]):
            self.removed += 1
        elif self.rule.duplicate == "drop":
            self.dropped += 1
        else:
            raise ImageRefusedError("duplicate_position", "two slices at one position have different pixels")


def _name_unit(decoded: _Decoded) -> str:
    """Return the unit of all slices; a CT's rescale without a type is to Hounsfield units (PS3.3 C.8.2.1.1.2)."""
    if len(decoded.units) > 1:
        # Of a unit that is no term of the standard nothing is repeated: it may be anything, a name even.
        names = []
        for unit, stated in decoded.units:
            name = unit or "none"
            if unit and unit not in _UNITS:
                name = "another"
            names.append(name if stated else f"{name} (no rescale)")
        raise ImageRefusedError("mixed_units", f"slices are in different units: {', '.join(sorted(names))}")
    (unit, stated) = next(iter(decoded.units))
    if decoded.headers["Modality"] == "CT" and stated and not unit:
        return "HU"
    return unit


def _restack(
    decoded: _Decoded, geometry: StackGeometry
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, NDArray[np.float64]]:
    """Values, mask and affine of the regular volume."""
    values, mask, affine = decoded.values, decoded.mask, geometry.affine.copy()
    if "sheared" in geometry.notes:
        above, _, left, _ = geometry.margins_px
        values, mask = shear_slices(values, mask, shifts_px=geometry.shifts_px, margins_px=geometry.margins_px)
        affine[:3, 3] -= affine[:3, 1] * above + affine[:3, 2] * left
    if any(note.startswith("resampled") for note in geometry.notes):
        regular = np.arange(geometry.depth, dtype=np.float64) * geometry.spacing_mm[0]
        values, mask = resample_depth(values, mask, distances_mm=geometry.distances_mm, wanted_mm=regular)
    if not mask.any():
        return values, None, affine
    if mask.all():
        raise ImageRefusedError("all_padding", "every voxel is padding")
    values[mask] = values[~mask].min()
    return values, mask, affine
