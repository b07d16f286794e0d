"""A volume's augmentation is a function of its key alone; what cannot work is refused before the first epoch."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from medcls.config import conf_folder
from medcls.data.augment import Augmentation, build_augmentation
from medcls.data.augment_volume import VolumeAugmentation
from medcls.errors import ConfigError
from medcls.reproducibility import draw_seed

SHAPE = (1, 14, 16, 18)
RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "float16": (0.0, 1.0), "int16": (-1024.0, 3071.0)}
# Quick ones of every kind: places, values, noise.
MIXED = {
    "RandFlip": {"spatial_axis": 2, "prob": 0.5},
    "RandAffine": {"rotate_range": [0.1, 0.1, 0.1], "translate_range": [1, 1, 1], "padding_mode": "zeros", "prob": 0.9},
    "RandAdjustContrast": {"gamma": [0.8, 1.25], "prob": 0.5},
    "RandGaussianNoise": {"std": 0.03, "prob": 0.5},
}


def build(transforms: dict[str, Any], dtype: str = "uint8") -> VolumeAugmentation:
    return VolumeAugmentation(transforms, shape=SHAPE, dtype=dtype, value_range=RANGES[dtype])


def draw_volume(dtype: str = "uint8") -> np.ndarray:
    low, high = RANGES[dtype]
    volume = np.random.default_rng(0).random(SHAPE) * (high - low) * 0.5 + low
    volume[..., :9] += (high - low) * 0.3
    return volume.astype(dtype)


def keys(count: int, epoch: int = 0) -> list[int]:
    return [draw_seed(0, epoch, f"image{i}") for i in range(count)]


def test_the_same_key_gives_the_same_volume_in_any_order_and_process() -> None:
    augmentation, volume = build(MIXED), draw_volume()
    first = {key: augmentation(volume, key) for key in keys(12)}
    again = {key: build(MIXED)(volume, key) for key in keys(12)[::-1]}
    assert all((first[key] == again[key]).all() for key in first)
    sent = pickle.loads(pickle.dumps(augmentation))
    assert all((sent(volume, key) == first[key]).all() for key in first)
    assert len({volume.tobytes() for volume in first.values()}) == 12
    assert not {v.tobytes() for v in first.values()} & {augmentation(volume, key).tobytes() for key in keys(12, 1)}


@pytest.mark.parametrize("dtype", RANGES)
def test_dtype_and_range_are_kept_and_what_is_not_changed_comes_back_exactly(dtype: str) -> None:
    volume = draw_volume(dtype)
    volume.flags.writeable = False
    never = {name: arguments | {"prob": 0.0} for name, arguments in MIXED.items()}
    np.testing.assert_array_equal(build(never, dtype)(volume, 1), volume)
    for key in keys(4):
        out = build(MIXED, dtype)(volume, key)
        assert (out.shape, out.dtype) == (volume.shape, volume.dtype)
        assert RANGES[dtype][0] <= out.min() < out.max() <= RANGES[dtype][1]
    # The same places and values, whatever they are stored as.
    shift = {"RandShiftIntensity": {"offsets": [0.1, 0.1], "prob": 1.0}}
    moved = (build(shift, dtype)(volume, 0).astype(float) - volume.astype(float)) / (
        RANGES[dtype][1] - RANGES[dtype][0]
    )
    np.testing.assert_allclose(moved, 0.1, atol=3e-3)


def test_a_flip_along_the_last_axis_exchanges_left_and_right() -> None:
    volume = draw_volume()
    flip = build({"RandFlip": {"spatial_axis": 2, "prob": 0.5}})
    results = [flip(volume, key) for key in keys(40)]
    kinds = [(out == volume).all() + 2 * (out == volume[..., ::-1]).all() for out in results]
    assert set(kinds) == {1, 2}
    assert 8 < kinds.count(2) < 32


def test_the_draws_of_different_transforms_are_independent() -> None:
    """One stream shared in order: whether a volume is flipped must not say whether it is made brighter."""
    pair = {"RandFlip": {"spatial_axis": 2, "prob": 0.5}, "RandShiftIntensity": {"offsets": [0.1, 0.1], "prob": 0.5}}
    augmentation, volume = build(pair), draw_volume()
    flipped, brighter = [], []
    for key in keys(80):
        out = augmentation(volume, key).astype(int)
        flipped.append(out[..., :9].mean() < out[..., 9:].mean())
        brighter.append(out.mean() > volume.mean() + 10)
    assert 20 < sum(flipped) < 60
    assert 20 < sum(brighter) < 60
    assert abs(np.corrcoef(flipped, brighter)[0, 1]) < 0.3


@pytest.mark.parametrize(
    ("transforms", "part"),
    [
        ({"RandFlp": {}}, "no such random transform of volumes (nearest: RandFlip)"),
        ({"HorizontalFlip": {"p": 0.5}}, "ready-made: augment=auto, brain_mri, ct_volume, none"),
        ({"RandFlipd": {"keys": ["image"]}}, "no such random transform"),
        ({"RandAffine": {"rotate_rnge": [0.1]}}, "rotate_rnge: no argument of RandAffine (nearest: rotate_range)"),
        ({"RandAffine": 0.5}, "expected {argument: value}"),
        ({"RandAffine": {"spatial_size": [8, 8, 8]}}, "turns (1, 14, 16, 18) into (1, 8, 8, 8)"),
        ({"RandAdjustContrast": {"gamma": [1.0, 2.0, 3.0]}}, "RandAdjustContrast"),
        ({"RandFlip": {"spatial_axis": 7, "prob": 0.01}}, "cannot take volumes (1, 14, 16, 18) uint8"),
        ({"RandLambda": {}}, "no such random transform"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(transforms: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(transforms)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_generator_of_its_own_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import monai.transforms

    state = np.random.default_rng(0)
    monkeypatch.setattr(monai.transforms.RandFlip, "__call__", lambda self, image: image + state.random())
    with pytest.raises(ConfigError, match="uses its own random generator"):
        build({"RandFlip": {}})


def test_no_transform_returns_the_volume_itself() -> None:
    volume = draw_volume()
    assert build({})(volume, 3) is volume


def test_shape_decides_the_library() -> None:
    assert isinstance(build_augmentation({}, shape=(1, 8, 8), dtype="uint8", value_range=(0.0, 255.0)), Augmentation)
    assert isinstance(build_augmentation({}, shape=SHAPE, dtype="uint8", value_range=(0.0, 255.0)), VolumeAugmentation)


@pytest.mark.parametrize("path", [conf_folder() / f"augment/{name}.yaml" for name in ("brain_mri", "ct_volume")])
def test_the_ready_made_ones_work_and_say_what_they_do_to_sides(path: Path) -> None:
    transforms = yaml.safe_load(path.read_text())["transforms"]
    augmentation = build(transforms)
    assert (augmentation(draw_volume(), 5) != draw_volume()).any()
    flips = [name for name in transforms if "Flip" in name]
    assert flips == (["RandFlip"] if path.stem == "brain_mri" else [])
