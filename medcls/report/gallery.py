"""Choose the images that a reader should see: the worst and the most uncertain."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

from medcls.statistics.calibration import SMALLEST_PROBABILITY
from medcls.statistics.number_text import format_threshold
from medcls.statistics.predictions import Floats, Predictions

WORST, UNCERTAIN = "worst", "uncertain"


@dataclass(frozen=True, slots=True)
class Worst:
    """One row that is shown.

    Attributes:
        row: Its number in predictions.parquet: the only name it gets.
        why: "worst" or "uncertain".
        true: The truth in words.
        predicted: What the model said, in words.
    """

    row: int
    why: str
    true: str
    predicted: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A row and its image.

    Attributes:
        worst: The row.
        jpeg: Bytes of a small JPEG.
    """

    worst: Worst
    jpeg: bytes

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


def choose_worst(predictions: Predictions, *, count: int) -> list[Worst]:
    """Return the rows with the largest loss, and of the others those nearest to a tie, at most `count` of each.

    Loss: minus log probability of the truth (several labels: their mean), or the absolute error of a number, which
    has no ties. Rows that are right are not among the worst of a classification.

    Args:
        predictions: Of N rows.
        count: Of each kind, >= 0.

    Source: own choice.
    """
    loss, tie, wrong = _judge(predictions)
    worst = [int(row) for row in np.argsort(-loss, kind="stable") if wrong[row]][:count]
    near = [] if tie is None else np.argsort(tie, kind="stable").tolist()
    uncertain = [int(row) for row in near if row not in set(worst)][:count]
    named = [(row, WORST) for row in worst] + [(row, UNCERTAIN) for row in uncertain]
    return [Worst(row, why, *_describe(predictions, row)) for row, why in named]


def _judge(predictions: Predictions) -> tuple[Floats, Floats | None, Floats]:
    """Loss, distance to a tie (None of a number), and whether the row is wrong; three (N,)."""
    true, score = predictions.y_true, predictions.y_score
    if predictions.kind == "regression":
        error = np.abs(score[:, 0] - true)
        return error, None, error > 0
    if predictions.kind == "multilabel":
        known = ~np.isnan(true)
        given = np.where(true == 1, score, 1 - score)
        logs = np.where(known, -np.log(np.clip(given, SMALLEST_PROBABILITY, 1)), 0.0)
        wrong = (known & (predictions.called != (true == 1))).any(axis=1)
        return logs.sum(axis=1) / np.maximum(known.sum(axis=1), 1), _measure_ties(predictions).min(axis=1), wrong
    two = np.concatenate([1 - score, score], axis=1) if predictions.kind == "binary" else score
    loss = -np.log(np.clip(two[np.arange(len(two)), predictions.grade_true], SMALLEST_PROBABILITY, 1))
    wrong = predictions.grade_true != predictions.grade_predicted
    if predictions.kind == "binary":
        return loss, _measure_ties(predictions)[:, 0], wrong
    ordered = np.sort(two, axis=1)
    return loss, ordered[:, -1] - ordered[:, -2], wrong


def _measure_ties(predictions: Predictions) -> Floats:
    """Distance of each score to the threshold of its label."""
    return np.abs(predictions.y_score - (np.asarray(predictions.thresholds) if predictions.thresholds else 0.5))


def _describe(predictions: Predictions, row: int) -> tuple[str, str]:
    """Truth and prediction of a row in words."""
    names, score = predictions.class_names, predictions.y_score[row]
    if predictions.kind == "multilabel":
        return _describe_labels(predictions, row)
    truth = names[int(predictions.grade_true[row])] if predictions.has_classes else f"{predictions.y_true[row]:g}"
    if predictions.kind == "regression":
        return truth, f"{score[0]:.2f}"
    if predictions.kind == "binary":
        told = _tell_apart(score[0], (predictions.thresholds or (0.5,))[0], 3)
        return truth, f"{names[int(predictions.called[row, 0])]}, P({names[1]}) {told}"
    best = int(np.argmax(score))
    return truth, f"{names[best]} {score[best]:.2f}"


def _describe_labels(predictions: Predictions, row: int) -> tuple[str, str]:
    """Return the labels that are there or unknown; and those that are called, and those that are missed."""
    present, unknown, said, missed = [], [], [], []
    thresholds = predictions.thresholds or (0.5,) * len(predictions.class_names)
    for k, name in enumerate(predictions.class_names):
        true, called = predictions.y_true[row, k], predictions.called[row, k]
        told = f"{name} {_tell_apart(predictions.y_score[row, k], thresholds[k], 2)}"
        if np.isnan(true):
            unknown.append(f"{name} unknown")
        elif true == 1:
            present.append(name)
        if called:
            said.append(told)
        elif true == 1:
            missed.append(told)
    words = ", ".join(said) or "none"
    if missed:
        words += f"; not called: {', '.join(missed)}"
    return ", ".join([*present, *unknown]) or "none", words


def _tell_apart(score: float, threshold: float, decimals: int) -> str:
    """Return the score with at least so many decimals; if these do not tell it from its threshold, both with more."""
    if score == threshold:
        return f"{format_threshold(score)} (the threshold)"
    fewest = decimals
    while decimals < 17 and f"{score:.{decimals}f}" == f"{threshold:.{decimals}f}":
        decimals += 1
    near = f" (threshold {threshold:.{decimals}f})" if decimals > fewest else ""
    return f"{score:.{decimals}f}{near}"
