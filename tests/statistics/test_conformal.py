from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit

from medcls.report.assessed_tables import build_conformal_tables
from medcls.statistics.conformal import (
    build_sets,
    calibrate_conformal,
    compute_risk_coverage,
    evaluate_conformal,
    list_problems,
)
from medcls.statistics.predictions import check_predictions

NAMES = ("well", "ill")


def draw(generator, patients, *, each=1):
    """Binary rows whose patients differ from one another more than their images do."""
    number = generator.integers(1, each + 1, patients)
    patient = np.repeat(np.arange(patients), number)
    eta = np.repeat(generator.normal(0, 1.5, patients), number)
    true = (np.repeat(generator.random(patients), number) < expit(eta)).astype(int)
    score = expit(eta + generator.normal(0, 0.6, len(eta)))
    return check_predictions("binary", true, score, class_names=NAMES), patient


def test_one_image_a_patient_is_the_textbook_quantile():
    predictions, patient = draw(np.random.default_rng(0), 99)
    frozen = calibrate_conformal(predictions, patient, alpha=0.1)
    misfit = np.where(predictions.y_true == 1, 1 - predictions.y_score[:, 0], predictions.y_score[:, 0])
    assert frozen["problems"][0]["bound"] == pytest.approx(np.sort(misfit)[90 - 1])  # ceil(100 * 0.9) = 90th
    ill = np.sort(misfit[predictions.y_true == 1])
    rank = int(np.ceil((len(ill) + 1) * 0.9))
    assert frozen["problems"][0]["by_class"]["ill"] == pytest.approx(ill[rank - 1])


def test_a_patient_with_many_images_weighs_as_one():
    predictions, patient = draw(np.random.default_rng(1), 60)
    copies = np.where(patient == 3, 7, 1)
    many = check_predictions(
        "binary", predictions.y_true.repeat(copies), predictions.y_score.repeat(copies, axis=0), class_names=NAMES
    )
    once, often = (calibrate_conformal(p, q) for p, q in ((predictions, patient), (many, patient.repeat(copies))))
    assert once == often


def simulate(times, *, alpha, each):
    generator = np.random.default_rng(5)
    covered = {"marginal": [], "well": [], "ill": []}
    for _ in range(times):
        chosen, here = draw(generator, 60, each=each), draw(generator, 60, each=each)
        frozen = calibrate_conformal(*chosen, alpha=alpha)["problems"][0]
        (problem,) = list_problems(here[0])
        share = 1 / np.bincount(here[1])[here[1]]
        rows = np.arange(len(problem.true))
        held = build_sets(problem, frozen, by_class=False)[rows, problem.true]
        covered["marginal"].append(np.average(held, weights=share))
        held = build_sets(problem, frozen, by_class=True)[rows, problem.true]
        for k, name in enumerate(NAMES):
            at = problem.true == k
            covered[name].append(np.average(held[at], weights=share[at]))
    return {name: float(np.mean(values)) for name, values in covered.items()}


@pytest.mark.parametrize("each", [1, 4])
def test_the_promise_is_kept_over_new_patients(each):
    """Never below the promise beyond the error of the simulation, and not far above: 60 patients allow 1 / 61."""
    found = simulate(300, alpha=0.2, each=each)
    assert 0.79 <= found["marginal"] <= 0.83
    assert all(0.785 <= found[name] <= 0.86 for name in NAMES)


@pytest.mark.slow
def test_the_promise_is_kept_over_many_new_patients():
    found = simulate(5000, alpha=0.1, each=4)
    assert 0.898 <= found["marginal"] <= 0.92
    assert all(0.895 <= found[name] <= 0.95 for name in NAMES)


def test_too_few_patients_promise_nothing_and_keep_every_class():
    predictions, patient = draw(np.random.default_rng(2), 8)
    frozen = json.loads(json.dumps(calibrate_conformal(predictions, patient, alpha=0.1)))
    assert frozen["problems"][0]["bound"] is None
    (problem,) = list_problems(predictions)
    assert build_sets(problem, frozen["problems"][0], by_class=False).all()


def test_referral_by_hand():
    """Bounds 0.4: sets {ill}, {} , {well}, {well} for P(ill) 0.9, 0.5, 0.1, 0.3; patient b has two images."""
    predictions = check_predictions("binary", [1, 1, 0, 1], [0.9, 0.5, 0.1, 0.3], class_names=NAMES)
    bounds = {"label": "", "bound": 0.4, "by_class": {"well": 0.4, "ill": 0.4}}
    frozen = {"alpha": 0.1, "assumption": "", "problems": [bounds]}
    (found,) = evaluate_conformal(predictions, frozen, ["a", "b", "b", "c"], replicates=100)
    by_class = {name: entry["value"] for name, entry in found["by_class"].items()}
    assert by_class["coverage"] == pytest.approx((1 + (0 + 1) / 2 + 0) / 3)
    assert by_class["coverage_ill"] == pytest.approx((1 + 0 * 0.5 + 0) / 2.5)
    assert by_class["referred"] == pytest.approx(0.5 / 3)
    assert by_class["referred_well"] == 0
    assert by_class["right_if_kept"] == pytest.approx((1 + 0.5 + 0) / 2.5)
    assert by_class["size"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert "referred" not in found["marginal"]


def test_all_referred_leaves_nothing_to_be_right_about():
    predictions = check_predictions("binary", [1, 0], [0.5, 0.5], class_names=NAMES)
    frozen = {"alpha": 0.1, "problems": [{"label": "", "bound": None, "by_class": {"well": None, "ill": None}}]}
    (found,) = evaluate_conformal(predictions, frozen, ["a", "b"], replicates=100)
    assert found["by_class"]["right_if_kept"] == {
        "value": None, "low": None, "high": None, "reason": "no image is kept",
    }  # fmt: skip


def test_each_label_has_sets_of_its_own(make_task, make_patients):
    predictions = check_predictions(**make_task("multilabel"))
    frozen = calibrate_conformal(predictions, np.arange(60) // 2)
    found = evaluate_conformal(predictions, frozen, make_patients(60), replicates=100)
    assert [entry["label"] for entry in found] == list(predictions.class_names)
    assert found[1]["classes"] == ["no KL1", "KL1"]
    assert list_problems(check_predictions(**make_task("regression"))) == []


def test_errors_left_by_certainty():
    predictions = check_predictions("binary", [1, 1, 0, 0], [0.95, 0.2, 0.4, 0.55], class_names=NAMES)
    kept, wrong = compute_risk_coverage(predictions)
    assert kept.tolist() == [0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose(wrong, [0, 1 / 2, 1 / 3, 2 / 4])


def test_coverage_below_the_promise_beyond_chance_is_said_and_only_then():
    frozen = calibrate_conformal(*draw(np.random.default_rng(0), 99))
    here, patient = draw(np.random.default_rng(1), 200)
    turned = check_predictions("binary", 1 - here.y_true, here.y_score, class_names=NAMES)
    captions = []
    for predictions in (here, turned):
        problems = evaluate_conformal(predictions, frozen, [f"p{k}" for k in patient], replicates=200)
        assert problems[0]["unbounded"] == []
        measured = {"alpha": 0.1, "assumption": "", "problems": problems}
        captions.append(build_conformal_tables({"conformal": measured})[0].caption)
    assert ["The promise is not kept here" in caption for caption in captions] == [False, True]
    assert "(true class ill, its own bound): the interval 0." in captions[1]


def test_as_many_patients_as_are_said_to_be_needed_set_a_bound():
    for alpha in (0.05, 0.1, 0.2):
        needed = []
        for patients in range(1, 40):
            true = np.ones(patients)
            predictions = check_predictions("binary", true, np.full(patients, 0.7), class_names=NAMES)
            frozen = calibrate_conformal(predictions, np.arange(patients), alpha=alpha)
            found = evaluate_conformal(predictions, frozen, [f"p{k}" for k in range(patients)], replicates=20)
            unbounded = {entry["class"]: entry for entry in found[0]["unbounded"]}
            assert unbounded["well"]["patients"] == 0
            if "ill" in unbounded:
                assert unbounded["ill"]["patients"] == patients
                needed.append(unbounded["ill"]["needed"])
        assert needed == [len(needed) + 1] * len(needed)
