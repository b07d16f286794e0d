"""A linear head solved on cached features by logistic or ridge regression; its strength is chosen by folds of patients.

Source: multinomial logistic regression with an L2 penalty by L-BFGS, scikit-learn; ordered grades as one regression for
each step of CORN, Shi, Cao and Raschka, arXiv 2111.08851, equation 7. Our choice (docs/decisions/0051): features are
standardised, and one strength serves all the regressions of a head.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

STRENGTHS = tuple(float(value) for value in np.logspace(-5, 2, 15))
"""Inverse penalties (C) on standardised features, from the strongest penalty to the weakest (docs/decisions/0078)."""

MAX_ITERATIONS = 1_000

Floats = NDArray[np.float64]


class TriedStrength(TypedDict):
    """One C that was tried and its held-out loss."""

    C: float
    loss: float


@dataclass(frozen=True, slots=True)
class SolvedHead:
    """What was found.

    Attributes:
        weight: (L, F), for features as they are: the standardisation is folded in.
        bias: (L,).
        strength: The chosen C.
        table: For each C that was tried: its held-out loss (log loss, or squared error in squared units of the target).
        converged: Whether the last fits did.
    """

    weight: Floats
    bias: Floats
    strength: float
    table: list[TriedStrength]
    converged: bool


@dataclass(frozen=True, slots=True)
class _Question:
    """One regression of a head: the rows that it is asked on, their answers, and how many outputs it gives.

    Attributes:
        rows: (N,) bool.
        answers: (N,) class 0 … K-1, or a value; read only where `rows` is true.
        classes: K; 0 for a value.
    """

    rows: NDArray[np.bool_]
    answers: Floats
    classes: int


def fit_logistic_head(
    output: str,
    features: NDArray[Any],
    targets: Floats,
    *,
    folds: NDArray[np.int64],
    balanced: bool = False,
    strengths: Iterable[float] = STRENGTHS,
) -> SolvedHead:
    """Return the head with the strength whose held-out loss is lowest, fitted on all rows.

    Deterministic: L-BFGS starts at zero, and draws no random numbers.

    Args:
        output: What the outputs are (data.targets.Task.output): "binary", "multiclass", "multilabel", "ordinal" or
            "regression".
        features: (N, F), of any scale.
        targets: (N, T) float64 as data.targets.encode_targets returns them: a class, a value, or 0, 1 and NaN for each
            label. Values of a regression should be centred and in units of their deviation.
        folds: (N,) fold of each row; all rows of a patient are in one.
        balanced: Weigh classes inversely to their counts, also in the held-out loss.
        strengths: Values of C, ascending; after two rises in a row of the held-out loss the rest is not tried.

    Raises:
        ValueError: an output that is not solved.
    """
    questions = _ask(output, targets)
    rows = np.asarray(features, dtype=np.float64)
    parts = [_standardize(rows, folds != fold) for fold in np.unique(folds)]
    fitted: dict[tuple[int, int], Any] = {}
    table: list[TriedStrength] = []
    for strength in strengths:
        total, weight = 0.0, 0.0
        for number, (fold, (scaled, _, _)) in enumerate(zip(np.unique(folds), parts, strict=True)):
            for place, question in enumerate(questions):
                inside, outside = question.rows & (folds != fold), question.rows & (folds == fold)
                if not outside.any() or not _is_answerable(question, inside, outside):
                    continue
                # Begins where the stronger penalty ended: a path of ten strengths costs little more than one fit.
                model = fitted.setdefault((number, place), _build(question, balanced=balanced))
                _fit(model, scaled[inside], question.answers[inside], strength=strength)
                losses = _compute_losses(model, scaled[outside], question.answers[outside], classes=question.classes)
                weights = _weigh(question, outside, balanced=balanced)
                total, weight = total + float(losses @ weights), weight + float(weights.sum())
        table.append({"C": strength, "loss": total / weight if weight else float("nan")})
        last = [row["loss"] for row in table[-3:]]
        if len(last) == 3 and last[0] < last[1] < last[2]:
            break
    # The first of equals: the strongest penalty. Without any held-out loss the middle of the range.
    defined = [row for row in table if np.isfinite(row["loss"])] or [table[len(table) // 2]]
    strength = min(defined, key=lambda row: row["loss"])["C"]
    scaled, mean, deviation = _standardize(rows, np.ones(len(rows), dtype=np.bool_))
    slopes_found: list[Floats] = []
    starts_found: list[Floats] = []
    converged = True
    for question in questions:
        model = _build(question, balanced=balanced)
        converged &= _fit(model, scaled[question.rows], question.answers[question.rows], strength=strength)
        slopes, starts = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
        if output == "multiclass" and len(slopes) == 1:
            # Two classes are solved as one regression; a head with a logit for each gives half of it to each.
            halves = np.array([-0.5, 0.5])
            slopes, starts = halves[:, None] * slopes, halves * starts
        slopes_found.append(slopes / deviation)
        starts_found.append(starts - slopes_found[-1] @ mean)
    return SolvedHead(np.concatenate(slopes_found), np.concatenate(starts_found), strength, table, converged)


def _ask(output: str, targets: Floats) -> list[_Question]:
    known = ~np.isnan(targets)
    if output in ("binary", "multiclass"):
        return [_Question(known[:, 0], targets[:, 0], int(np.nanmax(targets)) + 1)]
    if output == "multilabel":
        return [_Question(known[:, k], targets[:, k], 2) for k in range(targets.shape[1])]
    if output == "ordinal":
        steps = range(int(np.nanmax(targets)))
        return [_Question(targets[:, 0] >= k, (targets[:, 0] > k).astype(np.float64), 2) for k in steps]
    if output == "regression":
        return [_Question(known[:, 0], targets[:, 0], 0)]
    raise ValueError(f"a head of {output} is not solved")


def _is_answerable(question: _Question, inside: NDArray[np.bool_], outside: NDArray[np.bool_]) -> bool:
    """Return whether the rows inside have every class that the rows outside have, and at least two."""
    if not question.classes:
        return bool(inside.any())
    seen = np.unique(question.answers[inside])
    return len(seen) == question.classes and bool(np.isin(question.answers[outside], seen).all())


def _standardize(rows: Floats, fitted: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Return rows (N, F) less the mean (F,) over their deviation (F,), both of the rows where `fitted` is true."""
    mean, deviation = rows[fitted].mean(axis=0), rows[fitted].std(axis=0)
    # A feature that never changes says nothing, and must not be divided by rounding.
    deviation = np.where(deviation > 1e-9 * np.maximum(1, np.abs(mean)), deviation, np.inf)
    return (rows - mean) / deviation, mean, deviation


def _build(question: _Question, *, balanced: bool) -> Any:
    if not question.classes:
        return Ridge()
    weight = "balanced" if balanced else None
    return LogisticRegression(max_iter=MAX_ITERATIONS, class_weight=weight, warm_start=True)


def _fit(model: Any, rows: Floats, answers: Floats, *, strength: float) -> bool:
    """Fit a model with this inverse penalty, and return whether it converged."""
    model.set_params(**({"alpha": 1 / strength} if isinstance(model, Ridge) else {"C": strength}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(rows, answers)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _compute_losses(model: Any, rows: Floats, answers: Floats, *, classes: int) -> Floats:
    """Return the log loss of each row (N,), or its squared error."""
    if not classes:
        return np.asarray((model.predict(rows) - answers) ** 2, np.float64)
    logits = model.decision_function(rows)
    if classes == 2:
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    places = np.searchsorted(model.classes_, answers)
    top = logits.max(axis=1, keepdims=True)
    normalizers = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    return np.asarray(normalizers - logits[np.arange(len(logits)), places], np.float64)


def _weigh(question: _Question, outside: NDArray[np.bool_], *, balanced: bool) -> Floats:
    """Return the weight of each row outside (N,): 1, or inversely to the count of its class in all rows."""
    if not balanced or not question.classes:
        return np.ones(int(outside.sum()))
    answers = question.answers[question.rows].astype(np.int64)
    counts = np.bincount(answers, minlength=question.classes)
    weights = len(answers) / (question.classes * np.maximum(counts, 1))
    return np.asarray(weights[question.answers[outside].astype(np.int64)], np.float64)
