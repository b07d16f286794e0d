"""The layer where a step is not finite is named, and looking for it changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medcls.data.dataset import Batch
from medcls.models.classifier import Answer, Classifier, build_classifier
from medcls.models.recomputation import recompute_blocks
from medcls.training.faults import describe_fault, find_layer
from medcls.training.loop import train_step
from medcls.training.losses import build_loss
from medcls.training.state import Learner, StepRules

Tiny = Callable[..., Classifier]
Make = Callable[..., Batch]
Build = Callable[..., Learner]
LAYER = "backbone.body.layer3"


class Explode(torch.autograd.Function):
    """Nothing forward, NaN backward: a layer whose gradient overflows."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return maps.view_as(maps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.nan


def overflow(model: Classifier) -> None:
    model.get_submodule(LAYER).register_forward_hook(lambda *args: args[-1] * math.inf)


def explode(model: Classifier) -> None:
    model.get_submodule("backbone.body.layer5").register_forward_hook(lambda *args: Explode.apply(args[-1]))


def spoil_weight(model: Classifier) -> None:
    model.get_submodule(LAYER).weight.register_hook(lambda gradient: gradient * math.nan)


def make_step(learner: Learner, group: list[Batch], rules: StepRules) -> float:
    torch.manual_seed(7)
    loss, taken, _ = train_step(learner, group, rules)
    assert not taken
    return loss


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        (overflow, ("forward", LAYER)),
        (explode, ("backward", "backbone.body.layer4")),
        (spoil_weight, ("backward", f"{LAYER}.weight")),
    ],
)
def test_first_layer_is_named_and_nothing_is_changed(
    build_tiny: Tiny, make_batch: Make, build_learner: Build, spoil: Callable[..., None], place: Any, precision: str
) -> None:
    model = build_tiny().train()
    spoil(model)
    learner, group, rules = build_learner(model, precision=precision), [make_batch(4)], StepRules(precision=precision)
    loss = make_step(learner, group, rules)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    assert find_layer(learner, group, rules, loss=loss, seed=7) == place
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert learner.nonfinite == 1


def test_batch_is_cut_as_in_the_step_never_into_one_image_before_batchnorm(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    model, sizes = build_tiny().train(), []
    spoil_weight(model)
    model.get_submodule(LAYER).register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    learner, group, rules = build_learner(model), [make_batch(5)], StepRules()
    learner.piece = 2
    loss = make_step(learner, group, rules)
    assert find_layer(learner, group, rules, loss=loss, seed=7) == ("backward", f"{LAYER}.weight")
    assert sizes == [3, 2, 3, 2]


def test_loss_that_is_not_finite_of_finite_outputs_is_named(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    learner = build_learner(build_tiny().train(), loss=lambda logits, _: logits.sum() * math.nan)
    group = [make_batch(4)]
    loss = make_step(learner, group, StepRules())
    assert find_layer(learner, group, StepRules(), loss=loss, seed=7) == ("loss", "")


def test_what_is_finite_the_second_time_is_said_to_be(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    values = iter([math.nan, 1.0])
    learner = build_learner(build_tiny().train(), loss=lambda logits, _: logits.sum() * next(values))
    group = [make_batch(4)]
    loss = make_step(learner, group, StepRules())
    assert find_layer(learner, group, StepRules(), loss=loss, seed=7) == ("", "")


def test_gradient_that_overflows_at_the_scale_of_the_step_is_found_at_that_scale(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    model = build_tiny().train()
    scales: list[float] = []
    learner = build_learner(model, precision="fp16")
    model.head.linear.weight.register_hook(lambda gradient: scales.append(learner.scaler.get_scale()))
    model.head.linear.bias.register_hook(lambda gradient: gradient * math.inf)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    group, rules = [make_batch(4)], StepRules(precision="fp16")
    loss = make_step(learner, group, rules)
    assert find_layer(learner, group, rules, loss=loss, seed=7) == ("backward", "head.linear.bias")
    assert scales == [1.0, 1.0]
    assert learner.scaler.get_scale() == 0.5


def test_the_same_dropout_falls_as_in_the_step(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    model, seen = build_tiny().train(), []
    model.head.dropout.p = 0.5
    model.head.linear.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().clone()))
    learner = build_learner(model, loss=lambda logits, _: logits.sum() * math.nan)
    group = [make_batch(4)]
    loss = make_step(learner, group, StepRules())
    find_layer(learner, group, StepRules(), loss=loss, seed=7)
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("recompute", [False, True])
def test_residual_network_with_activations_in_place(make_batch: Make, build_learner: Build, recompute: bool) -> None:
    torch.manual_seed(0)
    model = build_classifier("resnet18", Answer("multiclass", 3))
    assert not recompute or recompute_blocks(model.backbone.stages)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        model.get_submodule(names[8]).weight.fill_(math.inf)
    learner, group = build_learner(model.train()), [make_batch(4)]
    loss = make_step(learner, group, StepRules())
    assert find_layer(learner, group, StepRules(), loss=loss, seed=7) == ("forward", names[8])


def test_description_holds_json_values_only(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    learner = build_learner(
        build_tiny().train(),
        loss=lambda logits, targets: build_loss("multiclass")(logits, targets) * math.nan,
    )
    group = [make_batch(2), make_batch(3)]
    loss = make_step(learner, group, StepRules(precision="fp32"))
    assert describe_fault(learner, group, StepRules(), loss=loss, seed=7) == {
        "where": "loss",
        "layer": "",
        "loss": "nan",
        "lr": {"all": 0.01},
        "precision": "fp32",
        "nonfinite_in_a_row": 1,
        "retreats": 0,
        "positions": [[0, 1], [0, 1, 2]],
    }
