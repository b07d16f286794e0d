"""Which series are taken: each field of the rule, each reason, each preference, ties by SeriesInstanceUID."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcls.config import SeriesConfig
from medcls.config.schema import read_settings
from medcls.errors import ConfigError, DataError
from medcls.imaging.instance import Instance
from medcls.imaging.volume.select import Series, SeriesRule, name_plane, select_series, summarize_series
from medcls.records import from_json, to_json

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
HEAD = Series(
    key=("p", "study", "b"),
    modality="MR",
    description="T1w MPRAGE Head",
    image_type="ORIGINAL\\PRIMARY\\M",
    body_part="HEAD",
    plane="axial",
    slices=20,
    distance_mm=1.0,
)


def taken(series: list[Series], rule: SeriesRule) -> list[str]:
    return [each.key[2] for each in select_series(series, rule)[0]]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({}, ""),
        ({"modality": ("CT", "mr")}, ""),
        ({"modality": ("CT",)}, "wrong_modality"),
        ({"description": "mprage"}, ""),
        ({"description": "^mprage"}, "wrong_description"),
        ({"description": "^(?!.*t1w)"}, "wrong_description"),
        ({"image_type": ("original", "M")}, ""),
        ({"image_type": ("ORIGINAL", "P")}, "wrong_image_type"),
        ({"image_type": ("PRIM",)}, "wrong_image_type"),
        ({"not_image_type": ("derived", "localizer")}, ""),
        ({"not_image_type": ("primary",)}, "wrong_image_type"),
        ({"body_part": ("head",)}, ""),
        ({"body_part": ("CHEST",)}, "wrong_body_part"),
        ({"plane": ("coronal", "AXIAL")}, ""),
        ({"plane": ("coronal",)}, "wrong_plane"),
        ({"min_slices": 20, "max_slices": 20}, ""),
        ({"min_slices": 21}, "too_few_slices"),
        ({"max_slices": 19}, "too_many_slices"),
    ],
)
def test_every_field_of_the_rule(rule: dict[str, Any], reason: str) -> None:
    chosen, skipped = select_series([HEAD], SeriesRule(**rule))
    assert (chosen, skipped) == (([], {HEAD.key: reason}) if reason else ([HEAD], {}))


def test_a_series_without_images_is_never_taken() -> None:
    assert select_series([replace(HEAD, slices=0)], SeriesRule())[1] == {HEAD.key: "no_image"}


def variants() -> list[Series]:
    return [
        replace(HEAD, key=("p", "1", "c"), slices=30, distance_mm=2.0),
        replace(HEAD, key=("p", "1", "a"), slices=10, distance_mm=None),
        replace(HEAD, key=("p", "1", "d"), slices=30, distance_mm=0.5),
        replace(HEAD, key=("p", "1", "b"), slices=10, distance_mm=0.5),
        replace(HEAD, key=("p", "2", "e"), slices=5),
        replace(HEAD, key=("q", "1", "f"), slices=5),
    ]


@pytest.mark.parametrize(
    ("preference", "expected"),
    [("all", "abcdef"), ("most_slices", "cef"), ("fewest_slices", "aef"), ("thinnest", "bef"), ("first", "aef")],
)
def test_one_series_of_each_study(preference: str, expected: str) -> None:
    chosen, skipped = select_series(variants(), SeriesRule(per_study=preference))
    assert [each.key[2] for each in chosen] == list(expected)
    assert set(skipped.values()) <= {"not_preferred"}
    assert len(chosen) + len(skipped) == 6


@given(st.permutations(range(6)), st.sampled_from(read_settings(SeriesConfig)["per_study"].choices))
def test_the_order_of_the_series_does_not_matter(order: list[int], preference: str) -> None:
    series, rule = variants(), SeriesRule(per_study=preference)
    assert select_series([series[i] for i in order], rule) == select_series(series, rule)


def test_the_preference_comes_after_the_rule() -> None:
    assert taken(variants(), SeriesRule(per_study="most_slices", max_slices=20)) == ["a", "e", "f"]


def instance(number: float, **changes: Any) -> Instance:
    found = Instance(
        path=f"{number:07.1f}",
        kind="dicom",
        patient_id="p",
        study_uid="1",
        series_uid="2",
        modality="CT",
        orientation=AXIAL,
        position=(0.0, 0.0, 2.5 * number),
    )
    return replace(found, **changes)


def test_a_series_is_what_most_of_its_slices_are() -> None:
    scout = instance(99, image_type="LOCALIZER", orientation=(0, 1, 0, 0, 0, -1), position=(7, 7, 7))
    slices = [instance(n, image_type="AXIAL", body_part="HEAD" if n else "") for n in (3, 0, 1, 2)]
    (series,) = summarize_series([scout, *slices, instance(5, problem="truncated", modality="MR")])
    assert series == Series(("p", "1", "2"), "CT", "", "AXIAL", "HEAD", "axial", 5, series.distance_mm)
    (series,) = summarize_series(slices)
    assert series.distance_mm == 2.5


def test_two_echoes_of_a_slice_are_no_distance_of_slices() -> None:
    (series,) = summarize_series([instance(n, path=f"{n}{e}") for n in range(3) for e in "ab"])
    assert (series.slices, series.distance_mm) == (6, 2.5)


def test_frames_count_as_slices() -> None:
    (series,) = summarize_series([instance(0, frames=40)])
    assert (series.slices, series.distance_mm) == (40, None)


def test_the_same_uid_of_two_patients_is_two_series() -> None:
    found = summarize_series([instance(1), instance(2, patient_id="q"), instance(3, kind="nifti")])
    assert [each.key for each in found] == [("p", "1", "2"), ("q", "1", "2")]


def test_a_series_of_problems_alone_is_there_with_no_slices() -> None:
    found = summarize_series([instance(1, problem="no_pixel_data"), instance(2, series_uid="", problem="dicomdir")])
    assert [(each.key[2], each.slices) for each in found] == [("2", 0)]


@pytest.mark.parametrize(
    ("orientation", "plane"),
    [
        (AXIAL, "axial"),
        ((-1, 0, 0, 0, -1, 0), "axial"),
        ((1, 0, 0, 0, 0, -1), "coronal"),
        ((0, 1, 0, 0, 0, -1), "sagittal"),
        ((1, 0, 0, 0, 0.9, 0.43589), "axial"),
        ((1, 0, 0, 0, 0.75, 0.66144), "oblique"),
        ((1, 0, 0, 1, 0, 0), ""),
        ((), ""),
    ],
)
def test_planes_are_told_by_the_normal(orientation: tuple[float, ...], plane: str) -> None:
    assert name_plane(orientation) == plane


def test_the_rule_survives_json_and_pickle() -> None:
    rule = SeriesRule(modality=("CT", "MR"), description="t1", plane=("axial",), max_slices=9, per_study="thinnest")
    assert from_json(SeriesRule, to_json(rule)) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule
    with pytest.raises(DataError, match=r"^no field description, "):
        from_json(SeriesRule, {"modality": []})
    with pytest.raises(DataError, match=r"^modality: a text of 2 characters, expected a list"):
        from_json(SeriesRule, to_json(rule) | {"modality": "CT"})  # else the two modalities C and T


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"plane": ("axal",)}, "series.plane=axal: expected one of axial"),
        ({"per_study": "best"}, "series.per_study=best: expected one of all, most_slices"),
        ({"description": "t1("}, "not a regular expression"),
        ({"min_slices": 0}, "expected 1 <= min <= max"),
        ({"min_slices": 5, "max_slices": 4}, "expected 1 <= min <= max"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SeriesRule(**fields)
