from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from medcls.errors import ConfigError
from medcls.models.classifier import Classifier, build_classifier
from medcls.models.transfer import (
    StagePlan,
    apply_plan,
    build_parameter_groups,
    format_plan,
    plan_transfer,
    set_train_mode,
)

Build = Callable[..., Classifier]


def plan(
    model: Classifier, kind: str, *, decay: float = 1.0, batchnorm: str = "train", **more: object
) -> list[StagePlan]:
    plans = plan_transfer(model, kind=kind, layer_decay=decay, batchnorm=batchnorm, **more)
    apply_plan(model, plans)
    return plans


def train_two_steps(model: Classifier, plans: list[StagePlan]) -> dict[str, Tensor]:
    """Returns the state before; the model is changed."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = build_parameter_groups(model, plans, lr=0.01, weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups)
    images = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    set_train_mode(model, plans)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    return before


def changed(model: Classifier, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.fixture
def resnet() -> Classifier:
    torch.manual_seed(0)
    return build_classifier("resnet18", kind="multiclass", num_classes=3, dropout=0.5)


def test_frozen_changes_the_head_alone_to_the_last_bit(resnet: Classifier) -> None:
    before = train_two_steps(resnet, plan(resnet, "frozen", batchnorm="train"))
    # Running statistics and their counters are part of the state: they are bit-equal, too.
    assert changed(resnet, before) == {"head.linear.weight", "head.linear.bias"}


def test_frozen_turns_dropout_off_in_the_backbone_and_leaves_it_on_in_the_head(
    build_meta: Build, resnet: Classifier
) -> None:
    vgg = build_meta("vgg16", dropout=0.5)
    set_train_mode(vgg, plan(vgg, "frozen"))
    assert [m.training for m in vgg.modules() if isinstance(m, nn.Dropout) and m.p] == [False, False]
    set_train_mode(resnet, plan(resnet, "frozen"))
    assert (resnet.head.dropout.training, resnet.backbone.training) == (True, False)


def test_training_mode_comes_back_after_an_evaluation(resnet: Classifier) -> None:
    plans = plan(resnet, "finetune")
    resnet.eval()
    set_train_mode(resnet, plans)
    assert all(module.training for module in resnet.modules())


@pytest.mark.parametrize("kind", ["scratch", "finetune"])
def test_every_parameter_is_trained(resnet: Classifier, kind: str) -> None:
    before = train_two_steps(resnet, plan(resnet, kind))
    assert changed(resnet, before) == set(before) - {"head.shift", "head.scale"}


def test_frozen_batchnorm_keeps_its_statistics_and_learns_its_scale(resnet: Classifier) -> None:
    before = train_two_steps(resnet, plan(resnet, "finetune", batchnorm="frozen"))
    statistics = {name for name in before if "running" in name or "num_batches" in name}
    now = changed(resnet, before)
    assert len(statistics) == 60
    assert not now & statistics
    assert {"backbone.body.bn1.weight", "backbone.body.bn1.bias", "backbone.body.conv1.weight"} <= now


def test_rates_fall_from_the_head_to_the_input(build_meta: Build) -> None:
    model = build_meta("resnet50")
    plans = plan(model, "finetune", decay=0.7)
    assert [p.name for p in plans] == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert [p.lr_scale for p in plans] == pytest.approx([0.7**5, 0.7**4, 0.7**3, 0.7**2, 0.7, 1.0])
    rates = {str(g["stage"]): g["lr"] for g in build_parameter_groups(model, plans, lr=0.01, weight_decay=0.1)}
    assert rates == pytest.approx({p.name: 0.01 * p.lr_scale for p in plans})


@pytest.mark.parametrize("name", ["vgg13_bn", "resnet34"])
def test_groups_hold_every_trained_parameter_once_and_decay_the_matrices_only(build_meta: Build, name: str) -> None:
    model = build_meta(name)
    groups = build_parameter_groups(model, plan(model, "finetune"), lr=0.01, weight_decay=0.1)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    for group in groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.1}


def test_frozen_optimises_the_head_alone(build_meta: Build) -> None:
    model = build_meta("vgg11")
    plans = plan(model, "frozen")
    groups = build_parameter_groups(model, plans, lr=0.01, weight_decay=0.1)
    assert {group["stage"] for group in groups} == {"head"}
    assert [p.requires_grad for p in model.parameters()] == [False] * (len(list(model.parameters())) - 2) + [True] * 2


def test_layers_that_the_file_lacks_are_never_frozen_at_random_values(build_meta: Build) -> None:
    model = build_meta("vgg16_bn", dropout=0.5)
    plans = plan(model, "frozen", fresh={"fc6", "fc7"})
    set_train_mode(model, plans)
    assert [p.name for p in plans if p.lr_scale] == ["fc6", "fc7", "head"]
    assert {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad and "head" not in n} == {
        "classifier"
    }
    assert all(m.training for m in model.modules() if isinstance(m, nn.Dropout))
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_plan_is_printed_with_its_rates(build_meta: Build) -> None:
    model = build_meta("resnet18")
    lines = format_plan(plan(model, "frozen", batchnorm="frozen"), lr=0.002).splitlines()
    assert len(lines) == 7
    assert lines[1].split() == ["stem", "9,536", "frozen", "frozen"]
    assert lines[-1].split() == ["head", "1,539", "2.00e-03", "-"]


def test_unknown_transfer_is_refused(build_meta: Build) -> None:
    with pytest.raises(ConfigError, match=r"transfer.kind=gradual: expected scratch, frozen or finetune"):
        plan(build_meta("resnet18"), "gradual")
