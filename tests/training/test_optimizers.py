from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from medcls.config import ScheduleConfig
from medcls.errors import ConfigError
from medcls.models.classifier import Classifier
from medcls.training.optimizers import build_average, build_optimizer, build_schedule, lr_factor
from medcls.training.state import Learner


def build(
    name: str = "cosine", *, epochs: int = 4, steps_per_epoch: int = 5, max_steps: int | None = None, **more: Any
) -> LambdaLR:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.01)]
    optimizer = build_optimizer("sgd", groups, lr=0.1)
    config = ScheduleConfig(name, **more)
    return build_schedule(optimizer, config, epochs=epochs, steps_per_epoch=steps_per_epoch, max_steps=max_steps)


def walk(schedule: LambdaLR, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr())
        schedule.optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizers_by_name_keep_each_groups_own_settings(name: str, kind: type) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [parameters[0]], "lr": 0.5, "weight_decay": 0.1}, {"params": [parameters[1]]}]
    optimizer = build_optimizer(name, groups, lr=0.25, momentum=0.8)
    assert type(optimizer) is kind
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    if name == "sgd":
        assert (optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["nesterov"]) == (0.8, True)


def test_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.name=lamb: expected sgd, adam, adamw or adadelta"):
        build_optimizer("lamb", [], lr=0.1)


def test_cosine_falls_from_one_to_zero_at_its_end() -> None:
    factors = [lr_factor(step, name="cosine", total_steps=20) for step in range(21)]
    assert factors == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 20)) for step in range(21)])
    assert (factors[0], factors[20], lr_factor(99, name="cosine", total_steps=20)) == (1.0, 0.0, 0.0)


def test_warmup_rises_linearly_to_the_full_rate() -> None:
    factors = [lr_factor(step, name="cosine", total_steps=20, warmup_steps=4) for step in range(20)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert lr_factor(20, name="cosine", total_steps=20, warmup_steps=4) == pytest.approx(0, abs=1e-12)


def test_steps_and_constant() -> None:
    settings = {"name": "step", "total_steps": 9, "milestones": [3, 6], "step_factor": 0.1}
    factors = [lr_factor(step, **settings) for step in range(9)]  # type: ignore[arg-type]
    assert factors == pytest.approx([1] * 3 + [0.1] * 3 + [0.01] * 3)
    assert {lr_factor(step, name="constant", total_steps=9) for step in range(20)} == {1.0}


def test_every_group_follows_the_same_factor_of_its_own_rate() -> None:
    rates = walk(build(warmup_epochs=1), 20)
    expected = [lr_factor(step, name="cosine", total_steps=20, warmup_steps=5) for step in range(20)]
    assert [first for first, _ in rates] == pytest.approx([0.1 * factor for factor in expected])
    assert [second for _, second in rates] == pytest.approx([0.01 * factor for factor in expected])


def test_rate_is_a_function_of_the_step_alone() -> None:
    walked = walk(build("step", step_epochs=[1.5], step_factor=0.5), 20)
    jumped = build("step", step_epochs=[1.5], step_factor=0.5)
    jumped.optimizer.step()
    state = jumped.state_dict() | {"last_epoch": 12}
    jumped.load_state_dict(state)
    jumped.step()
    assert jumped.get_last_lr() == walked[13]
    assert [first for first, _ in walked] == pytest.approx([0.1] * 8 + [0.05] * 12)


def test_training_ends_at_the_end_of_the_schedule() -> None:
    schedule = build(epochs=3, steps_per_epoch=4, warmup_epochs=1)
    walk(schedule, 12)
    assert schedule.get_last_lr() == pytest.approx([0, 0], abs=1e-12)


def test_short_trainings_are_not_all_warmup() -> None:
    assert walk(build(epochs=1, steps_per_epoch=4, warmup_epochs=1), 4)[-1][0] == pytest.approx(0.1)
    assert walk(build(epochs=1, steps_per_epoch=1, warmup_epochs=1), 1) == [[0.1, 0.01]]


def test_warmup_longer_than_the_training_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"schedule.warmup_epochs=5: trainer.epochs=4 ends before the warm-up: lower it, or raise trainer.epochs",
    ):
        build(warmup_epochs=5)


def test_adadelta_takes_the_steps_of_the_authors_code() -> None:
    """delta = sqrt(D + eps) / sqrt(G + eps) * g, with running means D of squared steps and G of squared gradients."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build_optimizer("adadelta", [{"params": [parameter], "weight_decay": 0.0}], lr=1.0)
    expected, squares, steps = parameter.detach().double(), torch.zeros(2).double(), torch.zeros(2).double()
    for gradient in ([0.3, -1.0], [0.1, 2.0], [-0.5, 0.01]):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        g = torch.tensor(gradient).double()
        squares = 0.95 * squares + 0.05 * g**2
        step = (steps + 1e-6).sqrt() / (squares + 1e-6).sqrt() * g
        steps = 0.95 * steps + 0.05 * step**2
        expected = expected - step
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-8)


def test_cosine_ends_with_max_steps() -> None:
    rates = walk(build(max_steps=8), 9)
    assert [first for first, _ in rates] == pytest.approx(
        [0.1 * lr_factor(step, name="cosine", total_steps=8) for step in range(9)]
    )
    assert rates[8] == pytest.approx([0, 0], abs=1e-12)


def test_average_with_a_decay_longer_than_the_training_follows_the_weights() -> None:
    model = torch.nn.Linear(1, 1)
    average = build_average(model, decay=0.9999)
    assert average is not None
    for step in range(100):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update_parameters(model)
    # By hand; without a warm-up of the decay it would be 0.5: the weights of the first step.
    expected = 0.0
    for step in range(1, 100):
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * step
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert expected > 80


def test_logged_rate_is_the_one_of_the_last_step(
    build_tiny: Callable[..., Classifier], build_learner: Callable[..., Learner]
) -> None:
    learner = build_learner(build_tiny(), schedule="cosine", lr=0.1)
    assert learner.last_rates == {"all": 0.1}
    for _ in range(10):
        learner.optimizer.step()
        learner.schedule.step()
    # Ten steps of a cosine of ten: the tenth was made at this rate, and not at 0, where the schedule stands now.
    assert learner.last_rates["all"] == pytest.approx(0.1 * lr_factor(9, name="cosine", total_steps=10))
    assert learner.rates["all"] == pytest.approx(0, abs=1e-12)
