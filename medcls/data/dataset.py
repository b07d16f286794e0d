"""Rows of a store as a torch dataset: stored integers, targets, and where each came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medcls.data.augment import Augmentation
from medcls.data.store import Store
from medcls.reproducibility import draw_seed

Position = tuple[int, int]


class Batch(NamedTuple):
    """What a loader yields.

    Attributes:
        images: (N, C, H, W), the store's integer dtype.
        targets: (N, T), float32; NaN = unknown.
        positions: (N,), int64: places in the dataset.
    """

    images: Tensor
    targets: Tensor
    positions: Tensor


class StoreDataset(Dataset[Batch]):
    """Some rows of a store, and no others: it is handed the rows it may read.

    Asked for (epoch, position) pairs, so that a sample's augmentation depends on nothing but (seed, epoch,
    image_id), whichever worker makes it and whenever.

    Args:
        store: The store.
        rows: Manifest rows.
        targets: (N, T) of these rows.
        augmentation: None for evaluation.
        seed: Of the augmentation.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        *,
        targets: NDArray[np.float64],
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.store, self.rows, self.seed, self.augmentation = store, rows, seed, augmentation
        self.targets = torch.as_tensor(targets, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_ids(self) -> list[str]:
        """Of each position."""
        return [self.store.image_ids[row] for row in self.rows]

    def read_image(self, epoch: int, position: int) -> NDArray[np.generic]:
        """Returns one image, augmented where an augmentation was given; (C, H, W)."""
        row = int(self.rows[position])
        image = self.store.image(row)
        if self.augmentation is None:
            return image
        return self.augmentation(image, draw_seed(self.seed, epoch, self.store.image_ids[row]))

    def __getitem__(self, position: Position) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[Position]) -> Batch:
        """Returns one whole batch: a single allocation, and one message from a worker instead of N."""
        images = np.empty((len(positions), *self.store.shape), dtype=self.store.spec.dtype)
        for i, (epoch, position) in enumerate(positions):
            images[i] = self.read_image(epoch, position)
        index = torch.tensor([position for _, position in positions])
        return Batch(torch.from_numpy(images), self.targets[index], index)
