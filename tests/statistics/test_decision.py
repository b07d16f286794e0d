"""One decision for every number: which frozen point it is, what it calls, and what it says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from medcls.statistics.assessment import Extras, Rows, assess, choose_operating, read_decision
from medcls.statistics.decision import build_decision, describe_calls, list_decisions
from medcls.statistics.intervals import measure_predictions
from medcls.statistics.predictions import KINDS, check_predictions
from medcls.statistics.thresholds import NEVER, list_rules

RULES = list_rules(sensitivity=[0.95], specificity=[], cost=[])
NAMES = ("CN", "AD")


def make_binary(true, score, **options):
    return check_predictions("binary", true, score, class_names=NAMES, **options)


def point(question, threshold, *, kind="youden", target=None, **more):
    return {"question": question, "kind": kind, "target": target, "threshold": threshold, **more}


def test_headline_rates_are_at_the_frozen_threshold_not_at_a_half():
    """All scores are below 0.5: at 0.5 the sensitivity is 0, at the frozen 0.213 it is 1."""
    true, score = [0, 0, 1, 1], [0.1, 0.22, 0.25, 0.4]
    decision = build_decision(
        make_binary(true, score), points=[point("AD", 0.213)], chosen_on="val (9 images of 9 patients)"
    )
    one = decision.apply(make_binary(true, score))
    found = measure_predictions(one, ["a", "b", "c", "d"], replicates=2)
    assert (found["sensitivity"]["value"], found["specificity"]["value"]) == (1.0, 0.5)
    assert decision.describe() == (
        "Decision: AD if its score is at least 0.213 (Youden's rule, the largest sum of sensitivity and specificity, "
        "chosen on val (9 images of 9 patients))."
    )
    assert decision.to_json()["thresholds"] == {"AD": 0.213}


@pytest.mark.parametrize("rule", ["youden", "sensitivity_0.95", "half"])
def test_headline_subgroups_points_and_confusion_agree(rule, make_task, make_patients):
    patients, settings = make_patients(60), {"settings": {"decision": rule}}
    chosen_on = Rows(check_predictions(**make_task("binary", seed=3)), patients)
    operating = choose_operating(chosen_on, rules=RULES) | settings
    one = check_predictions(**make_task("binary"))
    decision = read_decision(operating, one)
    one = decision.apply(one)
    metrics = assess(
        Rows(one, patients), operating=operating, calibration={},
        extras=Extras({"same": ["x"] * 59 + ["y"]}, least_patients=1), replicates=50,
    )  # fmt: skip
    headline = measure_predictions(one, patients, replicates=50)
    called = one.y_score[:, 0] >= decision.thresholds["ill"]
    assert headline["sensitivity"]["value"] == pytest.approx(called[one.y_true == 1].mean())
    assert np.array_equal(one.grade_predicted, called)
    if rule != "half":
        frozen = next(p for p in metrics["operating_points"] if p["kind"] == rule.split("_")[0])
        assert frozen["rates"]["specificity"]["value"] == headline["specificity"]["value"]
    part = next(group for group in metrics["subgroups"] if group["value"] == "x")["metrics"]["sensitivity"]["value"]
    assert part == pytest.approx(called[:59][one.y_true[:59] == 1].mean())


def test_each_label_has_its_own_threshold():
    labels = check_predictions("multilabel", [[1, 0], [0, 1]], [[0.3, 0.8], [0.1, 0.9]], class_names=("a", "b"))
    decision = build_decision(labels, points=[point("a", 0.2), point("b", 0.85)])
    one = decision.apply(labels)
    assert one.called.tolist() == [[True, False], [False, True]]
    found = measure_predictions(one, ["p", "q"], replicates=2)
    assert (found["recall_a"]["value"], found["specificity_b"]["value"]) == (1.0, 1.0)


def test_a_rule_that_only_calling_nobody_meets_calls_nobody_and_says_so():
    decision = build_decision(make_binary([1], [1.0]), points=[point("AD", None, reason=NEVER)])
    one = decision.apply(make_binary([1, 0], [1.0, 0.2]))
    assert not one.called.any()
    assert "AD is never called" in decision.describe()
    assert NEVER in decision.describe()
    assert decision.to_json()["thresholds"] == {"AD": None}
    assert describe_calls(one) == ["No image was called AD (2 images)."]


def test_rows_of_one_class_choose_nothing_and_a_half_is_said():
    rows = Rows(make_binary([0, 0, 0], [0.1, 0.2, 0.3]), ["a", "b", "c"])
    decision = read_decision(choose_operating(rows, rules=RULES), rows.predictions)
    assert decision.thresholds == {"AD": 0.5}
    assert "0.5 is used: no case where it was chosen" in decision.describe()


@pytest.mark.parametrize(
    ("kind", "names"),
    [("binary", ("youden", "sensitivity_0.95", "half")), ("multiclass", ("highest",)), ("ordinal", ("highest",))],
)
def test_each_kind_has_a_default_and_its_own_choices(kind, names):
    assert list_decisions(kind, RULES, grades=False) == names


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_frozen_is_a_half_or_the_rule_of_the_kind(kind, make_task):
    decision = build_decision(check_predictions(**make_task(kind)))
    expected = {"binary": "half", "multilabel": "half", "regression": "rounded"}.get(kind, "highest")
    assert (decision.rule, decision.chosen_on) == (expected, "")
    assert set(decision.thresholds.values()) <= {0.5}


def test_classes_that_none_or_all_are_called_are_named():
    score = [[0.6, 0.3, 0.1], [0.4, 0.5, 0.1]]
    one = check_predictions("multiclass", [0, 1], score, class_names=("a", "b", "c"))
    assert describe_calls(one) == ["No image was called c (2 images)."]
    assert describe_calls(make_binary([0, 1], [0.2, 0.9])) == []


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_a_constant_call_is_one_sentence_and_its_agreement_says_so(kind, make_task):
    names = make_task(kind)["class_names"]
    score = np.tile(np.eye(len(names))[0], (60, 1))
    one = check_predictions(**make_task(kind) | {"y_score": score})
    assert describe_calls(one) == [f"All 60 images were called {names[0]}."]
    found = measure_predictions(one, [str(row) for row in range(60)], replicates=50)
    for name in {"quadratic_kappa", "balanced_accuracy"} & set(found):
        assert (found[name].get("note") or found[name]["reason"]).startswith("all images were called the same")
    usual = measure_predictions(check_predictions(**make_task(kind)), [str(row) for row in range(60)], replicates=50)
    assert "all images were called the same" not in str(usual)


def test_each_label_has_its_own_sentence():
    labels = check_predictions("multilabel", [[1, 0], [0, 1]], [[0.9, 0.1], [0.8, 0.2]], class_names=("a", "b"))
    assert describe_calls(labels) == ["All 2 images were called a.", "No image was called b (2 images)."]


def test_thresholds_of_the_wrong_number_or_kind_are_refused():
    with pytest.raises(ValueError, match="thresholds has 2 values"):
        make_binary([0], [0.1], thresholds=[0.1, 0.2])
    with pytest.raises(ValueError, match="none of a multiclass"):
        check_predictions("multiclass", [0], [[0.5, 0.5]], class_names=("a", "b"), thresholds=[0.5, 0.5])
