"""Regressions of many weightings at once agree with scikit-learn's of one, and say where there is no answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge

from medcls.statistics.logistic import fit_linear, fit_logistic


def draw(rows: int = 120, columns: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    design = generator.normal(size=(columns, rows))
    offset = generator.normal(size=rows)
    chance = 1 / (1 + np.exp(-(offset + design[0] - 0.5 * design[1])))
    return design, (generator.random(rows) < chance).astype(float), offset


@pytest.mark.parametrize("seed", range(3))
def test_logistic_agrees_with_scikit_learn_for_each_weighting(seed: int) -> None:
    design, outcome, _ = draw(seed=seed)
    weights = np.random.default_rng(seed).integers(0, 3, (4, len(outcome))).astype(float)
    found = fit_logistic(design, outcome, offset=np.zeros(len(outcome)), weights=weights, penalty=np.full(3, 0.5))
    for coefficients, weight in zip(found, weights, strict=True):
        reference = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=1000)
        np.testing.assert_allclose(
            coefficients, reference.fit(design.T, outcome, sample_weight=weight).coef_[0], atol=1e-5
        )


def test_an_intercept_without_penalty_is_scikit_learns() -> None:
    design, outcome, _ = draw()
    whole = np.concatenate([np.ones((1, len(outcome))), design])
    penalty = np.array([0.0, 2.0, 2.0, 2.0])
    found = fit_logistic(
        whole, outcome, offset=np.zeros(len(outcome)), weights=np.ones((1, len(outcome))), penalty=penalty
    )
    reference = LogisticRegression(C=0.5, tol=1e-10, max_iter=1000).fit(design.T, outcome)
    np.testing.assert_allclose(found[0], [*reference.intercept_, *reference.coef_[0]], atol=1e-5)


def test_an_offset_is_held_fixed() -> None:
    design, outcome, offset = draw(rows=5000)
    found = fit_logistic(design, outcome, offset=offset, weights=np.ones((1, 5000)))
    np.testing.assert_allclose(found[0], [1.0, -0.5, 0.0], atol=0.15)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 30))
def test_the_slope_of_the_penalised_likelihood_is_zero_where_it_ends(seed: int, scale: float) -> None:
    design, outcome, offset = draw(rows=40, seed=seed)
    ridge = np.array([0.3, 0.3, 0.3])
    found = fit_logistic(design, outcome, offset=scale * offset, weights=np.ones((1, 40)), penalty=ridge)[0]
    if outcome.min() == outcome.max():
        assert np.isnan(found).all()
        return
    fitted = 1 / (1 + np.exp(-(found @ design + scale * offset)))
    np.testing.assert_allclose(design @ (outcome - fitted) - ridge * found, 0, atol=1e-6)


def test_no_maximum_is_nan_and_a_penalty_makes_one() -> None:
    design = np.array([[-2.0, -1, 1, 2]])
    outcome = np.array([0.0, 0, 1, 1])
    still = {"offset": np.zeros(4), "weights": np.array([[1.0, 1, 1, 1], [1, 1, 0, 0]])}
    assert np.isnan(fit_logistic(design, outcome, **still)).all()
    found = fit_logistic(design, outcome, penalty=np.array([0.1]), **still)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


def test_twins_are_nan_and_a_penalty_parts_them_evenly() -> None:
    design, outcome, offset = draw(columns=2)
    twins = np.stack([design[0], design[0]])
    weights = np.ones((1, len(outcome)))
    assert np.isnan(fit_logistic(twins, outcome, offset=offset, weights=weights)).all()
    assert np.isnan(fit_linear(twins, outcome, offset=offset, weights=weights)).all()
    found = fit_logistic(twins, outcome, offset=offset, weights=weights, penalty=np.full(2, 1e-2))
    assert found[0, 0] == pytest.approx(found[0, 1], rel=1e-4)


def test_linear_agrees_with_scikit_learn_and_takes_its_offset_off() -> None:
    design, _, offset = draw()
    value = design[0] * 3 + offset + 0.1 * design[2] ** 2
    weights = np.random.default_rng(1).integers(0, 3, (3, len(value))).astype(float)
    found = fit_linear(design, value, offset=offset, weights=weights, penalty=np.full(3, 0.7))
    for coefficients, weight in zip(found, weights, strict=True):
        reference = Ridge(alpha=0.7, fit_intercept=False).fit(design.T, value - offset, sample_weight=weight)
        np.testing.assert_allclose(coefficients, reference.coef_, atol=1e-8)
