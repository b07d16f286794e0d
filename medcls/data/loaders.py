"""Build batches from a dataset: order, class balance, worker processes and their errors."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from medcls.data.dataset import Batch, Position
from medcls.distributed import count_local_ranks
from medcls.errors import ConfigError, MedclsError
from medcls.reproducibility import make_generator

_WORKER_TIMEOUT_SECONDS = 300
_PR_SET_PDEATHSIG = 1


class EpochSampler(Sampler[list[Position]]):
    """Batches of (epoch, position): a pure function of (seed, epoch), whatever ran before.

    Batches differ by at most one in size, so that no tiny last batch upsets BatchNorm. Set `epoch` before each epoch,
    and `start` to the number of its batches that are done already.

    Args:
        num_samples: Of the dataset.
        batch_size: Largest batch, of all processes together.
        seed: Of the order.
        shuffle: False keeps the dataset's order.
        weights: (num_samples,) chance of each sample to be drawn (with replacement); None draws each once.
        part: (rank, ranks): every batch is cut into so many parts, and this one yielded.

    Raises:
        ConfigError: a batch has fewer samples than there are processes.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        weights: NDArray[np.float64] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.num_samples, self.batch_size, self.seed, self.shuffle = num_samples, batch_size, seed, shuffle
        self.weights = None if weights is None else weights / weights.sum()
        self.epoch, self.start = 0, 0
        self.part = part
        if num_samples // max(1, len(self)) < part[1] > 1:
            raise ConfigError(
                f"{num_samples} images in batches of {batch_size} over {part[1]} processes: each needs an image of "
                "every batch: raise trainer.batch_size, or start fewer processes"
            )

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[Position]]:
        generator = make_generator("order", self.seed, self.epoch)
        if self.weights is not None:
            order = generator.choice(self.num_samples, self.num_samples, p=self.weights)
        else:
            order = generator.permutation(self.num_samples) if self.shuffle else np.arange(self.num_samples)
        size, larger = divmod(self.num_samples, max(1, len(self)))
        for batch in range(self.start, len(self)):
            start = batch * size + min(batch, larger)
            chosen = order[start : start + size + (batch < larger)]
            yield [(self.epoch, position) for position in chosen[self.part[0] :: self.part[1]].tolist()]


def balance_weights(targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a weight for each sample that gives every class the same chance to be drawn.

    Args:
        targets: (N, 1) class indices (NaN: a row between classes, which has the mean chance of the others), or (N, K)
            flags (NaN = unknown): then the rarest positive label counts.
    """
    if targets.shape[1] == 1:
        known = ~np.isnan(targets[:, 0])
        _, inverse, counts = np.unique(targets[known, 0], return_inverse=True, return_counts=True)
        weights = np.full(len(targets), len(counts) / max(1, int(known.sum())))
        weights[known] = 1.0 / counts[inverse]
        return weights
    positive = np.nan_to_num(targets)
    counts = np.append(positive.sum(axis=0), 0)
    counts[-1] = max(1, int((positive.sum(axis=1) == 0).sum()))
    none = positive.sum(axis=1, keepdims=True) == 0
    rates = np.where(np.hstack([positive, none]) > 0, 1.0 / np.maximum(counts, 1), 0)
    return np.asarray(rates.max(axis=1), dtype=np.float64)


def choose_workers(workers: int, *, device: str) -> int:
    """Return the number of loading processes of this process; -1 = none on the CPU, up to 8 beside each GPU."""
    if workers >= 0:
        return workers
    cores = (os.cpu_count() or 1) // count_local_ranks()
    return min(8, max(1, cores - 1)) if device == "cuda" else 0


def build_loader(
    dataset: Dataset[Batch], batches: EpochSampler | Sequence[list[Position]], *, workers: int, device: str
) -> DataLoader[Batch]:
    """Return a loader of whole batches.

    Args:
        dataset: What to read: its __getitems__ makes a batch of positions.
        batches: In which order; set the sampler's epoch before each epoch.
        workers: Loading processes; 0 reads in this process.
        device: "cuda" pins the batches' memory.
    """
    # OpenCV's own threads compete with torch's for the same cores.
    cv2.setNumThreads(0)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_identity,
        num_workers=workers,
        persistent_workers=False,
        pin_memory=device == "cuda",
        timeout=_WORKER_TIMEOUT_SECONDS if workers else 0,
        worker_init_fn=_start_worker,
    )


def _identity(batch: Any) -> Any:
    """StoreDataset.__getitems__ has made the whole batch already."""
    return batch


def _start_worker(worker: int) -> None:
    # A signal to the whole group (Ctrl-C, torchrun's agent) is the training's to answer, which needs its batches.
    os.setpgid(0, 0)
    if sys.platform == "linux":
        # It holds the run's lock as its parent does: one that hangs must not outlive it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


_taken: list[Any] = []
_SHORT_OF_ROOM = (
    "unable to allocate shared memory",
    "unable to open shared memory object",
    "unable to mmap",
    "received 0 items of ancdata",
)
"""What torch says if a batch does not fit /dev/shm, or if its descriptor is one open file too many."""


class WorkerError(MedclsError):
    """A loading process died; if nothing is done before, the same again on this machine would end alike."""

    exit_code = 70


def read_batches(
    loader: DataLoader[Batch], sampler: EpochSampler, *, recover: Callable[[WorkerError], None]
) -> Iterator[Batch]:
    """Yield the batches of a loader; where a loading process dies it is started again at the batch that is due.

    The sampler's order is a function of its epoch, so the batches are those of an undisturbed epoch, to the bit.

    Args:
        loader: Over the sampler.
        sampler: Its `start` is where to begin.
        recover: Called with the reason of a death, one line; it raises if there is to be no other start.
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
        recover(WorkerError(reason))


def describe_death(error: Exception) -> str:
    """Return what happened to a loading process, in one line; "" where the error is another one.

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
    """Yield what the loader does.

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
