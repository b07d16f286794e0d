"""Probabilities made truer by a map that is fitted on one split and applied unchanged to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.evaluation.calibration import LOGIT_LIMIT, SMALLEST_PROBABILITY, compute_log_loss_rows
from medcls.evaluation.predictions import Floats, Integers, Predictions

METHODS = ("none", "temperature", "platt", "isotonic")
FOLDS = 5
STEPS = 100


def fit_recalibration(method: str, predictions: Predictions) -> dict[str, Any]:
    """The fitted map, ready for JSON.

    Binary and multilabel: one map a column, of P(label). Multiclass and ordinal: one temperature for all classes;
    Platt and isotonic fit each class against the rest and divide by the sum.

    Args:
        method: One of `METHODS`.
        predictions: Of the split it is fitted on; no regression.

    Raises:
        ValueError: An unknown method, or a regression.

    Source: temperature: Guo et al. 2017; Platt 1999 with its smoothed targets; isotonic: Zadrozny & Elkan 2002.
    """
    if predictions.kind == "regression" or method not in METHODS:
        raise ValueError(f"method {method!r} of a {predictions.kind}: expected {', '.join(METHODS)}, no regression")
    if method == "none":
        return {"method": method}
    if method == "temperature" and predictions.kind in ("multiclass", "ordinal"):
        return {"method": method, "inverse": _fit_softmax_slope(predictions)}
    fit = {"temperature": _fit_temperature, "platt": _fit_platt, "isotonic": _fit_isotonic}[method]
    return {"method": method, "columns": [fit(true, score) for true, score in _columns(predictions)]}


def apply_recalibration(fitted: Mapping[str, Any], predictions: Predictions) -> Predictions:
    """The same rows with recalibrated probabilities.

    Args:
        fitted: What `fit_recalibration` answered, perhaps read back from JSON.
        predictions: Of the same task.
    """
    score = predictions.y_score
    if fitted["method"] == "none":
        return predictions
    if "inverse" in fitted:
        return replace(predictions, y_score=_sharpen(score, float(fitted["inverse"])))
    mapped = np.stack(
        [_map_column(column, score[:, k]) for k, column in enumerate(fitted["columns"])], axis=1
    )  # fmt: skip
    if predictions.kind in ("multiclass", "ordinal"):
        total = mapped.sum(axis=1, keepdims=True)
        mapped = np.where(total > 0, mapped / np.where(total > 0, total, 1), 1 / mapped.shape[1])
    return replace(predictions, y_score=mapped)


def choose_recalibration(predictions: Predictions, patients: Integers, *, seed: int = 0) -> dict[str, Any]:
    """The method with the lowest log loss on held-out patients of these rows, and all their losses.

    Each method is fitted on four fifths of the patients and scored on the rest, so that a flexible map is not
    chosen for having learnt the rows by heart.

    Args:
        predictions: Of the split that choices are made on.
        patients: (N,) patient number of each row.
        seed: Of the folds.

    Source: own choice.
    """
    number = int(patients.max()) + 1
    if number < 2 * FOLDS:
        return {"method": "none", "reason": f"{number} patients: too few to choose a method by {FOLDS} folds"}
    fold = (np.random.default_rng(seed).permutation(number) % FOLDS)[patients]
    losses = {method: _compute_held_out_loss(method, predictions, fold) for method in METHODS}
    finite = {method: loss for method, loss in losses.items() if np.isfinite(loss)}
    if not finite:
        return {"method": "none", "reason": "the log loss is undefined in every fold"}
    return {"method": min(finite, key=lambda method: finite[method]), "log_loss": finite}


def _compute_held_out_loss(method: str, predictions: Predictions, fold: Integers) -> float:
    rows = [np.zeros(0)]
    for held in range(FOLDS):
        fitted = fit_recalibration(method, select_rows(predictions, fold != held))
        rows.append(_log_loss_rows(apply_recalibration(fitted, select_rows(predictions, fold == held))))
    return float(np.concatenate(rows).mean())


def _log_loss_rows(predictions: Predictions) -> Floats:
    if predictions.kind != "multilabel":
        return compute_log_loss_rows(predictions.grade_true, predictions.y_score)
    parts = [
        compute_log_loss_rows(true.astype(np.int64), score[:, None]) for true, score in _columns(predictions)
    ]  # fmt: skip
    return np.concatenate(parts)


def select_rows(predictions: Predictions, rows: NDArray[Any]) -> Predictions:
    """The predictions of some rows, by index or mask."""
    return replace(predictions, y_true=predictions.y_true[rows], y_score=predictions.y_score[rows])


def _columns(predictions: Predictions) -> list[tuple[Floats, Floats]]:
    """Truth (0 or 1) and probability of each column, on the rows where the truth is known."""
    true, score = predictions.y_true, predictions.y_score
    if predictions.kind == "binary":
        return [(true.astype(np.float64), score[:, 0])]
    if predictions.kind == "multilabel":
        known = [~np.isnan(true[:, k]) for k in range(score.shape[1])]
        return [(true[rows, k], score[rows, k]) for k, rows in enumerate(known)]
    return [((true == k).astype(np.float64), score[:, k]) for k in range(score.shape[1])]


def to_logit(probability: Floats) -> Floats:
    """Log odds of probabilities taken within [1e-7, 1 - 1e-7]."""
    clipped = np.clip(probability, LOGIT_LIMIT, 1 - LOGIT_LIMIT)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _map_column(column: Mapping[str, Any], probability: Floats) -> Floats:
    if "scores" in column:
        return np.asarray(np.interp(probability, column["scores"], column["values"]))
    eta = float(column["slope"]) * to_logit(probability) + float(column["intercept"])
    return np.asarray(1 / (1 + np.exp(-np.clip(eta, -500, 500))))


def _fit_temperature(true: Floats, score: Floats) -> dict[str, Any]:
    """Slope of the logit without intercept: 1 / temperature."""
    if not 0 < true.sum() < len(true):
        return {"slope": 1.0, "intercept": 0.0}
    logit = to_logit(score)
    slope = _find_root(lambda b: float(logit @ (true - 1 / (1 + np.exp(-np.clip(b * logit, -500, 500))))))
    return {"slope": slope, "intercept": 0.0}


def _fit_softmax_slope(predictions: Predictions) -> float:
    """1 / temperature of the log probabilities, which differ from the logits by a constant a row only."""
    true, logs = predictions.grade_true, np.log(np.clip(predictions.y_score, SMALLEST_PROBABILITY, 1))
    chosen = logs[np.arange(len(true)), true]
    return _find_root(
        lambda b: float((chosen - (_sharpen(predictions.y_score, b) * logs).sum(axis=1)).sum())
    )  # fmt: skip


def _sharpen(score: Floats, inverse: float) -> Floats:
    logs = inverse * np.log(np.clip(score, SMALLEST_PROBABILITY, 1))
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _find_root(gradient: Any, *, low: float = 1e-3, high: float = 1e3) -> float:
    """Where the falling gradient of a log likelihood crosses zero, within [low, high]; by bisection of the log."""
    for _ in range(STEPS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if gradient(middle) > 0 else (low, middle)
    return float(np.sqrt(low * high))


def _fit_platt(true: Floats, score: Floats) -> dict[str, Any]:
    """Slope and intercept on the logit by Newton's method with halved steps."""
    positives, negatives = true.sum(), len(true) - true.sum()
    if not positives or not negatives:
        return {"slope": 1.0, "intercept": 0.0}
    target = np.where(true == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    design = np.stack([to_logit(score), np.ones(len(true))], axis=1)
    chosen = np.array([0.0, np.log((positives + 1) / (negatives + 1))])

    def loss(coefficients: Floats) -> float:
        eta = design @ coefficients
        return float((np.logaddexp(0, eta) - target * eta).sum())

    for _ in range(STEPS):
        fitted = 1 / (1 + np.exp(-np.clip(design @ chosen, -500, 500)))
        gradient = design.T @ (fitted - target)
        curvature = (design * (fitted * (1 - fitted))[:, None]).T @ design + 1e-12 * np.eye(2)
        step, scale = np.linalg.solve(curvature, gradient), 1.0
        while scale > 1e-10 and loss(chosen - scale * step) > loss(chosen):
            scale /= 2
        chosen = chosen - scale * step
        if float(np.abs(scale * step).max()) < 1e-10:
            break
    return {"slope": float(chosen[0]), "intercept": float(chosen[1])}


def _fit_isotonic(true: Floats, score: Floats) -> dict[str, Any]:
    """Steps of the best rising function, by pooling adjacent violators; scores between two are interpolated."""
    if not 0 < true.sum() < len(true):
        return {"slope": 1.0, "intercept": 0.0}
    levels, index = np.unique(score, return_inverse=True)
    weight = np.bincount(index).astype(np.float64)
    mean = np.bincount(index, weights=true) / weight
    blocks: list[list[float]] = []  # mean, weight, number of levels
    for value, size in zip(mean.tolist(), weight.tolist(), strict=True):
        blocks.append([value, size, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            last, before = blocks.pop(), blocks.pop()
            total = before[1] + last[1]
            blocks.append([(before[0] * before[1] + last[0] * last[1]) / total, total, before[2] + last[2]])
    values = np.repeat([block[0] for block in blocks], [int(block[2]) for block in blocks])
    # The corners alone say everything: a point between two equal ones does not.
    corner = np.ones(len(values), dtype=bool)
    corner[1:-1] = (values[1:-1] != values[:-2]) | (values[1:-1] != values[2:])
    return {"scores": levels[corner].tolist(), "values": values[corner].tolist()}
