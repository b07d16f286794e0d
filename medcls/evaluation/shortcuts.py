"""Can the site be read from the model's features? Then a difference between sites may pass for disease."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.evaluation.intervals import number_patients, summarize
from medcls.evaluation.predictions import Floats, Integers
from medcls.evaluation.ranking import build_ranking, compute_auc

FOLDS = 5
PENALTY = 1.0  # on standardised features, for each row


def compute_shortcut(
    features: Floats,
    true: Floats,
    values: Sequence[Any],
    patient_ids: Sequence[str],
    *,
    least_patients: int = 20,
    replicates: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """AUC with which a column is told from the features of held-out patients, and from the labels alone.

    The mean over the values, one against the rest. The second says how much of the first the labels explain.

    Args:
        features: (N, F), finite: what the head sees.
        true: (N, T) labels; NaN counts as unknown.
        values: (N,) of the column; None and values of few patients are left out.
        patient_ids: (N,).
        least_patients: Fewest patients of a value.
        replicates: Bootstrap samples over patients.
        seed: Of folds and bootstrap.

    Returns:
        "values" with their patients, and "features" and "labels", each {"value", "low", "high"}; or "reason".

    Source: own choice: ridge regression to indicators, five folds by patient; the question is that of Zech et al.
    2018.
    """
    named = np.array(["" if value is None else str(value) for value in values])
    ids = np.asarray(patient_ids, dtype=str)
    counts = {name: len(np.unique(ids[named == name])) for name in sorted(set(named.tolist()) - {""})}
    kept = {name: count for name, count in counts.items() if count >= least_patients}
    if len(kept) < 2:
        return {"reason": f"{len(kept)} values with {least_patients} patients or more: nothing to tell apart"}
    rows = np.isin(named, list(kept))
    target = np.searchsorted(sorted(kept), named[rows])
    patients = number_patients(ids[rows].tolist(), rows=int(rows.sum()))
    known = np.nan_to_num(np.hstack([true[rows], np.isnan(true[rows])]))
    answer: dict[str, Any] = {"values": kept}
    for name, columns in (("features", features[rows]), ("labels", known)):
        score = _predict_held_out(columns, target, patients, seed=seed)
        rankings = [build_ranking(target == k, score[:, k]) for k in range(len(kept))]

        def estimate(weights: Floats, rankings: Any = rankings) -> dict[str, Floats]:
            return {"auc": np.mean([compute_auc(ranking, weights) for ranking in rankings], axis=0)}

        answer[name] = summarize(estimate, patients, replicates=replicates, seed=seed)["auc"]
    return answer


def _predict_held_out(columns: Floats, target: Integers, patients: Integers, *, seed: int) -> Floats:
    """Score of each value for each row, by a model that has not seen its patient; (N, K)."""
    number = int(patients.max()) + 1
    fold = (np.random.default_rng(seed).permutation(number) % FOLDS)[patients]
    score = np.zeros((len(target), int(target.max()) + 1))
    indicators = np.eye(score.shape[1])[target]
    for held in range(FOLDS):
        score[fold == held] = _fit_ridge(columns[fold != held], indicators[fold != held], columns[fold == held])
    return score


def _fit_ridge(columns: Floats, indicators: Floats, new: Floats) -> NDArray[np.float64]:
    """Ridge predictions for new rows; solved over features or over rows, whichever are fewer."""
    mean, spread = columns.mean(axis=0), columns.std(axis=0)
    scale = np.where(spread > 1e-12, spread, np.inf)
    known, asked = (columns - mean) / scale, (new - mean) / scale
    middle = indicators.mean(axis=0)
    penalty = PENALTY * len(known) * np.eye(min(known.shape))
    if known.shape[1] < len(known):
        weights = np.linalg.solve(known.T @ known + penalty, known.T @ (indicators - middle))
    else:
        weights = known.T @ np.linalg.solve(known @ known.T + penalty, indicators - middle)
    return np.asarray(asked @ weights + middle)
