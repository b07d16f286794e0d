"""DeLong's covariance against its definition over all pairs, published data, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from medcls.statistics.bounds import bound_area
from medcls.statistics.delong import compare_areas, compute_delong

# DeLong, DeLong & Clarke-Pearson 1988 as printed in the documentation of SAS PROC LOGISTIC ("Comparing Receiver
# Operating Characteristic Curves"): albumin, total protein, K-G score, surgery helps.
OVARIAN = np.fromstring(
    """3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1
    3.8 5.7 5 1 3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0
    2.3 4.4 6 1 4.2 7.6 4 0 4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1
    3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1 4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0
    3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1 2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1
    3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1""",
    sep=" ",
).reshape(-1, 4)


def covariance_by_definition(positive, scores, patients):
    """Obuchowski 1997 with a loop over all pairs; DeLong where each patient has one row."""
    cases, others = scores[positive], scores[~positive]
    wins = (cases[:, None] > others[None]) + 0.5 * (cases[:, None] == others[None])
    auc, m, n = wins.mean(axis=(0, 1)), len(cases), len(others)
    of_cases, of_others = wins.mean(axis=1), wins.mean(axis=0)
    units = np.unique(patients)
    excess_cases = [(of_cases[patients[positive] == u] - auc).sum(axis=0) for u in units]
    excess_others = [(of_others[patients[~positive] == u] - auc).sum(axis=0) for u in units]
    with_cases, with_others = (len(np.unique(patients[rows])) for rows in (positive, ~positive))
    s10 = with_cases / ((with_cases - 1) * m) * sum(np.outer(e, e) for e in excess_cases)
    s01 = with_others / ((with_others - 1) * n) * sum(np.outer(e, e) for e in excess_others)
    pairs = zip(excess_cases, excess_others, strict=True)
    s11 = len(units) / (len(units) - 1) * sum(np.outer(a, b) + np.outer(b, a) for a, b in pairs)
    return auc, s10 / m + s01 / n + s11 / (m * n)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), each=st.integers(1, 3))
def test_covariance_is_that_of_the_definition(seed, each):
    generator = np.random.default_rng(seed)
    positive = np.concatenate([np.ones(6, bool), np.zeros(6, bool), generator.random(18) < 0.4])
    scores = generator.integers(0, 6, size=(30, 3)) + positive[:, None]
    patients = np.arange(30) // each
    areas = compute_delong(positive, scores, patients=patients)
    auc, covariance = covariance_by_definition(positive, scores, patients)
    np.testing.assert_allclose(areas.auc, auc)
    np.testing.assert_allclose(areas.covariance, covariance, atol=1e-14)
    np.testing.assert_allclose(areas.auc, [roc_auc_score(positive, column) for column in scores.T])


def test_one_row_a_patient_is_delong_and_equals_numpy_covariances_of_the_placements():
    positive, scores = OVARIAN[:, 3] == 1, OVARIAN[:, :3] * [1, 1, -1]
    wins = (scores[positive][:, None] > scores[~positive]) + 0.5 * (scores[positive][:, None] == scores[~positive])
    expected = np.cov(wins.mean(axis=1).T) / positive.sum() + np.cov(wins.mean(axis=0).T) / (~positive).sum()
    np.testing.assert_allclose(compute_delong(positive, scores).covariance, expected)


def test_two_times_the_same_rows_of_a_patient_add_no_information():
    positive, scores = OVARIAN[:, 3] == 1, OVARIAN[:, :2]
    twice = compute_delong(
        np.repeat(positive, 2), np.repeat(scores, 2, axis=0), patients=np.repeat(np.arange(len(scores)), 2)
    )
    once = compute_delong(positive, scores)
    np.testing.assert_allclose(twice.covariance, once.covariance)
    naive = compute_delong(np.repeat(positive, 2), np.repeat(scores, 2, axis=0))
    assert (np.diag(naive.covariance) < 0.6 * np.diag(once.covariance)).all()


def test_paired_test_follows_from_the_covariance_and_changes_sign_with_the_order():
    positive, albumin, score = OVARIAN[:, 3], OVARIAN[:, 0], -OVARIAN[:, 2]
    there, back = compare_areas(positive, albumin, score), compare_areas(positive, score, albumin)
    assert (there.difference, there.z) == (-back.difference, -back.z)
    assert (there.low, there.p_value) == pytest.approx((-back.high, back.p_value))
    covariance = compute_delong(positive, np.stack([albumin, score], axis=1)).covariance
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert there.z == pytest.approx(there.difference / error)
    assert there.high - there.low == pytest.approx(2 * 1.959964 * error, rel=0.05)


def test_scores_that_rank_alike_do_not_differ():
    found = compare_areas(OVARIAN[:, 3], OVARIAN[:, 0], np.exp(OVARIAN[:, 0]))
    assert (found.difference, found.z, found.p_value) == (0.0, 0.0, 1.0)


def test_two_perfect_opposites_have_no_test():
    found = compare_areas([0, 0, 1, 1], [1.0, 2, 3, 4], [4.0, 3, 2, 1])
    assert found.difference == 1.0
    assert np.isnan(found.z)
    assert np.isnan(found.p_value)


def test_one_patient_of_a_class_is_refused():
    with pytest.raises(ValueError, match="fewer than two independent positive rows"):
        compute_delong([1, 1, 0, 0], [3.0, 4, 1, 2], patients=np.array([0, 0, 1, 2]))


def test_interval_of_an_area_of_one_has_a_width_and_stays_within_bounds():
    """Newcombe 2006, method 5, with an area of 1: the smallest A with 1 - A <= z * standard error."""
    low, high = bound_area(1.0, 0.0, (10, 30))
    shape = 1 + 19 * ((1 - low) / (2 - low) + low / (1 + low))
    assert high == 1.0
    assert 1 - low == pytest.approx(1.959964 * np.sqrt(low * (1 - low) * shape / 300), rel=0.01)
    low, high = bound_area(0.98, 0.01**2, (100, 100))
    assert 0.94 < low < 0.96
    assert 0.99 < high < 1.0


def test_the_test_rejects_a_true_null_hypothesis_in_about_5_percent():
    """Two equally good readers of two images a patient, correlated within the patient."""
    generator, rejected, trials = np.random.default_rng(0), 0, 600
    patients = np.repeat(np.arange(100), 2)
    for _ in range(trials):
        positive = np.repeat(generator.random(100) < 0.4, 2)
        shared = np.repeat(generator.normal(size=(100, 2)), 2, axis=0)
        scores = positive[:, None] + shared + 0.5 * generator.normal(size=(200, 2))
        rejected += compare_areas(positive, scores[:, 0], scores[:, 1], patients=patients).p_value < 0.05
    assert 0.03 <= rejected / trials <= 0.07
