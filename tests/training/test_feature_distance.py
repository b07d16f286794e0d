"""The distance from training images: what it is, where its threshold lies, and that its file is whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medcls.errors import DataError
from medcls.training.feature_distance import (
    FeatureDistance,
    fit_distance,
    read_distance,
    tap_features,
    write_distance,
)


def draw(size: int, *, seed: int, shift: float = 0.0) -> np.ndarray:
    """Return features (N, 30) that vary along five directions, around a mean far from zero."""
    rng = np.random.default_rng(seed)
    along = np.random.default_rng(0).normal(size=(5, 30))
    features = 10 + rng.normal(size=(size, 5)) @ along + 0.1 * rng.normal(size=(size, 30))
    features[:, 0] += shift
    return np.asarray(features)


def fit(train: int = 400, val: int = 199) -> FeatureDistance:
    distance = fit_distance(draw(train, seed=1), draw(val, seed=2), model_sha256="a")
    assert distance is not None
    return distance


def test_a_hundredth_of_new_images_of_the_same_kind_lies_beyond_the_threshold() -> None:
    distance = fit()
    # The 198th of 199 distances of validation: two of 200 like them lie beyond it.
    assert distance.false_alarms == pytest.approx(0.01)
    beyond = [float((distance.measure(draw(2000, seed=seed)) > 1).mean()) for seed in range(3, 8)]
    assert 0.002 < np.mean(beyond) < 0.03


def test_images_off_the_directions_of_training_are_far() -> None:
    assert (fit().measure(draw(100, seed=9, shift=5.0)) > 1).all()


def test_distance_is_mahalanobis_where_the_components_hold_everything() -> None:
    rng = np.random.default_rng(0)
    train, val = (rng.normal(loc=[5, 0, 0, 0], size=(size, 4)) for size in (300, 50))
    distance = fit_distance(train, val, model_sha256="")
    assert distance is not None
    rows = train / np.linalg.norm(train, axis=1, keepdims=True)
    centred = val / np.linalg.norm(val, axis=1, keepdims=True) - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    kept = len(distance.components)
    along = (centred @ vectors[:, ::-1][:, :kept]) ** 2 / values[::-1][:kept]
    rest = ((centred @ vectors[:, ::-1][:, kept:]) ** 2).sum(axis=1) / values[::-1][kept:].mean()
    expected = np.sqrt(along.sum(axis=1) + rest)
    np.testing.assert_allclose(distance.measure(val) * distance.threshold, expected, rtol=1e-6)


def test_of_few_validation_images_the_farthest_is_the_threshold_and_the_false_alarms_are_said() -> None:
    distance = fit(val=19)
    assert distance.measure(draw(19, seed=2)).max() == pytest.approx(1)
    assert distance.false_alarms == pytest.approx(0.05)


@pytest.mark.parametrize(("train", "val"), [(9, 50), (50, 9)])
def test_too_few_images_have_no_distance(train: int, val: int) -> None:
    assert fit_distance(draw(train, seed=1), draw(val, seed=2), model_sha256="") is None


def test_features_that_never_change_have_no_distance() -> None:
    assert fit_distance(np.ones((20, 3)), np.ones((20, 3)), model_sha256="") is None


def test_file_gives_the_same_distance_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    distance, path = fit(), tmp_path / "d.safetensors"
    write_distance(path, distance)
    again = read_distance(path)
    np.testing.assert_array_equal(again.measure(draw(5, seed=4)), distance.measure(draw(5, seed=4)))
    assert (again.false_alarms, again.model_sha256) == (distance.false_alarms, "a")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a file of feature distances, or damaged"):
        read_distance(path)


def test_features_are_collected_batch_by_batch_and_only_inside_the_block() -> None:
    backbone = nn.Linear(3, 2)
    with tap_features(backbone) as found, torch.inference_mode():
        expected = [backbone(torch.ones(2, 3)), backbone(torch.zeros(1, 3))]
    backbone(torch.ones(2, 3))
    assert torch.equal(torch.cat(found), torch.cat(expected))
