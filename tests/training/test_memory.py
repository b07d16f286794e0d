"""Where the device has no room for a batch it goes through in pieces: the same step, the same outputs.

Tried with a network that raises what CUDA raises; on a GPU it has never run.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medcls.data.dataset import Batch
from medcls.models.classifier import Classifier
from medcls.training.checkpoints import pack_training, unpack_training
from medcls.training.forward import predict_logits
from medcls.training.loop import train_step
from medcls.training.memory import MemoryLimitError, cut_batch
from medcls.training.state import Learner, Progress, StepRules
from tests.training.conftest import train_one_epoch

Tiny = Callable[..., Classifier]
Make = Callable[..., Batch]
Build = Callable[..., Learner]
CPU = StepRules()


def limit(model: nn.Module, most: int, *, at: str = "backbone.body.layer3") -> list[int]:
    """Gives the network room for `most` images; returns how many each pass had, those that failed too."""
    seen: list[int] = []

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(inputs[0]))
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore lines")

    # In the middle: the layers before it have run, their statistics have moved.
    model.get_submodule(at).register_forward_pre_hook(look)
    return seen


@given(st.integers(1, 40), st.one_of(st.none(), st.integers(1, 40)), st.integers(1, 3))
def test_pieces_are_the_batch_in_order(images: int, size: int | None, least: int) -> None:
    columns = torch.arange(images)
    pieces = cut_batch(Batch(columns[:, None], columns[:, None], columns, torch.empty(images, 0)), size, least=least)
    sizes = [len(piece.images) for piece in pieces]
    assert torch.cat([piece.positions for piece in pieces]).tolist() == list(range(images))
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(least, images)
    assert size is None or least > 1 or max(sizes) <= size


@pytest.mark.parametrize(("most", "passes"), [(6, [12, 6, 6]), (3, [12, 6, 3, 3, 3, 3]), (1, [12, 6, 3, 2, *[1] * 12])])
def test_halved_until_it_fits_the_step_is_that_of_the_whole_batch(
    build_tiny: Tiny, make_batch: Make, build_learner: Build, most: int, passes: list[int]
) -> None:
    batch, states = make_batch(12), []
    for room in (12, most):
        model = build_tiny(batchnorm=False).train()
        seen = limit(model, room)
        learner = build_learner(model)
        loss, taken, images = train_step(learner, [batch], CPU)
        states.append((loss, model.state_dict()))
        assert (taken, images, learner.nonfinite) == (True, 12, 0)
    assert seen == passes
    assert learner.piece == most
    assert states[1][0] == pytest.approx(states[0][0], rel=1e-5)
    for name, value in states[0][1].items():
        torch.testing.assert_close(value, states[1][1][name], atol=1e-6, rtol=1e-5)


def test_pieces_stay_small_for_the_rest_of_the_run_and_after_resuming(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    model = build_tiny(batchnorm=False).train()
    seen = limit(model, 4)
    learner = build_learner(model)
    train_one_epoch(learner, [make_batch(8), make_batch(8, seed=1)], CPU)
    assert seen == [8, 4, 4, 4, 4]
    tensors, state = pack_training(learner, Progress())
    resumed = build_learner(build_tiny(batchnorm=False).train())
    seen = limit(resumed.model, 4)
    unpack_training(resumed, tensors, json.loads(json.dumps(state)))
    train_one_epoch(resumed, [make_batch(8)], CPU)
    assert seen == [4, 4]


def test_statistics_and_dropout_of_the_failed_pass_leave_no_trace(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    states = []
    for known in (None, 4):
        model = build_tiny().train()
        model.head.dropout.p = 0.5
        limit(model, 4)
        learner = build_learner(model)
        learner.piece = known
        torch.manual_seed(11)
        train_step(learner, [make_batch(8)], CPU)
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_no_piece_of_a_network_with_batchnorm_has_one_image(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    model = build_tiny().train()
    seen = limit(model, 2)
    with pytest.raises(MemoryLimitError, match="no room for 3 images at once, and fewer are not possible"):
        train_step(build_learner(model), [make_batch(5)], CPU)
    assert seen == [5, 3]
    seen.clear()
    assert train_step(build_learner(model), [make_batch(6)], CPU)[1]
    assert seen == [6, 3, 2, 2, 2]


def test_no_room_for_one_image_says_what_to_change(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    model = build_tiny(batchnorm=False).train()
    limit(model, 0)
    with pytest.raises(MemoryLimitError, match=r"no room for 1 image at once, .*MiB\.\): set trainer.activ") as caught:
        train_step(build_learner(model), [make_batch(4)], CPU)
    assert caught.value.exit_code == 70
    assert "\n" not in str(caught.value)
    with pytest.raises(MemoryLimitError, match="no room for 1 image"):
        predict_logits(model, [make_batch(4)], CPU)


def test_statistics_over_processes_are_not_cut(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    model = build_tiny().train()
    model.backbone.body.layer1 = nn.SyncBatchNorm(8)
    limit(model, 4, at="backbone.body.layer0")
    with pytest.raises(MemoryLimitError, match="no room for 8 images at once, and fewer are not possible"):
        train_step(build_learner(model), [make_batch(8)], CPU)


@pytest.mark.parametrize("most", [1, 3, 5])
def test_predictions_in_pieces_are_those_of_whole_batches(build_tiny: Tiny, make_batch: Make, most: int) -> None:
    model, batches = build_tiny(), [make_batch(7), make_batch(7, seed=1)]
    batches[1] = batches[1]._replace(positions=torch.arange(7, 14))
    expected = predict_logits(model, batches, CPU)
    seen = limit(model, most)
    np.testing.assert_allclose(predict_logits(model, batches, CPU), expected, atol=1e-6)
    assert sum(number > most for number in seen) <= 3
    assert max(seen[-3:]) <= most


def test_no_room_for_the_update_says_what_to_change(
    build_tiny: Tiny, make_batch: Make, build_learner: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = build_learner(build_tiny().train(), name="adamw")

    def step(closure: object = None) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore lines")

    monkeypatch.setattr(learner.optimizer, "step", step)
    with pytest.raises(MemoryLimitError, match=r"no room for the optimizer .*MiB\.\): set optimizer=sgd"):
        train_step(learner, [make_batch(4)], CPU)
