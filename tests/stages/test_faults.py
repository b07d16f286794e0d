"""Steps that are not finite: described, left out, and after too many in a row once back to the last good checkpoint."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from medcls.data import limits
from medcls.data.dataset import StoreDataset
from medcls.data.loaders import WorkerError
from medcls.data.store import Store
from medcls.errors import ConfigError
from medcls.files import read_json, read_json_lines, sha256_file
from medcls.train.learner import Recipe
from medcls.training.checkpoint_manager import CheckpointManager
from medcls.training.loop import NonFiniteError
from medcls.training.losses import build_loss
from medcls.training.preemption import PreemptedError

pytestmark = pytest.mark.usefixtures("tiny2d")
Run = Callable[..., Path]
# Three epochs of three steps, a checkpoint after each of them.
SETTINGS = (
    "schedule=constant",
    "trainer.epochs=3",
    "trainer.max_steps=9",
    "trainer.max_nonfinite=2",
    "checkpoint.minutes=0",
)


class Killed(BaseException):
    """What cannot be caught: as if the process were gone."""


def spoil(monkeypatch: pytest.MonkeyPatch, *, is_bad: Callable[[int, float], bool]) -> None:
    """Makes the loss NaN where `is_bad(steps taken, learning rate by that of the beginning)`."""
    build = Recipe.build_learner

    def build_spoilt(*args: Any, **kwargs: Any) -> Any:
        learner = build(*args, **kwargs)
        (first, *_) = learner.rates.values()

        def loss(logits: Tensor, targets: Tensor) -> Tensor:
            value = build_loss("multiclass")(logits, targets)
            bad = is_bad(learner.schedule.last_epoch, next(iter(learner.rates.values())) / first)
            return value * math.nan if bad else value

        learner.loss = loss
        return learner

    monkeypatch.setattr(Recipe, "build_learner", build_spoilt)


def test_a_step_that_is_not_finite_leaves_a_capsule_and_training_goes_on(
    run_train: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []
    spoil(monkeypatch, is_bad=lambda step, rate: step == 4 and (calls.append(step) or len(calls) <= 2))
    run = run_train(tmp_path / "run", *SETTINGS)
    (path,) = (run / "faults").iterdir()
    capsule = read_json(path)
    assert path.name == "step-0000000005.json"
    assert (capsule["epoch"], capsule["step"], capsule["where"], capsule["loss"]) == (2, 5, "loss", "nan")
    ids = store.read("image_id").column(0).to_pylist()
    assert [[ids[row] for row in rows] for rows in capsule["rows"]] == capsule["image_ids"]
    assert len(capsule["image_ids"][0]) == 8
    assert "notice: step 5 was not finite (first in loss) and is left out" in capsys.readouterr().err
    assert [row["skipped_steps"] for row in read_json_lines(run / "metrics.jsonl")] == [0, 1, 0]


def test_too_many_in_a_row_go_back_once_to_a_tenth_of_the_rate(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, is_bad=lambda step, rate: step >= 4 and rate > 0.2)
    run = run_train(tmp_path / "run", *SETTINGS)
    err = capsys.readouterr().err
    assert "2 steps in a row" in err
    assert "back to step 4 (step-0000000004) once, from there at a tenth of the learning rate" in err
    rows = read_json_lines(run / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["skipped_steps"] for row in rows] == [0, 0, 0]
    assert rows[2]["lr"]["head"] == pytest.approx(0.1 * rows[0]["lr"]["head"])
    assert read_json(run / "environment.json")["retreats"] == [{"from_step": 6, "to_step": 4, "lr_factor": 0.1}]
    assert sorted(path.name for path in (run / "faults").iterdir()) == [f"step-000000000{n}.json" for n in (5, 6)]


@pytest.mark.parametrize("at", [6, 7, 8, 11])
def test_broken_off_before_and_after_going_back_it_is_the_same_model(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    spoil(monkeypatch, is_bad=lambda step, rate: step >= 4 and rate > 0.2)
    whole = run_train(tmp_path / "whole", *SETTINGS)
    looks = iter(range(1, 1000))
    original = CheckpointManager.checkpoint_if_due

    def look(self: CheckpointManager, *, validated: bool = False) -> None:
        original(self, validated=validated)
        if next(looks) == at:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointManager, "checkpoint_if_due", look)
        with pytest.raises(Killed):
            run_train(tmp_path / "run", *SETTINGS)
    run = run_train(tmp_path / "run", *SETTINGS)
    assert sha256_file(run / "model.safetensors") == sha256_file(whole / "model.safetensors")


def test_the_second_time_it_ends_and_says_where_the_capsules_lie(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, is_bad=lambda step, rate: step >= 4)
    with pytest.raises(NonFiniteError, match=rf"again, at a tenth of the rate; {tmp_path}/run/faults names the images"):
        run_train(tmp_path / "run", *SETTINGS)
    names = sorted(path.name for path in (tmp_path / "run" / "faults").iterdir())
    assert names == [f"step-000000000{n}{again}.json" for n in (5, 6) for again in ("-lower-rate", "")]
    # The same command finds the same, and makes no model of it.
    with pytest.raises(NonFiniteError, match="again, at a tenth of the rate"):
        run_train(tmp_path / "run", *SETTINGS)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_without_a_checkpoint_it_ends_at_once(run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, is_bad=lambda step, rate: True)
    with pytest.raises(NonFiniteError, match=r"for 2 steps in a row.* \(with no checkpoint to go back to") as caught:
        run_train(tmp_path / "run", *SETTINGS)
    assert caught.value.exit_code == 70
    assert len(list((tmp_path / "run" / "faults").iterdir())) == 2


def test_few_capsules_are_kept(run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, is_bad=lambda step, rate: True)
    with pytest.raises(NonFiniteError):
        run_train(tmp_path / "run", *SETTINGS, "trainer.max_nonfinite=9")
    assert len(list((tmp_path / "run" / "faults").iterdir())) == 5


def test_pretraining_goes_back_too(
    compose_job: Callable[..., Any], volume_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medcls.pretrain import pretrain as pretraining

    build = pretraining.build_learner

    def build_spoilt(*args: Any, **kwargs: Any) -> Any:
        learner = build(*args, **kwargs)
        original, first = learner.loss, next(iter(learner.rates.values()))

        def loss(pairs: Tensor, targets: Tensor) -> Tensor:
            bad = learner.schedule.last_epoch >= 2 and next(iter(learner.rates.values())) > 0.5 * first
            return original(pairs, targets) * (math.nan if bad and pairs.requires_grad else 1.0)

        learner.loss = loss
        return learner

    monkeypatch.setattr(pretraining, "build_learner", build_spoilt)
    job = compose_job(
        "pretrain", f"store={volume_store.folder}", f"run={tmp_path / 'run'}", "model=autoencoder3d", "workers=0",
        "device=cpu", "trainer.batch_size=4", "trainer.epochs=2", "trainer.max_nonfinite=2", "trainer.max_steps=4",
        "checkpoint.minutes=0", "schedule=constant", "figures=1",
    )  # fmt: skip
    pretraining.pretrain(job)
    assert len(read_json(tmp_path / "run" / "environment.json")["retreats"]) == 1


def test_out_of_memory_is_said_once_and_kept_in_the_log(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = Recipe.build_learner

    def build_limited(*args: Any, **kwargs: Any) -> Any:
        learner = build(*args, **kwargs)
        forward = learner.forward

        def limited(images: Tensor) -> Tensor:
            if len(images) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(images)

        learner.forward = limited
        return learner

    monkeypatch.setattr(Recipe, "build_learner", build_limited)
    run = run_train(tmp_path / "run", *SETTINGS)
    err = capsys.readouterr().err
    assert err.count("out of memory in step 1: from here on at most 4 images go through the network at once") == 1
    assert [row["images_at_once"] for row in read_json_lines(run / "metrics.jsonl")] == [4, 4, 4]


def kill_workers(monkeypatch: pytest.MonkeyPatch, folder: Path, *, epoch: int, times: int) -> None:
    """Loading processes end by a signal at the first batch of an epoch, the first `times` times."""
    read = StoreDataset.__getitems__

    def die(self: StoreDataset, positions: Any) -> Any:
        marks = len(list(folder.glob("died-*")))
        if get_worker_info() is not None and positions[0][0] == epoch and marks < times:
            (folder / f"died-{marks}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, positions)

    monkeypatch.setattr(StoreDataset, "__getitems__", die)


def test_loading_process_that_dies_once_changes_no_bit(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run_train(tmp_path / "whole", *SETTINGS, "augment=none")
    kill_workers(monkeypatch, tmp_path, epoch=1, times=1)
    run = run_train(tmp_path / "run", *SETTINGS, "workers=1", "augment=none")
    assert sha256_file(run / "model.safetensors") == sha256_file(whole / "model.safetensors")
    assert "a loading process died after 3 steps" in capsys.readouterr().err


def test_second_death_keeps_the_steps_and_asks_for_another_start(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*SETTINGS, "augment=none", "workers=1", "checkpoint.minutes=1000")
    whole = run_train(tmp_path / "whole", *settings)
    kill_workers(monkeypatch, tmp_path, epoch=1, times=4)
    with pytest.raises(PreemptedError, match=r"after 3 steps .* for the second time: check whether /dev/shm") as caught:
        run_train(tmp_path / "run", *settings)
    assert caught.value.exit_code == 75
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000000003"]
    with pytest.raises(WorkerError, match="twice without a step between") as failed:
        run_train(tmp_path / "run", *settings)
    assert failed.value.exit_code == 70
    run = run_train(tmp_path / "run", *settings)
    assert sha256_file(run / "model.safetensors") == sha256_file(whole / "model.safetensors")


@pytest.mark.parametrize(("free", "said"), [(2 * 2 * 2 * 8 * 1024, "may"), (2 * 2 * 2 * 8 * 1024 - 1, "must")])
def test_room_for_loading_processes_is_looked_at_before_the_first_step(
    run_train: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free: int,
    said: str,
) -> None:
    """Two processes, two batches each of 2 x 8 images of 32 x 32 bytes in validation."""
    monkeypatch.setattr(limits, "read_shared_free", lambda: free)
    if said == "must":
        with pytest.raises(ConfigError, match=r"workers=2: /dev/shm has 0 MiB free, and batches of 0.0 MiB take up to"):
            run_train(tmp_path / "run", *SETTINGS, "workers=2")
    else:
        run_train(tmp_path / "run", *SETTINGS, "workers=2", "trainer.max_steps=1")
        assert "notice: workers=2: /dev/shm has 0 MiB free" in capsys.readouterr().err
