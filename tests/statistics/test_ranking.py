"""Areas and curves against scikit-learn, with ties and with row weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from medcls.statistics.ranking import (
    build_ranking,
    compute_areas,
    compute_auc,
    compute_curve,
    compute_precision_recall,
    compute_roc,
)


@st.composite
def tied_rows(draw):
    """Labels of both classes, scores with many ties, weights that keep both classes."""
    size = draw(st.integers(2, 30))
    column = lambda low, high: np.array(draw(st.lists(st.integers(low, high), min_size=size, max_size=size)))
    positive = column(0, 1).astype(bool)
    positive[:2] = [True, False]
    weights = column(0, 3)
    weights[:2] = np.maximum(weights[:2], 1)
    return positive, column(0, 6) / 6, weights


@settings(deadline=None, max_examples=50)
@given(tied_rows())
def test_areas_agree_with_scikit_learn_and_with_repeated_rows(rows):
    positive, score, weights = rows
    auc, average = compute_areas(build_ranking(positive, score), weights[None].astype(float))
    truth, value = np.repeat(positive, weights), np.repeat(score, weights)
    assert auc[0] == pytest.approx(roc_auc_score(truth, value), abs=1e-12)
    assert average[0] == pytest.approx(average_precision_score(truth, value), abs=1e-12)
    assert compute_auc(build_ranking(positive, score), weights[None].astype(float)) == pytest.approx(auc, abs=1e-12)


def test_the_area_alone_takes_some_rows_and_has_nan_where_a_class_was_not_drawn():
    generator = np.random.default_rng(0)
    positive, score = generator.random(50) < 0.3, generator.integers(0, 9, 50) / 9
    ranking = build_ranking(positive, score, rows=np.flatnonzero(generator.random(50) < 0.7))
    weights = generator.integers(0, 3, (20, 50)).astype(float)
    weights[0, positive] = 0
    np.testing.assert_allclose(compute_auc(ranking, weights), compute_areas(ranking, weights)[0], atol=1e-12)
    assert np.isnan(compute_auc(ranking, weights)[0])


def test_equal_scores_have_an_area_of_one_half():
    auc, _ = compute_areas(build_ranking(np.array([True, False, False]), np.full(3, 0.7)), np.ones((1, 3)))
    assert auc[0] == 0.5


@pytest.mark.parametrize("weights", [[1, 1, 0], [0, 0, 2]])
def test_areas_of_one_class_are_undefined(weights):
    ranking = build_ranking(np.array([True, True, False]), np.array([0.1, 0.4, 0.2]))
    auc, average = compute_areas(ranking, np.array([weights], dtype=float))
    assert np.isnan(auc[0])
    assert np.isnan(average[0])


def test_rows_of_unknown_label_take_no_part():
    positive, score = np.array([True, True, False, False]), np.array([0.9, 0.1, 0.5, 0.2])
    auc, _ = compute_areas(build_ranking(positive, score, rows=np.array([0, 2, 3])), np.ones((1, 4)))
    assert auc[0] == 1.0


@settings(deadline=None, max_examples=50)
@given(tied_rows())
def test_curves_agree_with_scikit_learn(rows):
    positive, score, _ = rows
    curve = compute_curve(positive, score)
    false_positive_rate, sensitivity, thresholds = roc_curve(positive, score, drop_intermediate=False)
    np.testing.assert_allclose(compute_roc(curve), (false_positive_rate, sensitivity), atol=1e-12)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    precision, recall, _ = precision_recall_curve(positive, score)
    ours = compute_precision_recall(curve)
    np.testing.assert_allclose(ours, (recall[:-1][::-1], precision[:-1][::-1]), atol=1e-12)
