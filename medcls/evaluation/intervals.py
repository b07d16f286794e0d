"""Confidence intervals by bootstrap over patients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medcls.evaluation.metrics import OF_PROBABILITIES, OF_RANKS, Estimates, Estimator, build_estimator
from medcls.evaluation.predictions import Floats, Integers, Predictions, check_predictions

CHUNK_VALUES = 200_000  # weights held at once: 1.6 MB stay in the cache
LEAST_REPLICATES = 40  # below them the percentiles of a 95 % interval lie outside what was drawn
LEAST_DEFINED = 0.9  # share of replicates in which a metric must exist for its interval to be given


def compute_intervals(
    kind: str,
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    patient_ids: Sequence[str],
    class_names: Sequence[str],
    grades: bool = False,
    thresholds: Sequence[float] = (),
    replicates: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """Every metric as {"value", "low", "high"}, and "reason" where one of them is null.

    Patients are drawn with replacement, each with all of its images, and the interval lies between the
    percentiles of the replicates. A metric without a value is null with a reason. An interval is null where
    one patient only is there, or where the metric is undefined (a class not drawn) in more than a tenth of
    the replicates; fewer are left out. The calibration error has value +- 1.96 standard deviations of the
    replicates instead, since resampling biases it upwards.

    Args:
        kind: As in `compute_metrics`, like the other arguments up to `thresholds`.
        y_true: Labels of N rows.
        y_score: Scores of N rows.
        patient_ids: (N,) one for each row.
        class_names: K names.
        grades: The classes are ordered grades.
        thresholds: Score from which class 1, or each label, is called; () = 0.5.
        replicates: Number of bootstrap samples, > 0.
        seed: The same seed and rows give the same intervals.
        level: Nominal coverage, in (0, 1).

    Raises:
        ValueError: An argument is out of range, or as in `compute_metrics`.

    Source: Efron & Tibshirani 1993, chapters 13 (percentile interval) and 12 (normal interval); patients as
        the unit after Field & Welsh 2007 (cluster bootstrap); the tenth is an own choice.
    """
    predictions = check_predictions(
        kind, y_true, y_score, class_names=class_names, grades=grades, thresholds=thresholds
    )
    return measure_predictions(predictions, patient_ids, replicates=replicates, seed=seed, level=level)


def measure_predictions(
    predictions: Predictions, patient_ids: Sequence[str], *, replicates: int = 2000, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, Any]]:
    """Return what `compute_intervals` does, for predictions that are checked already."""
    patients = number_patients(patient_ids, rows=len(predictions.y_score))
    return summarize(
        build_estimator(predictions),
        patients,
        replicates=replicates,
        seed=seed,
        level=level,
        explain=lambda name: explain_undefined(name, predictions),
    )


def explain_plainly(name: str) -> str:
    """Why a metric has no value where nothing is known but its name."""
    reasons = [reason for stem, reason in _REASONS.items() if name.startswith(stem)]
    return reasons[0] if reasons else "undefined for these rows"


def summarize(
    estimate: Estimator,
    patients: Integers,
    *,
    replicates: int,
    seed: int,
    level: float = 0.95,
    explain: Callable[[str], str] = explain_plainly,
) -> dict[str, dict[str, Any]]:
    """Value and interval of everything that `estimate` answers, as `compute_intervals` describes them.

    Args:
        estimate: Weights (R, N) to numbers (R,) by name; NaN = undefined.
        patients: (N,) patient number of each row, 0 … P-1, each present.
        replicates: Number of bootstrap samples, > 0.
        seed: Decides the samples.
        level: Nominal coverage, in (0, 1).
        explain: Name to the reason why it is undefined.
    """
    if replicates < 1 or not 0 < level < 1:
        raise ValueError(f"replicates is {replicates} and level {level}; expected >= 1 and between 0 and 1")
    values = estimate(np.ones((1, len(patients))))
    chunks = draw_replicates(patients, replicates=replicates, seed=seed)
    drawn = _concatenate([estimate(weights) for weights in chunks])
    single = bool(patients.max() == 0)
    return {
        name: describe_estimate(name, float(value[0]), drawn[name], level=level, single=single, explain=explain)
        for name, value in values.items()
    }


def draw_replicates(patients: Integers, *, replicates: int, seed: int) -> Iterator[Floats]:
    """Chunks (R, N) of row multiplicities, `replicates` rows in all.

    Args:
        patients: (N,) patient number of each row, 0 … P-1, each present.
        replicates: Number of bootstrap samples.
        seed: Decides all draws; how they fall into chunks does not matter.
    """
    generator = np.random.default_rng(seed)
    number = int(patients.max()) + 1
    rows_at_once = max(1, CHUNK_VALUES // len(patients))
    for start in range(0, replicates, rows_at_once):
        count = min(rows_at_once, replicates - start)
        drawn = np.zeros((count, number))
        for replicate in drawn:
            replicate[:] = np.bincount(generator.integers(number, size=number), minlength=number)
        yield drawn[:, patients]


def number_patients(patient_ids: Sequence[str], *, rows: int) -> Integers:
    """A number 0 … P-1 for the patient of each row; (N,).

    Raises:
        ValueError: There is not one identifier for each row.
    """
    identifiers = np.asarray(patient_ids, dtype=str)
    if identifiers.shape != (rows,):
        raise ValueError(f"patient_ids has shape {identifiers.shape}; expected one for each of the {rows} rows")
    return np.asarray(np.unique(identifiers, return_inverse=True)[1], dtype=np.int64)


def _concatenate(chunks: list[Estimates]) -> Estimates:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def describe_estimate(
    name: str,
    value: float,
    drawn: Floats,
    *,
    level: float = 0.95,
    single: bool = False,
    explain: Callable[[str], str] = explain_plainly,
) -> dict[str, Any]:
    """One entry of metrics.json.

    Args:
        name: Of the metric.
        value: On the rows as they are; NaN = undefined.
        drawn: (R,) of the replicates.
        level: Nominal coverage.
        single: There is one patient only.
        explain: Name to the reason why it is undefined.
    """
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None, "reason": explain(name)}
    defined = drawn[np.isfinite(drawn)]
    if single:
        reason = "one patient only: there is nothing to resample"
        return {"value": value, "low": None, "high": None, "reason": reason}
    if len(drawn) < LEAST_REPLICATES:
        reason = f"replicates={len(drawn)}: an interval needs {LEAST_REPLICATES}"
        return {"value": value, "low": None, "high": None, "reason": reason}
    if len(defined) < LEAST_DEFINED * len(drawn):
        reason = f"defined in only {len(defined)} of {len(drawn)} resamples of the patients: too few of a class"
        return {"value": value, "low": None, "high": None, "reason": reason}
    low, high = _bound(name, value, defined, level=level)
    return {"value": value, "low": low, "high": high}


def _bound(name: str, value: float, drawn: Floats, *, level: float) -> tuple[float, float]:
    """Percentiles of the replicates; for the calibration error a normal interval around the value."""
    if name == "ece" or name.startswith("ece_"):
        # Resampling adds noise to every bin, which an absolute distance turns into bias: the percentiles of
        # the replicates may all lie above the value. Their spread is still that of the estimate.
        reach = NormalDist().inv_cdf((1 + level) / 2) * float(drawn.std())
        return max(0.0, value - reach), min(1.0, value + reach)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def explain_undefined(name: str, predictions: Predictions) -> str:
    """Why this metric has no value for these rows, in one line."""
    if not predictions.probabilities and name.startswith(OF_PROBABILITIES):
        return "the scores are not probabilities in [0, 1]"
    if not predictions.decides and not name.startswith(OF_RANKS):
        return "no threshold is known"
    absent = find_absent_classes(predictions)
    if absent:
        return f"no image {', '.join(absent)}"
    return explain_plainly(name)


_REASONS = {
    "r2": "the true values are all equal",
    "pearson": "the true or the predicted values are all equal",
    "spearman": "the true or the predicted values are all equal",
    "calibration_slope": "the two classes are separated completely: no finite slope",
    "lr_positive": "no false positive: no finite ratio",
    "lr_negative": "no true negative: no finite ratio",
    "ppv": "a class is never predicted",
    "npv": "a class is always predicted",
    "mcc": "all images have one true or one predicted class",
    "quadratic_kappa": "all images have one and the same true and predicted grade",
}


def find_absent_classes(predictions: Predictions) -> list[str]:
    """What the true labels lack: names of classes, or for a multilabel task of the side of a label."""
    names = predictions.class_names
    if predictions.kind == "multilabel":
        sides = [(names[k], side) for k in range(len(names)) for side in (0, 1)]
        held = {
            (names[k], side) for k in range(len(names)) for side in (0, 1) if (predictions.y_true[:, k] == side).any()
        }
        return [f"{'with' if side else 'without'} {name}" for name, side in sides if (name, side) not in held]
    if predictions.kind == "regression" and not predictions.grades:
        return []
    present = set(predictions.grade_true.tolist())
    return [f"of class {name}" for k, name in enumerate(names) if k not in present]
