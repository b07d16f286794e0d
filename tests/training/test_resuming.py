"""A training that is broken off anywhere and goes on ends with the same bits as one that was not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medcls.data.dataset import Batch
from medcls.models.classifier import Classifier
from medcls.training.checkpoints import name_checkpoint, pack_training, read_newest, unpack_training, write_checkpoint
from medcls.training.forward import predict_logits
from medcls.training.loop import Keeper
from medcls.training.optimizers import build_average
from medcls.training.state import Learner, Progress, StepRules
from tests.training.conftest import train_epochs

EPOCHS, BATCHES = 3, 4


class Stop(Exception):  # noqa: N818 (no error)
    """Breaks a training off."""


@pytest.fixture
def build(build_tiny: Callable[..., Classifier], build_learner: Callable[..., Learner]) -> Callable[..., Learner]:
    def make(name: str = "adamw", *, ema: bool = False, precision: str = "fp32", dropout: float = 0.0) -> Learner:
        model = build_tiny().to(memory_format=torch.channels_last)
        model.head.dropout.p = dropout
        average = build_average(model, decay=0.9) if ema else None
        settings: dict[str, Any] = {"name": name, "lr": 0.01, "schedule": "cosine", "precision": precision}
        return build_learner(model, **settings, momentum=0.9, average=average)

    return make


@pytest.fixture
def batches(make_batch: Callable[..., Batch]) -> list[list[Batch]]:
    return [[make_batch(6, seed=10 * epoch + n) for n in range(BATCHES)] for epoch in range(EPOCHS)]


def advance(
    learner: Learner, batches: list[list[Batch]], *, rules: StepRules, progress: Progress, stop_at: int | None = None
) -> None:
    held_out = batches[0][0]

    def validate(model: torch.nn.Module, _: Iterable[Batch]) -> tuple[float, dict[str, float]]:
        return -float(predict_logits(model, [held_out], rules).std()), {}

    class StopAfter(Keeper):
        def checkpoint_if_due(self, *, validated: bool = False) -> None:
            if progress.total == stop_at and not validated:
                raise Stop

    train_epochs(learner, batches, epochs=EPOCHS, rules=rules, validate=validate, progress=progress, keeper=StopAfter())


def all_bits(learner: Learner, progress: Progress) -> Iterator[tuple[str, bytes]]:
    tensors, state = pack_training(learner, progress)
    for name, tensor in sorted(tensors.items()):
        yield name, tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    state["result"] = None
    yield "state", json.dumps(state, sort_keys=True).encode()


CASES = {
    "adamw": {},
    "sgd": {"name": "sgd"},
    "adam with average and dropout": {"name": "adam", "ema": True, "dropout": 0.5},
    "fp16": {"precision": "fp16"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop_at", [1, 3, 4, 7, 11])
def test_broken_off_anywhere_it_ends_with_the_same_bits(
    build: Callable[..., Learner], batches: list[list[Batch]], tmp_path: Path, case: str, stop_at: int
) -> None:
    rules = StepRules(precision=CASES[case].get("precision", "fp32"), seed=3)
    whole, at = build(**CASES[case]), Progress()
    advance(whole, batches, rules=rules, progress=at)
    broken, progress = build(**CASES[case]), Progress()
    with pytest.raises(Stop):
        advance(broken, batches, rules=rules, progress=progress, stop_at=stop_at)
    tensors, state = pack_training(broken, progress)
    write_checkpoint(tmp_path, name_checkpoint(progress.total, validated=False), tensors=tensors, state=state)
    torch.manual_seed(1234)  # what was drawn in between does not matter
    read, _ = read_newest(tmp_path)
    assert read is not None
    resumed = build(**CASES[case])
    progress = unpack_training(resumed, read.tensors, read.state)
    assert progress.total == stop_at
    advance(resumed, batches, rules=rules, progress=progress)
    assert dict(all_bits(resumed, progress)) == dict(all_bits(whole, at))


def test_groups_of_accumulated_batches_are_not_split(build: Callable[..., Learner], batches: list[list[Batch]]) -> None:
    rules = StepRules(accumulate=2)
    whole, at = build(), Progress()
    advance(whole, batches, rules=rules, progress=at)
    broken, progress = build(), Progress()
    with pytest.raises(Stop):
        advance(broken, batches, rules=rules, progress=progress, stop_at=3)
    resumed = build()
    progress = unpack_training(resumed, *pack_training(broken, progress))
    assert (progress.epoch, progress.result.groups) == (1, 1)
    advance(resumed, batches, rules=rules, progress=progress)
    assert dict(all_bits(resumed, progress)) == dict(all_bits(whole, at))


def test_finished_training_has_nothing_left(build: Callable[..., Learner], batches: list[list[Batch]]) -> None:
    learner, progress = build(), Progress()
    advance(learner, batches, rules=StepRules(), progress=progress)
    again = unpack_training(build(), *pack_training(learner, progress))
    assert again.is_over(epochs=EPOCHS, max_steps=None, patience=None)
    assert not again.is_over(epochs=EPOCHS + 1, max_steps=None, patience=None)
    assert again.best.score == progress.best.score > -math.inf


def test_patience_and_steps_are_over_where_they_were(build: Callable[..., Learner]) -> None:
    progress = Progress(epoch=4, groups=8)
    progress.best.epoch = 1
    assert progress.is_over(epochs=9, max_steps=None, patience=2)
    assert not progress.is_over(epochs=9, max_steps=None, patience=3)
    assert progress.is_over(epochs=9, max_steps=8, patience=None)
    assert not progress.is_over(epochs=9, max_steps=9, patience=None)
