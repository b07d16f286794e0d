from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medcls.explain.perturbation import build_background, explain_occlusion

Score = Callable[[Tensor], Tensor]


def test_map_points_at_the_planted_place(score: Score, image: NDArray[np.uint8], region: NDArray[np.bool_]) -> None:
    heat = explain_occlusion(score, image, background=build_background(image, kind="blur"))
    assert region[np.unravel_index(heat.argmax(), heat.shape)]
    assert heat[region].mean() > 5 * np.abs(heat[~region]).mean()


def test_volume(volume_parts: tuple[NDArray[np.uint8], nn.Module, NDArray[np.bool_]]) -> None:
    volume, network, place = volume_parts
    black = build_background(volume, kind="black")
    heat = explain_occlusion(lambda x: network(x)[:, 0], volume, background=black, window=0.25)
    assert place[np.unravel_index(heat.argmax(), heat.shape)]


@pytest.mark.parametrize("window", [0.05, 0.3, 0.9])
def test_every_pixel_is_hidden_and_falls_are_means_over_the_windows(window: float) -> None:
    image = np.zeros((1, 11, 14), np.uint8)
    image[0, 5, 6] = 200
    heat = explain_occlusion(
        lambda x: x[:, 0, 5, 6], image, background=np.zeros(image.shape, np.float32), window=window
    )
    # Every window over the bright pixel takes all of the score; others take nothing.
    assert heat[5, 6] == pytest.approx(200)
    assert heat.max() == pytest.approx(200)
    assert np.isfinite(heat).all()
    far = max(1, round(window * 14))
    assert (heat[:, 6 + far :] == 0).all()


def test_score_without_the_image_has_an_empty_map(image: NDArray[np.uint8]) -> None:
    heat = explain_occlusion(lambda x: torch.ones(len(x)), image, background=build_background(image, kind="mean"))
    assert not heat.any()
