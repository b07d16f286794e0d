from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_curve

from medcls.statistics.curves import Question
from medcls.statistics.intervals import measure_predictions, number_patients
from medcls.statistics.predictions import check_predictions
from medcls.statistics.thresholds import (
    NEVER,
    Rule,
    apply_operating_points,
    choose_operating_points,
    choose_threshold,
    list_rules,
)


def ask(positive, score):
    positive = np.asarray(positive, dtype=bool)
    return Question("ill", "", positive, np.asarray(score, dtype=float), np.arange(len(positive)))


def draw(seed, *, rows=80, ties=False):
    generator = np.random.default_rng(seed)
    positive = generator.random(rows) < 0.4
    score = generator.normal(size=rows) + positive
    return positive, np.round(score) if ties else score


def rates(positive, score, threshold):
    called = score >= threshold
    return (called & positive).sum() / positive.sum(), (~called & ~positive).sum() / (~positive).sum()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_each_rule_is_the_best_of_all_thresholds_that_meet_it(seed, ties):
    positive, score = draw(seed, ties=ties)
    everything = [(t, *rates(positive, score, t)) for t in [np.inf, *np.unique(score)]]
    question = ask(positive, score)

    youden = choose_threshold(question, Rule("youden"))
    assert sum(rates(positive, score, youden)) == pytest.approx(max(se + sp for _, se, sp in everything))

    found = rates(positive, score, choose_threshold(question, Rule("sensitivity", 0.9)))
    assert found[0] >= 0.9
    assert found[1] == max(sp for _, se, sp in everything if se >= 0.9)

    threshold = choose_threshold(question, Rule("specificity", 0.9))
    found = rates(positive, score, np.inf if threshold is None else threshold)
    assert found[1] >= 0.9
    assert found[0] == max(se for _, se, sp in everything if sp >= 0.9)

    threshold = choose_threshold(question, Rule("cost", 5.0))
    cost = [5 * (1 - se) * positive.sum() + (1 - sp) * (~positive).sum() for _, se, sp in everything]
    se, sp = rates(positive, score, np.inf if threshold is None else threshold)
    assert 5 * (1 - se) * positive.sum() + (1 - sp) * (~positive).sum() == pytest.approx(min(cost))


def test_youden_is_that_of_scikit_learn():
    positive, score = draw(7, rows=400)
    false_positive_rate, sensitivity, thresholds = roc_curve(positive, score, drop_intermediate=False)
    expected = thresholds[np.argmax(sensitivity - false_positive_rate)]
    assert choose_threshold(ask(positive, score), Rule("youden")) == expected


def test_a_dearer_miss_lowers_the_threshold():
    question = ask(*draw(3, rows=300))
    cheap, dear = (choose_threshold(question, Rule("cost", cost)) for cost in (0.5, 10.0))
    assert dear < cheap


def test_no_threshold_where_only_calling_nobody_meets_the_rule():
    question = ask([0, 1, 0], [0.9, 0.5, 0.1])
    assert choose_threshold(question, Rule("specificity", 0.99)) is None
    predictions = check_predictions("binary", [0, 1, 0], [0.9, 0.5, 0.1], class_names=("well", "ill"))
    (point,) = choose_operating_points(predictions, [Rule("specificity", 0.99)])
    assert (point["threshold"], point["reason"]) == (None, NEVER)
    assert point["seen"] == {"sensitivity": 0.0, "specificity": 1.0}


def test_an_absent_class_has_no_threshold_but_a_reason():
    with pytest.raises(ValueError, match="no negative row to choose a threshold on"):
        choose_threshold(ask([1, 1], [0.2, 0.3]), Rule("youden"))
    predictions = check_predictions("binary", [1, 1], [0.2, 0.3], class_names=("well", "ill"))
    (point,) = choose_operating_points(predictions, [Rule("youden")])
    assert (point["threshold"], point["reason"]) == (None, "nothing but cases where it was chosen")


def test_unknown_rule_and_missing_target():
    question = ask([0, 1], [0.2, 0.3])
    with pytest.raises(ValueError, match="expected one of youden"):
        choose_threshold(question, Rule("best"))
    with pytest.raises(ValueError, match="needs a target"):
        choose_threshold(question, Rule("sensitivity"))


def test_the_frozen_threshold_is_applied_unchanged(make_task, make_patients):
    rules = list_rules(sensitivity=[0.9], specificity=[0.9], cost=[2.0])
    chosen = choose_operating_points(check_predictions(**make_task("binary", seed=1)), rules)
    here = check_predictions(**make_task("binary", seed=2, rows=90))
    patients = np.unique(make_patients(90), return_inverse=True)[1]
    applied = apply_operating_points(here, json.loads(json.dumps(chosen)), patients, prevalences=[0.1], replicates=100)
    assert [point["threshold"] for point in applied] == [point["threshold"] for point in chosen]
    for point in applied:
        called = here.y_score[:, 0] >= point["threshold"]
        tn, fp, fn, tp = confusion_matrix(here.y_true, called).ravel().tolist()
        assert point["counts"] == {"tp": tp, "fn": fn, "fp": fp, "tn": tn}
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        entry = point["rates"]["sensitivity"]
        assert entry["value"] == pytest.approx(sensitivity)
        assert entry["low"] <= entry["value"] <= entry["high"]
        expected = sensitivity * 0.1 / (sensitivity * 0.1 + (1 - specificity) * 0.9)
        assert point["rates"]["ppv_at_0.1"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
@pytest.mark.parametrize("each", [1, 3])
def test_a_rate_at_the_threshold_of_the_decision_has_one_interval_on_the_page(kind, each):
    """Also if a class is so rare that some resamples of the patients have none of it."""
    generator = np.random.default_rng(5)
    ids = [f"p{row // each}" for row in range(40 * each)]
    true = np.repeat(generator.random((40, 2)) < 0.06, each, axis=0)
    true[: 2 * each] = True
    score = np.clip(0.2 + 0.3 * true + 0.3 * generator.random(true.shape), 0, 1)
    if kind == "binary":
        true, score = true[:, 0].astype(int), score[:, 0]
    names = ("well", "ill") if kind == "binary" else ("a", "b")
    thresholds = (0.42,) * (1 if kind == "binary" else 2)
    one = check_predictions(kind, true, score, class_names=names, thresholds=thresholds)
    metrics = measure_predictions(one, ids, replicates=300, seed=2)
    questions = names[1:] if kind == "binary" else names
    points = [{"question": q, "kind": "youden", "target": None, "threshold": 0.42} for q in questions]
    patients = number_patients(ids, rows=len(ids))
    for point in apply_operating_points(one, points, patients, replicates=300, seed=2):
        suffix = "" if kind == "binary" else f"_{point['question']}"
        for rate, entry in point["rates"].items():
            name = f"recall{suffix}" if suffix and rate == "sensitivity" else f"{rate}{suffix}"
            assert {key: metrics[name][key] for key in ("value", "low", "high")} == pytest.approx(
                {key: entry[key] for key in ("value", "low", "high")}
            ), name


def test_a_rate_of_one_patient_names_whose_it_is(make_task):
    """One case with two images: nothing can be resampled, and which class that is stands beside the threshold."""
    true = np.zeros(60, dtype=int)
    true[:2] = 1
    one = check_predictions(**make_task("binary") | {"y_true": true})
    point = {"question": "ill", "kind": "youden", "target": None, "threshold": 0.5}
    (found,) = apply_operating_points(one, [point], np.arange(60) // 2, prevalences=[0.1], replicates=100)
    said = "1 patient of class ill: there is nothing to resample"
    for name in ("sensitivity", "lr_positive", "lr_negative", "ppv_at_0.1"):
        assert found["rates"][name]["reason"] == said, name


def test_rates_without_cases_are_null_with_a_reason(make_task, make_patients):
    chosen = choose_operating_points(check_predictions(**make_task("binary")), [Rule("youden")])
    task = make_task("binary")
    here = check_predictions(**task | {"y_true": np.zeros(60)})
    (point,) = apply_operating_points(here, chosen, np.arange(60), replicates=100)
    assert point["rates"]["sensitivity"]["value"] is None
    assert point["rates"]["sensitivity"]["reason"]
    assert point["rates"]["specificity"]["value"] is not None


@pytest.mark.parametrize("kind", ["multiclass", "ordinal", "multilabel", "regression"])
def test_every_yes_or_no_question_gets_its_own(kind, make_task):
    predictions = check_predictions(**make_task(kind))
    points = choose_operating_points(predictions, list_rules(sensitivity=[0.8], specificity=[], cost=[]))
    questions = 3 if kind == "regression" else 4
    assert len(points) == 2 * questions
    assert len({point["question"] for point in points}) == questions


@pytest.mark.parametrize(("rows", "width"), [(20, 0.1), (2000, 0.0)])
def test_few_patients_leave_a_threshold_uncertain(rows, width):
    generator = np.random.default_rng(0)
    true = (np.arange(rows) % 5 == 0).astype(int)
    score = 1 / (1 + np.exp(-generator.normal(1.5 * true, 1)))
    predictions = check_predictions("binary", true, score, class_names=("well", "ill"))
    rules = list_rules(sensitivity=[0.9], specificity=[], cost=[])
    points = choose_operating_points(predictions, rules, patients=np.arange(rows))
    for point in points:
        low, high = point["threshold_interval"]
        assert low <= point["threshold"] <= high
        assert high - low > width
    assert "threshold_interval" not in choose_operating_points(predictions, rules)[0]


def test_interval_of_a_threshold_is_that_of_resampled_patients():
    """Ten rows of one patient are drawn together: his scores decide or are absent."""
    true, score = np.repeat([0, 1, 0, 1], 10), np.repeat([0.1, 0.4, 0.6, 0.9], 10)
    predictions = check_predictions("binary", true, score, class_names=("well", "ill"))
    (point,) = choose_operating_points(predictions, [Rule("youden")], patients=np.repeat(np.arange(4), 10))
    assert set(point["threshold_interval"]) <= {0.4, 0.9, None}
