"""A phantom as a radiograph: exposure, then a DICOM data set (DX, for presentation, 12 bits in 16).

Nothing here looks at the grade: exposure, contrast, blur, marker, photometric interpretation and transfer
syntax are drawn on their own, so a classifier that scores has read the joint.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from data_prep.demo.demo_set import derive_uid, describe_file
from data_prep.demo.knees import SIDES, Knee, draw_sex
from data_prep.demo.phantom import Floats, render
from medcls.reproducibility import make_generator

# Each with its share of the films; pydicom's own RLE encoder is slow, and a fifth of the films is enough.
TRANSFER_SYNTAXES = {ExplicitVRLittleEndian: 0.4, RLELossless: 0.2, JPEG2000Lossless: 0.4}
_BITS = 12
_MAXIMUM = 4095


@dataclass(frozen=True, slots=True)
class FilmExposure:
    """How one film was taken and stored; drawn without a look at the grade."""

    dose: float
    blur_px: float
    sharpening: float
    gamma: float
    mean: float
    deviation: float
    window_center: float
    window_width: float
    marker: bool
    collimation: tuple[int, int, int, int]
    kvp: int
    inverted: bool
    transfer_syntax: str


def draw_exposure(knee: Knee) -> FilmExposure:
    """Return the exposure of one film: a pure function of its seed, patient and side, blind to the grade."""
    rng = make_generator("demo film", knee.seed, knee.patient, knee.side)
    edges = rng.integers(2, 14, 4) * (rng.random(4) < 0.2)
    mean, deviation = rng.uniform(1500, 2300), rng.uniform(420, 650)
    return FilmExposure(
        dose=float(np.exp(rng.uniform(-1.0, 1.0))),
        blur_px=float(rng.uniform(0.5, 1.1)),
        sharpening=float(rng.uniform(0.0, 0.8)),
        gamma=float(np.exp(rng.uniform(-0.4, 0.4))),
        mean=mean,
        deviation=deviation,
        window_center=mean + deviation * rng.uniform(-0.5, 0.7),
        window_width=deviation * rng.uniform(4.2, 6.0),
        marker=bool(rng.random() < 0.4),
        collimation=(int(edges[0]), int(edges[1]), int(edges[2]), int(edges[3])),
        kvp=int(rng.integers(55, 71)),
        inverted=bool(rng.random() < 0.4),
        transfer_syntax=str(rng.choice(list(TRANSFER_SYNTAXES), p=list(TRANSFER_SYNTAXES.values()))),
    )


def expose(knee: Knee, exposure: FilmExposure) -> NDArray[np.uint16]:
    """Return the film as displayed: (H, W) uint16, 0 to 4095, bone bright; mean and contrast are those drawn.

    Source: own choice; quantum noise of the log signal grows as exp(attenuation / 2) / sqrt(dose).
    """
    rng = make_generator("demo noise", knee.seed, knee.patient, knee.side)
    film = _blur(render(knee), exposure.blur_px)
    noise = rng.standard_normal(film.shape, dtype=np.float32)
    film += np.float32(0.02 / np.sqrt(exposure.dose)) * np.exp(film / 2) * noise
    film += np.float32(exposure.sharpening) * (film - _blur(film, 12.0))
    film = ((film - film.min()) / np.ptp(film)) ** np.float32(exposure.gamma)
    top, bottom, left, right = exposure.collimation
    dark = film.min()  # as shutters leave the borders
    film[:top], film[film.shape[0] - bottom :] = dark, dark
    film[:, :left], film[:, film.shape[1] - right :] = dark, dark
    if exposure.marker:
        _put_marker(film, knee.side, rng)
    film = (film - film.mean()) / film.std() * np.float32(exposure.deviation) + np.float32(exposure.mean)
    pixels: NDArray[np.uint16] = np.clip(np.round(film), 0, _MAXIMUM).astype(np.uint16)
    return pixels


def _blur(film: Floats, sigma_px: float) -> Floats:
    """Return a film under a Gaussian blur; a wide one is made at a quarter of the size."""
    if sigma_px < 4:
        return np.asarray(cv2.GaussianBlur(film, (0, 0), sigma_px), dtype=np.float32)
    small = cv2.resize(film, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    wide = cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma_px / 4), film.shape[::-1])
    return np.asarray(wide, dtype=np.float32)


def _put_marker(film: Floats, side: str, rng: np.random.Generator) -> None:
    """Draw a lead letter into one of the corners, in place."""
    height, width = film.shape
    if rng.random() < 0.5:
        row = int(rng.integers(34, 60))
    else:
        row = height - int(rng.integers(16, 40))
    if rng.random() < 0.5:
        column = int(rng.integers(12, 22))
    else:
        column = width - int(rng.integers(34, 44))
    letter = np.zeros(film.shape, np.uint8)
    cv2.putText(letter, side, (column, row), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 255, 2, cv2.LINE_AA)
    film += (letter / np.float32(255)) * (film.max() - film)


def build_dicom(knee: Knee, exposure: FilmExposure, *, age_years: int) -> Dataset:
    """Return one film as a DICOM data set, encoded in the transfer syntax of the exposure.

    Source: DICOM PS3.3 A.26 (digital X-ray image), C.8.11 (DX modules).
    """
    pixels, center = expose(knee, exposure), exposure.window_center
    photometric, shape, sign = "MONOCHROME2", "IDENTITY", -1
    if exposure.inverted:
        pixels, center = _MAXIMUM - pixels, _MAXIMUM - center
        photometric, shape, sign = "MONOCHROME1", "INVERSE", 1
    dataset = _describe_study(knee)
    _describe_film(dataset, knee)
    dataset.PatientSex, dataset.PatientAge = draw_sex(knee.seed, knee.patient), f"{age_years:03d}Y"
    dataset.KVP, dataset.Exposure = str(exposure.kvp), str(round(6 * exposure.dose))
    dataset.PhotometricInterpretation, dataset.PresentationLUTShape = photometric, shape
    dataset.PixelIntensityRelationshipSign = sign
    dataset.WindowCenter, dataset.WindowWidth = f"{center:.1f}", f"{exposure.window_width:.1f}"
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    if exposure.transfer_syntax == RLELossless:
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    elif exposure.transfer_syntax == JPEG2000Lossless:
        # By the library that also decodes: pydicom's own encoder would need another one.
        stream = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True, bitspersample=_BITS)
        dataset.PixelData = encapsulate([bytes(stream)])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    return dataset


def _describe_study(knee: Knee) -> Dataset:
    """Return a data set with patient, study, series and equipment: nobody, at a fixed date."""
    who = ("medcls/demo", str(knee.seed), str(knee.patient))
    part = Dataset()
    part.SOPClassUID = DigitalXRayImageStorageForPresentation
    part.SOPInstanceUID = derive_uid(*who, "instance", knee.side)
    part.file_meta = describe_file(part.SOPClassUID, part.SOPInstanceUID)
    part.StudyInstanceUID, part.SeriesInstanceUID = derive_uid(*who, "study"), derive_uid(*who, "series")
    part.PatientName, part.PatientID, part.PatientBirthDate = "SYNTHETIC^DEMO", patient_id(knee.patient), ""
    part.StudyDate = part.SeriesDate = part.AcquisitionDate = part.ContentDate = "20000101"
    part.StudyTime = part.SeriesTime = part.AcquisitionTime = part.ContentTime = "120000"
    part.ReferringPhysicianName, part.StudyID, part.AccessionNumber = "", "1", ""
    part.StudyDescription = "SYNTHETIC knee, demo set"
    part.Modality, part.PresentationIntentType = "DX", "FOR PRESENTATION"
    part.SeriesNumber, part.InstanceNumber = "1", str(1 + SIDES.index(knee.side))
    part.Manufacturer = "medcls demo (synthetic)"
    return part


def _describe_film(part: Dataset, knee: Knee) -> None:
    """Add what the film shows, from where, and its detector and pixel format: 12 bits in 16, unsigned."""
    knee_code, view_code = Dataset(), Dataset()  # of SNOMED CT
    knee_code.CodeValue, knee_code.CodeMeaning = "72696002", "Knee"
    view_code.CodeValue, view_code.CodeMeaning = "399348003", "antero-posterior"
    view_code.ViewModifierCodeSequence = []
    knee_code.CodingSchemeDesignator = view_code.CodingSchemeDesignator = "SCT"
    part.BodyPartExamined, part.ImageLaterality, part.AnatomicRegionSequence = "KNEE", knee.side, [knee_code]
    part.ViewPosition, part.ViewCodeSequence = "AP", [view_code]
    part.PatientOrientation, part.PositionerType, part.AcquisitionContextSequence = ["L", "F"], "NONE", []
    part.ImageType = ["DERIVED", "PRIMARY"]
    part.DerivationDescription = "Synthetic: drawn, not acquired"
    part.Rows, part.Columns = knee.shape
    part.ImagerPixelSpacing = part.PixelSpacing = [f"{knee.spacing_mm:g}"] * 2
    part.SamplesPerPixel, part.BitsAllocated, part.BitsStored, part.HighBit = 1, 16, _BITS, _BITS - 1
    part.PixelRepresentation, part.PixelIntensityRelationship = 0, "LOG"
    part.RescaleIntercept, part.RescaleSlope, part.RescaleType = "0", "1", "US"
    part.VOILUTFunction = "LINEAR"
    part.LossyImageCompression, part.BurnedInAnnotation = "00", "NO"
    part.DetectorType, part.DetectorConfiguration, part.DetectorID = "DIRECT", "AREA", f"DEMO{knee.detector}"


def patient_id(patient: int) -> str:
    """Return the identifier of a patient of the demo set."""
    return f"demo-{patient:04d}"
