"""Errors and correlations of values against scikit-learn and scipy on repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import r2_score

from medcls.statistics.agreement import compute_pearson, compute_spearman, compute_value_errors


@st.composite
def values(draw):
    size = draw(st.integers(4, 30))
    column = lambda low, high: np.array(draw(st.lists(st.integers(low, high), min_size=size, max_size=size)))
    true, predicted = column(0, 4).astype(float), column(-20, 60) / 10
    true[:2], predicted[:2] = [0, 1], [0.3, 2.1]
    weights = column(0, 3)
    weights[:2] = np.maximum(weights[:2], 1)
    return true, predicted, weights


@settings(deadline=None, max_examples=50)
@given(values())
def test_all_agree_with_references_on_repeated_rows(rows):
    true, predicted, weights = rows
    drawn = weights[None].astype(float)
    errors = compute_value_errors(true, predicted, weights=drawn)
    pearson, spearman = (compute(true, predicted, weights=drawn)[0] for compute in (compute_pearson, compute_spearman))
    true, predicted = np.repeat(true, weights), np.repeat(predicted, weights)
    assert errors["mae"][0] == pytest.approx(np.abs(true - predicted).mean())
    assert errors["rmse"][0] ** 2 == pytest.approx(errors["mse"][0])
    assert errors["mse"][0] == pytest.approx(((true - predicted) ** 2).mean())
    assert errors["r2"][0] == pytest.approx(r2_score(true, predicted), rel=1e-9, abs=1e-9)
    assert pearson == pytest.approx(pearsonr(true, predicted).statistic, abs=1e-9)
    assert spearman == pytest.approx(spearmanr(true, predicted).statistic, abs=1e-9)


def test_constant_values_have_no_correlation_and_no_r2():
    true, predicted = np.full(5, 0.1), np.arange(5.0)
    assert np.isnan(compute_pearson(true, predicted, weights=np.ones((1, 5)))[0])
    assert np.isnan(compute_spearman(true, predicted, weights=np.ones((1, 5)))[0])
    assert np.isnan(compute_value_errors(true, predicted, weights=np.ones((1, 5)))["r2"][0])


def test_a_replicate_of_one_repeated_row_has_no_correlation():
    drawn = np.array([[0.0, 3, 0]])
    assert np.isnan(compute_pearson(np.array([0.1, 0.7, 0.9]), np.array([3.3, 0.1, 1]), weights=drawn)[0])


def test_a_large_offset_does_not_spoil_the_correlation():
    generator = np.random.default_rng(0)
    true, noise = generator.normal(size=100), generator.normal(size=100)
    near = compute_pearson(true, true + noise, weights=np.ones((1, 100)))
    far = compute_pearson(true + 1e6, true + noise + 1e6, weights=np.ones((1, 100)))
    assert far[0] == pytest.approx(near[0], abs=1e-6)
