"""Which augmentation a store and a task get, and which one contradicts the task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medcls.data.augment import Augmentation
from medcls.data.augment_volume import VolumeAugmentation
from medcls.data.targets import Task
from medcls.errors import ConfigError
from medcls.imaging.preprocess import PreprocessSpec
from medcls.imaging.volume.spec import VolumeSpec
from medcls.train.augment_choice import AugmentChoice, choose_augmentation, list_sides

IMAGES = PreprocessSpec(height=32, width=32)
COLOUR = PreprocessSpec(height=32, width=32, channels=3)
VOLUMES = VolumeSpec(depth=16, height=16, width=16)
CT = VolumeSpec(depth=16, height=16, width=16, intensity="hounsfield", dtype="int16")

Choose = Callable[..., AugmentChoice]


@pytest.fixture
def choose(compose_job: Callable[..., Any]) -> Choose:
    """The choice for settings: choose("augment=radiograph", spec=VOLUMES, sides=["left"])."""

    def run(*settings: str, spec: Any = IMAGES, sides: tuple[str, ...] = (), **kinds: Any) -> AugmentChoice:
        config = compose_job("train", *settings).augment
        return choose_augmentation(config, spec, shape=spec.shape, sides=sides, **kinds)

    return run


def names(choice: AugmentChoice) -> list[str]:
    return list(choice.augmentation.transforms)


@pytest.mark.parametrize(
    ("spec", "kinds", "preset"),
    [
        (IMAGES, {}, "radiograph"),
        (IMAGES, {"modalities": {"DX", "CR"}}, "radiograph"),
        (IMAGES, {"modalities": {"XC"}}, "radiograph"),
        (COLOUR, {"modalities": {"XC"}}, "dermoscopy"),
        (COLOUR, {"modalities": {"XC", "DX"}}, "radiograph"),
        (COLOUR, {}, "radiograph"),
        (VOLUMES, {"modalities": {"MR"}}, "brain_mri"),
        (VOLUMES, {"modalities": {"CT"}}, "ct_volume"),
        (CT, {}, "ct_volume"),
    ],
)
def test_default_preset_follows_the_store(choose: Choose, spec: Any, kinds: dict[str, set[str]], preset: str) -> None:
    choice = choose(spec=spec, **kinds)
    assert choice.preset == preset
    assert choice.notice.startswith(f"augment=auto: {preset}")
    assert choice.to_json()["transforms"]


def test_default_does_not_mirror_images_whose_labels_are_sides(choose: Choose) -> None:
    assert "HorizontalFlip" in names(choose())
    choice = choose(sides=("left", "right"), spec=COLOUR, modalities={"XC"})
    assert names(choice) == ["Affine", "RandomBrightnessContrast"]
    assert "radiograph without HorizontalFlip (left, right name sides)" in choice.notice
    assert choice.augmentation.find_mirroring() == []


def test_default_mirrors_volumes_of_heads_alone(choose: Choose) -> None:
    assert "RandFlip" in names(choose(spec=VOLUMES, body_parts={"BRAIN"}))
    for kinds in ({}, {"body_parts": {"KNEE"}}, {"body_parts": {"BRAIN", "KNEE"}}):
        choice = choose(spec=VOLUMES, **kinds)
        assert "RandFlip" not in names(choice)
        assert "brain_mri without RandFlip (only of heads" in choice.notice
    assert "RandFlip" not in names(choose(spec=VOLUMES, body_parts={"BRAIN"}, sides=("left",)))


def test_settings_change_the_default_and_keep_the_rest(choose: Choose) -> None:
    choice = choose("augment.transforms.Affine.rotate=[-1,1]", "augment.transforms.GaussNoise={p: 0.1}")
    assert names(choice) == ["HorizontalFlip", "Affine", "RandomBrightnessContrast", "GaussNoise"]
    affine = choice.augmentation.transforms["Affine"]
    assert (affine["rotate"], affine["p"]) == ([-1, 1], 0.9)


@pytest.mark.parametrize(
    ("settings", "spec", "line"),
    [
        (["augment=radiograph"], IMAGES, r"augment.transforms.HorizontalFlip.p=0 or augment=auto"),
        (["augment=dermoscopy"], COLOUR, r"augment.transforms.D4 mirrors or turns"),
        (["augment.transforms.HorizontalFlip.p=0.5"], IMAGES, r"augment.transforms.HorizontalFlip.p=0"),
        (["augment.transforms.RandomRotate90={p: 0.2}"], IMAGES, r"augment.transforms.RandomRotate90.p=0"),
        (["augment=brain_mri"], VOLUMES, r"augment.transforms.RandFlip.prob=0"),
    ],
)
def test_requested_mirror_is_refused_if_labels_are_sides(
    choose: Choose, settings: list[str], spec: Any, line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        choose(*settings, spec=spec, sides=("left", "right"))
    assert choose(*settings, spec=spec, body_parts={"BRAIN"}).augmentation.find_mirroring()
    assert choose(*settings, "augment.sides=ignore", spec=spec, sides=("left",)).sides == []


def test_mirror_of_probability_zero_is_not_refused(choose: Choose) -> None:
    assert choose("augment=radiograph", "augment.transforms.HorizontalFlip.p=0", sides=("left",)).sides == ["left"]
    brain = ("augment=brain_mri", "augment.transforms.RandFlip.prob=0")
    assert choose(*brain, spec=VOLUMES, sides=("left",)).sides == ["left"]


@pytest.mark.parametrize(
    ("name", "arguments", "mirrors"),
    [
        ("HorizontalFlip", {"p": 0.01}, True),
        ("VerticalFlip", {}, True),
        ("Transpose", {}, True),
        ("RandomRotate90", {}, True),
        ("D4", {}, True),
        ("Affine", {"rotate": [-180, 180]}, True),
        ("Affine", {"rotate": [-8, 8], "translate_percent": [-0.1, 0.1], "shear": [-20, 20]}, False),
        ("Rotate", {"limit": [85, 95]}, True),
        ("ElasticTransform", {}, False),
        ("CoarseDropout", {}, False),
        ("InvertImg", {}, False),
        ("RandomBrightnessContrast", {}, False),
    ],
)
def test_mirrors_of_images_are_found_by_what_they_do(name: str, arguments: dict[str, Any], mirrors: bool) -> None:
    # Transposed, only a square keeps its shape.
    augmentation = Augmentation({name: arguments}, shape=(1, 32, 32))
    assert augmentation.find_mirroring() == ([name] if mirrors else [])


@pytest.mark.parametrize(
    ("name", "arguments", "mirrors"),
    [
        ("RandFlip", {"spatial_axis": 2, "prob": 0.1}, True),
        ("RandAxisFlip", {"prob": 0.5}, True),
        ("RandRotate90", {"prob": 0.5}, True),
        ("RandAffine", {"rotate_range": [3.0, 0.0, 0.0], "prob": 0.5}, True),
        ("RandAffine", {"rotate_range": [0.09, 0.09, 0.09], "translate_range": [2, 2, 2], "prob": 0.9}, False),
        ("Rand3DElastic", {"sigma_range": [4, 5], "magnitude_range": [20, 50], "prob": 0.1}, False),
        ("RandGaussianNoise", {"prob": 0.5}, False),
    ],
)
def test_mirrors_of_volumes_are_found_by_what_they_do(name: str, arguments: dict[str, Any], mirrors: bool) -> None:
    def build() -> VolumeAugmentation:
        return VolumeAugmentation({name: arguments}, shape=(1, 16, 16, 16), dtype="uint8", value_range=(0, 255))

    augmentation = build()
    assert augmentation.find_mirroring() == ([name] if mirrors else [])
    volume = np.random.default_rng(0).integers(0, 255, (1, 16, 16, 16)).astype(np.uint8)
    # Looking for mirrors changes nothing of what a key gives.
    np.testing.assert_array_equal(augmentation(volume, 7), build()(volume, 7))


def test_sides_are_found_in_classes_label_columns_and_clinical_columns() -> None:
    assert list_sides(Task("binary", ["left knee", "right knee"], ["label"])) == ["left knee", "right knee"]
    assert list_sides(Task("binary", ["0", "1"], ["label_side"])) == ["label_side"]
    assert list_sides(Task("multilabel", ["effusion_left", "mass"], ["label_effusion_left"])) == ["effusion_left"]
    assert list_sides(Task("binary", ["CN", "AD"], ["label"]), clinical=["sex", "side"]) == ["side"]
    assert list_sides(Task("binary", ["OD", "OS"], ["label"])) == ["OD", "OS"]
    assert list_sides(Task("multiclass", ["benign", "bright spot"], ["label"])) == []
