"""Synthetic series whose voxels are a known function of the place in the patient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SLOPE = 0.05
"""Rescale slope, so the step of the stored values; the phantom is right to half of it."""


def make_uid() -> str:
    """Returns a new identifier of 64 characters: shorter ones make files of like slices differ in size."""
    while len(uid := generate_uid()) < 64:
        pass
    return str(uid)


def phantom(points: np.ndarray) -> np.ndarray:
    """A value for every place (..., 3) in mm: no flip, exchange of axes or shift leaves it as it is."""
    x, y, z = np.moveaxis(points, -1, 0)
    return 0.7 * x + 1.3 * y + 2.9 * z + 0.002 * x * y


def rotate(*degrees: float) -> tuple[float, ...]:
    """Orientation of an axial slice turned about x, then y, then z."""
    turned = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[one, one] = step[two, two] = np.cos(angle)
        step[one, two], step[two, one] = -np.sin(angle), np.sin(angle)
        turned = step @ turned
    return (*turned[:, 0].tolist(), *turned[:, 1].tolist())


def build_slices(
    distances: Sequence[float] = tuple(2.5 * k for k in range(8)),
    *,
    orientation: Sequence[float] = AXIAL,
    size: tuple[int, int] = (12, 10),
    spacing: tuple[float, float] = (0.8, 0.6),
    origin: Sequence[float] = (-30.0, 20.0, 5.0),
    slope: Sequence[float] = (0.0, 0.0),
    **elements: Any,
) -> list[Dataset]:
    """Painted slices at distances along the normal; slope: mm along columns and rows for every mm of distance."""
    row, column = np.array(orientation).reshape(2, 3)
    normal = np.cross(row, column)
    series, study, frame = make_uid(), make_uid(), make_uid()
    slices = []
    for number, distance in enumerate(distances, start=1):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, make_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.PatientID, ds.Modality, ds.InstanceNumber = "P1", "CT", number
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Rows, ds.Columns = size
        ds.ImageOrientationPatient = [f"{v:.12f}" for v in orientation]
        place = np.array(origin) + distance * (normal + slope[0] * column + slope[1] * row)
        ds.ImagePositionPatient = [f"{v:.10f}" for v in place]
        ds.PixelSpacing = list(spacing)
        ds.SliceThickness = "99"  # a lie that nobody may believe
        ds.RescaleSlope, ds.RescaleIntercept = str(SLOPE), "0"
        for keyword, value in elements.items():
            setattr(ds, keyword, value)
        paint(ds)
        slices.append(ds)
    return slices


def paint(ds: Dataset) -> None:
    """Gives a slice the phantom's values at the places that its own header names."""
    row, column = np.array(ds.ImageOrientationPatient, float).reshape(2, 3)
    h, w = np.mgrid[: ds.Rows, : ds.Columns][..., None]
    points = np.array(ds.ImagePositionPatient, float) + h * ds.PixelSpacing[0] * column + w * ds.PixelSpacing[1] * row
    stored = np.rint((phantom(points) - float(ds.RescaleIntercept)) / float(ds.RescaleSlope))
    set_pixels(ds, stored.astype(np.int16))


def set_pixels(ds: Dataset, stored: np.ndarray) -> None:
    """Signed 16-bit pixels with the header that they need."""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.PixelData = stored.astype("<i2").tobytes()
    ds["PixelData"].VR = "OW"


def move(ds: Dataset, *, along: float = 0.0, column: float = 0.0, row: float = 0.0) -> None:
    """Moves a slice by mm along its normal and inside its plane, and paints it anew."""
    rows, columns = np.array(ds.ImageOrientationPatient, float).reshape(2, 3)
    shift = along * np.cross(rows, columns) + column * columns + row * rows
    ds.ImagePositionPatient = [f"{v:.10f}" for v in np.array(ds.ImagePositionPatient, float) + shift]
    paint(ds)


def build_enhanced(slices: Sequence[Dataset], **elements: Any) -> Dataset:
    """An enhanced MR file whose frames are these slices, in this order; all geometry is in functional groups."""
    ds = Dataset()
    first = slices[0]
    ds.SOPClassUID, ds.SOPInstanceUID = EnhancedMRImageStorage, make_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
    ds.FrameOfReferenceUID, ds.PatientID, ds.Modality = first.FrameOfReferenceUID, "P1", "MR"
    ds.ImageType, ds.Rows, ds.Columns = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], first.Rows, first.Columns
    ds.NumberOfFrames = len(slices)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, "99"
    plane.ImageOrientationPatient = first.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([plane])
    ds.SharedFunctionalGroupsSequence = Items([shared])
    ds.PerFrameFunctionalGroupsSequence = Items([_build_groups(each) for each in slices])
    stored = np.stack([np.frombuffer(each.PixelData, "<i2").reshape(each.Rows, each.Columns) for each in slices])
    set_pixels(ds, stored)
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def _build_groups(slice_: Dataset) -> Dataset:
    """Functional groups of one frame: position, rescale, and echo time where the slice has one."""
    groups, position, rescale = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = slice_.ImagePositionPatient
    rescale.RescaleSlope, rescale.RescaleIntercept = slice_.RescaleSlope, slice_.RescaleIntercept
    rescale.RescaleType = "US"
    groups.PlanePositionSequence, groups.PixelValueTransformationSequence = Items([position]), Items([rescale])
    if "EchoTime" in slice_:
        echo = Dataset()
        echo.EffectiveEchoTime = float(slice_.EchoTime)
        groups.MREchoSequence = Items([echo])
    return groups


def write_series(folder: Path, slices: Sequence[Dataset], *, syntax: str = ExplicitVRLittleEndian) -> list[Path]:
    """Writes files whose names say nothing of their order, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ds in slices:
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = syntax
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        path = folder / f"{make_uid()}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def locate(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(D, H, W, 3): where an affine places every voxel, mm."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def find_error(volume: Any) -> float:
    """Largest difference of a volume's unmasked voxels from the phantom at the places of its affine."""
    difference = np.abs(volume.values - phantom(locate(volume.affine, volume.values.shape)))
    return float(difference.max() if volume.mask is None else difference[~volume.mask].max())
