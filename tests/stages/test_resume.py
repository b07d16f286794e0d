"""Whatever ends a training, the same command goes on and gives the same model, bit for bit."""

from __future__ import annotations

import errno
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from medcls.config import TrainJob
from medcls.data.store import Store
from medcls.errors import ConfigError, MissingInputError, ReadError, WriteError
from medcls.files import read_json, read_json_lines, sha256_file
from medcls.train import session
from medcls.training.checkpoint_manager import CheckpointManager, find_checkpoint
from medcls.training.checkpoints import name_checkpoint, write_checkpoint
from medcls.training.preemption import PreemptedError, Watch
from tests.failing_disk import Disk

Run = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
# Three epochs of three steps, and a checkpoint after each of them.
SETTINGS = (
    "trainer.epochs=3",
    "trainer.max_steps=9",
    "trainer.ema_decay=0.9",
    "model.dropout=0.3",
    "checkpoint.minutes=0",
)


class Killed(BaseException):
    """What cannot be caught: as if the process were gone."""


# A checkpoint after each step of a real network takes seconds; what is saved and resumed is the same of a tiny one.
tiny = pytest.mark.usefixtures("tiny2d")


@pytest.fixture(scope="module")
def whole(
    run_train: Run, patch_tiny2d: Callable[[pytest.MonkeyPatch], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An uninterrupted run of the tiny network."""
    with pytest.MonkeyPatch.context() as patch:
        patch_tiny2d(patch)
        return run_train(tmp_path_factory.mktemp("whole") / "run", *SETTINGS)


def break_off(monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
    """Ends the process after so many looks of the manager: steps, epochs, and batches of validation."""
    looks = iter(range(1, 1000))

    def count(look: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if next(looks) == at:
                raise Killed
            return look(*args, **kwargs)

        return counted

    monkeypatch.setattr(CheckpointManager, "checkpoint_if_due", count(CheckpointManager.checkpoint_if_due))
    monkeypatch.setattr(Watch, "step", count(Watch.step))


@tiny
@pytest.mark.parametrize("at", [1, 2, 5, 8, 10, 13, 20, 26])
def test_broken_off_run_goes_on_and_ends_with_the_same_model(
    run_train: Run, whole: Path, tmp_path: Path, at: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, at=at)
        with pytest.raises(Killed):
            run_train(tmp_path / "run", *SETTINGS)
    run = run_train(tmp_path / "run", *SETTINGS, "workers=1")
    assert sha256_file(run / "model.safetensors") == sha256_file(whole / "model.safetensors")
    rows = [read_json_lines(folder / "metrics.jsonl") for folder in (run, whole)]
    clock = ("seconds", "images_per_second", "data_wait_share")
    kept = [[{k: v for k, v in row.items() if k not in clock} for row in each] for each in rows]
    assert kept[0] == kept[1]
    assert not (run / "checkpoints").exists()


@tiny
def test_resuming_is_said_and_recorded(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, at=6)
        with pytest.raises(Killed):
            run_train(tmp_path / "run", *SETTINGS)
    record = tmp_path / "run" / "environment.json"
    before = read_json(record)
    monkeypatch.setattr(session, "describe_environment", lambda **_: before | {"threads": 64})
    run_train(tmp_path / "run", *SETTINGS)
    err = capsys.readouterr().err
    assert "resuming" in err
    assert "threads differ from before: the result is the same to rounding, not to the bit" in err
    (entry,) = read_json(record)["resumed"]
    assert entry["changed"] == {"threads": 64}


@tiny
def test_damaged_checkpoint_is_said_and_the_one_before_is_taken(
    run_train: Run, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, at=9)
        with pytest.raises(Killed):
            run_train(tmp_path / "run", *SETTINGS)
    newest, older = sorted((tmp_path / "run" / "checkpoints").iterdir(), reverse=True)
    content = bytearray((newest / "tensors.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "tensors.safetensors").write_bytes(content)
    run_train(tmp_path / "run", *SETTINGS)
    assert f"{newest.name}/tensors.safetensors has changed since it was written); {older.name} is used" in (
        capsys.readouterr().err
    )
    assert sha256_file(tmp_path / "run" / "model.safetensors") == sha256_file(whole / "model.safetensors")


def test_damaged_checkpoint_takes_the_place_of_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoints"
    for step in (3, 5, 7):
        write_checkpoint(folder, name_checkpoint(step, validated=False), tensors={}, state={}, keep=9)
    for step in (5, 7):
        (folder / name_checkpoint(step, validated=False) / "state.json").write_text("{ }")
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert found.path.name == name_checkpoint(3, validated=False)
    aside = [f"damaged-{name_checkpoint(step, validated=False)}" for step in (5, 7)]
    assert sorted(path.name for path in folder.iterdir()) == [*aside, found.path.name]
    assert capsys.readouterr().err.count("is damaged and set aside as damaged-step-") == 2
    # A training that writes its next one, and keeps one, does not lose it to one that cannot be read.
    written = write_checkpoint(folder, name_checkpoint(4, validated=False), tensors={}, state={}, keep=1)
    assert sorted(path.name for path in folder.iterdir()) == [*aside, written.name]


@tiny
def test_signal_ends_after_the_step_with_a_checkpoint(run_train: Run, whole: Path, tmp_path: Path) -> None:
    looks = iter(range(1, 1000))
    original = CheckpointManager.checkpoint_if_due

    def look(self: CheckpointManager, *, validated: bool = False) -> None:
        if next(looks) == 6:
            signal.raise_signal(signal.SIGUSR1)
        original(self, validated=validated)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointManager, "checkpoint_if_due", look)
        with pytest.raises(PreemptedError, match=r"SIGUSR1: stopped after 4 steps, in epoch 2; run the same command"):
            run_train(tmp_path / "run", *SETTINGS, "checkpoint.minutes=1000")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000000004"]
    run_train(tmp_path / "run", *SETTINGS)
    assert sha256_file(tmp_path / "run" / "model.safetensors") == sha256_file(whole / "model.safetensors")


@tiny
def test_checkpoint_that_becomes_due_during_the_validation_is_written_there(
    run_train: Run, whole: Path, tmp_path: Path
) -> None:
    looks = iter(range(1, 1000))
    original = CheckpointManager.checkpoint_if_due

    def look(self: CheckpointManager, *, validated: bool = False) -> None:
        # Three steps of the first epoch, then its one batch of validation.
        validating = next(looks) == 4
        self.seconds = 0 if validating else math.inf
        original(self, validated=validated)
        if validating:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointManager, "checkpoint_if_due", look)
        with pytest.raises(Killed):
            run_train(tmp_path / "run", *SETTINGS)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000000003"]
    run_train(tmp_path / "run", *SETTINGS)
    assert sha256_file(tmp_path / "run" / "model.safetensors") == sha256_file(whole / "model.safetensors")


def test_too_little_space_is_found_before_the_first_step(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = session.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(session.shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    with pytest.raises(WriteError, match=r"0.01 GB are free, but two checkpoints take 0.36 GB"):
        run_train(tmp_path / "run")


@tiny
def test_other_labels_than_at_the_beginning_are_refused(
    run_train: Run, tmp_path: Path, copy_store: Callable[..., Path], certify: Callable[[Path], None]
) -> None:
    store = copy_store()
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, at=4)
        with pytest.raises(Killed):
            run_train(tmp_path / "run", f"store={store}", *SETTINGS)
    table = pq.read_table(store / "labels.parquet")
    column = table.column_names.index("label_hurt")
    pq.write_table(
        table.set_column(column, "label_hurt", table.column(column).slice(0)),
        store / "labels.parquet",
        compression="none",
    )
    certify(store)
    with pytest.raises(ConfigError, match="was started with other data or weights than those found now"):
        run_train(tmp_path / "run", f"store={store}", *SETTINGS)


@tiny
def test_other_checkpoint_settings_are_no_other_run(run_train: Run, whole: Path) -> None:
    run_train(whole, *SETTINGS, "checkpoint.minutes=7", "checkpoint.keep=9")


@tiny
def test_checkpoints_that_outlive_the_model_are_deleted_by_the_next_start(run_train: Run, whole: Path) -> None:
    (whole / "checkpoints" / "step-0000000009").mkdir(parents=True)
    run_train(whole, *SETTINGS)
    assert not (whole / "checkpoints").exists()


def command(job: TrainJob, run: Path) -> list[str]:
    settings = [*SETTINGS, "model=cbr_small", "trainer.batch_size=8", "trainer.channels_last=false", "workers=0"]
    return [sys.executable, "-m", "medcls.train", f"store={job.store}", f"run={run}", "device=cpu", *settings]


@pytest.mark.slow
def test_commands_killed_at_random_moments_end_with_the_same_models() -> None:
    command = [sys.executable, "-m", "tests.stages.kills", "--kills", "30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "30 kills" in done.stdout


def test_sigterm_of_the_command_exits_with_75_and_the_same_command_goes_on(
    compose_train: Callable[..., TrainJob], run_train: Run, tmp_path: Path
) -> None:
    whole = run_train(tmp_path / "whole", *SETTINGS, "model=cbr_small", "checkpoint.minutes=1000")
    run = tmp_path / "run"
    line = command(compose_train(tmp_path), run)
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        limit = time.monotonic() + 120
        while not list(run.glob("checkpoints/step-*")) and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 75, err
    assert "SIGTERM: stopped after" in err
    assert subprocess.run(line, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert sha256_file(run / "model.safetensors") == sha256_file(whole / "model.safetensors")


def break_in_two(run_train: Run, run: Path, *settings: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, at=6)
        with pytest.raises(Killed):
            run_train(run, *SETTINGS, *settings)


@tiny
def test_store_and_weights_that_have_moved_are_the_same_by_content(
    run_train: Run, tmp_path: Path, copy_store: Callable[..., Path]
) -> None:
    store, allow = copy_store("first"), ("transfer.val_seen=allow", "transfer=finetune")
    parent = run_train(tmp_path / "parent", *SETTINGS, f"store={store}")
    weights = (f"model.weights={parent}", *allow)
    whole = run_train(tmp_path / "whole", *SETTINGS, f"store={store}", *weights)
    break_in_two(run_train, tmp_path / "run", f"store={store}", *weights)
    store, parent = store.rename(tmp_path / "second"), parent.rename(tmp_path / "elsewhere")
    moved = (f"store={store}", f"model.weights={parent}", *allow)
    run = run_train(tmp_path / "run", *SETTINGS, *moved)
    settings = read_json(run / "config" / "settings.json")
    assert (settings["store"], settings["model"]["weights"]) == (str(store), str(parent))
    tensors = [load_file(each / "model.safetensors") for each in (run, whole)]
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
    # Finished, it is known by content too; but not where nothing is there to compare.
    run_train(run, *SETTINGS, *moved)
    run_train(run, *SETTINGS, f"store={store.rename(tmp_path / 'third')}", *moved[1:])
    with pytest.raises(MissingInputError, match=r"store=.*/fourth does not exist; run=.* used it at another path"):
        run_train(run, *SETTINGS, f"store={tmp_path / 'fourth'}", *moved[1:])
    with pytest.raises(MissingInputError, match=r"model.weights=.*/nowhere does not exist"):
        run_train(run, *SETTINGS, f"store={tmp_path / 'third'}", f"model.weights={tmp_path / 'nowhere'}", *allow)


@tiny
def test_other_store_in_the_middle_is_refused(
    run_train: Run, tmp_path: Path, store: Store, make_store: Callable[..., Store]
) -> None:
    break_in_two(run_train, tmp_path / "run")
    with pytest.raises(ConfigError, match="started with other data or weights"):
        run_train(tmp_path / "run", *SETTINGS, f"store={make_store('split.seed=5').folder}")


def test_finished_run_goes_on_where_it_says_so(run_train: Run, tmp_path: Path, trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"is finished \(trainer.epochs: 2 -> 3\).*schedule ends later") as caught:
        run_train(trained, "trainer.epochs=3")
    named = [part for part in str(caught.value).split() if part.startswith(("model.weights=", "transfer."))]
    assert (run_train(tmp_path / "longer", "trainer.epochs=3", *named) / "model.safetensors").is_file()


@tiny
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_checkpoints_that_cannot_be_read_stay_and_the_training_resumes_once_they_can(
    run_train: Run, whole: Path, tmp_path: Path, number: int, no_pauses: None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, at=9)
        with pytest.raises(Killed):
            run_train(tmp_path / "run", *SETTINGS)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    failing = Disk(tmp_path, unreadable=lambda path: path.name == "tensors.safetensors", error=number)
    with failing as disk, pytest.raises(ReadError, match=r"cannot read .*nothing was deleted") as caught:
        run_train(tmp_path / "run", *SETTINGS)
    assert caught.value.exit_code == 74
    assert disk.failed == 4
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    run = run_train(tmp_path / "run", *SETTINGS)
    assert sha256_file(run / "model.safetensors") == sha256_file(whole / "model.safetensors")
    assert read_json(run / "environment.json")["resumed"]


@tiny
def test_run_whose_only_checkpoint_is_damaged_begins_again_and_keeps_it(run_train: Run, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, at=3)
        with pytest.raises(Killed):
            run_train(tmp_path / "run", *SETTINGS)
    folder = tmp_path / "run" / "checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        (folder / name / "state.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, at=1)
        with pytest.raises(Killed):
            run_train(tmp_path / "run", *SETTINGS)
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith("damaged-")) == [
        f"damaged-{name}" for name in names
    ]


@tiny
def test_run_of_which_an_older_version_deleted_the_environment_resumes(
    run_train: Run, whole: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, at=9)
        with pytest.raises(Killed):
            run_train(tmp_path / "run", *SETTINGS)
    (tmp_path / "run" / "environment.json").unlink()
    run = run_train(tmp_path / "run", *SETTINGS)
    assert sha256_file(run / "model.safetensors") == sha256_file(whole / "model.safetensors")
