"""The one number that chooses the best epoch on the validation split."""

from __future__ import annotations

import math
from collections.abc import Mapping

from medcls.config import nearest
from medcls.errors import ConfigError

LOSS = "loss"
_SMALLER_IS_BETTER = (LOSS, "brier", "log_loss", "ece", "mae", "mse", "rmse", "lr_negative")
_DEFAULT = {
    "binary": "auc",
    "multiclass": "auc",
    "multilabel": "auc",
    "ordinal": "quadratic_kappa",
    "regression": "mse",
}


def name_metric(metric: str, kind: str) -> str:
    """Returns the metric that "auto" stands for: auc; quadratic_kappa for ordinal; mse for regression."""
    return _DEFAULT[kind] if metric == "auto" else metric


def choose_score(metric: str, metrics: Mapping[str, float], *, loss: float, kind: str) -> float:
    """Returns the score to maximise; errors count negative.

    Args:
        metric: "auto" (see name_metric), "loss", or a metric's name.
        metrics: Of the validation split.
        loss: Validation loss.
        kind: The task.

    Raises:
        ConfigError: the task has no such metric; names the nearest.
    """
    name = name_metric(metric, kind)
    if name != LOSS and name not in metrics:
        raise ConfigError(
            f"task.metric={name}: task.kind={kind} has loss, {', '.join(metrics)}{nearest(name, metrics)}"
        )
    value = loss if name == LOSS else metrics[name]
    # A metric that is undefined here (one class in validation) must not win over a defined one.
    if not math.isfinite(value):
        return -math.inf
    return -value if is_error(name) else value


def describe_score(metric: str, score: float) -> str:
    """Returns "metric value" of a score from `choose_score`, for people."""
    if not math.isfinite(score):
        return f"{metric} undefined"
    return f"{metric} {-score if is_error(metric) else score:.3f}"


def is_error(metric: str) -> bool:
    """Returns whether smaller is better: an error, or that of one label of several (brier_effusion)."""
    return metric in _SMALLER_IS_BETTER or metric.startswith(tuple(f"{name}_" for name in _SMALLER_IS_BETTER))
