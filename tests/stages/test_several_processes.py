"""A training in two processes, as a user starts it: the result of one, signals, a process that is killed, errors."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from medcls.data.store import Store
from medcls.files import read_json, read_json_lines, sha256_file
from tests.stages.conftest import QUICK

# No BatchNorm and no dropout: two processes then make the steps of one.
SETTINGS = (
    *QUICK, "model=antony2017_class", "model.dropout=0", "transfer=scratch", "trainer.epochs=2", "trainer.max_steps=4",
    "checkpoint.minutes=0", "task.sampler=balanced",
)  # fmt: skip


def start(
    store: Store, run: Path, *arguments: str, processes: int = 2, nodes: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """Starts a training in a process group of its own."""
    options = nodes or (f"--nproc-per-node={processes}",)
    launcher = ["medcls.launch", *options, "train"] if processes > 1 else ["medcls.train"]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, f"store={store.folder}", f"run={run}", *SETTINGS, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Returns the exit code and what was said."""
    _, said = process.communicate(timeout=300)
    return process.returncode, said


@pytest.fixture(scope="module")
def both(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two processes, and what was said."""
    run = tmp_path_factory.mktemp("both") / "run"
    code, said = finish(start(store, run))
    assert code == 0, said
    return run, said


def test_two_processes_give_the_run_of_one(
    store: Store, both: tuple[Path, str], run_train: Callable[..., Path], tmp_path: Path
) -> None:
    run, said = both
    alone = run_train(tmp_path / "run", *SETTINGS, f"store={store.folder}")
    assert_close(run, alone, atol=1e-5)
    rows = [read_json_lines(folder / "metrics.jsonl") for folder in (run, alone)]
    assert len(rows[0]) == len(rows[1]) == 2
    for two, one in zip(*rows, strict=True):
        for key in ("train_loss", "val_loss", "val_score"):
            assert two[key] == pytest.approx(one[key], rel=1e-4)
    assert read_json(run / "environment.json")["processes"] == 2
    assert said.count("model ") == said.count("next: ") == 1  # the first process speaks for both


def assert_close(run: Path, other: Path, *, atol: float) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, other))
    for name, weights in theirs.items():
        np.testing.assert_allclose(ours[name], weights, rtol=0, atol=atol, err_msg=name)


def wait_for_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    limit = time.monotonic() + 200
    while not list(run.glob("checkpoints/step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_what_ends_one_ends_both_and_the_same_command_goes_on(
    store: Store, both: tuple[Path, str], tmp_path: Path, number: signal.Signals
) -> None:
    process = start(store, tmp_path / "run")
    wait_for_checkpoint(process, tmp_path / "run")
    if number == signal.SIGKILL:
        # Of the second process only: the first has to notice.
        listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        os.kill(int(listed.stdout.split()[1]), number)
    else:
        process.send_signal(number)
    code, said = finish(process)
    assert code == (137 if number == signal.SIGKILL else 75), said
    assert "run the same command again" in said
    assert "Traceback" not in said
    if number == signal.SIGUSR1:
        # The number of processes may change between the halves: then it is the same to rounding.
        code, said = finish(start(store, tmp_path / "run", processes=1))
        assert code == 0, said
        assert "processes differ from before: the result is the same to rounding, not to the bit" in said
        assert_close(tmp_path / "run", both[0], atol=1e-5)
    else:
        assert finish(start(store, tmp_path / "run"))[0] == 0
        assert sha256_file(tmp_path / "run" / "model.safetensors") == sha256_file(both[0] / "model.safetensors")


@pytest.mark.slow
def test_two_machines_are_as_two_processes(store: Store, both: tuple[Path, str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = (
        "--nnodes=2",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
        "--rdzv-id=test",
        f"--rdzv-endpoint=localhost:{port}",
    )
    started = [start(store, tmp_path / "run", nodes=nodes) for _ in range(2)]
    ended = [finish(process) for process in started]
    assert [code for code, _ in ended] == [0, 0], ended
    assert sorted("epoch 2/2" in said for _, said in ended) == [False, True]
    assert sha256_file(tmp_path / "run" / "model.safetensors") == sha256_file(both[0] / "model.safetensors")


def test_an_error_is_said_once_and_its_code_comes_back(store: Store, tmp_path: Path) -> None:
    code, said = finish(start(store, tmp_path / "run", "task.label=grade"))
    assert code == 65
    first, second = said.splitlines()
    labels = "label, label_bright, label_hurt, label_low"
    assert first == f"python -m medcls.train: task.label=grade: the store's labels have {labels}"
    # The other one notices, or is ended by the agent, whichever is quicker.
    assert second.startswith("python -m medcls.launch: ended: process 0 with 65, process 1 with ")
    assert not (tmp_path / "run").exists()


def test_other_commands_are_one_process(store: Store, tmp_path: Path) -> None:
    several = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}
    command = [sys.executable, "-m", "medcls.evaluate", f"run={tmp_path}"]
    ended = subprocess.run(command, env=os.environ | several, capture_output=True, text=True, check=False)
    assert ended.returncode == 64
    assert "python -m medcls.evaluate is one process" in ended.stderr


@pytest.mark.slow
def test_cached_features_and_pretraining_in_two_processes(store: Store, volume_store: Store, tmp_path: Path) -> None:
    frozen = (
        "transfer=frozen",
        "transfer.features=cached",
        "augment=none",
        "task.sampler=uniform",
        "transfer.val_seen=allow",
    )
    weights = tmp_path / "weights"
    code, said = finish(start(store, weights, "transfer=scratch", processes=1))
    assert code == 0, said
    for folder, processes in (("two", 2), ("one", 1)):
        # A folder of features each: the second run is not to read those of the first.
        run = tmp_path / folder / "run"
        code, said = finish(start(store, run, *frozen, f"model.weights={weights}", processes=processes))
        assert code == 0, said
        assert said.count("images computed, 0 read from the cache") == 2, said  # train and val, by one process
        assert said.count("the head is solved, not trained") == 1, said
    assert_close(tmp_path / "two" / "run", tmp_path / "one" / "run", atol=0)
    (two,), (one,) = (read_json_lines(tmp_path / name / "run" / "metrics.jsonl") for name in ("two", "one"))
    assert two["logistic"] == one["logistic"]
    greedy = ("model=autoencoder3d", "stacking=greedy", "trainer.epochs=1", "trainer.batch_size=4", "device=cpu")
    # Adam divides a gradient near zero by its own size, and rounding with it.
    greedy += ("optimizer=sgd", "optimizer.lr=0.01")
    for folder, processes in (("pretrained-two", 2), ("pretrained-one", 1)):
        launcher = ["medcls.launch", "--nproc-per-node=2", "pretrain"] if processes == 2 else ["medcls.pretrain"]
        command = [sys.executable, "-m", *launcher, f"store={volume_store.folder}", f"run={tmp_path / folder}", *greedy]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    assert_close(tmp_path / "pretrained-two", tmp_path / "pretrained-one", atol=1e-4)


@pytest.mark.slow
def test_all_go_back_together_where_steps_are_not_finite(store: Store, tmp_path: Path) -> None:
    diverging = ("optimizer=sgd", "optimizer.lr=10", "schedule=constant", "trainer.max_nonfinite=2")
    code, said = finish(start(store, tmp_path / "run", *diverging, "trainer.epochs=9", "trainer.max_steps=27"))
    assert code == 70, said
    assert said.count("once, from there at a tenth of the learning rate") == 1
    assert "again, at a tenth of the rate" in said
    (retreat,) = read_json(tmp_path / "run" / "environment.json")["retreats"]
    assert retreat["to_step"] < retreat["from_step"]
    name = f"step-{retreat['from_step']:010d}"
    parts = [read_json(tmp_path / "run" / "faults" / f"{name}{part}.json") for part in ("", "-process-1")]
    first, other = ({image for batch in part["image_ids"] for image in batch} for part in parts)
    assert first
    assert other
    assert not first & other
