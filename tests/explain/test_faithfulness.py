from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from medcls.explain.faithfulness import (
    compute_chance,
    compute_curves,
    compute_iou,
    count_curve_images,
    point_game,
    roll_map,
)
from medcls.explain.perturbation import build_background

Score = Callable[[Tensor], Tensor]


def test_pointing_game(region: NDArray[np.bool_]) -> None:
    heat = np.zeros(region.shape, np.float32)
    heat[10, 30] = 1
    assert point_game(heat, region) == 1
    heat[0, 0] = 2
    assert point_game(heat, region) == 0
    heat[10, 30] = 2
    assert point_game(heat, region) == 0.5  # two largest values, one of them inside
    assert point_game(np.ones_like(heat), region) is None


def test_iou_takes_as_many_pixels_as_the_region_has(region: NDArray[np.bool_]) -> None:
    assert compute_iou(region.astype(np.float32), region) == 1
    assert compute_iou((~region).astype(np.float32), region) == 0
    shifted = np.roll(region, 5, axis=0).astype(np.float32)
    assert compute_iou(shifted, region) == pytest.approx((5 * 12) / (15 * 12))
    # Half of it marked, the rest of the map negative: unmarked pixels are never taken to fill the number.
    half = np.where(region & (np.arange(48)[:, None] < 13), 1.0, -1.0).astype(np.float32)
    assert compute_iou(half, region) == pytest.approx(0.5)
    assert compute_iou(-region.astype(np.float32), region) is None


def test_curves_of_a_true_map_beat_those_of_a_wrong_one(
    score: Score, image: NDArray[np.uint8], region: NDArray[np.bool_]
) -> None:
    background = build_background(image, kind="black")
    heats = [region.astype(np.float32), -region.astype(np.float32)]
    true, wrong = compute_curves(score, image, heats, background=background, steps=10)
    (alone,) = compute_curves(score, image, heats[:1], background=background, steps=10, batch_size=7)
    np.testing.assert_allclose(alone.deletion, true.deletion)
    assert true.areas[0] < 0.2 * wrong.areas[0]
    assert true.areas[1] > 3 * wrong.areas[1]
    # They begin and end with the whole and the hidden image.
    assert true.deletion[0] == pytest.approx(true.insertion[-1])
    assert true.deletion[-1] == pytest.approx(true.insertion[0])
    assert true.deletion[0] > true.deletion[-1]
    assert true.shares.tolist() == pytest.approx(np.linspace(0, 1, 11).tolist())


def test_equal_values_are_not_hidden_from_top_to_bottom() -> None:
    image = np.ones((1, 20, 20), np.uint8)
    (curves,) = compute_curves(
        lambda x: x[:, 0, :10].sum(dim=(1, 2)),
        image,
        [np.zeros((20, 20), np.float32)],
        background=np.zeros((1, 20, 20), np.float32),
        steps=2,
    )
    assert curves.deletion[1] == pytest.approx(100, abs=30)  # half of the upper half, not all of it


def test_rolled_map_is_elsewhere_and_has_the_same_values(region: NDArray[np.bool_]) -> None:
    heat = np.random.default_rng(0).normal(size=region.shape).astype(np.float32)
    rolled = roll_map(heat, seed=(0, "a"))
    np.testing.assert_array_equal(np.sort(rolled.ravel()), np.sort(heat.ravel()))
    np.testing.assert_array_equal(rolled, roll_map(heat, seed=(0, "a")))
    assert (rolled != roll_map(heat, seed=(1, "a"))).any()
    for seed in range(20):
        assert compute_iou(roll_map(region.astype(np.float32), seed=(seed,)), region) == 0


def test_images_that_the_curves_score_are_as_many_as_said() -> None:
    seen = 0

    def score(images: Tensor) -> Tensor:
        nonlocal seen
        seen += len(images)
        return images.sum(dim=(1, 2, 3))

    image, heats = np.ones((1, 8, 8), np.uint8), [np.eye(8, dtype=np.float32)] * 3
    compute_curves(score, image, heats, background=np.zeros((1, 8, 8), np.float32))
    assert seen == count_curve_images(3) == 56


def test_maps_of_noise_beat_chance_in_no_more_than_a_twentieth() -> None:
    generator = np.random.default_rng(0)
    alarms = [compute_chance(generator.normal(size=12), [str(n) for n in range(12)]) for _ in range(400)]
    assert np.mean([p is not None and p < 0.05 for p in alarms]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_chance_counts_every_flip_of_patients() -> None:
    gains = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert compute_chance(gains, list("abcdef")) == pytest.approx(2 / 2**6)
    assert compute_chance([*gains, 1.0], list("abcdeff")) == pytest.approx(2 / 2**6)
    assert compute_chance([*gains, -1.0], list("abcdefa")) == pytest.approx(4 / 2**6)
    assert compute_chance(gains, list("abcdea")) is None  # five patients
    many = compute_chance([1.0] * 30, [str(n) for n in range(30)])
    assert many == pytest.approx(1 / 20_001)
