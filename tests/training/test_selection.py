from __future__ import annotations

import math

import pytest

from medcls.errors import ConfigError
from medcls.training.selection import choose_score, describe_score, is_error, name_metric

METRICS = {
    "auc": 0.9,
    "brier": 0.2,
    "brier_effusion": 0.3,
    "log_loss_effusion": 0.4,
    "quadratic_kappa": 0.5,
    "mse": 4.0,
}


@pytest.mark.parametrize(
    ("kind", "metric", "score"),
    [
        ("binary", "auc", 0.9),
        ("multiclass", "auc", 0.9),
        ("multilabel", "auc", 0.9),
        ("ordinal", "quadratic_kappa", 0.5),
        ("regression", "mse", -4.0),
    ],
)
def test_automatic_metric_of_each_task(kind: str, metric: str, score: float) -> None:
    assert name_metric("auto", kind) == metric
    assert choose_score("auto", METRICS, loss=1.0, kind=kind) == score


@pytest.mark.parametrize(("metric", "score"), [("loss", -1.5), ("brier", -0.2), ("quadratic_kappa", 0.5)])
def test_errors_count_negative(metric: str, score: float) -> None:
    assert choose_score(metric, METRICS, loss=1.5, kind="multiclass") == score


def test_errors_of_one_label_count_negative_too() -> None:
    assert choose_score("brier_effusion", METRICS, loss=1.0, kind="multilabel") == -0.3
    assert choose_score("log_loss_effusion", METRICS, loss=1.0, kind="multilabel") == -0.4
    assert not is_error("recall_mse")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_undefined_metric_never_wins(value: float) -> None:
    assert choose_score("auc", {"auc": value}, loss=1.0, kind="binary") == -math.inf
    assert choose_score("loss", {}, loss=value, kind="binary") == -math.inf


def test_misspelt_metric_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"task.metric=quadratic_kapa: .*nearest: quadratic_kappa") as caught:
        choose_score("quadratic_kapa", METRICS, loss=1.0, kind="ordinal")
    assert caught.value.exit_code == 78


def test_people_see_the_metric_and_not_the_score() -> None:
    assert describe_score("mse", -0.25) == "mse 0.250"
    assert describe_score("quadratic_kappa", -0.05) == "quadratic_kappa -0.050"
    assert describe_score("auc", -math.inf) == "auc undefined"
