from __future__ import annotations

import numpy as np
import pytest

from medcls.evaluation.perturbations import PERTURBATIONS, perturb


@pytest.fixture(params=[np.uint8, np.uint16])
def image(request):
    """A smooth picture of two channels."""
    y, x = np.mgrid[:48, :40]
    channel = 0.5 + 0.3 * np.sin(x / 5) * np.cos(y / 7)
    top = np.iinfo(request.param).max
    return np.round(np.stack([channel, channel**2]) * top).astype(request.param)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_stronger_is_farther_from_the_image(image, name):
    top = np.iinfo(image.dtype).max
    distances = []
    for strength in PERTURBATIONS[name][1]:
        changed = perturb(image, name, strength=strength, seed=3)
        assert (changed.shape, changed.dtype) == (image.shape, image.dtype)
        distances.append(np.abs(changed.astype(float) - image).mean() / top)
    assert len(distances) == 5
    assert distances[0] > 0
    assert distances == sorted(distances)
    assert distances[4] > 2 * distances[0]


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_seed_decides(image, name):
    strength = PERTURBATIONS[name][1][2]
    same = [perturb(image, name, strength=strength, seed=8) for _ in range(2)]
    np.testing.assert_array_equal(*same)


def test_both_signs_are_drawn_and_nothing_leaves_the_range():
    image = np.full((1, 16, 16), 100, np.uint8)
    shifted = {int(perturb(image, "window", strength=0.2, seed=seed)[0, 0, 0]) for seed in range(20)}
    assert shifted == {49, 151}
    assert perturb(np.full((1, 16, 16), 250, np.uint8), "window", strength=0.2, seed=2).max() <= 255
    noisy = perturb(image, "noise", strength=0.1, seed=0).astype(float)
    assert noisy.std() == pytest.approx(25.5, rel=0.15)


def test_a_quarter_turn_is_a_rotation_about_the_middle():
    image = np.zeros((1, 21, 21), np.uint8)
    image[0, 10, 16] = 200
    turned = perturb(image, "rotation", strength=90.0, seed=0)[0]
    assert {(4, 10), (16, 10)} & set(map(tuple, np.argwhere(turned == 200)))


def test_unknown_names_are_listed(image):
    with pytest.raises(ValueError, match="expected one of noise, blur"):
        perturb(image, "fog", strength=1.0, seed=0)
