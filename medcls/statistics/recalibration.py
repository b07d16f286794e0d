"""Recalibrate probabilities by a map that is fitted on one split and applied unchanged to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from medcls.identity import format_count
from medcls.statistics.calibration import LOGIT_LIMIT, SMALLEST_PROBABILITY, compute_log_loss_rows
from medcls.statistics.predictions import Floats, Integers, Predictions, select_rows

METHODS = ("none", "temperature", "platt", "isotonic")
FOLDS = 5
STEPS = 100
LEAST_PATIENTS = {"temperature": 10, "platt": 20, "isotonic": 300}
"""Patients of the rarer class that a map needs: ten for each parameter, several hundred for a curve of any shape."""
LEAST_SLOPE = 1e-3
"""A map keeps the order of the scores: it never turns them round."""
_TILT = 1e-6
"""Share of the score itself in an isotonic map, so that different scores never become equal."""


def fit_recalibration(method: str, predictions: Predictions) -> dict[str, Any]:
    """Return the fitted map, ready for JSON.

    Binary and multilabel: one rising map for each column, of P(label). Multiclass and ordinal: one temperature for all
    classes; Platt and isotonic fit each class against the rest and divide by the sum (`list_methods` offers neither).

    Args:
        method: One of `METHODS`.
        predictions: Of the split it is fitted on; no regression.

    Raises:
        ValueError: An unknown method, or a regression.

    Source: temperature: Guo et al. 2017; Platt 1999; isotonic: Zadrozny & Elkan 2002; all with the softened targets of
    Platt 1999.
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
    """Return the same rows with recalibrated probabilities, and the thresholds mapped with them: who is called stays.

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
    if predictions.thresholds:
        pairs = zip(fitted["columns"], predictions.thresholds, strict=True)
        moved = tuple(t if np.isinf(t) else float(_map_column(column, np.array([t]))[0]) for column, t in pairs)
        return replace(predictions, y_score=mapped, thresholds=moved)
    if predictions.kind in ("multiclass", "ordinal"):
        total = mapped.sum(axis=1, keepdims=True)
        mapped = np.where(total > 0, mapped / np.where(total > 0, total, 1), 1 / mapped.shape[1])
    return replace(predictions, y_score=mapped)


def list_methods(predictions: Predictions, patients: Integers) -> tuple[str, ...]:
    """Return the maps that the counts bear, the one with the fewest parameters first.

    Several classes or grades get a temperature only: it keeps the most probable class of every row.

    Args:
        predictions: Of the split that choices are made on; no regression.
        patients: (N,) patient number of each row.
    """
    several = predictions.kind in ("multiclass", "ordinal")
    fewest = min(count_patients(predictions, patients).values())
    known = METHODS[1:2] if several else METHODS[1:]
    return ("none", *(method for method in known if fewest >= LEAST_PATIENTS[method]))


def count_patients(predictions: Predictions, patients: Integers) -> dict[str, int]:
    """Return the number of patients with a row of each class; of several labels with and without each."""
    names, true = predictions.class_names, predictions.y_true
    if predictions.kind == "multilabel":
        sides = {"": 1, "no ": 0}
        groups = {f"{side}{name}": true[:, k] == value for k, name in enumerate(names) for side, value in sides.items()}
    elif predictions.kind == "regression" and not predictions.grades:
        return {}
    else:
        groups = {name: predictions.grade_true == k for k, name in enumerate(names)}
    return {name: len(np.unique(patients[rows])) for name, rows in groups.items()}


def choose_recalibration(predictions: Predictions, patients: Integers, *, seed: int = 0) -> dict[str, Any]:
    """Return the map to use, all held-out log losses, and the reason if it is none.

    Each map that the counts bear is fitted on four fifths of the patients and scored on the rest. A map with more
    parameters is taken only if its loss is lower by more than the standard error of the difference over patients:
    a difference by chance does not choose one, and the choice is never worse than no map. Of several labels each is
    chosen for itself.

    Args:
        predictions: Of the split that choices are made on.
        patients: (N,) patient number of each row.
        seed: Of the folds.

    Returns:
        "method" ("mixed" if labels differ), "map" as `fit_recalibration` returns it, "log_loss", "reason", "methods"
        (of several labels: name to method).

    Source: own choice, docs/decisions/0046-maps-that-the-counts-bear.md; one standard error: Breiman et al. 1984.
    """
    if predictions.kind != "multilabel":
        return _choose_map(predictions, patients, seed=seed)
    columns, methods, losses = [], {}, {}
    for k, name in enumerate(predictions.class_names):
        rows = ~np.isnan(predictions.y_true[:, k])
        one = replace(
            predictions,
            kind="binary",
            y_true=predictions.y_true[rows, k].astype(np.int64),
            y_score=predictions.y_score[rows, k : k + 1],
            class_names=(f"no {name}", name),
            thresholds=(),
        )
        found = _choose_map(one, np.unique(patients[rows], return_inverse=True)[1], seed=seed)
        columns += found["map"].get("columns", [{"slope": 1.0, "intercept": 0.0}])
        methods[name], losses[name] = found["method"], found["log_loss"]
    kinds = set(methods.values())
    method = kinds.pop() if len(kinds) == 1 else "mixed"
    fitted = {"method": method} | ({"columns": columns} if method != "none" else {})
    reason = {"reason": "no label has a map that is better than none by more than chance"} if method == "none" else {}
    return {"method": method, "map": fitted, "log_loss": losses, "methods": methods} | reason


def _choose_map(predictions: Predictions, patients: Integers, *, seed: int) -> dict[str, Any]:
    """Choose for one column, or for several classes together."""
    none: dict[str, Any] = {"method": "none", "map": {"method": "none"}, "log_loss": {}}
    counts = count_patients(predictions, patients) if len(patients) else dict.fromkeys(predictions.class_names, 0)
    rarest = min(counts, key=lambda name: counts[name])
    if counts[rarest] < LEAST_PATIENTS["temperature"]:
        least = LEAST_PATIENTS["temperature"]
        return none | {
            "reason": f"{format_count(counts[rarest], 'patient')} of class {rarest}: a map needs {least} of each class"
        }
    fold = _deal_folds(predictions.grade_true, patients, seed=seed)
    rows = {
        method: _compute_held_out_losses(method, predictions, fold)[np.argsort(np.argsort(fold, kind="stable"))]
        for method in list_methods(predictions, patients)
    }
    chosen = "none"
    for method, losses in rows.items():
        difference = np.bincount(patients, weights=rows[chosen] - losses)
        if difference.sum() > np.sqrt(len(difference)) * difference.std():
            chosen = method
    means = {method: float(losses.mean()) for method, losses in rows.items()}
    reason = {} if chosen != "none" else {"reason": "no map is better than none by more than chance"}
    return {"method": chosen, "map": fit_recalibration(chosen, predictions), "log_loss": means} | reason


def _deal_folds(true: Integers, patients: Integers, *, seed: int) -> Integers:
    """Fold of each row: patients shuffled, then dealt out class by class, so that every fold has each."""
    number = int(patients.max()) + 1
    highest = np.zeros(number, dtype=np.int64)
    np.maximum.at(highest, patients, true)
    order = np.random.default_rng(seed).permutation(number)
    order = order[np.argsort(highest[order], kind="stable")]
    fold = np.empty(number, dtype=np.int64)
    fold[order] = np.arange(number) % FOLDS
    return np.asarray(fold[patients])


def _compute_held_out_losses(method: str, predictions: Predictions, fold: Integers) -> Floats:
    """Log loss of each row by the map of the other folds; (N,), sorted by fold."""
    rows = []
    for held in range(FOLDS):
        fitted = fit_recalibration(method, select_rows(predictions, fold != held))
        mapped = apply_recalibration(fitted, select_rows(predictions, fold == held))
        rows.append(compute_log_loss_rows(mapped.grade_true, mapped.y_score))
    return np.concatenate(rows)


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
        steps = np.interp(probability, column["scores"], column["values"])
        return np.asarray((1 - _TILT) * steps + _TILT * probability)
    eta = float(column["slope"]) * to_logit(probability) + float(column["intercept"])
    return np.asarray(1 / (1 + np.exp(-np.clip(eta, -500, 500))))


def _fit_temperature(true: Floats, score: Floats) -> dict[str, Any]:
    """Slope of the logit without intercept: 1 / temperature."""
    if not 0 < true.sum() < len(true):
        return {"slope": 1.0, "intercept": 0.0}
    logit, target = to_logit(score), _soften(true)
    slope = _find_root(lambda b: float(logit @ (target - 1 / (1 + np.exp(-np.clip(b * logit, -500, 500))))))
    return {"slope": slope, "intercept": 0.0}


def _fit_softmax_slope(predictions: Predictions) -> float:
    """1 / temperature of the log probabilities, which differ from the logits by a constant a row only."""
    true, logs = predictions.grade_true, np.log(np.clip(predictions.y_score, SMALLEST_PROBABILITY, 1))
    classes = logs.shape[1]
    # Platt's targets for more classes: a row more of its own class, and one of each other.
    kept = (np.bincount(true, minlength=classes) + 1.0) / (np.bincount(true, minlength=classes) + classes)
    target = np.repeat(((1 - kept) / (classes - 1))[true][:, None], classes, axis=1)
    target[np.arange(len(true)), true] = kept[true]
    expected = (target * logs).sum(axis=1)
    return _find_root(
        lambda b: float((expected - (_sharpen(predictions.y_score, b) * logs).sum(axis=1)).sum())
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
    target = _soften(true)
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
    if chosen[0] >= LEAST_SLOPE:
        return {"slope": float(chosen[0]), "intercept": float(chosen[1])}
    # The loss is convex: its minimum over slopes from the least on is at the least.
    offset = LEAST_SLOPE * design[:, 0]
    low, high = -50.0, 50.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        more = (target - 1 / (1 + np.exp(-np.clip(offset + middle, -500, 500)))).sum() > 0
        low, high = (middle, high) if more else (low, middle)
    return {"slope": LEAST_SLOPE, "intercept": (low + high) / 2}


def _soften(true: Floats) -> Floats:
    """Targets that no number of rows makes certain, so that no map gives 0 or 1.

    Source: Platt 1999, section 2.2.
    """
    positives, negatives = true.sum(), len(true) - true.sum()
    return np.asarray(np.where(true == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2)))


def _fit_isotonic(true: Floats, score: Floats) -> dict[str, Any]:
    """Return steps of the best rising function, by pooling adjacent violators; scores between two are interpolated."""
    if not 0 < true.sum() < len(true):
        return {"slope": 1.0, "intercept": 0.0}
    levels, index = np.unique(score, return_inverse=True)
    weight = np.bincount(index).astype(np.float64)
    mean = np.bincount(index, weights=_soften(true)) / weight
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
