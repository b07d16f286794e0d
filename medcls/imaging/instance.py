"""Instance: what the header of one file says; a row of the index, and the input of volume stacks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Instance:
    """One file of a source folder. It holds real identifiers: it stays in memory, outputs carry pseudonyms.

    Attributes:
        path: Relative to the source folder, with /.
        kind: "dicom", "nifti", "raster" (PNG, JPEG, TIFF, BMP, .npy, and pictures in formats that are not read) or
            "other".
        size_bytes: Of the file.
        problem: Fixed reason word where the file cannot be an image ("" where it can): truncated, no_pixel_data …
        image_problem: Fixed reason word if one image cannot be read of the file, as far as its header says and with
            default settings: multi_frame, unsupported_colour, burnt_in … ("" if it can, or if it has a problem).
        patient_id: PatientID; "" where absent, as in all texts below.
        patient_sex: PatientSex.
        patient_age: PatientAge ("061Y").
        laterality: ImageLaterality, else Laterality.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        sop_uid: SOPInstanceUID.
        sop_class_uid: SOPClassUID.
        frame_uid: FrameOfReferenceUID.
        modality: Modality.
        image_type: ImageType, joined by a backslash.
        series_description: SeriesDescription, free text: for selection rules alone, never in an output.
        body_part: BodyPartExamined.
        manufacturer: Manufacturer.
        transfer_syntax: TransferSyntaxUID.
        intent: "processing" (raw detector values), "presentation", or "" if unknown: terms.name_intent.
        photometric: PhotometricInterpretation.
        rows: Rows; 0 where absent, as in the numbers below.
        columns: Columns.
        frames: NumberOfFrames, 1 where absent.
        samples: SamplesPerPixel.
        bits_stored: BitsStored.
        orientation: ImageOrientationPatient, six direction cosines (row, then column); () where absent.
        position: ImagePositionPatient, mm; () where absent.
        pixel_spacing_mm: PixelSpacing (distance of rows, of columns); () where absent.
        slice_thickness_mm: SliceThickness; None where absent. Never the distance of slices.
        stack_key: What tells volumes of one series apart besides geometry: echo, time, b-value …, canonical text.
    """

    path: str
    kind: str
    size_bytes: int = 0
    problem: str = ""
    image_problem: str = ""
    patient_id: str = ""
    patient_sex: str = ""
    patient_age: str = ""
    laterality: str = ""
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    sop_class_uid: str = ""
    frame_uid: str = ""
    modality: str = ""
    image_type: str = ""
    series_description: str = ""
    body_part: str = ""
    manufacturer: str = ""
    transfer_syntax: str = ""
    intent: str = ""
    photometric: str = ""
    rows: int = 0
    columns: int = 0
    frames: int = 1
    samples: int = 1
    bits_stored: int = 0
    orientation: tuple[float, ...] = ()
    position: tuple[float, ...] = ()
    pixel_spacing_mm: tuple[float, ...] = ()
    slice_thickness_mm: float | None = None
    stack_key: str = ""
