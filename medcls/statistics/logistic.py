"""Logistic and linear regression of many weightings of the same rows at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medcls.statistics.predictions import Floats

_STEPS = 25
_HALVINGS = 12
_CONVERGED = 1e-9
_FLAT = 1e-10  # curvature, and determinant of the scaled curvature, below which there is no maximum


def fit_logistic(
    design: Floats, outcome: Floats, *, offset: Floats, weights: Floats, penalty: Floats | None = None
) -> Floats:
    """Coefficients (R, P) of log odds = offset + coefficients @ design; NaN where the likelihood has no maximum.

    Args:
        design: (P, N), a row for each coefficient.
        outcome: (N,) 0 or 1.
        offset: (N,) part of the log odds that is held fixed.
        weights: (R, N) multiplicities.
        penalty: (R, P) or (P,): half of it times the squared coefficient is taken from the log likelihood; None = 0.

    Source: McCullagh & Nelder 1989, section 4.4 (Newton's method, here with halved steps); le Cessie & van
        Houwelingen 1992 (penalty).
    """
    ridge = np.broadcast_to(np.zeros(len(design)) if penalty is None else penalty, (len(weights), len(design)))
    coefficients = np.zeros((len(weights), len(design)))
    if len(weights) > 1:
        # The replicates begin to climb at the maximum of all of them together, if there is one.
        mean, mean_ridge = weights.mean(axis=0)[None], ridge.mean(axis=0)[None]
        together = fit_logistic(design, outcome, offset=offset, weights=mean, penalty=mean_ridge)
        coefficients[:] = np.nan_to_num(together)
    products = (design[:, None, :] * design[None, :, :]).reshape(len(design) ** 2, -1)
    positive = weights @ outcome
    both = (positive > 0) & (positive < weights.sum(axis=1))
    coefficients[~both] = np.nan
    running = np.flatnonzero(both)
    for _ in range(_STEPS):
        if running.size == 0:
            break
        problem = _Problem(design, outcome, offset, weights[running], ridge[running])
        before = coefficients[running]
        step, flat = problem.step(before, products)
        coefficients[running] = problem.climb(before, step)
        coefficients[running[flat]] = np.nan
        running = running[~flat & (np.abs(step).max(axis=1) > _CONVERGED)]
    coefficients[running] = np.nan
    return coefficients


class _Problem:
    """The penalised log likelihood of the replicates that still climb."""

    def __init__(self, design: Floats, outcome: Floats, offset: Floats, weights: Floats, ridge: Floats) -> None:
        self.design, self.outcome, self.offset, self.weights, self.ridge = design, outcome, offset, weights, ridge

    def step(self, at: Floats, products: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Newton's step (R, P), 0 where the curvature is flat, and where it is."""
        number = len(self.design)
        fitted = 1 / (1 + np.exp(-np.clip(at @ self.design + self.offset, -500, 500)))
        gradient = (self.weights * (self.outcome - fitted)) @ self.design.T - self.ridge * at
        curvature = ((self.weights * fitted * (1 - fitted)) @ products.T).reshape(-1, number, number)
        curvature += self.ridge[:, :, None] * np.eye(number)
        flat = _is_flat(curvature)
        curvature[flat] = np.eye(number)
        return np.where(flat[:, None], 0.0, np.linalg.solve(curvature, gradient[..., None])[..., 0]), flat

    def climb(self, at: Floats, step: Floats) -> Floats:
        """Return where the step leads, halved where it would lead down."""
        reach = np.ones((len(at), 1))
        # A Newton step that moves no log odds by more than 1 cannot lead down: the curvature changes by less than e.
        far = np.flatnonzero(np.abs(step @ self.design).max(axis=1) > 1)
        if len(far):
            some = _Problem(self.design, self.outcome, self.offset, self.weights[far], self.ridge[far])
            height = some.height(at[far])
            for _ in range(_HALVINGS):
                lower = some.height(at[far] + reach[far] * step[far]) < height - 1e-12 * np.abs(height)
                if not lower.any():
                    break
                reach[far[lower]] /= 2
        return np.asarray(at + reach * step)

    def height(self, at: Floats) -> Floats:
        """Return the penalised log likelihood, (R,)."""
        log_odds = at @ self.design + self.offset
        likelihood = (self.weights * (self.outcome * log_odds - np.logaddexp(0, log_odds))).sum(axis=1)
        return np.asarray(likelihood - (self.ridge * at**2).sum(axis=1) / 2)


def _is_flat(curvature: Floats) -> NDArray[np.bool_]:
    """Whether a maximum is not to be found: by determinant in units in which every coefficient has curvature 1."""
    diagonal = np.einsum("rpp->rp", curvature)
    scale = np.sqrt(np.maximum(diagonal, _FLAT))
    return np.asarray(
        (diagonal < _FLAT).any(axis=1) | (np.linalg.det(curvature / (scale[:, :, None] * scale[:, None])) < _FLAT)
    )


def fit_linear(
    design: Floats, outcome: Floats, *, offset: Floats, weights: Floats, penalty: Floats | None = None
) -> Floats:
    """Coefficients (R, P) of outcome = offset + coefficients @ design by least squares; arguments of `fit_logistic`.

    Half of `penalty` times the squared coefficient is added to half of the sum of squares.

    Source: Hoerl & Kennard 1970 (ridge).
    """
    number = len(design)
    ridge = np.broadcast_to(np.zeros(number) if penalty is None else penalty, (len(weights), number))
    products = (design[:, None, :] * design[None, :, :]).reshape(number**2, -1)
    curvature = (weights @ products.T).reshape(-1, number, number) + ridge[:, :, None] * np.eye(number)
    flat = _is_flat(curvature)
    curvature[flat] = np.eye(number)
    solved = np.linalg.solve(curvature, ((weights * (outcome - offset)) @ design.T)[..., None])[..., 0]
    return np.where(flat[:, None], np.nan, solved)
