"""Compare the arms of a comparison over the same folds: metrics with intervals, and every pair tested.

The scores of different folds' models are not on one scale, so rows of different folds are never pooled: a metric is
computed within each fold and averaged. Bootstrap samples draw patients once for all arms, folds and repeats, so that
a patient who is drawn twice counts twice everywhere; of a holdout they draw its seeds, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from medcls.config import nearest
from medcls.statistics.bounds import Base
from medcls.statistics.fold_tests import FoldTest, compute_5x2_f, compute_corrected_t
from medcls.statistics.intervals import describe_estimates, draw_replicates, explain_undefined, number_patients
from medcls.statistics.metrics import Estimator
from medcls.statistics.paired import adjust_holm, describe_difference, or_nan, or_none
from medcls.statistics.predictions import Floats, Integers, Predictions
from medcls.statistics.shared_metrics import as_grades, build_shared_estimator, check_one_question
from medcls.statistics.support import Basis, Support, find_support


@dataclass(frozen=True, slots=True)
class FoldPredictions:
    """What one arm says about the test rows of one fold.

    Attributes:
        fold: Its name.
        repeat: Of the whole partition, from 1; of a holdout the number of its seed.
        number: In the repeat, from 1.
        predictions: Checked, of N rows.
        image_ids: (N,).
        patient_ids: (N,).
    """

    fold: str
    repeat: int
    number: int
    predictions: Predictions
    image_ids: Sequence[str]
    patient_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Arm:
    """values (F,) of each metric in each fold, and drawn (R,) means over the folds in each bootstrap sample."""

    values: dict[str, Floats]
    drawn: dict[str, Floats]


def assess_arms(
    arms: Mapping[str, Sequence[FoldPredictions]],
    *,
    design: str,
    metrics: Sequence[str] = (),
    test_share: float = 0.25,
    replicates: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what a comparison found.

    Args:
        arms: Name -> its predictions on each fold, the same folds and rows for all.
        design: "kfold", "repeated", "5x2" or "holdout": decides the test.
        metrics: Those in which all pairs are tested; () = all that every arm has.
        test_share: Test rows over the other rows of a fold.
        replicates: Bootstrap samples over patients.
        seed: Of them.

    Returns:
        "arms": name -> {"metrics": name -> {"value", "low", "high"[, "reason"]}, "folds": [{"fold", "repeat",
        "images", "patients", "metrics"}]}; "pairs": metric -> [{"first", "second", "difference", "test", "bootstrap"}],
        each test with "p_value" and "p_holm" over all pairs of the metric. Undefined numbers are None.

    Raises:
        ValueError: the arms have other rows, labels or classes, or a metric that they do not share.

    Source: corrected t and F tests: `resampling_tests`; bootstrap over patients: Efron & Tibshirani 1993, chapter 16,
        with intervals and p values as `paired.describe_difference`; over patients and seeds at once: Owen
        2007 (pigeonhole bootstrap); Holm 1979.
    """
    arms = _align(arms)
    kinds = [folds[0].predictions.kind for folds in arms.values()]
    first = next(iter(arms.values()))
    patients = _number_together(first)
    estimators = {
        name: [build_shared_estimator(one.predictions, kinds=kinds) for one in folds] for name, folds in arms.items()
    }
    draws = draw_replicates(np.arange(1 + max(int(p.max()) for p in patients)), replicates=replicates, seed=seed)
    seeds = np.random.default_rng([seed, 1]) if design == "holdout" else None
    measured = _measure(estimators, patients, draws=draws, seeds=seeds)
    chosen = _choose(measured, metrics)
    rests = {name: _count_support(arms[name], patients, measured[name]) for name in arms}
    described = {name: _describe_arm(arms[name], patients, measured[name], *rests[name]) for name in arms}
    entries = {name: one["metrics"] for name, one in described.items()}
    return {
        "arms": described,
        "pairs": {
            metric: _compare_pairs(measured, metric, entries=entries, rests=rests, design=design, test_share=test_share)
            for metric in chosen
        },
    }


def _align(arms: Mapping[str, Sequence[FoldPredictions]]) -> dict[str, list[FoldPredictions]]:
    """Return the arms with their folds in one order, checked to hold the same rows and truth."""
    ordered = {name: sorted(folds, key=lambda one: (one.repeat, one.number)) for name, folds in arms.items()}
    if any(one.predictions.has_grades for folds in ordered.values() for one in folds):
        ordered = {
            name: [replace(one, predictions=as_grades(one.predictions)) for one in folds]
            for name, folds in ordered.items()
        }
    reference, first = next(iter(ordered.items()))
    for name, folds in ordered.items():
        if [one.fold for one in folds] != [one.fold for one in first]:
            raise ValueError(f"arms {reference} and {name} have other folds: only arms over the same folds compare")
        for one, other in zip(first, folds, strict=True):
            try:
                check_one_question([one.predictions, other.predictions])
            except ValueError as error:
                raise ValueError(f"arms {reference} and {name} learn other things: {error}") from error
            alike = list(one.image_ids) == list(other.image_ids)
            if not alike or not np.array_equal(one.predictions.y_true, other.predictions.y_true, equal_nan=alike):
                raise ValueError(
                    f"arms {reference} and {name} have other images or labels in fold {one.fold}: only arms of one "
                    "label protocol compare"
                )
    return ordered


def _number_together(folds: Sequence[FoldPredictions]) -> list[Integers]:
    """(N,) patient number of each row in each fold, one numbering for all folds."""
    sizes = [len(one.patient_ids) for one in folds]
    every = number_patients([text for one in folds for text in one.patient_ids], rows=sum(sizes))
    return list(np.split(every, np.cumsum(sizes)[:-1]))


def _measure(
    arms: Mapping[str, Sequence[Estimator]],
    patients: Sequence[Integers],
    *,
    draws: Iterable[Floats],
    seeds: np.random.Generator | None,
) -> dict[str, _Arm]:
    """Return all arms on each chunk of draws in turn: of many patients no two chunks are in memory at once."""
    drawn: dict[str, list[dict[str, Floats]]] = {name: [] for name in arms}
    for weights in draws:
        counts = _draw_folds(len(weights), len(patients), seeds=seeds)
        for name, estimators in arms.items():
            drawn[name].append(_average(estimators, patients, weights, counts=counts))
    measured = {}
    for name, estimators in arms.items():
        plain = [estimate(np.ones((1, len(rows)))) for estimate, rows in zip(estimators, patients, strict=True)]
        values = {metric: np.array([float(one[metric][0]) for one in plain]) for metric in plain[0]}
        whole = {metric: np.concatenate([chunk[metric] for chunk in drawn[name]]) for metric in values}
        measured[name] = _Arm(values, whole)
    return measured


def _draw_folds(replicates: int, folds: int, *, seeds: np.random.Generator | None) -> Floats:
    """(F, R) how often each fold counts: once; seeds of a holdout as often as they are drawn, for all arms alike."""
    if seeds is None:
        return np.ones((folds, replicates))
    return np.asarray(seeds.multinomial(folds, np.full(folds, 1 / folds), size=replicates).T, np.float64)


def _average(
    estimators: Sequence[Estimator], patients: Sequence[Integers], weights: Floats, *, counts: Floats
) -> dict[str, Floats]:
    """Mean over the folds in each bootstrap sample; weights (R, P) are of the patients, counts (F, R) of the folds."""
    found = [estimate(weights[:, rows]) for estimate, rows in zip(estimators, patients, strict=True)]
    return {name: np.mean(counts * [one[name] for one in found], axis=0) for name in found[0]}


def _choose(measured: Mapping[str, _Arm], metrics: Sequence[str]) -> list[str]:
    shared = [name for name in next(iter(measured.values())).values if all(name in a.values for a in measured.values())]
    wrong = [name for name in metrics if name not in shared]
    if wrong:
        known = f"{', '.join(sorted(shared))}{nearest(wrong[0], shared)}"
        raise ValueError(f"the arms do not share a metric {wrong[0]}; they share {known}")
    return list(dict.fromkeys(metrics)) or shared


def _count_support(
    folds: Sequence[FoldPredictions], patients: Sequence[Integers], arm: _Arm
) -> tuple[Support, dict[str, Base]]:
    """Return what the means over the folds rest on, and its patients and rows."""
    support = _join_support(folds, arm.values)
    together, repeats = np.concatenate(patients), len({one.repeat for one in folds})
    counted = {"repeats": repeats, "folds": len(folds) // repeats}
    return support, {name: basis.count(together, **counted) for name, basis in support.items()}


def _describe_arm(
    folds: Sequence[FoldPredictions],
    patients: Sequence[Integers],
    arm: _Arm,
    support: Support,
    counts: Mapping[str, Base],
) -> dict[str, Any]:
    means = {name: float(values.mean()) for name, values in arm.values.items()}
    metrics = describe_estimates(means, arm.drawn, support, counts, explain=_explain(folds, arm.values))
    rows = [
        {
            "fold": one.fold,
            "repeat": one.repeat,
            "images": len(one.image_ids),
            "patients": len(np.unique(numbers)),
            "metrics": {name: or_none(float(values[k])) for name, values in arm.values.items()},
        }
        for k, (one, numbers) in enumerate(zip(folds, patients, strict=True))
    ]
    return {"metrics": metrics, "folds": rows}


def _join_support(folds: Sequence[FoldPredictions], names: Iterable[str]) -> Support:
    """Return what the means over the folds rest on: the rows of all folds, one after the other."""
    known = list(names)
    each = [find_support(one.predictions, known) for one in folds]
    joined: Support = {}
    for name in known:
        basis = each[0][name]
        sides, classes = (
            tuple(np.concatenate(side) for side in zip(*rows, strict=True))
            for rows in ([one[name].sides for one in each], [one[name].classes for one in each])
        )
        # The mean of ratios is not the ratio of the means: it is taken as an error, of all rows.
        alone = len(folds) == 1 or basis.scale != "ratio"
        joined[name] = replace(basis, sides=sides, classes=classes) if alone else Basis("error")
    return joined


def _explain(folds: Sequence[FoldPredictions], values: Mapping[str, Floats]) -> Any:
    """Return why a mean over folds has no value: the first fold in which the metric has none."""

    def explain(name: str) -> str:
        first = int(np.flatnonzero(~np.isfinite(values[name]))[0])
        return f"fold {folds[first].fold}: {explain_undefined(name, folds[first].predictions)}"

    return explain


def _compare_pairs(
    measured: Mapping[str, _Arm],
    metric: str,
    *,
    entries: Mapping[str, Mapping[str, Any]],
    rests: Mapping[str, tuple[Support, Mapping[str, Base]]],
    design: str,
    test_share: float,
) -> list[dict[str, Any]]:
    pairs = []
    for first, second in combinations(measured, 2):
        one, two = measured[first], measured[second]
        support, counts = rests[first]
        compared = describe_difference(
            metric,
            (entries[first], entries[second]),
            (one.drawn, two.drawn),
            support=support,
            counts=counts,
        )
        by_fold = one.values[metric] - two.values[metric]
        test = _test(by_fold, design=design, test_share=test_share)
        pairs.append(
            {
                "first": first,
                "second": second,
                "difference": compared["difference"],
                "by_fold": [or_none(float(value)) for value in by_fold],
                "test": test and {name: _plain(value) for name, value in test._asdict().items()},
                "bootstrap": {
                    name: compared[name] for name in ("low", "high", "p_value", "reason", "note") if name in compared
                },
            }
        )
    for kind in ("test", "bootstrap"):
        tested = [pair[kind] for pair in pairs if pair[kind]]
        for entry, p_value in zip(tested, adjust_holm([or_nan(e["p_value"]) for e in tested]), strict=True):
            entry["p_holm"] = or_none(p_value)
    return pairs


def _test(differences: Floats, *, design: str, test_share: float) -> FoldTest | None:
    """Return the test of the design; None for a holdout, which has no folds, only seeds."""
    if design == "holdout":
        return None
    if design == "5x2":
        return compute_5x2_f(differences.reshape(5, 2))
    return compute_corrected_t(differences, test_share=test_share)


def _plain(value: Any) -> Any:
    """As JSON takes it."""
    if isinstance(value, float):
        return or_none(value)
    return list(value) if isinstance(value, tuple) else value
