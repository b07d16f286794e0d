"""Compare the arms of a comparison over the same folds: metrics with intervals, and every pair tested.

The scores of different folds' models are not on one scale, so rows of different folds are never pooled: a metric is
computed within each fold and averaged. Bootstrap samples draw patients once for all arms, folds and repeats, so that
a patient who is drawn twice counts twice everywhere; of a holdout they draw its seeds, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NotRequired, TypedDict

import numpy as np

from medcls.config import nearest
from medcls.statistics.fold_tests import compute_5x2_f, compute_corrected_t
from medcls.statistics.intervals import Drawn, MetricEntries, draw_replicates, explain_undefined, number_patients
from medcls.statistics.metrics import Estimates, Estimator
from medcls.statistics.paired import Tested, add_holm, describe_difference
from medcls.statistics.predictions import Floats, Integers, Predictions, or_none
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


class FoldNumbers(TypedDict):
    """One arm on one fold."""

    fold: str
    repeat: int
    images: int
    patients: int
    metrics: dict[str, float | None]


class ArmNumbers(TypedDict):
    """One arm: each metric as the mean over the folds, and the folds; the comparison adds the cost."""

    metrics: MetricEntries
    folds: list[FoldNumbers]
    cost: NotRequired[dict[str, float | None]]


class FoldsTested(Tested):
    """`fold_tests.FoldTest` as JSON takes it, corrected for all pairs of the metric."""

    name: str
    statistic: float | None
    df: list[int]


class Pair(TypedDict):
    """Two arms in one metric; a holdout has no test, only the bootstrap."""

    first: str
    second: str
    difference: float | None
    by_fold: list[float | None]
    test: FoldsTested | None
    bootstrap: Tested


class Assessed(TypedDict):
    """What a comparison found: arms by name, and by metric all pairs."""

    arms: dict[str, ArmNumbers]
    pairs: dict[str, list[Pair]]


@dataclass(frozen=True, slots=True)
class _Arm:
    """One arm: values (F,) of each metric in each fold, and its means over the folds with their replicates."""

    folds: Sequence[FoldPredictions]
    values: Mapping[str, Floats]
    means: Drawn


def assess_arms(
    arms: Mapping[str, Sequence[FoldPredictions]],
    *,
    design: str,
    metrics: Sequence[str] = (),
    test_share: float = 0.25,
    replicates: int = 2000,
    seed: int = 0,
) -> Assessed:
    """Return what a comparison found; undefined numbers are None.

    Args:
        arms: Name -> its predictions on each fold, the same folds and rows for all.
        design: "kfold", "repeated", "5x2" or "holdout": decides the test.
        metrics: Those in which all pairs are tested; () = all that every arm has.
        test_share: Test rows over the other rows of a fold.
        replicates: Bootstrap samples over patients.
        seed: Seed of the samples.

    Raises:
        ValueError: the arms have other rows, labels or classes, or a metric that they do not share.

    Source: corrected t and F tests: `fold_tests`; bootstrap over patients: Efron & Tibshirani 1993, chapter 16,
        with intervals and p values as `paired.describe_difference`; over patients and seeds at once: Owen
        2007 (pigeonhole bootstrap); Holm 1979.
    """
    arms = _align(arms)
    kinds = [folds[0].predictions.kind for folds in arms.values()]
    folds = next(iter(arms.values()))
    # One numbering of the patients for all folds.
    sizes = [len(one.patient_ids) for one in folds]
    together = number_patients([name for one in folds for name in one.patient_ids], rows=sum(sizes))
    patients = np.split(together, np.cumsum(sizes)[:-1])
    estimators = {
        name: [build_shared_estimator(one.predictions, kinds=kinds) for one in folds] for name, folds in arms.items()
    }
    draws = draw_replicates(np.arange(1 + int(together.max())), replicates=replicates, seed=seed)
    seeds = np.random.default_rng([seed, 1]) if design == "holdout" else None
    chunks = _draw(estimators, patients, draws=draws, seeds=seeds)
    measured = {}
    for name, folds in arms.items():
        plain = [estimate(np.ones((1, len(at)))) for estimate, at in zip(estimators[name], patients, strict=True)]
        values = {metric: np.array([float(one[metric][0]) for one in plain]) for metric in plain[0]}
        measured[name] = _Arm(folds, values, _collect(folds, values, chunks[name], together))
    shared = [name for name in next(iter(measured.values())).values if all(name in a.values for a in measured.values())]
    wrong = [name for name in metrics if name not in shared]
    if wrong:
        known = f"{', '.join(sorted(shared))}{nearest(wrong[0], shared)}"
        raise ValueError(f"the arms do not share a metric {wrong[0]}; they share {known}")
    return {
        "arms": {name: _describe_arm(arm, patients) for name, arm in measured.items()},
        "pairs": {
            metric: _compare_pairs(measured, metric, design=design, test_share=test_share)
            for metric in dict.fromkeys(metrics or shared)
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


def _draw(
    arms: Mapping[str, Sequence[Estimator]],
    patients: Sequence[Integers],
    *,
    draws: Iterable[Floats],
    seeds: np.random.Generator | None,
) -> dict[str, list[Estimates]]:
    """Return each arm's means over the folds in the bootstrap samples, chunk by chunk.

    All arms see each chunk in turn: of many patients no two chunks are in memory at once.
    """
    drawn: dict[str, list[Estimates]] = {name: [] for name in arms}
    folds = len(patients)
    for weights in draws:
        # How often each fold counts: once; seeds of a holdout as often as they are drawn, for all arms alike.
        counts = np.ones((folds, len(weights)))
        if seeds is not None:
            picked = seeds.multinomial(folds, np.full(folds, 1 / folds), size=len(weights))
            counts = np.asarray(picked.T, np.float64)
        for name, estimators in arms.items():
            found = [estimate(weights[:, rows]) for estimate, rows in zip(estimators, patients, strict=True)]
            drawn[name].append({m: np.mean(counts * [one[m] for one in found], axis=0) for m in found[0]})
    return drawn


def _collect(
    folds: Sequence[FoldPredictions], values: Mapping[str, Floats], chunks: Sequence[Estimates], together: Integers
) -> Drawn:
    """Return the means over the folds with their replicates; they rest on the rows of all folds together."""
    support = _join_support(folds, values)
    repeats = len({one.repeat for one in folds})
    counts = {
        name: basis.count(together, repeats=repeats, folds=len(folds) // repeats) for name, basis in support.items()
    }
    replicates = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in values}
    return Drawn({name: float(found.mean()) for name, found in values.items()}, replicates, support, counts)


def _join_support(folds: Sequence[FoldPredictions], names: Iterable[str]) -> Support:
    """Return what the means over the folds rest on: the rows of all folds, one after the other."""
    known = list(names)
    each = [find_support(one.predictions, known) for one in folds]
    joined: Support = {}
    for name in known:
        basis = each[0][name]
        if basis.scale == "ratio" and len(folds) > 1:
            # The mean of ratios is not the ratio of the means: it is taken as an error, of all rows.
            joined[name] = Basis("error")
            continue
        sides = zip(*(one[name].sides for one in each), strict=True)
        classes = zip(*(one[name].classes for one in each), strict=True)
        joined[name] = replace(
            basis, sides=tuple(map(np.concatenate, sides)), classes=tuple(map(np.concatenate, classes))
        )
    return joined


def _describe_arm(arm: _Arm, patients: Sequence[Integers]) -> ArmNumbers:
    def explain(name: str) -> str:
        # The first fold in which the metric has no value.
        one = arm.folds[int(np.flatnonzero(~np.isfinite(arm.values[name]))[0])]
        return f"fold {one.fold}: {explain_undefined(name, one.predictions)}"

    rows: list[FoldNumbers] = [
        {
            "fold": one.fold,
            "repeat": one.repeat,
            "images": len(one.image_ids),
            "patients": len(np.unique(numbers)),
            "metrics": {name: or_none(float(values[k])) for name, values in arm.values.items()},
        }
        for k, (one, numbers) in enumerate(zip(arm.folds, patients, strict=True))
    ]
    return {"metrics": arm.means.describe(explain), "folds": rows}


def _compare_pairs(measured: Mapping[str, _Arm], metric: str, *, design: str, test_share: float) -> list[Pair]:
    pairs: list[Pair] = []
    for first, second in combinations(measured, 2):
        one, two = measured[first], measured[second]
        compared = describe_difference(metric, one.means, two.means)
        by_fold = one.values[metric] - two.values[metric]
        bootstrap: Tested = {"low": compared["low"], "high": compared["high"], "p_value": compared["p_value"]}
        if "reason" in compared:
            bootstrap["reason"] = compared["reason"]
        if "note" in compared:
            bootstrap["note"] = compared["note"]
        pairs.append(
            {
                "first": first,
                "second": second,
                "difference": compared["difference"],
                "by_fold": [or_none(float(value)) for value in by_fold],
                "test": _test(by_fold, design=design, test_share=test_share),
                "bootstrap": bootstrap,
            }
        )
    add_holm(pair["test"] for pair in pairs if pair["test"])
    add_holm(pair["bootstrap"] for pair in pairs)
    return pairs


def _test(differences: Floats, *, design: str, test_share: float) -> FoldsTested | None:
    """Return the test of the design; None for a holdout, which has no folds, only seeds."""
    if design == "holdout":
        return None
    if design == "5x2":
        found = compute_5x2_f(differences.reshape(5, 2))
    else:
        found = compute_corrected_t(differences, test_share=test_share)
    return {
        "name": found.name,
        "statistic": or_none(found.statistic),
        "df": list(found.df),
        "p_value": or_none(found.p_value),
        "low": or_none(found.low),
        "high": or_none(found.high),
    }
