"""A linear support vector machine on L2-normalised features: C chosen by folds of patients, margins as logits.

Source: Menegola et al., arXiv 1703.07479, by their code: balanced class weights, C from 1e-3 to 1e4 by AUC, one class
against the rest. Own choice (docs/decisions/0017): folds by patient instead of random rows, and the map to logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from medcls.errors import DataError
from medcls.statistics.predictions import Predictions
from medcls.statistics.ranking import build_ranking, compute_auc
from medcls.statistics.recalibration import fit_recalibration

GRID = tuple(10.0**exponent for exponent in range(-3, 5))
MAX_ITERATIONS = 10_000
_LEAST_SLOPE = 1e-3

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Svm:
    """What was found.

    Attributes:
        weight: (L, F); L = 1 for two classes, else one row a class against the rest.
        bias: (L,).
        slope: Logit = slope * decision value + shift.
        shift: 0 for more than two classes.
        cost: The chosen C.
        table: For each C: its mean AUC over the folds, and whether every fit converged.
        converged: Whether the last fit did.
        ranks: Whether decision values of held-out patients rise with the class at all.
    """

    weight: Floats
    bias: Floats
    slope: float
    shift: float
    cost: float
    table: list[dict[str, Any]]
    converged: bool
    ranks: bool


def fit_svm(
    features: NDArray[Any],
    targets: Integers,
    *,
    folds: Integers,
    costs: Iterable[float] = GRID,
    apart: tuple[NDArray[Any], Integers] | None = None,
) -> Svm:
    """Return the machine fitted on all rows with the C that ranks held-out patients best.

    Deterministic: the primal problem is solved, which draws no random numbers.

    Args:
        features: (N, F), of any scale; each row is divided by its L2 norm.
        targets: (N,) classes 0 … K-1.
        folds: (N,) fold of each row; all rows of a patient are in one, and every class in two.
        costs: Values of C that are tried.
        apart: Features and classes of other rows, on which the map to logits is fitted. Needed where the network that
            made the features was trained on the rows above: it knows them by heart, in whichever fold they are.

    Raises:
        DataError: no fold has two classes.
    """
    rows = normalize_rows(features)
    held_out = {cost: predict_held_out(rows, targets, folds=folds, cost=cost) for cost in costs}
    table = [
        {"C": cost, "auc": score_folds(decisions, targets, folds=folds), "converged": converged}
        for cost, (decisions, converged) in held_out.items()
    ]
    # The smallest of equals: the widest margin.
    best = max(table, key=lambda row: (row["auc"], -row["C"]))
    machine, converged = _fit(rows, targets, cost=best["C"])
    if apart is None:
        slope, shift, ranks = fit_logits(held_out[best["C"]][0], targets)
    else:
        decisions = machine.decision_function(normalize_rows(apart[0])).reshape(len(apart[1]), -1)
        slope, shift, ranks = fit_logits(decisions, apart[1])
    return Svm(
        weight=np.asarray(machine.coef_, np.float64),
        bias=np.asarray(machine.intercept_, np.float64),
        slope=slope,
        shift=shift,
        cost=best["C"],
        table=table,
        converged=converged,
        ranks=ranks,
    )


def normalize_rows(features: NDArray[Any]) -> Floats:
    """Return features (N, F) float64, each row divided by its L2 norm; rows of zeros stay."""
    rows = np.asarray(features, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1))


def predict_held_out(rows: Floats, targets: Integers, *, folds: Integers, cost: float) -> tuple[Floats, bool]:
    """Return decision values (N, L) of rows by machines that never saw their fold, and whether all converged."""
    all_converged = True
    decisions = np.empty((len(rows), 1 if targets.max() == 1 else int(targets.max()) + 1))
    for fold in np.unique(folds):
        held = folds == fold
        machine, converged = _fit(rows[~held], targets[~held], cost=cost)
        decisions[held] = machine.decision_function(rows[held]).reshape(held.sum(), -1)
        all_converged = all_converged and converged
    return decisions, all_converged


def _fit(rows: Floats, targets: Integers, *, cost: float) -> tuple[Any, bool]:
    machine = LinearSVC(C=cost, class_weight="balanced", dual=False, max_iter=MAX_ITERATIONS, random_state=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        machine.fit(rows, targets)
    return machine, not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def score_folds(decisions: Floats, targets: Integers, *, folds: Integers) -> float:
    """Return the mean AUC over folds (decision values of two machines are on two scales) and classes.

    Args:
        decisions: (N, L); L = 1: of class 1, else of each class against the rest.
        targets: (N,).
        folds: (N,).

    Raises:
        DataError: no fold has two classes.
    """
    areas = []
    for fold in np.unique(folds):
        held, once = folds == fold, np.ones((1, int((folds == fold).sum())))
        for column, k in enumerate([1] if decisions.shape[1] == 1 else range(decisions.shape[1])):
            ranking = build_ranking(targets[held] == k, decisions[held, column])
            areas.append(float(compute_auc(ranking, once)[0]))
    defined = [area for area in areas if np.isfinite(area)]
    if not defined:
        raise DataError("model.head=svm: no fold of the training patients has two classes: add patients of each class")
    return float(np.mean(defined))


def fit_logits(decisions: Floats, targets: Integers) -> tuple[float, float, bool]:
    """Return (slope, shift) that make decision values of held-out rows into logits, and whether they rank at all.

    Two classes: Platt's map. More: one temperature for all, fitted by the softmax. The slope is never negative, so that
    the order of the decision values stays.
    """
    unit = float(decisions.std()) or 1.0
    scaled = decisions / unit
    names = tuple(str(k) for k in range(int(targets.max()) + 1))
    if decisions.shape[1] == 1:
        probabilities = 1 / (1 + np.exp(-scaled))
        (fitted,) = fit_recalibration("platt", Predictions("binary", targets, probabilities, names, False))["columns"]
        slope, shift = fitted["slope"], fitted["intercept"]
    else:
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        found = fit_recalibration("temperature", Predictions("multiclass", targets, probabilities, names, False))
        slope, shift = found["inverse"], 0.0
    return max(slope, _LEAST_SLOPE) / unit, shift, slope > 2 * _LEAST_SLOPE
