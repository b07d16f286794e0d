from __future__ import annotations

import numpy as np
import pytest

from medcls.evaluate.robustness import PERTURBATIONS, perturb


@pytest.fixture(params=[np.uint8, np.uint16])
def image(request):
    """A smooth picture of two channels."""
    y, x = np.mgrid[:48, :40]
    channel = 0.5 + 0.3 * np.sin(x / 5) * np.cos(y / 7)
    top = np.iinfo(request.param).max
    return np.round(np.stack([channel, channel**2]) * top).astype(request.param)


def range_of(image):
    """All values that the type has."""
    return 0.0, float(np.iinfo(image.dtype).max)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_stronger_is_farther_from_the_image(image, name):
    top = range_of(image)[1]
    distances = []
    for strength in PERTURBATIONS[name][1]:
        changed = perturb(image, name, strength=strength, seed=3, value_range=range_of(image))
        assert (changed.shape, changed.dtype) == (image.shape, image.dtype)
        distances.append(np.abs(changed.astype(float) - image).mean() / top)
    assert len(distances) == 5
    assert distances[0] > 0
    assert distances == sorted(distances)
    assert distances[4] > 2 * distances[0]


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_seed_decides(image, name):
    strength = PERTURBATIONS[name][1][2]
    same = [perturb(image, name, strength=strength, seed=8, value_range=range_of(image)) for _ in range(2)]
    np.testing.assert_array_equal(*same)


def test_both_signs_are_drawn_and_nothing_leaves_the_range():
    image = np.full((1, 16, 16), 100, np.uint8)
    byte = range_of(image)
    shifted = {int(perturb(image, "window", strength=0.2, seed=seed, value_range=byte)[0, 0, 0]) for seed in range(20)}
    assert shifted == {49, 151}
    assert perturb(image + 150, "window", strength=0.2, seed=2, value_range=byte).max() <= 255
    noisy = perturb(image, "noise", strength=0.1, seed=0, value_range=byte).astype(float)
    assert noisy.std() == pytest.approx(25.5, rel=0.15)


def test_a_quarter_turn_is_a_rotation_about_the_middle():
    image = np.zeros((1, 21, 21), np.uint8)
    image[0, 10, 16] = 200
    turned = perturb(image, "rotation", strength=90.0, seed=0, value_range=range_of(image))[0]
    assert {(4, 10), (16, 10)} & set(map(tuple, np.argwhere(turned == 200)))


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_volume_is_its_slices_changed_alike(image, name):
    strength = PERTURBATIONS[name][1][2]
    volume = np.stack([image, image[:, ::-1], image // 2], axis=1)
    settings = {"strength": strength, "value_range": range_of(image)}
    changed = perturb(volume, name, seed=4, **settings)
    assert (changed.shape, changed.dtype) == (volume.shape, volume.dtype)
    if name != "noise":
        apart = [perturb(volume[:, depth], name, seed=4, **settings) for depth in range(3)]
        np.testing.assert_array_equal(changed, np.stack(apart, axis=1))


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_hounsfield_units_and_shares_are_changed_as_their_range_says(image, name):
    byte = image if image.dtype == np.uint8 else (image // 257).astype(np.uint8)
    strength = PERTURBATIONS[name][1][4]
    expected = perturb(byte, name, strength=strength, seed=1, value_range=(0.0, 255.0)).astype(float)
    for dtype, low, high in ((np.int16, -1024.0, 3071.0), (np.float16, 0.0, 1.0)):
        values = (byte / 255 * (high - low) + low).astype(dtype)
        changed = perturb(values, name, strength=strength, seed=1, value_range=(low, high))
        assert changed.dtype == dtype
        assert low <= changed.min() <= changed.max() <= high
        shares = (changed.astype(float) - low) / (high - low) * 255
        # JPEG rounds eight bits of slightly other values.
        np.testing.assert_allclose(shares, expected, atol=16 if name == "jpeg" else 1.5)


def test_unknown_names_are_listed(image):
    with pytest.raises(ValueError, match="expected one of noise, blur"):
        perturb(image, "fog", strength=1.0, seed=0, value_range=range_of(image))
