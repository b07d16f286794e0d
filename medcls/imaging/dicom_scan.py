"""What the header of one DICOM file says, read up to its pixels: the fields of an Instance and its stack key."""

from __future__ import annotations

import io
import zlib
from typing import Any, BinaryIO

from pydicom import uid
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from medcls.errors import ImageRefusedError
from medcls.imaging.headers import find_macro, read_headers, read_numbers
from medcls.imaging.part10 import HEADER_KEYWORDS, read_transfer_syntax, skip_preamble
from medcls.imaging.plain import UNDEFINED_LENGTH, Header, index_keywords, read_plain
from medcls.imaging.terms import name_intent

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
_KEY_HELPERS = "TriggerTime CardiacNumberOfImages SeriesType ImageIndex NumberOfSlices"
_WORDS = (*HEADER_KEYWORDS, *_IMAGE_WORDS.split(), *_ENHANCED_WORDS.split(), *_KEY_NUMBERS, *_KEY_TEXTS)
_WANTED = index_keywords((*_WORDS, *_KEY_HELPERS.split()))
_TAGS: list[BaseTag | int] = list(_WANTED)

_PIXELS, _DIRECTORY_GROUP = range(0x7FE00008, 0x7FE00011), 0x0004
_MAX_HEADER_BYTES = 64 << 20
"""Where an inflated header is cut off: pixels behind it are nobody's business here."""

_MAX_TEXT, _MAX_COUNT = 1024, 2**31
_NO_IMAGES = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
"""Segmentation and label map segmentation: labels drawn on other images (PS3.3 A.51), nothing to classify."""


def scan_dicom(stream: BinaryIO, found: dict[str, Any]) -> None:
    """Fills found with the fields of a DICOM file; what is known before a refusal stays.

    Raises:
        ImageRefusedError: no_transfer_syntax, unsupported_transfer_syntax, truncated, dicomdir, no_pixel_data,
            not_an_image (a segmentation), malformed_element.

    Source: PS3.10 7.1; PS3.3 for attributes.
    """
    plain = read_plain(stream, _WANTED)
    if plain is None:
        stream.seek(0)
        dataset, tag, fits = _read_any(stream, found)
    else:
        dataset, syntax, element = plain
        found["transfer_syntax"] = str(syntax)
        tag, fits = _PIXELS[0], _holds(stream, element.offset, element.length)
    found |= _describe(dataset)
    if tag not in _PIXELS:
        raise ImageRefusedError("no_pixel_data" if fits else "truncated")
    if found["sop_class_uid"] in _NO_IMAGES:
        raise ImageRefusedError("not_an_image")
    if not fits:
        raise ImageRefusedError("truncated")


def _read_any(stream: BinaryIO, found: dict[str, Any]) -> tuple[Header, int, bool]:
    """By pydicom: the header, the tag behind it (0 where the file ends), and whether all of it is in the file."""
    skip_preamble(stream)
    syntax = read_transfer_syntax(stream)
    found["transfer_syntax"] = str(syntax)
    body = _inflate_start(stream) if syntax.is_deflated else stream
    end: list[int] = []
    dataset = _read_header(body, syntax, end)
    if not end:
        return dataset, 0, body.tell() <= body.seek(0, io.SEEK_END)
    tag, length, offset = end
    if tag >> 16 == _DIRECTORY_GROUP:
        raise ImageRefusedError("dicomdir")
    return dataset, tag, syntax.is_deflated or _holds(body, offset, length)


def _holds(stream: BinaryIO, offset: int, length: int) -> bool:
    """Whether the file is long enough for a value; compressed pixels are of undefined length."""
    return length == UNDEFINED_LENGTH or stream.seek(0, io.SEEK_END) - offset >= length


def _read_header(stream: BinaryIO, syntax: uid.UID, end: list[int]) -> Header:
    """The elements that are needed; end becomes tag, length and offset of the element that stopped the reading."""

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag >= _PIXELS[0] or tag >> 16 == _DIRECTORY_GROUP:
            end[:] = int(tag), length, stream.tell()
        return bool(end)

    return read_dataset(
        stream,
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
        stop_when=stop,
        specific_tags=_TAGS,
    )


def _inflate_start(stream: BinaryIO) -> BinaryIO:
    """The first bytes of a deflated dataset, so many that every honest header lies within them."""
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = machine.decompress(stream.read(), _MAX_HEADER_BYTES)
    except zlib.error as error:
        raise ImageRefusedError("truncated", "the deflated dataset is damaged") from error
    if not machine.eof and not machine.unconsumed_tail:
        raise ImageRefusedError("truncated", "the deflated dataset ends early")
    return io.BytesIO(data)


def _describe(dataset: Header) -> dict[str, Any]:
    """The fields of an Instance that a DICOM header fills."""
    headers = read_headers(dataset)
    if any(len(text) > _MAX_TEXT for text in headers.values()):
        raise ImageRefusedError("malformed_element", "a code or an identifier longer than a page")
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
    """The phase of a cine or the time slice of a dynamic PET, which have no attribute of their own.

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
    return "".join(letter for letter in text if letter.isprintable()) if len(text) <= _MAX_TEXT else ""


def _numbers(dataset: Header, keyword: str, *, count: int | None = None) -> tuple[float, ...]:
    """Finite numbers, () where they are absent, malformed or another count: unknown geometry is no reason to stop."""
    if keyword not in dataset:
        return ()
    try:
        numbers = read_numbers(dataset, keyword)
    except ImageRefusedError:
        return ()
    return tuple(numbers) if len(numbers) == (count or len(numbers)) and len(numbers) <= _MAX_TEXT else ()


def _count(dataset: Header, keyword: str, *, default: int) -> int:
    """A whole number that a table can hold; 0 where it is malformed."""
    if keyword not in dataset:
        return default
    numbers = _numbers(dataset, keyword, count=1)
    return int(numbers[0]) if numbers and 0 <= numbers[0] < _MAX_COUNT else 0
