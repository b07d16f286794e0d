"""Series to volumes: right voxels at right places, or a named refusal; never a wrong volume."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import MRImageStorage, RLELossless, UltrasoundMultiFrameImageStorage, generate_uid

from medcls.config import StackRule
from medcls.errors import ImageRefusedError
from medcls.imaging.nifti import read_nifti
from medcls.imaging.scan_file import scan_file
from medcls.imaging.volume.stack import build_stacks
from medcls.imaging.volume.volume import RawVolume, read_volume
from tests.imaging.modality import read_modality_values

RULE = StackRule()
STEP = 0.026
"""Half a step of the stored values, and float32's rounding."""

Read = Callable[..., RawVolume]


@pytest.fixture
def read(series: ModuleType, tmp_path: Path) -> Read:
    """Writes slices and reads them as one volume: read(slices, rule=…)."""

    def run(slices: Sequence[Dataset], *, rule: StackRule = RULE, max_voxels: int = 1 << 24) -> RawVolume:
        folder = tmp_path / generate_uid()
        return read_volume(series.write_series(folder, slices), rule=rule, max_voxels=max_voxels)

    return run


def refusal(read: Read, slices: Sequence[Dataset], **options: Any) -> str:
    """The reason that a series is refused for."""
    with pytest.raises(ImageRefusedError) as caught:
        read(slices, **options)
    return caught.value.reason


def check_plain(volume: RawVolume, series: ModuleType, *, shape: tuple[int, ...] = (8, 12, 10)) -> None:
    """Nothing was repaired, every voxel is right, and the geometry is that of build_slices."""
    assert volume.values.shape == shape
    assert volume.values.dtype == np.float32
    assert volume.mask is None
    assert volume.notes == ()
    assert_allclose(volume.spacing_mm, (2.5, 0.8, 0.6), rtol=1e-6)
    assert_allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), volume.spacing_mm, rtol=1e-6)
    assert series.find_error(volume) < STEP


def test_a_phantom_can_tell_every_wrong_order(read: Read, series: ModuleType) -> None:
    volume = read(series.build_slices())
    for wrong in (volume.values[::-1], volume.values[:, ::-1], volume.values[:, :, ::-1], np.roll(volume.values, 1, 0)):
        values = np.ascontiguousarray(wrong)
        assert series.find_error(RawVolume(values, None, volume.affine, "", (1, 1, 1), "", {})) > 10 * STEP


@pytest.mark.parametrize("turn", [(0, 0, 0), (90, 0, 0), (90, 90, 0), (180, 0, 0), (0, 180, 90), (17, -35, 61)])
def test_every_orientation(read: Read, series: ModuleType, turn: tuple[float, ...]) -> None:
    volume = read(series.build_slices(orientation=series.rotate(*turn)))
    check_plain(volume, series)
    row, column = np.array(series.rotate(*turn)).reshape(2, 3)
    assert_allclose(volume.affine[:3, 2] / 0.6, row, atol=1e-6)
    assert_allclose(volume.affine[:3, 0] / 2.5, np.cross(row, column), atol=1e-6)


def test_headers_and_unit(read: Read, series: ModuleType) -> None:
    volume = read(series.build_slices())
    assert (volume.unit, volume.photometric, volume.headers["Modality"]) == ("HU", "MONOCHROME2", "CT")
    assert pickle.loads(pickle.dumps(volume)).headers == volume.headers
    assert read(series.build_slices(RescaleType="US")).unit == "US"
    bare = series.build_slices()
    for ds in bare:
        del ds.RescaleSlope, ds.RescaleIntercept
    assert read(bare).unit == ""
    assert read(series.build_slices(Modality="MR", SOPClassUID=MRImageStorage)).unit == ""


def test_reversed_and_meaningless_instance_numbers(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    for ds, number in zip(slices, (8, 7, 6, 5, 4, 3, 2, 1), strict=True):
        ds.InstanceNumber = number
    check_plain(read(slices), series)
    for ds in slices:
        ds.InstanceNumber = 1
    check_plain(read(slices), series)


def test_one_slice_missing(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    del slices[3]
    assert refusal(read, slices) == "gap"
    volume = read(slices, rule=StackRule(gap="resample"))
    assert volume.values.shape == (8, 12, 10)
    assert volume.notes == ("resampled_gap",)
    assert series.find_error(volume) < STEP


def test_a_large_gap_is_never_filled(read: Read, series: ModuleType) -> None:
    slices = series.build_slices([2.5 * k for k in range(24)])
    del slices[10:14]
    assert refusal(read, slices) == "gap"
    assert refusal(read, slices, rule=StackRule(gap="resample")) == "gap"
    assert read(slices, rule=StackRule(gap="resample", max_gap_mm=12.6)).values.shape[0] == 24


def test_a_slice_missing_at_the_end_leaves_a_right_volume(read: Read, series: ModuleType) -> None:
    check_plain(read(series.build_slices()[:-1]), series, shape=(7, 12, 10))


def test_identical_duplicates_are_removed_and_counted(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    again = deepcopy(slices[4])
    again.SOPInstanceUID = generate_uid()
    volume = read([*slices, again, deepcopy(slices[2])])
    assert volume.slices_removed == 2
    assert_array_equal(volume.values, read(slices).values)


def test_duplicates_with_other_pixels(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    other = deepcopy(slices[4])
    other.SOPInstanceUID = "2.9"
    series.set_pixels(other, np.full((12, 10), 7, np.int16))
    assert refusal(read, [*slices, other]) == "duplicate_position"
    volume = read([*slices, other], rule=StackRule(duplicate="drop"))
    assert (volume.notes, volume.slices_removed) == (("dropped_duplicates",), 0)
    assert series.find_error(volume) < STEP  # the first SOPInstanceUID is the phantom's


def test_a_duplicate_with_the_same_stored_values_and_another_rescale(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    other = deepcopy(slices[4])
    other.SOPInstanceUID, other.RescaleIntercept = generate_uid(), "10"
    assert refusal(read, [*slices, other]) == "duplicate_position"


def test_a_duplicate_that_differs_in_its_padding(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    other = deepcopy(slices[4])
    other.SOPInstanceUID = generate_uid()
    other.PixelPaddingValue = int(np.frombuffer(other.PixelData, "<i2")[7])
    assert refusal(read, [*slices, other]) == "duplicate_position"


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("EchoTime", ("2.46", "4.92")),
        ("TemporalPositionIdentifier", ("1", "2")),
        ("DiffusionBValue", (0.0, 1000.0)),
        ("FrameOfReferenceUID", ("1.2.3", "1.2.4")),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])),
        ("ConvolutionKernel", ("STANDARD", "LUNG")),
    ],
)
def test_two_volumes_in_one_series(
    read: Read, series: ModuleType, tmp_path: Path, keyword: str, values: tuple[Any, Any]
) -> None:
    slices = series.build_slices()
    twice = []
    for index, value in enumerate(values):
        for ds in slices:
            copy = deepcopy(ds)
            copy.SOPInstanceUID = generate_uid()
            setattr(copy, keyword, value)
            copy.RescaleIntercept = str(100 * index)
            series.paint(copy)
            twice.append(copy)
    assert refusal(read, twice) == "several_volumes"
    paths = series.write_series(tmp_path / "both", twice)
    stacks, left = build_stacks([scan_file(path, name=str(path)) for path in paths], RULE)
    assert [stack.name for stack in stacks] == ["", "#2"]
    assert left == []
    for stack in stacks:
        check_plain(read_volume([Path(path) for path in stack.paths], rule=RULE), series)


def test_two_time_points_without_a_word(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    later = [deepcopy(ds) for ds in slices]
    for ds in later:
        ds.SOPInstanceUID = generate_uid()
        series.set_pixels(ds, np.arange(120, dtype=np.int16).reshape(12, 10))
    assert refusal(read, [*slices, *later]) == "duplicate_position"
    # Two volumes are no volume with duplicates: what is dropped would be of one here and of the other there.
    assert refusal(read, [*slices, *later], rule=StackRule(duplicate="drop")) == "duplicate_position"
    assert read([*slices, *later[:4]], rule=StackRule(duplicate="drop")).notes == ("dropped_duplicates",)


@pytest.mark.parametrize("slope", [(0.33, 0.0), (-0.33, 0.0), (0.0, 0.21), (-0.11, -0.27)])
@pytest.mark.parametrize("turn", [(0, 0, 0), (18, 0, 0), (20, 40, -70)])
def test_a_tilted_gantry_is_sheared_right(
    read: Read, series: ModuleType, slope: tuple[float, float], turn: tuple[float, ...]
) -> None:
    slices = series.build_slices(slope=slope, size=(24, 20), orientation=series.rotate(*turn))
    assert refusal(read, slices, rule=StackRule(tilt="refuse")) == "tilt"
    volume = read(slices)
    assert volume.notes == ("sheared",)
    unit = volume.affine[:3, :3] / volume.spacing_mm
    assert_allclose(unit.T @ unit, np.eye(3), atol=1e-6)
    assert volume.mask is not None
    assert series.find_error(volume) < STEP
    # All of the patient is kept: at most one row and one column of every slice goes to interpolation.
    seen = (~volume.mask).sum(axis=(1, 2))
    assert seen.min() >= 23 * 19
    assert seen.max() <= 24 * 20
    assert volume.values[volume.mask].max() == volume.values[~volume.mask].min()


def test_rounded_direction_cosines_are_no_tilt(read: Read, series: ModuleType) -> None:
    slices = series.build_slices(orientation=series.rotate(17, -35, 61))
    for ds in slices:
        ds.ImageOrientationPatient = [f"{v:.4f}" for v in ds.ImageOrientationPatient]
    volume = read(slices)
    assert volume.notes == ()
    assert series.find_error(volume) < 2 * STEP


def test_padding_takes_no_part_in_a_shear(read: Read, series: ModuleType) -> None:
    slices = series.build_slices(slope=(0.33, 0.1), size=(24, 20), PixelPaddingValue=-2000)
    for ds in slices:
        pixels = np.frombuffer(ds.PixelData, "<i2").reshape(24, 20).copy()
        pixels[:3], pixels[:, -2:] = -2000, -2000
        series.set_pixels(ds, pixels)
    volume = read(slices)
    assert series.find_error(volume) < STEP
    assert volume.mask is not None
    assert (~volume.mask).sum(axis=(1, 2)).min() >= 20 * 17
    assert volume.values.min() > -100


def test_localizers_are_dropped_and_noted(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    scout = series.build_slices(
        [0.0], orientation=series.rotate(90, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
    )
    scout[0].SeriesInstanceUID = slices[0].SeriesInstanceUID
    volume = read([*scout, *slices])
    assert volume.notes == ("dropped_localizers",)
    assert series.find_error(volume) < STEP
    assert refusal(read, scout) == "localizer"


@pytest.mark.parametrize("changes", [{"orientation": (0, 1, 0, 0, 0, -1)}, {"size": (16, 16)}, {"spacing": (0.9, 0.9)}])
def test_a_picture_that_does_not_belong_is_named(read: Read, series: ModuleType, changes: dict[str, Any]) -> None:
    slices = series.build_slices()
    stray = series.build_slices([4.0], **changes)[0]
    stray.SeriesInstanceUID, stray.FrameOfReferenceUID = slices[0].SeriesInstanceUID, slices[0].FrameOfReferenceUID
    assert refusal(read, [*slices, stray]) == "too_few_slices"


def test_mixed_spacing(read: Read, series: ModuleType) -> None:
    slices = series.build_slices([0, 1, 2, 3, 4, 5, 8, 11, 14])
    assert refusal(read, slices) == "mixed_spacing"
    volume = read(slices, rule=StackRule(mixed_spacing="resample"))
    assert volume.notes == ("resampled_spacing",)
    assert series.find_error(volume) < STEP
    assert_allclose(np.linalg.norm(volume.affine[:3, 0]) * (len(volume.values) - 1), 14, rtol=1e-6)


@pytest.mark.parametrize(("along", "reason"), [(0.02, ""), (0.03, "jitter"), (-0.4, "jitter"), (1.2, "mixed_spacing")])
def test_jitter_above_one_percent(read: Read, series: ModuleType, along: float, reason: str) -> None:
    slices = series.build_slices()
    series.move(slices[3], along=along)
    if not reason:
        assert read(slices).notes == ()
        return
    assert refusal(read, slices) == reason
    volume = read(slices, rule=StackRule(jitter="resample", mixed_spacing="resample"))
    assert series.find_error(volume) < STEP


def test_distances_that_drift_add_up(read: Read, series: ModuleType) -> None:
    steps = [2.5 * (0.994 if k < 20 else 1.006) for k in range(40)]
    assert refusal(read, series.build_slices(np.cumsum([0.0, *steps]).tolist())) == "jitter"


@pytest.mark.parametrize("shift", [{"column": 0.8}, {"row": -0.6}, {"row": 5.0, "column": 1.0}])
def test_a_slice_beside_the_others(read: Read, series: ModuleType, shift: dict[str, float]) -> None:
    slices = series.build_slices()
    series.move(slices[5], **shift)
    assert refusal(read, slices) == "lateral_offset"


def test_slices_side_by_side(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    beside = series.build_slices(origin=(-24.0, 20.0, 5.0))
    for ds in beside:
        ds.SeriesInstanceUID, ds.FrameOfReferenceUID = slices[0].SeriesInstanceUID, slices[0].FrameOfReferenceUID
    assert refusal(read, [*slices, *beside]) == "lateral_offset"


@pytest.mark.parametrize(
    "cosines", [(1, 0, 0, 0.1, 1, 0), (1, 0, 0, 1, 0, 0), (0.5, 0, 0, 0, 1, 0), (1.01, 0, 0, 0, 1, 0)]
)
def test_direction_cosines_that_are_none(read: Read, series: ModuleType, cosines: tuple[float, ...]) -> None:
    slices = series.build_slices()
    for ds in slices:
        ds.ImageOrientationPatient = list(cosines)
    assert refusal(read, slices) == "orientation"


@pytest.mark.parametrize(
    ("keyword", "reason"),
    [
        ("ImagePositionPatient", "no_position"),
        ("ImageOrientationPatient", "no_orientation"),
        ("PixelSpacing", "no_spacing"),
    ],
)
def test_missing_geometry(read: Read, series: ModuleType, keyword: str, reason: str) -> None:
    slices = series.build_slices(ImagerPixelSpacing=[0.8, 0.6], SpacingBetweenSlices=2.5)
    delattr(slices[3], keyword)
    assert refusal(read, slices) == reason


def test_a_declared_distance_does_not_stand_in_for_positions(read: Read, series: ModuleType) -> None:
    slices = series.build_slices(SpacingBetweenSlices=9.0, SliceLocation=0.0)
    check_plain(read(slices), series)


def test_too_few_slices(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    assert refusal(read, slices[:2]) == "too_few_slices"
    assert read(slices[:2], rule=StackRule(min_slices=2)).values.shape[0] == 2
    assert refusal(read, slices[:1], rule=StackRule(min_slices=2)) == "too_few_slices"
    assert refusal(read, [slices[0], deepcopy(slices[0]), deepcopy(slices[0])]) == "too_few_slices"


def test_rescale_of_every_slice_is_its_own(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    for number, ds in enumerate(slices):
        ds.RescaleSlope, ds.RescaleIntercept = f"{0.05 - 0.003 * number:.3f}", str(5 * number - 20)
        series.paint(ds)
    check_plain(read(slices), series)


def test_mixed_units(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    slices[2].RescaleType = "US"
    assert refusal(read, slices) == "mixed_units"
    slices = series.build_slices()
    del slices[2].RescaleSlope, slices[2].RescaleIntercept
    assert refusal(read, slices) == "mixed_units"


def test_no_unit_but_the_standards_is_repeated(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    slices[1].RescaleType, slices[2].RescaleType = "Doe^Jane", "US"
    with pytest.raises(ImageRefusedError, match="units: US, another, none") as caught:
        read(slices)
    assert caught.value.reason == "mixed_units"


def test_a_rescale_beyond_floats_is_refused(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    slices[2].RescaleSlope = "1e300"
    assert refusal(read, slices) == "not_finite"
    for ds in slices:  # where only the padding goes beyond, nothing is lost
        ds.PixelPaddingValue, ds.RescaleSlope = -32768, "1e34"
        series.set_pixels(ds, np.array([-32768, 1] * 60, np.int16).reshape(12, 10))
    volume = read(slices)
    assert np.isfinite(volume.values).all()
    assert volume.mask is not None
    assert volume.mask.sum() == volume.values.size // 2


def test_padding_of_a_slice_is_masked(read: Read, series: ModuleType) -> None:
    slices = series.build_slices(PixelPaddingValue=-2000)
    pixels = np.frombuffer(slices[2].PixelData, "<i2").reshape(12, 10).copy()
    pixels[4:6, 3] = -2000
    series.set_pixels(slices[2], pixels)
    volume = read(slices)
    assert volume.mask is not None
    assert np.argwhere(volume.mask).tolist() == [[2, 4, 3], [2, 5, 3]]
    assert series.find_error(volume) < STEP
    assert volume.values[2, 4, 3] == volume.values[~volume.mask].min()


def test_two_series_are_not_one_volume(read: Read, series: ModuleType) -> None:
    assert refusal(read, [*series.build_slices(), *series.build_slices()]) == "several_series"
    with pytest.raises(ImageRefusedError, match="no_files"):
        read_volume([], rule=RULE)


def test_a_broken_file_among_the_slices(read: Read, series: ModuleType, tmp_path: Path) -> None:
    paths = series.write_series(tmp_path / "broken", series.build_slices())
    paths[3].write_bytes(paths[3].read_bytes()[:-50])
    with pytest.raises(ImageRefusedError, match="truncated"):
        read_volume(paths, rule=RULE)


def test_limits_hold_before_anything_is_decoded(
    read: Read, series: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices, tilted = series.build_slices(), series.build_slices(slope=(0.4, 0.0))
    read(slices, max_voxels=960)
    monkeypatch.setattr("medcls.imaging.volume.volume.decode_frame", lambda *_args, **_kwargs: pytest.fail("decoded"))
    assert refusal(read, slices, max_voxels=959) == "too_large"
    assert refusal(read, tilted, max_voxels=961) == "too_large"
    assert refusal(read, [*slices, deepcopy(slices[0])], max_voxels=960) == "too_large"


# Multi-frame files


def test_enhanced_frames_in_any_order(read: Read, series: ModuleType) -> None:
    slices = series.build_slices(orientation=series.rotate(10, 20, 30))
    for number, ds in enumerate(slices):
        ds.RescaleIntercept = str(3 * number)
        series.paint(ds)
    ordered = read(slices)
    volume = read([series.build_enhanced([slices[k] for k in (3, 0, 7, 1, 2, 6, 5, 4)])])
    check_plain(volume, series)
    assert_allclose(volume.affine, ordered.affine)
    assert volume.unit == "US"
    assert volume.headers["Modality"] == "MR"


def test_enhanced_files_are_held_to_the_same_rules(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    assert refusal(read, [series.build_enhanced([*slices[:3], *slices[4:]])]) == "gap"
    again = series.build_enhanced([*slices, slices[2]])
    assert read([again]).slices_removed == 1
    series.set_pixels(slices[0], np.zeros((12, 10), np.int16))
    other = deepcopy(slices[0])
    series.paint(other)
    assert refusal(read, [series.build_enhanced([*slices, other])]) == "duplicate_position"
    for number, ds in enumerate(slices):
        ds.EchoTime = 10 + 10 * (number % 2)
    assert refusal(read, [series.build_enhanced(slices)]) == "several_volumes"


def test_enhanced_frames_must_have_positions(read: Read, series: ModuleType) -> None:
    enhanced = series.build_enhanced(series.build_slices())
    del enhanced.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence
    enhanced.ImagePositionPatient = [0, 0, 0]  # what stands at the top is no frame's position
    assert refusal(read, [enhanced]) == "no_position"
    del enhanced.PerFrameFunctionalGroupsSequence[4]
    assert refusal(read, [enhanced]) == "frame_count"


def test_a_cine_is_time(read: Read, series: ModuleType) -> None:
    slices = series.build_slices()
    cine = series.build_enhanced(slices, FrameTime=40)
    del cine.PerFrameFunctionalGroupsSequence
    assert refusal(read, [cine]) == "cine"
    cine.SOPClassUID = UltrasoundMultiFrameImageStorage
    assert refusal(read, [cine]) == "cine"


def test_frames_without_positions(read: Read, series: ModuleType) -> None:
    capture = series.build_enhanced(series.build_slices())
    del capture.PerFrameFunctionalGroupsSequence
    assert refusal(read, [capture]) == "multi_frame"
    capture.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.2"
    assert refusal(read, [capture]) == "multi_frame"


@pytest.mark.parametrize("tables", ["basic", "none", "extended"])
def test_compressed_frames(read: Read, series: ModuleType, tmp_path: Path, tables: str) -> None:
    enhanced = series.build_enhanced(series.build_slices()[::-1])
    size = 12 * 10 * 2
    options = {
        "rows": 12,
        "columns": 10,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
    }
    bits = {"bits_allocated": 16, "bits_stored": 16, "pixel_representation": 1, "pixel_keyword": "PixelData"}
    raw = enhanced.PixelData
    frames = [RLELosslessEncoder.encode(raw[k * size : (k + 1) * size], index=0, **options, **bits) for k in range(8)]
    if tables == "extended":
        data, enhanced.ExtendedOffsetTable, enhanced.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        data = encapsulate(frames, has_bot=tables == "basic")
    enhanced.PixelData = data
    enhanced["PixelData"].VR = "OB"
    enhanced["PixelData"].is_undefined_length = True
    path = series.write_series(tmp_path / "rle", [enhanced], syntax=RLELossless)
    check_plain(read_volume(path, rule=RULE), series)


def test_fragments_that_cannot_be_told_apart(series: ModuleType, tmp_path: Path) -> None:
    enhanced = series.build_enhanced(series.build_slices())
    enhanced.PixelData = encapsulate([b"\0" * 64] * 5, has_bot=False)
    enhanced["PixelData"].is_undefined_length = True
    enhanced["PixelData"].VR = "OB"
    with pytest.raises(ImageRefusedError, match="frame_count"):
        read_volume(series.write_series(tmp_path / "rle", [enhanced], syntax=RLELossless), rule=RULE)


def test_wrong_length_of_frames(series: ModuleType, tmp_path: Path) -> None:
    enhanced = series.build_enhanced(series.build_slices())
    enhanced.PixelData += b"\0" * 240
    with pytest.raises(ImageRefusedError, match="pixel_length"):
        read_volume(series.write_series(tmp_path / "long", [enhanced]), rule=RULE)


# Properties


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(6)),
    turn=st.tuples(*[st.floats(-180, 180, allow_nan=False)] * 3),
    lateral=st.tuples(*[st.sampled_from([0.0, -0.3, 0.2])] * 2),
)
def test_any_order_and_any_rotation(
    series: ModuleType, tmp_path: Path, order: list[int], turn: tuple[float, ...], lateral: tuple[float, float]
) -> None:
    folder = tmp_path / generate_uid()
    distances = [1.7 * k for k in range(6)]
    slices = series.build_slices(distances, orientation=series.rotate(*turn), slope=lateral, size=(9, 8))
    first = read_volume(series.write_series(folder / "a", slices), rule=RULE)
    other = read_volume(series.write_series(folder / "b", [slices[k] for k in order]), rule=RULE)
    assert series.find_error(first) < STEP
    assert_array_equal(first.values, other.values)
    assert_array_equal(first.affine, other.affine)
    shutil.rmtree(folder)


# Against others


def test_plain_series_agree_with_highdicom(read: Read, series: ModuleType, tmp_path: Path) -> None:
    import highdicom as hd
    from pydicom import dcmread

    for turn in ((0, 0, 0), (90, 0, 0), (17, -35, 61)):
        slices = series.build_slices(orientation=series.rotate(*turn))
        for ds in slices:
            ds.PatientName, ds.PatientBirthDate, ds.PatientSex, ds.StudyDate, ds.StudyTime = "", "", "", "", ""
            ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName, ds.Manufacturer = "", "", "", ""
        paths = series.write_series(tmp_path / f"{turn}", slices)
        theirs = hd.get_volume_from_series([dcmread(path) for path in paths])
        ours = read_volume(paths, rule=RULE)
        # Theirs counts slices the other way; a voxel's place is the same.
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = len(ours.values) - 1
        assert_allclose(ours.affine @ flip, theirs.affine, atol=1e-6)
        assert_allclose(ours.values[::-1], theirs.array, atol=1e-4)


def test_what_highdicom_refuses_is_refused_or_repaired_by_name(read: Read, series: ModuleType) -> None:
    from highdicom.spatial import get_volume_positions

    gap, jitter, mixed = [0, 1, 2, 4, 5], [0, 1, 2.2, 3, 4], [0, 1, 2, 5, 8]
    for distances, slope in ((gap, (0, 0)), (jitter, (0, 0)), (mixed, (0, 0)), ([0, 1, 2, 3], (0.3, 0))):
        slices = series.build_slices(distances, slope=slope)
        places = [[float(v) for v in ds.ImagePositionPatient] for ds in slices]
        assert get_volume_positions(places, series.AXIAL) == (None, None)
        assert refusal(read, slices, rule=StackRule(tilt="refuse")) in {"gap", "jitter", "mixed_spacing", "tilt"}


def test_what_highdicom_lets_pass_is_seen(read: Read, series: ModuleType) -> None:
    from highdicom.spatial import get_volume_positions

    drift = np.cumsum([0.0, *[2.5 * (0.994 if k < 20 else 1.006) for k in range(40)]]).tolist()
    for distances, slope, name in (([2.0 * k for k in range(8)], (0.04, 0.0), "tilt"), (drift, (0.0, 0.0), "jitter")):
        slices = series.build_slices(distances, slope=slope)
        places = [[float(v) for v in ds.ImagePositionPatient] for ds in slices]
        assert get_volume_positions(places, series.AXIAL)[0] is not None
        assert refusal(read, slices, rule=StackRule(tilt="refuse")) == name


def convert(paths: Sequence[Path], folder: Path) -> Iterator[RawVolume]:
    """What dcm2niix makes of the files, read by read_nifti."""
    source, target = folder / "in", folder / "out"
    source.mkdir()
    target.mkdir()
    for path in paths:
        shutil.copy(path, source)
    subprocess.run(
        ["dcm2niix", "-z", "y", "-b", "n", "-f", "%s_%p", "-o", target, source], check=True, capture_output=True
    )
    for path in sorted(target.glob("*.nii.gz")):
        yield read_nifti(path)


def compare(ours: RawVolume, theirs: RawVolume, *, atol: float) -> None:
    """The same values at the same places: every voxel of ours is looked up in theirs through both affines."""
    places = series_locate(ours)
    index = (places - theirs.affine[:3, 3]) @ np.linalg.inv(theirs.affine[:3, :3]).T
    nearest = np.rint(index).astype(int)
    assert np.abs(index - nearest).max() < 1e-2
    assert ours.values.size == theirs.values.size
    d, h, w = np.moveaxis(nearest, -1, 0)
    assert_allclose(theirs.values[d, h, w], ours.values, atol=atol)


def series_locate(volume: RawVolume) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, volume.values.shape), indexing="ij"), -1)
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


@pytest.mark.oracle
@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")
@pytest.mark.parametrize("turn", [(0, 0, 0), (90, 0, 0), (90, 90, 0), (17, -35, 61)])
def test_nifti_of_the_same_scan(series: ModuleType, tmp_path: Path, turn: tuple[float, ...]) -> None:
    elements = {"SOPClassUID": MRImageStorage, "Modality": "MR", "SeriesNumber": 1, "Manufacturer": "GE"}
    slices = series.build_slices(orientation=series.rotate(*turn), **elements)
    paths = series.write_series(tmp_path / "dicom", slices)
    ours = read_volume(paths, rule=RULE)
    (theirs,) = convert(paths, tmp_path)
    compare(ours, theirs, atol=1e-3)
    assert series.find_error(theirs) < 2 * STEP


def real(name: str) -> list[Path]:
    """Files of a folder of real DICOM, in order of their names."""
    shared = os.environ.get("MEDCLS_SHARED")
    if not shared:
        pytest.skip("MEDCLS_SHARED is not set")
    return sorted(path for path in (Path(shared) / "data" / "dicom" / name).iterdir() if path.is_file())


@pytest.mark.data
def test_a_real_ct(tmp_path: Path) -> None:
    volume = read_volume(real("torchio/image_data/dicom"), rule=RULE)
    assert volume.values.shape == (17, 128, 88)
    assert (volume.spacing_mm, volume.unit, volume.notes) == ((2.0, 2.0, 2.0), "US", ())
    if shutil.which("dcm2niix"):
        (theirs,) = convert(real("torchio/image_data/dicom"), tmp_path)
        compare(volume, theirs, atol=0)


@pytest.mark.data
def test_a_real_tilted_ct_of_two_slice_distances() -> None:
    paths = real("dcm_qa_ct_ge")
    dicom = [path for path in paths if path.suffix == ".dcm"]
    with pytest.raises(
        ImageRefusedError, match=r"mixed_spacing: 2 parts .* ImageType, .*stack\.mixed_spacing=resample"
    ):
        read_volume(dicom, rule=RULE)
    whole = read_volume(dicom, rule=replace(RULE, mixed_spacing="resample"))
    assert whole.notes == ("joined_parts", "resampled_spacing", "sheared")
    assert_allclose(
        whole.spacing_mm[0] * (len(whole.values) - 1), 144.09, atol=0.01
    )  # from the first slice to the last
    instances = [scan_file(path, name=path.name) for path in dicom]
    assert {reason for _, _, reason, _ in build_stacks(instances, RULE)[1]} == {"mixed_spacing"}
    stacks, left = build_stacks(instances, replace(RULE, parts="apart"))
    assert left == []
    assert sorted([stack.paths for stack in stacks]) == [
        tuple(f"{k:02}.dcm" for k in range(1, 15)),
        tuple(f"{k:02}.dcm" for k in range(15, 29)),
    ]
    for stack in stacks:
        files = [dicom[0].parent / name for name in stack.paths]
        volume = read_volume(files, rule=RULE)
        fine = stack.paths[0] == "01.dcm"
        assert_allclose(volume.spacing_mm[0], (4.22 if fine else 7.38) * np.cos(np.radians(18.5)), rtol=1e-5)
        assert (volume.unit, volume.notes) == ("HU", ("sheared",))
        # The first slice is moved by a whole number of rows or by none: it is there as it was stored.
        first = read_modality_values(files[0])
        seen = ~volume.mask[0]  # type: ignore[index]
        rows = np.flatnonzero(seen.any(axis=1))
        top = rows[0] - np.flatnonzero((~first.mask).any(axis=1))[0] if first.mask is not None else rows[0]
        assert_allclose(
            volume.values[0, top : top + 512][seen[top : top + 512]], first.values[seen[top : top + 512]], atol=1e-2
        )


@pytest.mark.data
@pytest.mark.oracle
@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")
@pytest.mark.parametrize("part", [slice(0, 14), slice(14, 28)])
def test_a_real_tilt_is_sheared_as_dcm2niix_does(tmp_path: Path, part: slice) -> None:
    files = [path for path in real("dcm_qa_ct_ge") if path.suffix == ".dcm"][part]
    ours = read_volume(files, rule=RULE)
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    for path in files:
        shutil.copy(path, source)
    command = ["dcm2niix", "-z", "n", "-b", "n", "-f", "x", "-o", target, source]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(ImageRefusedError, match="orientation"):  # what it writes before the correction
        read_nifti(target / "x.nii")
    theirs = read_nifti(target / "x_Tilt_1.nii")
    assert theirs.values.shape == ours.values.shape
    places = series_locate(ours)
    index = np.rint((places - theirs.affine[:3, 3]) @ np.linalg.inv(theirs.affine[:3, :3]).T).astype(int)
    assert np.abs(series_locate(theirs)[tuple(np.moveaxis(index, -1, 0))] - places).max() < 1e-3
    found = theirs.values[tuple(np.moveaxis(index, -1, 0))]
    assert ours.mask is not None
    assert np.abs(found - ours.values)[~ours.mask].max() <= 1.0  # it rounds to whole numbers


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fo-dicom/MOVEKNEE.dcm", "too_few_slices"),
        ("fo-dicom/DIRW0007", "cine"),
        ("fo-dicom/HasFragmentSequence.dcm", "cine"),
        ("fo-dicom/multiframe.dcm", "not_grey"),
        ("pydicom-data/data/eCT_Supplemental.dcm", "too_few_slices"),
        ("pydicom-data/data/emri_small.dcm", "multi_frame"),
        ("pydicom-data/data/emri_small_jpeg_2k_lossless_too_short.dcm", "multi_frame"),
        ("pydicom-data/data/liver.dcm", "not_an_image"),
        ("pydicom-data/data/SC_rgb_2frame.dcm", "not_grey"),
        ("highdicom/test_files/ct_image.dcm", "too_few_slices"),
        ("highdicom/test_files/sm_image.dcm", "not_grey"),
        ("highdicom/test_files/sm_image_grayscale.dcm", "multi_frame"),
        ("dcm_qa_ts/In/1.dcm", "mosaic"),
    ],
)
def test_real_files_that_are_no_volume(name: str, reason: str) -> None:
    folder, _, file = name.rpartition("/")
    path = next(path for path in real(folder) if path.name == file)
    with pytest.raises(ImageRefusedError) as caught:
        read_volume([path], rule=RULE)
    assert caught.value.reason == reason


@pytest.mark.data
def test_a_real_enhanced_mr() -> None:
    (path,) = (path for path in real("fo-dicom") if path.name == "mr_brucker.dcm")
    volume = read_volume([path], rule=RULE)
    assert volume.values.shape == (4, 128, 256)
    assert_allclose(volume.spacing_mm, (1.0, 0.2, 0.1))


def test_no_torch_and_no_oracle_in_a_worker() -> None:
    names = "('torch', 'highdicom', 'nibabel', 'hydra')"
    modules = "sys, medcls.imaging.volume.volume, medcls.imaging.nifti"
    code = f"import {modules}; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
