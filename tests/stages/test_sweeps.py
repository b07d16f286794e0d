"""--multirun: every job is the ordinary command in a run of its own; what fails is named, nothing else is written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medcls.cli import command_line
from medcls.cli import overrides as hydra_border
from medcls.cli.overrides import check_hydra_key
from medcls.config import TrainJob
from medcls.errors import BusyError, ConfigError, DataError
from medcls.files import sha256_file
from medcls.train import __main__ as entry
from medcls.training.preemption import PreemptedError
from tests.stages.conftest import QUICK

Run = Callable[..., Path]
Sweep = Callable[..., tuple[int, str]]


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Sweep:
    """Runs a sweep of medcls.train in this process, in an empty folder: (exit code, standard error)."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(main: Callable[[TrainJob], None], *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train", "--multirun", "store=store", *arguments])
        with pytest.raises(SystemExit) as stop:
            command_line.run_command("train", main, program="prog")
        return int(stop.value.code or 0), capsys.readouterr().err

    return run


def test_each_job_has_its_own_run_and_nothing_else_is_written(sweep: Sweep, tmp_path: Path) -> None:
    jobs: list[TrainJob] = []
    code, err = sweep(jobs.append, "seed=1,2", "model=resnet18,vgg11", "run=runs/${model.name}-${seed}")
    assert code == 0
    assert [job.run for job in jobs] == [f"runs/{name}-{seed}" for seed in (1, 2) for name in ("resnet18", "vgg11")]
    assert [job.seed for job in jobs] == [1, 1, 2, 2]
    assert "prog: job 3 (seed=2, model=resnet18, run='runs/resnet18-2')\n" in err
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "expected", "begun"),
    [
        (DataError("label 'x' is unknown"), 65, [1, 2, 3]),
        (BusyError("runs/2 is in use"), 75, [1, 2, 3]),
        (PreemptedError("SIGTERM: stopped after 4 steps"), 75, [1, 2]),
        (KeyboardInterrupt(), 75, [1, 2]),
        (ZeroDivisionError("a defect"), 70, [1, 2, 3]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_job_that_fails_is_named_and_only_a_signal_ends_the_others(
    sweep: Sweep, error: BaseException, expected: int, begun: list[int]
) -> None:
    seeds: list[int] = []

    def main(job: TrainJob) -> None:
        seeds.append(job.seed)
        if job.seed == 2:
            raise error

    code, err = sweep(main, "seed=1,2,3", "run=runs/${seed}")
    assert (code, seeds) == (expected, begun)
    if expected != 70:
        line = str(error) or "interrupted: run the same command again"
        assert err.count(f"prog: job 2 (seed=2, run='runs/2'): {line}\n") == 1
    assert ("ZeroDivisionError: a defect" in err) == (expected == 70)


def test_a_sweep_in_turn_makes_the_models_of_single_runs(
    sweep: Sweep, run_train: Run, store: Any, tmp_path: Path
) -> None:
    code, err = sweep(entry.main, *QUICK, f"store={store.folder}", "transfer=scratch", "seed=1,2", "run=runs/${seed}")
    assert code == 0, err
    for seed in (1, 2):
        single = run_train(tmp_path / str(seed), "transfer=scratch", f"seed={seed}")
        assert sha256_file(Path(f"runs/{seed}/model.safetensors")) == sha256_file(single / "model.safetensors")
    assert [path.name for path in Path().iterdir()] == ["runs"]


@pytest.mark.slow
def test_a_sweep_at_once_makes_the_models_of_single_runs(run_train: Run, store: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medcls.train", "--multirun", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    command += [*QUICK, f"store={store.folder}", "transfer=scratch", "seed=1,2,-1", "run=runs/${seed}"]
    (tmp_path / "here").mkdir()
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True, check=False)
    assert done.returncode == 78, done.stderr
    assert "job 3 (seed=-1, run='runs/-1'): seed=-1: expected" in done.stderr
    for seed in (1, 2):
        single = run_train(tmp_path / str(seed), "transfer=scratch", f"seed={seed}")
        model = tmp_path / "here" / "runs" / str(seed) / "model.safetensors"
        assert sha256_file(model) == sha256_file(single / "model.safetensors")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["runs"]


def test_a_launcher_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra_border, "distributions", lambda name: [])
    with pytest.raises(ConfigError, match=r"hydra/launcher=joblib: .* is not installed: pip install"):
        check_hydra_key("hydra/launcher", "joblib")
