"""Decode one image or volume to its stored array: the one way in for data_prep and predict."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.burnt_in import may_show_face
from medcls.imaging.grey_levels import SourceValues, check_hounsfield, count_levels, take_sample
from medcls.imaging.image import is_dicom, read_image
from medcls.imaging.nifti import read_nifti
from medcls.imaging.preprocess import Box, PreparedImage, PreprocessSpec, preprocess_image
from medcls.imaging.volume.spec import VolumeSpec
from medcls.imaging.volume.standardize import PreparedVolume, preprocess_volume
from medcls.imaging.volume.volume import RawVolume, read_volume
from medcls.imaging.worker import Limits

Spec: TypeAlias = PreprocessSpec | VolumeSpec


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """One image to decode.

    Attributes:
        files: Where it lies: one file, or all files of a volume, in any order.
        roi: (x, y, width, height) of its region in pixels of the file; None for the whole image and for volumes.
        spec: What is done to it.
        most_bytes: Bytes that a file may have: more does not fit the memory that an image may use.
    """

    files: tuple[Path, ...]
    roi: Box | None
    spec: Spec
    most_bytes: int = Limits().memory_bytes


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """What a worker sends back.

    Attributes:
        prepared: The stored pixels with their geometry.
        source_size: (rows, columns) of the file; (slices, rows, columns) of a volume.
        spacing_source: The attribute that the spacing came from, "" when unknown.
        photometric: PhotometricInterpretation, or "L" or "RGB" for other formats.
        headers: Allow-listed DICOM attributes by keyword ("" absent); {} for other formats.
        volume: Further manifest columns of a volume (manifest.VOLUME_COLUMNS); {} for images.
        source: The grey values of the file or files; None where nothing was measured.
        stored_levels: Distinct values of the stored pixels outside the frame's padding.
        stored_high: Largest stored value, of the range that the dtype has.
        notes: What was found in the file and is no reason to refuse: a fixed word, and a sentence.
    """

    prepared: PreparedImage | PreparedVolume
    source_size: tuple[int, ...]
    spacing_source: str
    photometric: str
    headers: dict[str, str]
    volume: dict[str, Any] = field(default_factory=dict)
    source: SourceValues | None = None
    stored_levels: int = 0
    stored_high: float = 0.0
    notes: dict[str, str] = field(default_factory=dict)


def decode_image(task: DecodeTask) -> DecodedImage:
    """Return one image or volume as stored. Runs in a worker process: no torch, nothing global.

    Raises:
        ImageRefusedError: as of check_sizes; and read_image and preprocess_image, or read_volume, read_nifti and
            preprocess_volume.
    """
    check_sizes(task)
    if isinstance(task.spec, VolumeSpec):
        return _decode_volume(task.files, task.spec)
    (file,) = task.files
    image = read_image(file, options=task.spec.read_options)
    prepared = preprocess_image(image, task.spec, roi=task.roi)
    levels, high = _measure_stored(prepared)
    return DecodedImage(
        prepared=prepared,
        source_size=(image.pixels.shape[1], image.pixels.shape[2]),
        spacing_source=image.spacing_source,
        photometric=image.photometric,
        headers=image.headers,
        source=image.source,
        stored_levels=levels,
        stored_high=high,
        notes=image.notes,
    )


def check_sizes(task: DecodeTask) -> None:
    """Check that no file is larger than an image may be, before a byte of it is read.

    Raises:
        ImageRefusedError: too_large, cannot_open.
    """
    try:
        largest = max((file.stat().st_size for file in task.files), default=0)
    except OSError as error:
        raise ImageRefusedError("cannot_open", "missing, or its permissions forbid reading it") from error
    if largest > task.most_bytes:
        raise ImageRefusedError("too_large", f"a file of {largest} bytes; the limit is {task.most_bytes}")


def _measure_stored(prepared: PreparedImage | PreparedVolume) -> tuple[int, float]:
    """Return distinct stored values and the largest, the frame's padding apart."""
    half = len(prepared.valid_extent) // 2
    places = zip(prepared.valid_extent[:half], prepared.valid_extent[half:], strict=True)
    valid = prepared.pixels[(slice(None), *(slice(start, start + size) for start, size in places))]
    return count_levels(valid), float(valid.max(initial=0))


def _decode_volume(files: tuple[Path, ...], spec: VolumeSpec) -> DecodedImage:
    raw = _read(files, spec)
    if raw.unit == "HU" and spec.implausible_hu == "refuse":
        check_hounsfield(take_sample(raw.values, raw.mask))
    prepared = preprocess_volume(raw, spec)
    levels, high = _measure_stored(prepared)
    sample = take_sample(raw.values, raw.mask)
    source = None
    if sample.size:
        scaling = "own_range"
        if spec.intensity in ("window", "hounsfield"):
            scaling = "windows_hu"
        source = SourceValues(float(sample.min()), float(sample.max()), len(np.unique(sample)), scaling)
    return DecodedImage(
        prepared=prepared,
        source_size=(raw.values.shape[0], raw.values.shape[1], raw.values.shape[2]),
        spacing_source="affine",
        photometric=raw.photometric or "L",
        headers=raw.headers,
        volume={
            "affine": prepared.affine.ravel().tolist(),
            "source_files": len(files),
            "slices_removed": raw.slices_removed,
            "notes": " ".join(raw.notes) or None,
            "may_show_face": may_show_face(raw.headers),
        },
        source=source,
        stored_levels=levels,
        stored_high=high,
        notes=raw.found,
    )


def _read(files: tuple[Path, ...], spec: VolumeSpec) -> RawVolume:
    """Return the volume of DICOM files, or of NIfTI: one file that is not DICOM, or a header with its image."""
    is_pair = [file.suffix.lower() for file in files] == [".hdr", ".img"]
    if not is_pair and (len(files) != 1 or is_dicom(files[0])):
        return read_volume(files, rule=spec.stack, max_voxels=spec.max_voxels, allow_damaged=spec.damaged == "allow")
    raw = read_nifti(
        files[0],
        image=files[1] if is_pair else None,
        analyze_axes=spec.analyze_axes,
        form=spec.nifti_affine,
        volume=spec.nifti_volume,
        max_voxels=spec.max_voxels,
    )
    if spec.nifti_unit:
        return replace(raw, unit=spec.nifti_unit)
    return raw
