"""Recalibrate probabilities by a map that is fitted on one split and applied unchanged to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NotRequired, TypedDict

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


class FittedColumn(TypedDict, total=False):
    """A rising map of one column: a line on the logit (slope, intercept), or corners (scores, values)."""

    slope: float
    intercept: float
    scores: list[float]
    values: list[float]


class FittedMap(TypedDict):
    """A fitted map as calibration.json keeps it; `inverse` is 1 / temperature of all classes together."""

    method: str
    inverse: NotRequired[float]
    columns: NotRequired[list[FittedColumn]]


class ChosenMap(TypedDict):
    """A map, its method ("mixed" if labels differ), the held-out log losses, and the reason if it is none.

    `methods` of several labels: name to method.
    """

    method: str
    map: FittedMap
    log_loss: Mapping[str, object]
    methods: NotRequired[dict[str, str]]
    reason: NotRequired[str]


def fit_recalibration(method: str, predictions: Predictions) -> FittedMap:
    """Return the fitted map, ready for JSON.

    Binary and multilabel: one rising map for each column, of P(label). Multiclass and ordinal: one temperature for all
    classes; Platt and isotonic fit each class against the rest and divide by the sum (`list_methods` offers neither).

    Raises:
        ValueError: An unknown method, or a regression.

    Source: temperature: Guo et al. 2017; Platt 1999; isotonic: Zadrozny & Elkan 2002; all with the softened targets of
    Platt 1999.
    """
    if predictions.kind == "regression" or method not in METHODS:
        raise ValueError(f"method {method!r} of a {predictions.kind}: expected {', '.join(METHODS)}, no regression")
    if method == "none":
        return {"method": method}
    if method == "temperature" and predictions.traits.exclusive:
        return {"method": method, "inverse": _fit_softmax_slope(predictions)}
    fit = {"temperature": _fit_temperature, "platt": _fit_platt, "isotonic": _fit_isotonic}[method]
    columns = []
    for k, score in enumerate(predictions.y_score.T):
        true = predictions.y_true
        if predictions.traits.multiple:
            true = true[:, k]
        elif predictions.traits.exclusive:
            true = true == k
        known = ~np.isnan(true)
        columns.append(fit(true[known].astype(np.float64), score[known]))
    return {"method": method, "columns": columns}


def apply_recalibration(fitted: Mapping[str, Any], predictions: Predictions) -> Predictions:
    """Return the same rows with recalibrated probabilities and with thresholds mapped alike: who is called stays."""
    score = predictions.y_score
    if fitted["method"] == "none":
        return predictions
    if "inverse" in fitted:
        return replace(predictions, y_score=_sharpen(score, float(fitted["inverse"])))
    mapped = np.stack([_map_column(column, score[:, k]) for k, column in enumerate(fitted["columns"])], axis=1)
    if predictions.thresholds:
        moved = list(predictions.thresholds)
        for k, column in enumerate(fitted["columns"]):
            if np.isfinite(moved[k]):
                moved[k] = float(_map_column(column, np.array([moved[k]]))[0])
        return replace(predictions, y_score=mapped, thresholds=tuple(moved))
    if predictions.traits.exclusive:
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
    fewest = min(count_patients(predictions, patients).values())
    known = METHODS[1:2] if predictions.traits.exclusive else METHODS[1:]
    return ("none", *(method for method in known if fewest >= LEAST_PATIENTS[method]))


def count_patients(predictions: Predictions, patients: Integers) -> dict[str, int]:
    """Return the number of patients with a row of each class; of several labels with and without each."""
    groups = {}
    for k, name in enumerate(predictions.class_names):
        if predictions.traits.multiple:
            groups[name] = predictions.y_true[:, k] == 1
            groups[f"no {name}"] = predictions.y_true[:, k] == 0
        elif predictions.has_classes:
            groups[name] = predictions.grade_true == k
    return {name: len(np.unique(patients[rows])) for name, rows in groups.items()}


def choose_recalibration(predictions: Predictions, patients: Integers, *, seed: int = 0) -> ChosenMap:
    """Return the map to use, all held-out log losses, and the reason if it is none.

    Each map that the counts bear is fitted on four fifths of the patients and scored on the rest. A map with more
    parameters is taken only if its loss is lower by more than the standard error of the difference over patients:
    a difference by chance does not choose one, and the choice is never worse than no map. Of several labels each is
    chosen for itself.

    Args:
        predictions: Of the split that choices are made on.
        patients: (N,) patient number of each row.
        seed: Of the folds.

    Source: own choice, docs/decisions/0046-maps-that-the-counts-bear.md; one standard error: Breiman et al. 1984.
    """
    if predictions.kind != "multilabel":
        return _choose_map(predictions, patients, seed=seed)
    columns: list[FittedColumn] = []
    methods: dict[str, str] = {}
    losses: dict[str, object] = {}
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
        columns += found["map"].get("columns", [FittedColumn(slope=1.0, intercept=0.0)])
        methods[name], losses[name] = found["method"], found["log_loss"]
    kinds = set(methods.values())
    method = kinds.pop() if len(kinds) == 1 else "mixed"
    chosen: ChosenMap = {"method": method, "map": {"method": method}, "log_loss": losses, "methods": methods}
    if method == "none":
        chosen["reason"] = "no label has a map that is better than none by more than chance"
    else:
        chosen["map"]["columns"] = columns
    return chosen


def _choose_map(predictions: Predictions, patients: Integers, *, seed: int) -> ChosenMap:
    """Choose for one column, or for several classes together."""
    counts = count_patients(predictions, patients)
    rarest = min(counts, key=lambda name: counts[name])
    least = LEAST_PATIENTS["temperature"]
    if counts[rarest] < least:
        reason = f"{format_count(counts[rarest], 'patient')} of class {rarest}: a map needs {least} of each class"
        return {"method": "none", "map": {"method": "none"}, "log_loss": {}, "reason": reason}
    fold = _deal_folds(predictions.grade_true, patients, seed=seed)
    methods = list_methods(predictions, patients)
    rows = {method: np.empty(len(fold)) for method in methods}
    for held in range(FOLDS):
        rest, out = select_rows(predictions, fold != held), select_rows(predictions, fold == held)
        for method, losses in rows.items():
            mapped = apply_recalibration(fit_recalibration(method, rest), out)
            losses[fold == held] = compute_log_loss_rows(mapped.grade_true, mapped.y_score)
    chosen = "none"
    for method, losses in rows.items():
        difference = np.bincount(patients, weights=rows[chosen] - losses)
        if difference.sum() > np.sqrt(len(difference)) * difference.std():
            chosen = method
    means = {method: float(losses.mean()) for method, losses in rows.items()}
    found: ChosenMap = {"method": chosen, "map": fit_recalibration(chosen, predictions), "log_loss": means}
    if chosen == "none":
        found["reason"] = "no map is better than none by more than chance"
    return found


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


def _fit_temperature(true: Floats, score: Floats) -> FittedColumn:
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
    return _find_root(lambda b: float((expected - (_sharpen(predictions.y_score, b) * logs).sum(axis=1)).sum()))


def _sharpen(score: Floats, inverse: float) -> Floats:
    logs = inverse * np.log(np.clip(score, SMALLEST_PROBABILITY, 1))
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _find_root(gradient: Callable[[float], float]) -> float:
    """Where the falling gradient of a log likelihood crosses zero, within [1e-3, 1e3]; by bisection of the log."""
    low, high = 1e-3, 1e3
    for _ in range(STEPS):
        middle = float(np.sqrt(low * high))
        if gradient(middle) > 0:
            low = middle
        else:
            high = middle
    return float(np.sqrt(low * high))


def _fit_platt(true: Floats, score: Floats) -> FittedColumn:
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
        if (target - 1 / (1 + np.exp(-np.clip(offset + middle, -500, 500)))).sum() > 0:
            low = middle
        else:
            high = middle
    return {"slope": LEAST_SLOPE, "intercept": (low + high) / 2}


def _soften(true: Floats) -> Floats:
    """Targets that no number of rows makes certain, so that no map gives 0 or 1.

    Source: Platt 1999, section 2.2.
    """
    positives, negatives = true.sum(), len(true) - true.sum()
    return np.asarray(np.where(true == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2)))


def _fit_isotonic(true: Floats, score: Floats) -> FittedColumn:
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
