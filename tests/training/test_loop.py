from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset

from medcls.config import TrainerConfig
from medcls.data.dataset import Batch, Position
from medcls.models.classifier import Answer, Classifier, build_classifier
from medcls.training.forward import PredictOptions, move_images, move_model, predict_logits, predict_rows
from medcls.training.loop import Keeper, NonFiniteError, train_step
from medcls.training.losses import build_loss
from medcls.training.state import Best, Learner, Progress, StepRules
from medcls.training.tracking import Tracker
from tests.training.conftest import train_epochs, train_one_epoch

Tiny = Callable[..., Classifier]
Make = Callable[..., Batch]
Build = Callable[..., Learner]
KINDS = ("binary", "multiclass", "multilabel", "ordinal", "regression")
CPU = StepRules()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(before: dict[str, Tensor], model: nn.Module) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def split(batch: Batch, sizes: list[int]) -> list[Batch]:
    parts = zip(*(torch.split(column, sizes) for column in batch), strict=True)
    return [Batch(*part) for part in parts]


class Poison:
    """A loss that is `value` at the given calls and cross-entropy at the others."""

    def __init__(self, calls: set[int], value: float = math.nan) -> None:
        self.calls, self.value, self.called = calls, value, 0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.called += 1
        loss = build_loss("multiclass")(logits, targets)
        return loss * self.value if self.called - 1 in self.calls else loss


# --- learning


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_overfits(build_tiny: Tiny, make_batch: Make, build_learner: Build, kind: str) -> None:
    batch, model = make_batch(8, kind), build_tiny(kind)
    if kind == "regression":
        model.head.set_unit(batch.targets)
    learner = build_learner(model, kind, name="adamw", lr=0.01)
    model.train()
    losses = [train_step(learner, [batch], CPU)[0] for _ in range(150)]
    assert losses[0] > 0.3
    assert losses[-1] < 0.02


def test_one_batch_overfits_with_a_real_network(make_batch: Make, build_learner: Build) -> None:
    batch = make_batch(6)
    torch.manual_seed(0)
    model = build_classifier("resnet18", Answer("multiclass", 3)).to(memory_format=torch.channels_last)
    large = Batch(
        batch.images.repeat_interleave(2, 2).repeat_interleave(2, 3), batch.targets, batch.positions, batch.clinical
    )
    learner = build_learner(model.train(), name="adamw", lr=1e-3)
    losses = [train_step(learner, [large], CPU)[0] for _ in range(12)]
    assert losses[-1] < 0.05 < 0.5 < losses[0]


# --- accumulation and clipping


@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [7, 4, 1]])
@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_accumulated_batches_make_the_step_of_one_big_batch(
    build_tiny: Tiny, make_batch: Make, build_learner: Build, kind: str, sizes: list[int]
) -> None:
    batch, results = make_batch(12, kind), []
    for group in ([batch], split(batch, sizes)):
        model = build_tiny(kind, batchnorm=False).train()
        loss, taken, _ = train_step(build_learner(model, kind, lr=1e-3), group, CPU)
        results.append((loss, model.state_dict()))
        assert taken
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for name, value in results[0][1].items():
        torch.testing.assert_close(value, results[1][1][name], atol=1e-6, rtol=1e-5)


def test_epoch_makes_groups_and_a_smaller_last_one(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    batches = split(make_batch(10), [2] * 5)
    learner = build_learner(build_tiny().train())
    result = train_one_epoch(learner, batches, StepRules(accumulate=2))
    assert (result.steps, result.skipped, result.images) == (3, 0, 10)
    assert learner.schedule.last_epoch == 3
    assert 0 <= result.wait_seconds <= result.seconds


def test_mean_loss_weighs_images(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    model = build_tiny(batchnorm=False).train()
    learner = build_learner(model, lr=1e-12)
    batch = make_batch(9)
    with torch.no_grad():
        whole = float(learner.loss(model(batch.images), batch.targets))
    assert train_one_epoch(learner, split(batch, [8, 1]), CPU).loss == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clipping_bounds_the_gradient_of_the_unscaled_loss(
    build_tiny: Tiny, make_batch: Make, build_learner: Build, precision: str
) -> None:
    steps = {}
    for clip in (None, 0.01):
        model = build_tiny(batchnorm=False).train()
        before = weights_of(model)
        learner = build_learner(model, lr=1.0, precision=precision)
        assert train_step(learner, [make_batch()], StepRules(precision=precision, clip_norm=clip))[1]
        moved = [(value - before[name]).flatten() for name, value in model.state_dict().items()]
        steps[clip] = torch.cat(moved)
    assert steps[None].norm() > 0.1
    assert float(steps[0.01].norm()) == pytest.approx(0.01, rel=1e-3)
    cosine = nn.functional.cosine_similarity(steps[None], steps[0.01], dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-4)


# --- moving average


def test_average_follows_the_weights_and_the_statistics(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    model = build_tiny().train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    learner = build_learner(model, lr=0.1, average=average)
    expected: dict[str, Tensor] = {}
    for seed in range(4):
        train_step(learner, [make_batch(seed=seed)], CPU)
        now = weights_of(model)
        expected = {n: 0.8 * expected[n] + 0.2 * v if expected else v for n, v in now.items() if v.is_floating_point()}
    assert learner.evaluated is average.module
    averaged = average.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value, msg=name)
    assert not torch.equal(averaged["backbone.body.layer1.running_mean"], now["backbone.body.layer1.running_mean"])


def test_average_stands_still_where_the_step_is_skipped(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    model = build_tiny().train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    learner = build_learner(model, average=average, loss=Poison({1}))
    train_step(learner, [make_batch()], CPU)
    before = weights_of(average.module)
    train_step(learner, [make_batch(seed=1)], CPU)
    assert same(before, average.module)


# --- half precision


def test_bf16_computes_in_bf16_and_keeps_float32_weights(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    model = build_tiny().train()
    seen: list[torch.dtype] = []
    model.backbone.register_forward_hook(lambda _, __, features: seen.append(features.dtype))
    learner = build_learner(model, name="adamw", precision="bf16")
    losses = [train_step(learner, [make_batch()], StepRules(precision="bf16"))[0] for _ in range(60)]
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses[-1] < 0.1 * losses[0]
    assert not learner.scaler.is_enabled()


def test_fp16_scales_the_loss_and_takes_the_step_of_fp32(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    steps, batch = {}, make_batch()
    for precision in ("fp32", "fp16"):
        model = build_tiny(batchnorm=False).train()
        before = weights_of(model)
        learner = build_learner(model, lr=1.0, precision=precision)
        gradients: list[Tensor] = []
        model.head.linear.bias.register_hook(gradients.append)
        assert train_step(learner, [batch], StepRules(precision=precision))[1]
        steps[precision] = torch.cat([(v - before[n]).flatten() for n, v in model.state_dict().items()])
        steps[f"{precision} gradient"] = gradients[0]
    torch.testing.assert_close(steps["fp16"], steps["fp32"], atol=5e-3, rtol=0.05)
    ratio = steps["fp16 gradient"].norm() / steps["fp32 gradient"].norm()
    assert float(ratio) == pytest.approx(65536, rel=0.01)


def test_fp16_overflow_lowers_the_scale_and_nothing_else(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    model = build_tiny().train()
    learner = build_learner(model, name="adamw", schedule="cosine", precision="fp16")
    rules = StepRules(precision="fp16", clip_norm=1.0)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # overflows float16 in the backward pass
    before = weights_of(model)
    loss, taken, _ = train_step(learner, [make_batch()], rules)
    assert (math.isfinite(loss), taken) == (True, False)
    assert learner.scaler.get_scale() == 2.0**39
    assert (learner.schedule.last_epoch, learner.nonfinite) == (0, 0)
    assert same(before, model)
    learner.scaler.update(2.0**8)
    assert train_step(learner, [make_batch()], rules)[1]
    assert learner.schedule.last_epoch == 1
    assert not same(before, model)


def test_fp16_finds_its_scale_within_an_epoch_and_counts_the_search(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    learner = build_learner(build_tiny().train(), precision="fp16")
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**34)
    result = train_one_epoch(learner, [make_batch()] * 30, StepRules(precision="fp16", max_nonfinite=2))
    assert result.skipped >= 5
    assert result.steps + result.skipped == 30
    assert learner.schedule.last_epoch == result.steps > 0
    assert math.isfinite(result.loss)


def test_fp16_that_never_fits_is_stopped(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    model = build_tiny().train()
    model.head.linear.weight.register_hook(lambda gradient: gradient * math.inf)
    learner = build_learner(model, precision="fp16")
    with pytest.raises(NonFiniteError, match="for 3 steps in a row"):
        train_one_epoch(learner, [make_batch()] * 60, StepRules(precision="fp16", max_nonfinite=3))
    assert learner.schedule.last_epoch == 0


# --- what is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_skips_the_step_and_leaves_no_trace(
    build_tiny: Tiny, make_batch: Make, build_learner: Build, value: float
) -> None:
    model = build_tiny().train()
    learner = build_learner(model, name="adamw", loss=Poison({0}, value))
    before = weights_of(model)
    loss, taken, _ = train_step(learner, [make_batch()], CPU)
    assert not math.isfinite(loss)
    assert not taken
    assert same(before, model)  # BatchNorm's running statistics included
    assert not learner.optimizer.state
    assert (learner.schedule.last_epoch, learner.nonfinite) == (0, 1)


@pytest.mark.parametrize("waits", [False, True])
def test_passes_go_on_behind_a_loss_that_is_not_finite_where_other_processes_wait_for_them(
    build_tiny: Tiny, make_batch: Make, build_learner: Build, waits: bool
) -> None:
    model = build_tiny().train()
    if waits:
        model.add_module("unused", nn.SyncBatchNorm(1))
    values, passes = iter((math.nan, 1.0)), []
    learner = build_learner(model, loss=lambda logits, _: logits.sum() * next(values))
    model.register_forward_hook(lambda *_: passes.append(1))
    loss, taken, images = train_step(learner, [make_batch(4), make_batch(4)], StepRules(accumulate=2))
    assert math.isnan(loss)
    assert (taken, images, len(passes)) == (False, 8, 2 if waits else 1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_a_group_is_not_added_to_the_next_step(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    batch = make_batch(8)
    poisoned, clean = build_tiny(batchnorm=False).train(), build_tiny(batchnorm=False).train()
    learner = build_learner(poisoned, loss=Poison({1}))
    train_step(learner, split(batch, [4, 4]), CPU)
    train_step(learner, [batch], CPU)
    train_step(build_learner(clean), [batch], CPU)
    assert same(weights_of(clean), poisoned)


def test_non_finite_gradient_of_a_finite_loss_skips_the_step(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    model = build_tiny().train()
    model.head.linear.weight.register_hook(lambda gradient: gradient * math.nan)
    before = weights_of(model)
    learner = build_learner(model)
    loss, taken, _ = train_step(learner, [make_batch()], StepRules(clip_norm=1.0))
    assert (math.isfinite(loss), taken, learner.nonfinite) == (True, False, 1)
    assert same(before, model)


def test_infinite_activation_does_not_stay_in_the_running_statistics(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    model = build_tiny().train()
    model.backbone.body.layer0.register_forward_hook(lambda _, __, out: out * math.inf)
    before = weights_of(model)
    assert not train_step(build_learner(model), [make_batch()], CPU)[1]
    assert same(before, model)


def test_skipped_steps_are_counted_and_training_goes_on(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    learner = build_learner(build_tiny().train(), loss=Poison({0, 1, 3, 4}))
    progress, seen = Progress(), []

    class Look(Keeper):
        def checkpoint_if_due(self, *, validated: bool = False) -> None:
            seen.append((progress.result.steps, progress.result.skipped))

    result = train_one_epoch(learner, [make_batch(4)] * 6, StepRules(max_nonfinite=3), progress, Look())
    assert seen == [(0, 1), (0, 2), (1, 2), (1, 3), (1, 4), (2, 4)]
    assert (result.images, learner.schedule.last_epoch) == (24, 2)
    assert math.isfinite(result.loss)


def test_too_many_in_a_row_stop_the_run(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    learner = build_learner(build_tiny().train(), loss=Poison({2, 3, 4, 5}))
    with pytest.raises(NonFiniteError, match=r"not finite for 4 steps in a row: lower optimizer.lr") as caught:
        train_one_epoch(learner, [make_batch(4)] * 9, StepRules(max_nonfinite=4))
    assert caught.value.exit_code == 70


def test_steps_in_a_row_are_counted_across_epochs(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    model = build_tiny()
    learner = build_learner(model, loss=Poison(set(range(100))))
    epochs = run(learner, [make_batch(4)] * 2, epochs=9, rules=StepRules(max_nonfinite=5))
    with pytest.raises(NonFiniteError, match="5 steps in a row"):
        list(epochs)


def test_epoch_without_a_finite_step_has_no_loss(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    learner = build_learner(build_tiny().train(), loss=Poison({0}))
    assert math.isnan(train_one_epoch(learner, [make_batch(4)], CPU).loss)


# --- prediction


@pytest.mark.parametrize("size", [1, 4, 11])
def test_predictions_are_complete_and_in_order_whatever_the_batches(
    build_tiny: Tiny, make_batch: Make, size: int
) -> None:
    model, batch = build_tiny().train(), make_batch(11)
    with torch.no_grad():
        expected = model.eval()(batch.images).double().numpy()
    shuffled = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    batches = [Batch(*(column[part] for column in batch)) for part in shuffled.split(size)]
    logits = predict_logits(model.train(), batches, CPU)
    assert (logits.shape, logits.dtype, model.training) == ((11, 3), np.float64, False)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


class Numbers(Dataset[Batch]):
    """Eleven images, each filled with its own number."""

    def __len__(self) -> int:
        return 11

    def __getitems__(self, positions: list[Position]) -> Batch:
        places = torch.tensor([position for _, position in positions])
        return Batch(places.float().view(-1, 1, 1, 1), torch.zeros(len(places), 1), places, torch.zeros(len(places), 0))


@pytest.mark.parametrize("size", [1, 4, 11])
def test_rows_are_predicted_in_the_dataset_s_order_through_the_change_asked_for(size: int) -> None:
    def double(batches: Iterable[Batch]) -> Iterator[Batch]:
        return (batch._replace(images=2 * batch.images) for batch in batches)

    options = PredictOptions(CPU, batch_size=size)
    assert predict_rows(nn.Flatten(), Numbers(), options).tolist() == [[float(k)] for k in range(11)]
    assert predict_rows(nn.Flatten(), Numbers(), options, through=double).tolist() == [[2.0 * k] for k in range(11)]


def test_clinical_columns_reach_a_model_that_takes_them(build_tiny: Tiny, make_batch: Make) -> None:
    batch = make_batch(4)._replace(clinical=torch.arange(8.0).view(4, 2))

    class Sum(nn.Module):
        def forward(self, images: Tensor, clinical: Tensor) -> Tensor:
            return clinical.sum(dim=1, keepdim=True)

    np.testing.assert_array_equal(predict_logits(Sum(), [batch], CPU)[:, 0], [1.0, 5.0, 9.0, 13.0])
    with pytest.raises(ValueError, match="takes only images"):
        predict_logits(build_tiny(), [batch], CPU)


def test_prediction_changes_nothing_and_leaves_training_possible(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    model = build_tiny()
    before = weights_of(model)
    for precision in ("fp32", "bf16", "fp16"):
        predict_logits(model, [make_batch()], StepRules(precision=precision))
    assert same(before, model)
    assert train_step(build_learner(model.train()), [make_batch()], CPU)[1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_travel_as_integers_in_the_layout_asked_for(dtype: torch.dtype, channels: int) -> None:
    images = torch.arange(2 * channels * 16).view(2, channels, 4, 4).to(dtype)
    moved = move_images(images, StepRules(channels_last=True))
    assert moved.dtype == dtype
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.int(), images.int())
    assert move_images(images, StepRules(channels_last=False)).is_contiguous()
    volumes = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    moved = move_images(volumes, StepRules(channels_last=True))
    assert torch.equal(moved, volumes)
    assert moved.is_contiguous(memory_format=torch.channels_last_3d)


def test_filters_have_the_layout_of_what_they_meet() -> None:
    model = nn.Sequential(nn.Conv3d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    move_model(model, StepRules(channels_last=True))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    move_model(model, StepRules(channels_last=False))
    assert all(value.is_contiguous() for value in model.state_dict().values())


def test_layout_does_not_change_what_is_computed(build_tiny: Tiny, make_batch: Make) -> None:
    model = build_tiny()
    plain = predict_logits(model, [make_batch()], StepRules(channels_last=False))
    model.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(predict_logits(model, [make_batch()], StepRules()), plain, atol=1e-5)


# --- epochs


def run(
    learner: Learner, batches: list[Batch], *, scores: list[float] | None = None, **settings: Any
) -> Iterator[tuple[int, int, int]]:
    """Yields (epoch, steps, best epoch) of a run whose validation scores are given."""
    left, progress = iter(scores or [0.0] * 100), Progress()
    seen: list[tuple[int, int, int]] = []

    class Log(Tracker):
        def write(self, row: dict[str, Any]) -> None:
            seen.append((row["epoch"] - 1, row["steps"], progress.best.epoch))

    validate = lambda model, batches: (next(left), {})
    train_epochs(
        learner, [batches], validate=validate, progress=progress, tracker=Log(Path("none"), TrainerConfig()), **settings
    )
    yield from seen


def test_patience_ends_the_run_and_the_best_epoch_is_kept(
    build_tiny: Tiny, make_batch: Make, build_learner: Build
) -> None:
    learner = build_learner(build_tiny())
    scores = [0.5, 0.7, 0.6, 0.7, 0.65, 0.9]
    assert list(run(learner, [make_batch(4)], scores=scores, patience=3)) == [
        (0, 1, 0), (1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1),
    ]  # fmt: skip


def test_best_weights_are_those_of_the_best_epoch(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    model = build_tiny()
    states: list[dict[str, Tensor]] = []
    scores = iter([0.1, 0.9, 0.3])

    def validate(evaluated: nn.Module, batches: Iterable[Batch]) -> tuple[float, dict[str, float]]:
        states.append(weights_of(evaluated))
        return next(scores), {}

    best = train_epochs(build_learner(model, lr=0.1), [[make_batch()]], epochs=3, validate=validate).best
    assert (best.epoch, best.score) == (1, 0.9)
    assert best.state is not None
    assert all(torch.equal(best.state[name], value) for name, value in states[1].items())
    assert not all(torch.equal(best.state[name], value) for name, value in states[2].items())


def test_steps_end_the_run_in_the_middle_of_an_epoch(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    learner = build_learner(build_tiny())
    assert list(run(learner, [make_batch(4)] * 3, max_steps=5)) == [(0, 3, 0), (1, 2, 0)]
    assert learner.schedule.last_epoch == 5


def test_undefined_and_non_finite_scores() -> None:
    best, model = Best(), nn.Linear(1, 1)
    assert not best.update(math.nan, 0, model)  # outputs were not finite: not even the first is kept
    assert best.state is None
    assert best.update(-math.inf, 1, model)  # the metric was undefined: better than nothing
    assert not best.update(-math.inf, 2, model)
    assert not best.update(math.nan, 3, model)
    assert best.update(-5.0, 4, model)
    assert (best.epoch, best.score) == (4, -5.0)


def test_of_epochs_with_one_score_the_lowest_loss_is_kept() -> None:
    best, model = Best(), nn.Linear(1, 1)
    assert best.update(1.0, 0, model, loss=0.7)
    assert best.update(1.0, 1, model, loss=0.4)  # the same AUC of few images, but better trained
    assert not best.update(1.0, 2, model, loss=0.5)
    assert not best.update(0.9, 3, model, loss=0.1)
    assert not best.update(1.0, 4, model, loss=0.4)  # nothing has changed: patience may end it
    assert (best.epoch, best.score, best.loss) == (1, 1.0, 0.4)


def test_training_mode_is_set_before_every_epoch(build_tiny: Tiny, make_batch: Make, build_learner: Build) -> None:
    model = build_tiny()
    modes: list[bool] = []
    asked: list[int] = []

    def set_mode(epoch: int) -> None:
        asked.append(epoch)
        model.train()

    model.backbone.register_forward_hook(lambda module, *_: modes.append(module.training))
    progress = train_epochs(
        build_learner(model),
        [[make_batch()]],
        epochs=2,
        set_modes=set_mode,
        validate=lambda evaluated, _: (float(predict_logits(evaluated, [make_batch()], CPU).mean()), {}),
    )
    assert progress.epoch == 2
    assert modes == [True, False, True, False]
    assert asked == [0, 1]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_one_batch_overfits_on_the_gpu(
    build_tiny: Tiny, make_batch: Make, build_learner: Build, precision: str, compiled: bool
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = build_tiny().to("cuda", memory_format=torch.channels_last).train()
    learner = build_learner(model, name="adamw", lr=0.01, precision=precision)
    learner.scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
    learner.forward = torch.compile(model) if compiled else model
    rules = StepRules(device="cuda", precision=precision)
    losses = [train_step(learner, [make_batch()], rules)[0] for _ in range(150)]
    assert losses[-1] < 0.05 < losses[0]
    assert predict_logits(model, [make_batch()], rules).shape == (8, 3)
