"""What a file holds and what is left of it: counted levels, the set's own range, and CT values that cannot be HU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medcls.errors import ImageRefusedError
from medcls.imaging.decode import DecodedImage, DecodeTask, decode_image
from medcls.imaging.grey_levels import SourceValues, check_hounsfield, count_levels, loses_levels, take_sample
from medcls.imaging.preprocess import PreprocessSpec
from medcls.imaging.volume.spec import read_spec
from medcls.records import to_json

Write = Callable[..., Path]
SPEC = PreprocessSpec(height=32, width=32)
RAMP = np.arange(32 * 32).reshape(32, 32)  # 0 to 1023: 10 bits


def decode(path: Path, **changes: Any) -> DecodedImage:
    return decode_image(DecodeTask((path,), None, replace(SPEC, **changes)))


def voi_lut(entries: np.ndarray, bits: int) -> dict[str, Any]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), 0, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return {"VOILUTSequence": Sequence([item])}


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_picture_of_few_bits_in_sixteen_is_measured_and_mended_by_its_range(
    tmp_path: Path, bits: int, suffix: str
) -> None:
    values = (RAMP << (bits - 10)).astype("u2")
    path = tmp_path / f"image{suffix}"
    Image.fromarray(values).save(path)
    found = decode(path)
    assert found.source == SourceValues(0, values.max(), 1024, "type")
    assert found.stored_levels == round(values.max() / 65535 * 255) + 1
    assert loses_levels(source=1024, stored=found.stored_levels) == (bits < 14)
    mended = decode(path, intensity="range", range=(0.0, float((1 << bits) - 1)))
    assert (mended.stored_levels, mended.source) == (256, SourceValues(0, values.max(), 1024, "range"))
    assert_allclose(mended.prepared.pixels[0], np.clip(values / ((1 << bits) - 1), 0, 1) * 255, atol=0.5001)
    assert decode(path, dtype="uint16").stored_levels == 1024


def test_range_is_of_modality_values_replaces_the_window_and_keeps_the_inversion(write_dicom: Write) -> None:
    header = {"RescaleSlope": "2", "RescaleIntercept": "-100", "BitsStored": 12, "HighBit": 11}
    for kind in ("MONOCHROME2", "MONOCHROME1"):
        narrow = {"WindowCenter": "0", "WindowWidth": "3", "PhotometricInterpretation": kind}
        path = write_dicom(RAMP.astype("u2"), **header, **narrow)
        assert decode(path).source == SourceValues(-100, 1946, 1024, "window")
        assert decode(path).stored_levels <= 4
        pixels = decode(path, intensity="range", range=(-100.0, 1946.0)).prepared.pixels[0]
        wanted = RAMP / 1023 * 255
        assert_allclose(pixels, wanted if kind == "MONOCHROME2" else 255 - wanted, atol=0.5001)


def test_voi_lut_of_twelve_bits_said_to_be_sixteen_leaves_few_levels(write_dicom: Write) -> None:
    entries = np.rint(4095 / (1 + np.exp(-(np.arange(1024) - 500) / 90)))
    path = write_dicom(RAMP.astype("u2"), BitsStored=12, HighBit=11, **voi_lut(entries, 16))
    found = decode(path)
    assert found.source == SourceValues(0, 1023, 1024, "voi_lut")
    assert found.stored_levels == 17
    assert decode(write_dicom(RAMP.astype("u2"), **voi_lut(entries, 12))).stored_levels > 200
    assert decode(path, intensity="minmax").stored_levels > 200


def test_one_far_off_pixel_is_seen_in_an_image_that_sets_its_own_range(write_dicom: Write) -> None:
    pixels = RAMP.astype("u2")
    pixels[0, 0] = 65535
    found = decode(write_dicom(pixels))
    assert found.source == SourceValues(1, 65535, 1024, "own_range")
    assert found.stored_levels == 6
    assert decode(write_dicom(pixels), intensity="percentile").stored_levels > 200


def test_padding_and_frame_take_no_part(write_dicom: Write) -> None:
    pixels = RAMP.astype("u2")[:, :16]
    pixels[:, 8:] = 3000
    found = decode(write_dicom(pixels, PixelPaddingValue=3000))
    assert found.source == SourceValues(0, 999, 256, "own_range")


@pytest.mark.parametrize("dtype", ["i2", "i4", "u4", "f4", "f8"])
def test_range_reads_arrays_that_have_no_range_of_their_own(tmp_path: Path, dtype: str) -> None:
    values = (RAMP - 24).astype(dtype) * (2 if dtype != "u4" else 1)
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ImageRefusedError, match=r"sample_type|float_range.*image\.intensity=range"):
        decode(tmp_path / "a.npy")
    low, high = float(values.min()), float(values.max())
    found = decode(tmp_path / "a.npy", intensity="range", range=(low, high))
    assert found.source == SourceValues(low, high, 1024, "range")
    assert_allclose(found.prepared.pixels[0], (values.astype(float) - low) / (high - low) * 255, atol=0.5001)


def test_colour_in_dicom_has_no_grey_range(write_dicom: Write) -> None:
    path = write_dicom(np.zeros((8, 8, 3), "u1"))
    with pytest.raises(ImageRefusedError, match=r"not_grey: image\.intensity=range"):
        decode(path, intensity="range", range=(0.0, 10.0), channels=3)


def test_a_min_is_white_tiff_is_measured_after_its_inversion(tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", RAMP.astype("u2"), photometric="miniswhite")
    assert decode(tmp_path / "a.tif").source == SourceValues(65535 - 1023, 65535, 1024, "type")


def test_levels_are_counted_by_channel_and_sampled_evenly() -> None:
    assert count_levels(np.array([[[0, 1], [2, 2]], [[5, 5], [5, 5]]], np.uint8)) == 3
    assert count_levels(np.linspace(0, 1, 500, dtype=np.float16).reshape(1, 1, 500)) == 500
    assert count_levels(np.array([[[-1000, 3000]]], np.int16)) == 2
    sample = take_sample(np.arange(1 << 20).reshape(1024, 1024), None)
    assert (len(sample), sample[0], sample[-1]) == (1 << 16, 0, (1 << 20) - 16)
    assert take_sample(np.zeros((2, 2)), np.ones((2, 2), bool)).size == 0


@pytest.mark.parametrize(
    ("source", "stored", "lost"),
    [(1000, 12, True), (1000, 31, True), (1000, 32, False), (40, 12, False), (2, 2, False), (1, 1, False)],
)
def test_few_levels_are_a_loss_only_of_many(source: int, stored: int, lost: bool) -> None:
    assert loses_levels(source=source, stored=stored) == lost


HEAD = np.full((32, 32), -1000)
HEAD[4:28, 4:28] = 900
HEAD[6:26, 6:26] = RAMP[6:26, 6:26] % 60 + 5


@pytest.mark.parametrize(
    ("stored", "intercept", "fault"),
    [
        (HEAD % 4096, 0, "wrapped around"),
        (HEAD % 65536, 0, "wrapped around"),
        (HEAD % 4096, 1, "wrapped around"),
        (np.clip(HEAD + 1024, 0, 4095), 0, "intercept"),
        (np.clip(HEAD + 1024, 0, 4095), -1024, ""),
    ],
)
def test_ct_whose_values_cannot_be_hounsfield_units_is_refused(
    write_dicom: Write, stored: np.ndarray, intercept: int, fault: str
) -> None:
    header = {"Modality": "CT", "RescaleSlope": "1", "RescaleType": "HU", "WindowCenter": "40", "WindowWidth": "80"}
    path = write_dicom(stored.astype("u2"), RescaleIntercept=str(intercept), **header)
    for windows in ((), ((40.0, 80.0),)):
        if fault:
            with pytest.raises(ImageRefusedError, match=rf"implausible_hu: .*HU.*{fault}.*image\.implausible_hu=allow"):
                decode(path, windows_hu=windows)
            decode(path, windows_hu=windows, implausible_hu="allow")
        else:
            decode(path, windows_hu=windows)
    decode(write_dicom(stored.astype("u2"), RescaleIntercept=str(intercept), **header | {"RescaleType": "US"}))


@pytest.mark.parametrize(
    "values",
    [HEAD, HEAD[6:26, 6:26], np.full((8, 8), 3071), np.zeros(0), np.where(RAMP % 50 == 0, 3071, 40)],
    ids=["head", "no air", "metal alone", "nothing", "some metal"],
)
def test_plausible_values_pass(values: np.ndarray) -> None:
    if (values == 3071).all() and values.size:
        with pytest.raises(ImageRefusedError):
            check_hounsfield(values)
    else:
        check_hounsfield(values)


def test_records_of_version_0_2_0_have_neither_field_and_read_as_before() -> None:
    content = to_json(SPEC)
    assert not {"range", "implausible_hu"} & set(content)
    assert read_spec(content) == SPEC
    changed = replace(SPEC, intensity="range", range=(0.0, 4095.0), implausible_hu="allow")
    assert read_spec(to_json(changed) | {"range": [0, 4095]}) == changed


def test_jpeg_of_eight_bits_keeps_its_levels(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(imagecodecs.jpeg8_encode((RAMP // 4).astype("u1"), level=100))
    found = decode(tmp_path / "a.jpg")
    assert found.source is not None
    assert not loses_levels(source=found.source.levels, stored=found.stored_levels)
