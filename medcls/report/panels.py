"""The figures that a kind of task gets, with their captions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medcls.report import figures as plots
from medcls.report.content import Evaluation
from medcls.report.drawing import Draw, draw_risk, draw_strengths, write_figure
from medcls.report.reader_panel import draw_readers
from medcls.statistics.agreement import compute_confusion
from medcls.statistics.calibration import NUM_BINS, compute_confidence
from medcls.statistics.conformal import compute_risk_coverage
from medcls.statistics.curves import Question, list_questions
from medcls.statistics.definitions import DEFINITIONS, HIGH
from medcls.statistics.intervals import number_patients
from medcls.statistics.number_text import format_number
from medcls.statistics.predictions import Integers, Predictions

MOST_CURVES = 8  # more lines than colours cannot be told apart
MOST_CLASSES_DRAWN = 20
MOST_DECISIONS = 4


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure.

    Attributes:
        title: Its heading.
        caption: What a reader needs to know to read it.
        image: Data URI.
        most_width: CSS pixels beyond which it would only look coarse.
    """

    title: str
    caption: str
    image: str
    most_width: int


@dataclass(frozen=True, slots=True)
class PanelPlan:
    """A figure before it is drawn."""

    file: str
    title: str
    caption: str
    draw: Draw
    width: float = 5.2
    height: float = 4.4


def write_panel(plan: PanelPlan, figures: Path) -> Panel:
    """Return the drawn figure, also written as PNG into the folder."""
    image = write_figure(plan.draw, figures / f"{plan.file}.png", width=plan.width, height=plan.height)
    return Panel(plan.title, plan.caption, image, round(105 * plan.width))


def plan_panels(evaluation: Evaluation) -> dict[str, list[PanelPlan]]:
    """Return the figures that this task has, by the section they belong to."""
    one, metrics, seed = evaluation.predictions, evaluation.metrics, evaluation.seed
    patients = number_patients(evaluation.patient_ids, rows=len(one.y_score))
    return {
        "discrimination": _plan_ranking(one, patients, metrics, seed),
        "classes": _plan_classes(one, metrics.get("decision", {}).get("words", "")),
        "values": _plan_values(one),
        "calibration": _plan_calibration(one, patients, seed),
        "certainty": _plan_certainty(one),
        "readers": _plan_readers(metrics.get("readers", {})),
        "robustness": _plan_robustness(metrics.get("robustness")),
        "training": _plan_history(evaluation.history),
    }


def _plan_ranking(
    predictions: Predictions, patients: Integers, metrics: Mapping[str, Any], seed: int
) -> list[PanelPlan]:
    """ROC and precision-recall of the questions that have both answers."""
    answered = [q for q in list_questions(predictions) if 0 < q.positive.sum() < len(q.positive)]
    questions = answered[:MOST_CURVES]
    if not questions:
        return []
    left_out = f" The first {MOST_CURVES} of {len(answered)} are drawn." if len(answered) > MOST_CURVES else ""
    roc = plots.draw_roc(questions, _label(questions, metrics, "auc"), patients=patients, seed=seed)
    plans = [PanelPlan("roc", "ROC curve", f"Legend: AUC with 95 % interval.{left_out}", roc)]
    if predictions.kind != "regression":
        draw = plots.draw_precision_recall(questions, _label(questions, metrics, "average_precision"))
        caption = f"Legend: average precision with 95 % interval; dotted: prevalence.{left_out}"
        plans.append(PanelPlan("precision_recall", "Precision and recall", caption, draw))
    return plans


def _label(questions: Sequence[Question], metrics: Mapping[str, Any], stem: str) -> list[str]:
    """Name, value and interval of each curve."""
    labels = []
    for question in questions:
        number = format_number(stem, metrics[f"{stem}{question.metric_suffix}"])
        interval = f" ({number.interval})" if number.interval else ""
        labels.append(f"{question.name}  {number.text}{interval}")
    return labels


def _plan_classes(predictions: Predictions, decision: str) -> list[PanelPlan]:
    """Confusion matrix, where every row has one class."""
    names = predictions.class_names
    if not predictions.has_classes:
        return []
    if not predictions.decides:
        return [_plan_scores(predictions)]
    if len(names) > MOST_CLASSES_DRAWN:
        return []
    counts = compute_confusion(predictions.grade_true, predictions.grade_predicted, num_classes=len(names))[0]
    side = max(3.8, 0.8 * len(names) + 1.0)
    caption = f"Images, and share of the true class. {decision}".strip()
    plans = [PanelPlan("confusion", "Confusion matrix", caption, plots.draw_confusion(counts, names), side + 0.6, side)]
    if predictions.kind == "binary":
        plans.append(_plan_scores(predictions))
    return plans


def _plan_values(predictions: Predictions) -> list[PanelPlan]:
    """Predicted against true values, and residuals."""
    if predictions.kind != "regression":
        return []
    true, value = predictions.y_true, predictions.y_score[:, 0]
    caption = "Errors against the mean of truth and prediction; lines: mean error and limits of agreement."
    residuals = PanelPlan("residuals", "Residuals", caption, plots.draw_residuals(true, value))
    if predictions.grades:
        caption = "Each dot is an image; boxes: quartiles and median; dashed: perfect."
        draw = plots.draw_by_grade(true, value, predictions.class_names)
        return [PanelPlan("values_by_grade", "Prediction by true grade", caption, draw), residuals]
    caption, draw = "Each dot is an image; dashed: perfect.", plots.draw_scatter(true, value)
    return [PanelPlan("values", "Prediction against truth", caption, draw), residuals]


def _plan_calibration(predictions: Predictions, patients: Integers, seed: int) -> list[PanelPlan]:
    """Reliability curve, and beside it what the probabilities are good for."""
    if predictions.kind == "regression" or not predictions.probabilities:
        return []
    questions = [question for question in list_questions(predictions) if len(question.score)]
    if predictions.kind == "multilabel":
        forecasts = [(q.name, q.score, q.positive.astype(np.float64)) for q in questions[:MOST_CURVES]]
        decisions = [plan for q in questions[:MOST_DECISIONS] for plan in _plan_decision(q, patients, seed)]
        return [_plan_reliability(forecasts, "P(label)"), *decisions] if forecasts else []
    forecast, outcome = compute_confidence(predictions.grade_true, predictions.y_score)
    reliability = _plan_reliability([("all", forecast, outcome)], _name_score(predictions))
    if predictions.kind == "binary":
        return [reliability, *_plan_decision(questions[0], patients, seed, alone=True)]
    return [reliability, _plan_scores(predictions)]


def _name_score(predictions: Predictions) -> str:
    if predictions.kind != "binary":
        return "Highest probability" if predictions.probabilities else "Highest score"
    positive = predictions.positive_class
    return f"P({positive})" if predictions.probabilities else f"Score of {positive}"


def _plan_scores(predictions: Predictions) -> PanelPlan:
    """Distribution of the score: of both classes, or of right and wrong predictions."""
    if predictions.kind == "binary":
        groups = [(name, predictions.grade_true == k) for k, name in enumerate(predictions.class_names)]
    else:
        right = predictions.grade_true == predictions.grade_predicted
        groups = [("wrong", ~right), ("right", right)]
    forecast, _ = compute_confidence(predictions.grade_true, predictions.y_score)
    draw = plots.draw_scores(
        [(name, forecast[rows]) for name, rows in groups],
        axis_label=_name_score(predictions),
        limits=(0.0, 1.0) if predictions.probabilities else None,
    )
    caption = "Shares of each group; in the overlap the score cannot separate the groups."
    return PanelPlan("scores", "Scores by group", caption, draw)


def _plan_reliability(forecasts: list[Any], axis_label: str) -> PanelPlan:
    caption = f"{NUM_BINS} equal-width bins; dots sized by the number of images; dashed: perfect."
    if len(forecasts) == 1:
        caption += " Bars: 95 % Wilson intervals, images treated as independent."
    draw = plots.draw_reliability(forecasts, axis_label=axis_label)
    return PanelPlan("reliability", "Reliability", caption, draw)


def _plan_decision(question: Question, patients: Integers, seed: int, *, alone: bool = False) -> list[PanelPlan]:
    """Decision curve of a yes-or-no question with both answers."""
    if question.positive.all() or not question.positive.any():
        return []
    caption = "Net benefit per image by the threshold at which one would act (Vickers & Elkin 2006)."
    draw = plots.draw_decision(question, patients=patients, seed=seed)
    if alone:
        return [PanelPlan("decision", "Decision curve", caption, draw)]
    stem = "".join(letter if letter.isalnum() else "_" for letter in question.name)
    return [PanelPlan(f"decision_{stem}", f"Decision curve: {question.name}", caption, draw)]


def _plan_certainty(predictions: Predictions) -> list[PanelPlan]:
    """Return what would be left wrong if the least certain images went to a reader."""
    if predictions.kind in ("multilabel", "regression") or not predictions.probabilities:
        return []
    draw = draw_risk(*compute_risk_coverage(predictions))
    caption = "Share of wrong classes among the images that the model keeps, most certain first."
    return [PanelPlan("risk_coverage", "Errors left if the least certain are referred", caption, draw)]


def _plan_readers(measured: Mapping[str, Any]) -> list[PanelPlan]:
    """Return one ROC plane for each question, the readers in it as points."""
    plans, curves = [], list(measured.get("curves", {}).items())
    caption = (
        "Each point is a reader, on the images that they read, with both 95 % intervals; the curve is the model's."
    )
    for number, (question, curve) in enumerate(curves[:MOST_DECISIONS]):
        entries = [entry for entry in measured["entries"] if entry["question"] == question]
        title = "Readers in the ROC plane"
        if len(curves) > 1:
            title += f": {question}"
        plans.append(PanelPlan(f"readers_{number}", title, caption, draw_readers(curve, entries)))
    return plans


def _plan_robustness(measured: Mapping[str, Any] | None) -> list[PanelPlan]:
    """Return one curve for each perturbation."""
    if not measured:
        return []
    title, unchanged = DEFINITIONS[measured["metric"]].title, measured["unchanged"]["value"]
    return [
        PanelPlan(
            f"robustness_{name}",
            name.capitalize(),
            f"{title} with 95 % interval; dotted: unchanged images.",
            draw_strengths(curve["points"], unchanged=unchanged, x_label=curve["unit"], y_label=title),
            4.2,
            3.6,
        )
        for name, curve in measured["curves"].items()
    ]


def _plan_history(history: Sequence[Mapping[str, Any]]) -> list[PanelPlan]:
    """Losses, validation metrics and learning rates over the epochs."""
    rows: list[dict[str, object]] = []
    for row in history:
        if not plots.is_number(row.get("epoch")):
            continue
        flat: dict[str, object] = {}
        for name, value in row.items():
            # {"val": {"auc": 0.9}} as {"val.auc": 0.9}.
            inner = value if isinstance(value, Mapping) else None
            flat |= {name: value} if inner is None else {f"{name}.{key}": each for key, each in inner.items()}
        rows.append(flat)
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if plots.is_number(value)))
    losses = [name for name in names if "loss" in name and "log_loss" not in name]
    validation = [name for name in names if name.startswith("val") and name not in losses]
    # All values of one scale in one figure, and none of single classes: those crowd the rest out.
    rising = {name for name, definition in DEFINITIONS.items() if definition.ideal == HIGH}
    headline = [name for name in validation if re.sub(r"^val(idation)?[._/]", "", name) in rising] or validation
    groups = [
        ("loss", "Loss", losses),
        ("validation", "Validation metrics", headline),
        ("learning_rate", "Learning rate", [name for name in names if name.startswith(("lr", "learning_rate"))]),
    ]
    return [
        PanelPlan(f"history_{file}", title, "By epoch.", plots.draw_history(rows, chosen[:MOST_CURVES]), 4.2, 3.6)
        for file, title, chosen in groups
        if chosen
    ]
