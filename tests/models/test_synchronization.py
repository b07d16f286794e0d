"""BatchNorm over several processes keeps parameters, names and stages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcls.models.families import build_backbone
from medcls.models.synchronization import synchronize_batchnorm


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "cbr_tiny", "vgg11"])
def test_every_batchnorm_is_replaced_and_nothing_else_changes(name: str) -> None:
    backbone = build_backbone(name)
    before = dict(backbone.named_parameters())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    assert synchronize_batchnorm(backbone) == norms
    assert {key: id(value) for key, value in backbone.named_parameters()} == {k: id(v) for k, v in before.items()}
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    in_body = {id(module) for module in backbone.body.modules()}
    held = [module for stage in backbone.stages.values() for module in stage.modules()]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in held)
    assert all(id(module) in in_body for module in held if not isinstance(module, nn.ModuleList))
    assert {id(p) for stage in backbone.stages.values() for p in stage.parameters()} == {id(p) for p in before.values()}


def test_a_second_time_changes_nothing() -> None:
    backbone = build_backbone("resnet18")
    assert synchronize_batchnorm(backbone) > 0
    assert synchronize_batchnorm(backbone) == 0
