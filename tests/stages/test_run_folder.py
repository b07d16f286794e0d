from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medcls.config import OptimizerConfig, TaskConfig, TrainerConfig, TrainJob
from medcls.errors import ConfigError, UsageError
from medcls.files import atomic_file, read_json, write_json
from medcls.train import claim
from medcls.train.claim import request_run
from tests.failing_disk import Disk, KilledError


def claim_run(job: TrainJob) -> tuple[Path, bool]:
    """The run folder of a job, and whether it holds the finished run."""
    asked = request_run(job)
    return asked.folder, claim.claim_run(asked)


def start_run(job: TrainJob, *, environment: dict[str, Any]) -> None:
    claim.start_run(request_run(job), environment=environment)


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    task = TaskConfig(kind="multiclass", classes={0: 0, 1: 0, 2: 1})
    return TrainJob(store="store", run=str(tmp_path / "run"), task=task)


def finish(job: TrainJob) -> Path:
    run, _ = claim_run(job)
    start_run(job, environment={})
    (run / "model.safetensors").write_bytes(b"")
    return run


def test_new_and_empty_folders_are_free(job: TrainJob, tmp_path: Path) -> None:
    assert claim_run(job) == (tmp_path / "run", False)
    (tmp_path / "run").mkdir()
    assert claim_run(job) == (tmp_path / "run", False)


def test_without_a_folder_there_is_no_run() -> None:
    with pytest.raises(UsageError, match="run=DIR is missing"):
        claim_run(TrainJob(store="store"))


def test_finished_run_of_the_same_settings_is_known(job: TrainJob) -> None:
    # task.classes={0: 0, …} has numbers for keys, which JSON turns into text.
    run = finish(job)
    assert claim_run(job) == (run, True)
    assert claim_run(replace(job, workers=7, weights_dir="/elsewhere")) == (run, True)


def test_unfinished_run_of_the_same_settings_starts_again(job: TrainJob) -> None:
    run = finish(job)
    (run / "model.safetensors").unlink()
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "tensorboard").mkdir()
    assert claim_run(job) == (run, False)
    start_run(job, environment={"python": "3.11"})
    assert sorted(path.name for path in run.iterdir()) == ["config", "environment.json"]
    assert read_json(run / "environment.json")["python"] == "3.11"


@pytest.mark.parametrize(("finished", "state"), [(True, "a finished"), (False, "an unfinished")])
def test_other_settings_are_refused_and_named(job: TrainJob, finished: bool, state: str) -> None:
    run = finish(job)
    if not finished:
        (run / "model.safetensors").unlink()
    other = replace(job, seed=3, optimizer=OptimizerConfig(lr=0.5))
    with pytest.raises(ConfigError, match=f"holds {state} run with other settings") as caught:
        claim_run(other)
    assert "(optimizer.lr: 0.001 -> 0.5; seed: 0 -> 3)" in str(caught.value)
    assert caught.value.exit_code == 78


def test_store_and_weights_that_lie_elsewhere_are_the_same_run(job: TrainJob) -> None:
    """Their content is compared by whoever goes on."""
    job.model.weights = "there/run"
    run = finish(job)
    assert claim_run(replace(job, store="moved", model=replace(job.model, weights="here/run"))) == (run, True)
    with pytest.raises(ConfigError, match=r"\(model.weights: of a file -> imagenet\)"):
        claim_run(replace(job, model=replace(job.model, weights="imagenet")))


def test_finished_run_is_not_made_longer_and_the_way_on_is_named(job: TrainJob) -> None:
    run = finish(job)
    longer = replace(job, trainer=TrainerConfig(epochs=20))
    named = (
        rf"run={run} is finished \(trainer.epochs: 10 -> 20\): .* model.weights={run} transfer.val_seen=allow starts"
    )
    with pytest.raises(ConfigError, match=named):
        claim_run(longer)
    with pytest.raises(ConfigError, match="holds a finished run with other settings"):
        claim_run(replace(longer, seed=3))
    (run / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds an unfinished run with other settings"):
        claim_run(longer)


def test_other_classes_are_named(job: TrainJob) -> None:
    finish(job)
    with pytest.raises(ConfigError, match=r"task\.classes\.1: 0 -> 1"):
        claim_run(replace(job, task=TaskConfig(classes={0: 0, 1: 1, 2: 1})))


@pytest.mark.parametrize("name", ["thesis.docx", "model.safetensors"])
def test_folder_of_somebody_else_is_left_alone(job: TrainJob, name: str) -> None:
    run = Path(str(job.run))
    run.mkdir()
    (run / name).write_text("mine")
    with pytest.raises(ConfigError, match="not a run: choose an empty folder"):
        claim_run(job)
    assert (run / name).read_text() == "mine"


def test_starting_again_deletes_nothing_that_is_not_ours(job: TrainJob) -> None:
    run = finish(job)
    (run / "model.safetensors").unlink()
    (run / "notes.txt").write_text("mine")
    start_run(job, environment={})
    assert (run / "notes.txt").read_text() == "mine"


def test_file_in_the_place_of_the_folder_is_refused(job: TrainJob) -> None:
    Path(str(job.run)).write_text("")
    with pytest.raises(ConfigError, match="is a file: choose a folder"):
        claim_run(job)


def test_configuration_is_written_as_it_was_composed(job: TrainJob, compose_job: Callable[..., Any]) -> None:
    from omegaconf import OmegaConf

    run = finish(job)
    content = OmegaConf.load(run / "config" / "config.yaml")
    assert (content.store, content.optimizer.lr, dict(content.task.classes)) == ("store", 0.001, {0: 0, 1: 0, 2: 1})
    assert "run" not in read_json(run / "config" / "settings.json")


def test_killed_in_its_first_write_it_begins_again(job: TrainJob) -> None:
    run = Path(str(job.run))
    run.mkdir()
    (run / ".partial-x8.holder.json").write_text("{")
    assert claim_run(job) == (run, False)
    (run / "config").mkdir()
    assert claim_run(job) == (run, False)
    (run / "config" / ".partial-x8settings.json").write_text('{"st')
    assert claim_run(job) == (run, False)
    (run / "config" / "mine.yaml").write_text("")
    with pytest.raises(ConfigError, match="but not a run"):
        claim_run(job)


def test_killed_while_it_is_emptied_it_still_is_a_run(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finish(job)
    (run / "model.safetensors").unlink()
    monkeypatch.setattr(claim, "write_json", lambda path, content: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start_run(job, environment={})
    assert claim_run(job) == (run, False)


@pytest.mark.parametrize("finished", [False, True])
def test_half_written_files_are_cleared_and_those_being_written_stay(job: TrainJob, finished: bool) -> None:
    run = finish(job)
    if not finished:
        (run / "model.safetensors").unlink()
    (run / "checkpoints" / ".partial-a").mkdir(parents=True)
    (run / "checkpoints" / ".partial-a" / "tensors.safetensors").write_bytes(b"half")
    names = [".partial-bmetrics.jsonl", "config/.partial-cconfig.yaml", "checkpoints/.partial-a"]
    for name in names[:2]:
        (run / name).write_bytes(b"half")
    with atomic_file(run / "operating_points.json") as file:
        # An evaluation of a finished run may be writing.
        file.write(b"{}")
        with claim.hold_run(request_run(job)) as held:
            assert held == finished
    assert [name for name in names if (run / name).exists()] == []
    assert (run / "operating_points.json").read_bytes() == b"{}"


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_setting_that_an_older_version_did_not_have_counts_as_its_default(
    command: str, compose_job: Callable[..., Any], tmp_path: Path
) -> None:
    job = compose_job(command, "store=store", f"run={tmp_path / 'run'}")
    (tmp_path / "run" / "config").mkdir(parents=True)
    start_run(job, environment={})
    settings = tmp_path / "run" / "config" / "settings.json"
    content = read_json(settings)
    for new in ("auto", "sides"):
        del content["augment"][new]
    if command == "train":
        del content["task"]["order"], content["task"]["positive"]
        job.augment.auto = False
    write_json(settings, content)
    assert claim_run(job) == (tmp_path / "run", False)
    job.augment.sides = "ignore"
    with pytest.raises(ConfigError, match=r"augment\.sides: refuse -> ignore"):
        claim_run(job)


def fill(run: Path) -> None:
    """What an unfinished training and a checkpoint of it leave; the checkpoint is not valid."""
    for name in ("metrics.jsonl", "patients.parquet", "images.parquet", "ancestors.parquet", "contact_sheet.png"):
        (run / name).write_text(name)
    for name in ("checkpoints/step-0000000003", "faults", "tensorboard"):
        (run / name).mkdir(parents=True)
        (run / name / "state.json").write_text("{}")
        (run / name / "tensors.safetensors").write_text("")


def test_start_killed_at_any_step_can_be_started_again(job: TrainJob, tmp_path: Path) -> None:
    for steps in itertools.count(1):
        job = replace(job, run=str(tmp_path / str(steps)))
        run = finish(job)
        (run / "model.safetensors").unlink()
        fill(run)
        with Disk(run, kill_at=steps) as disk, contextlib.suppress(KilledError):
            start_run(job, environment={"python": "3.11"})
        # A run that has a checkpoint is resumed, which needs the rest: it is the first to go, and goes at once.
        whole = (run / "checkpoints" / "step-0000000003").exists()
        parts = [(run / "checkpoints" / "step-0000000003" / part).exists() for part in ("state.json",)]
        assert parts == [whole]
        assert not whole or all((run / name).exists() for name in ("environment.json", "metrics.jsonl"))
        with claim.hold_run(request_run(job)) as held:
            assert not held
            start_run(job, environment={"python": "3.11"})
            names = sorted(path.name for path in run.iterdir())
        assert names == [".holder.json", "config", "environment.json"]
        if len(disk.steps) < steps:
            break
    assert steps > 25
