"""The solved head beside scikit-learn's own pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medcls.train.logistic_head import fit_logistic_head

STRENGTHS = (0.01, 0.1, 1.0)
FOLDS = np.arange(150) % 5


def draw(num_classes: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features (150, 12) of unlike scales, one of them constant, and classes (150,) that some of them show."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, num_classes, 150)
    features = rng.normal(size=(150, 12)) + 0.7 * np.eye(12)[targets]
    return (features * rng.uniform(0.1, 30, 12) + np.array([5.0] * 11 + [0.0])) * ([1.0] * 11 + [0.0]), targets


def pipeline(strength: float, **settings: Any) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000, tol=1e-8, **settings))


def fit_part(features: np.ndarray, rows: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Return decision values (N,) of a regression on some of the rows; features are standardised over all of them."""
    scaled = StandardScaler().fit_transform(features)
    model = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(scaled[rows], answers[rows])
    return np.asarray(model.decision_function(scaled))


@pytest.mark.parametrize(("output", "num_classes"), [("binary", 2), ("multiclass", 2), ("multiclass", 4)])
@pytest.mark.parametrize("balanced", [False, True])
def test_probabilities_and_strength_are_those_of_the_pipeline(output: str, num_classes: int, balanced: bool) -> None:
    features, targets = draw(num_classes)
    column = targets[:, None].astype(np.float64)
    head = fit_logistic_head(output, features, column, folds=FOLDS, balanced=balanced, strengths=STRENGTHS)
    settings = {"class_weight": "balanced"} if balanced else {}
    expected = pipeline(head.strength, **settings).fit(features, targets).predict_proba(features)
    logits = features @ head.weight.T + head.bias
    if output == "binary":
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    found = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    weights = len(targets) / (num_classes * np.bincount(targets)) if balanced else np.ones(num_classes)
    for row in head.table:
        held_out = np.empty((150, num_classes))
        for fold in range(5):
            fitted = pipeline(row["C"], **settings).fit(features[fold != FOLDS], targets[fold != FOLDS])
            held_out[fold == FOLDS] = fitted.predict_proba(features[fold == FOLDS])
        assert row["loss"] == pytest.approx(log_loss(targets, held_out, sample_weight=weights[targets]), abs=2e-3)
    assert head.strength == min(head.table, key=lambda row: row["loss"])["C"]


def test_each_step_of_ordered_grades_is_a_regression_of_its_own() -> None:
    features, targets = draw(4)
    head = fit_logistic_head("ordinal", features, targets[:, None].astype(np.float64), folds=FOLDS, strengths=[0.1])
    assert head.weight.shape == (3, 12)
    for k in range(3):
        rows = targets >= k
        expected = fit_part(features, rows, targets > k)
        np.testing.assert_allclose(features @ head.weight[k] + head.bias[k], expected, atol=1e-2)


def test_labels_that_are_unknown_take_no_part() -> None:
    features, targets = draw(2)
    both = np.stack([targets, 1 - targets], axis=1).astype(np.float64)
    both[::3, 1] = np.nan
    head = fit_logistic_head("multilabel", features, both, folds=FOLDS, strengths=[0.1])
    known = ~np.isnan(both[:, 1])
    expected = fit_part(features, known, both[:, 1])
    np.testing.assert_allclose(features @ head.weight[1] + head.bias[1], expected, atol=1e-2)


def test_values_are_a_ridge_regression() -> None:
    features, targets = draw(4)
    head = fit_logistic_head("regression", features, targets[:, None].astype(np.float64), folds=FOLDS, strengths=[0.1])
    expected = make_pipeline(StandardScaler(), Ridge(alpha=10)).fit(features, targets).predict(features)
    np.testing.assert_allclose((features @ head.weight.T + head.bias)[:, 0], expected, atol=1e-6)


def test_weaker_penalties_are_not_tried_after_two_rises_of_the_held_out_loss() -> None:
    rng = np.random.default_rng(0)
    noise, targets = rng.normal(size=(150, 40)), rng.integers(0, 2, (150, 1)).astype(np.float64)
    head = fit_logistic_head("binary", noise, targets, folds=FOLDS)
    assert [row["C"] for row in head.table] == pytest.approx([1e-5, 10**-4.5, 1e-4])
    assert head.strength == pytest.approx(1e-5)
