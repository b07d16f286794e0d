"""Run a function over files in worker processes, which a broken file can kill without harm.

A decoder may abort, hang, panic or ask for gigabytes. The work is therefore done in spawned processes with limits of
memory and processor time; what goes wrong costs the one item that caused it. A process that waits, or that somebody
else ends, says nothing about its file: docs/decisions/0060-processor-time.md. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeAlias, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from medcls.disk import READ_PAUSES, SOURCE_FILE, advise, describe_failure, find_disk_failure, is_out_of_memory
from medcls.errors import ImageRefusedError, MedclsError, ReadError, locate

Item = TypeVar("Item")
Result = TypeVar("Result")
_Outcomes: TypeAlias = tuple[list[Result | MedclsError], float]

_CHUNK_SECONDS = 0.1
"""Work that one message to a worker should carry, so that messages cost little beside it."""

_CHUNK_ITEMS = 64
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc; others lack or ignore mallopt
_KEPT_BYTES = 1 << 27

_TRIED_AGAIN = frozenset({"timeout", "killed"})
"""Reasons that a busy, suspended or full machine may have had."""

_RESTARTS = 3
"""Fresh pools in a row without one finished chunk before the machine, not a file, is to blame."""

_START_SECONDS = 600.0
"""Wall clock in which a worker has to begin the chunk that is due: its modules may come from a slow network folder."""

_HANGING = f"did not begin to work within {_START_SECONDS:g} s"
_MEMORY = "decoding asked for more memory than an item may have"

_OWN_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, getattr(signal, "SIGBUS", 0)})
"""Signals by which a process ends itself; others come from outside, as the kernel's SIGKILL when memory runs out."""

_OUT_OF_TIME = getattr(signal, "SIGPROF", 0)
"""What the timer of processor time ends a process by; systems without it (Windows) have the wall clock alone."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one item may use.

    Attributes:
        memory_bytes: Beyond an idle worker's own.
        seconds: Of processor time, in all threads.
        patience: Wall clock, in multiples of `seconds`. A suspended machine, a busy node and a slow disk take wall
            clock and no processor time, so this only ends what would wait for ever.
    """

    memory_bytes: int = 2 << 30
    seconds: float = 60.0
    patience: float = 20.0

    @property
    def wall_seconds(self) -> float:
        """Seconds of wall clock after which a worker is ended."""
        return self.seconds * self.patience


VOLUME_LIMITS = Limits(6 << 30, 600.0)
"""A volume is some hundred images, and resampled as a whole."""


def count_workers(workers: int) -> int:
    """Return a number of processes: the one that is set, or one for each processor core if it is negative."""
    if workers >= 0:
        return workers
    return os.cpu_count() or 1


def run_limited(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    limits: Limits | None = None,
    refuse_unreadable: bool = False,
) -> Iterator[Result | ImageRefusedError]:
    """Yield function(item) or the refusal for every item, in the order of items, lazily.

    Items travel in chunks whose size follows the measured time an item takes. A chunk that is lost is run again item by
    item with nothing beside it, so that only the guilty item is refused; and an item is refused for time or for a kill
    only if that happens twice, since the machine may have been the cause.

    Args:
        function: Picklable top-level function of a module that workers can import, so not of a __main__.
            Its ImageRefusedError is yielded; any other MedclsError (no space left, wrong configuration) is
            raised here and ends the run.
        items: Picklable inputs; consumed as they are needed, a few chunks ahead.
        workers: Processes; 0 runs in this process and without limits, for tests and notebooks.
        limits: Of one item; the defaults of Limits when None.
        refuse_unreadable: Yield a refusal for an item that the disk does not give, instead of ending the run.

    Raises:
        MedclsError: what function raised, ImageRefusedError apart; ReadError if the disk fails again and again; or
            workers keep dying before any work, or do not start.

    Source: own choice; reasons are out_of_memory, timeout, crashed, killed, panic, failed, disk_failure.
    """
    if workers == 0:
        attempt = partial(_attempt, function, refuse_unreadable=refuse_unreadable)
        yield from (_deliver(outcome) for outcome in map(attempt, items))
        return
    with _Crew(function, workers, limits or Limits(), refuse_unreadable=refuse_unreadable) as crew:
        yield from crew.run(iter(items))


class _Crew(Generic[Item, Result]):
    """A pool of limited workers and the chunks they are busy with."""

    def __init__(
        self, function: Callable[[Item], Result], workers: int, limits: Limits, *, refuse_unreadable: bool
    ) -> None:
        self._work = partial(_run_chunk, function, seconds=limits.seconds, refuse_unreadable=refuse_unreadable)
        self._workers = workers
        self._limits = limits
        self._pool = self._open_pool()
        self._restarts = 0

    def __enter__(self) -> _Crew[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def run(self, items: Iterator[Item]) -> Iterator[Result | ImageRefusedError]:
        """Yield the outcome of every item in order."""
        pending: deque[tuple[list[Item], ProcessFuture[_Outcomes[Result]]]] = deque()
        size = 1
        while True:
            while len(pending) < 2 * self._workers + 1 and (chunk := list(itertools.islice(items, size))):
                pending.append((chunk, self._schedule(chunk)))
            if not pending:
                return
            chunk, future = pending.popleft()
            try:
                _wait([future])
                outcomes, seconds = future.result()
            except BrokenProcessPool as error:
                self._replace_pool(error)
                again = [chunk, *(other for other, _ in pending)]
                pending = deque((each, self._schedule(each)) for each in again)
                continue
            except (TimeoutError, ProcessExpired, MemoryError) as error:
                with contextlib.suppress(BrokenProcessPool):  # met again when its turn comes
                    _wait([other for _, other in pending])  # less memory and processor is free beside others
                outcomes, seconds = self._rescue(chunk, error), self._limits.seconds
            self._restarts = 0
            size = max(1, min(_CHUNK_ITEMS, int(_CHUNK_SECONDS * len(chunk) / max(seconds, 1e-6))))
            yield from (_deliver(outcome) for outcome in outcomes)

    def _rescue(self, chunk: list[Item], error: BaseException) -> list[Result | MedclsError]:
        """The outcomes of a lost chunk: of each item alone, and once more if that is lost to time or to a kill."""
        if len(chunk) == 1:
            lost = _refusal_of_loss(error, self._limits)
            return [self._run_alone(chunk[0]) if lost.reason in _TRIED_AGAIN else lost]
        outcomes = []
        for item in chunk:
            outcome = self._run_alone(item)
            if isinstance(outcome, ImageRefusedError) and outcome.reason in _TRIED_AGAIN:
                outcome = self._run_alone(item)
            outcomes.append(outcome)
        return outcomes

    def _run_alone(self, item: Item) -> Result | MedclsError:
        """Return the outcome of one item with a pool to itself."""
        while True:
            try:
                future = self._schedule([item])
                _wait([future])
                return future.result()[0][0]
            except BrokenProcessPool as error:
                self._replace_pool(error)
            except (TimeoutError, ProcessExpired, MemoryError) as error:
                return _refusal_of_loss(error, self._limits)

    def _schedule(self, chunk: list[Item]) -> ProcessFuture[_Outcomes[Result]]:
        """Give a chunk to the pool; if that has failed meanwhile, the future says so."""
        try:
            return self._pool.schedule(self._work, args=(chunk,), timeout=self._limits.wall_seconds)
        except (OSError, RuntimeError) as error:  # BrokenProcessPool is a RuntimeError
            broken: ProcessFuture[_Outcomes[Result]] = ProcessFuture()
            failure = BrokenProcessPool("the pool has failed")
            failure.__cause__ = error
            broken.set_exception(failure)
            return broken

    def _open_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self._workers,
            initializer=_limit_this_process,
            initargs=(self._limits.memory_bytes,),
            context=multiprocessing.get_context("spawn"),
        )

    def _replace_pool(self, error: BrokenProcessPool) -> None:
        """Open a new pool after a worker died between two chunks, which pebble does not survive, or did not start."""
        self._restarts += 1
        if self._restarts > _RESTARTS:
            failure = find_disk_failure(error)
            if failure and (limit := advise(failure, "")):
                reason = f"cannot be started ({failure.strerror}): {limit}"
            elif str(error) == _HANGING:
                reason = (
                    f"{_HANGING}: check the machine's load and the network folder that Python is in, or set workers=0"
                )
            else:
                reason = (
                    "died before doing any work: see above; check that the function is in a module that they can "
                    "import, and that the memory limit is not too low"
                )
            raise MedclsError(f"workers {reason} ({self._restarts} tries)") from error
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()
        self._pool = self._open_pool()


def _wait(futures: Iterable[ProcessFuture[Any]]) -> None:
    """Wait until all have ended; chunks that were begun end by their limit of wall clock.

    Raises:
        BrokenProcessPool: No worker begins one of those that are left.
    """
    left: set[Any] = set(futures)
    while left:
        done, left = wait(left, timeout=_START_SECONDS, return_when=FIRST_COMPLETED)
        if not done and not any(future.running() for future in left):
            raise BrokenProcessPool(_HANGING)


def _run_chunk(
    function: Callable[[Item], Result], chunk: list[Item], *, seconds: float, refuse_unreadable: bool
) -> _Outcomes[Result]:
    """Return the outcomes of a chunk and the seconds of wall clock they took; runs in the worker."""
    start = time.perf_counter()
    outcomes = []
    for item in chunk:
        _limit_processor_time(seconds)
        outcomes.append(_attempt(function, item, refuse_unreadable=refuse_unreadable))
    _limit_processor_time(0)
    return outcomes, time.perf_counter() - start


def _limit_processor_time(seconds: float) -> None:
    """Let the kernel end this process after so many seconds of processor time from now; 0 ends the limit.

    No handler is set: a decoder that never comes back to Python would not let it run.
    """
    if _OUT_OF_TIME:
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _attempt(function: Callable[[Item], Result], item: Item, *, refuse_unreadable: bool) -> Result | MedclsError:
    """The result, or the error that takes its place; tried again if the disk fails, which is no fault of the item."""
    for pause in READ_PAUSES:
        outcome = _try_once(function, item)
        if not isinstance(outcome, ReadError):
            return outcome
        time.sleep(pause)
    outcome = _try_once(function, item)
    if refuse_unreadable and isinstance(outcome, ReadError):
        failure = outcome.__cause__
        if isinstance(failure, OSError) and not advise(failure, ""):  # a limit that was reached says nothing of it
            return ImageRefusedError("disk_failure", f"the disk does not give the file ({failure.strerror})")
    return outcome


def _try_once(function: Callable[[Item], Result], item: Item) -> Result | MedclsError:
    try:
        return function(item)
    except (ImageRefusedError, ReadError) as error:
        return _find_read_error(error) or error
    except MedclsError as error:
        return error
    except MemoryError:
        return ImageRefusedError("out_of_memory", _MEMORY)
    except Exception as error:
        if failure := _find_read_error(error):
            return failure
        if is_out_of_memory(error):
            return ImageRefusedError("out_of_memory", _MEMORY)
        return ImageRefusedError("failed", locate(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # pyo3's PanicException derives from BaseException alone; so does SystemExit
        return ImageRefusedError("panic", locate(error))


def _find_read_error(error: Exception) -> ReadError | None:
    """Return the end of the command if the disk failed, whatever a reader made of it; the message names no path."""
    failure = find_disk_failure(error)
    if failure is None:
        return None
    described = describe_failure(failure, SOURCE_FILE, tries=len(READ_PAUSES) + 1)
    described.__cause__ = failure
    return described


def _deliver(outcome: Result | MedclsError) -> Result | ImageRefusedError:
    """Hand on results and refusals; an error that concerns the whole run is raised."""
    if isinstance(outcome, MedclsError) and not isinstance(outcome, ImageRefusedError):
        raise outcome
    return outcome


def _refusal_of_loss(error: BaseException, limits: Limits) -> ImageRefusedError:
    """Return the refusal for an item whose worker did not come back with it."""
    if isinstance(error, TimeoutError):
        return ImageRefusedError("timeout", f"not done after {limits.wall_seconds:g} s of wall clock")
    if not isinstance(error, ProcessExpired):
        return ImageRefusedError("out_of_memory", "the result did not fit the memory that an item may have")
    code = int(error.exitcode)
    if _OUT_OF_TIME and code == -_OUT_OF_TIME:
        return ImageRefusedError("timeout", f"not done after {limits.seconds:g} s of processor time")
    code = -code if code == signal.SIGTERM else code  # pebble's workers turn it into an exit code
    if code >= 0 or -code in _OWN_SIGNALS:
        return ImageRefusedError("crashed", f"the decoder ended its process with exit code {code}")
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return ImageRefusedError(
        "killed", f"its process was ended from outside ({name}) twice, the second time with nothing beside it"
    )


def keep_freed_memory() -> None:
    """Let glibc hand the pages of one image to the next: fetching fresh ones is up to half the time of a CT slice."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES // 4)


def _limit_this_process(memory_bytes: int) -> None:
    """Caps a worker's address space at what it has now plus memory_bytes; no core dumps: they hold pixels."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
        os.environ.setdefault(name, "1")  # before numpy: its thread pools reserve address space per core
    if sys.platform == "win32":
        return
    keep_freed_memory()
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    statm, wanted = Path("/proc/self/statm"), memory_bytes
    if statm.exists():  # without /proc (macOS) the limit is ignored anyway
        wanted += int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
