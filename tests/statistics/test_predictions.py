"""The border: what is refused, and that the message names the rows."""

from __future__ import annotations

import numpy as np
import pytest

from medcls.statistics.predictions import check_predictions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "multi"}, "kind is 'multi'; expected one of binary"),
        ({"class_names": ("a", "a", "b", "c")}, "repeats a name"),
        ({"class_names": ("a", "b", "c")}, r"y_score has shape \(8, 4\); multiclass needs \(N, 3\)"),
        ({"class_names": ("a",)}, "class_names has 1 names; multiclass needs at least 2"),
        ({"y_true": np.zeros(7)}, r"y_true has shape \(7,\)"),
        ({"y_score": np.full((8, 4), 2.0)}, r"not a probability in \[0, 1\].*in 8 of 8 rows: 0, 1, 2, 3, 4 and 3 more"),
        ({"y_score": np.full((8, 4), 0.3)}, "do not sum to 1 in 8 of 8 rows"),
        ({"y_true": [0, 1, 2, 4, 0, 1, -1, 3]}, r"not an integer in \[0, 4\) in 2 of 8 rows: 3, 6"),
        ({"y_true": [0, 1, 2, 1.5, 0, 1, 1, 3]}, "in 1 of 8 rows: 3"),
    ],
)
def test_bad_input_is_refused(make_task, change, message):
    task = make_task("multiclass", rows=8) | change
    with pytest.raises(ValueError, match=message):
        check_predictions(task.pop("kind"), task.pop("y_true"), task.pop("y_score"), **task)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
def test_a_score_that_is_no_number_names_its_row(make_task, kind, value):
    task = make_task(kind)
    task["y_score"][17, 0] = value
    with pytest.raises(ValueError, match="y_score is NaN or infinite in 1 of 60 rows: 17"):
        check_predictions(task.pop("kind"), task.pop("y_true"), task.pop("y_score"), **task)


def test_unknown_labels_are_for_multilabel_only(make_task):
    task = make_task("regression")
    task["y_true"][3] = np.nan
    with pytest.raises(ValueError, match="y_true is NaN or infinite in 1 of 60 rows: 3"):
        check_predictions(task.pop("kind"), task.pop("y_true"), task.pop("y_score"), **task)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        check_predictions("binary", np.zeros(0), np.zeros((0, 1)), class_names=("a", "b"))


def test_a_value_is_rounded_half_up_and_clipped_to_the_grades():
    value = [-0.7, 0.49, 0.5, 1.5, 9.0]
    predictions = check_predictions("regression", [0, 0, 1, 2, 2], value, class_names=("a", "b", "c"), grades=True)
    assert predictions.grade_predicted.tolist() == [0, 0, 1, 2, 2]


def test_one_half_is_class_one_and_equal_probabilities_the_first_class():
    binary = check_predictions("binary", [0, 1], [0.5, 0.4999], class_names=("a", "b"))
    multiclass = check_predictions("multiclass", [0, 1], [[0.5, 0.5], [0.2, 0.8]], class_names=("a", "b"))
    assert binary.grade_predicted.tolist() == [1, 0]
    assert multiclass.grade_predicted.tolist() == [0, 1]
