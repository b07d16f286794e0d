"""The number of patients that a study needs, from simulated studies and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from medcls.statistics.bounds import LEVEL, Base, Limits, bound_by_variance, combine_difference, correct_correlation
from medcls.statistics.definitions import DEFINITIONS
from medcls.statistics.delong import compute_delong
from medcls.statistics.predictions import Floats, Integers

MOST_PATIENTS = 100_000
LEAST_PATIENTS = 10
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a simulated study is like.

    Attributes:
        metric: "auc", "sensitivity", "specificity", "accuracy" or "quadratic_kappa".
        expected: Value of the metric in the population; of the first model where two are compared.
        prevalence: Share of patients that are cases, in (0, 1). All images of a patient have the patient's label.
        images_per_patient: Same number for every patient.
        correlation: Of the latent scores of two images of one patient, in [0, 1].
        difference: First model less the second, in the population.
        model_correlation: Of the latent scores of the two models on one image, in [0, 1].
        grades: Number of equally frequent grades, for quadratic_kappa.
    """

    metric: str
    expected: float
    prevalence: float = 0.5
    images_per_patient: int = 1
    correlation: float = 0.5
    difference: float = 0.0
    model_correlation: float = 0.5
    grades: int = 5


class Estimate(NamedTuple):
    """Values of M models in one simulated study, (M,), their covariance, (M, M), and what they rest on."""

    values: Floats
    covariance: Floats
    base: Base


@dataclass(frozen=True, slots=True)
class Size:
    """The least number of patients that reaches the aim.

    Attributes:
        patients: Number of patients.
        achieved: Mean half-width, or power, in the simulated studies of this size.
        error: Monte Carlo standard error of `achieved`.
        patients_error: The same error in patients.
        share: Share of the simulated studies that reach the aim by themselves.
        undefined: Share of the simulated studies without an interval (too few patients of a class).
    """

    patients: int
    achieved: float
    error: float
    patients_error: float
    share: float
    undefined: float


def size_for_half_width(assumed: Assumptions, *, half_width: float, replicates: int = 1000, seed: int = 0) -> Size:
    """Return the least number of patients whose mean half-width of the interval is at most `half_width`.

    Args:
        assumed: One model; `difference` is not used.
        half_width: Half the distance between the two bounds, > 0.
        replicates: Simulated studies of each size.
        seed: Decides all draws.

    Raises:
        ValueError: More than `MOST_PATIENTS` patients are needed.

    Source: intervals are those of the report (`bounds`), with variances over patients in closed form (AUC: DeLong;
    shares: of the patients' means; kappa: jackknife) instead of a bootstrap; search by bracketing and bisection: own
    choice.
    """
    latent = _find_latent(assumed, models=1)

    def simulate(patients: int) -> tuple[float, float, float, float]:
        studies = _draw_studies(assumed, latent, patients, replicates, seed)
        # A study without an interval counts as the widest.
        known = np.array([0.5 if one is None else half_width_of(one, assumed) for one in studies])
        undefined = sum(one is None for one in studies) / len(studies)
        error = float(known.std(ddof=1)) / math.sqrt(len(known))
        return float(known.mean()), error, float((known <= half_width).mean()), undefined

    patients, found = _search(simulate, reached=lambda width: width <= half_width)
    mean, error, share, undefined = found
    return Size(patients, mean, error, 2 * patients * error / mean, share, undefined)


def size_for_power(
    assumed: Assumptions, *, margin: float = 0.0, power: float = 0.8, replicates: int = 1000, seed: int = 0
) -> Size:
    """Return the least number of patients whose share of studies that succeed is at least `power`.

    A study succeeds if the lower bound of the paired difference is above -margin: with a margin the first model is
    not inferior, without one it is better.

    Args:
        assumed: Two models on the same images.
        margin: In units of the metric, >= 0.
        power: In (0, 1).
        replicates: Simulated studies of each size.
        seed: Decides all draws.

    Raises:
        ValueError: The difference plus the margin is not above 0, or more than `MOST_PATIENTS` patients are needed.

    Source: as `size_for_half_width`; differences as `paired.describe_difference` has them.
    """
    if assumed.difference + margin <= 0:
        raise ValueError(
            f"difference={assumed.difference:g} and margin={margin:g}: no number of patients shows this; their sum "
            "must be above 0"
        )
    latent = _find_latent(assumed, models=2)
    reach = _NORMAL.inv_cdf((1 + LEVEL) / 2)

    def simulate(patients: int) -> tuple[float, float, float, float]:
        studies = _draw_studies(assumed, latent, patients, replicates, seed)
        known = [one for one in studies if one is not None]
        share = sum(bound_difference(one, assumed)[0] > -margin for one in known) / len(studies)
        undefined = (len(studies) - len(known)) / len(studies)
        return share, math.sqrt(max(share * (1 - share), 1e-9) / len(studies)), share, undefined

    patients, (achieved, error, share, undefined) = _search(simulate, reached=lambda found: found >= power)
    inside = _NORMAL.inv_cdf(min(max(achieved, 0.001), 0.999))
    slope = _NORMAL.pdf(inside) * max(inside + reach, 0.1) / (2 * patients)
    return Size(patients, achieved, error, error / slope, share, undefined)


def _search(
    simulate: Callable[[int], tuple[float, float, float, float]], *, reached: Callable[[float], bool]
) -> tuple[int, tuple[float, float, float, float]]:
    """Return the least size that reaches the aim, to half a percent, and what was simulated there."""
    low = high = 100
    best = found = simulate(high)
    if reached(found[0]):
        while reached(found[0]) and low > LEAST_PATIENTS:
            high, best = low, found
            low = max(LEAST_PATIENTS, low // 2)
            found = simulate(low)
        if reached(found[0]):
            return low, found
    else:
        while not reached(found[0]):
            if high >= MOST_PATIENTS:
                raise ValueError(f"more than {MOST_PATIENTS} patients: relax the aim, or the assumptions")
            low, high = high, min(2 * high, MOST_PATIENTS)
            found = simulate(high)
        best = found
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        found = simulate(middle)
        if reached(found[0]):
            high, best = middle, found
        else:
            low = middle
    return high, best


def _find_latent(assumed: Assumptions, *, models: int) -> Floats:
    """Return (models,) what makes latent scores have the metric: shift of cases, cut of right answers, or noise."""
    expected = [assumed.expected, assumed.expected - assumed.difference][:models]
    if not all(0 < value < 1 for value in expected):
        named = " and ".join(f"{value:g}" for value in expected)
        raise ValueError(f"{assumed.metric} of {named}: expected values between 0 and 1")
    if assumed.metric == "auc":
        return np.array([math.sqrt(2) * _NORMAL.inv_cdf(value) for value in expected])
    if assumed.metric == "quadratic_kappa":
        return np.array([_find_noise(value, assumed.grades) for value in expected])
    return np.array([_NORMAL.inv_cdf(value) for value in expected])


def _find_noise(kappa: float, grades: int) -> float:
    """Standard deviation of the normal error after which rounded grades have this quadratic kappa; by bisection."""
    low, high = 1e-3, 1e3
    for _ in range(80):
        middle = math.sqrt(low * high)
        if _kappa_of(_confuse(middle, grades)) > kappa:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def _confuse(noise: float, grades: int) -> Floats:
    """Share of each true (row) and predicted grade, all true grades equally frequent; (K, K)."""
    cuts = np.arange(grades - 1) + 0.5
    below = np.array([[_NORMAL.cdf((cut - grade) / noise) for cut in cuts] for grade in range(grades)])
    whole = np.concatenate([np.zeros((grades, 1)), below, np.ones((grades, 1))], axis=1)
    return np.diff(whole, axis=1) / grades


def _kappa_of(share: Floats) -> float:
    """Quadratic kappa of a table.

    Source: Cohen 1968.
    """
    grade = np.arange(len(share))
    distance = (grade[:, None] - grade) ** 2
    apart = float((share * distance).sum())
    chance = float(share.sum(axis=1) @ distance @ share.sum(axis=0)) / float(share.sum())
    return 1 - apart / chance


def _draw_studies(
    assumed: Assumptions, latent: Floats, patients: int, replicates: int, seed: int
) -> list[Estimate | None]:
    """Return estimates of simulated studies; None if too few patients of a class came."""
    generator = np.random.default_rng([seed, patients])
    return [_draw_study(assumed, latent, patients, generator) for _ in range(replicates)]


def _draw_study(assumed: Assumptions, latent: Floats, patients: int, generator: np.random.Generator) -> Estimate | None:
    case = generator.random(patients) < assumed.prevalence
    if assumed.metric in ("sensitivity", "specificity"):
        cases = int(case.sum())
        patients = cases if assumed.metric == "sensitivity" else patients - cases
        if patients < 2:
            return None
    shared = _draw_pair(generator, (patients, 1), len(latent), assumed.model_correlation)
    own = _draw_pair(generator, (patients, assumed.images_per_patient), len(latent), assumed.model_correlation)
    score = math.sqrt(assumed.correlation) * shared + math.sqrt(1 - assumed.correlation) * own
    of_model = latent[:, None, None]
    if assumed.metric == "auc":
        return _estimate_areas(case, score + case[None, :, None] * of_model)
    if assumed.metric == "quadratic_kappa":
        grade = generator.integers(assumed.grades, size=patients)
        value = grade[None, :, None] + score * of_model
        predicted = np.clip(np.floor(value + 0.5), 0, assumed.grades - 1).astype(np.int64)
        return _estimate_kappas(grade, predicted, grades=assumed.grades)
    return _estimate_shares(score < of_model)


def _draw_pair(generator: np.random.Generator, shape: tuple[int, int], models: int, correlation: float) -> Floats:
    """Standard normal numbers of each model, (models, *shape), with this correlation between models."""
    drawn = generator.standard_normal((models, *shape))
    if models == 2:
        drawn[1] = correlation * drawn[0] + math.sqrt(1 - correlation**2) * drawn[1]
    return drawn


def _estimate_areas(case: Any, score: Floats) -> Estimate | None:
    models, patients, images = score.shape
    if min(int(case.sum()), int((~case).sum())) < 2:
        return None
    units = np.repeat(np.arange(patients), images)
    areas = compute_delong(np.repeat(case, images), score.reshape(models, -1).T, patients=units)
    sides = int(case.sum()), int((~case).sum())
    return Estimate(areas.auc, areas.covariance, _count(sides, images=images))


def _count(patients: tuple[int, ...], *, images: int) -> Base:
    """Return what a number rests on if each patient has so many images."""
    rows = tuple(number * images for number in patients)
    return Base(patients, rows, clustered=images > 1, smallest=min(patients))


def _estimate_shares(right: Any) -> Estimate:
    """Shares of right images and their covariance over patients, each with the same number of images."""
    by_patient = right.mean(axis=2)
    values = by_patient.mean(axis=1)
    apart = by_patient - values[:, None]
    number = by_patient.shape[1]
    return Estimate(values, apart @ apart.T / (number * (number - 1)), _count((number,), images=right.shape[2]))


def _estimate_kappas(grade: Integers, predicted: Integers, *, grades: int) -> Estimate | None:
    """Kappas and their covariance by the jackknife over patients, corrected for the smallest class as the report's.

    Source: Efron & Tibshirani 1993, chapter 11.
    """
    number, images = predicted.shape[1:]
    weight = (np.arange(grades)[:, None] - np.arange(grades)).astype(np.float64) ** 2
    true = np.eye(grades)[grade] * images
    rows, left_out, values = true.sum(axis=0), [], []
    for answers in predicted:
        counted = np.eye(grades)[answers].sum(axis=1)
        apart = weight[grade[:, None], answers].sum(axis=1)
        columns = counted.sum(axis=0)
        total = float(number * images)
        chance = float(rows @ weight @ columns) / total
        without = (((rows - true) @ weight) * (columns - counted)).sum(axis=1) / (total - images)
        if chance <= 0 or (without <= 0).any():
            return None
        values.append(1 - apart.sum() / chance)
        left_out.append(1 - (apart.sum() - apart) / without)
    spread = np.array(left_out) - np.mean(left_out, axis=1, keepdims=True)
    sides = tuple(int(count) for count in np.bincount(grade, minlength=grades) if count)
    if min(sides) < 2:
        return None
    corrected = ((number - 1) / number) ** 2 * min(sides) / (min(sides) - 1)
    return Estimate(np.array(values), corrected * spread @ spread.T, _count(sides, images=images))


def half_width_of(study: Estimate, assumed: Assumptions) -> float:
    """Return half the distance of the bounds of the first model's interval."""
    low, high = _bound(study, assumed, model=0)
    return (high - low) / 2


def _bound(study: Estimate, assumed: Assumptions, *, model: int) -> Limits:
    """Return the interval that the report gives a model."""
    value, variance = float(study.values[model]), float(study.covariance[model, model])
    scale = DEFINITIONS[assumed.metric].scale
    limits = bound_by_variance(scale, value, variance, study.base)
    if limits is None:
        raise ValueError(f"{assumed.metric}: one patient has no interval")  # studies have two of each side
    return limits


def bound_difference(study: Estimate, assumed: Assumptions) -> Limits:
    """Return the interval of the first model less the second, as the report gives it."""
    first, second = (float(value) for value in study.values)
    one, two = (_bound(study, assumed, model=model) for model in (0, 1))
    moving = float(np.prod(np.diag(study.covariance)))
    correlation = float(study.covariance[0, 1]) / math.sqrt(moving) if moving > 0 else 0.0
    if DEFINITIONS[assumed.metric].scale == "share":
        correlation = correct_correlation(correlation, first, second, study.base.rows[0])
    return combine_difference(first, second, one, two, correlation)
