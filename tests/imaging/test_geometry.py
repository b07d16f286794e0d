"""The regular stack that positions lie on, and the arithmetic that moves slices onto it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from medcls.config import StackRule
from medcls.errors import ImageRefusedError
from medcls.imaging.volume.geometry import StackGeometry, compute_axes, compute_spacing, fit_stack
from medcls.imaging.volume.resample import resample_depth, shear_slices

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def fit(
    distances: list[float], rule: StackRule | None = None, slope: tuple[float, float] = (0.0, 0.0)
) -> StackGeometry:
    """An axial stack at these z; slope: mm along y and x for every mm along z."""
    z = np.array(distances)
    positions = np.column_stack([5 + slope[1] * z, 6 + slope[0] * z, 7 + z])
    return fit_stack(AXIAL, positions, pixel_spacing_mm=(0.5, 0.25), rule=rule or StackRule())


def reason(distances: list[float], rule: StackRule | None = None, slope: tuple[float, float] = (0.0, 0.0)) -> str:
    with pytest.raises(ImageRefusedError) as caught:
        fit(distances, rule, slope)
    return caught.value.reason


def test_axes_are_orthonormal_and_in_order() -> None:
    axes = compute_axes((0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    assert_allclose(axes, [[-1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-15)
    rounded = compute_axes((0.7071, 0.7071, 0.0, -0.7071, 0.7071, 0.0002))
    assert_allclose(rounded @ rounded.T, np.eye(3), atol=1e-12)
    skewed = compute_axes((1.0, 0.0005, 0.0, 0.0, 1.0, 0.0))
    assert_allclose(skewed @ skewed.T, np.eye(3), atol=1e-12)
    for wrong in ((1, 0, 0, 0.01, 1, 0), (0.99, 0, 0, 0, 1, 0), (np.nan, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 0)):
        with pytest.raises(ImageRefusedError, match="orientation"):
            compute_axes(wrong)


def test_the_affine() -> None:
    geometry = fit([4.0, 0.0, 2.0])
    assert geometry.levels == ((1,), (2,), (0,))
    assert_allclose(geometry.affine, [[0, 0, 0.25, 5], [0, 0.5, 0, 6], [2, 0, 0, 7], [0, 0, 0, 1]], atol=1e-12)
    assert compute_spacing(geometry.affine) == pytest.approx((2.0, 0.5, 0.25))
    assert (geometry.spacing_mm, geometry.depth, geometry.margins_px) == ((2.0, 0.5, 0.25), 3, (0, 0, 0, 0))


@pytest.mark.parametrize(
    ("distances", "name"),
    [
        ([0, 1, 2, 4, 5], "gap"),
        ([0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12], "gap"),
        ([0, 2, 3], "gap"),
        ([0, 1, 2.02, 3, 4], "jitter"),
        ([0, 1, 2.2, 3, 4], "jitter"),
        ([0, 1, 2, 4.5, 7, 9.5], "mixed_spacing"),
        ([0, 1, 2, 3, 5, 7, 9], "mixed_spacing"),
        ([0, 4, 8, 12, 13.1, 20, 27, 34], "mixed_spacing"),
        ([0, 0, 0, 0], "too_few_slices"),
        ([0, 0, 1, 1], "too_few_slices"),
    ],
)
def test_names_of_irregularities(distances: list[float], name: str) -> None:
    assert reason(distances) == name


@pytest.mark.parametrize(
    ("distances", "depth", "note"),
    [
        ([0, 1, 2, 4, 5], 6, "resampled_gap"),
        ([0, 1, 2.2, 3, 4], 5, "resampled_jitter"),
        ([0, 1, 2, 4.5, 7, 9.5], 5, "resampled_spacing"),
    ],
)
def test_repairs(distances: list[float], depth: int, note: str) -> None:
    every = StackRule(gap="resample", jitter="resample", mixed_spacing="resample")
    geometry = fit(distances, every)
    assert (geometry.depth, geometry.notes) == (depth, (note,))
    assert geometry.spacing_mm[0] * (depth - 1) == pytest.approx(distances[-1])
    assert reason([5 * each for each in distances], replace(every, max_gap_mm=4.0)) != ""


def test_tolerance_is_a_fraction_of_the_distance() -> None:
    for scale in (0.1, 1.0, 30.0):
        near, far = [0, scale, 2.009 * scale, 3 * scale, 4 * scale], [0, scale, 2.012 * scale, 3 * scale, 4 * scale]
        assert fit(near).notes == ()
        assert reason(far) == "jitter"
        assert fit(far, StackRule(tolerance=0.02)).notes == ()


def test_duplicate_positions_are_one_level() -> None:
    assert fit([0, 1, 2, 1, 3, 3.0001]).levels == ((0,), (1, 3), (2,), (4, 5))


def test_a_tilt() -> None:
    geometry = fit([0, 2, 4, 6], slope=(0.25, -0.1))
    assert geometry.notes == ("sheared",)
    assert_allclose(geometry.shifts_px[:, 0], [0, 1, 2, 3], atol=1e-9)
    assert_allclose(geometry.shifts_px[:, 1], [0, -0.8, -1.6, -2.4], atol=1e-9)
    assert geometry.margins_px == (0, 3, 3, 0)
    assert_allclose(geometry.affine[:3, 0], [0, 0, 2.0], atol=1e-9)
    assert reason([0, 2, 4, 6], StackRule(tilt="refuse"), slope=(0.25, 0)) == "tilt"
    assert reason([0, 2, 4, 6], slope=(1.5, 0)) == "lateral_offset"


def test_a_drift_below_the_angle_is_kept_in_the_affine() -> None:
    geometry = fit([0, 2, 4, 6], StackRule(tilt="refuse"), slope=(0.0005, 0))
    assert geometry.notes == ()
    assert_allclose(geometry.affine[:3, 0], [0, 0.001, 2.0], atol=1e-9)


def test_shear_by_whole_pixels_copies() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    mask = np.zeros(values.shape, bool)
    mask[1, 0, 0] = True
    shifts = np.array([[0.0, 0.0], [2.0, -1.0]])
    moved, hidden = shear_slices(values, mask, shifts_px=shifts, margins_px=(0, 2, 1, 0))
    assert moved.shape == (2, 5, 5)
    assert_array_equal(moved[0, :3, 1:], values[0])
    assert_array_equal(moved[1, 2:, :4][~mask[1]], values[1][~mask[1]])
    assert hidden.sum() == 2 * (25 - 12) + 1
    assert hidden[1, 2, 0]


def test_shear_by_half_a_pixel_is_the_mean() -> None:
    values = np.array([[[0, 4, 8, 2]]], np.float32)
    shifts = np.array([[0.0, 0.5]])
    moved, hidden = shear_slices(values, np.zeros((1, 1, 4), bool), shifts_px=shifts, margins_px=(0, 0, 0, 1))
    assert_array_equal(moved[0, 0, 1:4], [2, 6, 5])
    assert_array_equal(hidden[0, 0], [True, False, False, False, True])


def test_depth_is_interpolated_and_near_slices_are_copied() -> None:
    values = np.array([0, 10, 30], np.float32).reshape(3, 1, 1)
    mask = np.array([False, False, True]).reshape(3, 1, 1)
    places, wanted = np.array([0.0, 1.0, 3.0]), np.array([0.0, 1.005, 2.0, 3.0])
    planes, hidden = resample_depth(values, mask, distances_mm=places, wanted_mm=wanted)
    assert_array_equal(planes.ravel(), [0, 10, 20, 30])
    assert_array_equal(hidden.ravel(), [False, False, True, True])
