"""One image or volume to its stored array, as worker processes do it: the one way in for data_prep and predict."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from medcls.imaging.burnt_in import may_show_face
from medcls.imaging.nifti import read_nifti
from medcls.imaging.preprocess import Box, PreparedImage, PreprocessSpec, preprocess_image
from medcls.imaging.readers import is_dicom, read_image
from medcls.imaging.volume import RawVolume, read_volume
from medcls.imaging.volume_preprocess import PreparedVolume, preprocess_volume
from medcls.imaging.volume_spec import VolumeSpec

Spec: TypeAlias = PreprocessSpec | VolumeSpec


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """One image to decode.

    Attributes:
        files: Where it lies: one file, or all files of a volume, in any order.
        roi: (x, y, width, height) of its region in pixels of the file; None for the whole image and for volumes.
        spec: What is done to it.
    """

    files: tuple[Path, ...]
    roi: Box | None
    spec: Spec


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
    """

    prepared: PreparedImage | PreparedVolume
    source_size: tuple[int, ...]
    spacing_source: str
    photometric: str
    headers: dict[str, str]
    volume: dict[str, Any] = field(default_factory=dict)


def decode_image(task: DecodeTask) -> DecodedImage:
    """Returns one image or volume as stored. Runs in a worker process: no torch, nothing global.

    Raises:
        ImageRefusedError: as of read_image and preprocess_image, or read_volume, read_nifti and preprocess_volume.
    """
    if isinstance(task.spec, VolumeSpec):
        return _decode_volume(task.files, task.spec)
    (file,) = task.files
    image = read_image(file, options=task.spec.read_options)
    return DecodedImage(
        prepared=preprocess_image(image, task.spec, roi=task.roi),
        source_size=(image.pixels.shape[1], image.pixels.shape[2]),
        spacing_source=image.spacing_source,
        photometric=image.photometric,
        headers=image.headers,
    )


def _decode_volume(files: tuple[Path, ...], spec: VolumeSpec) -> DecodedImage:
    raw = _read(files, spec)
    prepared = preprocess_volume(raw, spec)
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
    )


def _read(files: tuple[Path, ...], spec: VolumeSpec) -> RawVolume:
    """NIfTI is one file that is no DICOM, or a header with its image."""
    pair = len(files) == 2 and files[0].suffix.lower() == ".hdr" and files[1].suffix.lower() == ".img"
    if pair or (len(files) == 1 and not is_dicom(files[0])):
        image = files[1] if pair else None
        raw = read_nifti(files[0], image=image, analyze_axes=spec.analyze_axes, max_voxels=spec.max_voxels)
        return replace(raw, unit=spec.nifti_unit) if spec.nifti_unit else raw
    return read_volume(files, rule=spec.stack, max_voxels=spec.max_voxels)
