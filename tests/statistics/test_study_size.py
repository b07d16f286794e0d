"""The simulated numbers of patients against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import multivariate_normal, norm

from medcls.statistics.bounds import bound_area, compute_wilson
from medcls.statistics.intervals import measure_predictions
from medcls.statistics.paired import compare_predictions
from medcls.statistics.predictions import check_predictions
from medcls.statistics.study_size import (
    Assumptions,
    _confuse,
    _estimate_areas,
    _estimate_kappas,
    _estimate_shares,
    _find_noise,
    _kappa_of,
    bound_difference,
    half_width_of,
    size_for_half_width,
    size_for_power,
)


def both_below(first: float, second: float, correlation: float) -> float:
    return float(multivariate_normal([0, 0], [[1, correlation], [correlation, 1]]).cdf([first, second]))


def area_variance(auc: float, *, cases: float, others: float) -> float:
    """Hanley & McNeil 1982, equation 1, with the exact Q1 = Q2 of two normal distributions of one width."""
    z = norm.ppf(auc)
    q = both_below(z, z, 0.5)
    return (auc * (1 - auc) + (cases + others - 2) * (q - auc**2)) / (cases * others)


def solve(width: object, target: float) -> float:
    return float(brentq(lambda number: width(number) - target, 15, 1e6))  # type: ignore[operator]


@pytest.mark.parametrize(("auc", "prevalence", "half_width"), [(0.85, 0.3, 0.05), (0.7, 0.5, 0.06), (0.8, 0.1, 0.1)])
def test_patients_for_an_auc_follow_hanley_and_mcneil(auc: float, prevalence: float, half_width: float) -> None:
    found = size_for_half_width(Assumptions("auc", auc, prevalence=prevalence), half_width=half_width, replicates=400)

    def width(number: float) -> float:
        cases, others = prevalence * number, (1 - prevalence) * number
        variance = area_variance(auc, cases=cases, others=others)
        low, high = bound_area(auc, variance, (round(cases), round(others)))
        return (high - low) / 2

    assert found.patients == pytest.approx(solve(width, half_width), rel=0.05)
    assert found.achieved <= half_width
    # Their own approximation, by exponential distributions, is near.
    q1, q2, cases = auc / (2 - auc), 2 * auc**2 / (1 + auc), prevalence * found.patients
    others = found.patients - cases
    spread = auc * (1 - auc) + (cases - 1) * (q1 - auc**2) + (others - 1) * (q2 - auc**2)
    assert 1.96 * math.sqrt(spread / (cases * others)) == pytest.approx(half_width, rel=0.2)


def test_patients_for_a_sensitivity_follow_wilson() -> None:
    found = size_for_half_width(Assumptions("sensitivity", 0.9, prevalence=0.25), half_width=0.05, replicates=400)
    cases = solve(lambda number: np.ptp(compute_wilson(0.9, number)) / 2, 0.05)
    assert found.patients == pytest.approx(cases / 0.25, rel=0.03)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("metric", ["auc", "sensitivity", "accuracy", "quadratic_kappa"])
def test_planned_half_width_is_what_evaluate_gives(metric: str, images: int) -> None:
    """On the very rows of one simulated study, but for the noise of 2,000 bootstrap samples."""
    generator, patients = np.random.default_rng(3), 90
    ids = np.repeat(np.arange(patients), images).astype(str).tolist()
    latent = generator.normal(size=(1, patients, 1)) + generator.normal(size=(1, patients, images))
    assumed = Assumptions(metric, 0.8)
    if metric == "quadratic_kappa":
        grade = generator.integers(3, size=patients)
        predicted = np.clip(np.round(grade[None, :, None] + 0.5 * latent), 0, 2).astype(int)
        study = _estimate_kappas(grade, predicted, grades=3)
        score = np.eye(3)[predicted.ravel()]
        one = check_predictions("multiclass", np.repeat(grade, images), score, class_names=("a", "b", "c"), grades=True)
    else:
        case = np.arange(patients) < (30 if metric == "auc" else patients - 2)
        score = 1 / (1 + np.exp(-(latent + 1.5 * case[None, :, None] * (metric == "auc") + 1.0 * (metric != "auc"))))
        true = np.repeat(case, images).astype(int)
        one = check_predictions("binary", true, score.ravel(), class_names=("no", "yes"))
        right = (score >= 0.5) == case[None, :, None]
        study = (
            _estimate_areas(case, score)
            if metric == "auc"
            else _estimate_shares(right[:, case] if metric == "sensitivity" else right)
        )
    assert study is not None
    given = measure_predictions(one, ids, replicates=2000)[metric]
    assert study.values[0] == pytest.approx(given["value"])
    assert half_width_of(study, assumed) == pytest.approx((given["high"] - given["low"]) / 2, rel=0.04)


@pytest.mark.parametrize("metric", ["auc", "sensitivity"])
def test_planned_difference_is_what_evaluate_gives(metric: str) -> None:
    generator, patients = np.random.default_rng(4), 120
    case = np.arange(patients) < (50 if metric == "auc" else patients - 2)
    shared = generator.normal(size=(1, patients, 1))
    latent = 0.8 * shared + 0.6 * generator.normal(size=(2, patients, 1))
    latent += np.array([1.6, 1.2])[:, None, None] * (case[None, :, None] if metric == "auc" else 1)
    score = 1 / (1 + np.exp(-latent))
    models = [check_predictions("binary", case.astype(int), one.ravel(), class_names=("no", "yes")) for one in score]
    found = compare_predictions(*models, np.arange(patients), replicates=2000)["metrics"][metric]
    study = _estimate_areas(case, score) if metric == "auc" else _estimate_shares(score[:, case] >= 0.5)
    assert study is not None
    low, high = bound_difference(study, Assumptions(metric, 0.8))
    width = found["high"] - found["low"]
    assert (low, high) == pytest.approx((found["low"], found["high"]), abs=0.05 * width)


def test_specificity_counts_the_others_and_accuracy_everyone() -> None:
    drawn = {"half_width": 0.05, "replicates": 300}
    others = size_for_half_width(Assumptions("specificity", 0.9, prevalence=0.25), **drawn)  # type: ignore[arg-type]
    everyone = size_for_half_width(Assumptions("accuracy", 0.9, prevalence=0.25), **drawn)  # type: ignore[arg-type]
    assert others.patients == pytest.approx(everyone.patients / 0.75, rel=0.03)


def test_images_of_one_patient_count_by_their_design_effect() -> None:
    single = Assumptions("accuracy", 0.8, images_per_patient=1)
    several = Assumptions("accuracy", 0.8, images_per_patient=4, correlation=0.6)
    one = size_for_half_width(single, half_width=0.04, replicates=300).patients
    four = size_for_half_width(several, half_width=0.04, replicates=300).patients
    z = norm.ppf(0.8)
    within = (both_below(z, z, 0.6) - 0.64) / 0.16  # correlation of right and wrong between two images
    assert four == pytest.approx(one * (1 + 3 * within) / 4, rel=0.04)
    perfect = Assumptions("accuracy", 0.8, images_per_patient=4, correlation=1.0)
    assert size_for_half_width(perfect, half_width=0.04, replicates=300).patients == pytest.approx(one, rel=0.03)


@pytest.mark.parametrize(("difference", "margin"), [(0.06, 0.0), (0.0, 0.06), (0.02, 0.05)])
def test_power_of_two_paired_aucs_follows_obuchowski(difference: float, margin: float) -> None:
    auc, r, prevalence = 0.85, 0.5, 0.4
    assumed = Assumptions("auc", auc, prevalence=prevalence, difference=difference, model_correlation=r)
    found = size_for_power(assumed, margin=margin, power=0.8, replicates=400)
    a, b = norm.ppf(auc), norm.ppf(auc - difference)

    def variance(number: float) -> float:
        cases, others = prevalence * number, (1 - prevalence) * number
        product = auc * (auc - difference)
        shared = both_below(a, b, r) - product + (cases + others - 2) * (both_below(a, b, r / 2) - product)
        alone = [area_variance(value, cases=cases, others=others) for value in (auc, auc - difference)]
        return sum(alone) - 2 * shared / (cases * others)

    needed = solve(lambda number: -(difference + margin) / math.sqrt(variance(number)), -(1.96 + norm.ppf(0.8)))
    assert found.patients == pytest.approx(needed, rel=0.1)
    assert abs(found.patients - needed) < 4 * found.patients_error + 0.03 * needed


def test_noise_of_grades_gives_the_expected_kappa() -> None:
    table = _confuse(_find_noise(0.7, 5), 5)
    assert _kappa_of(table) == pytest.approx(0.7, abs=1e-9)
    assert table.sum() == pytest.approx(1)
    # Cohen's own definition on a table of two grades.
    assert _kappa_of(table[:2, :2]) == pytest.approx(
        1
        - (table[0, 1] + table[1, 0])
        * table[:2, :2].sum()
        / (table[0, :2].sum() * table[:2, 1].sum() + table[1, :2].sum() * table[:2, 0].sum())
    )


def test_kappa_half_width_shrinks_with_the_root_of_the_patients() -> None:
    assumed = Assumptions("quadratic_kappa", 0.7)
    wide = size_for_half_width(assumed, half_width=0.04, replicates=200).patients
    narrow = size_for_half_width(assumed, half_width=0.02, replicates=200).patients
    assert narrow == pytest.approx(4 * wide, rel=0.06)


def test_the_same_seed_gives_the_same_number() -> None:
    assumed = Assumptions("sensitivity", 0.9)
    first, second = (size_for_half_width(assumed, half_width=0.1, replicates=200, seed=3) for _ in range(2))
    assert first == second
    assert first.error < 0.002


@pytest.mark.parametrize(
    ("assumed", "margin", "part"),
    [
        (Assumptions("auc", 0.8, difference=-0.05), 0.03, "their sum must be above 0"),
        (Assumptions("auc", 0.8), 0.0, "their sum must be above 0"),
        (Assumptions("auc", 0.8, difference=0.9), 0.0, "expected values between 0 and 1"),
    ],
)
def test_impossible_aims_are_refused(assumed: Assumptions, margin: float, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        size_for_power(assumed, margin=margin, replicates=200)


def test_a_number_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medcls.statistics.study_size.MOST_PATIENTS", 1500)
    with pytest.raises(ValueError, match="more than 1500 patients"):
        size_for_half_width(Assumptions("accuracy", 0.8), half_width=0.005, replicates=200)


def test_answers_that_are_all_right_still_have_an_interval() -> None:
    found = size_for_half_width(Assumptions("accuracy", 0.9999), half_width=0.02, replicates=200)
    # Wilson's interval of n of n is z^2 / (n + z^2) wide: its half is 0.02 at n = 92.
    assert found.patients == pytest.approx(92, abs=3)
    assert found.undefined == 0
