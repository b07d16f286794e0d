"""Names and values of all metrics by kind of task."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

import medcls.statistics
from medcls.statistics.definitions import DEFINITIONS, GRADED_REGRESSION, TASK_METRICS, find_definition
from medcls.statistics.metrics import compute_metrics
from medcls.statistics.predictions import KINDS, check_predictions


def compute(task, **change):
    task = dict(task) | change
    weights = task.pop("weights", None)
    return compute_metrics(check_predictions(**task), weights=weights)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_weights_equal_repeated_rows(make_task, kind, seed):
    task = make_task(kind, seed=seed)
    weights = np.random.default_rng(seed).integers(0, 3, size=60)
    repeated = {name: np.repeat(task[name], weights, axis=0) for name in ("y_true", "y_score")}
    weighted, explicit = compute(task, weights=weights), compute(task, **repeated)
    assert weighted.keys() == explicit.keys()
    for name, value in weighted.items():
        assert value == pytest.approx(explicit[name], rel=1e-9, abs=1e-9, nan_ok=True), name


def test_binary_agrees_with_scikit_learn(make_task):
    task = make_task("binary")
    found, true, score = compute(task), task["y_true"], task["y_score"][:, 0]
    called = score >= 0.5
    expected = {
        "auc": reference.roc_auc_score(true, score),
        "average_precision": reference.average_precision_score(true, score),
        "accuracy": reference.accuracy_score(true, called),
        "balanced_accuracy": reference.balanced_accuracy_score(true, called),
        "sensitivity": reference.recall_score(true, called),
        "specificity": reference.recall_score(true, called, pos_label=0),
        "ppv": reference.precision_score(true, called),
        "npv": reference.precision_score(true, called, pos_label=0),
        "f1": reference.f1_score(true, called),
        "mcc": reference.matthews_corrcoef(true, called),
        "brier": reference.brier_score_loss(true, score),
        "log_loss": reference.log_loss(true, score),
    }
    likelihood = reference.class_likelihood_ratios(true, called)
    expected |= {"lr_positive": likelihood[0], "lr_negative": likelihood[1]}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found.keys() - expected.keys() == {"ece", "calibration_slope", "calibration_intercept"}


@pytest.mark.parametrize(("kind", "grades"), [("multiclass", False), ("multiclass", True), ("ordinal", False)])
def test_classes_agree_with_scikit_learn(make_task, kind, grades):
    task = make_task(kind)
    found, true, score = compute(task, grades=grades), task["y_true"], task["y_score"]
    called = score.argmax(axis=1)
    expected = {
        "auc": reference.roc_auc_score(true, score, multi_class="ovr"),
        "average_precision": reference.average_precision_score(true, score),
        "balanced_accuracy": reference.balanced_accuracy_score(true, called),
        "f1": reference.f1_score(true, called, average="macro"),
        "log_loss": reference.log_loss(true, score),
        "auc_KL2": reference.roc_auc_score(true == 2, score[:, 2]),
        "recall_KL1": reference.recall_score(true == 1, called == 1),
    }
    if grades or kind == "ordinal":
        expected |= {
            "quadratic_kappa": reference.cohen_kappa_score(true, called, weights="quadratic"),
            "mae": reference.mean_absolute_error(true, called),
            "mse": reference.mean_squared_error(true, called),
        }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert ("mae" in found) == (grades or kind == "ordinal")


def test_multilabel_is_the_mean_of_labels_on_their_known_rows(make_task):
    task = make_task("multilabel")
    found = compute(task)
    known = ~np.isnan(task["y_true"])
    areas = [reference.roc_auc_score(task["y_true"][known[:, k], k], task["y_score"][known[:, k], k]) for k in range(4)]
    assert [found[f"auc_KL{k}"] for k in range(4)] == pytest.approx(areas)
    assert found["auc"] == pytest.approx(np.mean(areas))
    losses = [np.mean((task["y_true"][known[:, k], k] - task["y_score"][known[:, k], k]) ** 2) for k in range(4)]
    assert found["brier"] == pytest.approx(np.mean(losses))


def test_the_score_of_an_unknown_label_does_not_count(make_task):
    task = make_task("multilabel")
    changed = np.where(np.isnan(task["y_true"]), 0.999, task["y_score"])
    assert (changed != task["y_score"]).any()
    assert compute(task, y_score=changed) == pytest.approx(compute(task), nan_ok=True)


def test_predicted_grades_are_ranked_above_each_threshold(make_task):
    task = make_task("regression")
    found, true, value = compute(task), task["y_true"], task["y_score"][:, 0]
    above = [reference.roc_auc_score(true > k, value) for k in range(3)]
    assert [found[f"auc_above_KL{k}"] for k in range(3)] == pytest.approx(above)
    assert found["auc"] == pytest.approx(np.mean(above))
    assert found["mae"] == pytest.approx(np.abs(true - value).mean())
    rounded = np.clip(np.round(value), 0, 3)
    assert found["accuracy"] == pytest.approx((rounded == true).mean())
    assert found["quadratic_kappa"] == pytest.approx(reference.cohen_kappa_score(true, rounded, weights="quadratic"))


def test_values_without_grades_have_no_classes(make_task):
    found = compute(make_task("regression"), class_names=(), grades=False)
    assert set(found) == {"mae", "mse", "rmse", "r2", "pearson", "spearman"}


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_an_absent_class_takes_the_means_with_it_and_leaves_the_rest(make_task, kind):
    task = make_task(kind)
    rows = task["y_true"] != 3
    found = compute(task, y_true=task["y_true"][rows], y_score=task["y_score"][rows])
    for name in ("auc", "average_precision", "balanced_accuracy", "f1", "auc_KL3", "recall_KL3"):
        assert np.isnan(found[name]), name
    for name in ("accuracy", "brier", "auc_KL0", "recall_KL2"):
        assert np.isfinite(found[name]), name


def test_a_binary_split_of_one_class_keeps_what_is_defined(make_task):
    task = make_task("binary")
    rows = task["y_true"] == 0
    found = compute(task, y_true=task["y_true"][rows], y_score=task["y_score"][rows])
    defined = {name for name, value in found.items() if not np.isnan(value)}
    assert defined == {"accuracy", "brier", "log_loss", "ece", "specificity"}


@pytest.mark.parametrize("weights", [np.ones(59), -np.ones(60), np.full(60, np.nan)])
def test_weights_that_are_no_multiplicities_are_refused(make_task, weights):
    with pytest.raises(ValueError, match="weights"):
        compute(make_task("binary"), weights=weights)


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_is_defined_in_words_and_the_headlines_exist(make_task, kind):
    found = compute(make_task(kind))
    assert all(find_definition(name) for name in found)
    headlines = TASK_METRICS[GRADED_REGRESSION if kind == "regression" else kind].headlines
    assert set(headlines) <= found.keys()
    assert set(headlines) <= DEFINITIONS.keys()


def test_per_class_names_find_their_own_definition():
    assert find_definition("recall_KL2") is DEFINITIONS["recall"]
    assert find_definition("auc_above_KL2") is DEFINITIONS["auc_above"]
    assert find_definition("n_images") is None


def test_the_room_imports_neither_torch_nor_the_test_oracles():
    sources = list(Path(next(iter(medcls.statistics.__path__))).glob("*.py"))
    assert len(sources) > 10
    imported, with_scipy = set(), set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.split(".")[0] for name in names}
            with_scipy |= {source.name for name in names if name.split(".")[0] == "scipy"}
    assert "numpy" in imported
    assert not imported & {"torch", "torchvision", "sklearn", "pandas", "hydra", "omegaconf"}
    assert with_scipy == {"bounds.py", "paired.py", "fold_tests.py"}, "distributions of t, F and flips"
