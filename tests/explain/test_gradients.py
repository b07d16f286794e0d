from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medcls.explain.gradcam import explain_integrated_gradients
from medcls.explain.perturbation import build_background

Score = Callable[[Tensor], Tensor]


def test_map_points_at_the_planted_place(score: Score, image: NDArray[np.uint8], region: NDArray[np.bool_]) -> None:
    heat, _ = explain_integrated_gradients(score, image, background=np.zeros(image.shape, np.float32))
    assert region[np.unravel_index(heat.argmax(), heat.shape)]
    assert np.abs(heat[~region]).max() == 0  # the network does not see the rest at all


@pytest.mark.parametrize("kind", ["black", "blur", "mean"])
def test_completeness(score: Score, image: NDArray[np.uint8], kind: str) -> None:
    """Proposition 1: the map sums up to the change of the score, the better the more steps."""
    background = build_background(image, kind=kind)

    def curved(images: Tensor) -> Tensor:
        return score(images) ** 3

    ends = torch.from_numpy(np.stack([image.astype(np.float32), background]))
    with torch.inference_mode():
        whole, empty = curved(ends).tolist()
    coarse, fine = (
        explain_integrated_gradients(curved, image, background=background, steps=steps) for steps in (2, 256)
    )
    assert abs(float(fine[0].sum()) - (whole - empty)) < 0.01 * abs(whole - empty)
    assert fine[1] == pytest.approx(abs(float(fine[0].sum()) - (whole - empty)), rel=0.1, abs=1e-9)
    assert fine[1] < coarse[1] / 3


def test_linear_score_gives_weight_times_difference() -> None:
    image = np.random.default_rng(0).integers(0, 255, (2, 6, 7)).astype(np.uint8)
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 6, 7)).astype(np.float32))
    background = np.full(image.shape, 9.0, np.float32)
    heat, gap = explain_integrated_gradients(
        lambda x: (x * weights).sum(dim=(1, 2, 3)), image, background=background, steps=3
    )
    np.testing.assert_allclose(heat, (weights.numpy() * (image - background)).sum(axis=0), rtol=1e-4, atol=1e-3)
    assert gap < 0.01


def test_what_the_score_ignores_gets_nothing_and_batches_do_not_matter(score: Score, image: NDArray[np.uint8]) -> None:
    background = build_background(image, kind="blur")
    whole, _ = explain_integrated_gradients(score, image, background=background, steps=20)
    parts, _ = explain_integrated_gradients(score, image, background=background, steps=20, batch_size=3)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-7)


def test_map_is_captums(score: Score, image: NDArray[np.uint8]) -> None:
    captum = pytest.importorskip("captum.attr", exc_type=ImportError)
    background = build_background(image, kind="blur")
    expected = captum.IntegratedGradients(score).attribute(
        torch.from_numpy(image[None].astype(np.float32)),
        baselines=torch.from_numpy(background[None]),
        n_steps=50,
        method="riemann_middle",
    )
    heat, _ = explain_integrated_gradients(score, image, background=background, steps=50)
    np.testing.assert_allclose(heat, expected[0, 0].detach().numpy(), rtol=1e-3, atol=1e-6)


def test_volume(volume_parts: tuple[NDArray[np.uint8], nn.Module, NDArray[np.bool_]]) -> None:
    volume, network, place = volume_parts
    heat, _ = explain_integrated_gradients(
        lambda x: network(x)[:, 0], volume, background=build_background(volume, kind="black")
    )
    assert heat.shape == place.shape
    assert place[np.unravel_index(heat.argmax(), heat.shape)]
