"""The numbers behind the threshold slider of the report: counts at a thousand thresholds, and where it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medcls.evaluation.curves import Question, list_questions
from medcls.evaluation.operating import count_at_thresholds
from medcls.evaluation.predictions import Predictions
from medcls.evaluation.thresholds import Rule

STEPS = 1000
MOST_QUESTIONS = 20


def build_slider(predictions: Predictions, points: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the page's script needs, ready for JSON; None where no question has both answers.

    Counts alone are given, no scores of single images.

    Args:
        predictions: Of N rows.
        points: Frozen operating points, as in metrics.json.
    """
    questions = [q for q in list_questions(predictions) if 0 < q.positive.sum() < len(q.positive)][:MOST_QUESTIONS]
    return {"steps": STEPS, "questions": [_build_one(q, predictions, points) for q in questions]} if questions else None


def _build_one(question: Question, predictions: Predictions, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    low, high = (0.0, 1.0)
    if predictions.kind == "regression":
        low, high = float(question.score.min()), float(question.score.max())
    frozen = [p for p in points if p["question"] == question.name and p["threshold"] is not None]
    grid = low + (high - low) * np.arange(STEPS + 1) / STEPS
    counts = count_at_thresholds(question.positive, question.score, thresholds=grid)
    marks = [{"title": Rule(p["kind"], p["target"]).title, "threshold": p["threshold"]} for p in frozen]
    return {
        "name": question.name,
        "low": low,
        "high": high,
        "start": marks[0]["threshold"] if marks else (low + high) / 2,
        "positives": int(question.positive.sum()),
        "negatives": int((~question.positive).sum()),
        "true_positives": counts.true_positives[0].astype(int).tolist(),
        "false_positives": counts.false_positives[0].astype(int).tolist(),
        "frozen": marks,
    }
