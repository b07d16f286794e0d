"""Confidence intervals over patients: a bootstrap gives the spread, the number's scale gives the limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medcls.statistics.bounds import (
    Base,
    Limits,
    bound,
    combine_mean,
    combine_ratio,
    note_undercoverage,
)
from medcls.statistics.calibration import compute_confidence, expect_ece
from medcls.statistics.definitions import PROBABILITIES, RANKS, find_definition, find_needs, name_metric
from medcls.statistics.metrics import Estimates, Estimator, build_estimator
from medcls.statistics.predictions import Floats, Integers, Predictions
from medcls.statistics.support import Basis, Support, find_support

CHUNK_VALUES = 200_000  # weights held at once: 1.6 MB stay in the cache
LEAST_REPLICATES = 40  # fewer say too little of how much a number varies
LEAST_DEFINED = 0.9  # share of replicates in which a metric must exist for its interval to be given
NO_INTERVAL = "biased upwards by chance, the more the fewer images: no interval would be valid"
SINGLE = "one patient only: there is nothing to resample"
STILL = "it is the same in all resamples of the patients: no interval can be estimated"


def measure_predictions(
    predictions: Predictions, patient_ids: Sequence[str], *, replicates: int = 2000, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, Any]]:
    """Return every metric as {"value", "low", "high"}, and "reason" if one of them is null.

    Patients are drawn with replacement, each with all images. How the limits follow from the replicates depends on the
    metric (`bounds`): a share has Wilson's, an AUC Newcombe's, an error has limits that are symmetric in its logarithm.
    A metric without a value is null with a reason. An interval is null for a single patient, if the metric is undefined
    (a class not drawn) in more than a tenth of the replicates, and if it does not vary. The calibration error has none.

    Args:
        predictions: Checked predictions of N rows.
        patient_ids: (N,) patient of each row.
        replicates: Number of bootstrap samples, > 0.
        seed: The same seed and rows give the same intervals.
        level: Nominal coverage, in (0, 1).

    Raises:
        ValueError: An argument is out of range, or there is not one patient for each row.

    Source: patients as the unit: Field & Welsh 2007 (cluster bootstrap); limits: `bounds`; how often they hold the
        truth: docs/results/coverage.md.
    """
    patients = number_patients(patient_ids, rows=len(predictions.y_score))
    found = summarize(
        build_estimator(predictions),
        patients,
        support=lambda names: find_support(predictions, names),
        replicates=replicates,
        seed=seed,
        level=level,
        explain=lambda name: explain_undefined(name, predictions),
    )
    for name, calibrated in _expect_errors(predictions, patients, seed=seed).items():
        if found[name]["value"] is not None:
            reason = f"no interval: by chance alone a calibrated model would show about {calibrated:.3f} on these rows"
            found[name] |= {"calibrated": calibrated, "reason": reason}
    for name in _find_constant(predictions):
        if name in found and found[name]["value"] is not None:
            key = "note" if found[name]["low"] is not None else "reason"
            others = [found[name][key]] if key in found[name] else []
            found[name][key] = "; ".join(["all images were called the same", *others])
    return found


def _find_constant(predictions: Predictions) -> list[str]:
    """Metrics whose value follows from all rows being called the same, whatever the scores."""
    if predictions.kind in ("binary", "multilabel"):
        if not predictions.decides:
            return []
        suffixes = [f"_{name}" for name in predictions.class_names] if predictions.kind == "multilabel" else [""]
        constant = (predictions.called == predictions.called[:1]).all(axis=0)
        return [f"balanced_accuracy{suffix}" for suffix, same in zip(suffixes, constant, strict=True) if same]
    if predictions.kind == "regression" and not predictions.grades:
        return []
    same = len(set(predictions.grade_predicted.tolist())) == 1
    return ["quadratic_kappa", "balanced_accuracy"] if same else []


def _expect_errors(predictions: Predictions, patients: Integers, *, seed: int) -> dict[str, float]:
    """Return the calibration error of a calibrated model, by the metric's name; {} for a regression."""
    true, score = predictions.y_true, predictions.y_score
    if predictions.kind == "regression" or not predictions.probabilities:
        return {}
    if predictions.kind != "multilabel":
        return {"ece": expect_ece(*compute_confidence(predictions.grade_true, score), patients, seed=seed)}
    known = [np.flatnonzero(~np.isnan(column)) for column in true.T]
    each = {
        f"ece_{name}": expect_ece(score[rows, k], true[rows, k], patients[rows], seed=seed) if len(rows) else math.nan
        for k, (name, rows) in enumerate(zip(predictions.class_names, known, strict=True))
    }
    return each | {"ece": float(np.mean(list(each.values())))}


def explain_plainly(name: str) -> str:
    """Return why a metric has no value where nothing is known but its name."""
    definition = find_definition(name)
    return "undefined for these rows" if definition is None else definition.undefined


def summarize(
    estimate: Estimator,
    patients: Integers,
    *,
    support: Callable[[Iterable[str]], Support],
    replicates: int,
    seed: int,
    level: float = 0.95,
    explain: Callable[[str], str] = explain_plainly,
) -> dict[str, dict[str, Any]]:
    """Return value and interval of everything that `estimate` answers, as `measure_predictions` describes them.

    Args:
        estimate: Weights (R, N) to numbers (R,) by name; NaN = undefined.
        patients: (N,) patient number of each row, 0 … P-1, each present.
        support: Names to what the interval of each number rests on.
        replicates: Number of bootstrap samples, > 0.
        seed: Decides the samples.
        level: Nominal coverage, in (0, 1).
        explain: Name to the reason why it is undefined.
    """
    if replicates < 1 or not 0 < level < 1:
        raise ValueError(f"replicates is {replicates} and level {level}; expected >= 1 and between 0 and 1")
    values = {name: float(value[0]) for name, value in estimate(np.ones((1, len(patients)))).items()}
    chunks = draw_replicates(patients, replicates=replicates, seed=seed)
    drawn = join_replicates([estimate(weights) for weights in chunks])
    bases = support(values)
    counts = {name: basis.count(patients) for name, basis in bases.items()}
    return describe_estimates(values, drawn, bases, counts, level=level, explain=explain)


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
        places = generator.integers(number, size=(count, number)) + number * np.arange(count)[:, None]
        drawn = np.bincount(places.ravel(), minlength=count * number).reshape(count, number)
        yield drawn[:, patients].astype(np.float64)


def number_patients(patient_ids: Sequence[str], *, rows: int) -> Integers:
    """Return a number 0 … P-1 for the patient of each row; (N,).

    Raises:
        ValueError: There is not one identifier for each row.
    """
    identifiers = np.asarray(patient_ids, dtype=str)
    if identifiers.shape != (rows,):
        raise ValueError(f"patient_ids has shape {identifiers.shape}; expected one for each of the {rows} rows")
    return np.asarray(np.unique(identifiers, return_inverse=True)[1], dtype=np.int64)


def join_replicates(chunks: Sequence[Estimates]) -> Estimates:
    """Return all replicates of each number, (R,), from those of the chunks."""
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def describe_estimates(
    values: Mapping[str, float],
    drawn: Mapping[str, Floats],
    support: Support,
    counts: Mapping[str, Base],
    *,
    level: float = 0.95,
    explain: Callable[[str], str] = explain_plainly,
) -> dict[str, dict[str, Any]]:
    """Return the entries of metrics.json.

    Args:
        values: On the rows as they are; NaN = undefined.
        drawn: (R,) of the replicates.
        support: What each number rests on.
        counts: Its patients and rows on each side.
        level: Nominal coverage.
        explain: Name to the reason why it is undefined.
    """
    found: dict[str, Limits | str] = {}

    def limit(name: str) -> Limits | str:
        """Return the limits, or why there are none; those of parts first."""
        if name not in found:
            found[name] = _limit(name, values, drawn, support[name], counts[name], limit, level)
        return found[name]

    entries: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if not math.isfinite(value):
            entries[name] = {"value": None, "low": None, "high": None, "reason": explain(name)}
            continue
        limits = limit(name)
        if isinstance(limits, str):
            entries[name] = {"value": value, "low": None, "high": None, "reason": limits}
        else:
            entries[name] = {"value": value, "low": limits[0], "high": limits[1]}
            note = find_note(name, support, counts)
            entries[name] |= {"note": note} if note else {}
    return entries


def find_note(name: str, support: Support, counts: Mapping[str, Base]) -> str:
    """Return the note on the interval of a number, or of its difference; of a mean that of its part with the fewest.

    Args:
        name: Of the number.
        support: What each number rests on.
        counts: Its patients and rows.
    """
    parts = support[name].parts or (name,)
    notes = {part: note_undercoverage(support[part].scale, counts[part]) for part in parts}
    if name in notes or not any(notes.values()):
        return notes.get(name, "")
    worst = min((part for part in parts if notes[part]), key=lambda part: counts[part].smallest or 0)
    return f"{name_metric(worst)}: {notes[worst]}"


def _limit(
    name: str,
    values: Mapping[str, float],
    drawn: Mapping[str, Floats],
    basis: Basis,
    base: Base,
    limit: Callable[[str], Limits | str],
    level: float,
) -> Limits | str:
    if not math.isfinite(values[name]):
        return "a part of it is undefined"
    if basis.scale == "none":
        return NO_INTERVAL
    if len(drawn[name]) < LEAST_REPLICATES:
        return f"replicates={len(drawn[name])}: an interval needs {LEAST_REPLICATES}"
    if basis.parts:
        parts = [limit(part) for part in basis.parts]
        missing = [part for part in parts if isinstance(part, str)]
        if missing:
            return missing[0]
        given = [part for part in parts if not isinstance(part, str)]
        if basis.scale == "mean":
            correlation = correlate([drawn[part] for part in basis.parts])
            return combine_mean([values[part] for part in basis.parts], given, correlation)[1]
        return _limit_ratio(basis, [values[part] for part in basis.parts], given)
    if basis.side_names and base.fewest == 1:
        return f"1 patient {basis.side_names[base.patients.index(1)]}: there is nothing to resample"
    if max(base.patients) == 1:
        return SINGLE
    defined = drawn[name][np.isfinite(drawn[name])]
    if basis.scale not in ("share", "area") and len(defined) < LEAST_DEFINED * len(drawn[name]):
        return f"defined in only {len(defined)} of {len(drawn[name])} resamples of the patients: too few of a class"
    return bound(basis.scale, values[name], defined, base, level=level) or STILL


def _limit_ratio(basis: Basis, rates: Sequence[float], limits: Sequence[Limits]) -> Limits | str:
    """Return limits of a likelihood ratio, or of a predictive value, from those of sensitivity and specificity."""
    (sensitivity, specificity), (found, cleared) = rates, limits
    alarm, missed = (1 - cleared[1], 1 - cleared[0]), (1 - found[1], 1 - found[0])
    if basis.positive:
        low, high = combine_ratio(sensitivity, 1 - specificity, found, alarm)
    else:
        low, high = combine_ratio(1 - sensitivity, specificity, missed, cleared)
    if basis.scale == "predictive":
        odds = basis.prevalence / (1 - basis.prevalence)
        if basis.positive:
            return low * odds / (1 + low * odds), 1 / (1 + 1 / (high * odds)) if high > 0 else 0.0
        return 1 / (1 + high * odds), 1 / (1 + low * odds)
    return (low, high) if math.isfinite(high) else f"no finite upper limit: above {low:.3g}"


def correlate(drawn: Sequence[Floats]) -> Floats:
    """Return the correlation of the replicates of several numbers; 0 with one that does not vary."""
    rows = np.array(drawn)[:, np.isfinite(drawn).all(axis=0)]
    moving = rows.std(axis=1) > 1e-12 if rows.shape[1] > 1 else np.zeros(len(rows), dtype=bool)
    correlation = np.eye(len(rows))
    if moving.sum() > 1:
        correlation[np.ix_(moving, moving)] = np.corrcoef(rows[moving])
    return correlation


def explain_undefined(name: str, predictions: Predictions) -> str:
    """Return why this metric has no value for these rows, in one line."""
    if not predictions.probabilities and find_needs(name) == PROBABILITIES:
        return "the scores are not probabilities in [0, 1]"
    if not predictions.decides and find_needs(name) != RANKS:
        return "no threshold is known"
    absent = find_absent_classes(predictions)
    if absent:
        return f"no image {', '.join(absent)}"
    return explain_plainly(name)


def find_absent_classes(predictions: Predictions) -> list[str]:
    """Return what the true labels lack: names of classes, or for a multilabel task of the side of a label."""
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
