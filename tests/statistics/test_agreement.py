"""Class counts and what follows from them, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from medcls.statistics.agreement import (
    compute_accuracy,
    compute_confusion,
    compute_grade_errors,
    compute_mcc,
    compute_quadratic_kappa,
    compute_rates,
)

CLASSES = 4


@st.composite
def class_pairs(draw):
    """True and predicted classes in which every class occurs on both sides, with weights >= 1."""
    size = draw(st.integers(CLASSES, 40))
    column = lambda low, high: np.array(draw(st.lists(st.integers(low, high), min_size=size, max_size=size)))
    true, predicted = column(0, CLASSES - 1), column(0, CLASSES - 1)
    true[:CLASSES] = range(CLASSES)
    predicted[:CLASSES] = draw(st.permutations(range(CLASSES)))
    return true, predicted, column(1, 3)


@settings(deadline=None, max_examples=50)
@given(class_pairs())
def test_all_agree_with_scikit_learn_on_repeated_rows(pairs):
    true, predicted, weights = pairs
    confusion = compute_confusion(true, predicted, num_classes=CLASSES, weights=weights[None].astype(float))
    true, predicted = np.repeat(true, weights), np.repeat(predicted, weights)
    np.testing.assert_array_equal(confusion[0], reference.confusion_matrix(true, predicted))
    rates = compute_rates(confusion)
    np.testing.assert_allclose(rates["recall"][0], reference.recall_score(true, predicted, average=None))
    np.testing.assert_allclose(rates["ppv"][0], reference.precision_score(true, predicted, average=None))
    np.testing.assert_allclose(rates["f1"][0], reference.f1_score(true, predicted, average=None))
    for k in range(CLASSES):
        rest = reference.recall_score(true != k, predicted != k)
        assert rates["specificity"][0, k] == pytest.approx(rest)
        assert rates["npv"][0, k] == pytest.approx(reference.precision_score(true != k, predicted != k))
    assert compute_accuracy(confusion)[0] == pytest.approx(reference.accuracy_score(true, predicted))
    assert compute_mcc(confusion)[0] == pytest.approx(reference.matthews_corrcoef(true, predicted))
    kappa = reference.cohen_kappa_score(true, predicted, weights="quadratic")
    assert compute_quadratic_kappa(confusion)[0] == pytest.approx(kappa)
    absolute, squared = compute_grade_errors(confusion)
    assert absolute[0] == pytest.approx(reference.mean_absolute_error(true, predicted))
    assert squared[0] == pytest.approx(reference.mean_squared_error(true, predicted))


def test_an_absent_class_has_no_rates_but_the_others_have():
    confusion = np.array([[3.0, 1, 0], [0, 2, 1], [0, 0, 0]])
    rates = compute_rates(confusion)
    assert [name for name in rates if not np.isnan(rates[name][2])] == ["specificity"]
    assert rates["specificity"][2] == pytest.approx(6 / 7)
    np.testing.assert_allclose(rates["recall"][:2], [3 / 4, 2 / 3])


def test_a_class_that_is_never_predicted_has_recall_zero_and_no_ppv():
    rates = compute_rates(np.array([[3.0, 0], [2, 0]]))
    assert rates["recall"][1] == 0
    assert rates["f1"][1] == 0
    assert np.isnan(rates["ppv"][1])


def test_a_class_that_all_rows_have_keeps_recall_and_f1_only():
    rates = compute_rates(np.array([[3.0, 2], [0, 0]]))
    assert [name for name in rates if not np.isnan(rates[name][0])] == ["recall", "f1"]


def test_mcc_and_kappa_of_one_and_the_same_class_are_undefined():
    confusion = np.array([[5.0, 0], [0, 0]])
    assert np.isnan(compute_mcc(confusion))
    assert np.isnan(compute_quadratic_kappa(confusion))


def test_two_class_kappa_matches_the_hand_computed_value():
    # 20 and 15 agree, 5 and 10 do not: observed 0.7, expected 0.5.
    assert compute_quadratic_kappa(np.array([[20.0, 5], [10, 15]])) == pytest.approx(0.4)
