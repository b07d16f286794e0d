"""A loading process that is gone is started again where it was, and nothing else is taken for it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import Dataset

from medcls.data.dataset import Batch, Position
from medcls.data.loaders import EpochSampler, WorkerError, build_loader, describe_death, read_batches

# A process that is killed leaves its socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


class Deadly(Dataset[Batch]):
    """Batches of positions; the processes that are asked for `position` kill themselves, the first few times."""

    def __init__(self, marker: Path, *, position: int, how: str = "kill", times: int = 1) -> None:
        self.marker, self.position, self.how, self.times = marker, position, how, times

    def __getitems__(self, positions: list[Position]) -> Batch:
        places = torch.tensor([position for _, position in positions])
        if self.position in places and (count := len(list(self.marker.parent.glob("died-*")))) < self.times:
            (self.marker.parent / f"died-{count}").touch()
            if self.how == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGBUS if self.how == "bus" else signal.SIGKILL)
        return Batch(places, places, places, places)


def read(dataset: Dataset[Batch], deaths: list[str], *, workers: int = 2, start: int = 0) -> list[list[int]]:
    sampler = EpochSampler(20, batch_size=3, seed=4, shuffle=True)
    sampler.start = start
    loader = build_loader(dataset, sampler, workers=workers, device="cpu")
    recover = lambda error: deaths.append(str(error))
    batches = [batch.positions.tolist() for batch in read_batches(loader, sampler, recover=recover)]
    assert sampler.start == start
    return batches


@pytest.mark.parametrize("how", ["kill", "exit", "bus"])
@pytest.mark.parametrize("position", [0, 11])
def test_batches_after_a_death_are_those_without(tmp_path: Path, how: str, position: int) -> None:
    whole = read(Deadly(tmp_path / "x", position=-1), [], workers=0)
    deaths: list[str] = []
    assert read(Deadly(tmp_path / "x", position=position, how=how), deaths) == whole
    assert len(deaths) == 1
    assert "DataLoader worker" in deaths[0] or "Connection" in deaths[0] or "EOF" in deaths[0]


def test_it_goes_on_from_where_an_epoch_was_begun(tmp_path: Path) -> None:
    whole = read(Deadly(tmp_path / "x", position=-1), [], workers=0)
    order = [p for batch in whole for p in batch]
    assert read(Deadly(tmp_path / "x", position=order[-1]), deaths := [], start=3) == whole[3:]
    assert len(deaths) == 1


def test_whoever_is_asked_may_refuse_another_start(tmp_path: Path) -> None:
    class EnoughError(Exception):
        pass

    def refuse(error: WorkerError) -> None:
        raise EnoughError from error

    sampler = EpochSampler(20, batch_size=3)
    loader = build_loader(Deadly(tmp_path / "x", position=7, times=9), sampler, workers=1, device="cpu")
    with pytest.raises(EnoughError):
        list(read_batches(loader, sampler, recover=refuse))


def test_death_is_found_where_the_next_batch_is_asked_for(tmp_path: Path) -> None:
    """Torch alone would raise in the middle of the step."""
    sampler = EpochSampler(20, batch_size=2)
    loader = build_loader(Deadly(tmp_path / "x", position=6), sampler, workers=1, device="cpu")
    deaths: list[str] = []
    seen = []
    for batch in read_batches(loader, sampler, recover=lambda error: deaths.append(str(error))):
        seen += batch.positions.tolist()
        time.sleep(0.1)  # a step, during which the process dies
    assert seen == list(range(20))
    assert len(deaths) == 1


def test_what_a_dataset_raises_is_no_death() -> None:
    try:
        raise ConnectionResetError("the file server is gone")
    except ConnectionResetError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(ConnectionResetError) as caught:
        wrapped.reraise()
    assert "the file server is gone" in str(caught.value)
    assert describe_death(caught.value) == ""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. \nmore"), "DataLoader worker (pid 7)"),
        (RuntimeError("DataLoader timed out after 300 seconds"), "DataLoader timed out"),
        (EOFError(), "EOFError"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset"),
        (RuntimeError("Caught ConnectionResetError in pin memory thread for device 0."), "pin memory thread"),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0."), None),
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)"),
            "No space left on device",
        ),
        (
            RuntimeError(
                "unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)"
            ),
            "Too many open files",
        ),
        (RuntimeError("received 0 items of ancdata"), "received 0 items of ancdata"),
        (RuntimeError("CUDA error: an illegal memory access"), None),
        (FileNotFoundError(2, "No such file"), None),
    ],
)
def test_deaths_are_told_from_other_errors(error: Exception, reason: Any) -> None:
    found = describe_death(error)
    assert "\n" not in found
    assert (reason in found) if reason else found == ""


class Hanging(Dataset[Batch]):
    """Batches of positions; the first process that is asked says who it is, and hangs."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __getitems__(self, positions: list[Position]) -> Batch:
        places = torch.tensor([position for _, position in positions])
        if not self.marker.exists():
            self.marker.write_text(str(os.getpid()))
            while True:
                time.sleep(60)
        return Batch(places, places, places, places)


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own signal at a parent's death")
def test_one_that_hangs_does_not_outlive_a_training_that_is_ended_by_force(tmp_path: Path) -> None:
    parent = os.fork()
    if parent == 0:
        sampler = EpochSampler(4, batch_size=2)
        next(iter(build_loader(Hanging(tmp_path / "pid"), sampler, workers=1, device="cpu")))
    limit = time.monotonic() + 60
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while is_alive(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < limit
        time.sleep(0.02)
