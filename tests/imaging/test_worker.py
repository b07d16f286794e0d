"""Workers: order, laziness, and every way a decoder can die costs one item."""

from __future__ import annotations

import errno
import itertools
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from medcls.errors import ImageRefusedError, MedclsError, ReadError, WriteError
from medcls.imaging import worker
from medcls.imaging.worker import Limits, run_limited

SMALL = Limits(memory_bytes=1 << 30, seconds=0.5, patience=4.0)
BUSY = Limits(memory_bytes=1 << 30, seconds=1.0)
"""For tests that a busy machine must not disturb."""


def hang(_: int) -> None:
    """As a worker whose modules are on a network folder that has gone away."""
    time.sleep(600)


class PanicError(BaseException):
    """As pyo3_runtime.PanicException: not an Exception."""


def throw(error: BaseException) -> None:
    raise error


def read_core_limit() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_CORE)[0]


ACTIONS: dict[object, Callable[[], object]] = {
    "abort": os.abort,
    "exit": lambda: sys.exit(3),
    "hard exit": lambda: os._exit(4),
    "hang": lambda: time.sleep(60),
    "busy": lambda: next(number for number in itertools.count() if number < 0),
    "busy in C": lambda: pow(3, (1 << 26) + 1) and pow(3, 1 << 28),
    "memory": lambda: len(bytearray(3 << 30)),
    "panic": lambda: throw(PanicError("Probe^Name")),
    "bug": lambda: throw(ValueError("Probe^Name")),
    "refuse": lambda: throw(ImageRefusedError("truncated", "as told")),
    "disk full": lambda: throw(WriteError("no space left")),
    "modules": lambda: sorted({"torch", "monai", "torchvision"} & set(sys.modules)),
    "cores": read_core_limit,
}


def misbehave(item: object) -> object:
    """Does what the item says, in the worker."""
    return ACTIONS[item]() if item in ACTIONS else item


def read_and_list_modules(item: Path) -> list[str]:
    """Imports all that reading needs and names the heavy modules among it."""
    from medcls.imaging.image import is_dicom

    is_dicom(item)
    return sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "monai", "torchvision"))


def test_results_come_in_the_order_of_items() -> None:
    assert list(run_limited(misbehave, range(3000), workers=2)) == list(range(3000))
    assert list(run_limited(misbehave, [], workers=1)) == []


BAD = {
    "abort": "crashed",
    "exit": "panic",
    "hard exit": "crashed",
    "hang": "timeout",
    "busy": "timeout",
    "busy in C": "timeout",
    "memory": "out_of_memory",
    "panic": "panic",
    "bug": "failed",
    "refuse": "truncated",
}


def test_every_kind_of_failure_costs_one_item() -> None:
    items: list[object] = list(range(400))
    for position, kind in zip(range(30, 400, 36), BAD, strict=False):
        items[position] = kind
    outcomes = list(run_limited(misbehave, items, workers=2, limits=SMALL))
    assert len(outcomes) == len(items)
    for item, outcome in zip(items, outcomes, strict=True):
        if item in BAD:
            assert isinstance(outcome, ImageRefusedError)
            assert outcome.reason == BAD[str(item)]
            assert "Probe" not in str(outcome)
        else:
            assert outcome == item


@dataclass(frozen=True, slots=True)
class Fault:
    """What somebody does to the worker of an item, the first `times` times that it runs."""

    name: str
    times: int
    number: int
    folder: Path


def suffer(fault: Fault) -> tuple[str, int]:
    """Count the tries in the folder; while there are no more than asked for, send the worker a signal."""
    mark = fault.folder / fault.name
    tries = len(mark.read_bytes()) + 1 if mark.exists() else 1
    mark.write_bytes(b"x" * tries)
    if tries <= fault.times:
        if fault.number == signal.SIGSTOP:  # as a suspended machine: somebody else wakes it up
            subprocess.Popen(["sh", "-c", f"sleep 2.5; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), fault.number)
    return fault.name, tries


@pytest.mark.parametrize("alone", [True, False])
def test_worker_that_is_killed_from_outside_costs_an_image_only_if_killed_again(tmp_path: Path, alone: bool) -> None:
    once = Fault("once", 1, signal.SIGKILL, tmp_path)
    twice = Fault("twice", 9, signal.SIGKILL, tmp_path)
    term = Fault("term", 1, signal.SIGTERM, tmp_path)
    others = [] if alone else [Fault(f"sound{i}", 0, 0, tmp_path) for i in range(30)]
    outcomes = list(run_limited(suffer, [*others, once, twice, term], workers=2, limits=BUSY))
    assert outcomes[-3] == ("once", 2)
    killed = outcomes[-2]
    assert isinstance(killed, ImageRefusedError)
    assert killed.reason == "killed"
    assert "SIGKILL" in killed.detail
    assert len((tmp_path / "twice").read_bytes()) in ((2,) if alone else (2, 3))  # the chunk, then alone
    assert outcomes[-1] == ("term", 2)
    assert [outcome[0] for outcome in outcomes[:-3]] == [other.name for other in others]  # type: ignore[index]


def test_crash_of_the_file_itself_is_refused_at_once(tmp_path: Path) -> None:
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
        fault = Fault(str(number), 9, number, tmp_path)
        (outcome,) = run_limited(suffer, [fault], workers=1, limits=BUSY)
        assert isinstance(outcome, ImageRefusedError)
        assert outcome.reason == "crashed"
        assert str(-number) in outcome.detail
        assert (tmp_path / fault.name).read_bytes() == b"x"


def test_suspended_worker_loses_nothing(tmp_path: Path) -> None:
    fault = Fault("stopped", 1, signal.SIGSTOP, tmp_path)
    assert list(run_limited(suffer, [fault], workers=1, limits=BUSY)) == [("stopped", 1)]  # 2.5 s of 1 s are no work


def test_suspension_beyond_all_patience_is_tried_again_before_it_counts(tmp_path: Path) -> None:
    fault = Fault("stopped", 1, signal.SIGSTOP, tmp_path)
    impatient = Limits(memory_bytes=1 << 30, seconds=1.0, patience=1.0)
    assert list(run_limited(suffer, [fault], workers=1, limits=impatient)) == [("stopped", 2)]


def burn(seconds: float) -> float:
    """Use so much processor time."""
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
    return seconds


def test_processor_time_is_limited_for_each_item_and_not_for_a_chunk_or_a_worker() -> None:
    items = [0.0] * 40 + [0.6] * 3 + [0.0]
    assert list(run_limited(burn, items, workers=1, limits=BUSY)) == items
    (outcome,) = run_limited(burn, [9.0], workers=1, limits=BUSY)
    assert str(outcome) == "timeout: not done after 1 s of processor time"


def test_neighbouring_crashes_are_told_apart() -> None:
    items = [*range(200), "abort", "abort", 7, "hard exit", 8]
    outcomes = list(run_limited(misbehave, items, workers=2, limits=SMALL))
    assert [isinstance(outcome, ImageRefusedError) for outcome in outcomes[200:]] == [1, 1, 0, 1, 0]


def test_an_error_of_the_whole_run_ends_it() -> None:
    for workers in (0, 1):
        with pytest.raises(WriteError, match="no space left"):
            list(run_limited(misbehave, [1, "disk full", 2], workers=workers))


def test_workers_hold_no_torch_and_drop_no_core() -> None:
    assert list(run_limited(misbehave, ["modules", "cores"], workers=1)) == [[], 0]
    assert list(run_limited(read_and_list_modules, [Path(__file__)], workers=1)) == [[]]


def test_items_are_taken_lazily_and_bounded() -> None:
    taken = 0

    def items() -> object:
        nonlocal taken
        for number in range(100_000):
            taken += 1
            yield number

    stream = run_limited(misbehave, items(), workers=2)  # type: ignore[arg-type]
    assert [next(stream) for _ in range(10)] == list(range(10))
    assert taken <= 10 + 5 * 64 * 2
    stream.close()  # type: ignore[attr-defined]


def test_without_workers_it_runs_here() -> None:
    outcomes = list(run_limited(misbehave, [1, "bug", "refuse", "panic"], workers=0))
    assert outcomes[0] == 1
    assert [outcome.reason for outcome in outcomes[1:]] == ["failed", "truncated", "panic"]  # type: ignore[union-attr]
    assert outcomes[1].detail.startswith("ValueError at test_worker.py:")  # type: ignore[union-attr]


SCRIPT = """
from medcls.imaging.worker import run_limited
from stage.work import double

if __name__ == "__main__":
    print(sum(run_limited(double, range(100), workers=2)))
"""


def count_page_faults(item: int) -> int:
    """Fresh pages that a second image takes where the first has just been freed."""
    import resource

    [bytearray(item) for _ in range(6)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [bytearray(item) for _ in range(6)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_a_worker_keeps_the_pages_of_one_image_for_the_next() -> None:
    (faults,) = run_limited(count_page_faults, [1 << 21], workers=1, limits=SMALL)
    assert isinstance(faults, int)
    assert faults < 100  # 3,000 without


def test_opencv_takes_one_thread_in_a_worker() -> None:
    assert list(run_limited(count_opencv_threads, [0], workers=1, limits=SMALL)) == [1]


def count_opencv_threads(item: int) -> int:
    import cv2

    return int(cv2.getNumThreads())


def test_it_works_under_python_dash_m(tmp_path: Path) -> None:
    package = tmp_path / "stage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "work.py").write_text("def double(item):\n    return 2 * item\n")
    (package / "__main__.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    done = subprocess.run([sys.executable, "-m", "stage"], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "9900\n", "")


def test_a_function_that_workers_cannot_import_ends_in_one_error(tmp_path: Path) -> None:
    package = tmp_path / "stage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "work.py").write_text("")
    script = SCRIPT.replace("from stage.work import double", "def double(item):\n    return 2 * item\n")
    (package / "__main__.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    done = subprocess.run([sys.executable, "-m", "stage"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "MedclsError: workers died before doing any work: see above" in done.stderr
    assert "(4 tries)" in done.stderr


def test_workers_that_hang_while_they_start_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_limit_this_process", hang)
    monkeypatch.setattr(worker, "_START_SECONDS", 0.5)
    monkeypatch.setattr(worker, "_RESTARTS", 1)
    started = time.monotonic()
    with pytest.raises(
        MedclsError, match=r"workers did not begin to work within .* s: .*workers=0 \(2 tries\)"
    ) as caught:
        list(run_limited(misbehave, range(9), workers=1, limits=BUSY))
    assert caught.value.exit_code == 70
    assert time.monotonic() - started < 60


def test_workers_for_which_there_are_no_open_files_left_say_so() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(
            MedclsError, match=r"cannot be started \(Too many open files\): .*ulimit -n.*workers="
        ) as caught:
            list(run_limited(misbehave, range(3), workers=1, limits=BUSY))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.exit_code == 70


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOMEM, "out_of_memory: decoding asked for more memory than an item may have"),
        (errno.EMFILE, "cannot read a file of the source .*Too many open files.*raise .*ulimit -n.*workers="),
    ],
)
def test_reached_limit_is_told_from_a_broken_file(number: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "READ_PAUSES", [0.0])

    def read(_: object) -> None:
        raise OSError(number, os.strerror(number), "/data/Mueller.dcm")

    def run() -> object:
        return next(run_limited(read, [1], workers=0))

    if number == errno.ENOMEM:
        assert re.match(said, str(run()))
        return
    with pytest.raises(ReadError, match=said) as caught:
        run()
    assert "Mueller" not in str(caught.value)
