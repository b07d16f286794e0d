from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from medcls.errors import ConfigError
from medcls.models.classifier import Answer, Classifier, build_classifier
from medcls.models.transfer import (
    StagePlan,
    apply_plan,
    build_parameter_groups,
    choose_first_epochs,
    format_plan,
    plan_transfer,
    set_train_mode,
)

Build = Callable[..., Classifier]


def plan(
    model: Classifier, kind: str, *, decay: float = 1.0, batchnorm: str = "train", **more: object
) -> list[StagePlan]:
    epochs = choose_first_epochs(list(model.stages), kind=kind, **more)  # type: ignore[arg-type]
    plans = plan_transfer(model, epochs, layer_decay=decay, batchnorm=batchnorm)
    apply_plan(model, plans)
    return plans


def build_optimizer(model: Classifier, plans: list[StagePlan]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(build_parameter_groups(model, plans, lr=0.01, weight_decay=0.1))


def train_epoch(
    model: Classifier, plans: list[StagePlan], optimizer: torch.optim.Optimizer, *, epoch: int, steps: int = 2
) -> None:
    images = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(epoch))
    set_train_mode(model, plans, epoch=epoch)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()


def copy_state(model: Classifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def train_two_steps(model: Classifier, plans: list[StagePlan]) -> dict[str, Tensor]:
    """Returns the state before; the model is changed."""
    before = copy_state(model)
    train_epoch(model, plans, build_optimizer(model, plans), epoch=0)
    return before


def changed(model: Classifier, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.fixture
def resnet() -> Classifier:
    torch.manual_seed(0)
    return build_classifier("resnet18", Answer("multiclass", 3), dropout=0.5)


def test_frozen_changes_the_head_alone_to_the_last_bit(resnet: Classifier) -> None:
    before = train_two_steps(resnet, plan(resnet, "frozen", batchnorm="train"))
    # Running statistics and their counters are part of the state: they are bit-equal, too.
    assert changed(resnet, before) == {"head.linear.weight", "head.linear.bias"}


def test_frozen_turns_dropout_off_in_the_backbone_and_leaves_it_on_in_the_head(
    build_meta: Build, resnet: Classifier
) -> None:
    vgg = build_meta("vgg16", dropout=0.5)
    set_train_mode(vgg, plan(vgg, "frozen"), epoch=0)
    assert [m.training for m in vgg.modules() if isinstance(m, nn.Dropout) and m.p] == [False, False]
    set_train_mode(resnet, plan(resnet, "frozen"), epoch=0)
    assert (resnet.head.dropout.training, resnet.backbone.training) == (True, False)


def test_training_mode_comes_back_after_an_evaluation(resnet: Classifier) -> None:
    plans = plan(resnet, "finetune")
    resnet.eval()
    set_train_mode(resnet, plans, epoch=0)
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


def test_stages_without_statistics_of_their_own_learn_them(build_meta: Build) -> None:
    model = build_meta("resnet18")
    epochs = choose_first_epochs(list(model.stages), kind="frozen", fresh={"layer4"})
    plans = plan_transfer(model, epochs, layer_decay=1.0, batchnorm="frozen", unsettled={"layer3", "layer4"})
    assert [p.batchnorm for p in plans] == ["frozen"] * 4 + ["train", ""]
    set_train_mode(model, plans, epoch=0)
    training = {n.split(".")[2] for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}
    assert training == {"layer4"}


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
    set_train_mode(model, plans, epoch=0)
    assert [p.name for p in plans if p.lr_scale] == ["fc6", "fc7", "head"]
    assert {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad and "head" not in n} == {
        "classifier"
    }
    assert all(m.training for m in model.modules() if isinstance(m, nn.Dropout))
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


# --- partial and gradual


def test_partial_trains_from_the_stage_on_to_the_last_bit(resnet: Classifier) -> None:
    before = train_two_steps(resnet, plan(resnet, "partial", train_from="layer4"))
    now = changed(resnet, before)
    assert {name.split(".")[2] for name in now if name.startswith("backbone")} == {"layer4"}
    above = {name for name in before if name.startswith(("backbone.body.layer4", "head.linear"))}
    assert now == above


def test_partial_from_the_head_is_frozen_and_from_the_input_finetuned(build_meta: Build) -> None:
    model = build_meta("resnet18")
    assert plan(model, "partial", train_from="head") == plan(model, "frozen")
    assert plan(model, "partial", train_from="stem") == plan(model, "finetune")


def test_unknown_stage_names_the_nearest_and_the_others(build_meta: Build) -> None:
    with pytest.raises(ConfigError, match=r"transfer.train_from=layer5: .* stem, layer1, .* head \(nearest: layer"):
        plan(build_meta("resnet18"), "partial", train_from="layer5")
    with pytest.raises(ConfigError, match=r"transfer=partial: set transfer.train_from=STAGE, one of block1, "):
        plan(build_meta("vgg11"), "partial")


GRADUAL = [
    (1, None, {"stem": 5, "layer1": 4, "layer2": 3, "layer3": 2, "layer4": 1, "head": 0}),
    (3, None, {"stem": 15, "layer1": 12, "layer2": 9, "layer3": 6, "layer4": 3, "head": 0}),
    (2, "layer3", {"stem": None, "layer1": None, "layer2": None, "layer3": 4, "layer4": 2, "head": 0}),
]


@pytest.mark.parametrize(("every", "lowest", "expected"), GRADUAL)
def test_gradual_thaws_downwards(
    build_meta: Build, every: int, lowest: str | None, expected: dict[str, int | None]
) -> None:
    model = build_meta("resnet18")
    plans = plan(model, "gradual", thaw_every=every, train_from=lowest)
    assert {p.name: p.first_epoch for p in plans} == expected
    for epoch in range(17):
        set_train_mode(model, plans, epoch=epoch)
        trained = {name for name, first in expected.items() if first is not None and first <= epoch}
        for name, stage in model.stages.items():
            # A list of modules is only a name for them, no part of the network.
            modules = [m for m in stage.modules() if not isinstance(m, nn.ModuleList)]
            flags = [p.requires_grad for p in stage.parameters()] + [m.training for m in modules]
            assert set(flags) == {name in trained}


def test_what_the_weights_lack_is_trained_from_the_start_and_takes_no_turn(build_meta: Build) -> None:
    plans = plan(build_meta("vgg11"), "gradual", fresh={"fc6", "fc7"}, thaw_every=2)
    assert {p.name: p.first_epoch for p in plans} == {
        "block1": 10, "block2": 8, "block3": 6, "block4": 4, "block5": 2, "fc6": 0, "fc7": 0, "head": 0,
    }  # fmt: skip


def test_gradual_rates_are_those_of_finetuning(build_meta: Build) -> None:
    model = build_meta("resnet18")
    gradual, finetune = plan(model, "gradual", decay=0.5), plan(model, "finetune", decay=0.5)
    assert [p.lr_scale for p in gradual] == [p.lr_scale for p in finetune] == [0.5**i for i in (5, 4, 3, 2, 1, 0)]


@pytest.mark.parametrize("batchnorm", ["train", "frozen"])
def test_nothing_of_a_stage_moves_until_it_thaws(resnet: Classifier, batchnorm: str) -> None:
    """Parameters, running statistics, Adam's state and weight decay, bit for bit."""
    plans = plan(resnet, "gradual", decay=0.5, batchnorm=batchnorm, thaw_every=2)
    optimizer = build_optimizer(resnet, plans)
    groups = len(optimizer.param_groups)
    first = {p.name: p.first_epoch for p in plans}
    stage_of = {id(p): name for name, stage in resnet.stages.items() for p in stage.parameters()}
    before = copy_state(resnet)
    for epoch in range(4):
        train_epoch(resnet, plans, optimizer, epoch=epoch)
        moved = {n.split(".")[2] if n.startswith("backbone") else "head" for n in changed(resnet, before)}
        assert moved == {name for name in first if first[name] <= epoch}
        assert {stage_of[id(p)] for p in optimizer.state} == moved
    assert len(optimizer.param_groups) == groups
    statistics = {n for n in changed(resnet, before) if "running" in n or "num_batches" in n}
    assert bool(statistics) == (batchnorm == "train")


def test_starting_in_an_epoch_is_having_come_to_it(resnet: Classifier) -> None:
    """Interrupted after epoch 1 and loaded into new objects, the run goes on to the same bits."""
    plans = plan(resnet, "gradual", decay=0.5)
    optimizer = build_optimizer(resnet, plans)
    for epoch in range(2):
        train_epoch(resnet, plans, optimizer, epoch=epoch)
    again = copy.deepcopy(resnet).eval().requires_grad_(True)
    resumed = build_optimizer(again, plans)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for epoch in (2, 3):
        torch.manual_seed(epoch)  # of the head's dropout
        train_epoch(resnet, plans, optimizer, epoch=epoch)
        torch.manual_seed(epoch)
        train_epoch(again, plans, resumed, epoch=epoch)
    assert not changed(again, resnet.state_dict())
    flags = [[(p.requires_grad) for p in m.parameters()] + [x.training for x in m.modules()] for m in (resnet, again)]
    assert flags[0] == flags[1]


def test_the_mode_of_an_epoch_does_not_depend_on_what_came_before(build_meta: Build) -> None:
    model = build_meta("vgg11_bn", dropout=0.5)
    plans = plan(model, "gradual")

    def modes(*epochs: int) -> list[bool]:
        for epoch in epochs:
            set_train_mode(model, plans, epoch=epoch)
        return [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]

    assert modes(3) == modes(0, 1, 2, 3) == modes(9, 3) != modes(2)


# --- what is said


def test_the_plan_is_printed_with_its_rates(build_meta: Build) -> None:
    model = build_meta("resnet18")
    origins = {"stem": "pretrained", "layer4": "mean_var"}
    lines = format_plan(plan(model, "frozen", batchnorm="frozen"), lr=0.002, origins=origins).splitlines()
    assert len(lines) == 8
    assert lines[0].split() == ["stage", "weights", "parameters", "lr", "trained", "batchnorm"]
    assert lines[1].split() == ["stem", "pretrained", "9,536", "-", "frozen", "frozen"]
    assert lines[-2].split() == ["head", "random", "1,539", "2.00e-03", "yes", "-"]
    assert lines[-1].split() == ["all", "11,178,051", "1,539"]


def test_the_plan_says_from_which_epoch_on(build_meta: Build) -> None:
    model = build_meta("resnet18")
    lines = format_plan(plan(model, "gradual", decay=0.5, train_from="layer3", thaw_every=2), lr=0.01).splitlines()
    assert [" ".join(line.split()) for line in lines[3:]] == [
        "layer2 random 525,568 - frozen frozen",
        "layer3 random 2,099,712 2.50e-03 from epoch 5 frozen, then train",
        "layer4 random 8,393,728 5.00e-03 from epoch 3 frozen, then train",
        "head random 1,539 1.00e-02 yes -",
        "all 11,178,051 10,494,979",
    ]


def test_unknown_transfer_is_refused(build_meta: Build) -> None:
    with pytest.raises(ConfigError, match=r"transfer.kind=gradul: expected one of .* \(nearest: gradual\)"):
        plan(build_meta("resnet18"), "gradul")
