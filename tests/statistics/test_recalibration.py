from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss

from medcls.statistics.predictions import check_predictions
from medcls.statistics.recalibration import (
    METHODS,
    _deal_folds,
    apply_recalibration,
    choose_recalibration,
    fit_recalibration,
    list_methods,
)

ROWS = 400


def binary(*, slope=1.0, shift=0.0, seed=0, rows=ROWS):
    """Scores whose true logit is slope * logit(score) + shift."""
    generator = np.random.default_rng(seed)
    eta = generator.normal(0, 1.5, rows)
    true = (generator.random(rows) < expit(slope * eta + shift)).astype(int)
    return check_predictions("binary", true, expit(eta), class_names=("well", "ill"))


def multiclass(*, sharpness=1.0, seed=0, rows=ROWS):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.2, (rows, 3))
    true = [generator.choice(3, p=row) for row in softmax(logits, axis=1)]
    return check_predictions("multiclass", true, softmax(sharpness * logits, axis=1), class_names=("a", "b", "c"))


def soften(true):
    """Platt's targets."""
    cases = true.sum()
    return np.where(true == 1, (cases + 1) / (cases + 2), 1 / (len(true) - cases + 2))


def test_platt_is_that_of_scikit_learn():
    predictions = binary(slope=0.5, shift=-0.7)
    eta = logit(predictions.y_score[:, 0])
    oracle = _SigmoidCalibration().fit(eta, predictions.y_true)
    (column,) = fit_recalibration("platt", predictions)["columns"]
    assert column["slope"] == pytest.approx(-oracle.a_, abs=1e-3)
    assert column["intercept"] == pytest.approx(-oracle.b_, abs=1e-3)


def test_isotonic_is_that_of_scikit_learn():
    predictions, new = binary(slope=0.5, seed=1), binary(seed=2)
    oracle = IsotonicRegression(out_of_bounds="clip").fit(predictions.y_score[:, 0], soften(predictions.y_true))
    mapped = apply_recalibration(fit_recalibration("isotonic", predictions), new)
    np.testing.assert_allclose(mapped.y_score[:, 0], oracle.predict(new.y_score[:, 0]), atol=2e-6)
    order = np.argsort(new.y_score[:, 0])
    assert (np.diff(mapped.y_score[order, 0]) > 0).all()  # different scores stay different


def test_temperature_is_the_minimum_of_the_log_loss():
    predictions = binary(slope=0.4, seed=3)
    eta = logit(predictions.y_score[:, 0])
    target = soften(predictions.y_true)

    def loss(b):
        return float((np.logaddexp(0, b * eta) - target * b * eta).mean())

    best = minimize_scalar(loss, bounds=(0.01, 5), method="bounded")
    assert fit_recalibration("temperature", predictions)["columns"][0]["slope"] == pytest.approx(best.x, abs=1e-4)


def test_softmax_temperature_is_the_minimum_of_the_log_loss():
    predictions = multiclass(sharpness=3.0)
    logs = np.log(predictions.y_score)
    # Platt's targets for three classes: a row more of its own class, and one of each other.

    counts = np.bincount(predictions.y_true)
    target = np.array([(np.eye(3)[k] * counts[k] + 1) / (counts[k] + 3) for k in predictions.y_true])

    def loss(b):
        return -(target * log_softmax(b * logs, axis=1)).sum(axis=1).mean()

    best = minimize_scalar(loss, bounds=(0.01, 5), method="bounded")
    fitted = fit_recalibration("temperature", predictions)
    assert fitted["inverse"] == pytest.approx(best.x, abs=1e-4)
    assert fitted["inverse"] == pytest.approx(1 / 3, abs=0.1)
    mapped = apply_recalibration(fitted, predictions).y_score
    np.testing.assert_allclose(mapped, softmax(fitted["inverse"] * logs, axis=1), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal", "multilabel"])
def test_maps_survive_json_and_give_probabilities(kind, method, make_task):
    predictions = check_predictions(**make_task(kind))
    fitted = json.loads(json.dumps(fit_recalibration(method, predictions), allow_nan=False))
    mapped = apply_recalibration(fitted, predictions)
    check_predictions(kind, mapped.y_true, mapped.y_score, class_names=mapped.class_names)
    assert (method == "none") == np.array_equal(mapped.y_score, predictions.y_score)


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_one_class_alone_changes_nothing(method):
    predictions = check_predictions("binary", [1, 1, 1], [0.2, 0.5, 0.9], class_names=("well", "ill"))
    mapped = apply_recalibration(fit_recalibration(method, predictions), predictions)
    np.testing.assert_allclose(mapped.y_score, predictions.y_score, atol=1e-12)


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_complete_separation_has_a_finite_map(method):
    predictions = check_predictions("binary", [0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], class_names=("well", "ill"))
    mapped = apply_recalibration(fit_recalibration(method, predictions), predictions).y_score[:, 0]
    assert np.isfinite(mapped).all()
    assert (np.diff(mapped) >= 0).all()


@pytest.mark.parametrize(
    ("distortion", "chosen"), [({"slope": 1.0}, "none"), ({"slope": 0.4}, "temperature"), ({"shift": -2.0}, "platt")]
)
def test_the_simplest_map_that_helps_is_chosen_by_held_out_patients(distortion, chosen):
    predictions = binary(**distortion, rows=1500)
    answer = choose_recalibration(predictions, np.arange(1500) // 3)
    assert answer["method"] == answer["map"]["method"] == chosen
    assert answer["log_loss"][chosen] <= answer["log_loss"]["none"]


@pytest.mark.parametrize(
    ("cases", "methods"),
    [(9, ()), (10, ("temperature",)), (20, ("temperature", "platt")), (300, ("temperature", "platt", "isotonic"))],
)
def test_maps_have_as_many_parameters_as_the_rarer_class_bears(cases, methods):
    true = (np.arange(1000) < cases).astype(int)
    predictions = check_predictions("binary", np.repeat(true, 2), np.full(2000, 0.3), class_names=("well", "ill"))
    assert list_methods(predictions, np.arange(2000) // 2) == ("none", *methods)  # patients count, not images


def test_several_classes_get_a_temperature_alone_and_keep_the_most_probable():
    predictions = multiclass(sharpness=3.0, rows=2000)
    answer = choose_recalibration(predictions, np.arange(2000))
    assert answer["method"] == "temperature"
    mapped = apply_recalibration(answer["map"], predictions)
    assert np.array_equal(mapped.grade_predicted, predictions.grade_predicted)


def test_each_label_has_the_map_that_its_own_counts_bear():
    """Both labels are three times too sharp; the second has five cases."""
    generator = np.random.default_rng(0)
    eta = generator.normal(0, 1.5, (400, 2))
    true = (generator.random((400, 2)) < expit(eta)).astype(float)
    true[:, 1] = np.arange(400) < 5
    predictions = check_predictions("multilabel", true, expit(3 * eta), class_names=("a", "b"))
    answer = choose_recalibration(predictions, np.arange(400))
    assert answer["methods"] == {"a": "temperature", "b": "none"}
    assert answer["method"] == "mixed"
    mapped = apply_recalibration(json.loads(json.dumps(answer["map"])), predictions)
    np.testing.assert_allclose(mapped.y_score[:, 1], predictions.y_score[:, 1], atol=1e-6)


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_map_keeps_who_is_called(method, turned):
    """Also if the scores rank backwards: a map never turns them round."""
    predictions = binary(slope=0.5, shift=-0.7)
    true = 1 - predictions.y_true if turned else predictions.y_true
    given = check_predictions("binary", true, predictions.y_score, class_names=("well", "ill"), thresholds=[0.213])
    mapped = apply_recalibration(fit_recalibration(method, given), given)
    assert np.array_equal(mapped.called, given.called)
    assert 0 < given.called.sum() < ROWS


def simulate(size, cases, *, sharpness, shift, repeats):
    """External log loss with the chosen map less that without one, of `repeats` validation splits."""
    generator = np.random.default_rng([size, cases])
    excess = []
    for _ in range(repeats):
        eta = np.concatenate([generator.normal(-1, 1, size - cases), generator.normal(0, 1, cases)])
        true = (np.arange(size) >= size - cases).astype(int)
        score = expit(sharpness * eta + shift)
        chosen = choose_recalibration(
            check_predictions("binary", true, score, class_names=("well", "ill")), np.arange(size)
        )
        there = np.concatenate([generator.normal(-1, 1, 1600), generator.normal(0, 1, 400)])
        ill = (np.arange(2000) >= 1600).astype(int)
        external = check_predictions("binary", ill, expit(sharpness * there + shift), class_names=("well", "ill"))
        mapped = apply_recalibration(chosen["map"], external)
        excess.append(log_loss(ill, mapped.y_score[:, 0]) - log_loss(ill, external.y_score[:, 0]))
    return np.array(excess)


@pytest.mark.parametrize(("repeats"), [10, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("sharpness", "shift"), [(1.0, -1.0), (3.0, -1.0)])
@pytest.mark.parametrize(("size", "cases"), [(20, 4), (60, 12), (200, 40)])
def test_no_map_makes_the_log_loss_elsewhere_worse(size, cases, sharpness, shift, repeats):
    """Twenty images with four cases once chose an isotonic map: elsewhere the log loss rose from 0.80 to 6.46."""
    excess = simulate(size, cases, sharpness=sharpness, shift=shift, repeats=repeats)
    assert excess.mean() < 0.01
    assert excess.max() < 0.1
    if (size, sharpness) == (200, 3.0):
        assert excess.mean() < -0.1


def test_few_patients_choose_nothing():
    predictions = binary(rows=9)
    assert "a map needs 10 of each class" in choose_recalibration(predictions, np.arange(9))["reason"]


def test_patients_are_held_out_whole():
    """A patient's images are in one fold, and every fold has patients of both classes."""
    patients = np.repeat(np.arange(40), 10)
    fold = _deal_folds(np.repeat(np.tile([0, 0, 0, 1], 10), 10), patients, seed=0)
    assert all(len(np.unique(fold[patients == patient])) == 1 for patient in range(40))
    assert np.bincount(fold[np.repeat(np.arange(40) % 4 == 3, 10)]).tolist() == [20] * 5


def test_a_regression_has_no_probabilities(make_task):
    with pytest.raises(ValueError, match="no regression"):
        fit_recalibration("platt", check_predictions(**make_task("regression")))
