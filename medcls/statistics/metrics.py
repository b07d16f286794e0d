"""Compute the metrics of metrics.json from predictions, by kind of task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcls.statistics.agreement import (
    compute_accuracy,
    compute_confusion,
    compute_grade_errors,
    compute_mcc,
    compute_pearson,
    compute_quadratic_kappa,
    compute_rates,
    compute_spearman,
    compute_value_errors,
)
from medcls.statistics.calibration import (
    compute_brier_rows,
    compute_confidence,
    compute_ece,
    compute_log_loss_rows,
    compute_slope_and_intercept,
)
from medcls.statistics.definitions import DEFINITIONS, PROBABILITIES, THRESHOLD, find_needs
from medcls.statistics.predictions import Floats, Predictions, ratio, weighted_mean
from medcls.statistics.ranking import build_ranking, compute_areas

Estimates = dict[str, Floats]
Estimator = Callable[[Floats], Estimates]


def compute_metrics(predictions: Predictions, *, weights: ArrayLike | None = None) -> dict[str, float]:
    """Return every metric of the task by name; NaN if it is undefined for these rows.

    `definitions.DEFINITIONS` defines them. A mean over classes is undefined if a class of the task has no row: a mean
    over the others would be another number under the same name.

    Args:
        predictions: Checked predictions of N rows.
        weights: (N,) multiplicity of each row, >= 0: the same result as repeating rows; ones by default.

    Raises:
        ValueError: Weights are not as above.

    Source: own choice of names; each definition names its source in `definitions.DEFINITIONS`.
    """
    rows = len(predictions.y_score)
    drawn = np.ones(rows) if weights is None else np.asarray(weights, dtype=np.float64)
    if drawn.shape != (rows,) or not np.isfinite(drawn).all() or (drawn < 0).any():
        raise ValueError(f"weights has shape {drawn.shape}; expected ({rows},) with finite values >= 0")
    estimates = build_estimator(predictions)(drawn[None, :])
    return {name: float(value[0]) for name, value in estimates.items()}


def build_estimator(predictions: Predictions) -> Estimator:
    """Return a function from weights (R, N) to all metrics, each (R,); what can be sorted once is sorted here."""
    if predictions.kind != "regression" and not (predictions.probabilities and predictions.decides):
        return _build_margins(predictions)
    estimate = _BUILDERS[predictions.kind](predictions)
    own = {
        name: row.build(predictions)
        for name, row in DEFINITIONS.items()
        if row.build is not None and predictions.kind in row.kinds
    }
    return lambda weights: estimate(weights) | {name: one(weights) for name, one in own.items()}


def _build_margins(predictions: Predictions) -> Estimator:
    """Return the metrics of scores on any scale: what needs probabilities, or a threshold that is not known, is NaN."""
    ranked = build_estimator(replace(predictions, probabilities=True))
    unknown = {PROBABILITIES} if predictions.decides else {PROBABILITIES, THRESHOLD}

    def estimate(weights: Floats) -> Estimates:
        found = ranked(weights)
        return found | {name: np.full(len(weights), np.nan) for name in found if find_needs(name) in unknown}

    return estimate


def _build_one_label(predictions: Predictions, true: NDArray[Any], column: int) -> Estimator:
    """Return all metrics of one yes-or-no label on the rows where it is known: rank, decision and calibration."""
    probability = predictions.y_score[:, column]
    rows = np.flatnonzero(~np.isnan(true))
    ranking = build_ranking(true == 1, probability, rows=rows)
    known_true, score = true[rows].astype(np.int64), probability[rows][:, None]
    predicted = predictions.called[rows, column].astype(np.int64)
    forecast, outcome = compute_confidence(known_true, score)
    brier, log_loss = compute_brier_rows(known_true, score), compute_log_loss_rows(known_true, score)

    def estimate(weights: Floats) -> Estimates:
        auc, average_precision = compute_areas(ranking, weights)
        drawn = weights if len(rows) == weights.shape[1] else weights[:, rows]
        confusion = compute_confusion(known_true, predicted, num_classes=2, weights=drawn)
        slope, intercept = compute_slope_and_intercept(forecast, outcome, weights=drawn)
        rates = {name: value[:, 1] for name, value in compute_rates(confusion).items()}
        sensitivity, specificity = rates["recall"], rates["specificity"]
        return {
            "auc": auc,
            "average_precision": average_precision,
            "accuracy": compute_accuracy(confusion),
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "ppv": rates["ppv"],
            "npv": rates["npv"],
            "lr_positive": ratio(sensitivity, 1 - specificity),
            "lr_negative": ratio(1 - sensitivity, specificity),
            "f1": rates["f1"],
            "mcc": compute_mcc(confusion),
            "brier": weighted_mean(drawn, brier),
            "log_loss": weighted_mean(drawn, log_loss),
            "ece": compute_ece(forecast, outcome, weights=drawn),
            "calibration_slope": slope,
            "calibration_intercept": intercept,
        }

    return estimate


def _build_multilabel(predictions: Predictions) -> Estimator:
    """Return each label as a binary task on its known rows, and the plain mean over the labels."""
    labels = [_build_one_label(predictions, true, k) for k, true in enumerate(predictions.y_true.T)]

    def estimate(weights: Floats) -> Estimates:
        by_label = [label(weights) for label in labels]
        averaged = [name for name in by_label[0] if DEFINITIONS[name].averaged]
        found = {name: np.mean([one[name] for one in by_label], axis=0) for name in averaged}
        for class_name, estimates in zip(predictions.class_names, by_label, strict=True):
            # A class has a recall; the sensitivity is that of the task.
            found |= {
                f"{name.replace('sensitivity', 'recall')}_{class_name}": value for name, value in estimates.items()
            }
        return found

    return estimate


def _build_multiclass(predictions: Predictions) -> Estimator:
    """Return one-vs-rest ranking, the most probable class, and calibration of its probability."""
    true, score, names = predictions.grade_true, predictions.y_score, predictions.class_names
    rankings = [build_ranking(true == k, score[:, k]) for k in range(len(names))]
    from_classes = build_from_classes(predictions)
    confidence, outcome = compute_confidence(true, score)
    brier, log_loss = compute_brier_rows(true, score), compute_log_loss_rows(true, score)

    def estimate(weights: Floats) -> Estimates:
        areas = np.asarray([compute_areas(ranking, weights) for ranking in rankings])
        return {
            "auc": areas[:, 0].mean(axis=0),
            "average_precision": areas[:, 1].mean(axis=0),
            **from_classes(weights),
            "brier": weighted_mean(weights, brier),
            "log_loss": weighted_mean(weights, log_loss),
            "ece": compute_ece(confidence, outcome, weights=weights),
            **{f"auc_{name}": areas[k, 0] for k, name in enumerate(names)},
            **{f"average_precision_{name}": areas[k, 1] for k, name in enumerate(names)},
        }

    return estimate


def build_from_classes(predictions: Predictions) -> Estimator:
    """Return a function from weights (R, N) to what needs only the true and predicted class of each row, each (R,)."""
    true, predicted, names = predictions.grade_true, predictions.grade_predicted, predictions.class_names

    def estimate(weights: Floats) -> Estimates:
        confusion = compute_confusion(true, predicted, num_classes=len(names), weights=weights)
        rates = compute_rates(confusion)
        estimates = {
            "accuracy": compute_accuracy(confusion),
            "balanced_accuracy": rates["recall"].mean(axis=1),
            "f1": rates["f1"].mean(axis=1),
            "mcc": compute_mcc(confusion),
        }
        if predictions.has_grades:
            mae, mse = compute_grade_errors(confusion)
            estimates |= {"quadratic_kappa": compute_quadratic_kappa(confusion), "mae": mae, "mse": mse}
        by_class = {f"{rate}_{name}": rates[rate][:, k] for rate in rates for k, name in enumerate(names)}
        return estimates | by_class

    return estimate


def _build_regression(predictions: Predictions) -> Estimator:
    """Errors of the value; with grades also those of the rounded value, and its ranking above each grade."""
    true, value = predictions.y_true, predictions.y_score[:, 0]

    def estimate(weights: Floats) -> Estimates:
        return {
            **compute_value_errors(true, value, weights=weights),
            "pearson": compute_pearson(true, value, weights=weights),
            "spearman": compute_spearman(true, value, weights=weights),
        }

    if not predictions.grades:
        return estimate
    grade, names = predictions.grade_true, predictions.class_names
    rankings = {f"auc_above_{name}": build_ranking(grade > k, value) for k, name in enumerate(names[:-1])}
    from_classes = build_from_classes(predictions)

    def estimate_graded(weights: Floats) -> Estimates:
        above = {name: compute_areas(ranking, weights)[0] for name, ranking in rankings.items()}
        mean = np.mean(list(above.values()), axis=0)
        # The errors of the value replace those of the rounded one.
        return {"auc": mean, **from_classes(weights), **above, **estimate(weights)}

    return estimate_graded


_BUILDERS: dict[str, Callable[[Predictions], Estimator]] = {
    "binary": lambda predictions: _build_one_label(predictions, predictions.grade_true, 0),
    "multiclass": _build_multiclass,
    "ordinal": _build_multiclass,
    "multilabel": _build_multilabel,
    "regression": _build_regression,
}
