"""Networks of timm and torchvision through the commands: trained, cached, saved, read, evaluated, handed on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import save_file

from medcls.config import ModelConfig
from medcls.errors import ConfigError
from medcls.runs.model_file import read_card, read_model

Run = Callable[..., Path]


def save_vit(folder: Path, **settings: int) -> Path:
    torch.manual_seed(3)
    whole = timm.create_model("test_vit.r160_in1k", pretrained=False, **settings)
    path = folder / "test_vit.r160_in1k.safetensors"
    save_file({name: value.contiguous() for name, value in whole.state_dict().items()}, path)
    return path


@pytest.mark.parametrize(
    "settings",
    [
        ("model=timm", "model.name=test_convnext", "transfer=finetune", "transfer.layer_decay=0.5"),
        ("model=torchvision", "model.name=shufflenet_v2_x0_5", "transfer=gradual"),
    ],
)
def test_network_of_a_library_is_trained_saved_and_read(
    settings: tuple[str, ...], run_train: Run, run_evaluate: Run, tmp_path: Path
) -> None:
    run = run_train(tmp_path / "run", *settings)
    card = read_card(run / "model.safetensors")
    assert card.architecture == "/".join(setting.partition("=")[2] for setting in settings[:2])
    evaluated = pq.read_table(run_evaluate(run, "split=val") / "predictions.parquet")
    assert evaluated.num_rows > 0


def test_frozen_vit_starts_from_the_file_in_weights_dir_and_caches_its_features(
    run_train: Run, run_evaluate: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save_vit(tmp_path)
    settings = ("model=timm", "model.name=test_vit", "model.weights=pretrained", f"weights_dir={tmp_path}")
    run = run_train(tmp_path / "run", *settings, "transfer=frozen", "augment=none")
    told = capfd.readouterr()
    assert "licence apache-2.0" in told.out + told.err
    assert "features train" in told.out + told.err
    card = read_card(run / "model.safetensors")
    assert card.options == {"img_size": [32, 32]}
    (ancestor,) = card.ancestors
    assert {key: ancestor[key] for key in ("weights", "file", "name", "licence")} == {
        "weights": "pretrained",
        "file": path.name,
        "name": "test_vit.r160_in1k",
        "licence": "apache-2.0",
    }
    model = read_model(run / "model.safetensors")[0]
    torch.manual_seed(3)
    reference = timm.create_model("test_vit.r160_in1k", pretrained=False).state_dict()
    own = model.backbone.body.state_dict()
    assert torch.equal(own["cls_token"], reference["cls_token"])
    assert own["pos_embed"].shape != reference["pos_embed"].shape
    run_evaluate(run, "split=val")
    again = run_train(tmp_path / "again", *settings[:2], f"model.weights={run}", "transfer.val_seen=allow")
    assert [model["weights"] for model in read_card(again / "model.safetensors").ancestors] == ["pretrained", "run"]


def test_non_commercial_weights_are_refused_before_they_are_looked_for(run_train: Run, tmp_path: Path) -> None:
    settings = ("model=timm", "model.name=convnextv2_atto.fcmae_ft_in1k", "model.weights=pretrained")
    with pytest.raises(ConfigError, match=r"set model\.accept_license=cc-by-nc-4\.0"):
        run_train(tmp_path / "run", *settings)


def test_images_that_a_network_cannot_take_are_refused_with_its_size(run_train: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be built for images of 32 x 32 pixels .* trained at 299 x 299"):
        run_train(tmp_path / "run", "model=torchvision", "model.name=inception_v3")


def test_library_is_part_of_the_name() -> None:
    config = ModelConfig(library="timm", name="test_vit")
    assert config.name == "timm/test_vit"
    assert ModelConfig(library="timm", name=config.name).name == config.name
    with pytest.raises(ConfigError, match=r"model=timm: set model\.name=NAME"):
        ModelConfig(library="timm", name="")
