"""Loading processes that die: noticed where the next batch is asked for, and nowhere else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from medcls.data.dataset import Batch
from medcls.data.loaders import EpochSampler
from medcls.errors import MedclsError

_taken: list[Any] = []
_SHORT_OF_ROOM = (
    "unable to allocate shared memory",
    "unable to open shared memory object",
    "unable to mmap",
    "received 0 items of ancdata",
)
"""What torch says if a batch does not fit /dev/shm, or if its descriptor is one open file too many."""


class WorkerError(MedclsError):
    """Loading processes die before anything is done: on this machine the same again would end alike."""

    exit_code = 70


def read_batches(
    loader: DataLoader[Batch], sampler: EpochSampler, *, on_death: Callable[[str], None]
) -> Iterator[Batch]:
    """Yields the batches of a loader; where a loading process dies it is started again at the batch that is due.

    The sampler's order is a function of its epoch, so the batches are those of an undisturbed epoch, to the bit.

    Args:
        loader: Over the sampler.
        sampler: Its `start` is where to begin.
        on_death: Called with the reason, one line; it raises where there is to be no other start.
    """
    start = done = sampler.start
    while True:
        sampler.start, reason = done, ""
        try:
            for batch in _watch_children(loader):
                yield batch
                done += 1
        except (RuntimeError, OSError, EOFError) as error:
            reason = describe_death(error)
            if not reason:
                raise
        # Not within the handler: the error holds on to the processes that are left.
        sampler.start = start
        if not reason:
            return
        on_death(reason)


def describe_death(error: Exception) -> str:
    """Returns what happened to a loading process, in one line; "" where the error is another one.

    What a dataset raises in its process arrives as "Caught … in DataLoader worker process"; connections to a process
    that is gone break by themselves.
    """
    line = " ".join(str(error).split())
    short = next((text for text in _SHORT_OF_ROOM if text in line), "")
    if isinstance(error, RuntimeError) and short:
        return line[line.index(short) :][:200]
    if line.startswith("Caught") and "in pin memory thread" not in line:
        return ""
    broken = isinstance(error, ConnectionError | EOFError) or ("pin memory thread" in line and "Connection" in line)
    if broken or line.startswith(("DataLoader worker", "DataLoader timed out")):
        return line[:200] or type(error).__name__
    return ""


def _watch_children(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Yields what the loader does.

    Torch's handler raises wherever the main thread is when a child ends: in the middle of a step, or of a checkpoint.
    Here it is in force while a batch is waited for; what ended meanwhile is found first of all.
    """
    iterator = iter(loader)
    handler = _take_handler()
    if handler is None:
        yield from iterator
        return
    while True:
        signal.signal(signal.SIGCHLD, handler)
        try:
            handler(signal.SIGCHLD, None)
            batch = next(iterator)
        except StopIteration:
            return
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        yield batch


def _take_handler() -> Any:
    """Torch's handler, out of force; None without processes, or outside the main thread.

    Torch sets it for the first loader of a process, and not again.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler):
        _taken.append(handler)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return _taken[-1] if _taken else None
