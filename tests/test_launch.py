"""What medcls.launch starts, and which exit code it gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medcls import launch
from medcls.errors import UsageError
from medcls.train.__main__ import prepare_demo


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([75, 75], 75),
        ([75, 65, 75], 65),
        ([70, 78], 78),
        ([75, -9], 137),
        ([-9, 70], 70),
        ([74, 75], 74),
        ([-15, -15], 75),
        ([75, -15, -11], 139),
        ([1, 3], 70),
        ([], 70),
    ],
)
def test_the_code_says_what_to_do(codes: list[int], expected: int) -> None:
    assert launch.choose_code(codes) == expected


@pytest.mark.parametrize(
    ("arguments", "module", "rest"),
    [
        (["train", "store=a"], "medcls.train", ["store=a"]),
        (["--nproc-per-node", "2", "pretrain", "store=a", "run=b"], "medcls.pretrain", ["store=a", "run=b"]),
        (["--nnodes=2", "store=a", "run=b"], "medcls.train", ["store=a", "run=b"]),
        (["medcls.train", "--cfg", "job"], "medcls.train", ["--cfg", "job"]),
    ],
)
def test_options_are_torchruns_and_the_command_is_a_training(
    arguments: list[str], module: str, rest: list[str]
) -> None:
    options = launch.parse(arguments)
    assert (options.module, options.training_script, options.training_script_args) == (True, module, rest)
    assert options.max_restarts == 0
    assert "SIGUSR1" in options.signals_to_handle


def test_options_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_NPROC_PER_NODE", "3")
    assert launch.parse(["store=a"]).nproc_per_node == "3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["evaluate", "run=a"], "expected train or pretrain"), ([], "see python -m medcls.launch --help")],
)
def test_what_is_no_training_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        launch.parse(arguments)


def test_processes_are_never_started_again() -> None:
    assert launch.parse(["--max-restarts=3", "store=a"]).max_restarts == 0


def test_values_that_torchrun_does_not_know_are_mistakes_of_the_command_line() -> None:
    with pytest.raises(UsageError, match=r"many.*see torchrun --help"):
        launch.main(["--nproc-per-node=many", "store=a"])


def test_the_demo_is_made_by_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="once without torchrun"):
        prepare_demo(tmp_path / "store")


def test_help_and_usage_from_the_command_line() -> None:
    command = [sys.executable, "-m", "medcls.launch"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert "--nproc-per-node=4 train store=DIR run=DIR" in shown.stdout
    wrong = subprocess.run([*command, "predict", "run=x"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 64
    assert wrong.stderr.strip().splitlines() == [
        "python -m medcls.launch: predict: expected train or pretrain; other commands are one process"
    ]
