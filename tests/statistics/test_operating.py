"""Counts, rates and net benefit at thresholds, by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import class_likelihood_ratios, precision_score, recall_score

from medcls.statistics.curves import (
    compute_net_benefit,
    compute_operating_rates,
    compute_predictive_values,
    count_at_thresholds,
)


def test_rates_agree_with_scikit_learn_on_repeated_rows():
    generator = np.random.default_rng(0)
    positive = generator.random(120) < 0.4
    score = np.round(np.clip(0.3 * positive + generator.random(120) * 0.8, 0, 1), 1)
    weights, thresholds = generator.integers(0, 3, size=120), [0.3, 0.5, 0.7]
    rates = compute_operating_rates(
        count_at_thresholds(positive, score, thresholds=thresholds, weights=weights[None].astype(float))
    )
    truth, value = np.repeat(positive, weights), np.repeat(score, weights)
    for column, threshold in enumerate(thresholds):
        called = value >= threshold
        expected = {
            "sensitivity": recall_score(truth, called),
            "specificity": recall_score(truth, called, pos_label=0),
            "ppv": precision_score(truth, called),
            "npv": precision_score(truth, called, pos_label=0),
        }
        ratios = class_likelihood_ratios(truth, called)
        expected |= {"lr_positive": ratios[0], "lr_negative": ratios[1]}
        assert {name: value[0, column] for name, value in rates.items()} == pytest.approx(expected)


def test_a_threshold_includes_its_own_score():
    counts = count_at_thresholds(np.array([True, False]), np.array([0.5, 0.5]), thresholds=[0.5, np.nextafter(0.5, 1)])
    assert counts.true_positives.tolist() == [[1, 0]]
    assert counts.false_positives.tolist() == [[1, 0]]


def test_predictive_values_at_the_prevalence_of_the_rows_are_those_of_the_rows():
    sensitivity, specificity, prevalence = 40 / 50, 90 / 100, 50 / 150
    ppv, npv = compute_predictive_values(sensitivity, specificity, prevalence=prevalence)
    assert ppv == pytest.approx(40 / 50)
    assert npv == pytest.approx(90 / 100)


def test_a_rare_disease_has_a_low_ppv():
    # Worked example of Altman & Bland's method: 99 % and 99 % at 1 in 1,000.
    ppv, npv = compute_predictive_values(0.99, 0.99, prevalence=0.001)
    assert ppv == pytest.approx(0.0902, abs=5e-4)
    assert npv == pytest.approx(0.99999, abs=1e-5)


@pytest.mark.parametrize("prevalence", [0, 1, -0.2, np.nan])
def test_an_impossible_prevalence_is_refused(prevalence):
    with pytest.raises(ValueError, match="prevalence is"):
        compute_predictive_values(0.9, 0.9, prevalence=prevalence)


def test_net_benefit_by_hand():
    positive, score = np.array([True, True, False, False, False]), np.array([0.9, 0.3, 0.6, 0.1, 0.2])
    thresholds = [0.25, 0.5]
    model, everyone = compute_net_benefit(
        count_at_thresholds(positive, score, thresholds=thresholds), thresholds=thresholds
    )
    np.testing.assert_allclose(model[0], [2 / 5 - 1 / 5 / 3, 1 / 5 - 1 / 5])
    np.testing.assert_allclose(everyone[0], [2 / 5 - 3 / 5 / 3, 2 / 5 - 3 / 5])


def test_thresholds_keep_their_order_and_may_be_infinite():
    positive, score = np.array([True, True, False]), np.array([0.9, 0.3, 0.6])
    counts = count_at_thresholds(positive, score, thresholds=[np.inf, 0.2, 0.7, -np.inf])
    assert counts.true_positives.tolist() == [[0, 2, 1, 2]]
    assert counts.false_positives.tolist() == [[0, 1, 0, 1]]
    assert (counts.positives.tolist(), counts.negatives.tolist()) == ([[2]], [[1]])
