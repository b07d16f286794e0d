"""The fast reader of plain headers says what pydicom says, or nothing."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom import dicom_file as part10
from medcls.imaging.dicom import fast_header as plain
from medcls.imaging.image import read_image
from tests.imaging import fuzz
from tests.imaging.fuzz_corpus import load_corpus

Write = Callable[..., Path]
PIXELS = np.arange(12, dtype="i2").reshape(3, 4)
LEFT_TO_PYDICOM = {"ct_big", "latin1", "japanese", "voi_lut", "functional_groups", "palette", "deflated"}


def compare(path: Path) -> bool:
    """Holds header and image of the two ways against each other; returns whether the fast one answered."""
    answered, header = fuzz.is_plain(path), fuzz.read_header(path)
    with mock.patch.object(part10, "read_plain", return_value=None):
        assert fuzz.read_header(path) == header, path.name
    if answered:  # otherwise there is one way alone
        image = fuzz.attempt(path)
        with mock.patch.object(part10, "read_plain", return_value=None):
            assert fuzz.compare_endings(image, fuzz.attempt(path)) == "", path.name
    return answered


def is_plain(data: bytes) -> bool:
    return plain.read_plain(io.BytesIO(data), part10._WANTED) is not None


def insert(path: Path, element: bytes, *, before: bytes) -> bytes:
    """The file with an element in front of another, which is left in its place."""
    data = path.read_bytes()
    at = data.index(before)
    path.write_bytes(data[:at] + element + data[at:])
    return path.read_bytes()


# Whole corpora


def test_every_file_of_pydicom_s_wheel_ends_alike() -> None:
    folder = Path(pydicom.__file__).parent / "data"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in {".py", ".pyc"}]
    assert sum(map(compare, files)) >= 60


@pytest.mark.data
def test_every_file_of_the_shared_corpus_ends_alike() -> None:
    shared = os.environ.get("MEDCLS_SHARED")
    if not shared:
        pytest.skip("MEDCLS_SHARED is not set")
    files = [path for path in sorted((Path(shared) / "data/dicom").rglob("*")) if path.is_file()]
    assert sum(map(compare, files)) >= 120


def test_which_files_are_plain(tmp_path: Path) -> None:
    path = tmp_path / "file"
    built = [seed for seed in load_corpus() if seed.name.startswith("built/")]
    for seed in built:
        path.write_bytes(seed.data)
        assert compare(path) == (seed.name.removeprefix("built/") not in LEFT_TO_PYDICOM), seed.name
    assert len(built) >= 20


# Values


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("keyword", "raw"),
    [
        ("RescaleSlope", b"1.5"),
        ("RescaleSlope", b" -2e-3  "),
        ("RescaleSlope", b".5\0"),
        ("WindowCenter", b"40\\ 300 \\1.e2"),
        ("WindowCenter", b"1e999"),
        ("NumberOfFrames", b" 1"),
        ("PixelAspectRatio", b"+3\\4 "),
        ("ImageType", b"ORIGINAL \\PRIMARY\\"),
        ("ImageType", b"  A\0"),
        ("ImageType", "Ä".encode("latin-1")),
        ("PatientID", b" A \\B "),
        ("PatientID", b"   "),
        ("SOPInstanceUID", b"1.2.3\0"),
        ("SOPInstanceUID", b" 1.2\\1.3 "),
        ("Rows", b"\3\0\4\0"),
        ("PixelPaddingValue", b"\xff\xff"),
        ("TotalPixelMatrixRows", b"\3\0\0\0"),
        ("FloatPixelPaddingValue", b"\0\0\xc0\x7f"),
        ("RescaleSlope", b""),
        ("PatientID", b""),
        ("PixelPaddingValue", b""),
    ],
)
def test_values_as_pydicom_reads_them(write_dicom: Write, syntax: str, keyword: str, raw: bytes) -> None:
    path = write_dicom(PIXELS, syntax=syntax)
    path.write_bytes(replace_value(path, keyword, raw, implicit=syntax == uid.ImplicitVRLittleEndian))
    assert compare(path)
    with part10.open_dicom(path) as file:
        assert keyword in file.dataset


def replace_value(path: Path, keyword: str, raw: bytes, *, implicit: bool) -> bytes:
    """The file with an element of raw bytes, put where it belongs."""
    tag, data = pydicom.datadict.tag_for_keyword(keyword), path.read_bytes()
    assert tag is not None
    vr = pydicom.datadict.dictionary_VR(tag).removesuffix(" or SS").encode()
    head = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    size = len(raw).to_bytes(4, "little") if implicit else vr + len(raw).to_bytes(2, "little")
    elements = pydicom.dcmread(path)._dict
    later = [element for found, element in elements.items() if found > tag]
    after = 12 if later[0].tag == 0x7FE00010 and not implicit else 8
    end = later[0].value_tell - after
    start = elements[tag].value_tell - 8 if tag in elements else end
    return data[:start] + head + size + raw + data[end:]


@pytest.mark.parametrize(
    ("keyword", "raw"),
    [
        ("RescaleSlope", b"1,5"),
        ("RescaleSlope", b"nan"),
        ("RescaleSlope", b"1_0"),
        ("RescaleSlope", b"1\\"),
        ("RescaleSlope", b"  "),
        ("NumberOfFrames", b"1.0"),
        ("NumberOfFrames", b"99999999999"),
        ("Rows", b"\3"),
        ("PatientID", "Ä".encode("latin-1")),
        ("PatientID", b"\x1b$B"),
        ("SpecificCharacterSet", b"ISO_IR 13"),
        ("SpecificCharacterSet", b"\\ISO 2022 IR 87"),
        ("SpecificCharacterSet", b"iso_ir 100"),
    ],
)
def test_values_that_only_pydicom_judges(write_dicom: Write, keyword: str, raw: bytes) -> None:
    path = write_dicom(PIXELS)
    path.write_bytes(replace_value(path, keyword, raw, implicit=False))
    assert not compare(path)


def test_padding_takes_its_sign_from_the_pixels(write_dicom: Write) -> None:
    for pixels, sign in ((PIXELS, -5), (PIXELS.astype("u2"), 65531)):
        path = write_dicom(pixels, syntax=uid.ImplicitVRLittleEndian, PixelPaddingValue=sign)
        assert compare(path)
        with part10.open_dicom(path) as file:
            assert file.dataset.get("PixelPaddingValue") == sign


# Structure


@pytest.mark.parametrize(
    "element",
    [
        b"\x28\x00\x02\x00US\x02\x00\x01\x00",  # twice the same
        b"\x18\x00\x50\x00DS\x02\x001 ",  # a tag that goes back
        b"\x28\x00\x01\x00ZZ\x02\x00\x01\x00",  # an unknown value representation
        b"\x28\x00\x01\x00\x02\x00\x00\x00\x01\x00",  # an implicit element
        b"\x28\x00\x01\x00OB\0\0\xff\xff\xff\xff\xfe\xff\xdd\xe0\0\0\0\0",  # bytes of undefined length
        b"\x28\x00\x01\x00UN\0\0\xff\xff\xff\xff\xfe\xff\xdd\xe0\0\0\0\0",  # a sequence of unknown kind
        b"\x28\x00\x01\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\xdd\xe0\1\0\0\0",  # a delimiter with a length
        b"\x28\x00\x01\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\x09\0\0\0\x28\x00\x01\x00US\x02\x00\x01\x00",
        b"\xfe\xff\x0d\xe0\0\0\0\0",  # an item ends where none began
        b"\x28\x00\x01\x00OB\0\0\xf0\xff\xff\x7f",  # longer than the file
    ],
)
def test_structures_that_only_pydicom_judges(write_dicom: Write, element: bytes) -> None:
    path = write_dicom(PIXELS)
    assert is_plain(path.read_bytes())
    assert not is_plain(insert(path, element, before=b"\x28\x00\x02\x00US"))
    compare(path)


def test_wrong_value_representations_are_left_to_pydicom(write_dicom: Write) -> None:
    path = write_dicom(PIXELS)
    data = path.read_bytes()
    for old, new in ((b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00SS"), (b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00UN")):
        path.write_bytes(data.replace(old, new))
        assert not compare(path)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_sequences_are_walked_to_their_end(write_dicom: Write, syntax: str) -> None:
    def nest(depth: int, *, mixed: bool) -> Sequence:
        item = Dataset()
        item.PatientID = "(0028,0010)"
        item.is_undefined_length_sequence_item = not mixed or depth % 2 == 0
        if depth:
            item.ReferencedImageSequence = nest(depth - 1, mixed=mixed)
            item["ReferencedImageSequence"].is_undefined_length = not mixed or depth % 3 == 0
        return Sequence([item, Dataset()])

    for depth, mixed, plainly in ((6, False, True), (6, True, True), (7, True, True), (40, False, False)):
        path = write_dicom(PIXELS, syntax=syntax, ReferencedImageSequence=nest(depth, mixed=mixed))
        ds = pydicom.dcmread(path)
        ds["ReferencedImageSequence"].is_undefined_length = True
        ds.save_as(path)
        assert path.read_bytes().count(b"\xfe\xff\xdd\xe0") > (depth // 3 if mixed else depth)
        assert compare(path) == plainly


def test_every_truncation_ends_alike(write_dicom: Write, tmp_path: Path) -> None:
    data = write_dicom(PIXELS, WindowCenter=1, WindowWidth=2, ReferencedImageSequence=[Dataset()]).read_bytes()
    path = tmp_path / "cut"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        compare(path)


def test_long_headers_are_read_on_and_endless_ones_left(write_dicom: Write) -> None:
    for size, plainly in ((1 << 16, True), (1 << 20, True), (5 << 20, False)):
        path = write_dicom(PIXELS)
        long = b"\x09\x00\x10\x10OB\0\0" + size.to_bytes(4, "little") + bytes(size)
        assert is_plain(insert(path, long, before=b"\x10\x00\x20\x00LO")) == plainly
        assert_array_equal(read_image(path).pixels.shape, (1, 3, 4))


def test_pixels_are_not_read_with_the_header(write_dicom: Write) -> None:
    path = write_dicom(np.zeros((512, 512), "u2"))
    stream = mock.Mock(wraps=io.BytesIO(path.read_bytes()))
    assert plain.read_plain(stream, part10._WANTED) is not None
    assert sum(call.args[0] for call in stream.read.call_args_list) <= 1 << 15


def test_header_answers_like_a_dataset() -> None:
    header = plain.PlainHeader({"Rows": 3, "PatientAge": ""})
    assert (header.get("Rows"), header.get("Columns"), header.get("Columns", 7)) == (3, None, 7)
    assert "Rows" in header
    assert "Columns" not in header
    assert pickle.loads(pickle.dumps(header)).get("Rows") == 3


def test_parsers_are_silenced_once_and_heard_again() -> None:
    def fail_twice() -> None:
        with part10.refusing_parser_errors():
            with pytest.raises(ImageRefusedError) as inner, part10.refusing_parser_errors():
                raise EOFError("Probe^Name")
            assert (inner.value.reason, part10._LOGGER.disabled) == ("truncated", True)
            assert "Probe" not in str(inner.value)
            raise ValueError

    for _ in range(2):
        with pytest.raises(ImageRefusedError, match="unreadable"):
            fail_twice()
        assert not part10._LOGGER.disabled
