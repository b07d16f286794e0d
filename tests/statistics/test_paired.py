from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from medcls.statistics.bounds import combine_difference, compute_wilson, correct_correlation
from medcls.statistics.delong import compare_areas
from medcls.statistics.metrics import compute_metrics
from medcls.statistics.paired import adjust_holm, compare_predictions, compute_mcnemar, describe_difference, draw_pair
from medcls.statistics.predictions import KINDS, check_predictions


def right(only_first, only_second, both=5):
    """Whether each of two models has each row right."""
    one = [True] * only_first + [False] * only_second + [True] * both
    return one, [False] * only_first + [True] * only_second + [True] * both


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 12), (10, 10), (40, 21), (700, 800)])
def test_mcnemar_is_the_binomial_test(b, c):
    one, two = right(b, c)
    found = compute_mcnemar(one, two, patients=np.arange(len(one)))
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert found[:2] == (b, c)
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert found.method == "exact"


def test_mcnemar_stays_exact_if_one_patient_has_two_images():
    one, two = right(4, 0, both=4)
    patients = np.append(np.arange(7), 6)  # the last patient has two rows that both models have right
    found = compute_mcnemar(one, two, patients=patients)
    assert found.p_value == pytest.approx(0.125)
    assert found.method == "exact, by sign flips of patients"
    one, two = right(30, 12)
    assert compute_mcnemar(one, two, patients=np.append(np.arange(46), 45)).p_value == pytest.approx(
        binomtest(12, 42).pvalue
    )


def test_mcnemar_over_patients_counts_every_flip_of_signs():
    generator = np.random.default_rng(0)
    one, two = generator.random((2, 30)) < 0.6
    patients = np.sort(generator.integers(10, size=30))
    net = np.bincount(patients, weights=one.astype(float) - two)
    sums = [abs(np.dot(signs, net)) for signs in itertools.product((-1, 1), repeat=len(net))]
    expected = np.mean(np.array(sums) >= abs(net.sum()))
    assert compute_mcnemar(one, two, patients=patients).p_value == pytest.approx(expected)


def test_mcnemar_over_patients_keeps_its_level():
    """At 5 %, no more than 5 % of 2,000 null data sets: 6 patients with two images each."""
    generator = np.random.default_rng(1)
    patients = np.arange(12) // 2
    hard = generator.random((2000, 6))[:, patients]
    found = [
        compute_mcnemar(generator.random(12) < row, generator.random(12) < row, patients=patients).p_value
        for row in hard
    ]
    assert np.mean(np.array(found) <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_copies_of_a_patient_bring_no_certainty():
    one, two = (np.repeat(values, 8) for values in right(9, 3, both=0))
    alone = compute_mcnemar(one, two, patients=np.arange(96)).p_value
    joined = compute_mcnemar(one, two, patients=np.arange(96) // 8).p_value
    assert joined == pytest.approx(binomtest(3, 12).pvalue)
    assert alone < 0.001 < joined


def test_holm_is_that_of_r():
    """p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_gap = adjust_holm([0.01, float("nan"), 0.04])
    assert with_gap[0] == pytest.approx(0.02)
    assert np.isnan(with_gap[1])
    assert adjust_holm([0.6, 0.7]) == [1.0, 1.0]
    assert adjust_holm([]) == []


def pair(make_task, kind, *, noise=0.4):
    """The task's predictions and worse ones of the same rows."""
    task = make_task(kind)
    first = check_predictions(**task)
    generator = np.random.default_rng(4)
    if kind == "regression":
        return first, replace(first, y_score=first.y_score + generator.normal(0, 1.0, first.y_score.shape))
    other = generator.random(first.y_score.shape)
    if kind in ("multiclass", "ordinal"):
        other /= other.sum(axis=1, keepdims=True)
    return first, replace(first, y_score=(1 - noise) * first.y_score + noise * other)


@pytest.mark.parametrize("kind", KINDS)
def test_differences_are_those_of_the_metrics_and_turn_round(kind, make_task):
    first, second = pair(make_task, kind)
    patients = np.arange(60) // 2
    there = compare_predictions(first, second, patients, replicates=200)
    back = compare_predictions(second, first, patients, replicates=200)
    json.dumps(there, allow_nan=False)
    plain = [compute_metrics(one) for one in (first, second)]
    for name, entry in there["metrics"].items():
        assert entry["difference"] == pytest.approx(plain[0][name] - plain[1][name])
        assert entry["difference"] == pytest.approx(-back["metrics"][name]["difference"])
        if name == "ece":
            assert entry["low"] is entry["p_value"] is None
            continue
        assert entry["low"] == pytest.approx(-back["metrics"][name]["high"])
        assert entry["p_value"] == pytest.approx(back["metrics"][name]["p_value"])
        assert entry["p_value"] <= entry["p_holm"] + 1e-12
        assert (entry["p_value"] < 0.05) == (entry["low"] > 0 or entry["high"] < 0)
    assert ("mcnemar" in there) == (kind != "multilabel")


def wilson(share, rows):
    """Wilson 1927, without the limits of a Poisson number that `compute_wilson` adds near 0 and 1."""
    z2 = 1.959963984540054**2
    return np.sort(np.roots([1 + z2 / rows, -(2 * share + z2 / rows), share**2]).real)


def limit(cells, *, interval=compute_wilson):
    """Newcombe's interval of the difference of paired shares from the fourfold table (both, first, second, neither)."""
    both, one, two, neither = cells
    rows, first, second = sum(cells), both + one, both + two
    shares = first / rows, second / rows
    spread = np.sqrt(first * (rows - first) * second * (rows - second))
    phi = (both * neither - one * two) / spread if spread else 0.0
    corrected = correct_correlation(phi, *shares, rows)
    return combine_difference(*shares, *(interval(share, rows) for share in shares), corrected)


@pytest.mark.parametrize(("cells", "low", "high"), [((1, 1, 7, 12), -0.507, -0.026), ((36, 12, 2, 0), 0.0569, 0.3404)])
def test_difference_of_paired_shares_is_that_of_published_tables(cells, low, high):
    """Fagerland, Lydersen & Laake 2014 (airway data; without the correction -0.502, -0.036); Newcombe 1998."""
    assert limit(cells, interval=wilson) == pytest.approx((low, high), abs=5e-4)


def shares_task(cells):
    """Two models whose right answers have this fourfold table; all rows are of one class, one row of the other."""
    both, one, two, neither = cells
    right = np.array([(1, 1)] * both + [(1, 0)] * one + [(0, 1)] * two + [(0, 0)] * neither + [(0, 0)])
    true = np.append(np.ones(sum(cells), dtype=int), 0)
    models = [
        check_predictions("binary", true, 0.1 + 0.8 * column, class_names=("no", "yes"), thresholds=(0.5,))
        for column in right.T.astype(float)
    ]
    return models, np.arange(len(true))


def test_difference_of_sensitivities_has_newcombes_interval():
    models, patients = shares_task((20, 5, 1, 24))
    entry = compare_predictions(*models, patients, replicates=4000)["metrics"]["sensitivity"]
    assert (entry["low"], entry["high"]) == pytest.approx(limit((20, 5, 1, 24)), abs=0.004)
    assert entry["low"] < -0.015  # -0.012 without the correction for continuity


def test_difference_of_means_is_the_mean_of_the_differences(make_task):
    """A label on which both models agree leaves half of the other's difference, and half of its interval."""
    task = make_task("multilabel", rows=120)
    true = np.nan_to_num(task["y_true"][:, :2])
    first = check_predictions("multilabel", true, task["y_score"][:, :2], class_names=("a", "b"))
    other = task["y_score"][:, :2].copy()
    other[:, 0] = np.random.default_rng(0).permutation(other[:, 0])
    second = replace(first, y_score=other)
    drawn = draw_pair(first, second, np.arange(120), replicates=400, seed=0)
    mean, part = (describe_difference(name, *drawn) for name in ("auc", "auc_a"))
    assert mean["difference"] == pytest.approx(part["difference"] / 2)
    assert mean["high"] - mean["low"] == pytest.approx((part["high"] - part["low"]) / 2, rel=0.25)


def test_differences_of_few_cases_have_a_note():
    generator = np.random.default_rng(0)
    true = (np.arange(80) < 3).astype(int)
    scores = np.clip(0.3 * true + generator.random((2, 80)) * 0.6, 0.01, 0.99)
    models = [check_predictions("binary", true, score, class_names=("no", "yes")) for score in scores]
    compared = compare_predictions(*models, np.arange(80), replicates=200)["metrics"]
    assert compared["brier"]["note"].startswith("3 patients in the smallest class, fewer than 4: such intervals")
    assert "note" not in compared["auc"]


def test_questions_are_compared_by_delong(make_task):
    first, second = pair(make_task, "binary")
    patients = np.arange(60) // 2
    entry = compare_predictions(first, second, patients, replicates=100)["auc"]["ill"]
    expected = compare_areas(first.y_true, first.y_score[:, 0], second.y_score[:, 0], patients=patients)
    assert (entry["difference"], entry["p_value"]) == (expected.difference, expected.p_value)


def test_a_run_against_itself_is_no_difference(make_task):
    first = check_predictions(**make_task("binary"))
    found = compare_predictions(first, first, np.arange(60), replicates=100)
    assert all(entry["difference"] == 0 and entry["p_value"] == 1 for entry in found["metrics"].values())
    assert found["auc"]["ill"]["p_value"] == 1
    assert found["mcnemar"]["p_value"] == 1


def test_other_rows_or_tasks_are_refused(make_task):
    first = check_predictions(**make_task("binary"))
    flipped = replace(first, y_true=1 - first.y_true)
    with pytest.raises(ValueError, match="not of the same task, rows and labels"):
        compare_predictions(first, flipped, np.arange(60))
    with pytest.raises(ValueError, match="not of the same task, rows and labels"):
        compare_predictions(first, check_predictions(**make_task("multiclass")), np.arange(60))


def test_an_absent_class_is_null_with_a_reason(make_task):
    first, second = (replace(p, y_true=0 * p.y_true) for p in pair(make_task, "binary"))
    found = compare_predictions(first, second, np.arange(60), replicates=100)
    assert found["metrics"]["auc"]["difference"] is None
    assert found["metrics"]["auc"]["p_holm"] is None
    assert "fewer than two independent positive rows" in found["auc"]["ill"]["reason"]


def count_false_alarms(times, *, rows=60, seed=0):
    """Share of comparisons of two equally good models that come out below 0.05, by bootstrap of the AUC."""
    generator = np.random.default_rng(seed)
    alarms = 0
    for _ in range(times):
        true = np.tile([0, 1], rows // 2)
        scores = 1 / (1 + np.exp(-(true[:, None] + generator.normal(size=(rows, 2)))))
        both = [check_predictions("binary", true, scores[:, k], class_names=("well", "ill")) for k in (0, 1)]
        found = compare_predictions(*both, np.arange(rows), replicates=300, seed=int(generator.integers(1 << 30)))
        alarms += found["metrics"]["auc"]["p_value"] < 0.05
    return alarms / times


@pytest.mark.slow
def test_equally_good_models_differ_in_one_of_twenty():
    assert 0.03 <= count_false_alarms(600) <= 0.075
