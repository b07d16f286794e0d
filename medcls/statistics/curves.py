"""Yes-or-no questions of a task at all thresholds: rates, predictive values, net benefit, bands over patients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcls.statistics.bounds import LEVEL
from medcls.statistics.intervals import draw_replicates
from medcls.statistics.predictions import Floats, Integers, Predictions, ratio, sum_by_group


class Counts(NamedTuple):
    """Counts of each replicate at each threshold (a row is called positive at score >= threshold).

    `true_positives` and `false_positives` are (R, T); `positives` and `negatives` (R, 1).
    """

    true_positives: Floats
    false_positives: Floats
    positives: Floats
    negatives: Floats


def count_at_thresholds(
    positive: NDArray[np.bool_], score: Floats, *, thresholds: ArrayLike, weights: Floats | None = None
) -> Counts:
    """Rows called positive at each threshold, by true class.

    Args:
        positive: (N,) whether a row is a case.
        score: (N,) finite.
        thresholds: (T,).
        weights: (R, N) multiplicities; one replicate of ones by default.
    """
    drawn = np.ones((1, len(score))) if weights is None else weights
    chosen = np.asarray(thresholds, dtype=np.float64)
    order = np.argsort(chosen)
    reached = np.searchsorted(chosen[order], score, side="right")
    columns = np.empty_like(order)
    columns[order] = np.arange(len(order))
    hits, alarms = (
        sum_by_group(drawn[:, rows], reached[rows], num_groups=len(chosen) + 1)[:, ::-1].cumsum(axis=1)[:, ::-1]
        for rows in (positive, ~positive)
    )
    return Counts(hits[:, 1:][:, columns], alarms[:, 1:][:, columns], hits[:, :1], alarms[:, :1])


def compute_operating_rates(counts: Counts) -> dict[str, Floats]:
    """Sensitivity, specificity, PPV, NPV and both likelihood ratios; each (R, T), NaN = undefined.

    Predictive values are undefined without cases or without others, as in `agreement.compute_rates`.

    Source: Altman & Bland 1994 (rates); Deeks & Altman 2004 (likelihood ratios).
    """
    hits, alarms = counts.true_positives, counts.false_positives
    rejected, missed = counts.negatives - alarms, counts.positives - hits
    sensitivity, specificity = ratio(hits, counts.positives), ratio(rejected, counts.negatives)
    both = (counts.positives > 0) & (counts.negatives > 0)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": np.where(both, ratio(hits, hits + alarms), np.nan),
        "npv": np.where(both, ratio(rejected, rejected + missed), np.nan),
        "lr_positive": ratio(sensitivity, 1 - specificity),
        "lr_negative": ratio(1 - sensitivity, specificity),
    }


def compute_predictive_values(
    sensitivity: ArrayLike, specificity: ArrayLike, *, prevalence: float
) -> tuple[Floats, Floats]:
    """PPV and NPV at a stated prevalence instead of that of the rows; two arrays of the shape of the inputs.

    Args:
        sensitivity: In [0, 1].
        specificity: In [0, 1].
        prevalence: Share of cases where the model will be used, in (0, 1).

    Raises:
        ValueError: prevalence is not between 0 and 1.

    Source: Altman & Bland 1994 (predictive values by Bayes' theorem).
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence is {prevalence}; expected a share between 0 and 1")
    found = np.asarray(sensitivity, dtype=np.float64) * prevalence
    cleared = np.asarray(specificity, dtype=np.float64) * (1 - prevalence)
    missed, alarmed = prevalence - found, (1 - prevalence) - cleared
    return ratio(found, found + alarmed), ratio(cleared, cleared + missed)


def compute_net_benefit(counts: Counts, *, thresholds: ArrayLike) -> tuple[Floats, Floats]:
    """Net benefit of the model and of calling every row positive; two (R, T). Calling none has 0.

    True positives less false positives at the odds of the threshold, per row: what a reader gains who thinks
    1/t - 1 needless positives as bad as one missed case.

    Args:
        counts: At these thresholds, of calibrated probabilities.
        thresholds: (T,) probabilities, in [0, 1).

    Source: Vickers & Elkin 2006.
    """
    chosen = np.asarray(thresholds, dtype=np.float64)
    odds, total = chosen / (1 - chosen), counts.positives + counts.negatives
    model = ratio(counts.true_positives - odds * counts.false_positives, total)
    return model, ratio(counts.positives - odds * counts.negatives, total)


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
    """Return one for class 1 (binary), each class (others), each grade but the last (regression of grades)."""
    true, score, names = predictions.y_true, predictions.y_score, predictions.class_names
    everyone = np.arange(len(score))
    if predictions.kind == "binary":
        return [Question(names[1], "", true == 1, score[:, 0], everyone)]
    questions = []
    for k, name in enumerate(names):
        if predictions.kind == "multilabel":
            rows = np.flatnonzero(~np.isnan(true[:, k]))
            questions.append(Question(name, f"_{name}", true[rows, k] == 1, score[rows, k], rows))
        elif predictions.kind != "regression":
            questions.append(Question(name, f"_{name}", true == k, score[:, k], everyone))
        elif predictions.grades and k < len(names) - 1:
            questions.append(Question(f"> {name}", f"_above_{name}", true > k, score[:, 0], everyone))
    return questions


def name_question(kind: str, name: str, *, grades: bool) -> str:
    """Return a question as a reader needs it: "grade 2 against all others", which "grade 2 or above" is not."""
    if kind not in ("multiclass", "ordinal"):
        return name
    return f"{'grade ' if grades or kind == 'ordinal' else ''}{name} against all others"


def count_replicates(
    question: Question, patients: Integers, *, thresholds: ArrayLike, seed: int, replicates: int = BAND_REPLICATES
) -> Counts:
    """Return counts at each threshold in every bootstrap replicate of the patients.

    Args:
        question: Of n rows.
        patients: (N,) patient number of each row of the task.
        thresholds: (T,).
        seed: Seed of the replicates.
        replicates: R.
    """
    parts = [
        count_at_thresholds(question.positive, question.score, thresholds=thresholds, weights=weights[:, question.rows])
        for weights in draw_replicates(patients, replicates=replicates, seed=seed)
    ]
    return Counts(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def compute_roc_band(
    question: Question, patients: Integers, *, false_positive_rates: Floats, seed: int
) -> tuple[Floats, Floats]:
    """Pointwise bounds of the sensitivity at each false-positive rate; two (T,).

    Source: Fawcett 2006, algorithm 4 (vertical averaging), with percentiles of a bootstrap over patients.
    """
    scores = np.unique(question.score)[::-1]
    if len(scores) > MOST_THRESHOLDS:
        scores = np.quantile(scores, np.linspace(1, 0, MOST_THRESHOLDS))
    thresholds = np.concatenate([[np.inf], scores])
    counts = count_replicates(question, patients, thresholds=thresholds, seed=seed)
    alarms = ratio(counts.false_positives, counts.negatives)
    hits = ratio(counts.true_positives, counts.positives)
    drawn = [
        hit[np.searchsorted(alarm, false_positive_rates, side="right") - 1]
        for alarm, hit in zip(alarms, hits, strict=True)
        if np.isfinite(alarm[-1]) and np.isfinite(hit[-1])
    ]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high
