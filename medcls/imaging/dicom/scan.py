"""Scan the header of one DICOM file up to its pixels: the fields of an Instance and its stack key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import BinaryIO

from medcls.disk import find_disk_failure
from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.dicom_file import (
    KEYWORDS,
    DicomFile,
    PixelStop,
    inflate,
    read_file_meta,
    read_to_pixels,
    refusing_parser_errors,
    skip_preamble,
)
from medcls.imaging.dicom.fast_header import Header, index_keywords, read_plain
from medcls.imaging.dicom.frame import check_kind
from medcls.imaging.dicom.header import MAX_TEXT, find_macro, read_headers, read_numbers, read_text
from medcls.imaging.dicom.pixels import read_pixel_module
from medcls.imaging.dicom.terms import name_intent
from medcls.imaging.image import check_header
from medcls.imaging.instance import Instance

_IMAGE_WORDS = """
    SpecificCharacterSet SeriesDescription Rows Columns NumberOfFrames SamplesPerPixel BitsStored SliceThickness
    PixelSpacing ImageOrientationPatient ImagePositionPatient SharedFunctionalGroupsSequence
    PerFrameFunctionalGroupsSequence
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
_WORDS = (*KEYWORDS, *_IMAGE_WORDS.split(), *_KEY_NUMBERS, *_KEY_TEXTS, *_KEY_HELPERS.split())
_WANTED = index_keywords(dict.fromkeys(_WORDS))

_MAX_HEADER_BYTES = 64 << 20
"""Where an inflated header is cut off: pixels behind it are nobody's business here."""

_MAX_COUNT = 2**31


def scan_dicom(stream: BinaryIO, found: Instance) -> Iterator[Instance]:
    """Yield an instance with ever more of its fields filled: the last one before a refusal holds what is known.

    Raises:
        ImageRefusedError: no_transfer_syntax, unsupported_transfer_syntax, truncated, dicomdir, no_pixel_data,
            not_an_image (a segmentation), malformed_element.

    Source: PS3.10 7.1; PS3.3 for attributes.
    """
    plain = read_plain(stream, _WANTED)
    if plain is not None:
        file = DicomFile(*plain, stream)
        found = replace(found, transfer_syntax=str(file.syntax))
        yield found
        found = _describe(file.dataset, found)
    else:
        stream.seek(0)
        skip_preamble(stream)
        syntax, storage = read_file_meta(stream)
        found = replace(found, transfer_syntax=str(syntax))
        yield found
        if syntax.is_deflated:
            stream = inflate(stream, _MAX_HEADER_BYTES, cut=True)
        stop = PixelStop(stream, storage)
        dataset = read_to_pixels(stream, syntax, _WANTED, stop)
        if stop.element is None:
            with suppress(Exception):  # that a file holds no pixels says more than a bad element of it
                yield _describe(dataset, found)
            raise stop.refuse(dataset)
        found = _describe(dataset, found)
        file = DicomFile(dataset, syntax, stop.element, stream, is_cut=syntax.is_deflated)
    yield found
    check_kind(file)
    yield replace(found, image_problem=find_refusal(lambda: check_header(file, read_pixel_module(file))))


def find_refusal(check: Callable[[], object]) -> str:
    """Return the reason of the refusal that a check of one image raises; "" if it passes.

    Raises:
        ImageRefusedError: the disk failed, which is among its causes.
    """
    try:
        with refusing_parser_errors():
            check()
    except ImageRefusedError as error:
        if find_disk_failure(error):
            raise
        return error.reason
    return ""


def _describe(dataset: Header, found: Instance) -> Instance:
    """Return the instance with the fields that a DICOM header fills."""
    headers = read_headers(dataset)
    for name, text in headers.items():
        if len(text) > MAX_TEXT:
            headers[name] = ""
    measures = find_macro(dataset, "PixelMeasuresSequence")
    spacing = _numbers(measures, "PixelSpacing", count=2)
    if spacing and min(spacing) <= 0:
        spacing = ()
    thickness, *_ = _numbers(measures, "SliceThickness", count=1) or (None,)
    return replace(
        found,
        patient_id=headers["PatientID"],
        patient_sex=headers["PatientSex"],
        patient_age=headers["PatientAge"],
        laterality=headers["ImageLaterality"] or headers["Laterality"],
        study_uid=headers["StudyInstanceUID"],
        series_uid=headers["SeriesInstanceUID"],
        sop_uid=headers["SOPInstanceUID"],
        sop_class_uid=headers["SOPClassUID"],
        frame_uid=headers["FrameOfReferenceUID"],
        modality=headers["Modality"],
        image_type=headers["ImageType"],
        series_description=_text(dataset, "SeriesDescription"),
        body_part=headers["BodyPartExamined"],
        manufacturer=headers["Manufacturer"],
        intent=name_intent(headers["PresentationIntentType"], headers["SOPClassUID"]),
        photometric=headers["PhotometricInterpretation"],
        rows=_count(dataset, "Rows"),
        columns=_count(dataset, "Columns"),
        frames=_count(dataset, "NumberOfFrames", default=1),
        samples=_count(dataset, "SamplesPerPixel", default=1),
        bits_stored=_count(dataset, "BitsStored"),
        orientation=_numbers(find_macro(dataset, "PlaneOrientationSequence"), "ImageOrientationPatient", count=6),
        position=_numbers(find_macro(dataset, "PlanePositionSequence"), "ImagePositionPatient", count=3),
        pixel_spacing_mm=spacing,
        slice_thickness_mm=thickness,
        stack_key=_stack_key(dataset),
    )


def _stack_key(dataset: Header) -> str:
    """Return what tells volumes of one series apart besides geometry and ImageType, as canonical text.

    Source: PS3.3 C.8.3.1 (TriggerTime says the phase only if the heart's cycle has several images),
    C.8.9.4.1.9 (ImageIndex counts slices first, then time slots).
    """
    sources, macro = [dataset], find_macro(dataset, "MRDiffusionSequence")
    if macro is not dataset:
        sources.append(macro)
    found: dict[str, str] = {}
    for source in sources:
        for keyword, short in _KEY_NUMBERS.items():
            if numbers := _numbers(source, keyword):
                found[short] = ",".join(f"{number:.6g}" for number in numbers)
        for keyword, short in _KEY_TEXTS.items():
            if text := _text(source, keyword):
                found[short] = text
    # The phase of a cine and the time slice of a dynamic PET have no attribute of their own.
    trigger = _numbers(dataset, "TriggerTime", count=1)
    if trigger and _count(dataset, "CardiacNumberOfImages") > 1:
        found["trigger"] = f"{trigger[0]:.6g}"
    slices, index = _count(dataset, "NumberOfSlices"), _count(dataset, "ImageIndex")
    if slices and index and _text(dataset, "SeriesType").startswith(("DYNAMIC", "GATED")):
        found["time_slice"] = str((index - 1) // slices)
    return ";".join(f"{short}={found[short]}" for short in sorted(found))


def _text(dataset: Header, keyword: str) -> str:
    """Return the printable text of an element; "" if it is absent or longer than a page."""
    text = read_text(dataset, keyword)
    if len(text) > MAX_TEXT:
        return ""
    return text


def _numbers(dataset: Header, keyword: str, *, count: int | None = None) -> tuple[float, ...]:
    """Return finite numbers; () if absent, malformed or of another count: unknown geometry is no reason to stop."""
    try:
        numbers = read_numbers(dataset, keyword)
    except ImageRefusedError:
        return ()
    if len(numbers) != (count or len(numbers)) or len(numbers) > MAX_TEXT:
        return ()
    return tuple(numbers)


def _count(dataset: Header, keyword: str, *, default: int = 0) -> int:
    """Return a whole number that a table can hold: the default if it is absent, 0 if it is malformed."""
    if keyword not in dataset:
        return default
    numbers = _numbers(dataset, keyword, count=1)
    if numbers and 0 <= numbers[0] < _MAX_COUNT:
        return int(numbers[0])
    return 0
