"""A checkpoint is whole or is none: broken-off writes, flipped bits, cut files and a full disk."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medcls.errors import WriteError
from medcls.training.checkpoints import COMPLETE, STATE, TENSORS, name_checkpoint, read_newest, write_checkpoint

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7, dtype=torch.int64), "c": torch.rand(5).half()}


def write(folder: Path, step: int, *, keep: int = 2) -> Path:
    tensors = WEIGHTS | {"step": torch.tensor(step)}
    return write_checkpoint(
        folder, name_checkpoint(step, validated=False), tensors=tensors, state={"n": step}, keep=keep
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoints", 12)
    assert path.name == "step-0000000012"
    read, damaged = read_newest(tmp_path / "checkpoints")
    assert read is not None
    assert (read.path, read.state, damaged) == (path, {"n": 12}, [])
    assert set(read.tensors) == {"a", "b", "c", "step"}
    assert all(torch.equal(read.tensors[name], WEIGHTS[name]) for name in WEIGHTS)
    assert all(read.tensors[name].dtype == WEIGHTS[name].dtype for name in WEIGHTS)


def test_the_newest_wins_and_only_the_last_are_kept(tmp_path: Path) -> None:
    for step in (5, 900, 70, 1000):
        write(tmp_path, step, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:010d}" for n in (70, 900, 1000)]
    newest, _ = read_newest(tmp_path)
    assert newest is not None
    assert newest.state == {"n": 1000}


def test_after_validation_sorts_behind_before_and_before_the_next_step() -> None:
    names = [name_checkpoint(n, validated=v) for n in (9, 10) for v in (False, True)]
    assert names == sorted(names)


def test_no_folder_and_no_checkpoint_are_none(tmp_path: Path) -> None:
    (tmp_path / ".partial-x").mkdir()
    assert read_newest(tmp_path / "gone") == (None, [])
    assert read_newest(tmp_path) == (None, [])


@pytest.mark.parametrize("part", [TENSORS, STATE, COMPLETE])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_noticed_and_the_one_before_is_taken(tmp_path: Path, part: str, damage: str) -> None:
    generator = np.random.default_rng(0)
    write(tmp_path / "sound", 1)
    write(tmp_path / "sound", 2)
    for trial in range(1 if damage == "gone" else 40):
        folder = Path(shutil.copytree(tmp_path / "sound", tmp_path / str(trial)))
        path = folder / "step-0000000002" / part
        content = bytearray(path.read_bytes())
        if damage == "gone":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(content[: generator.integers(len(content))])
        else:
            content[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
            path.write_bytes(content)
        newest, damaged = read_newest(folder)
        assert newest is not None
        if newest.state == {"n": 2}:
            # White space of COMPLETE, or the case of a letter within it, may change without changing what it says.
            assert part == COMPLETE
            assert all(torch.equal(newest.tensors[name], WEIGHTS[name]) for name in WEIGHTS)
        else:
            assert (newest.state, len(damaged)) == ({"n": 1}, 1)
            assert "step-0000000002" in damaged[0]


def test_all_damaged_is_none(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / TENSORS).write_bytes(b"")
    newest, damaged = read_newest(tmp_path)
    assert newest is None
    assert len(damaged) == 1


def test_full_disk_leaves_the_checkpoint_before_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(WriteError, match="cannot write"):
            write(tmp_path, 2, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]
    newest, _ = read_newest(tmp_path)
    assert newest is not None
    assert newest.state == {"n": 1}


KILLED = """
import sys, torch
from pathlib import Path
from medcls.training.checkpoints import name_checkpoint, write_checkpoint
folder, tensors = Path(sys.argv[1]), {"weight": torch.zeros(200_000)}
for step in range(10_000):
    tensors["weight"].fill_(step)
    write_checkpoint(folder, name_checkpoint(step, validated=False), tensors=tensors, state={"n": step}, keep=1)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_kill_at_random_moments_always_leaves_a_valid_one(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    for trial in range(20):
        command = [sys.executable, "-c", KILLED, str(tmp_path / str(trial))]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            reported = [int(process.stdout.readline()) for _ in range(int(generator.integers(1, 30)))]
            process.kill()
            reported += [int(line) for line in process.stdout.read().split()]
        newest, _ = read_newest(tmp_path / str(trial))
        assert newest is not None
        assert newest.state["n"] in (reported[-1], reported[-1] + 1)
        assert newest.tensors["weight"].unique().tolist() == [newest.state["n"]]
