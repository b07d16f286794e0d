"""Human readers and the model on the same images: points in the ROC plane, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.statistics.curves import Question, count_at_thresholds, list_questions
from medcls.statistics.intervals import describe_estimates, draw_replicates
from medcls.statistics.paired import adjust_holm, compute_mcnemar, describe_area, describe_difference, or_nan, or_none
from medcls.statistics.predictions import Floats, Integers, Predictions, ratio
from medcls.statistics.ranking import compute_curve, compute_roc
from medcls.statistics.support import find_rate_support, name_sides

MOST_POINTS = 500


@dataclass(frozen=True, slots=True)
class Readings:
    """What one reader said.

    Attributes:
        name: "reader 1"; never the reader's own name.
        rows: (n,) rows of the predictions that the reader read.
        answers: (n,) class index or grade, or (n, K) of 0 and 1 for several labels.
        ordered: The answers are grades of suspicion for a yes-or-no question, each of which can be a cut.
    """

    name: str
    rows: Integers
    answers: NDArray[Any]
    ordered: bool = False


def compare_readers(
    predictions: Predictions,
    patients: Integers,
    readers: Sequence[Readings],
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return each reader's rates with intervals, and the model at the same specificity and at its own decision.

    Args:
        predictions: Of N rows, with the thresholds of the decision.
        patients: (N,) patient number of each row.
        readers: At least one.
        replicates: Bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        "entries": for each question, reader and (of ordered answers) cut "reader", "question", "cut", "n_images",
        "n_patients", "sensitivity" and "specificity" of the reader, "model_sensitivity" at the reader's specificity,
        their "difference" (model less reader) with interval and p value, "model_at_decision", "at_decision" (McNemar
        for "cases" and "others"), and "area" of ordered answers. "curves": the model's ROC curve for each question.

    Source: paired bootstrap over patients: Efron & Tibshirani 1993, chapter 16; McNemar as in
    `paired.compute_mcnemar`; the comparison at the reader's specificity: our own choice.
    """
    curves: dict[str, Any] = {}
    entries: list[dict[str, Any]] = []
    for number, question in enumerate(list_questions(predictions)):
        model = _call_question(predictions, number) if predictions.decides else None
        of_question = []
        for reader in readers:
            place = np.full(len(predictions.y_score), -1)
            place[reader.rows] = np.arange(len(reader.rows))
            here = np.flatnonzero(place[question.rows] >= 0)
            if not len(here):
                continue
            at = question.rows[here]
            part = Question(question.name, "", question.positive[here], question.score[here], np.arange(len(here)))
            units = np.unique(patients[at], return_inverse=True)[1].astype(np.int64)
            answers = reader.answers[place[at]]
            cuts = np.unique(answers)[1:].tolist() if reader.ordered else [None]
            for cut in cuts:
                called = answers >= cut if reader.ordered else _call_answers(predictions, number, answers)
                entry = _compare_one(
                    part,
                    called,
                    None if model is None else model[at],
                    units,
                    side_names=name_sides(predictions, question.metric_suffix),
                    replicates=replicates,
                    seed=seed,
                )
                entry |= {"reader": reader.name, "question": question.name, "cut": cut}
                if reader.ordered:
                    entry["area"] = describe_area(part.positive, part.score, answers.astype(np.float64), units)
                of_question.append(entry)
        _adjust(of_question)
        entries += of_question
        if of_question and 0 < question.positive.sum() < len(question.positive):
            curves[question.name] = _thin(question)
    return {"entries": entries, "curves": curves}


def _thin(question: Question) -> dict[str, list[float]]:
    """Return the model's ROC curve, of very many points some."""
    alarms, hits = compute_roc(compute_curve(question.positive, question.score))
    kept = np.unique(np.linspace(0, len(hits) - 1, min(len(hits), MOST_POINTS)).round().astype(np.int64))
    return {"false_positive_rate": alarms[kept].tolist(), "sensitivity": hits[kept].tolist()}


def _call_question(predictions: Predictions, number: int) -> NDArray[np.bool_]:
    """Return whether the model's decision says yes to a question of `list_questions`; (N,)."""
    if predictions.kind == "binary":
        return np.asarray(predictions.grade_predicted == 1)
    if predictions.kind == "multilabel":
        return np.asarray(predictions.called[:, number])
    if predictions.kind == "regression":
        return np.asarray(predictions.grade_predicted > number)
    return np.asarray(predictions.grade_predicted == number)


def _call_answers(predictions: Predictions, number: int, answers: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the same of a reader's answers."""
    if predictions.kind == "binary":
        return np.asarray(answers == 1)
    if predictions.kind == "multilabel":
        return np.asarray(answers[:, number] == 1)
    return np.asarray(answers > number if predictions.kind == "regression" else answers == number)


def _compare_one(
    question: Question,
    called: NDArray[np.bool_],
    model: NDArray[np.bool_] | None,
    units: Integers,
    *,
    side_names: Mapping[str, str],
    replicates: int,
    seed: int,
) -> dict[str, Any]:
    thresholds = np.append(np.inf, np.unique(question.score)[::-1])
    reader_score = called.astype(np.float64)

    def rates(weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Sensitivity and specificity of the reader, and the model's sensitivity there; three (R,)."""
        reader = count_at_thresholds(question.positive, reader_score, thresholds=[0.5], weights=weights)
        curve = count_at_thresholds(question.positive, question.score, thresholds=thresholds, weights=weights)
        # Counts of false alarms rise along the thresholds: the last one that is not above the reader's is theirs.
        allowed = (curve.false_positives <= reader.false_positives + 1e-9).sum(axis=1) - 1
        reached = np.take_along_axis(curve.true_positives, allowed[:, None], axis=1)[:, 0]
        cases, others = reader.positives[:, 0], reader.negatives[:, 0]
        sensitivity = ratio(reader.true_positives[:, 0], cases)
        specificity = ratio(others - reader.false_positives[:, 0], others)
        return sensitivity, specificity, np.where(np.isnan(specificity), np.nan, ratio(reached, cases))

    names = ("sensitivity", "specificity", "model_sensitivity")
    plain = [float(value[0]) for value in rates(np.ones((1, len(units))))]
    chunks = [rates(weights) for weights in draw_replicates(units, replicates=replicates, seed=seed)]
    drawn = dict(zip(names, map(np.concatenate, zip(*chunks, strict=True)), strict=True))
    support = find_rate_support(
        question.positive, called, np.arange(len(units)), total=len(units), side_names=side_names
    )
    support["model_sensitivity"] = replace(support["sensitivity"], scale="precision")
    counts = {name: basis.count(units) for name, basis in support.items()}
    measured = describe_estimates(dict(zip(names, plain, strict=True)), drawn, support, counts)
    found = describe_difference(
        "sensitivity",
        ({"sensitivity": measured["model_sensitivity"]}, measured),
        ({"sensitivity": drawn["model_sensitivity"]}, drawn),
        support=support,
        counts=counts,
    )
    tests = {}
    for name, rows in (("cases", question.positive), ("others", ~question.positive)):
        if model is not None and rows.any():
            some = np.unique(units[rows], return_inverse=True)[1].astype(np.int64)
            right = [answers[rows] == question.positive[rows] for answers in (model, called)]
            tests[name] = compute_mcnemar(*right, patients=some)._asdict()
    return {
        "n_images": len(units),
        "n_patients": int(units.max()) + 1,
        **measured,
        "difference": {
            key: found[key] for key in ("difference", "low", "high", "p_value", "reason", "note") if key in found
        },
        "model_at_decision": None if model is None else _rate(question.positive, model),
        "at_decision": tests,
    }


def _rate(positive: NDArray[np.bool_], called: NDArray[np.bool_]) -> dict[str, float | None]:
    return {
        "sensitivity": or_none(float(ratio(called[positive].sum(), positive.sum()))),
        "specificity": or_none(float(ratio((~called)[~positive].sum(), (~positive).sum()))),
    }


def _adjust(entries: Sequence[dict[str, Any]]) -> None:
    """Add the p values that hold for all readers of a question together."""
    for group in ("difference", "cases", "others"):
        tests = [
            found
            for entry in entries
            for found in [entry["difference"] if group == "difference" else entry["at_decision"].get(group)]
            if found is not None
        ]
        for found, p_value in zip(tests, adjust_holm([or_nan(one["p_value"]) for one in tests]), strict=True):
            found["p_holm"] = or_none(p_value)
