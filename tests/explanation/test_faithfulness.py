from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from medcls.explanation.faithfulness import compute_curves, compute_iou, point_game, roll_map
from medcls.explanation.perturbation import build_background

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
    true = compute_curves(score, image, region.astype(np.float32), background=background, steps=10)
    wrong = compute_curves(score, image, -region.astype(np.float32), background=background, steps=10)
    assert true.areas[0] < 0.2 * wrong.areas[0]
    assert true.areas[1] > 3 * wrong.areas[1]
    # They begin and end with the whole and the hidden image.
    assert true.deletion[0] == pytest.approx(true.insertion[-1])
    assert true.deletion[-1] == pytest.approx(true.insertion[0])
    assert true.deletion[0] > true.deletion[-1]
    assert true.shares.tolist() == pytest.approx(np.linspace(0, 1, 11).tolist())


def test_equal_values_are_not_hidden_from_top_to_bottom() -> None:
    image = np.ones((1, 20, 20), np.uint8)
    curves = compute_curves(
        lambda x: x[:, 0, :10].sum(dim=(1, 2)),
        image,
        np.zeros((20, 20), np.float32),
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
