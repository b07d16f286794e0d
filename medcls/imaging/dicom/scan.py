"""Scan the header of one DICOM file up to its pixels: the fields of an Instance and its stack key."""

from __future__ import annotations

import io
import zlib
from contextlib import nullcontext, suppress
from typing import Any, BinaryIO

from pydicom import uid
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.dicom_file import KEYWORDS, DicomFile, PixelStop, read_file_meta, skip_preamble
from medcls.imaging.dicom.fast_header import Header, index_keywords, read_plain
from medcls.imaging.dicom.frame import check_kind
from medcls.imaging.dicom.header import MAX_TEXT, find_macro, read_headers, read_numbers
from medcls.imaging.dicom.terms import name_intent

_ENHANCED_WORDS = "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
_IMAGE_WORDS = """
    SpecificCharacterSet SeriesDescription Rows Columns NumberOfFrames SamplesPerPixel BitsStored SliceThickness
    PixelSpacing ImageOrientationPatient ImagePositionPatient
"""
_KEY_NUMBERS = {
    "EchoTime": "te",
    "EchoNumbers": "echo",
    "InversionTime": "ti",
    "FlipAngle": "flip",
    "DiffusionBValue": "b",
    "DiffusionGradientOrientation": "direction",
    "TemporalPositionIdentifier": "time",
    "TemporalPositionIndex": "time_index",
    "NominalCardiacTriggerDelayTime": "cardiac_delay",
    "NominalPercentageOfCardiacPhase": "cardiac_phase",
    "NominalPercentageOfRespiratoryPhase": "respiratory_phase",
    "KVP": "kvp",
}
_KEY_TEXTS = {
    "ComplexImageComponent": "component",
    "DiffusionDirectionality": "directionality",
    "SequenceName": "sequence",
    "ConvolutionKernel": "kernel",
}
KEY_WORDS = {short: keyword for keyword, short in (_KEY_NUMBERS | _KEY_TEXTS).items()} | {
    "trigger": "TriggerTime",
    "time_slice": "ImageIndex",
}
"""The attributes behind the short names in Instance.stack_key."""

_KEY_HELPERS = "TriggerTime CardiacNumberOfImages SeriesType ImageIndex NumberOfSlices"
_WORDS = (*KEYWORDS, *_IMAGE_WORDS.split(), *_ENHANCED_WORDS.split(), *_KEY_NUMBERS, *_KEY_TEXTS)
_WANTED = index_keywords(tuple(dict.fromkeys((*_WORDS, *_KEY_HELPERS.split()))))
_TAGS: list[BaseTag | int] = list(_WANTED)

_MAX_HEADER_BYTES = 64 << 20
"""Where an inflated header is cut off: pixels behind it are nobody's business here."""

_MAX_COUNT = 2**31


def scan_dicom(stream: BinaryIO, found: dict[str, Any]) -> DicomFile:
    """Fill found with the fields of a DICOM file, and return the file; what is known before a refusal stays.

    Raises:
        ImageRefusedError: no_transfer_syntax, unsupported_transfer_syntax, truncated, dicomdir, no_pixel_data,
            not_an_image (a segmentation), malformed_element.

    Source: PS3.10 7.1; PS3.3 for attributes.
    """
    plain = read_plain(stream, _WANTED)
    if plain is not None:
        dataset, syntax, element = plain
        found["transfer_syntax"] = str(syntax)
        file = DicomFile(dataset, syntax, element, stream)
        found |= _describe(dataset)
    else:
        stream.seek(0)
        file = _read_any(stream, found)
    check_kind(file)
    return file


def _read_any(stream: BinaryIO, found: dict[str, Any]) -> DicomFile:
    """By pydicom: the file with the header up to its pixels."""
    skip_preamble(stream)
    syntax, storage = read_file_meta(stream)
    found["transfer_syntax"] = str(syntax)
    body = _inflate_start(stream) if syntax.is_deflated else stream
    stop = PixelStop(body, storage)
    dataset = _read_header(body, syntax, stop)
    # That a file holds no pixels says more than a bad element of it.
    with suppress(Exception) if stop.element is None else nullcontext():
        found |= _describe(dataset)
    if stop.element is None:
        raise stop.refuse(dataset)
    return DicomFile(dataset, syntax, stop.element, body, is_cut=syntax.is_deflated)


def _read_header(stream: BinaryIO, syntax: uid.UID, stop: PixelStop) -> Header:
    """Return the elements that are needed, up to the pixel element."""
    return read_dataset(
        stream,
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
        stop_when=stop,
        specific_tags=_TAGS,
    )


def _inflate_start(stream: BinaryIO) -> BinaryIO:
    """Return the first bytes of a deflated dataset, so many that every honest header lies within them."""
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = machine.decompress(stream.read(), _MAX_HEADER_BYTES)
    except zlib.error as error:
        raise ImageRefusedError("truncated", "the deflated dataset is damaged") from error
    if not machine.eof and not machine.unconsumed_tail:
        raise ImageRefusedError("truncated", "the deflated dataset ends early")
    return io.BytesIO(data)


def _describe(dataset: Header) -> dict[str, Any]:
    """Return the fields of an Instance that a DICOM header fills."""
    headers = {name: text if len(text) <= MAX_TEXT else "" for name, text in read_headers(dataset).items()}
    orientation = find_macro(dataset, "PlaneOrientationSequence")
    position = find_macro(dataset, "PlanePositionSequence")
    measures = find_macro(dataset, "PixelMeasuresSequence")
    spacing = _numbers(measures, "PixelSpacing", count=2)
    thickness = _numbers(measures, "SliceThickness", count=1)
    return {
        "patient_id": headers["PatientID"],
        "patient_sex": headers["PatientSex"],
        "patient_age": headers["PatientAge"],
        "laterality": headers["ImageLaterality"] or headers["Laterality"],
        "study_uid": headers["StudyInstanceUID"],
        "series_uid": headers["SeriesInstanceUID"],
        "sop_uid": headers["SOPInstanceUID"],
        "sop_class_uid": headers["SOPClassUID"],
        "frame_uid": headers["FrameOfReferenceUID"],
        "modality": headers["Modality"],
        "image_type": headers["ImageType"],
        "series_description": _text(dataset, "SeriesDescription"),
        "body_part": headers["BodyPartExamined"],
        "manufacturer": headers["Manufacturer"],
        "intent": name_intent(headers["PresentationIntentType"], headers["SOPClassUID"]),
        "photometric": headers["PhotometricInterpretation"],
        "rows": _count(dataset, "Rows", default=0),
        "columns": _count(dataset, "Columns", default=0),
        "frames": _count(dataset, "NumberOfFrames", default=1),
        "samples": _count(dataset, "SamplesPerPixel", default=1),
        "bits_stored": _count(dataset, "BitsStored", default=0),
        "orientation": _numbers(orientation, "ImageOrientationPatient", count=6),
        "position": _numbers(position, "ImagePositionPatient", count=3),
        "pixel_spacing_mm": spacing if spacing and min(spacing) > 0 else (),
        "slice_thickness_mm": thickness[0] if thickness else None,
        "stack_key": _stack_key(dataset),
    }


def _stack_key(dataset: Header) -> str:
    """Canonical text of what tells volumes of one series apart besides geometry and ImageType."""
    macro = find_macro(dataset, "MRDiffusionSequence")
    sources = (dataset, macro) if macro is not dataset else (dataset,)
    found: dict[str, str] = {}
    for source in sources:
        for keyword, short in _KEY_NUMBERS.items():
            if numbers := _numbers(source, keyword):
                found[short] = ",".join(f"{number:.6g}" for number in numbers)
        for keyword, short in _KEY_TEXTS.items():
            if text := _text(source, keyword):
                found[short] = text
    found |= _phase_of_cycle(dataset)
    return ";".join(f"{short}={found[short]}" for short in sorted(found))


def _phase_of_cycle(dataset: Header) -> dict[str, str]:
    """Return the phase of a cine or the time slice of a dynamic PET, which have no attribute of their own.

    Source: PS3.3 C.8.3.1 (TriggerTime says the phase only where the heart's cycle has several images),
    C.8.9.4.1.9 (ImageIndex counts slices first, then time slots).
    """
    found: dict[str, str] = {}
    trigger = _numbers(dataset, "TriggerTime", count=1)
    if trigger and _count(dataset, "CardiacNumberOfImages", default=0) > 1:
        found["trigger"] = f"{trigger[0]:.6g}"
    slices, index = (_count(dataset, word, default=0) for word in ("NumberOfSlices", "ImageIndex"))
    if slices and index and _text(dataset, "SeriesType").startswith(("DYNAMIC", "GATED")):
        found["time_slice"] = str((index - 1) // slices)
    return found


def _text(dataset: Header, keyword: str) -> str:
    """Printable text of an element, "" where it is absent or longer than a page."""
    value = dataset.get(keyword)
    if value is None:
        return ""
    parts = value if isinstance(value, MultiValue | list) else [value]
    text = "\\".join(str(part).strip() for part in parts)
    return "".join(letter for letter in text if letter.isprintable()) if len(text) <= MAX_TEXT else ""


def _numbers(dataset: Header, keyword: str, *, count: int | None = None) -> tuple[float, ...]:
    """Finite numbers, () where they are absent, malformed or another count: unknown geometry is no reason to stop."""
    if keyword not in dataset:
        return ()
    try:
        numbers = read_numbers(dataset, keyword)
    except ImageRefusedError:
        return ()
    return tuple(numbers) if len(numbers) == (count or len(numbers)) and len(numbers) <= MAX_TEXT else ()


def _count(dataset: Header, keyword: str, *, default: int) -> int:
    """Return a whole number that a table can hold; 0 where it is malformed."""
    if keyword not in dataset:
        return default
    numbers = _numbers(dataset, keyword, count=1)
    return int(numbers[0]) if numbers and 0 <= numbers[0] < _MAX_COUNT else 0
