"""Rows of series and patients by hand-made numbers, and the frozen choices as evaluation applies them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medcls.data.targets import Task
from medcls.evaluate.choices import Choices
from medcls.identity import Identity
from medcls.predict.prediction_levels import complete_cases, describe_answers, describe_repeats
from medcls.predict.prediction_table import Case, build_rows
from medcls.statistics.assessment import Extras, Rows, assess, choose_calibration, choose_operating, read_decision
from medcls.statistics.predictions import check_predictions
from medcls.statistics.thresholds import NEVER, list_rules

BINARY = Task("binary", ["no", "yes"], ["label"])
COLOURS = Task("multiclass", ["a", "b", "c"], ["label"])
GRADES = Task("ordinal", ["0", "1+2", "3"], ["label"])
FINDINGS = Task("multilabel", ["bright", "low", "wide"], ["label_bright", "label_low", "label_wide"])
COUNTED = Task("regression", ["0", "1", "2"], ["label"], grades=True)


def make_case(patient: str, series: str, *scores: float, **changes: Any) -> Case:
    headers = {"PatientID": patient, "SeriesInstanceUID": series, "StudyInstanceUID": "study"}
    known = {name: value for name, value in headers.items() if value}
    return Case("a.dcm", headers=known, scores=list(scores) or None, **changes)


def make_choices(levels: dict[str, Any], calibration: dict[str, Any] | None = None) -> Choices:
    return Choices({"levels": levels}, calibration or {}, [])


def make_point(threshold: float | None, kind: str = "youden", target: float | None = None) -> dict[str, Any]:
    return {"question": "yes", "kind": kind, "target": target, "threshold": threshold}


def ids(case: Case) -> tuple[str | None, str | None]:
    return case.headers.get("PatientID"), case.headers.get("SeriesInstanceUID")


def test_images_become_series_and_patients_where_the_header_says_whose_they_are() -> None:
    cases = [
        make_case("p2", "s1", 0.25),
        make_case("p1", "s3", 0.5),
        make_case("p2", "s2", 0.75),
        make_case("p2", "s1", 0.5),
        make_case("", "s4", 0.125),
        make_case("p3", "", 0.375),
        Case("photo.png", scores=[0.9]),
        make_case("p2", "s1", state="refused", reason="unseen_modality", detail="MR; training had CT"),
        make_case("p4", "s5", state="refused", reason="not_finite"),
        Case("note.txt", "skipped", "no_image"),
    ]
    everyone = complete_cases(cases, task=BINARY, choices=None)
    assert everyone[: len(cases)] == cases
    found = [(one.level, *ids(one), one.images, one.scores) for one in everyone[len(cases) :]]
    assert found == [
        ("series", "p2", "s1", 2, [0.375]),
        ("series", "p1", "s3", 1, [0.5]),
        ("series", "p2", "s2", 1, [0.75]),
        ("series", "", "s4", 1, [0.125]),
        ("patient", "p2", None, 3, [0.5]),
        ("patient", "p1", None, 1, [0.5]),
        ("patient", "p3", None, 1, [0.375]),
    ]
    assert {(one.state, one.aggregation, one.path) for one in everyone[len(cases) :]} == {("ok", "mean", "")}
    details = [one.detail for one in everyone[len(cases) :]]
    assert details == ["1 more of its images refused", "", "", "", "1 more of its images refused", "", ""]


def test_a_series_number_of_two_patients_is_no_series_of_both() -> None:
    cases = [make_case("p1", "s", 0.25), make_case("p2", "s", 0.75)]
    series = [one for one in complete_cases(cases, task=BINARY, choices=None) if one.level == "series"]
    assert [(ids(one)[0], one.scores) for one in series] == [("p1", [0.25]), ("p2", [0.75])]


def test_what_was_noted_of_an_image_is_noted_of_its_patient() -> None:
    noted = {"reason": "unseen_modality", "detail": "MR; training had CT"}
    cases = [make_case("p", "s", 0.5), make_case("p", "s", 0.5, **noted), make_case("p", "s", 0.5, **noted)]
    patient = complete_cases(cases, task=BINARY, choices=None)[-1]
    assert (patient.level, patient.reason, patient.detail) == ("patient", *noted.values())


@pytest.mark.parametrize(("rule", "score"), [("mean", 0.375), ("max", 0.5), ("noisy_or", 0.625)])
def test_the_rule_chosen_for_patients_makes_their_scores(rule: str, score: float) -> None:
    choices = make_choices({"image": {"points": []}, "patient": {"aggregation": {"rule": rule}, "points": []}})
    cases = [make_case("p", "s", 0.25), make_case("p", "s", 0.5)]
    series, patient = complete_cases(cases, task=BINARY, choices=choices)[2:]
    assert (patient.aggregation, patient.scores) == (rule, pytest.approx([score]))
    assert (series.aggregation, series.scores) == ("mean", [0.375])  # nothing is chosen for series


def test_points_are_those_of_the_rows_own_level() -> None:
    image = [make_point(0.25), make_point(0.5, "sensitivity", 0.95), make_point(None, "cost", 5)]
    patient = [make_point(0.75), make_point(0.375, "sensitivity", 0.95), make_point(None, "cost", 5)]
    choices = make_choices({"image": {"points": image}, "patient": {"points": patient}})
    cases = [make_case("p", "s", 0.25), make_case("p", "s", 0.5), Case("b", "refused", "colour")]
    chosen = [list(one.chosen.items()) for one in complete_cases(cases, task=BINARY, choices=choices)]
    names = ("above_youden", "above_sensitivity_0.95", "above_cost_5")
    # From the threshold on; images by theirs, the refused file and the series by none, the patient by its own.
    expected = [(True, False, None), (True, True, None), (None,) * 3, (None,) * 3, (False, True, None)]
    assert chosen == [list(zip(names, row, strict=True)) for row in expected]


def test_recalibrated_scores_stand_beside_those_of_images() -> None:
    # Odds times three: 1/4 becomes 1/2, 1/2 becomes 3/4.
    maps = [{"method": "none"}, {"method": "platt", "columns": [{"slope": 1.0, "intercept": float(np.log(3))}]}]
    levels = {"image": {"points": [make_point(0.3)]}}
    cases = [make_case("p", "s", 0.25), make_case("p", "s", 0.5), Case("b", "refused", "colour")]
    choices = make_choices(levels, {"chosen": {"method": "platt"}, "map": maps[1]})
    chosen = [one.chosen for one in complete_cases(cases, task=BINARY, choices=choices)]
    limit = {"calibrated_threshold": 0.9 / 1.6}  # odds 3/7 times three: called as by the score itself
    assert chosen[0] == pytest.approx({"calibrated_no": 0.5, "calibrated_yes": 0.5, "above_youden": False} | limit)
    assert chosen[1] == pytest.approx({"calibrated_no": 0.25, "calibrated_yes": 0.75, "above_youden": True} | limit)
    names = ("calibrated_no", "calibrated_yes", "calibrated_threshold", "above_youden")
    assert chosen[2:] == [dict.fromkeys(names)] * 3

    choices = make_choices(levels, {"chosen": {"method": "none"}, "map": maps[0]})
    assert [list(one.chosen) for one in complete_cases(cases, task=BINARY, choices=choices)] == [["above_youden"]] * 5


def test_a_row_is_called_by_the_frozen_threshold_and_names_it() -> None:
    """Score 0.25 reaches the frozen 0.213: what the row is called and above_youden agree."""
    patient = {"aggregation": {"rule": "mean"}, "points": [make_point(0.4)]}
    choices = make_choices({"image": {"points": [make_point(0.213)]}, "patient": patient})
    cases = [make_case("p", "s", 0.25), make_case("p", "s", 0.125), Case("b", "refused", "colour")]
    everyone = complete_cases(cases, task=BINARY, choices=choices)
    rows = build_rows(everyone, task=BINARY, identity=Identity(), origin={})
    found = [(row["level"], row["predicted"], row["rule"], row["threshold"], row["above_youden"]) for row in rows]
    assert found == [
        ("image", "yes", "youden", 0.213, True),
        ("image", "no", "youden", 0.213, False),
        ("image", None, None, None, None),
        ("series", "no", "youden", 0.213, None),  # 0.1875; nothing is frozen for series: as images
        ("patient", "no", "youden", 0.4, False),
    ]


def test_answers_are_counted_with_rule_and_threshold_and_nobody_is_said_plainly() -> None:
    cases = [make_case("p", f"s{score}", score) for score in (0.2, 0.42, 0.5)] + [Case("note.txt", "skipped")]
    choices = make_choices({"image": {"points": [make_point(0.42)]}})
    everyone = complete_cases(cases, task=BINARY, choices=choices)
    assert describe_answers(everyone, BINARY) == ["yes: 2 of 3 images, rule youden, threshold 0.420"]
    low = complete_cases([make_case("p", "s", 0.2)], task=BINARY, choices=choices)
    assert describe_answers(low, BINARY) == [
        "yes: 0 of 1 image, rule youden, threshold 0.420",
        "No image was called yes (1 image).",
    ]
    classes = complete_cases([make_case("p", "s", 0.2, 0.5, 0.3)], task=COLOURS, choices=None)
    assert describe_answers(classes, COLOURS)[:2] == [
        "a: 0 of 1 image, rule highest",
        "b: 1 of 1 image, rule highest",
    ]
    assert describe_answers([Case("note.txt", "skipped")], BINARY) == []


def test_without_frozen_choices_a_half_decides_and_says_so() -> None:
    rows = build_rows(
        complete_cases([make_case("", "", 0.5)], task=BINARY, choices=None), task=BINARY, identity=Identity(), origin={}
    )
    assert [(row["predicted"], row["rule"], row["threshold"]) for row in rows] == [("yes", "half", 0.5)]


def test_labels_have_a_threshold_each_and_grades_of_a_value_are_rounded() -> None:
    points = [
        make_point(t) | {"question": name} for name, t in zip(FINDINGS.class_names, (0.1, 0.9, None), strict=True)
    ]
    points[2]["reason"] = NEVER
    cases = complete_cases(
        [make_case("", "", 0.2, 0.8, 1.0)], task=FINDINGS, choices=make_choices({"image": {"points": points}})
    )
    (row,) = build_rows(cases, task=FINDINGS, identity=Identity(), origin={})
    assert row["predicted"] == "bright"
    assert [row[f"threshold_{name}"] for name in FINDINGS.class_names] == [0.1, 0.9, None]
    (row,) = build_rows(
        complete_cases([make_case("", "", 1.5)], task=COUNTED, choices=None),
        task=COUNTED, identity=Identity(), origin={},
    )  # fmt: skip
    assert (row["predicted"], row["grade"], row["rule"]) == (1.5, "2", "rounded")


def draw_rows(task: Task, *, seed: int) -> tuple[Rows, list[Case]]:
    """40 patients of three images with some signal, and the same as predict's cases."""
    generator = np.random.default_rng(seed)
    patients = [f"p{i:02d}" for i in range(40) for _ in range(3)]
    grade = np.repeat(generator.integers(0, 2 if task.kind == "binary" else 3, 40), 3)
    noise = generator.normal(size=(120, 3))
    if task.kind == "multilabel":
        true: Any = (generator.random((120, 3)) < 0.4).astype(float)
        scores = 1 / (1 + np.exp(-true - noise))
    elif task.kind in ("binary", "regression"):
        true, value = grade, (grade + noise[:, 0])[:, None]
        scores = 1 / (1 + np.exp(-value)) if task.kind == "binary" else value
    else:
        true, odds = grade, np.exp(noise + 1.5 * np.eye(3)[grade])
        scores = odds / odds.sum(axis=1, keepdims=True)
    rows = Rows(check_predictions(task.kind, true, scores, class_names=task.class_names, grades=task.grades), patients)
    cases = [make_case(patient, "s", *score) for patient, score in zip(patients, scores.tolist(), strict=True)]
    return rows, cases


@pytest.mark.parametrize("task", [BINARY, COLOURS, GRADES, FINDINGS, COUNTED], ids=lambda task: task.kind)
def test_rows_above_a_point_are_as_many_as_evaluation_counts(task: Task) -> None:
    chosen_on, _ = draw_rows(task, seed=0)
    operating = choose_operating(chosen_on, rules=list_rules(sensitivity=[0.9], specificity=[0.8], cost=[3]))
    calibration = choose_calibration(chosen_on, alpha=0.1, seed=0)
    rows, cases = draw_rows(task, seed=1)
    rows = replace(rows, predictions=read_decision(operating, rows.predictions).apply(rows.predictions))
    metrics = assess(rows, operating=operating, calibration=calibration, extras=Extras({}), replicates=2)
    everyone = complete_cases(cases, task=task, choices=Choices(operating, calibration, []))

    expected = {"image": metrics["operating_points"], "patient": metrics["levels"]["patient"]["operating_points"]}
    rule = metrics["levels"]["patient"]["rule"]
    assert {one.aggregation for one in everyone if one.level == "patient"} == {rule}
    questions = {"binary": 1, "regression": 2}.get(task.kind, 3)
    for level, points in expected.items():
        columns = [one.chosen for one in everyone if one.level == level]
        assert len(columns) == {"image": 120, "patient": 40}[level]
        assert len(points) == 4 * questions
        for point in points:
            name = {"youden": "youden", "sensitivity": "sensitivity_0.9", "specificity": "specificity_0.8"}.get(
                point["kind"], "cost_3"
            )
            name = name if task is BINARY else f"{point['question']}_{name}"
            above = [row[f"above_{name}"] for row in columns]
            assert above.count(True) == point["counts"]["tp"] + point["counts"]["fp"]
            assert above.count(False) == point["counts"]["fn"] + point["counts"]["tn"]
    if task is BINARY:
        assert [one.predicted for one in everyone if one.level == "image"] == [
            BINARY.class_names[grade] for grade in rows.predictions.grade_predicted
        ]


def test_same_pixels_count_once_in_series_and_patient() -> None:
    cases = [
        make_case("p1", "s1", 0.2, pixel_sha256="a"),
        make_case("p1", "s1", 0.8, pixel_sha256="b"),
        make_case("p1", "s1", 0.8, pixel_sha256="b"),
        make_case("p2", "s2", 0.8, pixel_sha256="b"),
    ]
    everyone = complete_cases(cases, task=BINARY, choices=None)
    found = [(one.level, *ids(one), one.images, one.scores) for one in everyone[4:]]
    assert found == [
        ("series", "p1", "s1", 2, [0.5]),
        ("series", "p2", "s2", 1, [0.8]),
        ("patient", "p1", None, 2, [0.5]),
        ("patient", "p2", None, 1, [0.8]),
    ]
    (notice,) = describe_repeats(everyone)
    assert notice.startswith("2 of 4 images have the same pixels as another one")


def test_images_of_several_studies_and_volumes_of_one_series_are_said_where_they_are_combined() -> None:
    cases = [make_case("p1", series, score, files=("a",)) for series, score in (("s1", 0.2), ("s1", 0.4), ("s2", 0.9))]
    cases[2].headers["StudyInstanceUID"] = "another"
    everyone = complete_cases(cases, task=BINARY, choices=None)
    assert [(one.level, one.images, one.detail) for one in everyone[3:]] == [
        ("series", 2, "2 volumes of one series, combined by mean"),
        ("series", 1, ""),
        ("patient", 3, "images of 2 studies, combined by mean"),
    ]
    studies, volumes = describe_repeats(everyone)
    assert studies.startswith("1 patient with images of several studies")
    assert volumes.startswith("1 series of several volumes")
