"""Predict the manufacturer, or another column, from the network's features: a shortcut past the disease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from medcls.data.dataset import ImageView, StoreDataset
from medcls.evaluate.report_facts import read_subgroup_columns
from medcls.evaluate.split_predictions import SplitPredictions
from medcls.files import MODEL
from medcls.identity import format_count
from medcls.runs.model_file import read_model
from medcls.statistics.intervals import number_patients, summarize
from medcls.statistics.predictions import Floats, Integers, ratio
from medcls.statistics.ranking import Ranking, build_ranking, compute_auc
from medcls.statistics.support import Basis
from medcls.training.forward import PredictOptions, predict_rows

FOLDS = 5
PERMUTATIONS = 200
PENALTY = 1.0  # on standardised features, for each row


def measure_shortcuts(
    predictions: SplitPredictions,
    names: Sequence[str],
    options: PredictOptions,
    *,
    least_patients: int,
    replicates: int,
    seed: int,
) -> dict[str, object]:
    """Return for each named column what `compute_shortcut` finds; one more pass over the images."""
    columns, absent = read_subgroup_columns(predictions, names)
    answer: dict[str, object] = {name: {"reason": "the store has no such column"} for name in absent}
    true = predictions.opened.targets
    # A label that is not known is 0, and a column of its own says so.
    labels = np.nan_to_num(np.hstack([true, np.isnan(true)]))
    told_from = {"features": compute_features(predictions, options), "labels": labels}
    ids = predictions.rows.patient_ids
    for name, values in columns.items():
        answer[name] = compute_shortcut(
            told_from, values, ids, least_patients=least_patients, replicates=replicates, seed=seed
        )
    return answer


def compute_features(predictions: SplitPredictions, options: PredictOptions) -> Floats:
    """Return what the head sees of each opened row, (N, F)."""
    model = read_model(predictions.run / MODEL)[0].to(options.rules.device)
    opened = predictions.opened
    # The image's features only: what the columns say is no shortcut of the image.
    dataset = StoreDataset(opened.store, opened.rows, targets=opened.targets, view=ImageView(predictions.card.crop))
    return predict_rows(nn.Sequential(model.normalize, model.backbone), dataset, options)


def compute_shortcut(
    told_from: Mapping[str, Floats],
    values: Sequence[Any],
    patient_ids: Sequence[str],
    *,
    least_patients: int = 20,
    replicates: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the AUC with which a column is told from the features of held-out patients, and from only their labels.

    Scores of different folds' models are not on one scale: an AUC is taken within each fold and averaged, of the values
    one against the rest. The labels' AUC says how much of the features' the labels explain.

    Args:
        told_from: "features" (what the head sees) and "labels", (N, F) each, finite.
        values: (N,) of the column; None and values of few patients are left out.
        patient_ids: Patient of each row, (N,).
        least_patients: Fewest patients of a value.
        replicates: Bootstrap samples over patients.
        seed: Seed of folds and bootstrap.

    Returns:
        "values" with their patients, and for each entry of `told_from` {"value", "low", "high", "p_value"}; or
        "reason". "p_value" is of an AUC this high by chance: the share of 200 permutations of the patients' values.

    Source: own choice: ridge regression to indicators, five folds by patient; permutations after Ojala & Garriga 2010;
    the question is that of Zech et al. 2018.
    """
    named = np.array(["" if value is None else str(value) for value in values])
    ids = np.asarray(patient_ids, dtype=str)
    counts = {name: len(np.unique(ids[named == name])) for name in sorted(set(named.tolist()) - {""})}
    kept = {name: count for name, count in counts.items() if count >= least_patients}
    if len(kept) < 2:
        many = f"{format_count(len(kept), 'value')} with {least_patients} patients or more"
        return {"reason": f"{many}: nothing to tell apart"}
    rows = np.isin(named, list(kept))
    target = np.searchsorted(sorted(kept), named[rows]).astype(np.int64)
    patients = number_patients(ids[rows].tolist(), rows=int(rows.sum()))
    answer: dict[str, Any] = {"values": kept}
    for name, columns in told_from.items():
        folds = _prepare_folds(columns[rows], patients, seed=seed)
        answer[name] = _measure(folds, target, patients, replicates=replicates, seed=seed)
    return answer


@dataclass(frozen=True, slots=True)
class _Fold:
    """The held-out rows, the others, and the ridge regression as a matrix: others' indicators to held-out scores."""

    held: Integers
    others: Integers
    ridge: Floats


def _prepare_folds(columns: Floats, patients: Integers, *, seed: int) -> list[_Fold]:
    """Return the folds by patient; a model has not seen the patients that it scores."""
    fold = (np.random.default_rng(seed).permutation(int(patients.max()) + 1) % FOLDS)[patients]
    places = [(np.flatnonzero(fold == held), np.flatnonzero(fold != held)) for held in range(FOLDS)]
    return [_Fold(held, others, _solve_ridge(columns[others], columns[held])) for held, others in places]


def _measure(
    folds: Sequence[_Fold], target: Integers, patients: Integers, *, replicates: int, seed: int
) -> dict[str, Any]:
    rankings = _rank(folds, target)
    ones = np.ones((1, len(target)))

    def estimate(weights: Floats) -> dict[str, Floats]:
        each = {f"auc_{k}": _average(one, weights) for k, one in enumerate(rankings)}
        return {"auc": np.mean(list(each.values()), axis=0)} | each

    support = {f"auc_{k}": Basis("area", (target == k, target != k)) for k in range(len(rankings))}
    support["auc"] = Basis("mean", parts=tuple(support))
    found: dict[str, Any] = {**summarize(estimate, patients, support, replicates=replicates, seed=seed)["auc"]}
    # A patient's images have the value of the first: permuted are patients, not images.
    own = target[np.unique(patients, return_index=True)[1]]
    generator = np.random.default_rng([seed, 1])
    chance = []
    for _ in range(PERMUTATIONS):
        permuted = generator.permutation(own)[patients]
        chance.append(float(np.mean([_average(one, ones)[0] for one in _rank(folds, permuted)])))
    if found["value"] is None:
        return found | {"p_value": None}
    higher = int((np.array(chance) >= found["value"] - 1e-12).sum())
    return found | {"p_value": (higher + 1) / (PERMUTATIONS + 1)}


def _rank(folds: Sequence[_Fold], target: Integers) -> list[list[Ranking]]:
    """Return the ranking of the held-out rows of each fold, for each value against the rest."""
    indicators = np.eye(int(target.max()) + 1)[target]
    score = np.zeros(indicators.shape)
    for fold in folds:
        score[fold.held] = fold.ridge @ indicators[fold.others]
    return [
        [build_ranking(target == k, score[:, k], rows=fold.held) for fold in folds] for k in range(indicators.shape[1])
    ]


def _average(rankings: Sequence[Ranking], weights: Floats) -> Floats:
    """Return the mean AUC of the folds that hold both sides, in each replicate; (R,), NaN if no fold does."""
    areas = np.array([compute_auc(ranking, weights) for ranking in rankings])
    known = np.isfinite(areas)
    return ratio(np.where(known, areas, 0.0).sum(axis=0), known.sum(axis=0))


def _solve_ridge(columns: Floats, new: Floats) -> Floats:
    """Return the matrix (new, N) from known rows' indicators to scores, solved over the fewer of features and rows."""
    mean, spread = columns.mean(axis=0), columns.std(axis=0)
    scale = np.where(spread > 1e-12, spread, np.inf)
    known, asked = (columns - mean) / scale, (new - mean) / scale
    penalty = PENALTY * len(known) * np.eye(min(known.shape))
    if known.shape[1] < len(known):
        return np.asarray(asked @ np.linalg.solve(known.T @ known + penalty, known.T))
    return np.asarray(asked @ known.T @ np.linalg.inv(known @ known.T + penalty))
