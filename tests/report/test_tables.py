"""Numbers as text."""

from __future__ import annotations

import numpy as np
import pytest

from medcls.report.page_tables import build_class_table, build_counts, format_metrics
from medcls.statistics.number_text import format_number, format_value
from medcls.statistics.predictions import check_predictions


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.8765, "0.876"), (-0.5, "−0.500"), (12.345, "12.35"), (1234.56, "1234.6"), (None, "—"), (0.0, "0.000")],
)
def test_values_have_as_many_decimals_as_they_can_bear(value, text):
    assert format_value(value) == text


def test_a_number_has_a_bar_only_where_its_range_is_known():
    entry = {"value": 0.9, "low": 0.85, "high": 0.93}
    assert format_number("auc", entry).bar == pytest.approx((85, 8, 90))
    assert format_number("mae", entry).bar is None
    assert format_number("auc", {"value": 0.9, "low": None, "high": None, "reason": "r"}).interval == ""


def test_counts_are_of_images_and_of_patients():
    predictions = check_predictions("binary", [0, 1, 1, 0], [0.1, 0.2, 0.3, 0.4], class_names=("no", "yes"))
    counts = build_counts(predictions, ["a", "b", "b", "b"])
    assert counts == [("no", 2, 2), ("yes", 2, 1), ("All", 4, 2)]


def test_a_label_is_counted_with_without_and_unknown():
    truth = [[1, 0], [0, 0], [np.nan, 1], [np.nan, 1]]
    predictions = check_predictions("multilabel", truth, [[0.5, 0.5]] * 4, class_names=("cyst", "scar"))
    counts = build_counts(predictions, ["a", "b", "c", "c"])
    assert counts == [
        ("cyst", 1, 1), ("no cyst", 1, 1), ("cyst unknown", 2, 1), ("scar", 2, 1), ("no scar", 2, 2), ("All", 4, 3)
    ]  # fmt: skip


def test_a_metric_of_the_task_is_no_metric_of_a_class():
    predictions = check_predictions("binary", [0, 1], [0.1, 0.2], class_names=("no", "yes"))
    entry = {"value": 0.9, "low": 0.8, "high": 1.0}
    assert build_class_table(predictions, {"auc": entry, "recall": entry}) == ([], [])


def test_the_last_grade_has_no_area_above_it():
    predictions = check_predictions("regression", [0, 1], [0.1, 0.9], class_names=("a", "b"), grades=True)
    entry = {"value": 0.9, "low": 0.8, "high": 1.0}
    columns, rows = build_class_table(predictions, {"auc_above_a": entry, "recall_a": entry, "recall_b": entry})
    assert [column.title for column in columns] == ["AUC above a grade", "Recall"]
    assert rows[0][1][0].text == "0.900"
    assert rows[1][1][0] is None


def test_the_terminal_says_once_that_there_is_no_interval():
    entry = {"value": 0.1, "low": None, "high": None, "reason": "no interval: by chance 0.09"}
    told = format_metrics({"n_images": 9, "n_patients": 4, "ece": entry}, title="test")
    assert told.splitlines()[-1].split(maxsplit=1) == ["ece", "0.100  no interval: by chance 0.09"]


def test_the_terminal_says_what_a_reader_must_know_of_an_interval():
    entry = {"value": 0.1, "low": 0.05, "high": 0.2, "note": "3 patients in the smallest class"}
    told = format_metrics({"n_images": 9, "n_patients": 4, "brier": entry}, title="test")
    assert told.splitlines()[-1].split(maxsplit=1) == [
        "brier",
        "0.100  [0.050, 0.200]  (3 patients in the smallest class)",
    ]
