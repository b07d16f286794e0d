from __future__ import annotations

import numpy as np
import pytest

from medcls.statistics.aggregation import RULES, aggregate, choose_aggregation
from medcls.statistics.predictions import KINDS, check_predictions

TWO = ("well", "ill")


def test_binary_by_hand():
    predictions = check_predictions("binary", [0, 1, 0, 0], [0.2, 0.6, 0.5, 0.1], class_names=TWO)
    units = np.array([1, 1, 0, 0])
    expected = {"mean": [0.3, 0.4], "max": [0.5, 0.6], "noisy_or": [1 - 0.5 * 0.9, 1 - 0.8 * 0.4]}
    for rule, score in expected.items():
        merged = aggregate(predictions, units, rule=rule)
        np.testing.assert_allclose(merged.predictions.y_score[:, 0], score)
        assert merged.predictions.y_true.tolist() == [0, 1]
        assert merged.first.tolist() == [2, 0]
        assert merged.left_out == 0


def test_grades_are_joined_through_the_chance_of_more_than_each():
    score = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    predictions = check_predictions("ordinal", [0, 1], score, class_names=("0", "1", "2"))
    above = np.array([[0.5, 0.2], [0.9, 0.1]])
    for rule, joined in {
        "mean": above.mean(axis=0),
        "max": above.max(axis=0),
        "noisy_or": 1 - (1 - above).prod(axis=0),
    }.items():
        merged = aggregate(predictions, np.zeros(2, dtype=int), rule=rule).predictions
        np.testing.assert_allclose(merged.y_score[0], [1 - joined[0], joined[0] - joined[1], joined[1]])
        assert merged.y_true.tolist() == [1]


def test_a_patient_with_images_of_several_unordered_classes_is_left_out():
    score = np.full((4, 3), 1 / 3)
    predictions = check_predictions("multiclass", [0, 2, 1, 1], score, class_names=("a", "b", "c"))
    merged = aggregate(predictions, np.array([0, 0, 1, 1]), rule="max")
    assert (merged.left_out, merged.predictions.y_true.tolist(), merged.first.tolist()) == (1, [1], [2])
    with pytest.raises(ValueError, match="no label of the unit"):
        aggregate(predictions, np.zeros(4, dtype=int), rule="mean")


def test_labels_of_a_patient_are_known_where_one_image_settles_them():
    true = np.array([[1, 0, 0], [np.nan, np.nan, 0]])
    predictions = check_predictions("multilabel", true, np.full((2, 3), 0.5), class_names=("a", "b", "c"))
    merged = aggregate(predictions, np.zeros(2, dtype=int), rule="mean").predictions
    np.testing.assert_array_equal(merged.y_true, [[1, np.nan, 0]])


def test_values_are_averaged():
    predictions = check_predictions("regression", [1.0, 3.0], [2.0, 6.0], class_names=())
    merged = aggregate(predictions, np.zeros(2, dtype=int), rule="mean").predictions
    assert (merged.y_true.tolist(), merged.y_score.tolist()) == ([2.0], [[4.0]])
    with pytest.raises(ValueError, match="noisy_or needs probabilities"):
        aggregate(predictions, np.zeros(2, dtype=int), rule="noisy_or")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_image_a_unit_changes_nothing(kind, rule, make_task):
    if (kind, rule) == ("regression", "noisy_or"):
        pytest.skip("not defined")
    predictions = check_predictions(**make_task(kind))
    merged = aggregate(predictions, np.arange(60), rule=rule).predictions
    np.testing.assert_allclose(merged.y_score, predictions.y_score, atol=1e-12)
    np.testing.assert_array_equal(merged.y_true, predictions.y_true)


def test_the_rule_that_ranks_patients_best_is_chosen():
    """Of ill patients one image of three shows it: the highest score finds them, the mean drowns them."""
    true = np.tile([0, 0, 0, 1, 0, 0], 10)
    generator = np.random.default_rng(0)
    score = np.where(true == 1, 0.75, 0.7 * generator.random(60))
    predictions = check_predictions("binary", true, score, class_names=TWO)
    chosen = choose_aggregation(predictions, np.arange(60) // 3)
    assert (chosen["rule"], chosen["metric"], chosen["values"]["max"]) == ("max", "auc", 1.0)
    assert chosen["values"]["mean"] < 1.0


def test_equals_take_the_first_and_an_undefined_metric_says_so():
    predictions = check_predictions("binary", [0, 1], [0.1, 0.9], class_names=TWO)
    assert choose_aggregation(predictions, np.arange(2))["rule"] == "mean"
    chosen = choose_aggregation(check_predictions("binary", [0, 0], [0.1, 0.9], class_names=TWO), np.arange(2))
    assert (chosen["rule"], chosen["values"]["max"]) == ("mean", None)
    assert "undefined" in chosen["reason"]


def test_a_smaller_error_is_better():
    predictions = check_predictions("regression", [2.0, 2.0, 5.0, 5.0], [1.0, 2.0, 4.0, 5.0], class_names=())
    assert choose_aggregation(predictions, np.array([0, 0, 1, 1]))["rule"] == "max"
