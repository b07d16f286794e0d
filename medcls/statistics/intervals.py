"""Confidence intervals over patients: a bootstrap gives the spread, the number's scale gives the limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np

from medcls.statistics.bounds import Base, Limits, bound, combine_mean, combine_ratio, note_undercoverage
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


class MetricEntry(TypedDict):
    """A number of metrics.json with its interval; null where undefined, and then `reason` says why.

    `note` is what a reader must know of the interval, `calibrated` the calibration error that chance alone would show.
    """

    value: float | None
    low: float | None
    high: float | None
    reason: NotRequired[str]
    note: NotRequired[str]
    calibrated: NotRequired[float]


MetricEntries = dict[str, MetricEntry]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Numbers on the rows as they are, and in the replicates, which say how much they vary.

    Attributes:
        values: By name; NaN = undefined.
        replicates: (R,) of each number.
        support: What each number rests on.
        counts: Its patients and rows on each side.
    """

    values: Mapping[str, float]
    replicates: Mapping[str, Floats]
    support: Support
    counts: Mapping[str, Base]

    def describe(self, explain: Callable[[str], str]) -> MetricEntries:
        """Return every number as an entry of metrics.json; `explain` says why a number is undefined."""
        return {name: self.describe_one(name, explain) for name in self.values}

    def describe_one(self, name: str, explain: Callable[[str], str]) -> MetricEntry:
        """Return one number as an entry of metrics.json."""
        value = self.values[name]
        if not math.isfinite(value):
            return {"value": None, "low": None, "high": None, "reason": explain(name)}
        limits = self.limit(name)
        if isinstance(limits, str):
            return {"value": value, "low": None, "high": None, "reason": limits}
        entry: MetricEntry = {"value": value, "low": limits[0], "high": limits[1]}
        note = self.find_note(name)
        if note:
            entry["note"] = note
        return entry

    def find_note(self, name: str) -> str:
        """Return the note on the interval of a number, or of its difference; of a mean that of its smallest part."""
        parts = self.support[name].parts or (name,)
        notes = {part: note_undercoverage(self.support[part].scale, self.counts[part]) for part in parts}
        if name in notes or not any(notes.values()):
            return notes.get(name, "")
        worst = min((part for part in parts if notes[part]), key=lambda part: self.counts[part].smallest or 0)
        return f"{name_metric(worst)}: {notes[worst]}"

    def limit(self, name: str) -> Limits | str:
        """Return the limits of a number, or why there are none."""
        basis, base, drawn = self.support[name], self.counts[name], self.replicates[name]
        if not math.isfinite(self.values[name]):
            return "a part of it is undefined"
        if basis.scale == "none":
            return NO_INTERVAL
        if len(drawn) < LEAST_REPLICATES:
            return f"replicates={len(drawn)}: an interval needs {LEAST_REPLICATES}"
        if basis.parts:
            return self._limit_whole(basis)
        if basis.side_names and base.fewest == 1:
            return f"1 patient {basis.side_names[base.patients.index(1)]}: there is nothing to resample"
        if max(base.patients) == 1:
            return SINGLE
        defined = drawn[np.isfinite(drawn)]
        if basis.scale not in ("share", "area") and len(defined) < LEAST_DEFINED * len(drawn):
            return f"defined in only {len(defined)} of {len(drawn)} resamples of the patients: too few of a class"
        return bound(basis.scale, self.values[name], defined, base) or STILL

    def _limit_whole(self, basis: Basis) -> Limits | str:
        """Return the limits of a mean or a ratio from those of its parts, or why the first part without has none."""
        limits: list[Limits] = []
        for part in basis.parts:
            found = self.limit(part)
            if isinstance(found, str):
                return found
            limits.append(found)
        values = [self.values[part] for part in basis.parts]
        if basis.scale == "mean":
            return combine_mean(values, limits, correlate([self.replicates[part] for part in basis.parts]))[1]
        return _limit_ratio(basis, values, limits)


def _limit_ratio(basis: Basis, rates: Sequence[float], limits: Sequence[Limits]) -> Limits | str:
    """Return limits of a likelihood ratio, or of a predictive value, from those of sensitivity and specificity."""
    (sensitivity, specificity), (found, cleared) = rates, limits
    alarm, missed = (1 - cleared[1], 1 - cleared[0]), (1 - found[1], 1 - found[0])
    if basis.positive:
        low, high = combine_ratio(sensitivity, 1 - specificity, found, alarm)
    else:
        low, high = combine_ratio(1 - sensitivity, specificity, missed, cleared)
    if basis.scale != "predictive":
        return (low, high) if math.isfinite(high) else f"no finite upper limit: above {low:.3g}"
    odds = basis.prevalence / (1 - basis.prevalence)
    if basis.positive:
        return low * odds / (1 + low * odds), 1 / (1 + 1 / (high * odds)) if high > 0 else 0.0
    return 1 / (1 + high * odds), 1 / (1 + low * odds)


def correlate(drawn: Sequence[Floats]) -> Floats:
    """Return the correlation of the replicates of several numbers; 0 with one that does not vary."""
    rows = np.array(drawn)[:, np.isfinite(drawn).all(axis=0)]
    moving = rows.std(axis=1) > 1e-12 if rows.shape[1] > 1 else np.zeros(len(rows), dtype=bool)
    correlation = np.eye(len(rows))
    if moving.sum() > 1:
        correlation[np.ix_(moving, moving)] = np.corrcoef(rows[moving])
    return correlation


def measure_predictions(
    predictions: Predictions, patient_ids: Sequence[str], *, replicates: int = 2000, seed: int = 0
) -> MetricEntries:
    """Return every metric with its 95 % interval.

    Patients are drawn with replacement, each with all images. How the limits follow from the replicates depends on the
    metric (`bounds`): a share has Wilson's, an AUC Newcombe's, an error has limits that are symmetric in its logarithm.
    A metric without a value is null with a reason. An interval is null for a single patient, if the metric is undefined
    (a class not drawn) in more than a tenth of the replicates, and if it does not vary. The calibration error has none.

    Args:
        predictions: Checked predictions of N rows.
        patient_ids: (N,) patient of each row.
        replicates: Number of bootstrap samples, > 0.
        seed: The same seed and rows give the same intervals.

    Raises:
        ValueError: An argument is out of range, or there is not one patient for each row.

    Source: patients as the unit: Field & Welsh 2007 (cluster bootstrap); limits: `bounds`; how often they hold the
        truth: docs/results/coverage.md.
    """
    patients = number_patients(patient_ids, rows=len(predictions.y_score))
    found = summarize_metrics(predictions, patients, replicates=replicates, seed=seed)
    for name, calibrated in _expect_errors(predictions, patients, seed=seed).items():
        if found[name]["value"] is not None:
            found[name]["calibrated"] = calibrated
            found[name]["reason"] = (
                f"no interval: by chance alone a calibrated model would show about {calibrated:.3f} on these rows"
            )
    for name in _find_constant(predictions):
        entry = found.get(name)
        if entry is None or entry["value"] is None:
            continue
        said = "all images were called the same"
        if entry["low"] is None:
            entry["reason"] = "; ".join(filter(None, [said, entry.get("reason")]))
        else:
            entry["note"] = "; ".join(filter(None, [said, entry.get("note")]))
    return found


def _find_constant(predictions: Predictions) -> list[str]:
    """Return the metrics whose value follows from all rows being called the same, whatever the scores."""
    if predictions.traits.thresholds:
        if not predictions.decides:
            return []
        constant = (predictions.called == predictions.called[:1]).all(axis=0)
        if predictions.kind == "binary":
            return ["balanced_accuracy"] * int(constant[0])
        names = zip(predictions.class_names, constant, strict=True)
        return [f"balanced_accuracy_{name}" for name, same in names if same]
    if predictions.has_classes and len(set(predictions.grade_predicted.tolist())) == 1:
        return ["quadratic_kappa", "balanced_accuracy"]
    return []


def _expect_errors(predictions: Predictions, patients: Integers, *, seed: int) -> dict[str, float]:
    """Return the calibration error of a calibrated model, by the metric's name; {} for a regression."""
    if predictions.kind == "regression" or not predictions.probabilities:
        return {}
    true, score = predictions.y_true, predictions.y_score
    if predictions.kind != "multilabel":
        return {"ece": expect_ece(*compute_confidence(predictions.grade_true, score), patients, seed=seed)}
    each = {}
    for k, name in enumerate(predictions.class_names):
        rows = np.flatnonzero(~np.isnan(true[:, k]))
        each[f"ece_{name}"] = math.nan
        if len(rows):
            each[f"ece_{name}"] = expect_ece(score[rows, k], true[rows, k], patients[rows], seed=seed)
    return each | {"ece": float(np.mean(list(each.values())))}


def summarize_metrics(predictions: Predictions, patients: Integers, *, replicates: int, seed: int) -> MetricEntries:
    """Return the entries of all metrics of the task, as `measure_predictions` describes them.

    Args:
        predictions: Checked predictions of N rows.
        patients: (N,) patient number of each row, 0 … P-1, each present.
        replicates: Number of bootstrap samples, > 0.
        seed: Seed of the samples.
    """
    estimate = build_estimator(predictions)
    support = find_support(predictions, estimate(np.ones((1, len(patients)))))
    return summarize(
        estimate,
        patients,
        support,
        replicates=replicates,
        seed=seed,
        explain=lambda name: explain_undefined(name, predictions),
    )


def explain_plainly(name: str) -> str:
    """Return why a metric has no value where nothing is known but its name."""
    definition = find_definition(name)
    return "undefined for these rows" if definition is None else definition.undefined


def summarize(
    estimate: Estimator,
    patients: Integers,
    support: Support,
    *,
    replicates: int,
    seed: int,
    explain: Callable[[str], str] = explain_plainly,
) -> MetricEntries:
    """Return value and interval of everything that `estimate` answers, as `measure_predictions` describes them.

    Args:
        estimate: Weights (R, N) to numbers (R,) by name; NaN = undefined.
        patients: (N,) patient number of each row, 0 … P-1, each present.
        support: What the interval of each number rests on.
        replicates: Number of bootstrap samples, > 0.
        seed: Seed of the samples.
        explain: Name to the reason why it is undefined.
    """
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}; expected >= 1")
    chunks = [estimate(weights) for weights in draw_replicates(patients, replicates=replicates, seed=seed)]
    return collect(estimate(np.ones((1, len(patients)))), chunks, support, patients).describe(explain)


def collect(values: Estimates, chunks: Sequence[Estimates], support: Support, patients: Integers) -> Drawn:
    """Return numbers with their replicates.

    Args:
        values: (1,) each, on the rows as they are.
        chunks: The replicates of all numbers, in parts.
        support: What each number rests on.
        patients: (N,) patient number of each row.
    """
    replicates = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    counts = {name: basis.count(patients) for name, basis in support.items()}
    return Drawn({name: float(value[0]) for name, value in values.items()}, replicates, support, counts)


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


def explain_undefined(name: str, predictions: Predictions) -> str:
    """Return why this metric has no value for these rows, in one line."""
    if not predictions.probabilities and find_needs(name) == PROBABILITIES:
        return "the scores are not probabilities in [0, 1]"
    if not predictions.decides and find_needs(name) != RANKS:
        return "no threshold is known"
    absent = []
    if predictions.kind == "multilabel":
        for k, label in enumerate(predictions.class_names):
            sides = enumerate(("without", "with"))
            absent += [f"{side} {label}" for value, side in sides if not (predictions.y_true[:, k] == value).any()]
    elif predictions.has_classes:
        present = set(predictions.grade_true.tolist())
        absent = [f"of class {label}" for k, label in enumerate(predictions.class_names) if k not in present]
    return f"no image {', '.join(absent)}" if absent else explain_plainly(name)
