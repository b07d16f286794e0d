"""Headers of one series sorted into stacks: every instance ends in one place, by a rule that order cannot change."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, RTDoseStorage, UltrasoundMultiFrameImageStorage

from medcls.config import StackRule
from medcls.errors import ConfigError, DataError
from medcls.imaging.instance import Instance
from medcls.imaging.volume.stack import Leftover, Stack, build_stacks
from medcls.records import from_json, to_json

RULE = StackRule()


def instance(path: str, z: float, **changes: object) -> Instance:
    """An axial CT slice at z mm."""
    whole = Instance(
        path=path,
        kind="dicom",
        series_uid="1.2.3",
        sop_uid=f"1.2.3.{path}",
        sop_class_uid=CTImageStorage,
        frame_uid="1.2.9",
        modality="CT",
        image_type="ORIGINAL\\PRIMARY\\AXIAL",
        photometric="MONOCHROME2",
        rows=64,
        columns=64,
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        position=(-10.0, -10.0, z),
        pixel_spacing_mm=(0.5, 0.5),
        slice_thickness_mm=99.0,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def run(count: int, *, start: float = 0.0, step: float = 2.0, prefix: str = "a", **changes: object) -> list[Instance]:
    return [instance(f"{prefix}{k:02}", start + step * k, **changes) for k in range(count)]


def check_conserved(given_: list[Instance], stacks: list[Stack], left: list[Leftover]) -> None:
    """Every instance is in exactly one place."""
    placed = [path for stack in stacks for path in stack.paths] + [path for path, *_ in left]
    assert sorted(placed) == sorted(each.path for each in given_)
    assert len({stack.name for stack in stacks}) == len(stacks)


def test_order_is_along_the_normal() -> None:
    slices = run(6)
    (stack,), left = build_stacks(slices[::-1], RULE)
    assert stack.paths == ("a00", "a01", "a02", "a03", "a04", "a05")
    assert (stack.name, left) == ("", [])
    turned = [replace(each, orientation=(-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)) for each in slices]
    (stack,), _ = build_stacks(turned, RULE)
    assert stack.paths == ("a05", "a04", "a03", "a02", "a01", "a00")
    assert pickle.loads(pickle.dumps(stack)) == stack


@pytest.mark.parametrize(
    "changes",
    [
        {"stack_key": "echo=2"},
        {"image_type": "DERIVED\\SECONDARY\\MPR"},
        {"frame_uid": "1.2.10"},
        {"rows": 32},
        {"columns": 32},
        {"pixel_spacing_mm": (0.5, 0.6)},
        {"orientation": (0.0, 1.0, 0.0, -1.0, 0.0, 0.0)},
        {"photometric": "MONOCHROME1"},
        {"modality": "PT"},
    ],
)
def test_what_tells_volumes_apart(changes: dict[str, object]) -> None:
    given_ = run(6) + run(4, prefix="b", **changes)
    stacks, left = build_stacks(given_, RULE)
    check_conserved(given_, stacks, left)
    assert [(stack.name, len(stack.instances)) for stack in stacks] == [("", 6), ("#2", 4)]
    assert {path[0] for path in stacks[1].paths} == {"b"}


def across(count: int, cosines: tuple[float, ...], **changes: object) -> list[Instance]:
    """Slices in another plane."""
    return [
        instance(f"c{k:02}", 0.0, orientation=cosines, position=(2.0 * k, 2.0 * k, -10.0), **changes)
        for k in range(count)
    ]


CORONAL, SAGITTAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0), (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


@pytest.mark.parametrize("cosines", [CORONAL, SAGITTAL])
@pytest.mark.parametrize("count", [6, 20])
def test_axial_scan_with_a_gap_beside_a_longer_stack_in_another_plane_is_missed(
    count: int, cosines: tuple[float, ...]
) -> None:
    """Reformats are often more than the slices that they were made of."""
    axial = run(count)
    del axial[2]
    stacks, left = build_stacks(axial + across(60, cosines, rows=32), RULE)
    assert [len(stack.instances) for stack in stacks] == [60]
    ((state, reason, detail),) = {tuple(each[1:]) for each in left}
    assert (state, reason) == ("quarantined", "gap")
    assert f"stack.min_slices={count} leaves these {count - 1} slices out" in detail
    _, left = build_stacks(axial + across(60, cosines, rows=32), StackRule(min_slices=count))
    assert {tuple(each[1:3]) for each in left} == {("skipped", "too_few_slices")}


def test_irregular_reformats_beside_an_axial_volume_are_left_over() -> None:
    coronal = across(20, CORONAL)
    del coronal[4]
    (stack,), left = build_stacks(run(30) + coronal, RULE)
    assert len(stack.instances) == 30
    assert {tuple(each[1:3]) for each in left} == {("skipped", "leftover_stack")}


def test_rounding_tells_nothing_apart() -> None:
    given_ = run(6)
    given_[2] = replace(given_[2], orientation=(1.0, 1e-6, 0.0, -1e-6, 1.0, 0.0), pixel_spacing_mm=(0.50000001, 0.5))
    stacks, left = build_stacks(given_, RULE)
    assert (len(stacks), left) == (1, [])


def test_duplicates_stay_for_their_pixels_to_be_compared() -> None:
    given_ = [*run(5), instance("b", 4.0)]
    (stack,), left = build_stacks(given_, RULE)
    assert stack.paths == ("a00", "a01", "a02", "b", "a03", "a04")
    assert left == []


@pytest.mark.parametrize(
    ("changes", "state", "reason"),
    [
        ({"image_type": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "skipped", "localizer"),
        ({"position": ()}, "quarantined", "no_position"),
        ({"orientation": ()}, "quarantined", "no_orientation"),
        ({"pixel_spacing_mm": ()}, "quarantined", "no_spacing"),
        ({"position": (0.0, 0.0, 1e300)}, "quarantined", "malformed_element"),
        ({"pixel_spacing_mm": (1e-300, 0.5)}, "quarantined", "malformed_element"),
        ({"samples": 3, "photometric": "RGB"}, "skipped", "not_grey"),
        ({"photometric": "PALETTE COLOR"}, "skipped", "not_grey"),
        ({"problem": "no_pixel_data"}, "skipped", "no_pixel_data"),
        ({"sop_class_uid": RTDoseStorage}, "skipped", "not_an_image"),
        ({"problem": "truncated"}, "quarantined", "truncated"),
        ({"kind": "nifti"}, "quarantined", "not_dicom"),
        ({"image_type": "ORIGINAL\\PRIMARY\\M\\MOSAIC"}, "quarantined", "mosaic"),
        ({"frames": 20}, "skipped", "multi_frame"),
        ({"frames": 20, "sop_class_uid": UltrasoundMultiFrameImageStorage}, "skipped", "cine"),
    ],
)
def test_what_is_no_slice(changes: dict[str, object], state: str, reason: str) -> None:
    given_ = [*run(5), instance("b", 10.0, **changes)]
    stacks, left = build_stacks(given_, RULE)
    assert left == [("b", state, reason, "")]
    check_conserved(given_, stacks, left)


def test_a_group_fails_whole_and_alone() -> None:
    broken = run(6, prefix="b", stack_key="echo=2")
    del broken[2]
    given_ = run(6) + broken
    stacks, left = build_stacks(given_, RULE)
    check_conserved(given_, stacks, left)
    assert len(stacks) == 1
    assert {reason for _, _, reason, _ in left} == {"gap"}
    stacks, left = build_stacks(given_, StackRule(gap="resample"))
    assert ([len(stack.instances) for stack in stacks], left) == ([6, 5], [])


def test_enhanced_files_are_stacks_of_their_own() -> None:
    enhanced = {"frames": 30, "sop_class_uid": EnhancedCTImageStorage}
    given_ = [instance("a", 0.0, **enhanced), instance("b", 60.0, **enhanced), *run(5, prefix="c")]
    stacks, left = build_stacks(given_, RULE)
    check_conserved(given_, stacks, left)
    assert [stack.paths for stack in stacks[:2]] == [("a",), ("b",)]
    assert [stack.name for stack in stacks] == ["", "#2", "#3"]


def test_nothing_in_nothing_out() -> None:
    assert build_stacks([], RULE) == ([], [])


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_no_order_of_files_changes_anything(data: st.DataObject) -> None:
    given_ = [
        *run(5),
        *run(5, prefix="b", stack_key="echo=2"),
        *run(4, prefix="c", step=0.0),
        *run(3, prefix="d", rows=8),
        instance("e", 4.0),
        instance("f", 4.0, position=()),
    ]
    wanted = build_stacks(given_, RULE)
    check_conserved(given_, *wanted)
    assert build_stacks(data.draw(st.permutations(given_)), RULE) == wanted


def test_the_rule_travels() -> None:
    rule = StackRule(gap="resample", tilt="refuse", tolerance=0.02, min_slices=5)
    assert from_json(StackRule, to_json(rule)) == rule
    with pytest.raises(DataError, match="tolerance"):
        from_json(StackRule, {"gap": "refuse"})
    for wrong in ({"gap": "fill"}, {"tilt": "resample"}, {"duplicate": "keep"}, {"tolerance": 0.5}, {"min_slices": 1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            StackRule(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("frames", [0, -1])
def test_a_count_of_frames_that_cannot_be_is_one_files_fault(frames: int) -> None:
    slices = run(4)
    broken = instance(
        "b", 0.0, frames=frames, sop_class_uid=EnhancedCTImageStorage, orientation=(), pixel_spacing_mm=()
    )
    (stack,), left = build_stacks([broken, *slices], RULE)
    assert len(stack.paths) == 4
    assert left == [("b", "quarantined", "malformed_element", "")]
