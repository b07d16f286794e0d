from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from medcls.statistics.assessment import Extras, Rows, assess, choose_calibration, choose_operating, describe_few
from medcls.statistics.intervals import measure_predictions
from medcls.statistics.predictions import KINDS, check_predictions
from medcls.statistics.thresholds import list_rules

RULES = list_rules(sensitivity=[0.9], specificity=[], cost=[])


@pytest.fixture
def make_rows(make_task, make_patients):
    """Rows of 60 images, two a patient, one a study; or with other patients and studies."""

    def make(kind, *, seed=0, patient_ids=None, study_ids=()):
        return Rows(check_predictions(**make_task(kind, seed=seed)), patient_ids or make_patients(60), study_ids)

    return make


def choose(rows):
    """What is frozen, through JSON as a run keeps it."""
    chosen = choose_operating(rows, rules=RULES), choose_calibration(rows, alpha=0.2, seed=0)
    return [json.loads(json.dumps(part, allow_nan=False)) for part in chosen]


def measure(rows, operating, calibration, **options):
    found = assess(
        rows, operating=operating, calibration=calibration, extras=Extras({"sex": ["F", "M"] * 30}, **options),
        replicates=100,
    )  # fmt: skip
    return json.loads(json.dumps(found, allow_nan=False))


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_is_chosen_for_and_measured(kind, make_rows):
    found = measure(make_rows(kind, seed=1), *choose(make_rows(kind)), least_patients=10)
    assert found["operating_points"]
    assert len(found["subgroups"]) == 2
    assert ("recalibration" in found) == (kind != "regression")
    if kind != "regression":
        # 30 patients bear a temperature, of labels that only few of them have nothing.
        assert set(found["recalibration"]["methods"]) == ({"none"} if kind == "multilabel" else {"none", "temperature"})
        assert len(found["conformal"]["problems"]) == (4 if kind == "multilabel" else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_and_one_patient_are_null_with_reasons(kind, make_rows):
    rows = make_rows(kind, patient_ids=["one"] * 60)
    empty = replace(rows, predictions=replace(rows.predictions, y_true=0 * np.nan_to_num(rows.predictions.y_true)))
    found = measure(empty, *choose(empty))
    assert all(point["threshold"] is None and point["reason"] for point in found["operating_points"])
    assert [group["reason"] for group in found["subgroups"]] == ["fewer than 20 patients: suppressed"] * 2
    if kind == "binary":
        auc = found["recalibration"]["methods"]["none"]["auc"]
        assert (auc["value"], auc["reason"]) == (None, "no image of class ill")
        assert found["conformal"]["problems"][0]["by_class"]["coverage"]["low"] is None


def test_thresholds_come_from_where_they_were_chosen_alone(make_rows):
    """The rows that are measured on, turned round, move no threshold."""
    frozen = choose(make_rows("binary"))
    here = make_rows("binary", seed=1)
    turned = replace(here, predictions=replace(here.predictions, y_true=1 - here.predictions.y_true))
    one, two = (measure(rows, *frozen)["operating_points"] for rows in (here, turned))
    assert [point["threshold"] for point in one] == [point["threshold"] for point in two]
    assert one[0]["rates"] != two[0]["rates"]


def test_few_patients_name_every_choice_that_may_be_chance():
    levels = {"image": {"points": []}, "patient": {"aggregation": {"rule": "noisy_or"}}}
    chosen_on = {"split": "val", "patients_by_class": {"healthy": 12, "tumour": 5}}
    of_run = describe_few({"chosen_on": chosen_on, "levels": levels})
    assert of_run == [
        "few patients made the choices: split val has 5 patients of class tumour (fewer than 10): epoch, thresholds "
        "and the rule by which images become patients (noisy-or, the chance that at least one image is positive if "
        "images are independent) may be chance"
    ]
    of_file = describe_few({"chosen_on": chosen_on | {"split": "the file val.csv", "frozen": "unknown"}, "levels": {}})
    assert of_file == [
        "few patients made the choices: the file val.csv has 5 patients of class tumour (fewer than 10): "
        "thresholds may be chance"
    ]
    labels = {"chosen_on": {"split": "val", "patients_by_class": {"oedema": 1, "no oedema": 30}}, "levels": {}}
    assert "split val has 1 patient with oedema (fewer than 10)" in describe_few(labels)[0]
    assert describe_few({"chosen_on": {"split": "val"}}) == describe_few({}) == []


def test_levels_are_those_that_differ(make_rows):
    studies = [f"s{row // 3}" for row in range(60)]
    six = [f"p{row // 6}" for row in range(60)]
    levels = make_rows("binary", patient_ids=six, study_ids=studies).list_units()
    assert {name: int(units.max()) + 1 for name, units in levels.items()} == {"study": 20, "patient": 10}
    assert list(make_rows("binary", study_ids=[None, *studies[1:]]).list_units()) == ["patient"]
    assert list(make_rows("binary", patient_ids=six, study_ids=six).list_units()) == ["patient"]
    assert make_rows("binary", patient_ids=[str(row) for row in range(60)]).list_units() == {}


def test_the_same_study_name_of_two_patients_is_two_studies(make_rows):
    six = [f"p{row // 6}" for row in range(60)]
    levels = make_rows("binary", patient_ids=six, study_ids=["first", "first", "first", "later", "later", "later"] * 10)
    assert int(levels.list_units()["study"].max()) + 1 == 20


def test_patients_have_the_numbers_of_joined_images(make_rows):
    rows = make_rows("ordinal")
    operating, calibration = choose(rows)
    operating["levels"]["patient"]["aggregation"]["rule"] = "max"
    level = measure(rows, operating, calibration)["levels"]["patient"]
    true = rows.predictions.y_true.reshape(30, 2).max(axis=1)
    score = rows.predictions.y_score.reshape(30, 2, 4)
    above = score[..., ::-1].cumsum(axis=-1)[..., ::-1][..., 1:].max(axis=1)
    joined = np.hstack([np.ones((30, 1)), above]) - np.hstack([above, np.zeros((30, 1))])
    one = check_predictions("ordinal", true, joined, class_names=rows.predictions.class_names)
    alone = measure_predictions(one, sorted(set(rows.patient_ids)), replicates=100)
    assert (level["rule"], level["chosen"], level["n_units"]) == ("max", True, 30)
    assert level["metrics"]["mae"]["value"] == pytest.approx(alone["mae"]["value"])
    assert level["metrics"]["auc"]["value"] == pytest.approx(alone["auc"]["value"])


def test_a_level_that_did_not_occur_before_is_the_mean_and_says_so(make_rows):
    frozen = choose(make_rows("binary", patient_ids=[str(row) for row in range(60)]))
    level = measure(make_rows("binary", seed=1), *frozen)["levels"]["patient"]
    assert (level["rule"], level["chosen"], level["operating_points"]) == ("mean", False, [])


def test_nothing_frozen_measures_what_it_can(make_rows):
    found = measure(make_rows("binary"), {}, {})
    assert found["operating_points"] == []
    assert "recalibration" not in found
    assert found["subgroups"]
