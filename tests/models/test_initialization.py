from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from medcls.models.backbones import Backbone
from medcls.models.families import build_backbone
from medcls.models.initialization import (
    choose_below,
    choose_shallower,
    describe_origins,
    draw_mean_variance,
    list_shallower,
)


@pytest.fixture(scope="module")
def pretrained() -> dict[str, Tensor]:
    """ResNet-18 whose tensors have means and running statistics that no initialisation has."""
    torch.manual_seed(0)
    body = build_backbone("resnet18").body
    for value in body.state_dict().values():
        if value.is_floating_point():
            value.add_(0.3)
    return body.state_dict()


def build_meta(name: str) -> Backbone:
    with torch.device("meta"):
        return build_backbone(name)


# --- mean and variance


def test_drawn_weights_have_mean_and_deviation_and_no_features(pretrained: dict[str, Tensor]) -> None:
    drawn = draw_mean_variance(pretrained, seed=0)
    assert {name: value.shape for name, value in drawn.items()} == {n: v.shape for n, v in pretrained.items()}
    for name in ("conv1.weight", "layer3.0.conv2.weight", "layer4.1.conv1.weight"):
        mine, theirs = drawn[name].double(), pretrained[name].double()
        error = float(theirs.std()) / mine.numel() ** 0.5
        assert abs(float(mine.mean() - theirs.mean())) < 4 * error
        assert float(mine.std()) == pytest.approx(float(theirs.std()), rel=4 / (2 * mine.numel()) ** 0.5)
        standard = ((mine - theirs.mean()) / theirs.std()).flatten().numpy()
        assert stats.kstest(standard, "norm").pvalue > 1e-3
        correlation = np.corrcoef(mine.flatten(), theirs.flatten())[0, 1]
        assert abs(correlation) < 4 / mine.numel() ** 0.5


def test_running_statistics_start_anew_and_scales_are_drawn(pretrained: dict[str, Tensor]) -> None:
    drawn = draw_mean_variance(pretrained, seed=0)
    fresh = nn.BatchNorm2d(64).state_dict()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(drawn[f"bn1.{name}"], fresh[name])
        assert drawn[f"bn1.{name}"].dtype == fresh[name].dtype
    # Its pretrained tensor is constant, 1.3: a draw of deviation 0.
    torch.testing.assert_close(drawn["bn1.weight"], torch.full((64,), 1.3))


def test_draws_are_a_pure_function_of_seed_and_name(pretrained: dict[str, Tensor]) -> None:
    name = "layer2.0.conv1.weight"
    alone = draw_mean_variance({name: pretrained[name]}, seed=1)[name]
    assert torch.equal(alone, draw_mean_variance(pretrained, seed=1)[name])
    assert not torch.equal(alone, draw_mean_variance(pretrained, seed=2)[name])
    twins = draw_mean_variance({"a": pretrained[name], "b": pretrained[name]}, seed=1)
    assert not torch.equal(twins["a"], twins["b"])


# --- hybrid


@pytest.mark.parametrize(
    ("name", "stage", "first"),
    [("resnet18", "layer1", "layer2.0.conv1.weight"), ("vgg11", "block2", "features.6.weight")],
)
def test_what_stays_pretrained_fits_the_hybrid_and_ends_with_the_stage(name: str, stage: str, first: str) -> None:
    with torch.device("meta"):
        backbone, hybrid = build_backbone(name), build_backbone(name, options={"above": stage, "width": 0.5})
    state, shapes = backbone.body.state_dict(), hybrid.body.state_dict()
    taken = choose_below(backbone, state, stage=stage)
    assert all(value.shape == shapes[name].shape for name, value in taken.items())
    assert [n for n in state if n not in taken and state[n].ndim > 1 and state[n].shape == shapes[n].shape] == []
    names = list(state)
    if name == "vgg11":  # its names stand in the order of the network
        assert list(taken) == names[: names.index(first)]
    stages = list(backbone.stages)
    below = [m for s in stages[: stages.index(stage) + 1] for m in backbone.stages[s].state_dict().values()]
    assert len(below) == len(taken)
    assert first not in taken


# --- a deeper VGG from a shallower one


def test_shallower_networks_have_the_same_normalisation() -> None:
    assert list_shallower("vgg19") == ["vgg11", "vgg13", "vgg16"]
    assert list_shallower("vgg13_bn") == ["vgg11_bn"]
    assert list_shallower("vgg11") == list_shallower("resnet50") == list_shallower("vgg_m") == []


# The deeper network's name of each of the shallower one's first four convolutions.
PLACES = {
    ("vgg11", "vgg16"): {0: 0, 3: 5, 6: 10, 8: 12},
    ("vgg13", "vgg19"): {0: 0, 2: 2, 5: 5, 7: 7},
    ("vgg11_bn", "vgg13_bn"): {0: 0, 1: 1, 4: 7, 5: 8, 8: 14, 9: 15, 11: 17, 12: 18},
}


@pytest.mark.parametrize(("names", "places"), PLACES.items())
def test_first_four_convolutions_and_both_fully_connected_layers_are_taken(
    names: tuple[str, str], places: dict[int, int]
) -> None:
    shallow, deep = (build_meta(name) for name in names)
    state = shallow.body.state_dict()
    taken = choose_shallower(shallow, deep, state)
    own = deep.body.state_dict()
    assert all(value.shape == own[name].shape for name, value in taken.items())
    for old, new in places.items():
        theirs = {n.removeprefix(f"features.{old}.") for n in state if n.startswith(f"features.{old}.")}
        for part in theirs:
            assert taken[f"features.{new}.{part}"] is state[f"features.{old}.{part}"]
    features = {int(name.split(".")[1]) for name in taken if name.startswith("features")}
    assert features == set(places.values())
    assert {name for name in taken if name.startswith("classifier")} == {
        "classifier.0.weight", "classifier.0.bias", "classifier.3.weight", "classifier.3.bias",
    }  # fmt: skip


# --- what is said


def test_stages_are_pretrained_random_or_in_part() -> None:
    backbone = build_meta("vgg13")
    left = {"features.2.weight", "features.2.bias", "classifier.0.weight", "classifier.0.bias"}
    origins = describe_origins(backbone, left, init="full")
    assert origins == {f"block{i}": "in part" if i == 1 else "pretrained" for i in range(1, 6)} | {
        "fc6": "random", "fc7": "pretrained",
    }  # fmt: skip
    assert describe_origins(backbone, left, init="mean_var")["fc7"] == "mean_var"
