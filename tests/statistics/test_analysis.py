"""A plan of analysis: what it may say, and when a criterion is met, not met or undecided."""

from __future__ import annotations

from typing import Any

import pytest

from medcls.errors import ConfigError
from medcls.statistics.analysis import Analysis, check_analysis, format_analysis, judge_analysis, parse_analysis


def parse(**content: Any) -> Analysis:
    return parse_analysis(content, where="analysis=plan.yaml")


def entry(value: float, low: float | None, high: float | None, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, **more}


@pytest.mark.parametrize(
    ("limits", "found", "verdict"),
    [
        ({"at_least": 0.8}, entry(0.9, 0.85, 0.95), "met"),
        ({"at_least": 0.8}, entry(0.9, 0.80, 0.95), "met"),
        ({"at_least": 0.8}, entry(0.9, 0.79, 0.95), "undecided"),
        ({"at_least": 0.8}, entry(0.7, 0.60, 0.80), "undecided"),
        ({"at_least": 0.8}, entry(0.7, 0.60, 0.79), "not met"),
        ({"at_least": 0.8}, entry(0.9, None, None, reason="one patient only"), "undecided"),
    ],
)
def test_a_lower_limit_is_judged_by_the_interval(limits: dict[str, Any], found: dict[str, Any], verdict: str) -> None:
    (row,) = judge_analysis(parse(metrics=[{"metric": "auc", **limits}]), {"auc": found})["criteria"]
    assert row["verdict"] == verdict
    assert bool(row["reason"]) == (verdict == "undecided")


def test_a_verdict_has_the_note_on_its_interval() -> None:
    note = "3 patients in the smallest class"
    plan = parse(metrics=[{"metric": "auc", "at_least": 0.8}])
    (row,) = judge_analysis(plan, {"auc": entry(0.9, 0.85, 0.95, note=note)})["criteria"]
    assert (row["verdict"], row["reason"]) == ("met", note)
    (row,) = judge_analysis(plan, {"auc": entry(0.9, 0.75, 0.95, note=note)})["criteria"]
    assert row["reason"] == f"the interval contains the limit; {note}"


@pytest.mark.parametrize(
    ("limits", "bounds", "verdict"),
    [
        ({"metric": "brier", "at_most": 0.2}, (0.1, 0.19), "met"),
        ({"metric": "brier", "at_most": 0.2}, (0.21, 0.3), "not met"),
        ({"metric": "brier", "at_most": 0.2}, (0.1, 0.3), "undecided"),
        ({"metric": "calibration_slope", "between": [0.8, 1.25]}, (0.9, 1.2), "met"),
        ({"metric": "calibration_slope", "between": [0.8, 1.25]}, (0.7, 1.2), "undecided"),
        ({"metric": "calibration_slope", "between": [0.8, 1.25]}, (1.3, 2.0), "not met"),
    ],
)
def test_upper_limits_and_ranges_are_judged_by_the_interval(
    limits: dict[str, Any], bounds: tuple[float, float], verdict: str
) -> None:
    metrics = {limits["metric"]: entry(sum(bounds) / 2, *bounds)}
    assert judge_analysis(parse(metrics=[limits]), metrics)["conclusion"] == verdict


@pytest.mark.parametrize(
    ("comparison", "bounds", "verdict"),
    [
        ({"metric": "auc", "margin": 0.05}, (-0.04, 0.1), "met"),
        ({"metric": "auc", "margin": 0.05}, (-0.05, 0.1), "undecided"),
        ({"metric": "auc", "margin": 0.05}, (-0.2, -0.06), "not met"),
        ({"metric": "auc"}, (0.01, 0.1), "met"),
        ({"metric": "auc"}, (-0.01, 0.1), "undecided"),
        ({"metric": "brier", "margin": 0.02}, (-0.1, 0.01), "met"),
        ({"metric": "brier", "margin": 0.02}, (0.03, 0.1), "not met"),
    ],
)
def test_a_margin_is_judged_on_the_better_side_of_the_metric(
    comparison: dict[str, Any], bounds: tuple[float, float], verdict: str
) -> None:
    found = {"difference": sum(bounds) / 2, "low": bounds[0], "high": bounds[1]}
    metrics = {"comparison": {"metrics": {comparison["metric"]: found}}}
    assert judge_analysis(parse(comparison=comparison), metrics)["conclusion"] == verdict


def test_the_conclusion_needs_all_or_rests_on_the_primary() -> None:
    metrics = {"auc": entry(0.9, 0.85, 0.95), "sensitivity": entry(0.7, 0.6, 0.8), "brier": entry(0.3, 0.25, 0.35)}
    limits = [
        {"metric": "auc", "at_least": 0.8},
        {"metric": "sensitivity", "at_least": 0.75},
        {"metric": "brier", "at_most": 0.2},
    ]
    every = judge_analysis(parse(metrics=limits), metrics)
    assert every["conclusion"] == "not met"
    assert "needs all 3 criteria" in every["multiplicity"]
    assert judge_analysis(parse(metrics=limits[:2]), metrics)["conclusion"] == "undecided"
    primary = judge_analysis(parse(metrics=limits[::-1], primary="auc"), metrics)
    assert primary["conclusion"] == "met"
    assert "The other 2 are secondary" in primary["multiplicity"]
    assert primary["criteria"][0]["metric"] == "auc"
    lines = format_analysis(primary).splitlines()
    assert lines[0] == "decided beforehand: met"
    assert "  met       primary: AUC ≥ 0.8 (0.900, 0.850 to 0.950)" in lines


def test_every_group_is_judged_and_a_suppressed_one_is_undecided() -> None:
    groups = [
        {"column": "sex", "value": "F", "metrics": {"auc": entry(0.9, 0.85, 0.95)}},
        {"column": "sex", "value": "M", "metrics": {}, "reason": "fewer than 20 patients: suppressed"},
    ]
    plan = parse(metrics=[{"metric": "auc", "at_least": 0.8, "each": "sex"}], subgroups=["age"])
    assert plan.columns == ("age", "sex")
    rows = judge_analysis(plan, {"auc": entry(0.9, 0.8, 1.0), "subgroups": groups})["criteria"]
    assert [row["verdict"] for row in rows] == ["met", "undecided"]
    assert rows[1]["reason"] == "fewer than 20 patients: suppressed"
    none = judge_analysis(plan, {"auc": entry(0.9, 0.8, 1.0), "subgroups": []})["criteria"]
    assert none[0]["verdict"] == "undecided"


def test_a_level_is_judged_by_its_own_numbers() -> None:
    plan = parse(metrics=[{"metric": "auc", "at_least": 0.8, "level": "patient"}])
    metrics = {"auc": entry(0.7, 0.6, 0.75), "levels": {"patient": {"metrics": {"auc": entry(0.9, 0.85, 0.95)}}}}
    assert judge_analysis(plan, metrics)["conclusion"] == "met"
    assert judge_analysis(plan, {"auc": entry(0.9, 0.85, 0.95), "levels": {}})["conclusion"] == "undecided"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([], "expected keys and values"),
        ({}, "no criterion"),
        ({"metric": []}, r"unknown key 'metric' \(nearest: metrics\)"),
        ({"metrics": {}, "comparison": {"metric": "auc"}, "subgroups": "sex"}, "subgroups: expected a list"),
        ({"metrics": [{"metric": "aucc", "at_least": 1}]}, r"entry 1: metric: .*nearest: auc"),
        ({"metrics": [{"metric": "auc"}]}, "0 limits"),
        ({"metrics": [{"metric": "auc", "at_least": 0.5, "at_most": 0.6}]}, "2 limits"),
        ({"metrics": [{"metric": "auc", "atleast": 0.5}]}, "nearest: at_least"),
        ({"metrics": [{"metric": "auc", "at_least": "0.5"}]}, "expected a number"),
        ({"metrics": [{"metric": "auc", "at_least": True}]}, "expected a number"),
        ({"metrics": [{"metric": "auc", "at_most": 0.5}]}, "better the higher: use at_least"),
        ({"metrics": [{"metric": "brier", "at_least": 0.5}]}, "better the lower: use at_most"),
        ({"metrics": [{"metric": "calibration_slope", "at_least": 0.5}]}, "best at 1.*: use between"),
        ({"metrics": [{"metric": "auc", "between": [0.9, 0.8]}]}, "0.9 is not below 0.8"),
        ({"metrics": [{"metric": "auc", "at_least": 0.8, "level": "patients"}]}, "nearest: patient"),
        ({"metrics": [{"metric": "auc", "at_least": 0.8}], "primary": "brier"}, "expected one of auc"),
        ({"comparison": {"metric": "auc", "margin": -0.1}}, "below 0"),
        ({"comparison": {"metric": "calibration_slope"}}, "no better direction"),
    ],
)
def test_plans_that_say_nothing_clear_are_refused(content: Any, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        parse_analysis(content, where="analysis=plan.yaml")


@pytest.mark.parametrize(
    ("kind", "names", "metric"),
    [
        ("binary", ("a", "b"), "sensitivity"),
        ("multiclass", ("a", "b", "c"), "recall_c"),
        ("ordinal", ("a", "b", "c"), "quadratic_kappa"),
        ("multilabel", ("a", "b"), "auc_b"),
        ("regression", (), "r2"),
    ],
)
def test_metrics_are_checked_before_rows_are_opened(kind: str, names: tuple[str, ...], metric: str) -> None:
    known = {"class_names": names, "grades": False, "against": False, "where": "analysis=plan.yaml"}
    limit = {"metric": metric, "at_least": 0.5}
    check_analysis(parse(metrics=[limit]), kind, **known)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"recall_zz is not a metric of kind={kind}"):
        check_analysis(parse(metrics=[limit | {"metric": "recall_zz"}]), kind, **known)  # type: ignore[arg-type]
    metric = "r2" if kind == "regression" else "auc"
    with pytest.raises(ConfigError, match="set against="):
        check_analysis(parse(comparison={"metric": metric}), kind, **known)  # type: ignore[arg-type]
