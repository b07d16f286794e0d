"""A sample's augmentation is a function of its key alone; what cannot work is refused before the first epoch."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medcls.data.augment import Augmentation
from medcls.errors import ConfigError
from medcls.reproducibility import draw_seed

SHAPE = (1, 24, 32)


@pytest.fixture
def image() -> np.ndarray:
    """Darker on its left than on its right, grey 60 to 190 so that brightness never clips."""
    ramp = np.linspace(60, 190, SHAPE[2])[None, None] + np.zeros(SHAPE)
    return ramp.astype(np.uint8)


def keys(count: int, epoch: int = 0) -> list[int]:
    return [draw_seed(0, epoch, f"image{i}") for i in range(count)]


RADIOGRAPH = {
    "HorizontalFlip": {"p": 0.5},
    "Affine": {"translate_percent": [-0.06, 0.06], "scale": [0.92, 1.08], "rotate": [-8, 8], "p": 0.9},
    "RandomBrightnessContrast": {"brightness_limit": 0.15, "contrast_limit": 0.15, "p": 0.7},
}


def test_the_same_key_gives_the_same_image_in_any_order(image: np.ndarray) -> None:
    augmentation = Augmentation(RADIOGRAPH, shape=SHAPE)
    first = {key: augmentation(image, key).copy() for key in keys(24)}
    again = {key: Augmentation(RADIOGRAPH, shape=SHAPE)(image, key).copy() for key in keys(24)[::-1]}
    assert all((first[key] == again[key]).all() for key in first)
    sent = pickle.loads(pickle.dumps(augmentation))
    assert all((sent(image, key) == first[key]).all() for key in first)


def test_images_and_epochs_differ(image: np.ndarray) -> None:
    augmentation = Augmentation(RADIOGRAPH, shape=SHAPE)
    results = {augmentation(image, key).tobytes() for epoch in range(2) for key in keys(24, epoch)}
    assert len(results) >= 46  # a draw may do nothing at all: 0.5 * 0.1 * 0.3


def test_the_image_given_is_not_changed(image: np.ndarray) -> None:
    before = image.copy()
    image.flags.writeable = False
    for key in keys(8):
        Augmentation(RADIOGRAPH, shape=SHAPE)(image, key)
    assert (image == before).all()


def test_the_draws_of_different_transforms_are_independent(image: np.ndarray) -> None:
    """albumentations' own set_random_seed gives every transform the same stream: then a flip decides brightness."""
    transforms = {
        "HorizontalFlip": {"p": 0.5},
        "RandomBrightnessContrast": {"brightness_limit": 0.15, "contrast_limit": 0.0, "p": 1.0},
    }
    augmentation = Augmentation(transforms, shape=SHAPE)
    results = [augmentation(image, key).astype(float) for key in keys(600)]
    flipped = np.array([result[0, 0, 0] > result[0, 0, -1] for result in results])
    brightness = np.array([result.mean() for result in results])
    assert 0.42 < flipped.mean() < 0.58
    assert abs(np.corrcoef(flipped, brightness)[0, 1]) < 4 / np.sqrt(600)


def test_a_flip_has_its_chance(image: np.ndarray) -> None:
    augmentation = Augmentation({"HorizontalFlip": {"p": 0.25}}, shape=SHAPE)
    share = np.mean([(augmentation(image, key) == image[:, :, ::-1]).all() for key in keys(800)])
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 800)


def test_no_transform_gives_the_image_itself(image: np.ndarray) -> None:
    assert Augmentation({}, shape=SHAPE)(image, 1) is image


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_dtype_stay(dtype: str, channels: int) -> None:
    shape = (channels, 24, 32)
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    augmentation = Augmentation(RADIOGRAPH, shape=shape, dtype=dtype)
    for key in keys(12):
        result = augmentation(image, key)
        assert (result.shape, result.dtype) == (shape, image.dtype)


@pytest.mark.parametrize("preset", ["none", "radiograph", "dermoscopy"])
def test_every_preset_takes_the_images_it_is_for(preset: str, compose_job: Callable[..., Any]) -> None:
    transforms = compose_job("train", f"augment={preset}").augment.transforms
    shape = (3 if preset == "dermoscopy" else 1, 32, 32)
    image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    assert Augmentation(transforms, shape=shape)(image, 5).shape == shape


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"HorizontlFlip": {}}, r"HorizontlFlip: albumentations has no such transform \(nearest: HorizontalFlip\)"),
    ({"Affine": {"rotat": 5}}, r"Affine\.rotat: no argument of Affine \(nearest: rotate\)"),
    ({"Affine": None}, r"Affine=None: expected \{argument: value\}"),
    ({"HorizontalFlip": {"p": 2}}, r"HorizontalFlip=\{'p': 2\}"),
    ({"Affine": {"rotate": "much"}}, "Affine="),
    ({"Normalize": {}}, "no such transform"),
    ({"ToTensorV2": {}}, "no such transform"),
    ({"Compose": {}}, "no such transform"),
    ({"RandomCrop": {"height": 8, "width": 8}}, r"turns \(1, 24, 32\) uint8 into \(1, 8, 8\) uint8"),
    ({"Transpose": {"p": 0.01}}, "expected the same shape"),
    ({"ToFloat": {"p": 0.01}}, "expected the same shape and dtype"),
    ({"RandomCrop": {"height": 800, "width": 8}}, "RandomCrop"),
    ({"HueSaturationValue": {"p": 0.01}}, "HueSaturationValue"),
]


@pytest.mark.parametrize(("transforms", "part"), WRONG, ids=[str(t) for t, _ in WRONG])
def test_what_cannot_work_is_refused_at_once(transforms: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part) as error:
        Augmentation(transforms, shape=SHAPE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["CLAHE", "GaussNoise"])
def test_transforms_that_cannot_take_16_bits_are_refused(name: str) -> None:
    Augmentation({name: {"p": 0.01}}, shape=SHAPE)
    with pytest.raises(ConfigError, match="uint16"):
        Augmentation({name: {"p": 0.01}}, shape=SHAPE, dtype="uint16")


def test_the_dry_run_leaves_the_chances_as_they_are(image: np.ndarray) -> None:
    augmentation = Augmentation({"HorizontalFlip": {"p": 0.0}}, shape=SHAPE)
    assert all((augmentation(image, key) == image).all() for key in keys(8))
