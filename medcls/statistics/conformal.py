"""Conformal sets of classes with a promised coverage, and the images to refer to a reader."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medcls.statistics.intervals import number_patients, summarize
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


def list_problems(predictions: Predictions) -> list[Problem]:
    """Return the choices that sets can be made for; [] for a regression."""
    true, score, names = predictions.y_true, predictions.y_score, predictions.class_names
    rows = np.arange(len(score))
    if predictions.kind == "regression":
        return []
    if predictions.kind == "binary":
        return [Problem("", predictions.grade_true, _two(score[:, 0]), names, rows)]
    if predictions.kind != "multilabel":
        return [Problem("", predictions.grade_true, score, names, rows)]
    known = [np.flatnonzero(~np.isnan(true[:, k])) for k in range(len(names))]
    return [
        Problem(name, true[at, k].astype(np.int64), _two(score[at, k]), (f"no {name}", name), at)
        for k, (name, at) in enumerate(zip(names, known, strict=True))
        if len(at)
    ]


def _two(probability: Floats) -> Floats:
    return np.stack([1 - probability, probability], axis=1)


def calibrate_conformal(predictions: Predictions, patients: Integers, *, alpha: float = 0.1) -> dict[str, Any]:
    """Largest score 1 - P(class) that keeps a class in the set: over all, and for each true class; ready for JSON.

    None stands for "no bound": too few patients to promise it, so the class is always kept.

    Args:
        predictions: Of the split that is calibrated on.
        patients: (N,) patient number of each row.
        alpha: Share of misses that is allowed, in (0, 1).

    Source: sets by the probability of the true class: Sadinle, Lei & Wasserman 2019; by class: Vovk 2012; several
    images of one patient: Lee, Barber & Willett 2023 (each patient weighs one, shared among its images).
    """
    found = []
    for problem in list_problems(predictions):
        misfit = 1 - problem.score[np.arange(len(problem.true)), problem.true]
        units = patients[problem.rows]
        bounds = {
            name: _bound(misfit[problem.true == k], units[problem.true == k], alpha=alpha)
            for k, name in enumerate(problem.names)
        }
        bound = _bound(misfit, units, alpha=alpha)
        counts = {name: len(np.unique(units[problem.true == k])) for k, name in enumerate(problem.names)}
        sizes = {"patients": len(np.unique(units)), "patients_by_class": counts}
        found.append({"label": problem.title, "bound": bound, "by_class": bounds, **sizes})
    return {"alpha": alpha, "assumption": ASSUMPTION, "problems": found}


def _bound(misfit: Floats, units: Integers, *, alpha: float) -> float | None:
    """Quantile of the misfits in which each patient, and one that is still to come at infinity, weighs one."""
    if not len(misfit):
        return None
    numbered = np.unique(units, return_inverse=True)[1]
    share = 1 / np.bincount(numbered)[numbered]
    order = np.argsort(misfit, kind="stable")
    reached = np.flatnonzero(share[order].cumsum() >= (1 - alpha) * (numbered.max() + 2) - 1e-9)
    return float(misfit[order][reached[0]]) if len(reached) else None


def build_sets(problem: Problem, bounds: Mapping[str, Any], *, by_class: bool) -> NDArray[np.bool_]:
    """Return which classes stand in the set of each row; (n, K)."""
    chosen = [bounds["by_class"].get(name) if by_class else bounds["bound"] for name in problem.names]
    limits = np.array([np.inf if limit is None else limit for limit in chosen])
    # A rounding error of 1 - p must not throw out the class that set the bound.
    return np.asarray(1 - problem.score <= limits + 1e-12)


def evaluate_conformal(
    predictions: Predictions,
    frozen: Mapping[str, Any],
    patient_ids: Any,
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Coverage over patients and size of the frozen sets, and what is left when unclear images are referred.

    An image is referred where its set by class does not hold exactly one class. Each patient counts equally.

    Args:
        predictions: Of N rows.
        frozen: Of `calibrate_conformal`, on other rows.
        patient_ids: (N,) patient of each row.
        replicates: Bootstrap samples.
        seed: Of the bootstrap.

    Returns:
        One entry for each problem: "label", "marginal" and "by_class", each with "coverage" (and of each true class
        "coverage_NAME"), "size"; "unbounded": the classes ("" = all) without a bound, the patients behind each
        (None = not recorded) and those needed; and "referral" with "referred", "right_if_kept", and both by true class.
    """
    patients = number_patients(patient_ids, rows=len(predictions.y_score))
    bounds = {entry["label"]: entry for entry in frozen["problems"]}
    answers = []
    for problem in list_problems(predictions):
        if problem.title not in bounds:
            continue
        answer: dict[str, Any] = {"label": problem.title, "classes": list(problem.names)}
        answer["unbounded"] = _list_unbounded(bounds[problem.title], alpha=frozen["alpha"])
        for kind in ("marginal", "by_class"):
            held = build_sets(problem, bounds[problem.title], by_class=kind == "by_class")
            estimate = _build_estimator(problem, held, patients, refer=kind == "by_class")
            support = _find_support(problem, held, total=len(patients), refer=kind == "by_class")
            answer[kind] = summarize(
                estimate,
                patients,
                support=lambda names, bases=support: bases,  # type: ignore[misc]
                replicates=replicates,
                seed=seed,
                explain=_explain,
            )
        answers.append(answer)
    return answers


def _list_unbounded(bounds: Mapping[str, Any], *, alpha: float) -> list[dict[str, Any]]:
    """Return what no bound could be set for, "" = all classes together; 0.2.0 kept no numbers of patients."""
    # _bound needs n >= (1 - alpha) (n + 1).
    needed = math.ceil((1 - alpha) / alpha - 1e-9)
    found = {"": (bounds["bound"], bounds.get("patients"))}
    known = bounds.get("patients_by_class", {})
    found |= {name: (bound, known.get(name)) for name, bound in bounds["by_class"].items()}
    return [
        {"class": name, "patients": patients, "needed": needed}
        for name, (bound, patients) in sorted(found.items())  # JSON keeps no order of keys
        if bound is None
    ]


def _explain(name: str) -> str:
    return "no image is kept" if name.startswith("right_if_kept") else "no image of this class"


def _find_support(problem: Problem, held: NDArray[np.bool_], *, total: int, refer: bool) -> Support:
    """What the shares are shares of: all rows or those of a class, and of `right_if_kept` those that are kept."""
    kept = held.sum(axis=1) == 1
    groups = {"": np.ones(len(problem.true), dtype=bool)} | {
        f"_{n}": problem.true == k for k, n in enumerate(problem.names)
    }

    def share(chosen: NDArray[np.bool_], words: str = "") -> Basis:
        side = np.zeros(total, dtype=bool)
        side[problem.rows] = chosen
        return Basis("share", (side,), side_names=(words,) if words else ())

    of_class = {suffix: f"of class {suffix[1:]}" if suffix else "" for suffix in groups}
    support = {f"coverage{suffix}": share(rows, of_class[suffix]) for suffix, rows in groups.items()}
    support["size"] = replace(share(groups[""]), scale="error")
    if refer:
        support |= {f"referred{suffix}": share(rows, of_class[suffix]) for suffix, rows in groups.items()}
        support |= {
            f"right_if_kept{suffix}": share(rows & kept, f"{of_class[suffix]} that is not referred".strip())
            for suffix, rows in groups.items()
        }
    return support


def _build_estimator(problem: Problem, held: NDArray[np.bool_], patients: Integers, *, refer: bool) -> Any:
    true, units = problem.true, patients[problem.rows]
    share = 1 / np.bincount(units)[units]
    covered = held[np.arange(len(true)), true].astype(np.float64)
    size, kept = held.sum(axis=1), held.sum(axis=1) == 1

    def estimate(weights: Floats) -> dict[str, Floats]:
        drawn = weights[:, problem.rows] * share
        groups = {"": np.ones(len(true), dtype=bool)} | {f"_{n}": true == k for k, n in enumerate(problem.names)}
        numbers = {"size": ratio(drawn @ size.astype(np.float64), drawn.sum(axis=1))}
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
