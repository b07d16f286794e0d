"""Numbers behind the report's threshold slider: counts at each step, including the frozen thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medcls.statistics.curves import Question, count_at_thresholds, list_questions, name_question
from medcls.statistics.number_text import format_number, format_threshold
from medcls.statistics.predictions import Predictions
from medcls.statistics.thresholds import Rule

STEPS = 1000
MOST_QUESTIONS = 20
SHARES = ("sensitivity", "specificity", "ppv", "npv")


def build_slider(
    predictions: Predictions,
    points: Sequence[Mapping[str, Any]],
    *,
    start: Mapping[str, float | None],
    several_images: bool = False,
) -> dict[str, object] | None:
    """Return what the page's script needs, ready for JSON; None if no question has both answers.

    A thousand steps between the ends, and every frozen threshold as a step of its own, so that the counts there, and
    the intervals, are exactly those of the table. Counts only, no scores of single images of these rows.

    Args:
        predictions: Of N rows.
        points: Frozen operating points, as in metrics.json.
        start: Question to the threshold of the decision, where the page opens.
        several_images: A patient has several images: Wilson's intervals of images, which the script computes at other
            thresholds, would be too narrow and are left out.
    """
    questions = [q for q in list_questions(predictions) if 0 < q.positive.sum() < len(q.positive)][:MOST_QUESTIONS]
    built = [_build_one(q, predictions, points, start=start.get(q.name)) for q in questions]
    return {"questions": built, "several_images": several_images} if questions else None


def _build_one(
    question: Question, predictions: Predictions, points: Sequence[Mapping[str, Any]], *, start: float | None
) -> dict[str, object]:
    low, high = 0.0, 1.0
    if predictions.kind == "regression" or not predictions.probabilities:
        low, high = float(question.score.min()), float(question.score.max())
    frozen = [p for p in points if p["question"] == question.name and p["threshold"] is not None]
    exact = [float(point["threshold"]) for point in frozen]
    if start is not None:
        exact.append(start)
    steps = np.unique([*(low + (high - low) * np.arange(STEPS + 1) / STEPS), *exact])
    counts = count_at_thresholds(question.positive, question.score, thresholds=steps)
    marks = []
    for point in frozen:
        intervals = dict.fromkeys(SHARES, "")
        for name in SHARES if "rates" in point else ():
            # As the table of operating points has it, with its note.
            number = format_number(name, point["rates"][name])
            intervals[name] = "; ".join(filter(None, [number.interval, number.reason]))
        rule, step = Rule(point["kind"], point["target"]), np.searchsorted(steps, point["threshold"])
        marks.append({"title": rule.title, "step": int(step), "intervals": intervals})
    first = next((each for each in (start, *exact) if each is not None), (low + high) / 2)
    return {
        "name": name_question(predictions.kind, question.name, grades=predictions.grades),
        "thresholds": steps.tolist(),
        "labels": [format_threshold(step) for step in steps.tolist()],
        "start": int(np.searchsorted(steps, first)),
        "positives": int(question.positive.sum()),
        "negatives": int((~question.positive).sum()),
        "true_positives": counts.true_positives[0].astype(int).tolist(),
        "false_positives": counts.false_positives[0].astype(int).tolist(),
        "frozen": marks,
    }
