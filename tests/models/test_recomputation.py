from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medcls.models.backbones import Backbone
from medcls.models.families import build_backbone
from medcls.models.recomputation import list_blocks, recompute_blocks

BUILDERS: dict[str, Callable[[], Backbone]] = {
    "resnet18": lambda: build_backbone("resnet18"),
    "inflated_resnet18": lambda: build_backbone("inflated_resnet18"),
    "resnet10_3d": lambda: build_backbone("resnet10_3d", shape=(3, 16, 16, 16)),
    "encoder3d": lambda: build_backbone("encoder3d", shape=(3, 16, 16, 16)),
    "acnn3d": lambda: build_backbone("acnn3d", shape=(3, 24, 24, 24)),
}


def step(backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
    """Every number after a forward and a backward pass: parameters, buffers, gradients."""
    backbone(images).square().sum().backward()
    gradients = {f"grad.{name}": p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    return {name: value.clone() for name, value in (backbone.state_dict() | gradients).items()}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_step_ends_in_the_same_bits_with_and_without(name: str) -> None:
    torch.manual_seed(0)
    plain = BUILDERS[name]().train()
    again = copy.deepcopy(plain)
    assert recompute_blocks(again.stages) > 0
    images = torch.randn(2, 3, *(24,) * plain.spatial_dims)
    expected, found = step(plain, images), step(again, images)
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert list(expected) == list(found)


def test_blocks_do_compute_twice_and_only_while_training() -> None:
    backbone = build_backbone("resnet18")
    recompute_blocks(backbone.stages)
    ran: list[bool] = []
    first = next(m for m in backbone.stages["layer1"].modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda module, *_: ran.append(module.training))
    images = torch.randn(2, 3, 32, 32)
    backbone.train()(images).sum().backward()
    assert ran == [True, True]
    backbone.eval()(images).sum().backward()
    assert ran == [True, True, False]


def test_frozen_statistics_stay_frozen_and_tracking_ones_go_on_tracking() -> None:
    backbone = build_backbone("resnet18").train()
    recompute_blocks(backbone.stages)
    backbone.stages["layer1"].eval()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 32, 32)).sum().backward()
    changed = {name for name, value in backbone.named_buffers() if not torch.equal(value, before[name])}
    assert changed
    assert not [name for name in changed if "layer1" in name]
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    assert {norm.momentum for norm in norms} == {0.1}
    assert {int(norm.num_batches_tracked) for norm in norms if norm.num_batches_tracked is not None} == {0, 1}


def test_a_copy_recomputes_its_own_weights() -> None:
    backbone = build_backbone("resnet18").train()
    recompute_blocks(backbone.stages)
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(other(torch.randn(2, 3, 32, 32)), torch.zeros(2, 512))
    assert backbone(torch.randn(2, 3, 32, 32)).abs().sum() > 0


def test_layers_that_stand_alone_are_no_blocks() -> None:
    with torch.device("meta"):
        assert recompute_blocks(build_backbone("vgg11_bn").stages) == 0
    inner = nn.Sequential(nn.ModuleDict({"a": nn.ReLU()}))
    assert list_blocks([nn.ReLU(), nn.Sequential(inner)]) == [inner[0]]
