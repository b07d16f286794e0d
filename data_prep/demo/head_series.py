"""A drawn head as a DICOM MR series of one file per slice, with valid headers, a fixed date and no real person."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from data_prep.demo.demo_set import derive_uid, describe_file
from data_prep.demo.head_phantom import SCANNERS, Scanner, place_voxels, scan
from data_prep.demo.head_set import Head

_DATE, _TIME = "20000101", "120000"


def build_slices(head: Head) -> Iterator[bytes]:
    """Yield the files of a head's series, in order.

    Source: DICOM PS3.3 A.4 (MR image), C.8.3 (MR modules), C.7.6.2 (image plane).
    """
    scanner = SCANNERS[head.site]
    volume, affine = scan(head), place_voxels(scanner)
    common = _describe_study(head)
    _describe_scan(common, scanner, volume)
    for number, plane in enumerate(volume):
        common.SOPInstanceUID = _derive_uid(head, "instance", str(number))
        common.InstanceNumber = str(number + 1)
        common.ImagePositionPatient = [_decimal(v) for v in affine[:3] @ (number, 0, 0, 1)]
        common.SliceLocation = _decimal(number * scanner.spacing_mm[0])
        common.SmallestImagePixelValue, common.LargestImagePixelValue = int(plane.min()), int(plane.max())
        common.PixelData = plane.astype("<u2").tobytes()
        common["PixelData"].VR = "OW"
        common.file_meta = describe_file(MRImageStorage, common.SOPInstanceUID)
        file = io.BytesIO()
        common.save_as(file, enforce_file_format=True)
        yield file.getvalue()


def _describe_study(head: Head) -> Dataset:
    """Return a data set with patient, study, series, frame of reference and equipment."""
    part = Dataset()
    part.SOPClassUID = MRImageStorage
    part.StudyInstanceUID, part.SeriesInstanceUID, part.FrameOfReferenceUID = (
        _derive_uid(head, name) for name in ("study", "series", "frame")
    )
    part.PositionReferenceIndicator = ""
    part.PatientName, part.PatientID, part.PatientBirthDate = "SYNTHETIC^DEMO", head.patient_id, ""
    part.PatientSex, part.PatientAge = head.sex, f"{head.age_years:03d}Y"
    part.StudyDate = part.SeriesDate = part.AcquisitionDate = part.ContentDate = _DATE
    part.StudyTime = part.SeriesTime = part.AcquisitionTime = part.ContentTime = _TIME
    part.ReferringPhysicianName, part.StudyID, part.AccessionNumber = "", "1", ""
    part.StudyDescription, part.SeriesDescription = "SYNTHETIC head, demo set", "T1 3D, drawn"
    part.Modality, part.SeriesNumber, part.BodyPartExamined, part.PatientPosition = "MR", "1", "HEAD", "HFS"
    part.Manufacturer, part.ManufacturerModelName = "medcls demo (synthetic)", SCANNERS[head.site].name
    return part


def _describe_scan(part: Dataset, scanner: Scanner, volume: NDArray[np.uint16]) -> None:
    """Add how the slices were taken, where they are, and their pixel format: 12 bits in 16, unsigned."""
    part.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    part.DerivationDescription = "Synthetic: drawn, not acquired"
    part.ScanningSequence, part.SequenceVariant, part.ScanOptions = ["GR", "IR"], "MP", ""
    part.MRAcquisitionType = "3D"
    part.MagneticFieldStrength = _decimal(scanner.tesla)
    part.RepetitionTime, part.EchoTime, part.InversionTime, part.EchoTrainLength = "2300", "3", "900", "1"
    slices, rows, columns = scanner.axes
    if np.dot(np.cross(columns, rows), slices) == 0:
        raise ValueError(f"axes of {scanner.name}: slices must be stacked along the normal of rows and columns")
    part.ImageOrientationPatient = [_decimal(v) for v in (*columns, *rows)]
    part.PixelSpacing = [_decimal(v) for v in scanner.spacing_mm[1:]]
    part.SliceThickness = part.SpacingBetweenSlices = _decimal(scanner.spacing_mm[0])
    _, part.Rows, part.Columns = scanner.shape
    part.SamplesPerPixel, part.PhotometricInterpretation = 1, "MONOCHROME2"
    part.BitsAllocated, part.BitsStored, part.HighBit, part.PixelRepresentation = 16, 12, 11, 0
    top = float(np.percentile(volume, 99.5))  # a window around the tissues
    part.WindowCenter, part.WindowWidth = f"{top / 2:.0f}", f"{top:.0f}"
    part.LossyImageCompression, part.BurnedInAnnotation = "00", "NO"


def _derive_uid(head: Head, *parts: str) -> str:
    """Return a UID that is the same for the same seed and patient."""
    return derive_uid("medcls/demo3d", str(head.seed), head.patient_id, *parts)


def _decimal(value: float) -> str:
    """Return a decimal string (PS3.5 6.2, DS) of at most 16 characters."""
    return f"{value:.10g}"
