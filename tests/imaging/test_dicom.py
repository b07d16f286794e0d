"""Pixels of one DICOM frame: every rule of the pipeline against a formula, pydicom or a second decoder."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.sequence import Sequence

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom import frame
from medcls.imaging.dicom.pixels import StoredFrame
from medcls.imaging.image import ReadOptions, read_image
from medcls.imaging.scan_file import scan_file
from tests.imaging.modality import read_modality_values

Write = Callable[..., Path]
RNG = np.random.default_rng(0)


def ramp(dtype: str, shape: tuple[int, int] = (6, 7)) -> np.ndarray:
    """Values over the whole range of an integer type."""
    info = np.iinfo(dtype)
    return np.linspace(info.min, info.max, shape[0] * shape[1]).astype(dtype).reshape(shape)


def reason(path: Path, options: ReadOptions | None = None) -> str:
    """The reason a file is refused for."""
    with pytest.raises(ImageRefusedError) as caught:
        read_image(path, options=options or ReadOptions())
    return caught.value.reason


def values(path: Path) -> np.ndarray:
    return read_modality_values(path).values


def lut_item(first: int, bits: int, entries: list[int], *, vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())
    return item


# Stored values


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4"])
@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_integers_of_every_width_sign_and_byte_order(write_dicom: Write, dtype: str, syntax: str) -> None:
    pixels = ramp(dtype)
    assert_array_equal(values(write_dicom(pixels, syntax=syntax)), pixels.astype(np.float32))


def test_eight_bits_in_words_are_swapped_in_big_endian(write_dicom: Write) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    swapped = pixels.reshape(-1, 2)[:, ::-1].tobytes()
    path = write_dicom(pixels, syntax=uid.ExplicitVRBigEndian, raw=swapped, vr="OW")
    assert_array_equal(values(path), pixels)


def test_one_bit_pixels_are_packed_from_the_low_end(write_dicom: Write) -> None:
    bits = RNG.integers(0, 2, (3, 5)).astype(np.uint8)
    raw = np.packbits(bits.ravel(), bitorder="little").tobytes()
    path = write_dicom(bits, raw=raw, BitsAllocated=1, BitsStored=1, HighBit=0)
    assert_array_equal(read_image(path).pixels[0], bits)


@pytest.mark.parametrize(("dtype", "high"), [("u2", 11), ("i2", 11), ("u2", 15), ("i2", 15), ("i2", 13)])
def test_only_the_stored_bits_count(write_dicom: Write, dtype: str, high: int) -> None:
    low = -2048 if dtype == "i2" else 0
    wanted = np.arange(low, low + 4096, dtype=np.int64).reshape(64, 64)
    junk = RNG.integers(0, 1 << 16, wanted.shape)
    shift = high - 11
    cells = (junk & ~(0xFFF << shift)) | ((wanted & 0xFFF) << shift)
    path = write_dicom(cells.astype("u2").view(dtype), BitsStored=12, HighBit=high)
    assert_array_equal(values(path), wanted)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_float_pixels(write_dicom: Write, dtype: str) -> None:
    pixels = RNG.random((4, 5)).astype(dtype)
    assert_allclose(read_image(write_dicom(pixels)).pixels[0], pixels, rtol=1e-6)
    assert reason(write_dicom(pixels * 3)) == "float_range"
    windowed = read_image(write_dicom(pixels * 3, WindowCenter=1.5, WindowWidth=3, VOILUTFunction="LINEAR_EXACT"))
    assert_allclose(windowed.pixels[0], pixels, atol=1e-6)


def test_float_padding_and_nan(write_dicom: Write) -> None:
    pixels = np.array([[0.5, -1000.0], [0.25, 1.0]], np.float32)
    image = read_image(write_dicom(pixels, FloatPixelPaddingValue=-1000.0))
    assert image.mask is not None
    assert_array_equal(image.mask, pixels == -1000)
    assert_array_equal(image.pixels[0], np.where(image.mask, 0, pixels))
    pixels[0, 0] = np.nan
    assert reason(write_dicom(pixels, FloatPixelPaddingValue=-1000.0)) == "not_finite"


@pytest.mark.parametrize(
    ("elements", "why"),
    [
        ({"BitsAllocated": 12}, "bit_depth"),
        ({"BitsAllocated": 64}, "bit_depth"),
        ({"BitsStored": 17}, "bit_depth"),
        ({"HighBit": 16}, "bit_depth"),
        ({"HighBit": 10, "BitsStored": 12}, "bit_depth"),
        ({"Rows": 0}, "zero_pixels"),
        ({"NumberOfFrames": 0}, "zero_pixels"),
        ({"NumberOfFrames": 2}, "multi_frame"),
        ({"NumberOfFrames": 2, "FrameTime": 30}, "cine"),
        ({"Columns": 8}, "pixel_length"),
        ({"Columns": 6}, "pixel_length"),
        ({"PhotometricInterpretation": "CMYK"}, "unsupported_colour"),
        ({"PhotometricInterpretation": "RGB"}, "unsupported_colour"),
        ({"SamplesPerPixel": 3}, "unsupported_colour"),
        ({"Rows": [6, 6]}, "malformed_element"),
        ({"TotalPixelMatrixRows": 12, "TotalPixelMatrixColumns": 7}, "tiled"),
    ],
)
def test_headers_that_do_not_fit_are_refused(write_dicom: Write, elements: dict[str, object], why: str) -> None:
    assert reason(write_dicom(ramp("u2"), **elements)) == why


@pytest.mark.parametrize(
    "keyword",
    ["Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation"],
)
def test_missing_elements_are_refused(write_dicom: Write, keyword: str) -> None:
    assert reason(write_dicom(ramp("u2"), drop=(keyword,))) == "missing_element"


def test_missing_photometric_and_pixels_are_refused(write_dicom: Write) -> None:
    assert reason(write_dicom(ramp("u2"), drop=("PhotometricInterpretation",))) == "unsupported_colour"
    assert reason(write_dicom(ramp("u2"), drop=("PixelData",))) == "truncated"
    report = write_dicom(ramp("u2"), drop=("PixelData",), SOPClassUID=uid.ComprehensiveSRStorage)
    assert reason(report) == "no_pixel_data"


def test_image_that_is_cut_in_its_header_is_no_report(write_dicom: Write, tmp_path: Path) -> None:
    """Also between two elements, and before its class is known: the file meta group names it, too."""
    data = write_dicom(ramp("u2")).read_bytes()
    ds = pydicom.dcmread(io.BytesIO(data))
    start = next(iter(ds)).file_tell - 8  # explicit VR, short values: 8 bytes before each
    file = tmp_path / "cut.dcm"
    for end in range(start, len(data)):
        file.write_bytes(data[:end])
        assert (end, scan_file(file, name="x").problem, reason(file)) == (end, "truncated", "truncated")


@pytest.mark.parametrize("storage", [uid.ComprehensiveSRStorage, "1.3.12.2.1107.5.9.1", uid.RTDoseStorage])
def test_object_without_pixels_that_has_a_size_is_skipped(write_dicom: Write, storage: str) -> None:
    """Reports, private objects (Siemens' non-images) and dose histograms may have rows and columns."""
    file = write_dicom(ramp("u2"), drop=("PixelData",), SOPClassUID=storage)
    assert (scan_file(file, name="x").problem, reason(file)) == ("no_pixel_data", "no_pixel_data")


def test_image_without_a_class_and_pixels_is_known_by_its_size(write_dicom: Write) -> None:
    file = write_dicom(ramp("u2"))
    ds = pydicom.dcmread(file)
    del ds.SOPClassUID, ds.PixelData, ds.file_meta.MediaStorageSOPClassUID
    ds.save_as(file, enforce_file_format=False)
    assert scan_file(file, name="x").problem == "truncated"
    del ds.Rows
    ds.save_as(file, enforce_file_format=False)
    assert scan_file(file, name="x").problem == "no_pixel_data"


def test_image_whose_pixels_are_on_a_server_is_no_companion(write_dicom: Write) -> None:
    file = write_dicom(ramp("u2"), drop=("PixelData",), PixelDataProviderURL="https://example.org/1")
    ds = pydicom.dcmread(file)
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.94"
    ds.save_as(file)
    assert (scan_file(file, name="x").problem, reason(file)) == (("unsupported_transfer_syntax",) * 2)


def test_padding_behind_an_object_without_pixels_is_no_cut(write_dicom: Write) -> None:
    file = write_dicom(ramp("u2"), drop=("PixelData",), SOPClassUID=uid.ComprehensiveSRStorage)
    file.write_bytes(file.read_bytes() + bytes(2))
    assert (scan_file(file, name="x").problem, reason(file)) == ("no_pixel_data", "no_pixel_data")


def test_size_is_checked_before_decoding(write_dicom: Write) -> None:
    path = write_dicom(ramp("u2"), Rows=60000, Columns=60000, NumberOfFrames=1000)
    assert reason(path) == "too_large"
    assert reason(write_dicom(ramp("u2")), ReadOptions(max_pixels=41)) == "too_large"
    assert read_image(write_dicom(ramp("u2")), options=ReadOptions(max_pixels=42)).pixels.shape == (1, 6, 7)


# Padding


def test_padding_is_masked_before_the_range_is_taken(write_dicom: Write) -> None:
    pixels = np.array([[-2000, 100], [200, 300]], "i2")
    image = read_image(write_dicom(pixels, PixelPaddingValue=-2000))
    assert_array_equal(image.mask, pixels == -2000)
    assert_allclose(image.pixels[0], [[0, 0], [0.5, 1]])


def test_padding_range_includes_both_ends_in_either_order(write_dicom: Write) -> None:
    pixels = np.arange(12, dtype="u2").reshape(3, 4)
    for ends in ((2, 5), (5, 2)):
        image = read_image(write_dicom(pixels, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1]))
        assert_array_equal(image.mask, (pixels >= 2) & (pixels <= 5))


def test_padding_written_with_the_wrong_sign(write_dicom: Write) -> None:
    pixels = np.array([[-2000, 100], [200, 300]], "i2")
    path = write_dicom(pixels)
    data = path.read_bytes()
    element = b"\x28\x00\x20\x01US\x02\x00" + (63536).to_bytes(2, "little")  # PixelPaddingValue, unsigned
    at = data.index(b"\xe0\x7f\x10\x00")
    path.write_bytes(data[:at] + element + data[at:])
    assert_array_equal(read_image(path).mask, pixels == -2000)


def test_padding_is_black_also_in_monochrome1_and_none_where_absent(write_dicom: Write) -> None:
    pixels = np.array([[0, 10], [20, 30]], "u2")
    image = read_image(write_dicom(pixels, PixelPaddingValue=0, PhotometricInterpretation="MONOCHROME1"))
    assert_allclose(image.pixels[0], [[0, 1], [0.5, 0]])
    assert read_image(write_dicom(pixels, PixelPaddingValue=7)).mask is None
    assert read_image(write_dicom(pixels)).mask is None
    assert reason(write_dicom(np.zeros((2, 2), "u2"), PixelPaddingValue=0)) == "all_padding"


# Modality


def test_rescale_and_unit(write_dicom: Write) -> None:
    image = read_modality_values(
        write_dicom(ramp("i2"), RescaleSlope="0.5", RescaleIntercept="-1024", RescaleType="HU")
    )
    assert_allclose(image.values, ramp("i2") * 0.5 - 1024)
    assert image.values.dtype == np.float32
    assert image.unit == "HU"


@pytest.mark.parametrize("first", [-3, 0, 2])
def test_modality_lut_against_pydicom(write_dicom: Write, first: int) -> None:
    pixels = np.arange(-6, 6, dtype="i2").reshape(3, 4)
    entries = [4000, 7, 9, 2000, 1, 0]
    items = Sequence([lut_item(first, 16, entries, vr="SS")])
    path = write_dicom(pixels, ModalityLUTSequence=items)
    assert_array_equal(values(path), apply_modality_lut(pixels, pydicom.dcmread(path)))
    items = Sequence([lut_item(first, 12, entries, vr="SS")])  # pydicom takes 8 and 16 bits alone
    wanted = np.array(entries)[np.clip(pixels - first, 0, 5)]
    assert_array_equal(values(write_dicom(pixels, ModalityLUTSequence=items)), wanted)


@pytest.mark.parametrize(
    ("elements", "why"),
    [
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "rescale"),
        ({"RescaleSlope": 2}, "rescale"),
        (
            {
                "ModalityLUTSequence": Sequence([lut_item(0, 12, [1, 2])]),
                "RescaleSlope": 2,
                "RescaleIntercept": 0,
            },
            "rescale",
        ),
        ({"ModalityLUTSequence": Sequence([Dataset()])}, "lut"),
        ({"ModalityLUTSequence": Sequence([lut_item(0, 20, [1, 2])])}, "lut"),
        ({"ModalityLUTSequence": Sequence([lut_item(0, 10, [1, 2000])])}, "lut"),
    ],
)
def test_contradicting_modality_transforms_are_refused(
    write_dicom: Write, elements: dict[str, object], why: str
) -> None:
    assert reason(write_dicom(ramp("u2"), **elements)) == why


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4"])
@pytest.mark.parametrize("fast", [True, False])
def test_tables_give_what_the_function_gives(monkeypatch: pytest.MonkeyPatch, dtype: str, fast: bool) -> None:
    monkeypatch.setattr(frame, "_LUT_TAKES_WORDS", fast and frame._LUT_TAKES_WORDS)
    info = np.iinfo(dtype)
    low, high = max(info.min, -(1 << 15)), min(info.max, (1 << 15) - 1)
    calls: list[int] = []

    def double(values: np.ndarray) -> np.ndarray:
        calls.append(values.size)
        return values * 2.5 + 1

    for first, last in ((low, high), (low, low + 50), (high - 50, high), (low // 2, high // 3)):
        stored = StoredFrame(RNG.integers(first, last + 1, (300, 300)).astype(dtype), 16, info.min < 0, "MONOCHROME2")
        found = frame.map_values(stored, double)
        assert found.dtype == np.float32
        assert_array_equal(found, (stored.values * 2.5 + 1).astype(np.float32))
        turned = frame.map_values(replace(stored, values=stored.values.T), double)
        assert_array_equal(turned, found.T)
    assert max(calls) <= 1 << 16  # one call for each value of the range, not for each pixel


def test_dose_grid_scaling_is_a_slope(write_dicom: Write) -> None:
    assert_allclose(values(write_dicom(ramp("u4"), DoseGridScaling="0.25")), ramp("u4") * 0.25)


def test_functional_groups_of_a_single_frame(write_dicom: Write) -> None:
    def group(keyword: str, **elements: object) -> Dataset:
        inner, outer = Dataset(), Dataset()
        for name, value in elements.items():
            setattr(inner, name, value)
        setattr(outer, keyword, Sequence([inner]))
        return outer

    shared = group("PixelMeasuresSequence", PixelSpacing=["0.5", "0.25"])
    shared.update(group("PixelValueTransformationSequence", RescaleSlope="9", RescaleIntercept="9"))
    own = group("PixelValueTransformationSequence", RescaleSlope="2", RescaleIntercept="-10", RescaleType="HU")
    own.update(group("FrameVOILUTSequence", WindowCenter="40", WindowWidth="80", VOILUTFunction="LINEAR_EXACT"))
    pixels = np.arange(12, dtype="u2").reshape(3, 4) * 4
    path = write_dicom(
        pixels,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence([own]),
    )
    assert_array_equal(values(path), pixels * 2.0 - 10)
    image = read_image(path)
    assert_allclose(image.pixels[0], np.clip((pixels * 2.0 - 10) / 80, 0, 1), atol=1e-6)
    assert image.spacing_mm == (0.5, 0.25)


# VOI


def expected_window(x: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """The formulas of PS3.3 C.11.2.1, written out pixel by pixel."""
    out = np.empty(x.shape)
    for at, value in np.ndenumerate(x.astype(float)):
        if function == "SIGMOID":
            out[at] = 1 / (1 + np.exp(min(-4 * (value - center) / width, 700)))
        elif function == "LINEAR":
            if value <= center - 0.5 - (width - 1) / 2:
                out[at] = 0
            elif value > center - 0.5 + (width - 1) / 2:
                out[at] = 1
            else:
                out[at] = (value - (center - 0.5)) / (width - 1) + 0.5
        elif value <= center - width / 2:
            out[at] = 0
        else:
            out[at] = 1 if value > center + width / 2 else (value - center) / width + 0.5
    return out


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(40.0, 400.0), (0.0, 1.0), (-500.5, 1500.25)])
def test_windows(write_dicom: Write, function: str, center: float, width: float) -> None:
    pixels = np.concatenate([np.arange(-1400, 700, 7), [-1, 0, 1]]).astype("i2").reshape(3, -1)
    path = write_dicom(pixels, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    shown = read_image(path).pixels[0]
    assert_allclose(shown, expected_window(pixels, center, width, function), atol=1e-6)
    with np.errstate(over="ignore"):
        theirs = apply_voi_lut(pixels, pydicom.dcmread(path))
    assert_allclose(shown, (theirs + 32768) / 65535, atol=1e-5)


def test_several_windows_are_chosen_by_index(write_dicom: Write) -> None:
    pixels = ramp("i2")
    path = write_dicom(pixels, WindowCenter=[40, -600], WindowWidth=[400, 1500])
    second = read_image(path, options=ReadOptions(window_index=1)).pixels[0]
    assert_allclose(second, expected_window(pixels, -600, 1500, "LINEAR"), atol=1e-6)
    assert reason(path, ReadOptions(window_index=2)) == "window"


def test_voi_tables_come_before_windows_and_count_first(write_dicom: Write) -> None:
    pixels = np.arange(12, dtype="u2").reshape(3, 4)
    items = Sequence([lut_item(2, 12, [0, 4095, 100, 200]), lut_item(0, 8, [1, 2, 3, 255])])
    path = write_dicom(pixels, VOILUTSequence=items, WindowCenter=5, WindowWidth=4)
    ds = pydicom.dcmread(path)
    for index, full in ((0, 4095), (1, 255)):
        shown = read_image(path, options=ReadOptions(window_index=index)).pixels[0]
        assert_allclose(shown, apply_voi_lut(pixels, ds, index=index) / full, atol=1e-6)
    third = read_image(path, options=ReadOptions(window_index=2)).pixels[0]
    assert_allclose(third, expected_window(pixels, 5, 4, "LINEAR"), atol=1e-6)


def test_voi_table_of_65536_entries_and_negative_first(write_dicom: Write) -> None:
    entries = (np.arange(65536) ** 2 // 65536).tolist()
    item = lut_item(-32768, 16, entries, vr="SS")
    pixels = ramp("i2")
    shown = read_image(write_dicom(pixels, VOILUTSequence=Sequence([item]))).pixels[0]
    assert_allclose(shown, np.array(entries)[pixels.astype(int) + 32768] / 65535, atol=1e-6)


def test_eight_bit_table_packed_two_a_word(write_dicom: Write) -> None:
    item = lut_item(0, 8, [0] * 256)
    item.LUTData = bytes(range(255, -1, -1))
    pixels = ramp("u1")
    shown = read_image(write_dicom(pixels, VOILUTSequence=Sequence([item]))).pixels[0]
    assert_allclose(shown, (255 - pixels.astype(float)) / 255, atol=1e-6)


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": 1, "WindowWidth": 0.5},
        {"WindowCenter": 1, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 1, "WindowWidth": 2, "VOILUTFunction": "CUBIC"},
        {"WindowCenter": [1, 2], "WindowWidth": 2},
        {"WindowCenter": 1},
    ],
)
def test_windows_that_mean_nothing_are_refused(write_dicom: Write, elements: dict[str, object]) -> None:
    assert reason(write_dicom(ramp("u2"), **elements)) == "window"


def test_without_a_window(write_dicom: Write) -> None:
    eight = np.array([[10, 20], [30, 40]], "u1")
    assert_allclose(read_image(write_dicom(eight)).pixels[0], eight / 255, atol=1e-6)
    deep = eight.astype("u2") * 10
    assert_allclose(read_image(write_dicom(deep)).pixels[0], (deep - 100.0) / 300, atol=1e-6)
    assert_array_equal(read_image(write_dicom(np.full((2, 2), 7, "u2"))).pixels, 0)
    assert reason(write_dicom(deep, Modality="CT", RescaleSlope=1, RescaleIntercept=0)) == "no_window"


def test_negative_slope_keeps_the_order_of_modality_values(write_dicom: Write) -> None:
    eight = np.array([[10, 20], [30, 255]], "u1")
    shown = read_image(write_dicom(eight, RescaleSlope=-1, RescaleIntercept=0)).pixels[0]
    assert_allclose(shown, (255 - eight.astype(float)) / 255, atol=1e-6)


def test_configured_windows_in_hounsfield_units(write_dicom: Write) -> None:
    pixels = (np.arange(0, 2100, 50).reshape(6, 7)).astype("u2")
    elements = {
        "Modality": "CT",
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "WindowCenter": 0,
        "WindowWidth": 9,
    }
    options = ReadOptions(windows_hu=((-600.0, 1500.0), (40.0, 80.0)))
    image = read_image(write_dicom(pixels, **elements), options=options)
    assert image.pixels.shape == (2, 6, 7)
    for channel, (center, width) in zip(image.pixels, options.windows_hu, strict=True):
        assert_allclose(channel, expected_window(pixels.astype(int) - 1024, center, width, "LINEAR"), atol=1e-6)
    for changed in ({"Modality": "MR"}, {"RescaleType": "US"}):
        assert reason(write_dicom(pixels, **{**elements, **changed}), options) == "not_hounsfield"
    assert reason(write_dicom(ramp("u2"), Modality="CT"), options) == "not_hounsfield"
    assert reason(write_dicom(colours(), Modality="CT"), options) == "not_hounsfield"


# MONOCHROME1


@pytest.mark.parametrize(
    "voi",
    [
        {"WindowCenter": 2048, "WindowWidth": 4096},
        {"VOILUTSequence": Sequence([lut_item(0, 12, list(range(0, 4096)))])},
        {},
    ],
)
def test_monochrome1_is_inverted_once_and_after_voi(write_dicom: Write, voi: dict[str, object]) -> None:
    pixels = np.linspace(0, 4095, 42).astype("u2").reshape(6, 7)
    plain = read_image(write_dicom(pixels, BitsStored=12, HighBit=11, **voi)).pixels
    elements = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE", **voi}
    inverted = read_image(write_dicom(pixels, BitsStored=12, HighBit=11, **elements)).pixels
    assert_allclose(inverted, 1 - plain, atol=1e-6)
    assert plain[0, 0, 0] < 0.01


@pytest.mark.parametrize(("kind", "shape"), [("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")])
def test_polarity_that_contradicts_itself_is_refused(write_dicom: Write, kind: str, shape: str) -> None:
    path = write_dicom(ramp("u2"), PhotometricInterpretation=kind, PresentationLUTShape=shape)
    assert reason(path) == "presentation_conflict"


def test_pictures_that_are_not_one_grey_picture_are_refused(write_dicom: Write) -> None:
    assert reason(write_dicom(ramp("u2"), PixelPresentation="COLOR")) == "supplemental_palette"
    assert reason(write_dicom(ramp("u2"), ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"])) == "mosaic"


# Colour


def colours(rows: int = 8, columns: int = 10) -> np.ndarray:
    return RNG.integers(0, 256, (rows, columns, 3)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(4, 6), (3, 5)])
def test_rgb_in_both_planar_configurations_and_odd_sizes(write_dicom: Write, shape: tuple[int, int]) -> None:
    rgb = colours(*shape)
    wanted = np.moveaxis(rgb, -1, 0) / 255
    assert_allclose(read_image(write_dicom(rgb)).pixels, wanted, atol=1e-6)
    planes = np.moveaxis(rgb, -1, 0).tobytes()
    assert_allclose(read_image(write_dicom(rgb, raw=planes, PlanarConfiguration=1)).pixels, wanted, atol=1e-6)
    assert reason(write_dicom(rgb, drop=("PlanarConfiguration",))) == "missing_element"


def test_rgb_of_16_bits(write_dicom: Write) -> None:
    rgb = RNG.integers(0, 65536, (4, 5, 3)).astype("u2")
    assert_allclose(read_image(write_dicom(rgb)).pixels, np.moveaxis(rgb, -1, 0) / 65535, atol=1e-6)


def test_ybr_full_against_pydicom(write_dicom: Write) -> None:
    path = write_dicom(colours(), PhotometricInterpretation="YBR_FULL")
    assert_allclose(read_image(path).pixels, np.moveaxis(pixel_array(path), -1, 0) / 255, atol=1 / 255 + 1e-6)


def test_ybr_422_uncompressed(write_dicom: Write) -> None:
    full = colours(4, 6)
    full[:, 1::2, 1:] = full[:, ::2, 1:]
    pairs = np.stack([full[:, ::2, 0], full[:, 1::2, 0], full[:, ::2, 1], full[:, ::2, 2]], -1)
    wanted = read_image(write_dicom(full, PhotometricInterpretation="YBR_FULL")).pixels
    path = write_dicom(full, raw=pairs.tobytes(), PhotometricInterpretation="YBR_FULL_422")
    assert_array_equal(read_image(path).pixels, wanted)
    odd = write_dicom(colours(4, 5), raw=b"\0" * 40, PhotometricInterpretation="YBR_FULL_422")
    assert reason(odd) == "unsupported_colour"


def palette(bits: int, length: int, first: int = 0) -> dict[str, object]:
    tables = {}
    for name in ("Red", "Green", "Blue"):
        entries = RNG.integers(0, 1 << bits, length).astype("u1" if bits == 8 else "<u2")
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [length % 65536, first, bits]
        data = entries.tobytes()
        tables[f"{name}PaletteColorLookupTableData"] = data + b"\0" * (len(data) % 2)
    return tables


@pytest.mark.parametrize(("bits", "length", "first"), [(8, 256, 0), (16, 256, 0), (16, 65536, 0), (8, 100, 50)])
def test_palettes_against_pydicom(write_dicom: Write, bits: int, length: int, first: int) -> None:
    pixels = ramp("u2" if length > 256 else "u1")
    path = write_dicom(pixels, PhotometricInterpretation="PALETTE COLOR", **palette(bits, length, first))
    theirs = apply_color_lut(pixels, pydicom.dcmread(path))
    full = (1 << bits) - 1
    assert_allclose(read_image(path).pixels, np.moveaxis(theirs, -1, 0) / full, atol=1e-6)


def test_palette_of_8_bits_in_big_endian(write_dicom: Write) -> None:
    tables = palette(8, 256)
    little = write_dicom(ramp("u1"), PhotometricInterpretation="PALETTE COLOR", **tables)
    swapped = {
        name: np.frombuffer(value, "u2").byteswap().tobytes() if isinstance(value, bytes) else value
        for name, value in tables.items()
    }
    big = write_dicom(ramp("u1"), syntax=uid.ExplicitVRBigEndian, PhotometricInterpretation="PALETTE COLOR", **swapped)
    assert_array_equal(read_image(big).pixels, read_image(little).pixels)


def test_palette_whose_first_value_is_written_signed(write_dicom: Write) -> None:
    pixels = ramp("u2")
    path = write_dicom(pixels, PhotometricInterpretation="PALETTE COLOR", **palette(16, 4096, 40000))
    wanted = read_image(path).pixels
    assert len(np.unique(wanted)) > 4
    data = path.read_bytes()
    for tag in (b"\x28\x00\x01\x11", b"\x28\x00\x02\x11", b"\x28\x00\x03\x11"):
        assert tag + b"US" in data
        data = data.replace(tag + b"US", tag + b"SS")
    path.write_bytes(data)
    assert_array_equal(read_image(path).pixels, wanted)


def test_segmented_palette_against_pydicom(write_dicom: Write) -> None:
    segments = np.array([0, 2, 5, 10, 1, 100, 9000, 1, 154, 100], "<u2").tobytes()
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"Segmented{name}PaletteColorLookupTableData"] = segments
    path = write_dicom(ramp("u1"), **elements)
    theirs = apply_color_lut(ramp("u1"), pydicom.dcmread(path))
    assert_allclose(read_image(path).pixels, np.moveaxis(theirs, -1, 0) / 65535, atol=1.5 / 65535)
    bomb = np.tile(np.array([1, 65535, 7], "<u2"), 9000)
    bomb[:3] = 0, 1, 5
    elements["SegmentedRedPaletteColorLookupTableData"] = bomb.tobytes()
    assert reason(write_dicom(ramp("u1"), **elements)) == "palette"


def test_palettes_that_do_not_fit_are_refused(write_dicom: Write) -> None:
    good = {"PhotometricInterpretation": "PALETTE COLOR", **palette(8, 256)}
    assert read_image(write_dicom(ramp("u1"), **good)).pixels.shape == (3, 6, 7)
    for change in (
        {"RedPaletteColorLookupTableData": b"\0" * 100},
        {"RedPaletteColorLookupTableDescriptor": [256, 0, 12]},
        {"RedPaletteColorLookupTableDescriptor": [255, 0, 8]},
    ):
        assert reason(write_dicom(ramp("u1"), **{**good, **change})) == "palette"
    assert reason(write_dicom(ramp("u1"), PhotometricInterpretation="PALETTE COLOR")) == "palette"


# Geometry and headers


def test_spacing_is_row_then_column_and_names_its_source(write_dicom: Write) -> None:
    def geometry(**elements: object) -> tuple[object, ...]:
        image = read_image(write_dicom(ramp("u2"), **elements))
        return image.spacing_mm, image.spacing_source, image.aspect

    assert geometry(PixelSpacing=["0.6", "0.3"]) == ((0.6, 0.3), "PixelSpacing", 2.0)
    assert geometry(ImagerPixelSpacing=["0.2", "0.2"]) == ((0.2, 0.2), "ImagerPixelSpacing", 1.0)
    both = geometry(PixelSpacing=["0.1", "0.1"], ImagerPixelSpacing=["0.2", "0.2"])
    assert both == ((0.1, 0.1), "PixelSpacing", 1.0)
    scanned = geometry(NominalScannedPixelSpacing=["0.2", "0.2"])
    assert scanned == ((0.2, 0.2), "NominalScannedPixelSpacing", 1.0)
    assert geometry(PixelAspectRatio=["4", "3"]) == (None, "", 4 / 3)
    assert geometry() == (None, "", 1.0)
    assert geometry(PixelSpacing=["0", "0.3"]) == (None, "", 1.0)
    assert geometry(SliceThickness="3") == (None, "", 1.0)


def test_headers_are_an_allow_list(write_dicom: Write) -> None:
    path = write_dicom(
        ramp("u2"),
        PatientName="Probe^Name",
        PatientBirthDate="19500101",
        StudyDescription="Probe text",
        PatientSex="F",
        PatientAge="070Y",
        ImageType=["DERIVED", "PRIMARY"],
        BurnedInAnnotation="NO",
    )
    headers = read_image(path).headers
    assert headers["PatientID"] == "P1"
    assert headers["PatientSex"] == "F"
    assert headers["ImageType"] == "DERIVED\\PRIMARY"
    assert headers["BurnedInAnnotation"] == "NO"
    assert headers["ViewPosition"] == ""
    joined = " ".join(f"{key}={value}" for key, value in headers.items())
    assert "Probe" not in joined
    assert "1950" not in joined
    assert not {"PatientName", "PatientBirthDate", "StudyDescription"} & set(headers)


def test_refusals_quote_no_value(write_dicom: Write, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_dicom(ramp("u2"), PatientID="Probe^Secret", PatientName="Probe^Secret")
    data = path.read_bytes().replace(b"\x28\x00\x02\x00US", b"\x28\x00\x02\x00QQ")
    path.write_bytes(data)
    with pytest.raises(ImageRefusedError) as caught:
        read_image(path)
    out = "".join(capfd.readouterr()) + str(caught.value)
    assert "Probe" not in out
    assert str(path) not in out


def test_overlays_are_not_burnt_in(write_dicom: Write) -> None:
    pixels = np.arange(64, dtype="u2").reshape(8, 8) * 64
    plain = read_image(write_dicom(pixels, BitsStored=12, HighBit=11)).pixels
    path = write_dicom(pixels | 0x8000, BitsStored=12, HighBit=11)  # an overlay in bit 15
    ds = pydicom.dcmread(path)
    ds.add_new(0x60000010, "US", 8)
    ds.add_new(0x60000011, "US", 8)
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 15)
    ds.save_as(path)
    assert_array_equal(read_image(path).pixels, plain)


# dcmtk as the reference


@pytest.fixture
def dcm2pnm(tmp_path: Path) -> Callable[..., np.ndarray]:
    """Renders by dcmtk to 16 bits, (H, W), in [0, 1]."""
    if not shutil.which("dcm2pnm"):
        pytest.skip("dcm2pnm (Debian: dcmtk) is not installed")

    def render(path: Path, *arguments: str) -> np.ndarray:
        out = tmp_path / "out.pgm"
        subprocess.run(["dcm2pnm", "+opn", "16", *arguments, str(path), str(out)], check=True)
        tokens = out.read_bytes().split(maxsplit=4)
        if tokens[0] == b"P2":
            numbers = [token for line in out.read_text().splitlines() if line[:1] != "#" for token in line.split()]
            columns, rows, full = (int(token) for token in numbers[1:4])
            return np.array(numbers[4:], float).reshape(rows, columns) / full
        columns, rows, full = (int(token) for token in tokens[1:4])
        return np.frombuffer(tokens[4], ">u2").reshape(rows, columns) / full

    return render


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(40, 400), (-100, 1000), (300, 2)])
def test_windows_against_dcmtk(
    write_dicom: Write,
    dcm2pnm: Callable[..., np.ndarray],
    kind: str,
    function: str,
    center: int,
    width: int,
) -> None:
    pixels = np.arange(0, 4096, dtype="u2").reshape(64, 64)
    path = write_dicom(
        pixels,
        BitsStored=12,
        HighBit=11,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=center,
        WindowWidth=width,
        VOILUTFunction=function,
        PhotometricInterpretation=kind,
    )
    assert_allclose(read_image(path).pixels[0], dcm2pnm(path, "+Wi", "1"), atol=1.01 / 65535)


@pytest.mark.oracle
def test_voi_table_against_dcmtk(write_dicom: Write, dcm2pnm: Callable[..., np.ndarray]) -> None:
    # 16 bits: of a 12-bit table dcmtk shows the largest entry as 4095/4096 of white.
    entries = (np.arange(4096) ** 2 // 256).tolist()
    pixels = np.arange(0, 4096, dtype="u2").reshape(64, 64)
    path = write_dicom(pixels, BitsStored=12, HighBit=11, VOILUTSequence=Sequence([lut_item(0, 16, entries)]))
    assert_allclose(read_image(path).pixels[0], dcm2pnm(path, "+Wl", "1"), atol=1.01 / 65535)


@pytest.mark.parametrize("padding", [2, 126, 4096])
def test_zeros_behind_the_pixels_are_padding(write_dicom: Write, padding: int) -> None:
    pixels = np.arange(64 * 64, dtype="u2").reshape(64, 64)
    plain = read_image(write_dicom(pixels))
    dataset = pydicom.dcmread(write_dicom(pixels))
    dataset.PixelData += bytes(padding)
    dataset.save_as(dataset.filename)
    assert_array_equal(read_image(Path(str(dataset.filename))).pixels, plain.pixels)


@pytest.mark.parametrize("behind", [b"\0" * 98 + b"\0\1", bytes(4098)], ids=["pixels", "too_much"])
def test_other_bytes_behind_the_pixels_are_refused(write_dicom: Write, behind: bytes) -> None:
    dataset = pydicom.dcmread(write_dicom(np.arange(64 * 64, dtype="u2").reshape(64, 64)))
    dataset.PixelData += behind
    dataset.save_as(dataset.filename)
    assert reason(Path(str(dataset.filename))) == "pixel_length"


def test_whole_frame_of_zeros_is_no_padding(write_dicom: Write) -> None:
    dataset = pydicom.dcmread(write_dicom(ramp("u2")))
    dataset.PixelData += bytes(len(dataset.PixelData))
    dataset.save_as(dataset.filename)
    assert reason(Path(str(dataset.filename))) == "pixel_length"


@pytest.mark.parametrize(
    "elements",
    [{"RescaleSlope": 1}, {"RescaleSlope": 1, "RescaleIntercept": None}, {"RescaleIntercept": 0, "RescaleSlope": None}],
)
def test_half_a_rescale_that_changes_nothing_is_none(write_dicom: Write, elements: dict[str, object]) -> None:
    image = read_modality_values(write_dicom(ramp("i2"), RescaleType="HU", **elements))
    assert_array_equal(image.values, ramp("i2"))
    assert image.unit == ""  # an intercept may have been lost: nothing says that 0 is water


@pytest.mark.parametrize("elements", [{"RescaleSlope": 2, "RescaleIntercept": None}, {"RescaleIntercept": -1024}])
def test_half_a_rescale_that_is_missed_is_refused(write_dicom: Write, elements: dict[str, object]) -> None:
    assert reason(write_dicom(ramp("i2"), **elements)) == "rescale"
