from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from medcls.config import TrainJob
from medcls.data.targets import Task
from medcls.errors import ConfigError
from medcls.imaging.preprocess import PreprocessSpec
from medcls.models.classifier import Classifier
from medcls.models.families import build_backbone
from medcls.models.transfer import StagePlan
from medcls.runs.lineage import Lineage
from medcls.train.learner import Recipe
from medcls.train.network import check_size, plan_network, start_network
from medcls.training.state import StepRules

Compose = Callable[..., TrainJob]


@dataclass
class Data:
    """What start_network needs of the data."""

    task: Task
    shape: tuple[int, int, int] = (1, 32, 32)
    dtype: str = "uint8"
    clinical: None = None

    @property
    def store(self) -> Any:
        channels, height, width = self.shape
        spec = PreprocessSpec(height, width, channels, dtype=self.dtype)
        empty = pa.chunked_array([], pa.string())
        read = lambda name, rows: pa.table({name: empty})
        return SimpleNamespace(folder="store", shape=self.shape, spec=spec, read=read)

    @property
    def held_out(self) -> Any:
        return np.zeros(0, dtype=np.int64)

    @property
    def train(self) -> Any:
        return SimpleNamespace(targets=torch.tensor([[20.0], [30.0]]), shape=self.shape)


def build_model(job: TrainJob, data: Any) -> tuple[Classifier, list[StagePlan], Lineage]:
    """The network of a job, how it is trained, and what its weights went through."""
    start = start_network(job.model, data, weights_dir=job.weights_dir, seed=job.seed, l2=job.clinical.l2)
    recipe = Recipe(job.optimizer, job.schedule, job.trainer, StepRules())
    plans = plan_network(start, job.transfer, init=job.model.init, recipe=recipe, clinical=job.clinical)
    return start.model, plans, start.lineage


GRADES = Task("multiclass", ["0", "1", "2"], ["label"])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An offline folder with the convolutional base of a VGG-11, and nothing else."""
    folder = tmp_path / "weights"
    folder.mkdir()
    with torch.device("meta"):
        features = build_backbone("vgg11").body.features.state_dict()
    state = {f"features.{name}": torch.zeros(value.shape) for name, value in features.items()}
    save_file(state, folder / "vgg11-imagenet-features.safetensors")
    return folder


def test_convolutional_base_is_said_and_its_new_layers_are_never_frozen(
    compose_train: Compose, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["model=vgg11", "model.weights=imagenet", f"weights_dir={base}", "transfer=frozen"]
    model, plans, lineage = build_model(compose_train(tmp_path / "run", *settings), Data(GRADES))
    said = capsys.readouterr().err
    assert "notice: the file has the convolutional base only; random: classifier.0.bias" in said
    assert [plan.name for plan in plans if plan.lr_scale] == ["fc6", "fc7", "head"]
    trained = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad and "head" not in name}
    assert trained == {"classifier"}
    assert lineage.models[0]["file"] == "vgg11-imagenet-features.safetensors"


def test_random_numbers_that_stay_are_said(
    compose_train: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, lineage = build_model(compose_train(tmp_path / "run", "transfer=frozen"), Data(GRADES))
    said = capsys.readouterr().err
    assert "weights: none; resnet18 starts from random numbers" in said
    assert "notice: transfer=frozen freezes stages that hold random numbers" in said
    assert said.splitlines()[-2].startswith("head")
    assert lineage.models == []


def test_network_fits_store_and_task(compose_train: Compose, tmp_path: Path) -> None:
    data = Data(Task("regression", [], ["label"]), shape=(3, 48, 40), dtype="uint16")
    model, _, _ = build_model(compose_train(tmp_path / "run", "task=regression"), data)
    assert model.normalize.max_value == 65535
    assert (float(model.head.shift), float(model.head.scale)) == (25.0, 5.0)


@pytest.mark.parametrize(("name", "shape"), [("vgg11", (1, 31, 200)), ("vgg16_bn", (3, 64, 16))])
def test_images_too_small_for_a_vgg_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=f"model.name={name} takes images of at least 32 pixels"):
        check_size(name, shape)
    check_size("resnet18", shape)
    check_size(name, (1, 32, 32))
