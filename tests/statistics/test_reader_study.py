"""Readers beside the model: rates, the model at the reader's specificity, exact tests, no names."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from medcls.report.reader_panel import build_reader_table
from medcls.statistics.predictions import check_predictions
from medcls.statistics.reader_study import Readings, compare_readers

ROWS = 60


@pytest.fixture
def study() -> tuple[np.ndarray, np.ndarray]:
    """Truth, and a score that knows much."""
    generator = np.random.default_rng(0)
    true = np.arange(ROWS) % 3 == 0
    return true, 1 / (1 + np.exp(-(3 * true - 1.5 + generator.normal(0, 1.2, ROWS))))


def binary(true, score, **more):
    return check_predictions("binary", true.astype(int), score, class_names=("no", "yes"), **more)


def test_rates_of_a_reader_and_of_the_model_at_the_same_specificity(study) -> None:
    true, score = study
    called = true.copy()
    called[np.flatnonzero(true)[:5]] = False  # misses 5 of 20 cases
    called[np.flatnonzero(~true)[:4]] = True  # and calls 4 of 40 others
    found = compare_readers(binary(true, score), np.arange(ROWS), [Readings("reader 1", np.arange(ROWS), called)])
    (entry,) = found["entries"]
    assert entry["sensitivity"]["value"] == pytest.approx(15 / 20)
    assert entry["specificity"]["value"] == pytest.approx(36 / 40)
    # The highest 4 others may be called, no more.
    limit = np.sort(score[~true])[-5]
    expected = (score[true] > limit).mean()
    assert entry["model_sensitivity"]["value"] == pytest.approx(expected)
    assert entry["difference"]["difference"] == pytest.approx(expected - 15 / 20)
    assert entry["difference"]["low"] <= entry["difference"]["difference"] <= entry["difference"]["high"]


def test_the_tests_at_the_decision_are_exact(study) -> None:
    true, score = study
    called = true.copy()
    called[np.flatnonzero(true)[:6]] = False
    one = binary(true, score, thresholds=(0.5,))
    (entry,) = compare_readers(one, np.arange(ROWS), [Readings("r", np.arange(ROWS), called)])["entries"]
    model = score >= 0.5
    only_model, only_reader = (model & ~called & true).sum(), (called & ~model & true).sum()
    expected = binomtest(int(only_model), int(only_model + only_reader)).pvalue
    assert entry["at_decision"]["cases"]["p_value"] == pytest.approx(expected)
    assert entry["at_decision"]["cases"]["only_first"] == only_model
    assert entry["at_decision"]["others"]["only_second"] == (model & ~true).sum()
    assert entry["model_at_decision"]["sensitivity"] == pytest.approx(model[true].mean())


def test_a_reader_is_judged_on_the_images_they_read(study) -> None:
    true, score = study
    rows = np.arange(10, 40)
    (entry,) = compare_readers(binary(true, score), np.arange(ROWS) // 2, [Readings("r", rows, true[rows])])["entries"]
    assert (entry["n_images"], entry["n_patients"]) == (30, 15)
    assert entry["sensitivity"]["value"] == entry["specificity"]["value"] == 1


def test_grades_of_suspicion_give_a_point_at_each_cut_and_an_area(study) -> None:
    true, score = study
    answers = 1 + 2 * true + (np.arange(ROWS) % 2)
    found = compare_readers(binary(true, score), np.arange(ROWS), [Readings("r", np.arange(ROWS), answers, True)])
    assert [entry["cut"] for entry in found["entries"]] == [2, 3, 4]
    assert found["entries"][1]["sensitivity"]["value"] == 1
    assert found["entries"][1]["specificity"]["value"] == 1
    assert found["entries"][0]["area"]["difference"] < 0  # the grades rank perfectly


def test_holm_counts_the_readers_and_the_table_shows_no_names(study) -> None:
    true, score = study
    generator = np.random.default_rng(1)
    readers = [Readings(f"reader {k}", np.arange(ROWS), true ^ (generator.random(ROWS) < 0.3)) for k in (1, 2, 3)]
    found = compare_readers(binary(true, score), np.arange(ROWS), readers)
    tests = [entry["at_decision"]["others"] for entry in found["entries"]]
    assert min(one["p_holm"] for one in tests) == pytest.approx(min(1, 3 * min(one["p_value"] for one in tests)))
    (table,) = build_reader_table({"readers": found})
    assert [name for name, _ in table.rows] == ["reader 1", "reader 2", "reader 3"]
    assert build_reader_table({}) == []


def test_classes_are_read_one_against_the_rest() -> None:
    true = np.arange(30) % 3
    score = 0.4 * np.eye(3)[true] + 0.2
    said = np.where(np.arange(30) < 3, 1, true)
    one = check_predictions("ordinal", true, score, class_names=("a", "b", "c"))
    entries = compare_readers(one, np.arange(30), [Readings("r", np.arange(30), said)])["entries"]
    assert [entry["question"] for entry in entries] == ["a", "b", "c"]
    assert entries[1]["sensitivity"]["value"] == 1
    assert entries[1]["specificity"]["value"] == pytest.approx(18 / 20)
    assert entries[0]["sensitivity"]["value"] == pytest.approx(9 / 10)


def test_difference_to_a_reader_has_the_interval_of_paired_shares_and_its_note(study) -> None:
    """Three cases: the number of patients behind a missing interval, or the note, is named beside the difference."""
    _, score = study
    true = np.arange(ROWS) < 6
    called = true.copy()
    called[5] = False
    found = compare_readers(
        binary(true, score), np.arange(ROWS) // 6, [Readings("reader 1", np.arange(ROWS), called)], replicates=200
    )
    (entry,) = found["entries"]
    said = "1 patient of class yes: there is nothing to resample"
    assert entry["sensitivity"]["reason"] == entry["difference"]["reason"] == said
    (table,) = build_reader_table({"readers": found})
    assert table.rows[0][1][4].reason == said
