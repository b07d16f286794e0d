"""One raw volume to one stored array: orientation, grid, intensity, and the affine through all of it."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcls.errors import ConfigError, DataError, ImageRefusedError
from medcls.imaging.dicom.burnt_in import BurntInRule
from medcls.imaging.preprocess import PreprocessSpec
from medcls.imaging.volume.geometry import compute_spacing
from medcls.imaging.volume.resample import build_weights, resample, resample_masked
from medcls.imaging.volume.spec import HU_RANGE, WINDOWS_HU, VolumeSpec, find_windows, read_spec
from medcls.imaging.volume.standardize import crop_foreground, preprocess_volume, to_canonical, to_patient_axes
from medcls.imaging.volume.volume import RawVolume
from medcls.records import from_json, to_json

CT = {"Modality": "CT"}
# Canonical: d to superior (+z), h to posterior (+y), w to left (+x).
AXIAL = np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]])


def make_affine(cosines: np.ndarray, spacing: tuple[float, ...], origin: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = cosines * np.array(spacing)
    affine[:3, 3] = origin
    return affine


def make_volume(values: Any, affine: np.ndarray | None = None, **changes: Any) -> RawVolume:
    affine = make_affine(AXIAL, (1, 1, 1)) if affine is None else affine
    fields: dict[str, Any] = {"mask": None, "unit": "HU", "photometric": "MONOCHROME2", "headers": CT} | changes
    return RawVolume(values=np.asarray(values, np.float32), affine=affine, spacing_mm=compute_spacing(affine), **fields)


def positions_mm(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(D, H, W, 3), mm."""
    index = np.stack([*np.indices(shape), np.ones(shape)], -1)
    return (index @ affine.T)[..., :3]


def spec(depth: int = 8, height: int = 8, width: int = 8, **changes: Any) -> VolumeSpec:
    return VolumeSpec(depth, height, width, **({"intensity": "hounsfield", "dtype": "int16"} | changes))


def scaled(depth: int = 8, height: int = 8, width: int = 8, **changes: Any) -> VolumeSpec:
    return spec(depth, height, width, **({"intensity": "minmax", "dtype": "uint8"} | changes))


RNG = np.random.default_rng(0)
NOISE = RNG.integers(-1000, 1000, (8, 8, 8)).astype(np.float32)


# Where every voxel is


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


ORIENTATIONS = [
    np.eye(3)[:, list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
ANGLE = st.floats(-0.5, 0.5)
SPACING = st.floats(0.4, 6)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(*[st.integers(2, 24)] * 3),
    spacing=st.tuples(SPACING, SPACING, SPACING),
    orientation=st.sampled_from(ORIENTATIONS),
    angles=st.one_of(st.just((0.0, 0.0, 0.0)), st.tuples(ANGLE, ANGLE, ANGLE)),
    gradient=st.tuples(*[st.floats(-1, 1)] * 3),
    frame=st.tuples(*[st.integers(4, 28)] * 3),
    target=st.one_of(st.none(), st.tuples(SPACING, SPACING, SPACING)),
    fit=st.sampled_from(["pad", "crop", "stretch"]),
    patient_axes=st.booleans(),
)
def test_the_stored_affine_reads_back_the_patient(
    shape, spacing, orientation, angles, gradient, frame, target, fit, patient_axes
) -> None:
    """A phantom whose value is linear in the patient's mm has, at every stored voxel's mm, that value."""
    affine = make_affine(rotation(angles) @ orientation, spacing, (-50.0, 20.0, 300.0))
    slope = np.array(gradient)
    centre = positions_mm(affine, shape).reshape(-1, 3).mean(axis=0)
    phantom = (positions_mm(affine, shape) - centre) @ slope
    slope *= 1000 / max(1e-3, float(np.abs(phantom).max()))  # HU up to 1000: rounding is 0.05 % of it
    raw = make_volume((positions_mm(affine, shape) - centre) @ slope, affine)
    fit = "crop" if fit == "stretch" and target else fit
    try:
        stored = preprocess_volume(raw, spec(*frame, spacing_mm=target, fit=fit, patient_axes=patient_axes))
    except ImageRefusedError as error:
        sliver = {"all_padding"} if patient_axes else set()  # turned, it may fill no voxel by half
        if error.reason not in {"field_of_view", "too_small", "flat"} | sliver:
            raise
        return
    z, y, x, depth, height, width = stored.valid_extent
    inside = np.zeros(stored.pixels.shape[1:], bool)
    inside[z : z + depth, y : y + height, x : x + width] = True
    assert (stored.pixels[0][~inside] == HU_RANGE[0]).all()
    expected = (positions_mm(stored.affine, inside.shape) - centre) @ slope
    sure = inside & is_measured(stored.affine, inside.shape, affine, shape, 2 if patient_axes else 0)
    assert np.abs(stored.pixels[0] - expected)[sure].max(initial=0) <= 0.6
    cosines = (stored.affine[:3, :3] / np.array(stored.spacing_mm))[::-1]
    assert (np.diag(cosines) > 0).all()
    if target:
        assert stored.spacing_mm == pytest.approx(target, rel=1e-5)
    if patient_axes:
        assert np.abs(cosines - np.eye(3)).max() < 1e-3


def is_measured(
    affine: np.ndarray, shape: tuple[int, ...], old_affine: np.ndarray, old_shape: tuple[int, ...], margin: float
) -> np.ndarray:
    """Where a new voxel and what it is the mean of lie among the centres of the old voxels; elsewhere it is cut."""
    index = np.stack([*np.indices(shape), np.ones(shape)], -1)
    to_old = np.linalg.inv(old_affine) @ affine
    place = (index @ to_old.T)[..., :3]
    reach = np.maximum(0.5, np.abs(to_old[:3, :3]).sum(axis=1) / 2) - 0.5 - 1e-9
    if margin:  # a slanted grid in between: its voxels' corners count too
        spacing = np.array(compute_spacing(old_affine))
        reach = reach + margin * spacing.max() / spacing
    return ((place >= reach) & (place <= np.array(old_shape) - 1 - reach)).all(axis=-1)


@pytest.mark.parametrize("patient_axes", [False, True])
@pytest.mark.parametrize("spacing_mm", [None, (2.0, 1.7, 1.7), (0.8, 0.9, 1.1)])
@pytest.mark.parametrize("angles", [(0, 0, 0), (0.1, -0.3, 0.2)])
def test_most_voxels_of_a_tilted_phantom_read_back(patient_axes, spacing_mm, angles) -> None:
    """The same as above where it is certain that thousands of voxels are looked at."""
    shape, slope = (20, 40, 36), np.array([11.0, -7.0, 13.0])
    affine = make_affine(rotation(angles) @ ORIENTATIONS[37], (1.5, 1.0, 1.2), (3, 4, 5))
    raw = make_volume(positions_mm(affine, shape) @ slope, affine)
    stored = preprocess_volume(raw, spec(24, 26, 26, spacing_mm=spacing_mm, fit="crop", patient_axes=patient_axes))
    expected = positions_mm(stored.affine, stored.pixels.shape[1:]) @ slope
    sure = is_measured(stored.affine, stored.pixels.shape[1:], affine, shape, 2 if patient_axes else 0)
    assert sure.sum() > 2000
    assert np.abs(expected[sure]).max() < 1000
    assert np.abs(stored.pixels[0] - expected)[sure].max() <= 0.6


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_all_48_orientations_end_as_one(orientation: np.ndarray) -> None:
    """The same patient, stored by the scanner along any axes: the same voxels and the same affine."""
    canonical = make_affine(AXIAL, (2.0, 0.5, 0.25), (5.0, -7.0, 11.0))
    values = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
    order = [int(np.argmax(np.abs(orientation[:, axis]))) for axis in range(3)]  # patient axis x, y, z of each
    axes = [2 - each for each in order]
    signs = [orientation[each, axis] for axis, each in enumerate(order)]
    index_map = np.zeros((4, 4))
    index_map[3, 3] = 1
    for new, (old, sign) in enumerate(zip(axes, signs, strict=True)):
        index_map[old, new] = sign
        index_map[old, 3] = 0 if sign > 0 else values.shape[old] - 1
    flipped = values.transpose(axes)[tuple(slice(None, None, int(sign)) for sign in signs)]
    raw = to_canonical(make_volume(flipped, canonical @ index_map))
    assert (raw.values == values).all()
    assert np.allclose(raw.affine, canonical)
    assert raw.spacing_mm == pytest.approx((2.0, 0.5, 0.25))


def test_a_sagittal_volume_is_turned_and_its_mask_with_it() -> None:
    """Rows from superior to inferior, columns from anterior to posterior, slices from left to right."""
    affine = make_affine(np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), (3, 1, 1))
    values = RNG.random((2, 4, 6)).astype(np.float32)
    mask = values > 0.7
    raw = to_canonical(make_volume(values, affine, mask=mask))
    assert raw.values.shape == (4, 6, 2)
    assert raw.values[3, 0, 1] == values[0, 0, 0]
    assert (raw.mask == (raw.values > 0.7)).all()


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_voxels_that_span_no_volume_are_refused(bad: float) -> None:
    affine = make_affine(AXIAL, (1, 1, 1))
    affine[:3, 0] *= bad
    with pytest.raises(ImageRefusedError) as error:
        preprocess_volume(make_volume(NOISE, affine), spec())
    assert error.value.reason == "bad_affine"


def test_a_volume_of_the_right_size_is_stored_as_it_is() -> None:
    stored = preprocess_volume(make_volume(NOISE), spec())
    assert (stored.pixels[0] == NOISE).all()
    assert stored.pixels.dtype == np.int16
    assert stored.valid_extent == (0, 0, 0, 8, 8, 8)
    assert np.array_equal(stored.affine, make_affine(AXIAL, (1, 1, 1)))


def test_a_spacing_given_to_a_few_digits_is_not_resampled() -> None:
    affine = make_affine(AXIAL, (2.5, 0.7, 0.70000001))
    stored = preprocess_volume(make_volume(NOISE, affine), spec(spacing_mm=(2.5, 0.7, 0.7)))
    assert (stored.pixels[0] == NOISE).all()


def test_padding_and_cropping_keep_the_middle() -> None:
    values = np.zeros((4, 10, 8))
    values[1:3] = NOISE[:2, :1, :1]
    stored = preprocess_volume(make_volume(NOISE), spec(12, 9, 8, spacing_mm=(1, 1, 1)))
    assert stored.valid_extent == (2, 0, 0, 8, 8, 8)
    assert (stored.pixels[0, 2:10, :8] == NOISE).all()
    assert (stored.pixels[0, [0, 1, 10, 11]] == HU_RANGE[0]).all()
    assert tuple(stored.affine[:3, 3]) == (0, 0, -2)
    cut = preprocess_volume(make_volume(NOISE), spec(4, 10, 7, spacing_mm=(1, 1, 1), fit="crop"))
    assert cut.valid_extent == (0, 1, 0, 4, 8, 7)
    assert (cut.pixels[0, :, 1:9] == NOISE[2:6, :, 1:8]).all() or (cut.pixels[0, :, 1:9] == NOISE[2:6, :, :7]).all()
    corner = cut.affine @ [0, 1, 0, 1]
    assert cut.pixels[0, 0, 1, 0] == NOISE[tuple(np.rint(corner[[2, 1, 0]]).astype(int))]


def test_without_a_spacing_rows_and_columns_keep_their_proportions() -> None:
    affine = make_affine(AXIAL, (5.0, 1.0, 0.5))
    raw = make_volume(RNG.normal(0, 100, (6, 20, 20)), affine)
    padded = preprocess_volume(raw, spec(12, 10, 10))
    assert padded.spacing_mm == pytest.approx((2.5, 2.0, 2.0))
    assert padded.valid_extent == (0, 0, 2, 12, 10, 5)
    cropped = preprocess_volume(raw, spec(12, 10, 10, fit="crop"))
    assert cropped.spacing_mm == pytest.approx((2.5, 1.0, 1.0))
    assert cropped.valid_extent == (0, 0, 0, 12, 10, 10)
    stretched = preprocess_volume(raw, spec(12, 10, 10, fit="stretch"))
    assert stretched.spacing_mm == pytest.approx((2.5, 2.0, 1.0))
    assert stretched.valid_extent == (0, 0, 0, 12, 10, 10)


def test_oblique_volumes_stay_oblique_unless_asked() -> None:
    affine = make_affine(rotation((0.2, 0, 0)) @ AXIAL, (1, 1, 1))
    raw = make_volume(RNG.normal(0, 100, (16, 16, 16)), affine)
    assert np.allclose(preprocess_volume(raw, spec(16, 16, 16)).affine, affine)
    turned = to_patient_axes(raw)
    assert np.allclose(turned.affine[:3, :3], AXIAL)
    assert turned.mask is not None
    assert turned.mask.any()
    assert to_patient_axes(make_volume(NOISE)).values.shape == (8, 8, 8)
    stored = preprocess_volume(raw, spec(24, 24, 24, spacing_mm=(1, 1, 1), patient_axes=True))
    assert (stored.pixels[0][stored.pixels[0] > -900]).size > 16**3 * 0.8


def middle_mm(affine: np.ndarray, first: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    return (affine @ [*(np.array(first) + (np.array(size) - 1) / 2), 1])[:3]


@pytest.mark.parametrize(
    "wanted", [spec(5, 7, 9), spec(5, 7, 9, fit="stretch"), spec(12, 12, 12, spacing_mm=(2.0, 1.3, 0.9))]
)
@pytest.mark.parametrize("angles", [(0, 0, 0), (0.1, -0.3, 0.2)])
def test_the_middle_of_the_patient_stays_the_middle(wanted: VolumeSpec, angles: tuple[float, ...]) -> None:
    affine = make_affine(rotation(angles) @ AXIAL, (1.7, 0.9, 1.1), (4, 5, 6))
    raw = make_volume(RNG.normal(0, 100, (8, 9, 10)), affine)
    stored = preprocess_volume(raw, wanted)
    found = middle_mm(stored.affine, stored.valid_extent[:3], stored.valid_extent[3:])
    assert found == pytest.approx(middle_mm(affine, (0, 0, 0), (8, 9, 10)))
    turned = to_patient_axes(raw)
    assert middle_mm(turned.affine, (0, 0, 0), turned.values.shape) == pytest.approx(found)


# Resampling


def test_the_weights_are_linear_interpolation_area_mean_and_identity() -> None:
    grow = build_weights(np.array([0.0, 0.25, 1.0, -0.25]), size=3, step=0.5).toarray()
    assert np.allclose(grow, [[1, 0, 0], [0.75, 0.25, 0], [0, 1, 0], [1, 0, 0]])
    halve = build_weights(np.array([0.5, 2.5]), size=4, step=2).toarray()
    assert np.allclose(halve, [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    edge = build_weights(np.array([0.0, 1.0]), size=4, step=3).toarray()
    assert np.allclose(edge, [[2 / 3, 1 / 3, 0, 0], [0.25, 0.5, 0.25, 0]])  # cut off, the first sample not repeated
    same = build_weights(np.arange(5.0), size=5, step=1).toarray()
    assert np.array_equal(same, np.eye(5, dtype=np.float32))


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 60), step=st.floats(0.1, 12), shift=st.floats(-0.5, 0.5))
def test_weights_sum_to_one_are_never_negative_and_keep_lines(size: int, step: float, shift: float) -> None:
    count = max(1, round(size / step))
    positions = np.clip((size - 1) / 2 + step * (np.arange(count) - (count - 1) / 2) + shift, -0.5, size - 0.5)
    weights = build_weights(positions, size=size, step=step).toarray()
    assert weights.min() >= 0
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-5)
    reach = max(0, step - 1) / 2
    whole = (positions - reach >= 0) & (positions + reach <= size - 1)
    assert np.abs(weights @ np.arange(size) - positions)[whole].max(initial=0) < 1e-3


def test_what_is_finer_than_the_new_voxels_does_not_alias() -> None:
    """A stripe pattern of two voxels, shrunk threefold, becomes grey and not other stripes."""
    stripes = np.where(np.arange(96) % 2, 100.0, -100.0)
    values = np.broadcast_to(stripes, (8, 8, 96)).astype(np.float32)
    weights = [build_weights(np.arange(8.0), size=8, step=1)] * 2
    weights.append(build_weights(3 * np.arange(32) + 1.0, size=96, step=3))
    assert np.abs(resample(values, weights)).max() < 1
    assert np.abs(values[..., 1::3]).min() == 100


def test_masked_voxels_do_not_bleed_into_their_neighbours() -> None:
    values = np.full((4, 4, 8), 50.0, np.float32)
    values[..., :3] = -3000
    mask = values < -1000
    weights = [build_weights(np.array([0.5, 2.5]), size=4, step=2)] * 2
    weights.append(build_weights(np.array([0.5, 2.5, 4.5, 6.5]), size=8, step=2))
    small, padding = resample_masked(values, mask, weights)
    assert padding is not None
    assert padding[0, 0].tolist() == [True, False, False, False]
    assert np.allclose(small[~padding], 50)
    assert (small[padding] == 0).all()
    assert resample_masked(values, np.zeros_like(mask), weights)[1] is None
    weights[2] = build_weights(np.array([1.5, 5.5]), size=8, step=4)  # three of the first four are masked
    padding = resample_masked(values, mask, weights)[1]
    assert padding is not None
    assert padding[0, 0].tolist() == [True, False]


def test_a_turned_volume_keeps_its_values_beside_its_padding() -> None:
    mask = np.zeros((16, 16, 16), bool)
    mask[:, :5] = True
    affine = make_affine(rotation((0.2, 0.1, 0)) @ AXIAL, (1, 1, 1))
    turned = to_patient_axes(make_volume(np.where(mask, -3000, 500), affine, mask=mask))
    assert turned.mask is not None
    assert (~turned.mask).sum() > 2000
    assert np.allclose(turned.values[~turned.mask], 500)


# Intensity


def test_windows_become_channels() -> None:
    raw = make_volume(np.linspace(-1024, 2000, 512).reshape(8, 8, 8))
    windows = find_windows(["lung", "bone", [40, 80]])
    assert windows == (WINDOWS_HU["lung"], WINDOWS_HU["bone"], (40.0, 80.0))
    wanted = scaled(intensity="window", windows_hu=windows)
    assert wanted.shape == (3, 8, 8, 8)
    stored = preprocess_volume(raw, wanted).pixels
    for channel, (center, width) in zip(stored, windows, strict=True):
        # PS3.3 C.11.2.1.2.1
        grey = np.clip(((raw.values - (center - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)
        assert np.abs(channel - grey).max() <= 0.51


@pytest.mark.parametrize(
    ("headers", "unit", "taken"),
    [
        ({"Modality": "CT"}, "HU", True),
        ({"Modality": "CT"}, "", False),  # a CT that states no rescale holds whatever it holds
        ({}, "HU", True),
        ({"Modality": "CT"}, "US", False),
        ({"Modality": "MR"}, "HU", False),
        ({"Modality": "MR"}, "", False),
        ({}, "", False),
    ],
)
@pytest.mark.parametrize("intensity", ["window", "hounsfield"])
def test_hounsfield_units_are_a_ct_s(headers: dict[str, str], unit: str, taken: bool, intensity: str) -> None:
    wanted = spec() if intensity == "hounsfield" else scaled(intensity="window", windows_hu=((0.0, 2000.0),))
    raw = make_volume(NOISE, headers=headers, unit=unit)
    if taken:
        assert preprocess_volume(raw, wanted).pixels.any()
        return
    with pytest.raises(ImageRefusedError) as error:
        preprocess_volume(raw, wanted)
    assert error.value.reason == "not_hounsfield"
    assert preprocess_volume(raw, scaled()).pixels.max() == 255


def test_hounsfield_units_are_rounded_and_clipped() -> None:
    values = NOISE.copy()
    values[0, 0, :4] = [-2000, 9000, 12.6, -0.4]
    stored = preprocess_volume(make_volume(values), spec())
    assert stored.pixels[0, 0, 0, :4].tolist() == [-1024, 3071, 13, 0]


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535), ("float16", 1.0)])
def test_each_dtype_holds_the_range(dtype: str, top: float) -> None:
    stored = preprocess_volume(make_volume(NOISE), scaled(dtype=dtype)).pixels
    assert (stored.dtype, stored.min(), stored.max()) == (np.dtype(dtype), 0, top)
    grey = (NOISE - NOISE.min()) / np.ptp(NOISE)
    assert np.abs(stored[0] / top - grey).max() < 0.003


def test_percentiles_leave_the_extremes_out_and_the_padding_too() -> None:
    values = np.linspace(0, 1, 512).reshape(8, 8, 8)
    values[0, 0, 0] = 1000
    mask = np.zeros((8, 8, 8), bool)
    mask[7] = True
    values[7] = -5000
    stored = preprocess_volume(make_volume(values, mask=mask), scaled(intensity="percentile", percentiles=(1, 99)))
    low, high = np.percentile(values[:7], (1, 99))
    assert np.abs(stored.pixels[0, :7] - np.clip((values[:7] - low) / (high - low), 0, 1) * 255).max() <= 0.51
    assert (stored.pixels[0, 7] == 0).all()


def test_monochrome1_is_inverted_where_the_range_is_its_own() -> None:
    dark = preprocess_volume(make_volume(NOISE, photometric="MONOCHROME1"), scaled()).pixels
    assert (dark == 255 - preprocess_volume(make_volume(NOISE), scaled()).pixels).all()
    hounsfield = preprocess_volume(make_volume(NOISE, photometric="MONOCHROME1"), spec()).pixels
    assert (hounsfield[0] == NOISE).all()


@pytest.mark.parametrize("intensity", ["hounsfield", "minmax"])
def test_padding_is_the_lowest_value(intensity: str) -> None:
    mask = np.zeros((8, 8, 8), bool)
    mask[:, :2] = True
    wanted = spec() if intensity == "hounsfield" else scaled()
    stored = preprocess_volume(make_volume(NOISE, mask=mask), wanted).pixels[0]
    assert (stored[:, :2] == (HU_RANGE[0] if intensity == "hounsfield" else 0)).all()


# Refusals


@pytest.mark.parametrize(
    ("changes", "wanted", "reason"),
    [
        ({"values": np.full((8, 8, 8), 7.0)}, spec(), "flat"),
        ({"values": np.full((8, 8, 8), 7.0)}, scaled(), "flat"),
        ({"values": NOISE + 2000}, scaled(intensity="window", windows_hu=((40.0, 80.0),)), "flat"),
        ({"mask": np.ones((8, 8, 8), bool)}, spec(), "all_padding"),
        ({"mask": np.ones((8, 8, 8), bool)}, scaled(), "all_padding"),
        ({"values": np.where(NOISE > 900, np.nan, NOISE)}, spec(), "not_finite"),
        ({}, spec(spacing_mm=(0.5, 1, 1)), "field_of_view"),
        ({}, spec(7, 8, 8, spacing_mm=(1, 1, 1)), "field_of_view"),
        ({}, spec(spacing_mm=(1, 1, 20)), "too_small"),
        ({"headers": CT | {"BurnedInAnnotation": "YES"}}, spec(), "burnt_in"),
        ({"headers": CT | {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}}, spec(), "burnt_in"),
    ],
)
def test_refusals_by_name(changes: dict[str, Any], wanted: VolumeSpec, reason: str) -> None:
    with pytest.raises(ImageRefusedError) as error:
        preprocess_volume(make_volume(**({"values": NOISE} | changes)), wanted)
    assert error.value.reason == reason


def test_text_is_let_through_where_allowed() -> None:
    raw = make_volume(NOISE, headers=CT | {"BurnedInAnnotation": "YES"})
    assert (preprocess_volume(raw, spec(burnt_in=BurntInRule("allow"))).pixels[0] == NOISE).all()


def test_patient_axes_of_a_vast_volume_are_refused() -> None:
    affine = make_affine(rotation((0.3, 0.3, 0.3)) @ AXIAL, (500, 0.05, 0.05))
    with pytest.raises(ImageRefusedError) as error:
        preprocess_volume(make_volume(NOISE, affine), spec(patient_axes=True))
    assert error.value.reason == "too_large"


def test_the_raw_volume_is_not_changed() -> None:
    mask = NOISE > 800
    raw = make_volume(NOISE.copy(), make_affine(rotation((0.2, 0, 0)) @ AXIAL, (1, 1, 1)), mask=mask.copy())
    preprocess_volume(raw, scaled(patient_axes=True))
    preprocess_volume(raw, scaled(4, 4, 4))
    assert (raw.values == NOISE).all()
    assert (raw.mask == mask).all()


# The record


def test_the_record_comes_back_from_json() -> None:
    given = VolumeSpec(
        8,
        9,
        10,
        spacing_mm=(3.0, 1.0, 1.0),
        fit="crop",
        intensity="window",
        windows_hu=((40.0, 400.0),),
        dtype="float16",
        patient_axes=True,
        burnt_in=BurntInRule("allow"),
    )
    assert read_spec(json.loads(json.dumps(to_json(given)))) == given
    assert (given.shape, given.spatial_dims, given.channels) == ((1, 8, 9, 10), 3, 1)
    flat = PreprocessSpec(16, 24, channels=3)
    assert read_spec(json.loads(json.dumps(to_json(flat)))) == flat
    assert (flat.shape, flat.spatial_dims) == ((3, 16, 24), 2)


def test_volume_has_one_channel_for_each_window_two_included() -> None:
    given = VolumeSpec(8, 9, 10, intensity="window", windows_hu=((40.0, 400.0), (-600.0, 1500.0)))
    assert read_spec(to_json(given)) == given
    assert given.channels == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, r"preprocess: image\.size=\[0, 128, 128\]: "),
        ({"depth": 7}, r"preprocess: image\.size=\[7, 128, 128\]: expected whole numbers, 8 to 8192 pixels"),
        ({"new": 1}, "preprocess: unknown field 'new', expected depth, "),
        ({"percentiles": [1]}, r"preprocess\.percentiles: a list of 1, expected a list of 2"),
        ({"spacing_mm": [1]}, r"preprocess\.spacing_mm: a list of 1, expected a list of 3$"),
        ({"stack": 3}, r"preprocess\.stack: 3, expected an object"),
        ({"spatial_dims": 4}, r"preprocess\.spatial_dims: 4, expected 2 or 3"),
    ],
)
def test_record_of_another_version_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        read_spec(to_json(VolumeSpec()) | change)


def test_a_record_that_lacks_a_field_or_has_other_axes_is_refused() -> None:
    content = to_json(VolumeSpec())
    for spec_class, record, dims in ((VolumeSpec, content, 3), (PreprocessSpec, to_json(PreprocessSpec()), 2)):
        with pytest.raises(DataError, match=f"^spatial_dims: 5, expected {dims}"):
            from_json(spec_class, record | {"spatial_dims": 5})
    del content["fit"]
    with pytest.raises(DataError, match=r"^preprocess: no field fit$"):
        read_spec(content)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"fit": "squeeze"}, r"image\.fit=squeeze"),
        ({"intensity": "display"}, r"image\.intensity=display"),
        ({"dtype": "int8"}, r"image\.dtype=int8"),
        ({"depth": 0}, r"image\.size=\[0, 128, 128\]"),
        ({"height": 1 << 20, "width": 1 << 20}, r"image\.size"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, r"image\.spacing_mm"),
        ({"percentiles": (99.0, 1.0)}, r"image\.percentiles"),
        ({"intensity": "window"}, r"image\.windows_hu"),
        ({"windows_hu": ((40.0, 80.0),)}, r"image\.windows_hu"),
        ({"windows_hu": ((40.0, 1.0),), "intensity": "window"}, r"image\.windows_hu"),
        ({"intensity": "hounsfield"}, r"image\.dtype=int16"),
        ({"dtype": "int16"}, r"image\.dtype=int16"),
        ({"fit": "stretch", "spacing_mm": (1.0, 1.0, 1.0)}, r"image\.fit=stretch"),
        ({"burnt_in": BurntInRule("ultrasound_regions")}, r"image\.burnt_in"),
        ({"burnt_in": BurntInRule(keep_box=(0, 0, 4, 4))}, r"image\.burnt_in"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        VolumeSpec(**changes)


@pytest.mark.parametrize("entries", [["lungs"], [[40]]])
def test_unknown_windows_are_refused(entries: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"image\.windows_hu has"):
        find_windows(entries)


def draw_body(noise: float = 0.0) -> RawVolume:
    """A bright box in the dark, over d 6 to 13, h 4 to 11 and w 9 to 20, with a speck in a corner."""
    values = np.random.default_rng(0).normal(0, noise, (20, 22, 24)) if noise else np.zeros((20, 22, 24))
    values[6:14, 4:12, 9:21] += 100
    values[0, 0, 0] = 90
    return make_volume(values, make_affine(np.eye(3), (2.0, 1.5, 1.0), (5.0, 6.0, 7.0)))


@pytest.mark.parametrize("noise", [0.0, 10.0])
@pytest.mark.parametrize("margin_mm", [0.0, 3.0, 500.0])
def test_a_crop_keeps_the_foreground_its_margin_and_its_place(noise: float, margin_mm: float) -> None:
    raw = draw_body(noise)
    cropped = crop_foreground(raw, margin_mm=margin_mm)
    spacing = compute_spacing(raw.affine)
    margins = [math.ceil(margin_mm / each) for each in spacing]
    bounds = [(6, 14), (4, 12), (9, 21)]
    box = tuple(
        slice(max(0, low - margin), min(length, high + margin))
        for (low, high), margin, length in zip(bounds, margins, raw.values.shape, strict=True)
    )
    np.testing.assert_array_equal(cropped.values, raw.values[box])
    corner = [each.start for each in box]
    np.testing.assert_allclose(cropped.affine @ [0, 0, 0, 1], raw.affine @ [*corner, 1])
    assert compute_spacing(cropped.affine) == pytest.approx(spacing)


def test_a_crop_makes_the_foreground_larger_in_the_frame_and_is_part_of_the_record() -> None:
    raw = draw_body()
    whole, cropped = (
        preprocess_volume(raw, VolumeSpec(16, 16, 16, fit="stretch", crop_margin_mm=margin)) for margin in (None, 2.0)
    )
    assert (cropped.pixels > 128).sum() > 3 * (whole.pixels > 128).sum()
    record = to_json(spec(crop_margin_mm=2.0))
    assert from_json(VolumeSpec, record).crop_margin_mm == 2.0
    for name in ("crop_margin_mm", "analyze_axes"):
        del record[name]  # as stores from before have it
    assert from_json(VolumeSpec, record).crop_margin_mm is None


def test_padding_is_no_foreground_and_one_value_is_left_to_be_refused() -> None:
    raw = draw_body()
    mask = np.zeros(raw.values.shape, bool)
    mask[:, :, 15:] = True
    cropped = crop_foreground(replace(raw, mask=mask), margin_mm=0)
    assert cropped.values.shape == (8, 8, 6)
    assert cropped.mask is not None
    assert not cropped.mask.any()
    flat = make_volume(np.ones((3, 3, 3)))
    assert crop_foreground(flat, margin_mm=0) is flat


@pytest.mark.parametrize("axes", ["LA", "LRS", "las", "LASP", "XYZ"])
def test_axes_that_name_no_patient_are_refused(axes: str) -> None:
    with pytest.raises(ConfigError, match=f"analyze_axes={axes}: expected one of L R"):
        spec(analyze_axes=axes)


def test_a_margin_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="crop_margin_mm=-1"):
        spec(crop_margin_mm=-1.0)
