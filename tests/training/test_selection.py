from __future__ import annotations

import math

import pytest

from medcls.errors import ConfigError
from medcls.statistics import definitions
from medcls.statistics.definitions import (
    DEFINITIONS,
    GRADED_REGRESSION,
    LOW,
    TASK_METRICS,
    Definition,
    describe_direction,
)
from medcls.statistics.predictions import KINDS
from medcls.statistics.selection import choose_score, describe_score, resolve_metric, unscore

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
    assert resolve_metric("auto", kind) == metric
    assert choose_score("auto", METRICS, loss=1.0, kind=kind) == score


@pytest.mark.parametrize(("metric", "score"), [("loss", -1.5), ("brier", -0.2), ("quadratic_kappa", 0.5)])
def test_errors_count_negative(metric: str, score: float) -> None:
    assert choose_score(metric, METRICS, loss=1.5, kind="multiclass") == score


def test_errors_of_one_label_count_negative_too() -> None:
    assert choose_score("brier_effusion", METRICS, loss=1.0, kind="multilabel") == -0.3
    assert choose_score("log_loss_effusion", METRICS, loss=1.0, kind="multilabel") == -0.4
    assert choose_score("recall_mse", {"recall_mse": 0.7}, loss=1.0, kind="multilabel") == 0.7


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
    assert describe_score("calibration_slope", -0.05) == "calibration_slope 0.050 away from 1"


@pytest.mark.parametrize(
    ("metric", "best", "worse"), [("calibration_slope", 1.1, 8.0), ("calibration_intercept", 0.1, 2)]
)
def test_metric_with_a_best_value_is_scored_by_its_distance_to_it(metric: str, best: float, worse: float) -> None:
    scores = [choose_score(metric, {metric: value}, loss=1.0, kind="binary") for value in (best, worse, -worse)]
    assert scores[0] == pytest.approx(-0.1)
    assert scores[0] > max(scores[1:])
    assert unscore(metric, scores[0]) == pytest.approx(0.1)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_epoch_with_the_better_value_of_each_metric_wins(name: str) -> None:
    ideal = DEFINITIONS[name].ideal
    better, worse = (0.9, 0.4) if ideal == "high" else (0.4, 0.9) if ideal == LOW else (ideal + 0.1, ideal + 3)
    two = [choose_score(name, {name: value}, loss=value, kind="binary") for value in (better, worse)]
    assert two[0] > two[1]


def test_new_error_metric_is_handled_by_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Definition("Made up", "An error nobody has heard of.", "—", LOW)
    monkeypatch.setitem(definitions.DEFINITIONS, "made_up_error", row)
    assert choose_score("made_up_error", {"made_up_error": 0.3}, loss=1.0, kind="binary") == -0.3
    assert choose_score("made_up_error_effusion", {"made_up_error_effusion": 0.3}, loss=1.0, kind="multilabel") == -0.3
    assert describe_score("made_up_error", -0.3) == "made_up_error 0.300"
    assert describe_direction("made_up_error") == "lower is better"


def test_metric_that_chooses_the_aggregation_is_known_for_every_kind() -> None:
    assert {*TASK_METRICS} - {GRADED_REGRESSION} == set(KINDS)
    assert {row.joining for row in TASK_METRICS.values()} <= set(DEFINITIONS)
