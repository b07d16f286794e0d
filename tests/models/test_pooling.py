from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from medcls.models.pooling import (
    AdaptiveAveragePool,
    GlobalAveragePool,
    MaxPool3d,
    list_nondeterministic,
    max_of_slices,
    repeat_to,
)

SIZES = st.tuples(*[st.integers(3, 9)] * 3)


def draw(size: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()


@settings(deadline=None)
@given(SIZES, st.sampled_from([(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 3, 0)]))
def test_slices_pool_as_torch_does_with_its_gradient(size: tuple[int, ...], window: tuple[int, int, int]) -> None:
    kernel, stride, padding = window
    maps = draw(size)
    pooled = max_of_slices(maps, kernel, stride=stride, padding=padding)
    reference = F.max_pool3d(maps, kernel, stride, padding)
    assert torch.equal(pooled, reference)
    weights = torch.randn_like(reference)
    found, expected = (torch.autograd.grad((y * weights).sum(), maps)[0] for y in (pooled, reference))
    torch.testing.assert_close(found, expected)


def test_equal_largest_values_share_one_gradient() -> None:
    maps = torch.zeros(1, 1, 2, 2, 2, requires_grad=True)
    max_of_slices(maps, 2, stride=2, padding=0).sum().backward()
    assert maps.grad is not None
    assert torch.equal(maps.grad, torch.full((1, 1, 2, 2, 2), 1 / 8))


def test_module_pools_on_the_cpu_as_torch_does() -> None:
    maps = draw((5, 6, 7))
    assert torch.equal(MaxPool3d(3, stride=2, padding=1)(maps), nn.MaxPool3d(3, 2, 1)(maps))
    assert torch.equal(MaxPool3d()(maps), nn.MaxPool3d(2)(maps))


@pytest.mark.gpu
def test_module_pools_on_cuda_without_an_operation_that_is_not_deterministic() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.use_deterministic_algorithms(True)
    try:
        maps = draw((5, 6, 7)).detach().cuda().requires_grad_()
        MaxPool3d(3, stride=2, padding=1)(maps).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@settings(deadline=None)
@given(SIZES, st.tuples(*[st.integers(1, 9)] * 3))
def test_adaptive_means_are_torchs(size: tuple[int, ...], parts: tuple[int, int, int]) -> None:
    maps = draw(size)
    pooled, reference = AdaptiveAveragePool(parts)(maps), F.adaptive_avg_pool3d(maps, parts)
    torch.testing.assert_close(pooled, reference)
    found, expected = (torch.autograd.grad(y.square().sum(), maps)[0] for y in (pooled, reference))
    torch.testing.assert_close(found, expected)


def test_global_mean_keeps_the_axes() -> None:
    maps = draw((5, 6, 7))
    torch.testing.assert_close(GlobalAveragePool()(maps), F.adaptive_avg_pool3d(maps, 1))


@settings(deadline=None)
@given(SIZES)
def test_a_repeated_pool_has_the_size_and_the_values_of_what_was_pooled(size: tuple[int, ...]) -> None:
    pooled = F.max_pool3d(draw(size), 2)
    repeated = repeat_to(pooled, size)
    assert repeated.shape[2:] == size
    assert torch.equal(F.max_pool3d(repeated, 2), pooled)
    if all(length % 2 == 0 for length in size):
        assert torch.equal(repeated, F.interpolate(pooled, size=size, mode="nearest"))


def test_layers_without_a_deterministic_backward_on_cuda_are_named() -> None:
    layers = [nn.MaxPool3d(2), nn.AdaptiveAvgPool2d((7, 7)), nn.AdaptiveAvgPool3d(1), nn.MaxPool2d(2), MaxPool3d()]
    assert list_nondeterministic(nn.Sequential(*layers)) == ["AdaptiveAvgPool2d", "MaxPool3d"]
    assert list_nondeterministic(nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), GlobalAveragePool(), MaxPool3d())) == []
