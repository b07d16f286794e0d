"""A linear support vector machine on L2-normalised features: C chosen by folds of patients, margins as logits.

Source: Menegola et al., arXiv 1703.07479, by their code: balanced class weights, C from 1e-3 to 1e4 by AUC, one class
against the rest. Our choices: folds by patient instead of random rows, the map to logits (docs/decisions/0017), and the
solver (docs/decisions/0078): the objective of liblinear's LinearSVC, in time proportional to the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize

from medcls.errors import DataError
from medcls.statistics.predictions import Predictions
from medcls.statistics.ranking import build_ranking, compute_auc
from medcls.statistics.recalibration import fit_recalibration

GRID = tuple(10.0**exponent for exponent in range(-3, 5))
MAX_ITERATIONS = 1_000
# Of the gradient in the coordinates of the solver, in units of the square root of the objective at zero: held-out
# decision values are then nearer to the optimum than those of LinearSVC at its usual tolerance.
_TOLERANCE = 1e-6
_LEAST_SLOPE = 1e-3

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class TriedCost(TypedDict):
    """One C that was tried: its mean AUC over the folds, and whether every fit converged."""

    C: float
    auc: float
    converged: bool


@dataclass(frozen=True, slots=True)
class Svm:
    """What was found.

    Attributes:
        weight: (L, F); L = 1 for two classes, else one row a class against the rest.
        bias: (L,).
        slope: Logit = slope * decision value + shift.
        shift: 0 for more than two classes.
        cost: The chosen C.
        table: For each C that was tried: its mean AUC over the folds, and whether every fit converged.
        converged: Whether the last fit did.
        ranks: Whether decision values of held-out patients rise with the class at all.
    """

    weight: Floats
    bias: Floats
    slope: float
    shift: float
    cost: float
    table: list[TriedCost]
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
        costs: Values of C, ascending; after two falls in a row of the AUC the rest is not tried.
        apart: Features and classes of other rows, on which the map to logits is fitted. Needed where the network that
            made the features was trained on the rows above: it knows them by heart, in whichever fold they are.

    Raises:
        DataError: no fold has two classes.
    """
    rows = normalize_rows(features)
    problem = _Machines(rows, targets, folds=folds)
    held_out: dict[float, Floats] = {}
    table: list[TriedCost] = []
    for cost in costs:
        held_out[cost], converged = problem.predict_held_out(cost)
        area = score_folds(held_out[cost], targets, folds=folds)
        table.append({"C": cost, "auc": area, "converged": converged})
        last = [row["auc"] for row in table[-3:]]
        if len(last) == 3 and last[0] > last[1] > last[2]:
            break
    # The smallest of equals: the widest margin.
    best = max(table, key=lambda row: (row["auc"], -row["C"]))
    weight, bias, converged = problem.fit(best["C"])
    if apart is None:
        slope, shift, ranks = fit_logits(held_out[best["C"]], targets)
    else:
        decisions = normalize_rows(apart[0]) @ weight.T + bias
        slope, shift, ranks = fit_logits(decisions, apart[1])
    return Svm(
        weight=weight,
        bias=bias,
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


class _Machines:
    """The machines of all folds over one matrix of rows; rows of a fold that is held out have weight 0.

    A machine minimises |w|^2 / 2 + C sum_i c_i max(0, 1 - y_i (w x_i + b))^2, w with b, as in LinearSVC. For two
    classes c_i is the balanced weight of the class; for more it is that weight for rows of the machine's own class
    and 1 for the rest.

    Source: L-BFGS, Liu and Nocedal 1989, in the coordinates u = L'w with LL' = 1 + C X'X: there the second derivatives
    are near 1, whatever C and however alike the features.

    Args:
        rows: (N, F), each of length 1.
        targets: (N,) classes 0 … K-1.
        folds: (N,) fold of each row.
    """

    def __init__(self, rows: Floats, targets: Integers, *, folds: Integers) -> None:
        extended = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        self._basis: Floats | None = None
        if len(rows) < extended.shape[1]:
            # The answer is a sum of rows, so that as many coordinates are enough.
            self._basis, upper = np.linalg.qr(extended.T)
            extended = np.ascontiguousarray(upper.T)
        self._rows, self._targets, self._folds = extended, targets, folds
        self._classes = int(targets.max()) + 1
        self._products = extended.T @ extended
        self._found: dict[int | None, Floats] = {}

    def predict_held_out(self, cost: float) -> tuple[Floats, bool]:
        """Return decision values (N, L) of rows by machines that never saw their fold, and whether all converged."""
        all_converged = True
        decisions = np.empty((len(self._rows), 1 if self._classes == 2 else self._classes))
        for fold in np.unique(self._folds):
            held = self._folds == fold
            solution, converged = self._solve(cost, without=int(fold))
            decisions[held] = self._rows[held] @ solution
            all_converged = all_converged and converged
        return decisions, all_converged

    def fit(self, cost: float) -> tuple[Floats, Floats, bool]:
        """Return weight (L, F) and bias (L,) of the machine of all rows, and whether it converged."""
        solution, converged = self._solve(cost, without=None)
        full = solution if self._basis is None else self._basis @ solution
        return np.ascontiguousarray(full[:-1].T), full[-1].copy(), converged

    def _solve(self, cost: float, *, without: int | None) -> tuple[Floats, bool]:
        """Return the machine (F + 1, L) without a fold; begins where that of the C before ended."""
        held = np.zeros(len(self._rows), dtype=np.bool_) if without is None else self._folds == without
        signs, weights = self._weigh(~held)
        products = self._products - self._rows[held].T @ self._rows[held]
        factor = cholesky(np.eye(len(products)) + cost * products, lower=True)
        start = self._found.get(without, np.zeros((len(products), signs.shape[1])))

        def evaluate(flat: Floats) -> tuple[float, Floats]:
            solution = solve_triangular(factor, flat.reshape(start.shape), lower=True, trans="T")
            missing = np.maximum(0, 1 - signs * (self._rows @ solution))
            pull = weights * missing
            slope = solution - 2 * cost * (self._rows.T @ (signs * pull))
            value = 0.5 * float((solution**2).sum()) + cost * float((pull * missing).sum())
            return value, solve_triangular(factor, slope, lower=True).ravel()

        found = minimize(
            evaluate,
            (factor.T @ start).ravel(),
            jac=True,
            method="L-BFGS-B",
            options={
                "maxiter": MAX_ITERATIONS,
                "maxfun": 2 * MAX_ITERATIONS,
                "maxcor": 20,
                "ftol": 0.0,
                "gtol": _TOLERANCE * np.sqrt(cost * weights.sum()),
            },
        )
        self._found[without] = solve_triangular(factor, found.x.reshape(start.shape), lower=True, trans="T")
        return self._found[without], bool(found.success)

    def _weigh(self, kept: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Return y_i (N, L), 1 or -1, and c_i (N, L), balanced by the counts of the classes among the rows kept."""
        counts = np.bincount(self._targets[kept], minlength=self._classes)
        balanced = kept.sum() / ((counts > 0).sum() * np.maximum(counts, 1))
        own = self._targets[:, None] == (np.array([1]) if self._classes == 2 else np.arange(self._classes))
        rest = balanced[self._targets][:, None] if self._classes == 2 else np.ones((len(own), 1))
        weights = np.where(own, balanced[self._targets][:, None], rest) * kept[:, None]
        return np.where(own, 1.0, -1.0), np.asarray(weights, np.float64)


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
