"""A new network or metric is one function and one row of a table: made-up ones go through the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from medcls.config import TaskConfig
from medcls.config.schema import read_settings
from medcls.data.store import Store
from medcls.kinds import KINDS, OWN, TaskKind
from medcls.models import families
from medcls.models.backbones import Backbone, Blueprint, stage_by_child
from medcls.models.classifier import Answer, Input, build_classifier
from medcls.models.families import Family
from medcls.models.heads import OUTPUTS, Output
from medcls.models.normalization import VolumeNormalization
from medcls.predict.predict import predict
from medcls.runs.model_file import read_card, read_model
from medcls.statistics import definitions
from medcls.statistics.definitions import RANKS, Definition
from medcls.statistics.metrics import _BUILDERS
from medcls.statistics.predictions import Floats, Predictions
from medcls.training.losses import LOSSES, Loss, LossSettings


def build_dot(plan: Blueprint) -> Backbone:
    """One convolution and the mean of its maps."""
    body = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return stage_by_child(body, 5, plan)


@pytest.fixture
def with_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    dot = Family(("dot",), build_dot, least_size=3, mean=(0.25, 0.5, 0.75), std=(0.5, 0.25, 0.125))
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, dot))


@pytest.mark.usefixtures("with_dot")
def test_network_of_one_function_and_one_row_is_trained_evaluated_and_predicts(
    run_train: Callable[..., Path], run_evaluate: Callable[..., Path], compose_job: Callable[..., Any],
    store: Store, tmp_path: Path,
) -> None:  # fmt: skip
    run, out = run_train(tmp_path / "run", "model.name=dot"), tmp_path / "predictions.parquet"
    model = read_model(run / "model.safetensors")[0]
    assert read_card(run / "model.safetensors").architecture == "dot"
    assert list(model.stages) == ["0", "head"]
    assert model.normalize.mean.flatten().tolist() == [0.25, 0.5, 0.75]
    evaluated = pq.read_table(run_evaluate(run, "split=val") / "predictions.parquet").to_pylist()
    raw = store.folder.parent / "raw"
    predict(compose_job("predict", f"run={run}", f"source={raw}", f"out={out}", "workers=0", "device=cpu"))
    predicted = {row["image_id"]: row["logits"] for row in pq.read_table(out).to_pylist() if row["level"] == "image"}
    expected = [row["logits"] for row in evaluated]
    np.testing.assert_allclose([predicted[row["image_id"]] for row in evaluated], expected, atol=1e-5)


@pytest.mark.usefixtures("with_dot")
@pytest.mark.parametrize("form", ["inflated_", "slices_"])
def test_network_of_one_row_has_its_forms_for_volumes(form: str) -> None:
    normalize = VolumeNormalization("stored", (0.0, 255.0))
    model = build_classifier(f"{form}dot", Answer("binary", 2), Input((1, 6, 8, 8), normalize=normalize))
    assert model.backbone.spatial_dims == 3
    assert model.normalize.std.flatten().tolist() == [0.5, 0.25, 0.125]


def build_worst_margin(predictions: Predictions) -> Callable[[Floats], Floats]:
    """The score of the least certain row of each draw that has it: a metric that no library knows."""
    certain = predictions.y_score.max(axis=1)
    return lambda weights: np.where(weights > 0, certain, np.inf).min(axis=1)


@pytest.mark.usefixtures("real_report")
def test_metric_of_one_function_and_one_row_chooses_the_epoch_and_is_in_metrics_json_and_on_the_page(
    run_train: Callable[..., Path], run_evaluate: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = Definition(
        "Least certainty", "Highest score of the least certain image.", "made up", needs=RANKS, printed=True,
        build=build_worst_margin, kinds=("multiclass",),
    )  # fmt: skip
    monkeypatch.setitem(definitions.DEFINITIONS, "least_certainty", row)
    run = run_train(tmp_path / "run", "model=cbr_small", "task.metric=least_certainty")
    folder = run_evaluate(run, "split=val")
    scores = pq.read_table(folder / "predictions.parquet").column("y_score").to_pylist()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["least_certainty"]["value"] == pytest.approx(min(map(max, scores)))
    assert "Least certainty" in (folder / "report.html").read_text()


def learn_rare(settings: LossSettings) -> Loss:
    """Minus the mean log likelihood of P = 1 - exp(-exp(z)): the complementary log-log link."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        rate = logits.float().exp()
        return -torch.where(targets > 0, torch.log(-torch.expm1(-rate)), -rate).mean()

    return loss


@pytest.fixture
def with_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of task of two classes whose outputs are on another scale than those of a binary one."""
    monkeypatch.setitem(KINDS, "rare", TaskKind("rare", {"auto": OWN}, thresholds=True, most=2))
    average = lambda logits: (-torch.log(torch.exp(-logits.exp()).mean(dim=0))).log()
    monkeypatch.setitem(OUTPUTS, "rare", Output(lambda classes: 1, lambda z: -torch.expm1(-z.exp()), average))
    monkeypatch.setitem(LOSSES, "rare", {"auto": learn_rare})
    monkeypatch.setitem(definitions.TASK_METRICS, "rare", definitions.TASK_METRICS["binary"])
    setting = read_settings(TaskConfig)["kind"]
    object.__setattr__(setting, "choices", (*setting.choices, "rare"))
    monkeypatch.setattr("medcls.statistics.metrics._BUILDERS", _BUILDERS | {"rare": _BUILDERS["binary"]})


@pytest.mark.usefixtures("with_rare")
def test_kind_of_task_of_one_row_a_table_is_trained_with_its_own_outputs_and_loss(
    run_train: Callable[..., Path], tmp_path: Path
) -> None:
    run = run_train(tmp_path / "run", "model=cbr_small", "task.kind=rare", "task.classes={0: 0, 1: 1, 2: 1}")
    model, card = read_model(run / "model.safetensors")[:2]
    assert (card.task.kind, card.task.output, card.task.positive) == ("rare", "rare", "1+2")
    assert model.head.linear.out_features == 1
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["val_log_loss"] < 20 for row in epochs if "val_log_loss" in row)
    # Probabilities of the link: the loss that was trained is the log loss of the scores that metrics take.
    found = [row for row in epochs if "val_loss" in row]
    assert found
    np.testing.assert_allclose([row["val_loss"] for row in found], [row["val_log_loss"] for row in found], rtol=1e-4)
