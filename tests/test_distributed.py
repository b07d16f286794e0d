"""Two processes do what one does; a disagreement is an error in both."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medcls import distributed
from medcls.reproducibility import draw_seed
from medcls.training.forward import predict_logits
from medcls.training.state import StepRules
from tests import ranks

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ranks", str(out)],
            cwd=ROOT,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_sums_and_decisions_are_of_both(seen: list[dict[str, Any]]) -> None:
    for each in seen:
        assert each["add_up"] == [3.0, 1.0]
        assert each["any"] == [True, False]
        assert each["summed"] == [[[0.75] * 3] * 2, [0.0, 0.75, 1.5, 2.25], [0.5]]


def test_rows_are_gathered_by_position_each_exactly_once(seen: list[dict[str, Any]]) -> None:
    for each in seen:
        assert each["gathered"] == torch.arange(10.0).view(5, 2).tolist()
        assert "5 of 5 rows were evaluated twice or not at all" in each["twice"]
        assert "3 of 5 rows were evaluated twice or not at all" in each["missing"]


def test_different_content_is_an_error_in_both(seen: list[dict[str, Any]]) -> None:
    for each in seen:
        assert "the processes have different weights" in each["differ"]
        assert each["same"] == ""


@pytest.mark.parametrize("name", list(ranks.RULES))
def test_two_processes_train_as_one(seen: list[dict[str, Any]], name: str) -> None:
    learner, losses = ranks.fit((0, 1), ranks.RULES[name])
    weights = ranks.flatten(learner.model)
    assert seen[0][name]["weights"] == seen[1][name]["weights"]
    assert seen[0][name]["losses"] == seen[1][name]["losses"]
    # Sums in another order; half precision has 11 bits.
    tolerance = 2e-4 if name == "fp16" else 2e-6
    np.testing.assert_allclose(seen[0][name]["losses"], losses, rtol=tolerance)
    np.testing.assert_allclose(seen[0][name]["weights"], weights, rtol=0, atol=tolerance)
    assert not np.allclose(weights, ranks.flatten(ranks.build().model), rtol=0, atol=20 * tolerance)
    assert sum(losses[2::3]) == 2 * ranks.IMAGES


def test_predictions_of_parts_are_those_of_the_whole(seen: list[dict[str, Any]]) -> None:
    whole = predict_logits(ranks.build().model, [ranks.make_images()], StepRules())
    for each in seen:
        np.testing.assert_allclose(each["predicted"], whole, rtol=1e-5, atol=1e-6)


def test_step_that_is_not_finite_in_one_is_skipped_by_both(seen: list[dict[str, Any]]) -> None:
    for each in seen:
        assert each["poisoned"]["taken"] == [False, True]
        assert each["poisoned"]["unchanged"]
    assert seen[0]["poisoned"]["weights"] == seen[1]["poisoned"]["weights"]


def test_running_statistics_are_averaged_where_they_are_learnt(seen: list[dict[str, Any]]) -> None:
    for rank, each in enumerate(seen):
        assert each["statistics"] == [[0.75, 1.5], [1.0, 2.0], [float(rank)]]


def test_each_draws_for_its_own_images_and_the_first_as_one_process(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["seed"] == draw_seed("step", 0, 0, 0)
    assert seen[0]["seed"] != seen[1]["seed"]


def test_first_goes_ahead(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["order"] == []
    assert seen[1]["order"] == ["0.here"]


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Variables that other launchers leave behind, without torchrun's own.
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert (distributed.get_rank(), distributed.count_ranks(), distributed.is_first()) == (0, 1, True)
    assert distributed.add_up(0.1, 0.2) == (0.1, 0.2)
    assert distributed.any_rank(True, False) == (True, False)
    tensor = torch.tensor([0.1])
    distributed.sum_tensors([tensor], share=0.5)
    assert tensor.tolist() == torch.tensor([0.1]).tolist()
    with distributed.join_ranks(), distributed.first_goes_ahead():
        distributed.check_same("x", what="anything")
    with pytest.raises(distributed.DisagreementError):
        distributed.gather_rows(torch.zeros(2, 1), torch.tensor([0, 0]), total=2)
