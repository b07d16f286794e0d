"""The metric on the validation split that chooses the best epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from medcls.config import nearest
from medcls.errors import ConfigError
from medcls.statistics.definitions import HIGH, TASK_METRICS, find_definition, score_metric

LOSS = "loss"


def resolve_metric(metric: str, kind: str) -> str:
    """Return the metric that "auto" stands for: auc; quadratic_kappa for ordinal; mse for regression."""
    return TASK_METRICS[kind].epoch if metric == "auto" else metric


def choose_score(metric: str, metrics: Mapping[str, float], *, loss: float, kind: str) -> float:
    """Return the score to maximise: errors count negative, a metric with a best value by its distance to it.

    Args:
        metric: "auto" (see resolve_metric), "loss", or a metric's name.
        metrics: Of the validation split.
        loss: Validation loss.
        kind: The task.

    Raises:
        ConfigError: the task has no such metric; names the nearest.
    """
    name = resolve_metric(metric, kind)
    if name != LOSS and name not in metrics:
        raise ConfigError(
            f"task.metric={name}: task.kind={kind} has loss, {', '.join(metrics)}{nearest(name, metrics)}"
        )
    value = loss if name == LOSS else metrics[name]
    # A metric that is undefined here (one class in validation) must not win over a defined one.
    if not math.isfinite(value):
        return -math.inf
    return score_metric(name, value)


def describe_score(metric: str, score: float) -> str:
    """Return "metric value" of a score from `choose_score`, for people."""
    value = unscore(metric, score)
    if value is None:
        return f"{metric} undefined"
    definition = find_definition(metric)
    apart = definition is not None and isinstance(definition.ideal, float)
    return f"{metric} {value:.3f}{f' away from {definition.ideal:g}' if definition and apart else ''}"


def unscore(metric: str, score: float) -> float | None:
    """Return the metric's value from its score, or its distance to its best value; None if undefined."""
    if not math.isfinite(score):
        return None
    definition = find_definition(metric)
    return score if definition is None or definition.ideal == HIGH else -score
