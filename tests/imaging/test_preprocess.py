"""One raw image to one stored array: geometry, intensity, channels, and the record of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medcls.errors import DataError, ImageRefusedError
from medcls.imaging.dicom.burnt_in import BurntInRule
from medcls.imaging.image import RawImage
from medcls.imaging.preprocess import PreprocessSpec, match_channels, preprocess_image
from medcls.imaging.volume.spec import read_spec
from medcls.records import from_json, to_json

MakeRaw = Callable[..., RawImage]


def ramp(rows: int, columns: int, channels: int = 1) -> np.ndarray:
    """Grey rising from left to right, 0 to 1."""
    return np.broadcast_to(np.linspace(0, 1, columns, dtype=np.float32), (channels, rows, columns))


def spec(height: int = 16, width: int = 16, **changes: Any) -> PreprocessSpec:
    return PreprocessSpec(height=height, width=width, **changes)


def test_an_image_of_the_right_size_is_stored_as_it_is(make_raw: MakeRaw) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16))
    prepared = preprocess_image(make_raw(pixels / 255), spec())
    assert prepared.pixels.dtype == np.uint8
    assert (prepared.pixels == pixels).all()
    assert (prepared.valid_extent, prepared.spacing_mm) == ((0, 0, 16, 16), None)


def test_16_bits_keep_what_8_bits_lose(make_raw: MakeRaw) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (1, 16, 16))
    prepared = preprocess_image(make_raw(pixels / 65535), spec(dtype="uint16"))
    assert (prepared.pixels == pixels).all()


@pytest.mark.parametrize(
    ("rows", "columns", "fit", "extent"),
    [
        (8, 16, "pad", (4, 0, 8, 16)),
        (16, 8, "pad", (0, 4, 16, 8)),
        (32, 64, "pad", (4, 0, 8, 16)),
        (4, 8, "pad", (4, 0, 8, 16)),
        (7, 16, "pad", (4, 0, 7, 16)),
        (8, 16, "crop", (0, 0, 16, 16)),
        (8, 16, "stretch", (0, 0, 16, 16)),
    ],
)
def test_the_extent_says_where_the_image_lies(
    rows: int, columns: int, fit: str, extent: tuple[int, int, int, int], make_raw: MakeRaw
) -> None:
    prepared = preprocess_image(make_raw(np.ones((1, rows, columns))), spec(fit=fit))
    assert prepared.valid_extent == extent
    y, x, height, width = extent
    inside = np.zeros((16, 16), bool)
    inside[y : y + height, x : x + width] = True
    assert (prepared.pixels[0] == np.where(inside, 255, 0)).all()


def test_crop_keeps_the_middle_and_its_proportions(make_raw: MakeRaw) -> None:
    pixels = np.zeros((1, 16, 32), np.float32)
    pixels[:, :, 8:24] = np.random.default_rng(0).random((1, 16, 16))
    prepared = preprocess_image(make_raw(pixels), spec(fit="crop"))
    assert (prepared.pixels == np.rint(pixels[:, :, 8:24] * 255)).all()


def test_shrinking_averages_areas(make_raw: MakeRaw) -> None:
    pixels = np.random.default_rng(0).random((1, 64, 64)).astype(np.float32)
    expected = pixels.reshape(1, 16, 4, 16, 4).mean(axis=(2, 4))
    prepared = preprocess_image(make_raw(pixels), spec())
    assert np.abs(prepared.pixels - expected * 255).max() <= 0.51


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 70),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    fit=st.sampled_from(["pad", "crop", "stretch"]),
    aspect=st.sampled_from([0.5, 1.0, 1.7]),
)
def test_any_size_fits_any_frame(rows, columns, height, width, fit, aspect, make_raw: MakeRaw) -> None:
    raw = make_raw(np.ones((1, rows, columns)), aspect=aspect)
    prepared = preprocess_image(raw, spec(height, width, fit=fit))
    assert prepared.pixels.shape == (1, height, width)
    y, x, inner_height, inner_width = prepared.valid_extent
    assert min(y, x) >= 0
    assert min(inner_height, inner_width) >= 1
    assert y + inner_height <= height
    assert x + inner_width <= width
    assert int((prepared.pixels == 255).sum()) == inner_height * inner_width
    if fit != "pad":
        assert (inner_height, inner_width) == (height, width)
    else:
        assert inner_height == height or inner_width == width
        assert abs(2 * y + inner_height - height) <= 1
        assert abs(2 * x + inner_width - width) <= 1


def test_pixels_that_are_not_square_are_made_square(make_raw: MakeRaw) -> None:
    """A pixel twice as high as wide: 8 rows of 16 columns are a square."""
    raw = make_raw(ramp(8, 16), aspect=2.0, spacing_mm=(1.0, 0.5))
    prepared = preprocess_image(raw, spec())
    assert prepared.valid_extent == (0, 0, 16, 16)
    assert prepared.spacing_mm == (0.5, 0.5)


def test_the_spacing_follows_the_zoom(make_raw: MakeRaw) -> None:
    raw = make_raw(ramp(64, 32), spacing_mm=(0.2, 0.2))
    assert preprocess_image(raw, spec()).spacing_mm == pytest.approx((0.8, 0.8))
    assert preprocess_image(raw, spec(fit="stretch")).spacing_mm == pytest.approx((0.8, 0.4))
    assert preprocess_image(raw, spec(fit="crop")).spacing_mm == pytest.approx((0.4, 0.4))


def test_a_region_is_cut_out_first(make_raw: MakeRaw) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 20, 40))
    prepared = preprocess_image(make_raw(pixels / 255), spec(), roi=(24, 4, 16, 16))
    assert (prepared.pixels == pixels[:, 4:20, 24:40]).all()


@pytest.mark.parametrize("roi", [(25, 4, 16, 16), (24, 5, 16, 16), (-1, 0, 4, 4), (0, -1, 4, 4), (0, 0, 0, 4)])
def test_a_region_that_leaves_the_image_is_refused(roi: tuple[int, int, int, int], make_raw: MakeRaw) -> None:
    with pytest.raises(ImageRefusedError, match="image is 40 x 20") as error:
        preprocess_image(make_raw(ramp(20, 40)), spec(), roi=roi)
    assert error.value.reason == "roi_outside"


def test_minmax_and_percentile_stretch_each_image(make_raw: MakeRaw) -> None:
    pixels = 0.4 + 0.2 * ramp(16, 16)
    assert preprocess_image(make_raw(pixels), spec()).pixels.min() == 102
    stretched = preprocess_image(make_raw(pixels), spec(intensity="minmax")).pixels
    assert (stretched == np.rint(ramp(16, 16) * 255)).all()
    spiked = pixels.copy()
    spiked[0, 0, 0] = 1.0
    robust = preprocess_image(make_raw(spiked), spec(intensity="percentile", percentiles=(5, 95))).pixels
    low, high = np.percentile(spiked, (5, 95))
    expected = np.clip((spiked - low) / (high - low), 0, 1) * 255
    assert np.abs(robust - expected).max() <= 0.51


def test_padding_of_the_file_is_black_and_left_out_of_the_range(make_raw: MakeRaw) -> None:
    pixels = 0.4 + 0.2 * ramp(16, 16)
    mask = np.zeros((16, 16), bool)
    mask[:4] = True
    pixels[:, :4] = 0
    raw = make_raw(pixels, mask=mask)
    stored = preprocess_image(raw, spec(intensity="minmax")).pixels[0]
    assert (stored[:4] == 0).all()
    assert (stored[4:] == np.rint(ramp(12, 16)[0] * 255)).all()
    below = preprocess_image(raw, spec(intensity="minmax"), roi=(0, 4, 16, 12)).pixels
    assert below.max() == 255


@pytest.mark.parametrize(
    ("pixels", "mask", "reason"),
    [(np.full((1, 16, 16), 0.3), None, "flat"), (np.zeros((1, 16, 16)), np.ones((16, 16), bool), "all_padding")],
)
@pytest.mark.parametrize("intensity", ["minmax", "percentile"])
def test_an_image_without_a_range_is_refused_where_it_needs_one(
    pixels: np.ndarray, mask: np.ndarray | None, reason: str, intensity: str, make_raw: MakeRaw
) -> None:
    raw = make_raw(pixels, mask=mask)
    with pytest.raises(ImageRefusedError) as error:
        preprocess_image(raw, spec(intensity=intensity))
    assert error.value.reason == reason
    assert preprocess_image(raw, spec()).pixels.shape == (1, 16, 16)


def test_grey_is_repeated_and_grey_in_colours_is_averaged() -> None:
    grey = ramp(4, 4)
    assert (match_channels(grey, 3) == np.repeat(grey, 3, axis=0)).all()
    nearly = np.concatenate([grey, grey, np.clip(grey + 6 / 255, 0, 1)])
    one = match_channels(nearly, 1)
    assert one.shape == (1, 4, 4)
    assert np.abs(one - grey).max() <= 2.1 / 255


@pytest.mark.parametrize(("have", "want"), [(3, 1), (2, 1), (2, 3), (4, 3)])
def test_other_channels_are_refused_by_name(have: int, want: int) -> None:
    pixels = np.stack([ramp(4, 4)[0] * (i + 1) / have for i in range(have)])
    with pytest.raises(ImageRefusedError, match=rf"{have} channels where image\.channels={want}") as error:
        match_channels(pixels, want)
    assert error.value.reason == "colour"


def test_a_colour_image_keeps_its_channels(make_raw: MakeRaw) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16))
    assert (preprocess_image(make_raw(pixels / 255), spec(channels=3)).pixels == pixels).all()


def test_the_raw_image_is_not_changed(make_raw: MakeRaw) -> None:
    mask = np.zeros((20, 20), bool)
    mask[0] = True
    raw = make_raw(np.random.default_rng(0).random((1, 20, 20)), mask=mask)
    before = raw.pixels.copy()
    preprocess_image(raw, spec(intensity="minmax"), roi=(0, 0, 18, 18))
    assert (raw.pixels == before).all()


def test_the_record_comes_back_from_json() -> None:
    given = spec(
        dtype="uint16",
        windows_hu=((40.0, 400.0), (0.0, 80.0), (40.0, 80.0)),
        percentiles=(1.0, 99.0),
        channels=3,
        burnt_in=BurntInRule("ultrasound_regions", ((0, 0, 8, 2),), (0, 0, 16, 16)),
    )
    assert from_json(PreprocessSpec, json.loads(json.dumps(to_json(given)))) == given
    assert given.read_options.windows_hu == given.windows_hu


def test_a_record_of_version_0_1_0_reads_as_what_was_done_then() -> None:
    content = to_json(spec())
    del content["burnt_in"], content["spatial_dims"]
    old = from_json(PreprocessSpec, content)
    assert old == spec(burnt_in=BurntInRule("allow"))
    assert (old.shape, old.spatial_dims) == ((1, 16, 16), 2)
    assert spec().burnt_in == BurntInRule("refuse")
    assert spec().read_options.burnt_in == BurntInRule("refuse")
    fields = "height width channels dtype fit intensity percentiles window_index windows_hu"
    assert set(content) == set(fields.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows_hu": None}, r"\.windows_hu: null, expected a list$"),
        ({"percentiles": [1]}, r"\.percentiles: a list of 1, expected a list of 2$"),
        ({"percentiles": [99, 1]}, r": image\.percentiles=\[99\.0, 1\.0\]: "),
        ({"new_field": 1}, ": unknown field 'new_field', expected height, "),
        ({"windows_hu": [[1]]}, r"\.windows_hu\[0\]: a list of 1, expected a list of 2$"),
        ({"windows_hu": [["40", "400"]]}, r"\.windows_hu\[0\]\[0\]: a text of 2 characters, expected a number$"),
        ({"windows_hu": [[40, 1]]}, r": image\.windows_hu=\[\[40\.0, 1\.0\]\]: expected "),
        ({"burnt_in": {}}, r"\.burnt_in: no field policy, mask_boxes, keep_box$"),
        ({"height": 7}, r": image\.size=\[7, 16\]: "),
        ({"channels": 2}, r": image\.channels=2: "),
    ],
)
def test_record_of_another_version_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^preprocess{message}"):
        read_spec(to_json(spec()) | change)


def test_a_record_that_lacks_a_field_is_refused() -> None:
    content = to_json(spec())
    del content["fit"]
    with pytest.raises(DataError, match=r"^no field fit$"):
        from_json(PreprocessSpec, content)
