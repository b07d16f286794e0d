"""The yes-or-no questions inside a task, and the bands of their curves over patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcls.statistics.intervals import draw_replicates
from medcls.statistics.operating import Counts, count_at_thresholds
from medcls.statistics.predictions import Floats, Integers, Predictions
from medcls.statistics.weighted import ratio

BAND_REPLICATES = 500
MOST_THRESHOLDS = 1000


@dataclass(frozen=True, slots=True)
class Question:
    """One ranking of rows against one yes-or-no truth.

    Attributes:
        name: The class, or "> grade".
        metric_suffix: What follows "auc" in the name of its metric: "", "_KL2", "_above_KL2".
        positive: (n,) whether a row is a case.
        score: (n,) score of the rows whose truth is known.
        rows: (n,) their row numbers.
    """

    name: str
    metric_suffix: str
    positive: NDArray[np.bool_]
    score: Floats
    rows: Integers


def list_questions(predictions: Predictions) -> list[Question]:
    """One for class 1 (binary), each class (others), each grade but the last (regression of grades)."""
    true, score, names = predictions.y_true, predictions.y_score, predictions.class_names
    rows = np.arange(len(score))
    match predictions.kind:
        case "binary":
            return [Question(names[1], "", true == 1, score[:, 0], rows)]
        case "multilabel":
            known = [np.flatnonzero(~np.isnan(true[:, k])) for k in range(len(names))]
            return [
                Question(name, f"_{name}", true[known[k], k] == 1, score[known[k], k], known[k])
                for k, name in enumerate(names)
            ]
        case "regression":
            above = names[:-1] if predictions.grades else ()
            return [
                Question(f"> {name}", f"_above_{name}", true > k, score[:, 0], rows) for k, name in enumerate(above)
            ]
        case _:
            return [Question(name, f"_{name}", true == k, score[:, k], rows) for k, name in enumerate(names)]


def name_question(kind: str, name: str, *, grades: bool) -> str:
    """Return a question as a reader needs it: "grade 2 against all others", which "grade 2 or above" is not.

    Args:
        kind: Kind of the task.
        name: Name of one of `list_questions`.
        grades: The classes are ordered grades.
    """
    if kind not in ("multiclass", "ordinal"):
        return name
    return f"{'grade ' if grades or kind == 'ordinal' else ''}{name} against all others"


def count_replicates(
    question: Question,
    patients: Integers,
    *,
    thresholds: ArrayLike,
    seed: int,
    replicates: int = BAND_REPLICATES,
) -> Counts:
    """Counts at each threshold in every bootstrap replicate of the patients.

    Args:
        question: Of n rows.
        patients: (N,) patient number of each row of the task.
        thresholds: (T,).
        seed: Decides the replicates.
        replicates: R.
    """
    parts = [
        count_at_thresholds(question.positive, question.score, thresholds=thresholds, weights=weights[:, question.rows])
        for weights in draw_replicates(patients, replicates=replicates, seed=seed)
    ]
    return Counts(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def compute_roc_band(
    question: Question, patients: Integers, *, false_positive_rates: Floats, seed: int, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Pointwise bounds of the sensitivity at each false-positive rate; two (T,).

    Source: Fawcett 2006, algorithm 4 (vertical averaging), with percentiles of a bootstrap over patients.
    """
    scores = np.unique(question.score)[::-1]
    if len(scores) > MOST_THRESHOLDS:
        scores = np.quantile(scores, np.linspace(1, 0, MOST_THRESHOLDS))
    thresholds = np.concatenate([[np.inf], scores])
    counts = count_replicates(question, patients, thresholds=thresholds, seed=seed)
    alarms, hits = (
        ratio(counts.false_positives, counts.negatives),
        ratio(counts.true_positives, counts.positives),
    )
    drawn = [
        hit[np.searchsorted(alarm, false_positive_rates, side="right") - 1]
        for alarm, hit in zip(alarms, hits, strict=True)
        if np.isfinite(alarm[-1]) and np.isfinite(hit[-1])
    ]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
