"""The support vector machine beside scikit-learn's own pipeline, and what it makes of its margins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import LinearSVC

from medcls.errors import DataError
from medcls.models.heads import build_head
from medcls.train import svm as module
from medcls.train.solved_head import fill_head
from medcls.train.svm import GRID, Svm, fit_logits, fit_svm, normalize_rows, score_folds

COSTS = (0.01, 1.0, 100.0)
Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def draw() -> Callable[..., Sample]:
    """Features (N, 20) of unlike lengths whose direction has the class, classes, and folds: draw(3, signal=1.0)."""

    def make(num_classes: int = 2, *, size: int = 150, signal: float = 1.0, seed: int = 0) -> Sample:
        rng = np.random.default_rng(seed)
        targets = rng.integers(0, num_classes, size)
        features = rng.normal(size=(size, 20))
        features[np.arange(size), targets] += 2 * signal
        scaled = features * rng.uniform(0.1, 30, (size, 1))
        return scaled.astype(np.float32), targets, np.arange(size) % 5

    return make


def build_liblinear(cost: float) -> LinearSVC:
    return LinearSVC(C=cost, class_weight="balanced", dual=False, tol=1e-10, max_iter=100_000)


def direct(features: np.ndarray, targets: np.ndarray, cost: float) -> np.ndarray:
    """Decision values (N, L) of scikit-learn's own pipeline, converged far beyond its usual tolerance."""
    pipeline = make_pipeline(Normalizer(), build_liblinear(cost))
    rows = features.astype(np.float64)
    values: np.ndarray = pipeline.fit(rows, targets).decision_function(rows)
    return values.reshape(len(values), -1)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("size", [150, 16])
def test_decision_values_are_those_of_liblinear(draw: Callable[..., Sample], num_classes: int, size: int) -> None:
    features, targets, folds = draw(num_classes, size=size)
    svm = fit_svm(features, targets, folds=folds, costs=COSTS)
    expected = direct(features, targets, svm.cost)
    np.testing.assert_allclose(normalize_rows(features) @ svm.weight.T + svm.bias, expected, atol=2e-3)
    head = build_head("svm", [20], 1 if num_classes == 2 else 3)
    fill_head(head, svm)
    logits = head(torch.from_numpy(features)).detach().numpy()
    found = normalize_rows(features) @ svm.weight.T + svm.bias
    np.testing.assert_allclose(logits, svm.slope * found + svm.shift, rtol=1e-5, atol=1e-5)


def test_each_c_is_scored_on_held_out_folds_alone(draw: Callable[..., Sample]) -> None:
    features, targets, folds = draw()
    svm = fit_svm(features, targets, folds=folds, costs=COSTS)
    for row in svm.table:
        areas = []
        for fold in range(5):
            held = folds == fold
            pipeline = make_pipeline(Normalizer(), build_liblinear(row["C"]))
            pipeline.fit(features[~held].astype(np.float64), targets[~held])
            areas.append(roc_auc_score(targets[held], pipeline.decision_function(features[held].astype(np.float64))))
        # Rounding may exchange two rows of a fold: 1 of 15 x 15 pairs, in one fold of five.
        assert row["auc"] == pytest.approx(np.mean(areas), abs=1e-3)
    assert svm.cost == max(svm.table, key=lambda row: row["auc"])["C"]


def test_a_class_that_a_fold_leaves_out_is_learnt_by_the_others(draw: Callable[..., Sample]) -> None:
    features, targets, _ = draw(3)
    folds = np.where(targets == 2, 4, np.arange(150) % 4)
    svm = fit_svm(features, targets, folds=folds, costs=COSTS)
    np.testing.assert_allclose(
        normalize_rows(features) @ svm.weight.T + svm.bias, direct(features, targets, svm.cost), atol=2e-3
    )


def test_of_equal_scores_the_smallest_c_is_taken(draw: Callable[..., Sample]) -> None:
    features, targets, folds = draw(signal=50.0)
    svm = fit_svm(features, targets, folds=folds, costs=COSTS)
    assert [row["auc"] for row in svm.table] == [1.0, 1.0, 1.0]
    assert svm.cost == COSTS[0]


def test_larger_c_are_not_tried_after_two_falls_in_a_row(draw: Callable[..., Sample]) -> None:
    features, targets, folds = draw(signal=0.5)
    every = [fit_svm(features, targets, folds=folds, costs=[cost]).table[0]["auc"] for cost in GRID]
    falls = np.diff(every) < 0
    stop = next((k for k in range(2, len(every)) if falls[k - 2] and falls[k - 1]), len(every) - 1)
    svm = fit_svm(features, targets, folds=folds)
    assert [row["C"] for row in svm.table] == list(GRID[: stop + 1])
    assert len(svm.table) < len(GRID)
    assert svm.cost == max(svm.table, key=lambda row: (row["auc"], -row["C"]))["C"]


def test_repetition_is_equal_to_the_bit(draw: Callable[..., Sample]) -> None:
    features, targets, folds = draw(3)
    first, second = (fit_svm(features, targets, folds=folds, costs=COSTS) for _ in range(2))
    np.testing.assert_array_equal(first.weight, second.weight)
    assert (first.table, first.slope, first.shift) == (second.table, second.slope, second.shift)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_logits_are_calibrated_on_rows_that_were_held_out(draw: Callable[..., Sample], num_classes: int) -> None:
    features, targets, folds = draw(num_classes, size=600)
    svm = fit_svm(features, targets, folds=folds, costs=COSTS)
    fresh, truth, _ = draw(num_classes, size=2000, seed=1)
    head = build_head("svm", [20], 1 if num_classes == 2 else 3)
    fill_head(head, svm)
    with torch.no_grad():
        logits = head(torch.from_numpy(fresh)).double()

    def loss(factor: float) -> float:
        scores = torch.cat([torch.zeros_like(logits), logits * factor], 1) if num_classes == 2 else logits * factor
        return float(log_loss(truth, scores.softmax(1).numpy()))

    # No other scale would be much better.
    assert loss(1.0) < min(loss(f) for f in (0.3, 0.6, 1.6, 3.0))
    assert svm.ranks


def test_noise_is_said_to_be_noise_and_keeps_its_order(draw: Callable[..., Sample]) -> None:
    _, targets, _ = draw()
    slope, _, ranks = fit_logits(-(targets[:, None] - 0.5), targets)
    assert (slope > 0, ranks) == (True, False)
    assert fit_logits(targets[:, None] - 0.5, targets)[2]


def test_a_fit_that_stops_early_is_said(draw: Callable[..., Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets, folds = draw(signal=0.0)
    monkeypatch.setattr(module, "MAX_ITERATIONS", 1)
    svm = fit_svm(features, targets, folds=folds, costs=[1e4])
    assert (svm.converged, svm.table[0]["converged"]) == (False, False)
    monkeypatch.undo()
    svm = fit_svm(features, targets, folds=folds, costs=[1e4])
    assert (svm.converged, svm.table[0]["converged"]) == (True, True)


def test_folds_of_one_class_each_score_nothing() -> None:
    targets, folds = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3])
    with pytest.raises(DataError, match="no fold"):
        score_folds(np.zeros((4, 1)), targets, folds=folds)


def test_a_class_that_a_fold_lacks_is_left_out() -> None:
    targets = np.array([0, 1, 0, 1, 2])
    folds = np.array([0, 0, 1, 1, 1])
    decisions = np.eye(3)[targets]
    decisions[0] = [0, 2, 0]
    # Fold 0: class 0 ties, class 1 is wrong; fold 1 is right.
    assert score_folds(decisions, targets, folds=folds) == pytest.approx((0.5 + 0 + 3) / 5)


def test_rows_of_zeros_stay() -> None:
    rows = normalize_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]])
    head = build_head("svm", [2], 1)
    fill_head(head, Svm(np.ones((1, 2)), np.zeros(1), 2.0, 0.5, 1.0, [], True, True))
    np.testing.assert_allclose(head(torch.tensor([[3.0, 4.0], [0, 0]])).detach(), [[2 * 1.4 + 0.5], [0.5]], rtol=1e-6)


def test_features_that_know_their_rows_by_heart_get_their_logits_from_other_rows(draw: Callable[..., Sample]) -> None:
    rng = np.random.default_rng(0)
    features, targets, folds = draw(signal=0.0, size=200)
    features[:, 0] = 100 * (2 * targets - 1)  # a network trained on these rows
    other = rng.normal(size=(200, 20))  # what it makes of rows that it has not seen: nothing
    others = rng.integers(0, 2, 200)
    for apart, better in ((None, False), ((other, others), True)):
        svm = fit_svm(features, targets, folds=folds, costs=COSTS, apart=apart)
        logits = svm.slope * (normalize_rows(other) @ svm.weight.T + svm.bias) + svm.shift
        assert (log_loss(others, 1 / (1 + np.exp(-logits[:, 0]))) < 0.7) == better
