from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss

from medcls.evaluation.predictions import check_predictions
from medcls.evaluation.recalibration import METHODS, apply_recalibration, choose_recalibration, fit_recalibration

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


def test_platt_is_that_of_scikit_learn():
    predictions = binary(slope=0.5, shift=-0.7)
    eta = logit(predictions.y_score[:, 0])
    oracle = _SigmoidCalibration().fit(eta, predictions.y_true)
    (column,) = fit_recalibration("platt", predictions)["columns"]
    assert column["slope"] == pytest.approx(-oracle.a_, abs=1e-3)
    assert column["intercept"] == pytest.approx(-oracle.b_, abs=1e-3)


def test_isotonic_is_that_of_scikit_learn():
    predictions, new = binary(slope=0.5, seed=1), binary(seed=2)
    oracle = IsotonicRegression(out_of_bounds="clip").fit(predictions.y_score[:, 0], predictions.y_true)
    mapped = apply_recalibration(fit_recalibration("isotonic", predictions), new)
    np.testing.assert_allclose(mapped.y_score[:, 0], oracle.predict(new.y_score[:, 0]), atol=1e-12)


def test_temperature_is_the_minimum_of_the_log_loss():
    predictions = binary(slope=0.4, seed=3)
    eta = logit(predictions.y_score[:, 0])
    best = minimize_scalar(lambda b: log_loss(predictions.y_true, expit(b * eta)), bounds=(0.01, 5), method="bounded")
    assert fit_recalibration("temperature", predictions)["columns"][0]["slope"] == pytest.approx(best.x, abs=1e-4)


def test_softmax_temperature_is_the_minimum_of_the_log_loss():
    predictions = multiclass(sharpness=3.0)
    logs = np.log(predictions.y_score)
    rows = np.arange(ROWS)

    def loss(b):
        return -log_softmax(b * logs, axis=1)[rows, predictions.y_true].mean()

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
    ("distortion", "chosen"),
    [({"slope": 1.0}, {"none", "temperature", "platt"}), ({"slope": 1.0, "shift": -2.0}, {"platt"})],
)
def test_the_simplest_map_that_helps_is_chosen_by_held_out_patients(distortion, chosen):
    predictions = binary(**distortion, rows=1500)
    answer = choose_recalibration(predictions, np.arange(1500) // 3)
    assert answer["method"] in chosen
    assert answer["log_loss"][answer["method"]] == min(answer["log_loss"].values())


def test_memorised_rows_do_not_win():
    """Isotonic fits 40 rows of noise perfectly, and loses on held-out patients."""
    generator = np.random.default_rng(0)
    true, score = generator.integers(2, size=40), generator.random(40)
    predictions = check_predictions("binary", true, 0.45 + 0.1 * score, class_names=("well", "ill"))
    assert choose_recalibration(predictions, np.arange(40))["method"] != "isotonic"


def test_patients_are_held_out_whole():
    """Ten copies of each row: what one fold learns must not know the copies in another."""
    true, score = np.tile([0, 1], 20), np.random.default_rng(1).random(40)
    predictions = check_predictions("binary", np.repeat(true, 10), np.repeat(score, 10), class_names=("well", "ill"))
    whole = choose_recalibration(predictions, np.repeat(np.arange(40), 10))["log_loss"]["isotonic"]
    mixed = choose_recalibration(predictions, np.arange(400))["log_loss"]["isotonic"]
    assert mixed < 0.69 < whole  # 0.69: a coin


def test_few_patients_choose_nothing():
    predictions = binary(rows=9)
    assert "too few" in choose_recalibration(predictions, np.arange(9))["reason"]


def test_a_regression_has_no_probabilities(make_task):
    with pytest.raises(ValueError, match="no regression"):
        fit_recalibration("platt", check_predictions(**make_task("regression")))
