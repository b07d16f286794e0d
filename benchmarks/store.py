"""Random batches from the store beside the same bytes from a bare numpy memory map."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.images import make_store
from medcls.data.dataset import StoreDataset
from medcls.data.shards import shard_name

_BATCH, _BATCHES, _ROUNDS = 32, 64, 5


def measure(folder: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields one row; both read the same rows in the same order into one array a batch."""
    _, store = make_store(folder / "store", size=224)
    dataset = StoreDataset(store, np.arange(len(store)), targets=np.zeros((len(store), 1)))
    bare = np.load(store.folder / shard_name(0), mmap_mode="r")
    order = np.random.default_rng(0).integers(0, len(store), (_BATCHES, _BATCH))
    asked = [[(0, int(i)) for i in rows] for rows in order]
    ratios, ours, theirs = [], 0.0, 0.0
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for positions in asked:
            dataset.__getitems__(positions)
        middle = time.perf_counter()
        for rows in order:
            np.ascontiguousarray(bare[rows])
        ours, theirs = middle - start, time.perf_counter() - middle
        ratios.append(ours / theirs)
    per_batch = 1e3 / _BATCHES
    yield (
        f"random batch of {_BATCH} from the store, 224 px",
        f"{ours * per_batch:.2f} ms",
        f"numpy memory map {theirs * per_batch:.2f} ms",
        f"{float(np.median(ratios)):.2f}",
        "<= 1.5",
    )
