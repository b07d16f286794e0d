"""Logistic or ridge regression on principal components of coarse voxels: the baseline of a 3-D network.

Source: Wen et al., Med Image Anal 2020;63:101694: 3-D networks rarely beat a linear model of voxels. The model itself,
its size and its grid of penalties are own choice, docs/decisions/0025.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge

from medcls.kinds import KINDS
from medcls.reproducibility import make_generator

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SIDE = 16
"""Voxels along each axis at most, after averaging."""

STRENGTHS = tuple(float(value) for value in 10.0 ** np.arange(-3, 4))
"""Inverse penalties that are tried, on components scaled to the first one's deviation."""

_COMPONENTS = 50
_FOLDS = 5
_STEPS = 2000
_CERTAIN = 10.0  # log odds of a label that every row has
_EXACT = 1000


@dataclass(frozen=True, slots=True)
class VoxelModel:
    """A linear map from coarse voxels to scores.

    Attributes:
        kind: Of the task: "binary", "multiclass", "ordinal" (its grades as classes), "multilabel" or "regression".
        weight: (L, F).
        bias: (L,).
        facts: How it was chosen, as JSON.
    """

    kind: str
    weight: Floats
    bias: Floats
    facts: dict[str, Any]

    def predict(self, features: NDArray[Any]) -> Floats:
        """Return the scores (N, K) that metrics take, of features (N, F): probabilities, or (N, 1) values."""
        logits = np.asarray(features, np.float64) @ self.weight.T + self.bias
        if KINDS[self.kind].numeric:
            return logits
        if KINDS[self.kind].thresholds:
            return np.asarray(np.exp(-np.logaddexp(0, -logits)))
        return np.asarray(np.exp(_log_softmax(logits)))


def shrink(volumes: NDArray[Any]) -> NDArray[np.float32]:
    """Return features (N, F): means over blocks, at most SIDE a side, each volume to mean 0 and deviation 1.

    Args:
        volumes: (N, C, D, H, W) as stored.
    """
    values: NDArray[Any] = volumes.astype(np.float32)
    for axis in (2, 3, 4):
        length = values.shape[axis]
        starts = np.linspace(0, length, min(SIDE, length) + 1).astype(int)
        sums = np.add.reduceat(values, starts[:-1], axis=axis)
        values = sums / np.diff(starts).reshape([-1 if a == axis else 1 for a in range(5)]).astype(np.float32)
    rows = values.reshape(len(values), -1)
    rows -= rows.mean(axis=1, keepdims=True)
    deviation = rows.std(axis=1, keepdims=True)
    return np.asarray(rows / np.where(deviation > 0, deviation, 1))


def fit_voxels(
    features: NDArray[Any], targets: Floats, patients: Sequence[Any], *, kind: str, seed: int = 0
) -> VoxelModel:
    """Return the model fitted on all rows, with the penalty that predicts held-out patients best.

    Standardisation and components are found anew in every fold: nothing of a held-out patient is seen.

    Args:
        features: (N, F).
        targets: (N, T): classes, numbers, or flags with NaN for unknown (multilabel).
        patients: (N,) whose rows they are.
        kind: Of the task.
        seed: Of the folds.
    """
    rows, names = np.asarray(features, np.float64), np.asarray(patients)
    fitted = []
    for target in targets.T:
        known = ~np.isnan(target)
        fitted.append(_fit_target(rows[known], target[known], names[known], kind=kind, seed=seed))
    facts = {"voxels": rows.shape[1], "rows": len(rows), "targets": [chosen for _, _, chosen in fitted]}
    weight, bias = (np.concatenate([each[part] for each in fitted]) for part in (0, 1))
    return VoxelModel(kind, weight, bias, facts)


def _fit_target(
    features: Floats, target: Floats, patients: NDArray[Any], *, kind: str, seed: int
) -> tuple[Floats, Floats, dict[str, Any]]:
    """Weight (L, F), bias (L,) and facts of one target."""
    folds = _assign_folds(target, patients, seed=seed)
    losses = np.zeros(len(STRENGTHS))
    for fold in np.unique(folds):
        held = folds == fold
        # A rare class may be missing from the other folds: then this one tells nothing of the penalty.
        if held.all() or (not KINDS[kind].numeric and set(target[held]) - set(target[~held])):
            continue
        space = _Space(features[~held], seed=seed)
        inner, outer = space.project(features[~held]), space.project(features[held])
        for i, strength in enumerate(STRENGTHS):
            weight, bias = _fit(inner, target[~held], strength=strength, kind=kind)
            losses[i] += _lose(outer @ weight.T + bias, target[held], kind=kind) * held.mean()
    strength = STRENGTHS[int(np.argmin(losses))]
    space = _Space(features, seed=seed)
    weight, bias = space.lift(*_fit(space.project(features), target, strength=strength, kind=kind))
    return weight, bias, {"C": strength, "components": space.size, "loss_by_C": losses.tolist()}


class _Space:
    """Standardised voxels and their principal components, found on training rows."""

    def __init__(self, features: Floats, *, seed: int) -> None:
        self.mean, deviation = features.mean(axis=0), features.std(axis=0)
        self.deviation = np.where(deviation > 0, deviation, 1)
        self.size = min(_COMPONENTS, len(features) - 1, features.shape[1]) or 1
        solver = "full" if min(features.shape) <= _EXACT else "randomized"
        found = PCA(self.size, svd_solver=solver, random_state=seed).fit((features - self.mean) / self.deviation)
        self.axes = found.components_ / (float(np.sqrt(found.explained_variance_[0])) or 1.0)

    def project(self, features: Floats) -> Floats:
        return np.asarray(((features - self.mean) / self.deviation) @ self.axes.T)

    def lift(self, weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        """Return the same map, of voxels instead of components."""
        voxels = weight @ self.axes / self.deviation
        return voxels, bias - voxels @ self.mean


def _fit(components: Floats, target: Floats, *, strength: float, kind: str) -> tuple[Floats, Floats]:
    """Weight (L, P) and bias (L,)."""
    if KINDS[kind].numeric:
        ridge = Ridge(alpha=1 / strength).fit(components, target)
        return ridge.coef_[None], np.array([ridge.intercept_])
    if len(np.unique(target)) == 1:
        return np.zeros((1, components.shape[1])), np.array([_CERTAIN if target[0] else -_CERTAIN])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged in _STEPS: the weakest penalties, which seldom win
        fitted = LogisticRegression(C=strength, max_iter=_STEPS).fit(components, target)
    if len(fitted.classes_) > 2 or KINDS[kind].thresholds:
        return fitted.coef_, fitted.intercept_
    return np.vstack([-fitted.coef_, fitted.coef_]) / 2, np.concatenate([-fitted.intercept_, fitted.intercept_]) / 2


def _lose(logits: Floats, target: Floats, *, kind: str) -> float:
    """Mean squared error, or mean minus log probability of the truth."""
    if KINDS[kind].numeric:
        return float(np.mean((logits[:, 0] - target) ** 2))
    logs = _log_softmax(np.hstack([np.zeros_like(logits), logits]) if logits.shape[1] == 1 else logits)
    return float(-np.mean(logs[np.arange(len(target)), target.astype(int)]))


def _log_softmax(logits: Floats) -> Floats:
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def _assign_folds(target: Floats, patients: NDArray[Any], *, seed: int) -> Integers:
    """Fold (N,) of each row: patients whole, sorted by target and then at random, dealt out in turn."""
    names, first, inverse = np.unique(patients, return_index=True, return_inverse=True)
    chance = make_generator("voxel folds", seed).random(len(names))
    order = np.lexsort((chance, target[first]))
    folds = np.empty(len(names), np.int64)
    folds[order] = np.arange(len(names)) % min(_FOLDS, len(names))
    return folds[inverse]
