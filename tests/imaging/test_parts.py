"""One scan that its headers cut into parts is one volume or one refusal; scans that overlap stay apart."""

from __future__ import annotations

import time
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

from medcls.config import StackRule
from medcls.errors import ImageRefusedError
from medcls.imaging.instance import Instance
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
    if names & {"ImageType", "FrameOfReferenceUID"}:  # each regular by itself may be a volume: the tests below
        places = [[k for k, part in enumerate(parts) if part == one] for one in set(parts)]
        assume(any(len(set(np.diff(each))) > 1 for each in places))
    assert paths_of(mark(slices, parts, names)) == paths_of(slices)


TELLING = pytest.mark.parametrize("name", ["ImageType", "FrameOfReferenceUID"])


@TELLING
@pytest.mark.parametrize("start", [1.0, 5.0, 13.0])
def test_volumes_half_a_step_apart_are_not_mixed(start: float, name: str) -> None:
    """Magnitude and phase of a scanner that places them between one another; a patient who was placed again."""
    slices = mark(run(10, step=2.0), [0] * 10, {name})
    slices += mark(run(10, step=2.0, start=start, prefix="b"), [1] * 10, {name})
    assert build_stacks(slices, RULE) == build_stacks(slices, APART)
    assert sorted(map(len, paths_of(slices))) == [10, 10]


@TELLING
@pytest.mark.parametrize("kinds", [2, 3])
def test_every_second_or_third_slice_of_its_own_is_a_volume_of_its_own(name: str, kinds: int) -> None:
    slices = mark(run(12), [k % kinds for k in range(12)], {name})
    wanted = [tuple(f"a{k:02}" for k in range(kind, 12, kinds)) for kind in range(kinds)]
    assert sorted(paths_of(slices)) == wanted


@TELLING
@pytest.mark.parametrize(("kinds", "count", "lost"), [(2, 20, 9), (2, 4, None), (3, 7, None), (3, 20, 9)])
def test_interleaved_parts_that_are_not_all_volumes_are_refused(
    name: str, kinds: int, count: int, lost: int | None
) -> None:
    """With a slice missing in one, the other would be stored at twice the distance."""
    slices = mark(run(count), [k % kinds for k in range(count)], {name})
    slices = [each for k, each in enumerate(slices) if k != lost]
    reason, detail = refuse(slices)
    assert (reason, f"told apart by {name}," in detail) == ("several_parts", True)
    assert ("stack.parts=apart" in detail) == (count > 4)


def test_interleaved_parts_of_other_rounding_are_one_scan_also_with_a_missing_slice() -> None:
    """Their positions are in one frame of reference."""
    slices = mark(run(20), [0, 1] * 10, {"ImageOrientationPatient"})
    assert len(paths_of(slices)) == 1
    del slices[9]
    beside = mark(run(6, start=300.0, prefix="b"), [7] * 6, {"ImageType"})
    for more in ([], beside):
        stacks, left = build_stacks(slices + more, RULE)
        assert [each.paths[0][0] for each in stacks] == ["b"] * bool(more)
        assert {reason for _, _, reason, _ in left} == {"gap"}
        stacks, left = build_stacks(slices + more, StackRule(gap="resample"))
        assert (len(stacks[0].instances), left) == (19, [])


@pytest.mark.parametrize("name", ["FrameOfReferenceUID", "ImageType"])
def test_doubled_slice_among_parts_of_a_slice_each_is_left_to_its_pixels(name: str) -> None:
    """As without parts: equal ones are removed, others are duplicate_position, for which there is a setting."""
    slices = mark(run(9), list(range(9)), {name})
    (again,) = mark([replace(slices[4], path="b", sop_uid="1.2.3.b")], [77], {name})
    assert paths_of([*slices, again]) == [(*(f"a0{k}" for k in range(5)), "b", *(f"a0{k}" for k in range(5, 9)))]
    twice = slices + mark(run(9, prefix="b"), list(range(10, 19)), {name})
    reason, detail = refuse(twice)
    assert (reason, "stack.duplicate=drop" in detail, "apart" in detail.split(":")[-1]) == (
        "several_parts",
        True,
        False,
    )
    assert len(paths_of(twice, StackRule(duplicate="drop"))) == 1


@pytest.mark.parametrize("name", CHANGES)
def test_halves_that_share_an_end_slice_are_one_scan(name: str) -> None:
    slices = mark(run(10), [0] * 10, {name}) + mark(run(10, start=18.0, prefix="b"), [1] * 10, {name})
    (paths,) = paths_of(slices)
    assert paths == tuple(f"a{k:02}" for k in range(10)) + tuple(f"b{k:02}" for k in range(10))


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


def test_continuation_is_the_part_that_begins_at_the_next_slice() -> None:
    """And not another phase, which overlaps it and is near, too."""
    below, above = run(6), mark(run(6, start=12.0, prefix="b"), [1] * 6, {"ImageType"})
    phase = mark(run(7, start=12.7, prefix="c"), [2] * 7, {"ImageType"})
    assert {len(paths): {path[0] for path in paths} for paths in paths_of(below + phase + above)} == {
        12: {"a", "b"},
        7: {"c"},
    }


def test_many_parts_take_time_in_proportion() -> None:
    def measure(count: int) -> float:
        stacks = [mark(run(3, start=100.0 * k, prefix=f"{k}-"), [k] * 3, {"ImageType"}) for k in range(count)]
        slices = [each for stack in stacks for each in stack]
        start = time.process_time()
        assert len(build_stacks(slices, RULE)[0]) == count
        return time.process_time() - start

    measure(10)
    assert min(measure(400) for _ in range(2)) < 10 * min(measure(100) for _ in range(3))


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


def test_half_whose_other_half_has_a_gap_of_its_own_is_refused_with_it() -> None:
    """The upper half is of another voltage and in two parts, between which a slice is missing."""
    upper = mark(run(8, start=12.0, prefix="b", stack_key="kvp=100"), [0] * 4 + [1] * 4, {"ImageType"})
    del upper[4]
    stacks, left = build_stacks(run(6, stack_key="kvp=120") + upper, RULE)
    assert stacks == []
    assert {(path[0], reason) for path, _, reason, _ in left} == {("a", "several_parts"), ("b", "gap")}


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


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("small", [1, 2])
@pytest.mark.parametrize("is_below", [False, True])
def test_small_part_behind_a_missing_slice_is_refused_with_the_others(name: str, small: int, is_below: bool) -> None:
    """Before, the two slices beyond the missing one were skipped as references, and the rest was stored as whole."""
    slices = mark(run(33), [0] * (33 - small) + [1] * small, {name})
    slices = mark(run(33), [1] * small + [0] * (33 - small), {name}) if is_below else slices
    del slices[small if is_below else -1 - small]
    for more in ([], mark(run(6, start=300.0, prefix="b"), [7] * 6, {"ImageType"})):
        stacks, left = build_stacks(slices + more, RULE)
        assert [each.paths[0][0] for each in stacks] == ["b"] * bool(more)
        assert {reason for _, _, reason, _ in left} == {"gap"}
        assert all(f"told apart by {name}," in detail and "stack.gap=resample" in detail for *_, detail in left)
        stacks, left = build_stacks(slices + more, StackRule(gap="resample"))
        assert (len(stacks[0].instances), left) == (32, [])


def test_two_slices_that_continue_a_stack_in_larger_steps_are_not_skipped() -> None:
    upper = mark(run(2, start=35.0, step=7.0, prefix="b"), [1] * 2, {"ImageType"})
    reason, detail = refuse(run(8, step=4.0) + upper)
    assert (reason, "told apart by ImageType" in detail) == ("mixed_spacing", True)


@pytest.mark.parametrize("changes", [{"stack_key": "kvp=100"}, {"rows": 32}])
@pytest.mark.parametrize("lost", [0, 1])
def test_small_part_that_differs_in_more_and_continues_a_stack_is_refused(changes: dict[str, Any], lost: int) -> None:
    slices = run(30, stack_key="kvp=120") + run(2, start=60.0 + 2 * lost, prefix="b", **changes)
    reason, detail = refuse(slices)
    assert (reason, "stacks of 30 and 2 slices" in detail) == ("several_parts", True)


def test_small_part_that_differs_in_more_and_fills_a_hole_is_not_interpolated_over() -> None:
    slices = run(20, stack_key="kvp=120")
    slices[7] = replace(slices[7], stack_key="kvp=100")
    reason, detail = refuse(slices, StackRule(gap="resample"))
    assert (reason, "differ in KVP" in detail) == ("several_parts", True)


@pytest.mark.parametrize("lost", [0, 1])
def test_halves_of_another_size_around_one_axis_are_refused(lost: int) -> None:
    """Their corners lie beside one another, their centres in one line."""
    size = {"rows": 32, "columns": 32, "pixel_spacing_mm": (0.8, 0.8)}
    upper = run(6 - lost, start=12.0 + 2 * lost, prefix="b", **size)
    centre = -10.0 + 0.5 * 63 / 2
    upper = [replace(i, position=(centre - 0.8 * 31 / 2, centre - 0.8 * 31 / 2, i.position[2])) for i in upper]
    reason, detail = refuse(run(6) + upper)
    assert (reason, "differ in PixelSpacing, Rows and Columns: stack.parts=apart" in detail) == ("several_parts", True)
    beside = [replace(i, position=(i.position[0] + 5.0, *i.position[1:])) for i in upper]
    assert len(paths_of(run(6) + beside)) == 2


@pytest.mark.parametrize("start", [-10.0, 0.0, 7.3, 60.0, 80.0, 100.0])
@pytest.mark.parametrize("changes", [{"image_type": "DERIVED\\PRIMARY"}, {"rows": 32}, {"stack_key": "kvp=80"}])
def test_sparse_stack_beside_a_volume_is_skipped(start: float, changes: dict[str, Any]) -> None:
    slices, sparse = run(30), run(3, start=start, step=40.0, prefix="b", **changes)
    (stack,), left = build_stacks(slices + sparse, RULE)
    assert len(stack.instances) == 30
    assert {(path[0], state, reason) for path, state, reason, _ in left} == {("b", "skipped", "sparse_stack")}
    sparse[1] = replace(sparse[1], position=(-10.0, -10.0, start + 33.0))
    (stack,), left = build_stacks(slices + sparse, RULE)
    assert {(path[0], state, reason) for path, state, reason, _ in left} == {("b", "skipped", "sparse_stack")}


def test_sparse_stack_is_a_volume_if_there_is_no_other_or_the_user_says_so() -> None:
    sparse = run(3, step=40.0, prefix="b", image_type="OTHER")
    assert len(paths_of(sparse)) == 1
    assert sorted(map(len, paths_of(run(30) + sparse, APART))) == [3, 30]


def test_stack_that_goes_on_in_large_steps_is_not_skipped() -> None:
    upper = mark(run(5, start=70.0, step=12.0, prefix="b"), [1] * 5, {"ImageType"})
    reason, detail = refuse(run(30) + upper)
    assert reason == "mixed_spacing"
    assert "stack.mixed_spacing=resample stack.max_gap_mm=12 joins them" in detail
    rule = StackRule(mixed_spacing="resample", max_gap_mm=12)
    assert len(paths_of(run(30) + upper, rule)) == 1


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
