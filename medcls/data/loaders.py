"""Datasets to batches: order, balance, workers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from medcls.data.dataset import Batch, Position
from medcls.reproducibility import make_generator

_WORKER_TIMEOUT_SECONDS = 300


class EpochSampler(Sampler[list[Position]]):
    """Batches of (epoch, position): a pure function of (seed, epoch), whatever ran before.

    Batches differ by at most one in size, so that no tiny last batch upsets BatchNorm. Set `epoch` before each epoch,
    and `start` to the number of its batches that are done already.

    Args:
        num_samples: Of the dataset.
        batch_size: Largest batch.
        seed: Of the order.
        shuffle: False keeps the dataset's order.
        weights: (num_samples,) chance of each sample to be drawn (with replacement); None draws each once.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.num_samples, self.batch_size, self.seed, self.shuffle = num_samples, batch_size, seed, shuffle
        self.weights = None if weights is None else weights / weights.sum()
        self.epoch, self.start = 0, 0

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
            yield [(self.epoch, position) for position in order[start : start + size + (batch < larger)].tolist()]


def balance_weights(targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a weight for each sample that gives every class the same chance to be drawn.

    Args:
        targets: (N, 1) class indices, or (N, K) flags (NaN = unknown): then the rarest positive label counts.
    """
    if targets.shape[1] == 1:
        _, inverse, counts = np.unique(targets[:, 0], return_inverse=True, return_counts=True)
        return np.asarray(1.0 / counts[inverse], dtype=np.float64)
    positive = np.nan_to_num(targets)
    counts = np.append(positive.sum(axis=0), 0)
    counts[-1] = max(1, int((positive.sum(axis=1) == 0).sum()))
    none = positive.sum(axis=1, keepdims=True) == 0
    rates = np.where(np.hstack([positive, none]) > 0, 1.0 / np.maximum(counts, 1), 0)
    return np.asarray(rates.max(axis=1), dtype=np.float64)


def choose_workers(workers: int, *, device: str) -> int:
    """Returns the number of loading processes; -1 = none on the CPU (its cores compute), up to 8 beside a GPU."""
    if workers >= 0:
        return workers
    return min(8, max(1, (os.cpu_count() or 1) - 1)) if device == "cuda" else 0


def build_loader(
    dataset: Dataset[Batch], batches: EpochSampler | Sequence[list[Position]], *, workers: int, device: str
) -> DataLoader[Batch]:
    """Returns a loader of whole batches.

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
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
