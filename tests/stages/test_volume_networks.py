"""Real 3-D networks on a store of volumes, from training to evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medcls.config import ModelConfig
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.files import ENVIRONMENT, MODEL, read_json, sha256_file
from medcls.runs.model_file import read_card, read_model
from medcls.train.initial_weights import choose_options
from medcls.train.network import check_size

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def larger_store(make_volume_store: Callable[..., Store]) -> Store:
    """24 volumes of 24 voxels along each axis: acnn3d takes no smaller ones than 22."""
    return make_volume_store("image.size=[24,24,24]")


def test_deeply_supervised_classifier_is_trained_and_evaluated(
    larger_store: Store, run_train: Train, run_evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    settings = [f"store={larger_store.folder}", "model=dsa3dcnn", "augment=none"]
    run = run_train(tmp_path / "run", *settings, "trainer.epochs=8", "trainer.max_steps=null")
    model, card = read_model(run / MODEL)
    assert (card.architecture, card.options, card.normalize) == ("acnn3d", {"all_levels": True}, "min_max")
    assert list(model.stages) == ["conv1", "conv2", "conv3", "fc1", "fc2", "head"]
    assert [layer.in_features for layer in model.head.layers] == [2000, 500]
    metrics = read_json(run_evaluate(run, "split=test", "report=false") / "metrics.json")
    assert metrics["auc"]["value"] > 0.9


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("encoder3d", []),
        ("resnet10_3d", ["model.normalize=stored"]),
        ("inflated_resnet18", ["transfer=frozen"]),
        ("slices_resnet18", ["model.pooling=attention", "model.num_slices=4"]),
    ],
)
def test_every_kind_of_network_takes_a_step_and_comes_back(
    volume_store: Store, run_train: Train, tmp_path: Path, model: str, settings: list[str]
) -> None:
    common = [f"store={volume_store.folder}", f"model={model}", "model.weights=null", "augment=none"]
    run = run_train(tmp_path / "run", *common, *settings, "trainer.epochs=1")
    network, card = read_model(run / MODEL)
    assert (card.architecture, card == read_card(run / MODEL)) == (model, True)
    volumes = torch.from_numpy(volume_store.image(0)[None].copy())
    with torch.inference_mode():
        assert network(volumes).isfinite().all()


def test_weights_of_a_run_reach_a_network_of_the_same_size_only(
    larger_store: Store, make_volume_store: Callable[..., Store], run_train: Train, tmp_path: Path
) -> None:
    common = ["augment=none", "transfer=frozen", "model=acnn3d"]
    first = run_train(tmp_path / "first", *common, f"store={larger_store.folder}")
    other = make_volume_store("image.size=[24,24,24]", hospital="other")
    second = run_train(tmp_path / "second", *common, f"store={other.folder}", f"model.weights={first}", "seed=1")
    states = [read_model(run / MODEL)[0].backbone.state_dict() for run in (first, second)]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    deeper = make_volume_store("image.size=[40,24,24]", hospital="other")
    with pytest.raises(DataError, match=r"is not for this architecture: 1 of other shape \(fc1.weight\)"):
        run_train(tmp_path / "third", *common, f"store={deeper.folder}", f"model.weights={first}")


def test_activation_checkpointing_gives_the_same_model_file(
    volume_store: Store, run_train: Train, tmp_path: Path
) -> None:
    settings = [f"store={volume_store.folder}", "model=resnet10_3d", "augment=none", "trainer.max_steps=2"]
    runs = [
        run_train(tmp_path / str(on), *settings, f"trainer.activation_checkpointing={str(on).lower()}")
        for on in (False, True)
    ]
    assert sha256_file(runs[0] / MODEL) == sha256_file(runs[1] / MODEL)
    assert read_json(runs[0] / ENVIRONMENT)["not_deterministic_on_cuda"] == []


def test_a_vgg_names_its_pooling_and_has_nothing_to_compute_again(run_train: Train, tmp_path: Path) -> None:
    settings = ["model=vgg11", "augment=none", "trainer.epochs=1"]
    with pytest.raises(
        ConfigError, match=r"activation_checkpointing=true: vgg11 has no blocks to recompute: remove it"
    ):
        run_train(tmp_path / "first", *settings, "trainer.activation_checkpointing=true")
    run = run_train(tmp_path / "second", *settings)
    assert read_json(run / ENVIRONMENT)["not_deterministic_on_cuda"] == ["AdaptiveAvgPool2d"]


def test_only_what_an_architecture_has_is_told_to_it() -> None:
    assert choose_options(ModelConfig(name="resnet18"), None) == {}
    assert choose_options(ModelConfig(name="acnn3d", supervision=[0.5, 1.0]), None) == {"all_levels": True}
    slices: dict[str, Any] = {"planes": "axial", "num_slices": 3, "pooling": "attention"}
    assert choose_options(ModelConfig(name="slices_vgg11", **slices), None) == slices


def test_a_vgg_needs_32_voxels_along_each_axis_that_it_halves() -> None:
    check_size("slices_vgg11", (1, 5, 32, 32))
    check_size("inflated_resnet18", (1, 8, 8, 8))
    for name, shape in (("slices_vgg11", (1, 64, 31, 40)), ("inflated_vgg11", (1, 16, 64, 64))):
        with pytest.raises(ConfigError, match=f"model.name={name} takes images of at least 32 pixels"):
            check_size(name, shape)
