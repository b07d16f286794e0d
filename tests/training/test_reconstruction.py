from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional as F

from medcls.errors import ConfigError
from medcls.training.losses import RECONSTRUCTION_LOSSES, build_reconstruction_loss, compute_ssim

NONE = torch.zeros(2, 1)


def draw(shape: tuple[int, ...] = (2, 1, 11, 12, 13), *, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    """Reconstructions and targets in [0, 1], each target's own range exactly that."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=generator)
    low, high = target.amin(dim=(2, 3, 4), keepdim=True), target.amax(dim=(2, 3, 4), keepdim=True)
    target = (target - low) / (high - low)
    return target + noise * torch.randn(shape, generator=generator), target


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
def test_ssim_is_scikit_images_in_3d(noise: float) -> None:
    made, target = draw((2, 2, 11, 12, 13), noise=noise)
    found = compute_ssim(made, target)
    for n in range(2):
        for c in range(2):
            pair = (made[n, c].double().numpy(), target[n, c].double().numpy())
            settings = {"win_size": 7, "data_range": 1.0, "use_sample_covariance": False, "gaussian_weights": False}
            expected = structural_similarity(*pair, **settings)
            assert float(found[n, c]) == pytest.approx(expected, abs=2e-5)


def test_ssim_is_the_same_in_any_unit() -> None:
    made, target = draw()
    torch.testing.assert_close(
        compute_ssim(40 * made - 7, 40 * target - 7), compute_ssim(made, target), rtol=1e-4, atol=1e-4
    )


def test_ssim_of_equals_is_one_and_falls_with_noise() -> None:
    values = [float(compute_ssim(*draw(noise=noise)).mean()) for noise in (0.0, 0.1, 0.3, 1.0)]
    assert values[0] == pytest.approx(1.0, abs=1e-6)
    assert values == sorted(values, reverse=True)
    constant = torch.full((1, 1, 8, 8, 8), 3.0)
    assert float(compute_ssim(constant, constant)) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 4), (6, 8, 20)])
def test_ssim_takes_maps_smaller_than_its_window(size: tuple[int, int, int]) -> None:
    made, target = draw((2, 3, 8, 8, 20))
    crop = (..., *(slice(length) for length in size))
    assert compute_ssim(made[crop], target[crop]).shape == (2, 3)
    assert compute_ssim(made[crop], target[crop]).isfinite().all()


def test_losses_are_torchs_and_the_papers() -> None:
    made, target = draw()
    pairs = torch.stack([made, target], dim=1)
    expected = {
        "mse": F.mse_loss(made, target),
        "l1": F.l1_loss(made, target),
        "ssim": 1 - compute_ssim(made, target).mean(),
        "half_sse": torch.tensor(
            np.mean([0.5 * ((m - t) ** 2).sum().item() for m, t in zip(made, target, strict=True)])
        ),
    }
    for name in RECONSTRUCTION_LOSSES:
        torch.testing.assert_close(build_reconstruction_loss(name)(pairs, NONE).double(), expected[name].double())


@pytest.mark.parametrize("name", RECONSTRUCTION_LOSSES)
def test_a_reconstruction_learnt_by_a_loss_comes_to_its_target(name: str) -> None:
    made, target = draw((2, 1, 8, 8, 8), noise=1.0)
    learnt = made.clone().requires_grad_()
    loss = build_reconstruction_loss(name)
    optimizer = torch.optim.Adam([learnt], lr=0.05)
    before = float(loss(torch.stack([learnt, target], dim=1), NONE).detach())
    for _ in range(150):
        optimizer.zero_grad()
        value = loss(torch.stack([learnt, target], dim=1), NONE)
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 0.1 * before


@pytest.mark.parametrize("name", RECONSTRUCTION_LOSSES)
def test_half_precision_is_computed_in_single(name: str) -> None:
    pairs = torch.stack(draw(), dim=1)
    loss = build_reconstruction_loss(name)
    assert loss(pairs.half(), NONE).dtype == torch.float32
    torch.testing.assert_close(loss(pairs.half(), NONE), loss(pairs, NONE), rtol=1e-2, atol=1e-3)


def test_unknown_loss() -> None:
    with pytest.raises(ConfigError, match="loss=mae: expected one of mse, l1, ssim, half_sse"):
        build_reconstruction_loss("mae")
