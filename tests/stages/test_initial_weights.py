"""Where a run's numbers come from: whole files, drawn after them, hybrids, shallower networks, nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from medcls.config import TrainJob
from medcls.errors import ConfigError
from medcls.models.backbones import Backbone
from medcls.models.families import build_backbone
from medcls.runs.model_file import read_card, read_model
from medcls.train.initial_weights import find_source, load_source

Run = Callable[..., Path]
Compose = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def pretrained() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return build_backbone("resnet18").body.state_dict()


@pytest.fixture(scope="module")
def weights(pretrained: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The settings that start a ResNet-18 from them."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(pretrained, folder / "resnet18-imagenet.safetensors")
    return ["model.weights=imagenet", f"weights_dir={folder}"]


def backbone_of(run: Path) -> Backbone:
    return read_model(run / "model.safetensors")[0].backbone


HYBRID = ["model.init=hybrid", "model.init_to=layer2", "model.width=0.25"]


@pytest.fixture(scope="module")
def hybrid(run_train: Run, weights: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid whose pretrained stages are frozen; do not write into it."""
    return run_train(tmp_path_factory.mktemp("hybrid") / "run", *weights, *HYBRID, "transfer=frozen")


def test_hybrid_keeps_the_lower_stages_and_learns_the_slim_ones(hybrid: Path, pretrained: dict[str, Tensor]) -> None:
    backbone = backbone_of(hybrid)
    assert backbone.num_features == 128
    below = {n: v for n, v in backbone.body.state_dict().items() if n.startswith(("conv1", "bn1", "layer1", "layer2"))}
    assert all(torch.equal(value, pretrained[name]) for name, value in below.items())
    assert len(below) == 6 + 2 * 24 + 6  # the stem, two layers, and the projection of the second
    assert int(backbone.body.layer1[0].bn1.num_batches_tracked) == 0
    assert int(backbone.body.layer3[0].bn1.num_batches_tracked) > 0  # new filters: their statistics are learnt
    card = read_card(hybrid / "model.safetensors")
    assert (card.architecture, card.options) == ("resnet18", {"above": "layer2", "width": 0.25})
    assert card.training["init"] == "hybrid"


def test_hybrid_says_what_is_new_and_trains_it_although_frozen(
    run_train: Run, weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train(tmp_path / "run", *weights, *HYBRID, "transfer=frozen")
    said = capsys.readouterr().err
    assert "; up to layer2, above it new and 0.25 times as wide" in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line[:5] in ("layer", "head ", "stem ")}
    assert [rows[f"layer{i}"][1] for i in range(1, 5)] == ["pretrained", "pretrained", "random", "random"]
    assert [rows[f"layer{i}"][-2] for i in range(1, 5)] == ["frozen", "frozen", "yes", "yes"]
    assert rows["head"][1] == "random"


def test_a_hybrid_is_handed_on_as_it_is(
    run_train: Run, hybrid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medcls.train.train.check_lineage", lambda *_, **__: None)  # one store serves here
    child = run_train(tmp_path / "child", f"model.weights={hybrid}", "transfer=frozen", "task=regression",
                      "task.label=hurt")  # fmt: skip
    states = [backbone_of(run).state_dict() for run in (child, hybrid)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert read_card(child / "model.safetensors").options == {"above": "layer2", "width": 0.25}
    with pytest.raises(
        ConfigError, match=r"model.init=hybrid: model.weights=.* is itself a hybrid: set model.init=full"
    ):
        run_train(tmp_path / "again", f"model.weights={hybrid}", *HYBRID)


def test_drawn_weights_are_no_pretrained_ones_and_the_same_tomorrow(
    run_train: Run,
    weights: list[str],
    pretrained: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [*weights, "model.init=mean_var", "transfer=frozen"]
    first, second = (backbone_of(run_train(tmp_path / name, *given)).body.state_dict() for name in "ab")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    name = "layer3.0.conv2.weight"
    assert not torch.equal(first[name], pretrained[name])
    assert float(first[name].std()) == pytest.approx(float(pretrained[name].std()), rel=0.01)
    said = capsys.readouterr().err
    assert "each tensor redrawn with its mean and variance" in said
    assert "notice: transfer=frozen freezes stages that hold random numbers: stem, layer1" in said
    assert "layer4     mean_var" in said


def test_a_deeper_vgg_starts_from_the_first_layers_of_network_a(
    compose_train: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with the convolutional base only: its fully connected layers stay new."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = build_backbone("vgg11").body.features.state_dict()
    state = {f"features.{name}": torch.randn(value.shape) for name, value in shapes.items()}
    (tmp_path / "weights").mkdir()
    save_file(state, tmp_path / "weights" / "vgg11-imagenet-features.safetensors")
    settings = ["model=vgg13", "model.weights=imagenet", f"weights_dir={tmp_path / 'weights'}", "model.init=shallower"]
    job = compose_train(tmp_path / "run", *settings)
    source = find_source(job.model, weights_dir=job.weights_dir)
    assert source is not None
    assert source.architecture == "vgg11"
    backbone = build_backbone("vgg13")
    before = backbone.body.state_dict()["features.2.weight"].clone()
    model = SimpleNamespace(backbone=backbone)
    left, lineage = load_source(job.model, model, source, seed=job.seed)  # type: ignore[arg-type]
    body = backbone.body.state_dict()
    assert torch.equal(body["features.2.weight"], before)
    for old, new in ((0, 0), (3, 5), (6, 10), (8, 12)):
        assert torch.equal(body[f"features.{new}.weight"], state[f"features.{old}.weight"])
    taken = {"features.0", "features.5", "features.10", "features.12"}
    assert set(left) == {name for name in body if name.rsplit(".", 1)[0] not in taken}
    assert lineage.models[0]["file"] == "vgg11-imagenet-features.safetensors"
    assert "; the first four convolutions, fc6 and fc7 of a vgg11" in capsys.readouterr().err


def test_no_deeper_network_and_no_other_one_starts_from_a_shallower(compose_train: Compose, tmp_path: Path) -> None:
    for name in ("vgg11", "resnet18", "vgg_m"):
        settings = [f"model={name}", "model.weights=imagenet", "model.init=shallower"]
        with pytest.raises(ConfigError, match=f"no VGG is shallower than model.name={name}"):
            find_source(compose_train(tmp_path, *settings).model)


def test_a_run_of_another_network_is_no_shallower_one(compose_train: Compose, trained: Path, tmp_path: Path) -> None:
    settings = ["model=vgg16", f"model.weights={trained}", "model.init=shallower"]
    with pytest.raises(ConfigError, match=r"is a resnet18, .*init=shallower: it takes vgg11 or vgg13, or"):
        find_source(compose_train(tmp_path / "run", *settings).model)


@pytest.mark.parametrize("name", ["cbr_small", "antony2017_joint", "vgg_m"])
def test_networks_without_imagenet_weights_say_so(compose_train: Compose, tmp_path: Path, name: str) -> None:
    expected = rf"no ImageNet weights for {name}: train it from scratch \(transfer=scratch\), or start from another run"
    with pytest.raises(ConfigError, match=expected):
        find_source(compose_train(tmp_path, f"model={name}", "model.weights=imagenet").model)


@pytest.mark.parametrize("name", ["cbr_larget", "cbr_tiny", "antony2017_class"])
def test_small_networks_train_from_scratch_and_are_handed_on(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("medcls.train.train.check_lineage", lambda *_, **__: None)
    first = run_train(tmp_path / "first", f"model={name}", "transfer=scratch")
    child = run_train(tmp_path / "child", f"model={name}", f"model.weights={first}", "transfer=frozen")
    states = [backbone_of(run).state_dict() for run in (child, first)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert read_card(first / "model.safetensors").training["init"] == "random"
