"""One scan that its headers cut into parts is one volume or one refusal; scans that overlap stay apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from medcls.errors import ImageRefusedError
from medcls.imaging.instance import Instance
from medcls.imaging.volume.geometry import StackRule
from medcls.imaging.volume.stack import build_stacks
from medcls.imaging.volume.volume import read_volume
from tests.imaging.test_stacks import check_conserved, run

RULE = StackRule()
APART = StackRule(parts="apart")
TURNED = (1.0, 2e-4, 0.0, -2e-4, 1.0, 0.0)
"""An axial slice whose cosines are rounded otherwise."""

CHANGES: dict[str, Callable[[int], dict[str, Any]]] = {
    "ImageType": lambda part: {"image_type": f"ORIGINAL\\PRIMARY\\AXIAL\\{part}"},
    "FrameOfReferenceUID": lambda part: {"frame_uid": f"1.2.{part}"},
    "ImageOrientationPatient": lambda part: {"orientation": TURNED} if part % 2 else {},
}
"""What cuts a scan, by its attribute: the changes of a part's slices."""


def mark(slices: list[Instance], parts: list[int], names: set[str]) -> list[Instance]:
    """The slices with the attributes of the part that each belongs to."""
    return [
        replace(each, **{k: v for name in names for k, v in CHANGES[name](part).items()})
        for each, part in zip(slices, parts, strict=True)
    ]


def paths_of(slices: list[Instance], rule: StackRule = RULE) -> list[tuple[str, ...]]:
    stacks, left = build_stacks(slices, rule)
    check_conserved(slices, stacks, left)
    assert left == [], left
    return [stack.paths for stack in stacks]


def refuse(slices: list[Instance], rule: StackRule = RULE) -> tuple[str, str]:
    """Reason and detail of slices that are refused as a whole."""
    stacks, left = build_stacks(slices, rule)
    check_conserved(slices, stacks, left)
    assert stacks == []
    assert {state for _, state, _, _ in left} == {"quarantined"}
    ((reason, detail),) = {(reason, detail) for _, _, reason, detail in left}
    return reason, detail


NAMES = st.sets(st.sampled_from(sorted(CHANGES)), min_size=1)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), count=st.integers(3, 30), names=NAMES, step=st.sampled_from([0.6, 2.5, 7.0]))
def test_scan_cut_anywhere_is_the_uncut_one(data: st.DataObject, count: int, names: set[str], step: float) -> None:
    """From two halves to a part for every slice."""
    slices = run(count, step=step)
    cuts = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    parts = np.cumsum(cuts).tolist()
    marked = mark(slices, parts, names)
    assert paths_of(data.draw(st.permutations(marked))) == paths_of(slices)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), count=st.integers(4, 20), names=NAMES)
def test_scan_whose_slices_are_marked_at_random_is_one(data: st.DataObject, count: int, names: set[str]) -> None:
    slices = run(count)
    parts = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    if "ImageType" in names:  # every second slice, say, is a volume of its own: test_volumes_of_two_image_types below
        places = [[k for k, part in enumerate(parts) if part == one] for one in set(parts)]
        assume(sum(len(each) >= 3 and len(set(np.diff(each))) == 1 for each in places) < 2)
    assert paths_of(mark(slices, parts, names)) == paths_of(slices)


@pytest.mark.parametrize("start", [1.0, 5.0, 13.0])
def test_volumes_of_two_image_types_half_a_step_apart_are_not_mixed(start: float) -> None:
    """Magnitude and phase of a scanner that places them between one another."""
    slices = mark(run(10, step=2.0), [0] * 10, {"ImageType"})
    slices += mark(run(10, step=2.0, start=start, prefix="b"), [1] * 10, {"ImageType"})
    assert build_stacks(slices, RULE) == build_stacks(slices, APART)
    assert sorted(map(len, paths_of(slices))) == [10, 10]


@settings(max_examples=80, deadline=None)
@given(data=st.data(), kinds=st.integers(2, 4), name=st.sampled_from(["ImageType", "FrameOfReferenceUID"]))
def test_scans_that_overlap_stay_apart(data: st.DataObject, kinds: int, name: str) -> None:
    """Echoes and phases at the same places, and passes of a scanner that share a few, or interleave."""
    slices: list[Instance] = []
    for kind in range(kinds):
        start = data.draw(st.sampled_from([0.0, 0.7, 2.0, 4.0]))
        count = data.draw(st.integers(6, 9))
        slices += mark(run(count, start=start, prefix=f"{kind}-"), [kind] * count, {name})
    ends = {kind: [i.position[2] for i in slices if i.path.startswith(f"{kind}-")] for kind in range(kinds)}
    assert all(min(ends[a]) <= max(ends[b]) for a in ends for b in ends)  # each two of them overlap
    assert build_stacks(slices, RULE) == build_stacks(slices, APART)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(), count=st.integers(4, 12), name=st.sampled_from(["FrameOfReferenceUID", "ImageOrientationPatient"])
)
def test_phases_that_are_cut_are_one_volume_each(data: st.DataObject, count: int, name: str) -> None:
    """Magnitude and phase at the same places, each cut by another attribute."""
    slices: list[Instance] = []
    for kind in range(2):
        parts = np.cumsum(data.draw(st.lists(st.booleans(), min_size=count, max_size=count))).tolist()
        part = mark(run(count, prefix=f"{kind}-"), [p + 100 * kind for p in parts], {name})
        slices += mark(part, [kind] * count, {"ImageType"})
    assert sorted(paths_of(slices)) == [tuple(f"{kind}-{k:02}" for k in range(count)) for kind in range(2)]


@pytest.mark.parametrize("name", CHANGES)
def test_missing_slice_between_parts_is_a_gap_that_names_the_attribute(name: str) -> None:
    slices = mark(run(12), [0] * 6 + [1] * 6, {name})
    del slices[6]
    reason, detail = refuse(slices)
    assert reason == "gap"
    assert f"2 parts of a series, told apart by {name}," in detail
    assert "stack.gap=resample joins them, stack.parts=apart takes each as a volume" in detail
    (stack,), left = build_stacks(slices, StackRule(gap="resample"))
    assert (len(stack.instances), stack.parted_by, left) == (11, (name,), [])
    assert len(paths_of(slices, APART)) == 2


def test_missing_slice_among_slices_of_one_frame_of_reference_each_is_a_gap() -> None:
    slices = mark(run(9), list(range(9)), {"FrameOfReferenceUID"})
    del slices[4]
    reason, detail = refuse(slices)
    assert (reason, "FrameOfReferenceUID" in detail) == ("gap", True)


def test_parts_of_two_distances_are_refused_by_the_attribute() -> None:
    """A head in fine slices below and coarse ones above."""
    lower, upper = run(8, step=4.0), run(8, start=29.0, step=7.0, prefix="b")
    slices = lower + mark(upper, [1] * 8, {"ImageType"})
    reason, detail = refuse(slices)
    assert reason == "mixed_spacing"
    assert "told apart by ImageType" in detail
    assert len(build_stacks(slices, StackRule(mixed_spacing="resample"))[0]) == 1
    assert len(paths_of(slices, APART)) == 2


def test_parts_that_are_far_from_one_another_are_two_volumes() -> None:
    slices = run(8) + mark(run(8, start=100.0, prefix="b"), [1] * 8, {"ImageType"})
    assert sorted(paths_of(slices)) == sorted(paths_of(slices, APART))


def test_slabs_beside_one_another_are_two_volumes() -> None:
    """Discs of a spine: parallel, near, and not in one line."""
    slices = run(8) + mark(run(8, start=16.0, prefix="b", position=()), [1] * 8, {"ImageType"})
    slices = [replace(i, position=i.position or (30.0, -10.0, 16.0 + 2.0 * int(i.path[1:]))) for i in slices]
    assert sorted(paths_of(slices)) == sorted(paths_of(slices, APART))


def test_continuation_that_several_could_be_is_refused() -> None:
    below = mark(run(6), [0] * 6, {"ImageType"})
    above = [mark(run(6, start=12.0, prefix=f"b{k}"), [k] * 6, {"ImageType"}) for k in (1, 2)]
    reason, detail = refuse(below + above[0] + above[1])
    assert reason == "several_parts"
    assert "ImageType" in detail
    assert len(paths_of(below + above[0] + above[1], APART)) == 3


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"stack_key": "kvp=100"}, "KVP"),
        ({"stack_key": "kernel=SOFT;kvp=120"}, "ConvolutionKernel"),
        ({"rows": 32}, "Rows"),
        ({"pixel_spacing_mm": (0.5, 0.6)}, "PixelSpacing"),
        ({"photometric": "MONOCHROME1"}, "PhotometricInterpretation"),
    ],
)
def test_halves_that_differ_in_more_are_refused_by_the_attribute(changes: dict[str, Any], name: str) -> None:
    slices = run(6, stack_key="kvp=120") + run(6, start=12.0, prefix="b", **{"stack_key": "kvp=120"} | changes)
    stacks, left = build_stacks(slices, RULE)
    assert stacks == []
    assert {reason for _, _, reason, _ in left} == {"several_parts"}
    assert all(f"differ in {name}: stack.parts=apart" in detail for _, _, _, detail in left)
    assert sorted(map(len, paths_of(slices, APART))) == [6, 6]


@pytest.mark.parametrize(
    "upper",
    [run(6, start=35.0, step=7.0, prefix="b", stack_key="kvp=120"), run(6, start=36.0, step=4.0, prefix="b", rows=32)],
    ids=["other distance", "missing slice"],
)
def test_halves_that_differ_in_more_and_are_not_regular_are_refused(upper: list[Instance]) -> None:
    """The base of a head in fine slices at more voltage; a slice lost between two halves."""
    slices = run(8, step=4.0, stack_key="kvp=140") + upper
    stacks, left = build_stacks(slices, RULE)
    assert stacks == []
    assert {reason for _, _, reason, _ in left} == {"several_parts"}
    assert sorted(map(len, paths_of(slices, APART))) == [6, 8]


def test_slabs_beside_one_another_at_other_distances_and_voltages_are_two_volumes() -> None:
    below = run(8, stack_key="kvp=140")
    above = [replace(i, position=(30.0, -10.0, i.position[2])) for i in run(8, start=18.0, prefix="b")]
    for slices in (below + above, run(8) + mark(above, [1] * 8, {"ImageType"})):
        assert sorted(paths_of(slices)) == sorted(paths_of(slices, APART))


@pytest.mark.parametrize("name", ["FrameOfReferenceUID", "ImageType"])
@pytest.mark.parametrize("each", [1, 2])
def test_half_in_parts_too_small_for_volumes_behind_a_gap_is_refused_with_the_other(name: str, each: int) -> None:
    """One half has one frame of reference, the other one for each slice or two: they are no references."""
    slices = mark(run(20), [0] * 10 + [1 + k // each for k in range(10)], {name})
    assert len(paths_of(slices)) == 1
    del slices[10]
    reason, detail = refuse(slices)
    assert (reason, name in detail) == ("gap", True)
    (stack,), left = build_stacks(slices, StackRule(gap="resample"))
    assert (len(stack.instances), left) == (19, [])


@pytest.mark.parametrize("name", CHANGES)
def test_small_part_between_large_ones_is_not_interpolated_over(name: str) -> None:
    """A slice is missing elsewhere, and the rule fills that gap: what is there is never made up."""
    slices = mark(run(32), [0] * 10 + [1] * 2 + [2] * 20, {name})
    del slices[22]
    (stack,), left = build_stacks(slices, StackRule(gap="resample"))
    assert (len(stack.instances), left) == (31, [])


def test_slice_that_fits_no_place_does_not_cost_the_volume() -> None:
    slices = [*run(8), *mark(run(1, start=15.1, prefix="b"), [1], {"ImageType"})]
    (stack,), left = build_stacks(slices, RULE)
    assert len(stack.instances) == 8
    assert [path for path, *_ in left] == ["b00"]


def test_a_thousand_slices_of_one_frame_of_reference_each_take_no_time() -> None:
    slices = mark(run(1000), list(range(1000)), {"FrameOfReferenceUID"})
    assert [len(paths) for paths in paths_of(slices)] == [1000]
    twice = slices + mark(run(1000, prefix="b"), list(range(1000, 2000)), {"FrameOfReferenceUID"})
    reason, detail = refuse(twice)
    assert (reason, "FrameOfReferenceUID" in detail) == ("several_parts", True)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.booleans(), min_size=9, max_size=9), names=NAMES, turn=st.sampled_from([(0, 0, 0), (20, 10, 30)])
)
def test_voxels_of_a_cut_scan_are_those_of_the_uncut_one(
    series: ModuleType, tmp_path: Path, cuts: list[bool], names: set[str], turn: tuple[float, ...]
) -> None:
    def write(name: str, parts: list[int]) -> list[Path]:
        slices = series.build_slices([2.5 * k for k in range(9)], orientation=series.rotate(*turn))
        for ds, part in zip(slices, parts, strict=True):
            ds.AcquisitionNumber = part
            if "ImageType" in names:
                ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", str(part)]
            if "FrameOfReferenceUID" in names:
                ds.FrameOfReferenceUID = f"1.2.3.{part}"
            if "ImageOrientationPatient" in names and part % 2:
                ds.ImageOrientationPatient = [f"{value:.3f}" for value in ds.ImageOrientationPatient]
        return list(series.write_series(tmp_path / series.make_uid() / name, slices))

    whole = read_volume(write("whole", [0] * 9), rule=RULE)
    parts = np.cumsum(cuts).tolist()
    cut = read_volume(write("cut", parts), rule=RULE)
    assert_array_equal(cut.values, whole.values)
    assert_allclose(cut.affine, whole.affine, atol=0.02)
    assert set(cut.notes) <= {"joined_parts"}


def test_half_of_a_scan_is_not_read_beside_the_other(series: ModuleType, tmp_path: Path) -> None:
    """Two echoes are two volumes; two halves with a slice missing between them are a refusal and no two volumes."""
    slices = series.build_slices([2.5 * k for k in range(9)])
    for ds in slices[5:]:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "ADD"]
    del slices[4]
    with pytest.raises(ImageRefusedError, match="gap: 2 parts of a series, told apart by ImageType"):
        read_volume(series.write_series(tmp_path, slices), rule=RULE)
