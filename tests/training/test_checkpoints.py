"""A checkpoint is whole or is none: broken-off writes, flipped bits, cut files and a full disk."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medcls.errors import ReadError, WriteError
from medcls.training.checkpoints import COMPLETE, STATE, TENSORS, name_checkpoint, read_newest, write_checkpoint
from tests.failing_disk import Disk, KilledError

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
    assert (read.path, read.state, damaged) == (path, {"n": 12}, {})
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
    assert read_newest(tmp_path / "gone") == (None, {})
    assert read_newest(tmp_path) == (None, {})


def test_a_thousand_flipped_bits_and_cuts_are_noticed_and_the_one_before_is_taken(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    contents = {part: (newest / part).read_bytes() for part in (TENSORS, STATE, COMPLETE)}
    for trial in range(1000):
        part = (TENSORS, STATE, COMPLETE)[trial % 3]
        damaged = bytearray(contents[part])
        if trial % 2:
            del damaged[generator.integers(len(damaged)) :]
        else:
            damaged[generator.integers(len(damaged))] ^= 1 << int(generator.integers(8))
        (newest / part).write_bytes(damaged)
        found, reasons = read_newest(tmp_path)
        assert found is not None
        assert found.state == {"n": 1}, (trial, part, damaged)
        assert len(reasons) == 1
        assert newest.name in reasons[newest]
        (newest / part).write_bytes(contents[part])
    found, reasons = read_newest(tmp_path)
    assert found is not None
    assert (found.state, reasons) == ({"n": 2}, {})


@pytest.mark.parametrize("part", [TENSORS, STATE, COMPLETE])
def test_missing_part_is_noticed(tmp_path: Path, part: str) -> None:
    write(tmp_path, 1)
    (write(tmp_path, 2) / part).unlink()
    found, reasons = read_newest(tmp_path)
    assert found is not None
    assert (found.state, len(reasons)) == ({"n": 1}, 1)


def test_all_damaged_is_none(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / TENSORS).write_bytes(b"")
    newest, damaged = read_newest(tmp_path)
    assert newest is None
    assert len(damaged) == 1


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("part", [TENSORS, STATE, COMPLETE])
def test_checkpoint_on_a_failing_disk_is_not_damaged_and_none_is_taken_for_it(
    tmp_path: Path, part: str, stale: bool, no_pauses: None
) -> None:
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    number = errno.ESTALE if stale else errno.EIO
    failing = Disk(tmp_path, unreadable=lambda path: path == newest / part, error=number, stale=stale)
    said = rf"cannot read .*{newest.name}/{part} \({os.strerror(number)}, 4 times\)"
    with failing as disk, pytest.raises(ReadError, match=said):
        read_newest(tmp_path)
    assert disk.steps == []
    # A network folder comes back: the third try finds it.
    with Disk(tmp_path, unreadable=lambda path: path == newest / part, error=number, stale=stale, times=2):
        found, damaged = read_newest(tmp_path)
    assert found is not None
    assert (found.path, damaged) == (newest, {})


def test_checkpoint_is_deleted_at_once_or_not_at_all(tmp_path: Path) -> None:
    for steps in itertools.count(1):
        folder = tmp_path / str(steps)
        for step in (1, 2, 3):
            write(folder, step)
        with Disk(folder, kill_at=steps) as disk, contextlib.suppress(KilledError):
            write(folder, 4)
        found, damaged = read_newest(folder)
        assert found is not None
        assert damaged == {}
        assert found.state == {"n": 4 if (folder / "step-0000000004").exists() else 3}
        if len(disk.steps) < steps:
            break
    assert steps > 12


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


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EIO, errno.ESTALE])
def test_any_call_that_fails_leaves_the_one_before_and_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Tests run as root, whom no permission stops: each call of a write fails in turn, as on a read-only mount."""
    write(tmp_path / "checkpoints", 1)
    refused = 0
    for at in range(1, 100):
        with pytest.MonkeyPatch.context() as patch:
            made = fail_at(patch, at=at, number=number)
            message = ""
            try:
                write(tmp_path / "checkpoints", 2, keep=2)
            except WriteError as error:
                message = str(error)
        refused += bool(message)
        assert os.strerror(number) in (message or os.strerror(number))
        found, damaged = read_newest(tmp_path / "checkpoints")
        assert found is not None
        assert damaged == {}
        assert found.state in ({"n": 1}, {"n": 2})
        shutil.rmtree(tmp_path / "checkpoints" / "step-0000000002", ignore_errors=True)
        if made() < at:
            break
    assert at < 99
    assert refused >= 8


def fail_at(patch: pytest.MonkeyPatch, *, at: int, number: int) -> Callable[[], int]:
    """Makes the at-th call that changes the disk fail; returns how many were made."""
    calls = 0

    def count(original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(number, os.strerror(number))
            return original(*args, **kwargs)

        return counted

    for name in ("fsync", "replace", "mkdir", "open"):
        patch.setattr(os, name, count(getattr(os, name)))
    return lambda: calls


def test_folder_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write(run / "checkpoints", 1)
    shutil.rmtree(run)
    with pytest.raises(WriteError, match=r"cannot write .*run/checkpoints: No such file or directory") as caught:
        write(run / "checkpoints", 2)
    assert caught.value.exit_code == 74
    assert not run.exists()


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
