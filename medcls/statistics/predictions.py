"""Predictions of one split, checked once here and trusted afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcls.kinds import KINDS, TaskKind

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ROW_SUM_TOLERANCE = 1e-2  # bfloat16 softmax sums to one within about 0.4 %
NAMED_ROWS = 5  # rows that an error names before it only counts


@dataclass(frozen=True, slots=True)
class Predictions:
    """One row per image, checked.

    Attributes:
        kind: One of `KINDS`.
        y_true: (N,) float64 for regression; (N,) int64 in [0, K) for binary, multiclass and ordinal;
            (N, K) float64 of 0, 1 or NaN (unknown) for multilabel.
        y_score: (N, 1) or (N, K) float64: probabilities, or for regression the predicted value.
        class_names: K names; may be empty for a regression without grades.
        grades: Whether the classes are grades 0 … K-1 in this order, so that distances between them count.
        thresholds: Score from which class 1 (binary) or each label (multilabel) is called; () = 0.5, and always ()
            for other kinds. Infinite = never called.
        probabilities: False for margins or logits of another tool, which can be ranked and compared with a threshold;
            of a regression it says nothing.
    """

    kind: str
    y_true: NDArray[Any]
    y_score: Floats
    class_names: tuple[str, ...]
    grades: bool
    thresholds: tuple[float, ...] = ()
    probabilities: bool = True

    @property
    def traits(self) -> TaskKind:
        """What labels, scores and answers of its kind of task are."""
        return KINDS[self.kind]

    @property
    def has_classes(self) -> bool:
        """Whether each row has one true and one predicted class or grade."""
        return not self.traits.multiple and (self.grades or not self.traits.numeric)

    @property
    def decides(self) -> bool:
        """Whether scores become answers: margins of a yes-or-no label do not without a threshold."""
        return self.probabilities or bool(self.thresholds) or not self.traits.thresholds

    @property
    def called(self) -> NDArray[np.bool_]:
        """Whether class 1 (binary), or each label (multilabel), is called in each row; (N, 1) or (N, K)."""
        return np.asarray(self.y_score >= (np.asarray(self.thresholds) if self.thresholds else 0.5))

    @property
    def has_grades(self) -> bool:
        """True where the distance between two classes means something."""
        return self.grades or self.traits.ordered

    @property
    def positive_class(self) -> str:
        """The class that sensitivity and scores of a binary task are about, the second one; "" for other kinds."""
        return self.class_names[1] if self.traits.pair else ""

    @property
    def grade_true(self) -> Integers:
        """The true class of each row; (N,) int64. For regression the label is already the grade."""
        return np.asarray(self.y_true, dtype=np.int64)

    @property
    def grade_predicted(self) -> Integers:
        """The predicted class of each row; (N,) int64.

        Binary: class 1 at or above its threshold. Multiclass and ordinal: the most probable class, the first of
        equals. Regression: the value rounded half up and clipped to [0, K-1].
        """
        score = self.y_score
        if self.traits.pair:
            return np.asarray(self.called[:, 0], dtype=np.int64)
        if self.traits.numeric:
            rounded = np.floor(score[:, 0] + 0.5)
            return np.clip(rounded, 0, len(self.class_names) - 1).astype(np.int64)
        return np.asarray(np.argmax(score, axis=1), dtype=np.int64)


def check_predictions(
    kind: str,
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    class_names: Sequence[str],
    grades: bool = False,
    thresholds: Sequence[float] = (),
) -> Predictions:
    """Return the same values as checked `Predictions`.

    Args:
        kind: One of `KINDS`.
        y_true: (N,) or, multilabel, (N, K) with NaN for unknown.
        y_score: Probabilities (N, 1) for binary, else (N, K); values (N, 1) for regression. (N,) is taken as (N, 1).
        class_names: K distinct names; two for binary; may be empty for a regression without grades.
        grades: The classes are ordered grades 0 … K-1.
        thresholds: One for each column of y_score (binary, multilabel), or () for 0.5.

    Raises:
        ValueError: A shape, threshold, label or score is not as above; the message names the first rows.

    Source: own choice.
    """
    one = check_margins(kind, y_true, y_score, class_names=class_names, grades=grades, thresholds=thresholds)
    score = one.y_score
    if not one.traits.numeric:
        outside = (score < -1e-6) | (score > 1 + 1e-6)
        _refuse_rows(outside.any(axis=1), "y_score is not a probability in [0, 1] (logits were passed?)")
    if one.traits.exclusive:
        off = np.abs(score.sum(axis=1) - 1) > ROW_SUM_TOLERANCE
        _refuse_rows(off, "the probabilities of y_score do not sum to 1")
    return replace(one, probabilities=True)


def check_margins(
    kind: str,
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    class_names: Sequence[str],
    grades: bool = False,
    thresholds: Sequence[float] = (),
) -> Predictions:
    """Return checked `Predictions` of scores on any scale, which can only be ranked and compared with thresholds.

    Arguments and errors are those of `check_predictions`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    names = tuple(str(name) for name in class_names)
    score = np.asarray(y_score, dtype=np.float64)
    score = score[:, None] if score.ndim == 1 else score
    true = np.asarray(y_true, dtype=np.float64)
    one = Predictions(kind, true, score, names, grades, tuple(map(float, thresholds)), probabilities=False)
    _check_names(one)
    columns = one.traits.count_scores(len(names))
    if score.ndim != 2 or score.shape[1] != columns:
        raise ValueError(f"y_score has shape {score.shape}; {kind} needs (N, {columns})")
    expected = score.shape if one.traits.multiple else score.shape[:1]
    if true.shape != expected:
        raise ValueError(f"y_true has shape {true.shape}; {kind} with y_score {score.shape} needs {expected}")
    if len(score) == 0:
        raise ValueError("y_score has no rows; there is nothing to evaluate")
    _refuse_rows(~np.isfinite(score).all(axis=1), "y_score is NaN or infinite")
    if one.traits.multiple:
        wrong = (~np.isnan(true) & (true != 0) & (true != 1)).any(axis=1)
        _refuse_rows(wrong, "y_true is not 0, 1 or NaN (unknown)")
    else:
        _refuse_rows(~np.isfinite(true), "y_true is NaN or infinite")
    if one.has_classes:
        wrong = (true != np.floor(true)) | (true < 0) | (true >= len(names))
        _refuse_rows(wrong, f"y_true is not an integer in [0, {len(names)})")
    if thresholds and not (one.traits.thresholds and len(thresholds) == columns):
        raise ValueError(f"thresholds has {len(thresholds)} values; expected one for each label, none of a {kind}")
    if one.traits.multiple or one.traits.numeric:
        return one
    return replace(one, y_true=true.astype(np.int64))


def _check_names(one: Predictions) -> None:
    names, traits = one.class_names, one.traits
    if len(set(names)) != len(names):
        raise ValueError(f"class_names repeats a name: {list(names)}; every class needs its own")
    least = 2 if one.grades else traits.fewest
    if len(names) < least or (traits.most is not None and len(names) > traits.most):
        expected = f"exactly {least}" if least == traits.most else f"at least {least}"
        raise ValueError(f"class_names has {len(names)} names; {one.kind} needs {expected}")


def _refuse_rows(bad: ArrayLike, what: str) -> None:
    """Raise with the first bad row numbers, if there are any."""
    rows, total = np.flatnonzero(bad), np.size(bad)
    if rows.size:
        named = ", ".join(str(row) for row in rows[:NAMED_ROWS])
        more = f" and {rows.size - NAMED_ROWS} more" if rows.size > NAMED_ROWS else ""
        raise ValueError(f"{what} in {rows.size} of {total} rows: {named}{more}")


def select_rows(predictions: Predictions, rows: NDArray[Any]) -> Predictions:
    """Return the predictions of some rows, by index or mask."""
    return replace(predictions, y_true=predictions.y_true[rows], y_score=predictions.y_score[rows])


def or_none(value: float) -> float | None:
    """Return None for what is not finite, as JSON takes it."""
    return value if math.isfinite(value) else None


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Quotient of the two, broadcast; NaN where the denominator is not above zero.

    Source: own choice: an undefined share is NaN, never 0.
    """
    above, below = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    quotient: Floats = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return quotient


def weighted_mean(weights: Floats, rows: Floats) -> Floats:
    """Mean of `rows` in each replicate; (R,).

    Args:
        weights: (R, N) multiplicities, >= 0.
        rows: (N,) values, finite.
    """
    return ratio(weights @ rows, weights.sum(axis=1))


def sum_by_group(weights: Floats, group: NDArray[np.integer], *, num_groups: int) -> Floats:
    """Sum of the weights in each group; (R, num_groups).

    Args:
        weights: (R, N).
        group: (N,) group of each row, in [0, num_groups).
        num_groups: Those without rows get 0.
    """
    return np.stack([np.bincount(group, weights=replicate, minlength=num_groups) for replicate in weights])
