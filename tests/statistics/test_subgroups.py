from __future__ import annotations

import numpy as np
import pytest

from medcls.statistics.intervals import measure_predictions
from medcls.statistics.predictions import check_predictions
from medcls.statistics.subgroups import UNKNOWN, compute_subgroups, name_age_band


@pytest.mark.parametrize(
    ("age", "band"),
    [
        *[(0, "0–17"), (17.9, "0–17"), (18, "18–39"), (40, "40–59"), (79, "60–79"), (80, "80+"), (101, "80+")],
        *[(None, None), (float("nan"), None), (-1, None)],
    ],
)
def test_age_bands(age, band):
    assert name_age_band(age) == band


def test_a_group_has_the_numbers_of_its_rows_alone(make_task, make_patients):
    task, patients = make_task("binary"), make_patients(60)
    predictions = check_predictions(**task)
    sex = ["F" if row < 30 else "M" for row in range(60)]
    groups = compute_subgroups(predictions, patients, {"sex": sex}, least_patients=5, replicates=100, seed=3)
    assert [(g["value"], g["n_images"], g["n_patients"]) for g in groups] == [("F", 30, 15), ("M", 30, 15)]
    half = check_predictions(**(task | {name: task[name][30:] for name in ("y_true", "y_score")}))
    alone = measure_predictions(half, patients[30:], replicates=100, seed=3)
    assert groups[1]["metrics"] == {name: alone[name] for name in ("auc", "sensitivity", "specificity", "brier")}


def test_the_frozen_threshold_decides_sensitivity_and_nothing_else(make_task, make_patients):
    predictions = check_predictions(**make_task("binary"))
    sex = ["F", "M"] * 30
    plain, frozen = (
        compute_subgroups(
            check_predictions(**make_task("binary"), thresholds=t), [str(i) for i in range(60)], {"sex": sex},
            replicates=100,
        )
        for t in ((), [0.2])
    )  # fmt: skip
    rows = np.arange(60) % 2 == 0
    called = predictions.y_score[rows, 0] >= 0.2
    expected = called[predictions.y_true[rows] == 1].mean()
    assert frozen[0]["metrics"]["sensitivity"]["value"] == pytest.approx(expected)
    assert frozen[0]["metrics"]["sensitivity"] != plain[0]["metrics"]["sensitivity"]
    assert frozen[0]["metrics"]["auc"] == plain[0]["metrics"]["auc"]
    assert frozen[0]["metrics"]["brier"] == plain[0]["metrics"]["brier"]


def test_few_patients_are_suppressed_however_many_images(make_task):
    predictions = check_predictions(**make_task("binary"))
    patients = ["one"] * 40 + [str(row) for row in range(20)]
    site = ["A"] * 40 + ["B"] * 20
    groups = compute_subgroups(predictions, patients, {"site": site}, least_patients=20, replicates=100)
    assert (groups[0]["n_images"], groups[0]["n_patients"], groups[0]["metrics"]) == (40, 1, {})
    assert groups[0]["reason"] == "fewer than 20 patients: suppressed"
    assert "reason" not in groups[1]


def test_values_that_are_not_recorded_are_a_group_at_the_end(make_task):
    predictions = check_predictions(**make_task("binary"))
    values = [None, "", "z"] * 20
    groups = compute_subgroups(predictions, [str(i) for i in range(60)], {"x": values}, replicates=100)
    assert [(g["value"], g["n_images"]) for g in groups] == [("z", 20), (UNKNOWN, 40)]


def test_one_value_is_no_group_and_many_are_none(make_task, make_patients):
    predictions = check_predictions(**make_task("binary"))
    columns = {"modality": ["DX"] * 60, "row": list(range(60))}
    (entry,) = compute_subgroups(predictions, make_patients(60), columns, replicates=100)
    assert (entry["column"], entry["reason"]) == ("row", "60 values: more than 20 are not groups")


@pytest.mark.parametrize("kind", ["multiclass", "ordinal", "multilabel", "regression"])
def test_a_group_without_a_class_says_so(kind, make_task, make_patients):
    predictions = check_predictions(**make_task(kind))
    lowest = np.arange(60) % 4 == 0  # of class KL0 alone
    groups = compute_subgroups(
        predictions, [str(i) for i in range(60)], {"x": lowest.tolist()}, least_patients=10, replicates=100
    )
    pure = next(group for group in groups if group["value"] == "True")
    if kind != "multilabel":
        assert pure["metrics"]["auc"]["value"] is None
        assert "no image of class KL1" in pure["metrics"]["auc"]["reason"]
    assert pure["metrics"]
