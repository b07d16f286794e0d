"""Proper scores, calibration error and calibration line against references and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import brier_score_loss, log_loss

from medcls.statistics.calibration import (
    assign_bins,
    compute_brier_rows,
    compute_confidence,
    compute_ece,
    compute_log_loss_rows,
    compute_reliability,
    compute_slope_and_intercept,
)


def make_forecasts(rows: int = 200, classes: int = 3, seed: int = 0):
    """Classes drawn by their probabilities, so that bins err in both directions."""
    generator = np.random.default_rng(seed)
    score = generator.dirichlet(np.ones(classes), size=rows)
    return (score.cumsum(axis=1) < generator.random((rows, 1))).sum(axis=1).clip(max=classes - 1), score


def test_scores_agree_with_scikit_learn():
    true, score = make_forecasts()
    assert compute_log_loss_rows(true, score).mean() == pytest.approx(log_loss(true, score))
    expected = brier_score_loss(true, score, scale_by_half=False)
    assert compute_brier_rows(true, score).mean() == pytest.approx(expected)


def test_one_column_scores_agree_with_scikit_learn():
    true, score = make_forecasts(classes=2)
    probability = score[:, 1:]
    assert compute_log_loss_rows(true, probability).mean() == pytest.approx(log_loss(true, score))
    assert compute_brier_rows(true, probability).mean() == pytest.approx(brier_score_loss(true, score[:, 1]))


def test_certain_and_wrong_is_finite():
    assert compute_log_loss_rows(np.array([1]), np.array([[1.0, 0.0]]))[0] == pytest.approx(36.04, abs=0.01)


def test_bins_hold_their_lower_edge_and_one_falls_in_the_last():
    assert assign_bins(np.array([0.0, 0.0999, 0.1, 1.0]), num_bins=10).tolist() == [0, 0, 1, 9]


@pytest.mark.parametrize("seed", range(5))
def test_ece_agrees_with_a_loop_over_bins_of_repeated_rows(seed):
    true, score = make_forecasts(seed=seed)
    weights = np.random.default_rng(seed).integers(0, 4, size=len(true))
    confidence, outcome = compute_confidence(true, score)
    found = compute_ece(confidence, outcome, weights=weights[None].astype(float))[0]
    confidence, outcome = np.repeat(confidence, weights), np.repeat(outcome, weights)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & ((confidence < low + 1 / 15) | (low == 14 / 15))
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - outcome[inside].mean())
    assert found == pytest.approx(expected)


def test_ece_of_one_bin_is_the_distance_of_the_means():
    found = compute_ece(np.array([0.81, 0.82, 0.83]), np.array([1.0, 0, 0]), weights=np.ones((1, 3)))
    assert found[0] == pytest.approx(0.82 - 1 / 3)


def test_reliability_leaves_empty_bins_out():
    bins = compute_reliability(np.array([0.05, 0.06, 0.95]), np.array([0.0, 1, 1]), num_bins=10)
    np.testing.assert_allclose(bins.forecast, [0.055, 0.95])
    np.testing.assert_allclose(bins.observed, [0.5, 1])
    np.testing.assert_array_equal(bins.size, [2, 1])


def minus_log_likelihood(logit, outcome):
    return np.sum(np.logaddexp(0, logit) - outcome * logit)


@pytest.mark.parametrize("seed", range(4))
def test_slope_and_intercept_maximise_the_likelihood(seed):
    generator = np.random.default_rng(seed)
    probability = generator.uniform(0.02, 0.98, 150)
    outcome = (generator.random(150) < probability**1.5).astype(float)
    weights = generator.integers(0, 3, size=150)
    slope, intercept = compute_slope_and_intercept(probability, outcome, weights=weights[None].astype(float))
    logit = np.repeat(np.log(probability / (1 - probability)), weights)
    repeated = np.repeat(outcome, weights)
    line = minimize(lambda b: minus_log_likelihood(b[0] + b[1] * logit, repeated), [0.0, 1.0])
    shift = minimize(lambda b: minus_log_likelihood(b[0] + logit, repeated), [0.0])
    assert slope[0] == pytest.approx(line.x[1], abs=1e-3)
    assert intercept[0] == pytest.approx(shift.x[0], abs=1e-3)


def test_forecasts_that_are_too_extreme_have_a_slope_below_one():
    generator = np.random.default_rng(1)
    logit = generator.normal(size=4000)
    outcome = (generator.random(4000) < 1 / (1 + np.exp(-logit))).astype(float)
    extreme = 1 / (1 + np.exp(-2 * logit))
    slope, _ = compute_slope_and_intercept(extreme, outcome, weights=np.ones((1, 4000)))
    assert slope[0] == pytest.approx(0.5, abs=0.05)


def test_separated_or_single_classes_have_no_slope():
    separated = compute_slope_and_intercept(
        np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.0, 0, 1, 1]), weights=np.ones((1, 4))
    )
    single = compute_slope_and_intercept(np.array([0.1, 0.2]), np.array([0.0, 0]), weights=np.ones((1, 2)))
    assert np.isnan(separated[0][0])
    assert np.isfinite(separated[1][0])
    assert np.isnan(np.concatenate(single)).all()
