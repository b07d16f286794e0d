"""What one header says, and that no file of any kind makes it raise or hang."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medcls.imaging.dicom.dicom_file import open_dicom
from medcls.imaging.dicom.header import read_headers
from medcls.imaging.instance import Instance
from medcls.imaging.scan_file import scan_file

PIXELS = np.zeros((4, 6), np.uint16)
WHEEL = Path(pydicom.__file__).parent / "data" / "test_files"
FULL: dict[str, Any] = {
    "Modality": "MR",
    "PatientID": "P^7",
    "SeriesDescription": "T1 axial",
    "BodyPartExamined": "HEAD",
    "Manufacturer": "ACME",
    "ImageType": ["ORIGINAL", "PRIMARY", "M"],
    "FrameOfReferenceUID": "1.2.3",
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "ImagePositionPatient": [-10.5, 2, 30],
    "PixelSpacing": [0.5, 0.25],
    "SliceThickness": 3,
}


def scan(path: Path) -> Instance:
    return scan_file(path, name="folder/name")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_field_of_a_plain_file(write_dicom: Callable[..., Path], syntax: str) -> None:
    path = write_dicom(
        PIXELS, syntax=syntax, SOPInstanceUID="1.1", StudyInstanceUID="1.2", SeriesInstanceUID="1.3", **FULL
    )
    assert scan(path) == Instance(
        path="folder/name",
        kind="dicom",
        size_bytes=path.stat().st_size,
        patient_id="P^7",
        study_uid="1.2",
        series_uid="1.3",
        sop_uid="1.1",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.7",
        frame_uid="1.2.3",
        modality="MR",
        image_type="ORIGINAL\\PRIMARY\\M",
        series_description="T1 axial",
        body_part="HEAD",
        manufacturer="ACME",
        transfer_syntax=syntax,
        photometric="MONOCHROME2",
        rows=4,
        columns=6,
        bits_stored=16,
        orientation=(1, 0, 0, 0, 1, 0),
        position=(-10.5, 2, 30),
        pixel_spacing_mm=(0.5, 0.25),
        slice_thickness_mm=3,
    )


def test_it_is_picklable_and_the_same_again(write_dicom: Callable[..., Path]) -> None:
    found = scan(write_dicom(PIXELS, **FULL))
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize(
    ("elements", "key"),
    [
        ({}, ""),
        ({"EchoTime": 30.0, "EchoNumbers": 1}, "echo=1;te=30"),
        ({"EchoTime": 4.9200001}, "te=4.92"),
        ({"DiffusionBValue": 800.0, "DiffusionGradientOrientation": [0, 0.6, 0.80000001]}, "b=800;direction=0,0.6,0.8"),
        ({"TemporalPositionIdentifier": 3}, "time=3"),
        ({"ComplexImageComponent": "PHASE"}, "component=PHASE"),
        ({"KVP": 120, "ConvolutionKernel": "B30f"}, "kernel=B30f;kvp=120"),
        ({"TriggerTime": 40.0}, ""),
        ({"TriggerTime": 40.0, "CardiacNumberOfImages": 25}, "trigger=40"),
        ({"SeriesType": ["DYNAMIC", "IMAGE"], "NumberOfSlices": 10, "ImageIndex": 10}, "time_slice=0"),
        ({"SeriesType": ["DYNAMIC", "IMAGE"], "NumberOfSlices": 10, "ImageIndex": 11}, "time_slice=1"),
        ({"SeriesType": ["WHOLE BODY", "IMAGE"], "NumberOfSlices": 10, "ImageIndex": 11}, ""),
        ({"AcquisitionNumber": 2, "InstanceNumber": 9, "AcquisitionTime": "101010", "FrameReferenceTime": 9.0}, ""),
        ({"RepetitionTime": 812.5, "SliceLocation": 4, "XRayTubeCurrent": 93}, ""),
    ],
)  # fmt: skip
def test_the_stack_key_names_what_tells_volumes_apart(
    write_dicom: Callable[..., Path], elements: dict[str, Any], key: str
) -> None:
    assert scan(write_dicom(PIXELS, **elements)).stack_key == key


def enhanced(position: list[float] | None, **shared: Any) -> dict[str, Any]:
    """Functional groups of two frames; the shared one has orientation and measures."""
    groups = Dataset()
    plane, measures = Dataset(), Dataset()
    plane.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    measures.PixelSpacing, measures.SliceThickness = [2, 1], 4
    groups.PlaneOrientationSequence, groups.PixelMeasuresSequence = [plane], [measures]
    frames = []
    for number in range(2):
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [number * 5.0, 1, 2]
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    return {
        "SOPClassUID": EnhancedMRImageStorage,
        "NumberOfFrames": 2,
        "SharedFunctionalGroupsSequence": [groups],
        "PerFrameFunctionalGroupsSequence": frames if position is None else [],
    }


def test_an_enhanced_file_has_its_shared_geometry_and_the_first_frames_position(
    write_dicom: Callable[..., Path],
) -> None:
    found = scan(write_dicom(PIXELS, raw=bytes(96), **enhanced(None)))
    assert found.problem == ""
    assert found.frames == 2
    assert found.orientation == (0, 1, 0, 0, 0, -1)
    assert found.position == (0, 1, 2)
    assert found.pixel_spacing_mm == (2, 1)
    assert found.slice_thickness_mm == 4


def test_malformed_numbers_are_unknown_and_no_reason_to_refuse(write_dicom: Callable[..., Path]) -> None:
    path = write_dicom(PIXELS, PixelSpacing=[7, 8], ImagePositionPatient=[1.5, 2.5, 3.5])
    data = path.read_bytes()
    for old, new in ((b"1.5\\2.5", b"1.5\\x.5"), (b"7.0\\8.0", b"7.0\\0.0")):
        assert data.count(old) == 1
        data = data.replace(old, new)
    path.write_bytes(data)
    found = scan(path)
    assert (found.problem, found.position, found.pixel_spacing_mm) == ("", (), ())


def test_a_page_of_text_in_an_identifier_is_refused(write_dicom: Callable[..., Path]) -> None:
    with pytest.warns(UserWarning, match="exceeds the maximum length"):
        path = write_dicom(PIXELS, PatientID="x" * 5000)
    found = scan(path)
    assert (found.problem, found.patient_id) == ("malformed_element", "")


def test_pixels_that_end_early_are_seen_without_reading_them(write_dicom: Callable[..., Path]) -> None:
    path = write_dicom(PIXELS, **FULL)
    path.write_bytes(path.read_bytes()[:-1])
    found = scan(path)
    assert (found.problem, found.patient_id) == ("truncated", "P^7")


def test_a_file_without_preamble_is_read(write_dicom: Callable[..., Path]) -> None:
    path = write_dicom(PIXELS, **FULL)
    path.write_bytes(path.read_bytes()[132:])
    found = scan(path)
    assert (found.kind, found.problem, found.patient_id) == ("dicom", "", "P^7")


def deflated(head: bytes, *, zeros: int) -> bytes:
    """A deflated file: the elements of head, then a pixel element of so many zeros."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    pydicom.filewriter.write_file_meta_info(buffer, meta, enforce_standard=False)
    machine = zlib.compressobj(1, wbits=-15)
    body = machine.compress(head)
    for _ in range(zeros >> 20):
        body += machine.compress(bytes(1 << 20))
    return bytes(128) + b"DICM" + buffer.getvalue() + body + machine.flush()


def test_a_deflated_bomb_behind_the_header_is_not_unpacked(tmp_path: Path) -> None:
    head = b"\x10\x00\x20\x00LO\x02\x00P7" + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<L", 70 << 20)
    (tmp_path / "bomb").write_bytes(deflated(head, zeros=70 << 20))
    found = scan(tmp_path / "bomb")
    assert (found.problem, found.patient_id) == ("", "P7")


def test_a_bomb_before_the_pixels_is_refused(tmp_path: Path) -> None:
    head = b"\x11\x00\x11\x10UN\0\0" + struct.pack("<L", 70 << 20)
    (tmp_path / "bomb").write_bytes(deflated(head, zeros=70 << 20))
    assert scan(tmp_path / "bomb").problem == "truncated"


def test_a_deflated_file_that_ends_early(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(deflated(os.urandom(4000), zeros=1 << 20)[:-500])
    assert scan(tmp_path / "cut").problem == "truncated"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("rtstruct.dcm", "no_file_meta"),
        ("rtplan.dcm", "no_pixel_data"),
        ("test-SR.dcm", "no_pixel_data"),
        ("waveform_ecg.dcm", "no_pixel_data"),
        ("liver_1frame.dcm", "not_an_image"),
        ("dicomdirtests/DICOMDIR", "dicomdir"),
        ("dicomdirtests/DICOMDIR-bigEnd", "dicomdir"),
        ("MR_truncated.dcm", "truncated"),
        ("meta_missing_tsyntax.dcm", "no_transfer_syntax"),
        ("CT_small.dcm", ""),
        ("rtdose.dcm", ""),
    ],
)
def test_objects_that_are_no_images_have_a_reason(name: str, problem: str) -> None:
    found = scan(WHEEL / name)
    assert (found.kind, found.problem) == ("dicom", problem)


def test_a_report_keeps_its_patient_and_series() -> None:
    found = scan(WHEEL / "test-SR.dcm")
    assert found.modality == "SR"
    assert found.series_uid


def test_every_file_of_the_wheel_agrees_with_the_reader() -> None:
    compared = 0
    for path in sorted(WHEEL.rglob("*")):
        if not path.is_file():
            continue
        found = scan(path)
        if found.kind != "dicom" or found.problem:
            continue
        with open_dicom(path) as file:
            size = file.dataset.get("Rows"), file.dataset.get("Columns")
            headers = read_headers(file.dataset)
        assert (found.rows, found.columns) == (size[0] or 0, size[1] or 0), path
        assert found.patient_id == headers["PatientID"], path
        assert found.series_uid == headers["SeriesInstanceUID"], path
        assert found.image_type == headers["ImageType"], path
        compared += 1
    assert compared > 80


def nifti(order: str, *, version: int = 1) -> bytes:
    """The header of 5 columns, 6 rows, 7 slices; 1, 2 and 3 mm; magic for one file."""
    header = bytearray(540)
    if version == 1:
        struct.pack_into(f"{order}i", header, 0, 348)
        struct.pack_into(f"{order}8h", header, 40, 3, 5, 6, 7, 1, 1, 1, 1)
        struct.pack_into(f"{order}8f", header, 76, 1, 1, 2, 3, 0, 0, 0, 0)
        header[123:124], header[344:348] = b"\x02", b"n+1\0"
    else:
        struct.pack_into(f"{order}i", header, 0, 540)
        header[4:12] = b"n+2\0\r\n\x1a\n"
        struct.pack_into(f"{order}8q", header, 16, 3, 5, 6, 7, 1, 1, 1, 1)
        struct.pack_into(f"{order}8d", header, 104, 1, 0.001, 0.002, 3, 0, 0, 0, 0)
        struct.pack_into(f"{order}i", header, 500, 1)
    return bytes(header)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_is_known_by_its_content(tmp_path: Path, order: str, version: int, packed: bool) -> None:
    data = nifti(order, version=version) + bytes(420)
    (tmp_path / "scan").write_bytes(gzip.compress(data, mtime=0) if packed else data)
    found = scan(tmp_path / "scan")
    assert (found.kind, found.problem) == ("nifti", "")
    assert (found.rows, found.columns, found.frames) == (6, 5, 7)
    assert found.pixel_spacing_mm == (2, 1)


def test_a_nifti_header_with_impossible_sizes_says_nothing(tmp_path: Path) -> None:
    data = bytearray(nifti("<"))
    struct.pack_into("<h", data, 42, -5)
    (tmp_path / "scan.nii").write_bytes(data)
    found = scan(tmp_path / "scan.nii")
    assert (found.kind, found.rows, found.columns, found.frames) == ("nifti", 0, 0, 1)


@pytest.mark.parametrize(("suffix", "shape"), [(".png", (5, 7)), (".jpg", (5, 7, 3)), (".tif", (5, 7))])
def test_pictures_are_known_by_their_content(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    cv2.imwrite(str(tmp_path / f"x{suffix}"), np.zeros(shape, np.uint8))
    (tmp_path / f"x{suffix}").rename(tmp_path / "x")
    found = scan(tmp_path / "x")
    assert (found.kind, found.problem) == ("raster", "")
    assert (found.rows, found.columns, found.samples) == (5, 7, 3 if len(shape) == 3 else 1)


@pytest.mark.parametrize(
    ("name", "content", "kind", "problem"),
    [
        ("notes.txt", b"hello", "other", ""),
        ("nothing", b"", "other", ""),
        ("nothing.dcm", b"", "dicom", "empty_file"),
        ("nothing.nii.gz", b"", "nifti", "empty_file"),
        ("page.dcm", b"<html>", "dicom", "unknown_format"),
        ("page.png", b"<html>", "raster", "unknown_format"),
        ("scan.nii.gz", b"\x1f\x8b\x08 and no gzip", "nifti", "unknown_format"),
        ("archive.gz", gzip.compress(bytes(9999), mtime=0), "other", ""),
        ("broken.png", b"\x89PNG\r\n\x1a\n broken", "raster", "damaged"),
        ("raw", b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", "dicom", "no_file_meta"),
        ("meta", bytes(128) + b"DICM", "dicom", "no_transfer_syntax"),
        ("array.npy", b"\x93NUMPY\x01\x00", "raster", ""),
    ],
)
def test_anything_else(tmp_path: Path, name: str, content: bytes, kind: str, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    found = scan(tmp_path / name)
    assert (found.kind, found.problem, found.size_bytes) == (kind, problem, len(content))


def test_pipes_links_and_absent_files_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(WHEEL / "CT_small.dcm")
    found = {name: scan(tmp_path / name) for name in ("pipe", "link", "absent")}
    assert {name: each.problem for name, each in found.items()} == {
        "pipe": "special_file",
        "link": "symbolic_link",
        "absent": "unreadable",
    }
    assert {each.patient_id for each in found.values()} == {""}


def test_sequences_nested_without_end_are_a_problem_and_no_crash(tmp_path: Path) -> None:
    meta = (WHEEL / "CT_small.dcm").read_bytes()[:132]
    syntax = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
    nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    (tmp_path / "deep").write_bytes(meta + syntax + nested * 3000)
    assert scan(tmp_path / "deep").problem in ("nested_too_deep", "truncated")


def test_damaged_bytes_anywhere_never_raise(write_dicom: Callable[..., Path], tmp_path: Path) -> None:
    good = write_dicom(PIXELS, raw=bytes(96), **{**FULL, **enhanced(None)}).read_bytes()
    generator = np.random.default_rng(0)
    problems = set()
    for _ in range(150):
        data = bytearray(good[: generator.integers(1, len(good) + 1)])
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.integers(256)
        (tmp_path / "damaged").write_bytes(data)
        problems.add(scan(tmp_path / "damaged").problem)
    assert {"", "truncated"} < problems
