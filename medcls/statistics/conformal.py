"""Conformal sets of classes with a promised coverage, and the images to refer to a reader."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medcls.statistics.intervals import number_patients, summarize
from medcls.statistics.metrics import Estimates, Estimator
from medcls.statistics.predictions import Floats, Integers, Predictions, ratio
from medcls.statistics.support import Basis, Support

ASSUMPTION = (
    "The promise holds for an image drawn at random from a new patient, if that patient is exchangeable with the "
    "patients on whom the bounds were set (same population, scanner and referral); it is over patients, not for each "
    "one."
)


class Problem(NamedTuple):
    """One choice among classes: the task itself, or one label of a multilabel task.

    `true` (n,), `score` (n, K), `names` K, `rows` (n,) row numbers.
    """

    title: str
    true: Integers
    score: Floats
    names: tuple[str, ...]
    rows: Integers

    @property
    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """(n,) the rows of all classes together, "", and of each true class, "_NAME"."""
        everyone = np.ones(len(self.true), dtype=bool)
        return {"": everyone} | {f"_{name}": self.true == k for k, name in enumerate(self.names)}


def list_problems(predictions: Predictions) -> list[Problem]:
    """Return the choices that sets can be made for; [] for a regression."""
    true, score, names = predictions.y_true, predictions.y_score, predictions.class_names
    if predictions.kind == "regression":
        return []
    if predictions.kind != "multilabel":
        both = _two(score[:, 0]) if predictions.kind == "binary" else score
        return [Problem("", predictions.grade_true, both, names, np.arange(len(score)))]
    problems = []
    for k, name in enumerate(names):
        rows = np.flatnonzero(~np.isnan(true[:, k]))
        if len(rows):
            at = true[rows, k].astype(np.int64)
            problems.append(Problem(name, at, _two(score[rows, k]), (f"no {name}", name), rows))
    return problems


def _two(probability: Floats) -> Floats:
    return np.stack([1 - probability, probability], axis=1)


def calibrate_conformal(predictions: Predictions, patients: Integers, *, alpha: float = 0.1) -> dict[str, object]:
    """Largest score 1 - P(class) that keeps a class in the set: over all, and for each true class; ready for JSON.

    None stands for "no bound": too few patients to promise it, so the class is always kept.

    Args:
        predictions: Of the split that is calibrated on.
        patients: (N,) patient number of each row.
        alpha: Share of misses that is allowed, in (0, 1).

    Source: sets by the probability of the true class: Sadinle, Lei & Wasserman 2019; by class: Vovk 2012; several
    images of one patient: Lee, Barber & Willett 2023 (each patient counts as one, shared among its images).
    """
    found = []
    for problem in list_problems(predictions):
        misfit = 1 - problem.score[np.arange(len(problem.true)), problem.true]
        units = patients[problem.rows]
        of_class = [(name, problem.true == k) for k, name in enumerate(problem.names)]
        found.append(
            {
                "label": problem.title,
                "bound": _bound(misfit, units, alpha=alpha),
                "by_class": {name: _bound(misfit[rows], units[rows], alpha=alpha) for name, rows in of_class},
                "patients": len(np.unique(units)),
                "patients_by_class": {name: len(np.unique(units[rows])) for name, rows in of_class},
            }
        )
    return {"alpha": alpha, "assumption": ASSUMPTION, "problems": found}


def _bound(misfit: Floats, units: Integers, *, alpha: float) -> float | None:
    """Return the quantile of the misfits in which each patient, and one still to come at infinity, counts as one."""
    if not len(misfit):
        return None
    numbered = np.unique(units, return_inverse=True)[1]
    share = 1 / np.bincount(numbered)[numbered]
    order = np.argsort(misfit, kind="stable")
    reached = np.flatnonzero(share[order].cumsum() >= (1 - alpha) * (numbered.max() + 2) - 1e-9)
    return float(misfit[order][reached[0]]) if len(reached) else None


def build_sets(problem: Problem, bounds: Mapping[str, Any], *, by_class: bool) -> NDArray[np.bool_]:
    """Return which classes are in the set of each row; (n, K)."""
    chosen = bounds["by_class"] if by_class else dict.fromkeys(problem.names, bounds["bound"])
    limits = np.array([chosen.get(name) for name in problem.names], dtype=np.float64)
    limits[np.isnan(limits)] = np.inf  # no bound: the class is always kept
    # A rounding error of 1 - p must not throw out the class that set the bound.
    return np.asarray(1 - problem.score <= limits + 1e-12)


def evaluate_conformal(
    predictions: Predictions,
    frozen: Mapping[str, Any],
    patient_ids: Sequence[str],
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Coverage over patients and size of the frozen sets, and what is left when unclear images are referred.

    An image is referred if its set by class does not contain exactly one class. Each patient counts equally.

    Args:
        predictions: Of N rows.
        frozen: Of `calibrate_conformal`, on other rows.
        patient_ids: (N,) patient of each row.
        replicates: Bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        One entry for each problem: "label", "marginal" and "by_class", each with "coverage" (and of each true class
        "coverage_NAME"), "size"; "unbounded": the classes ("" = all) without a bound, the patients behind each
        (None = not recorded) and those needed; and "referral" with "referred", "right_if_kept", and both by true class.
    """
    patients = number_patients(patient_ids, rows=len(predictions.y_score))
    bounds = {entry["label"]: entry for entry in frozen["problems"]}
    answers: list[dict[str, object]] = []
    for problem in list_problems(predictions):
        if problem.title not in bounds:
            continue
        own = bounds[problem.title]
        answer: dict[str, object] = {"label": problem.title, "classes": list(problem.names)}
        # _bound needs n >= (1 - alpha) (n + 1); 0.2.0 kept no numbers of patients.
        needed = math.ceil((1 - frozen["alpha"]) / frozen["alpha"] - 1e-9)
        counts = {"": own.get("patients")} | own.get("patients_by_class", {})
        limits = {"": own["bound"], **own["by_class"]}
        answer["unbounded"] = [
            {"class": name, "patients": counts.get(name), "needed": needed}
            for name, bound in sorted(limits.items())  # JSON keeps no order of keys
            if bound is None
        ]
        for kind, refer in (("marginal", False), ("by_class", True)):
            held = build_sets(problem, own, by_class=refer)
            answer[kind] = summarize(
                _build_estimator(problem, held, patients, refer=refer),
                patients,
                _find_support(problem, held, total=len(patients)),
                replicates=replicates,
                seed=seed,
                explain=lambda name: f"no image {'is kept' if name.startswith('right_if_kept') else 'of this class'}",
            )
        answers.append(answer)
    return answers


def _find_support(problem: Problem, held: NDArray[np.bool_], *, total: int) -> Support:
    """Return what the shares are shares of: all rows or those of a class; for `right_if_kept` those that are kept."""
    kept = held.sum(axis=1) == 1

    def share(chosen: NDArray[np.bool_], words: str) -> Basis:
        side = np.zeros(total, dtype=bool)
        side[problem.rows] = chosen
        return Basis("share", (side,), side_names=(words,) if words else ())

    support: Support = {}
    for suffix, rows in problem.groups.items():
        words = f"of class {suffix[1:]}" if suffix else ""
        support[f"coverage{suffix}"] = support[f"referred{suffix}"] = share(rows, words)
        support[f"right_if_kept{suffix}"] = share(rows & kept, f"{words} that is not referred".strip())
    support["size"] = replace(support["coverage"], scale="error")
    return support


def _build_estimator(problem: Problem, held: NDArray[np.bool_], patients: Integers, *, refer: bool) -> Estimator:
    true, units = problem.true, patients[problem.rows]
    share = 1 / np.bincount(units)[units]
    covered = held[np.arange(len(true)), true].astype(np.float64)
    size = held.sum(axis=1).astype(np.float64)
    kept = size == 1
    groups = problem.groups

    def estimate(weights: Floats) -> Estimates:
        drawn = weights[:, problem.rows] * share
        numbers = {"size": ratio(drawn @ size, drawn.sum(axis=1))}
        for suffix, rows in groups.items():
            here = drawn * rows
            numbers[f"coverage{suffix}"] = ratio(here @ covered, here.sum(axis=1))
            if refer:
                numbers[f"referred{suffix}"] = ratio(here @ (~kept).astype(np.float64), here.sum(axis=1))
                numbers[f"right_if_kept{suffix}"] = ratio(here @ (covered * kept), here @ kept.astype(np.float64))
        return numbers

    return estimate


def compute_risk_coverage(predictions: Predictions) -> tuple[Floats, Floats]:
    """Share of images kept, most certain first, and share of wrong classes among them; two (N,).

    Certainty is the highest probability.

    Source: El-Yaniv & Wiener 2010 (risk-coverage curve).
    """
    score = _two(predictions.y_score[:, 0]) if predictions.kind == "binary" else predictions.y_score
    order = np.argsort(-score.max(axis=1), kind="stable")
    wrong = (predictions.grade_true != predictions.grade_predicted)[order].cumsum()
    number = np.arange(1, len(order) + 1)
    return number / len(order), wrong / number
