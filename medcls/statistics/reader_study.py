"""Human readers and the model on the same images: points in the ROC plane, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from medcls.statistics.curves import Question, count_at_thresholds, list_questions
from medcls.statistics.intervals import Drawn, collect, draw_replicates, explain_plainly
from medcls.statistics.metrics import Estimates
from medcls.statistics.paired import add_holm, compute_mcnemar, describe_area, describe_difference
from medcls.statistics.predictions import Floats, Integers, Predictions, or_none, ratio
from medcls.statistics.ranking import compute_curve, compute_roc
from medcls.statistics.support import RATES, find_rate_support, name_sides

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


class ReaderStudy(TypedDict):
    """`entries` for each question, reader and cut; `curves`: the model's ROC curve for each question."""

    entries: list[dict[str, object]]
    curves: dict[str, dict[str, list[float]]]


def compare_readers(
    predictions: Predictions,
    patients: Integers,
    readers: Sequence[Readings],
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> ReaderStudy:
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
    found: ReaderStudy = {"entries": [], "curves": {}}
    for number, question in enumerate(list_questions(predictions)):
        model = _call(predictions, number, None) if predictions.decides else None
        sides = name_sides(predictions, question.metric_suffix)
        of_question: list[dict[str, Any]] = []
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
                called = _call(predictions, number, answers) if cut is None else answers >= cut
                drawn = _draw(part, called, units, sides, replicates=replicates, seed=seed)
                entry = {"n_images": len(units), "n_patients": int(units.max()) + 1, **_describe(drawn)}
                entry |= _judge(part.positive, called, units, model=None if model is None else model[at])
                entry |= {"reader": reader.name, "question": question.name, "cut": cut}
                if reader.ordered:
                    entry["area"] = describe_area(part.positive, part.score, answers.astype(np.float64), units)
                of_question.append(entry)
        # Of all readers of a question together.
        add_holm(entry["difference"] for entry in of_question)
        for side in ("cases", "others"):
            add_holm(entry["at_decision"][side] for entry in of_question if side in entry["at_decision"])
        found["entries"] += of_question
        if of_question and 0 < question.positive.sum() < len(question.positive):
            alarms, hits = compute_roc(compute_curve(question.positive, question.score))
            kept = np.unique(np.linspace(0, len(hits) - 1, min(len(hits), MOST_POINTS)).round().astype(np.int64))
            curve = {"false_positive_rate": alarms[kept].tolist(), "sensitivity": hits[kept].tolist()}
            found["curves"][question.name] = curve
    return found


def _call(predictions: Predictions, number: int, answers: NDArray[Any] | None) -> NDArray[np.bool_]:
    """Return who is called a case in a question of `list_questions`: by a reader's answers, or None = by the model."""
    if predictions.kind == "multilabel":
        return np.asarray((predictions.called if answers is None else answers)[:, number] == 1)
    said = predictions.grade_predicted if answers is None else answers
    if predictions.kind == "regression":
        return np.asarray(said > number)
    return np.asarray(said == (1 if predictions.kind == "binary" else number))


def _draw(
    question: Question,
    called: NDArray[np.bool_],
    units: Integers,
    side_names: Mapping[str, str],
    *,
    replicates: int,
    seed: int,
) -> Drawn:
    """Return sensitivity and specificity of the reader, and the model's sensitivity at that specificity."""
    thresholds = np.append(np.inf, np.unique(question.score)[::-1])
    reader_score = called.astype(np.float64)

    def estimate(weights: Floats) -> Estimates:
        reader = count_at_thresholds(question.positive, reader_score, thresholds=[0.5], weights=weights)
        curve = count_at_thresholds(question.positive, question.score, thresholds=thresholds, weights=weights)
        # Counts of false alarms rise along the thresholds: the last one that is not above the reader's is theirs.
        allowed = (curve.false_positives <= reader.false_positives + 1e-9).sum(axis=1) - 1
        reached = np.take_along_axis(curve.true_positives, allowed[:, None], axis=1)[:, 0]
        cases, others = reader.positives[:, 0], reader.negatives[:, 0]
        specificity = ratio(others - reader.false_positives[:, 0], others)
        return {
            "sensitivity": ratio(reader.true_positives[:, 0], cases),
            "specificity": specificity,
            "model_sensitivity": np.where(np.isnan(specificity), np.nan, ratio(reached, cases)),
        }

    support = find_rate_support(
        question.positive, called, np.arange(len(units)), total=len(units), side_names=side_names
    )
    support["model_sensitivity"] = replace(support["sensitivity"], scale="precision")
    chunks = [estimate(weights) for weights in draw_replicates(units, replicates=replicates, seed=seed)]
    return collect(estimate(np.ones((1, len(units)))), chunks, support, units)


def _describe(drawn: Drawn) -> dict[str, object]:
    """Return the three numbers, and the model's sensitivity less the reader's."""
    name = "model_sensitivity"
    model = Drawn(
        {"sensitivity": drawn.values[name]},
        {"sensitivity": drawn.replicates[name]},
        {"sensitivity": drawn.support[name]},
        {"sensitivity": drawn.counts[name]},
    )
    found = describe_difference("sensitivity", model, drawn, rests=drawn)
    numbers = drawn.describe(explain_plainly)
    return {**numbers, "difference": {key: value for key, value in found.items() if key not in ("first", "second")}}


def _judge(
    positive: NDArray[np.bool_], called: NDArray[np.bool_], units: Integers, *, model: NDArray[np.bool_] | None
) -> dict[str, object]:
    """Return the model's rates at its own decision, and McNemar's test against the reader in cases and in others."""
    if model is None:
        return {"model_at_decision": None, "at_decision": {}}
    rates, tests = {}, {}
    for rate, side, rows in zip(RATES, ("cases", "others"), (positive, ~positive), strict=True):
        right = [answers[rows] == positive[rows] for answers in (model, called)]
        rates[rate] = or_none(float(ratio(right[0].sum(), rows.sum())))
        if rows.any():
            some = np.unique(units[rows], return_inverse=True)[1].astype(np.int64)
            tests[side] = compute_mcnemar(*right, patients=some)._asdict()
    return {"model_at_decision": rates, "at_decision": tests}
