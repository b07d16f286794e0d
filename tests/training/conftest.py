"""A network and batches so small that a step takes a millisecond."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from medcls.config import ScheduleConfig
from medcls.console import show_progress
from medcls.data.dataset import Batch
from medcls.models.backbones import Backbone
from medcls.models.classifier import Classifier
from medcls.models.heads import LinearHead, count_logits
from medcls.training.loop import Keeper, run_epochs, train_epoch
from medcls.training.losses import LossSettings, build_loss
from medcls.training.optimizers import build_optimizer, build_schedule
from medcls.training.precision import build_scaler
from medcls.training.state import EpochResult, Feed, Learner, Progress, RunPlan, StepRules
from medcls.training.tracking import Tracker


class Lines:
    """A loader and its sampler in one: lists of batches, one of each epoch; the last one comes again."""

    def __init__(self, *epochs: list[Batch]) -> None:
        self.epochs, self.epoch, self.start, self.num_samples = epochs, 0, 0, 1

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.epochs[min(self.epoch, len(self.epochs) - 1)][self.start :])


def train_one_epoch(
    learner: Learner,
    batches: list[Batch],
    rules: StepRules,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> EpochResult:
    """Train on the batches, and return what happened."""
    progress = progress or Progress()
    train_epoch(learner, progress, batches, rules, keeper or Keeper(), show_progress(disable=True))
    return progress.result


def train_epochs(
    learner: Learner,
    batches: list[list[Batch]],
    *,
    rules: StepRules | None = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
    tracker: Tracker | None = None,
    **plan: Any,
) -> Progress:
    """Run the loop on lists of batches, one of each epoch, and return where it ends; `plan` has at least validate=."""
    lines: Any = Lines(*batches)
    progress, given = progress or Progress(), {"epochs": 9, "set_modes": lambda epoch: learner.model.train()} | plan
    feed = Feed(lines, lines)
    run_epochs(
        learner,
        progress,
        RunPlan(feed, feed, **given),
        rules=rules or StepRules(),
        keeper=keeper or Keeper(),
        tracker=tracker,
    )
    return progress


@pytest.fixture
def build_tiny() -> Callable[..., Classifier]:
    """A classifier of two convolutions; build_tiny("binary", batchnorm=False)."""

    def build(kind: str = "multiclass", *, num_classes: int = 3, batchnorm: bool = True, seed: int = 0) -> Classifier:
        torch.manual_seed(seed)
        first, second = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        norms = [nn.BatchNorm2d(8), nn.BatchNorm2d(16)] if batchnorm else [nn.Identity(), nn.Identity()]
        layers = [first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten()]
        body = nn.Sequential(OrderedDict((f"layer{i}", layer) for i, layer in enumerate(layers)))
        backbone = Backbone(body, num_features=64, stages={"stem": [first, norms[0]], "layer": [second, norms[1]]})
        return Classifier(backbone, LinearHead(64, count_logits(kind, num_classes)))

    return build


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Random grey images (N, 1, 16, 16) and targets of the task; make_batch(8, "ordinal")."""

    def make(size: int = 8, kind: str = "multiclass", *, num_classes: int = 3, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (size, 1, 16, 16), dtype=torch.uint8, generator=generator)
        targets = {
            "binary": lambda: torch.randint(0, 2, (size, 1), generator=generator),
            "multilabel": lambda: torch.randint(0, 2, (size, num_classes), generator=generator),
            "regression": lambda: 100 + 20 * torch.randn(size, 1, generator=generator),
        }.get(kind, lambda: torch.randint(0, num_classes, (size, 1), generator=generator))()
        return Batch(images, targets.float(), torch.arange(size), torch.empty(size, 0))

    return make


@pytest.fixture
def build_learner() -> Callable[..., Learner]:
    """A learner of every parameter; SGD without momentum at a constant rate unless said otherwise."""

    def build(model: Classifier, kind: str = "multiclass", **settings: Any) -> Learner:
        given = {"name": "sgd", "lr": 0.01, "momentum": 0.0, "schedule": "constant", "precision": "fp32"} | settings
        groups = [{"params": list(model.parameters()), "stage": "all", "weight_decay": 0.0}]
        optimizer = build_optimizer(given["name"], groups, lr=given["lr"], momentum=given["momentum"])
        return Learner(
            model=model,
            loss=given.get("loss") or build_loss(kind, LossSettings(scale=float(model.head.scale))),
            optimizer=optimizer,
            schedule=build_schedule(optimizer, ScheduleConfig(given["schedule"]), steps_per_epoch=10, epochs=1),
            scaler=build_scaler(given["precision"], device="cpu"),
            average=given.get("average"),
            forward=model,
        )

    return build
