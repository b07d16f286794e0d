from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import lars_path

from medcls.explanation.lasso import select_features


def draw(seed: int, *, features: int, correlated: bool) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(60, features))
    if correlated:
        X += 1.5 * generator.normal(size=(60, 1)) + 0.7 * X[:, ::-1]
    y = X @ generator.normal(size=features) + generator.normal(size=60)
    return X - X.mean(axis=0), y - y.mean()


@pytest.mark.parametrize("correlated", [False, True])
@given(seed=st.integers(0, 10_000), count=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_features_are_those_of_scikit_learns_lasso_path(seed: int, count: int, correlated: bool) -> None:
    X, y = draw(seed, features=12, correlated=correlated)
    _, _, path = lars_path(X, y, method="lasso")
    sizes = (path != 0).sum(axis=0)
    # The path up to the first point that has more: with drops it may come back below K later.
    beyond = np.flatnonzero(sizes > count)
    last = (beyond[0] if len(beyond) else path.shape[1]) - 1
    expected = np.flatnonzero(path[:, last])
    found = select_features(X, y, count)
    assert found.tolist() == expected.tolist()


def test_path_with_a_drop_is_followed() -> None:
    """Some seed of the correlated draws has a feature that leaves again, or the drops are not tested."""
    paths = [lars_path(*draw(seed, features=12, correlated=True), method="lasso")[2] for seed in range(20)]
    assert any((np.diff((path != 0).sum(axis=0)) < 0).any() for path in paths)


def test_irrelevant_features_stay_out() -> None:
    X = np.random.default_rng(0).normal(size=(200, 8))
    X -= X.mean(axis=0)
    assert select_features(X, 3 * X[:, 2] - 2 * X[:, 5], 2).tolist() == [2, 5]
    assert select_features(X, 3 * X[:, 2] - 2 * X[:, 5], 8).tolist() == [2, 5]


def test_constant_answer_selects_nothing() -> None:
    assert select_features(np.eye(5), np.zeros(5), 3).tolist() == []
