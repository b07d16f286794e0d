"""One image's header, read without its pixels: a row of the index, and the input of volume stacks."""

from __future__ import annotations

import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from medcls.disk import find_disk_failure
from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.dicom_file import BoundedReader, DicomFile, refusing_parser_errors, starts_without_meta
from medcls.imaging.dicom.pixels import read_pixel_module
from medcls.imaging.dicom.scan import scan_dicom
from medcls.imaging.image import SUPPORTED_SUFFIXES, check_header
from medcls.imaging.raster import PICTURE_FORMATS, READ_FORMATS, check_raster, find_format, measure_raster

_NIFTI_PARTS = {
    348: ((40, "8h"), (76, "8f"), (123, "B")),
    540: ((16, "8q"), (104, "8d"), (500, "i")),
}
"""By the size of the header: place and form of dim, pixdim and xyzt_units (nifti1.h, nifti2.h)."""

NIFTI_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""By the code of the unit of space: unknown counts as mm, then metre, mm, micrometre (nifti1.h)."""

_ANALYZE = (struct.pack("<i", 348), struct.pack(">i", 348))
"""How an Analyze header starts; it has no magic, so that its name must say .hdr, too."""

_START_BYTES = 4096


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


def scan_file(path: Path, *, name: str) -> Instance:
    """Return what a file's header says; nothing is decoded, and a bad file is an Instance with its problem.

    Args:
        path: The file; links, pipes, sockets and devices are not opened.
        name: What Instance.path becomes.

    Returns:
        The kind is told by the content, and by the suffix where the content is nothing known. Texts are those of
        image.read_image, so that an id of the index is the id of the decoded image.

    Raises:
        ImageRefusedError: the disk failed, which is among its causes: nothing is known of the file.

    Source: PS3.3 for attributes; grouping in docs/decisions/0011-index-and-selection.md.
    """
    found: dict[str, Any] = {"kind": "other"}
    try:
        with refusing_parser_errors():
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                found["problem"] = "symbolic_link" if stat.S_ISLNK(status.st_mode) else "special_file"
            else:
                found["size_bytes"] = status.st_size
                with BoundedReader(path) as stream:
                    _scan_stream(stream, found, suffixes=[suffix.lower() for suffix in path.suffixes])
    except ImageRefusedError as error:
        if find_disk_failure(error):
            raise
        found["problem"] = error.reason
    return Instance(path=name, **found)


def _scan_stream(stream: BinaryIO, found: dict[str, Any], *, suffixes: list[str]) -> None:
    """Fill found; what is known before a refusal stays."""
    start = stream.read(_START_BYTES)
    stream.seek(0)
    head = start[128:132] == b"DICM" or _starts_with_group(start, 2)
    picture = find_format(start)
    if head:
        found["kind"] = "dicom"
        file = scan_dicom(stream, found)
        found["image_problem"] = _find_image_problem(file)
    elif picture in READ_FORMATS:
        found["kind"] = "raster"
        found["rows"], found["columns"], found["samples"] = measure_raster(stream, picture)
        found["image_problem"] = _find_raster_problem(stream, picture)
    elif picture in PICTURE_FORMATS:
        found |= {"kind": "raster", "problem": "format_not_read"}
    elif nifti := _nifti_header(start):
        found["kind"] = "nifti"
        found |= _describe_nifti(nifti)
    else:
        _explain_unknown(start, found, suffixes)


def _find_image_problem(file: DicomFile) -> str:
    """Why one image cannot be read of a DICOM file, as far as its header says; volumes have rules of their own."""
    try:
        with refusing_parser_errors():
            check_header(file, read_pixel_module(file))
    except ImageRefusedError as error:
        if find_disk_failure(error):
            raise
        return error.reason
    return ""


def _find_raster_problem(stream: BinaryIO, picture: str) -> str:
    """Return why a picture cannot be read, as far as its header says."""
    try:
        check_raster(stream, picture)
    except ImageRefusedError as error:
        if find_disk_failure(error):
            raise
        return error.reason
    return ""


def _explain_unknown(start: bytes, found: dict[str, Any], suffixes: list[str]) -> None:
    """Leave what is not an image "other"; give what is named like an image, or nearly is one, its problem."""
    last = suffixes[-1] if suffixes else ""
    if starts_without_meta(start):
        found |= {"kind": "dicom", "problem": "no_file_meta"}
    elif last == ".nii" or suffixes[-2:] == [".nii", ".gz"]:
        found |= {"kind": "nifti", "problem": "unknown_format" if start else "empty_file"}
    elif last == ".hdr" and start[:4] in _ANALYZE:
        found |= {"kind": "nifti"} | _describe_nifti(start)
    elif last in SUPPORTED_SUFFIXES:
        dicom = last in (".dcm", ".dicom", ".ima")
        found |= {"kind": "dicom" if dicom else "raster", "problem": "unknown_format" if start else "empty_file"}


def _starts_with_group(start: bytes, group: int) -> bool:
    """Return whether a dataset begins here: a low element of the group, in explicit or implicit little endian."""
    return len(start) >= 8 and start[:2] == bytes((group, 0)) and start[3:4] == b"\0"


def _nifti_header(start: bytes) -> bytes:
    """Return the inflated header where a file starts as NIfTI-1 or -2 do, plain or in gzip; b"" elsewhere."""
    if start.startswith(b"\x1f\x8b"):
        try:
            start = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, _START_BYTES)
        except zlib.error:
            return b""
    known = start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0")
    return start if known else b""


def _describe_nifti(header: bytes) -> dict[str, Any]:
    """Size and in-plane spacing; a damaged header leaves them unknown, and reading the file says why."""
    for order in "<>":
        length = struct.unpack_from(f"{order}i", header)[0]
        parts = _NIFTI_PARTS.get(length, ())
        if parts and len(header) >= length:
            dim, pixdim, units = (struct.unpack_from(order + form, header, place) for place, form in parts)
            scale = NIFTI_MILLIMETRES.get(units[0] & 7, 0.0)
            size = {"columns": dim[1], "rows": dim[2], "frames": dim[3]}
            spacing = (abs(pixdim[2]) * scale, abs(pixdim[1]) * scale)
            known = all(0 < count < 2**31 for count in size.values()) and all(0 < mm < 1e6 for mm in spacing)
            return size | {"pixel_spacing_mm": spacing} if known else {}
    return {}
