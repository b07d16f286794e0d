"""Metrics that mean the same for every arm of a comparison, whatever the kind of its task.

Classes of grades and a regression of grades are the same question, and their metrics.json use some names for different
things: a regression's mse is that of its value, a classification's that of its class. Here each has its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medcls.statistics.definitions import choose_task_metrics
from medcls.statistics.metrics import Estimates, Estimator, build_estimator, build_from_classes
from medcls.statistics.predictions import Floats, Predictions

_OF_VALUES = {
    "mae": "mae_value",
    "mse": "mse_value",
    "pearson": "pearson",
    "spearman": "spearman",
    "auc": "auc_above",
}
"""Metrics of a regression of grades that also the expected grade of a classification has, and their names here."""


def expect_grades(predictions: Predictions) -> Predictions:
    """Return the same rows as a regression of grades: the expected grade of probabilities, or the value as it is."""
    if predictions.kind == "regression":
        return predictions
    value = predictions.y_score @ np.arange(len(predictions.class_names), dtype=np.float64)
    true = predictions.y_true.astype(np.float64)
    return replace(predictions, kind="regression", y_true=true, y_score=value[:, None], grades=True, thresholds=())


def build_shared_estimator(predictions: Predictions, *, kinds: Sequence[str]) -> Estimator:
    """Return a function from weights (R, N) to the metrics that all arms share, each (R,).

    Of ordered grades: what follows from the predicted grade (mae, mse, quadratic_kappa, recall_<grade> …; a value is
    rounded), and from the value before rounding (mae_value, mse_value, auc_above …); what only one kind of task has,
    such as the log loss, only where all arms are of that kind. Of other tasks: all their metrics.

    Args:
        predictions: Checked predictions of one arm on N rows.
        kinds: Kinds of the tasks of all arms.
    """
    plain = build_estimator(predictions)
    if not predictions.has_grades:
        return plain
    from_classes, of_values = build_from_classes(predictions), build_estimator(expect_grades(predictions))
    alike = len(set(kinds)) == 1

    def estimate(weights: Floats) -> Estimates:
        values = of_values(weights)
        shared = from_classes(weights) | {name: values[key] for key, name in _OF_VALUES.items()}
        shared |= {name: value for name, value in values.items() if name.startswith("auc_above_")}
        return (plain(weights) if alike else {}) | shared

    return estimate


def check_one_question(arms: Sequence[Predictions]) -> None:
    """Raise ValueError where the tasks cannot be compared: other classes, or grades beside something else."""
    first = arms[0]
    for other in arms[1:]:
        if other.class_names != first.class_names:
            raise ValueError(f"classes {list(first.class_names)} and {list(other.class_names)}")
        if other.kind != first.kind and not (other.has_grades and first.has_grades):
            raise ValueError(f"tasks {first.kind} and {other.kind}")


def choose_metrics(predictions: Predictions) -> tuple[str, tuple[str, ...]]:
    """Return the metric that a comparison of such tasks is about, and further ones."""
    chosen = choose_task_metrics(predictions.kind, grades=predictions.has_grades)
    recalls = [f"recall_{name}" for name in predictions.class_names] if predictions.has_grades else []
    return chosen.primary, (*chosen.secondary, *recalls)


def as_grades(predictions: Predictions) -> Predictions:
    """Return a multiclass task of ordered grades, marked as such.

    Args:
        predictions: Whose class names are the grades 0 … K - 1 in order; others stay as they are.
    """
    numbered = predictions.class_names == tuple(str(i) for i in range(len(predictions.class_names)))
    return replace(predictions, grades=True) if predictions.kind == "multiclass" and numbered else predictions
