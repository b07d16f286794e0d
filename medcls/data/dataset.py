"""The torch dataset of a store's rows: stored integers, targets, image ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medcls.data.augment import Augment
from medcls.data.crops import Crop, Patch
from medcls.data.store import Store
from medcls.reproducibility import draw_seed, make_generator

Position = tuple[int, int]


class Batch(NamedTuple):
    """What a loader yields.

    Attributes:
        images: (N, C, *spatial), the store's integer dtype.
        targets: (N, T), float32; NaN = unknown. In training (N, K) shares where the dataset has soft targets.
        positions: (N,), int64: places in the dataset.
        clinical: (N, C), float32; C = 0 where the model takes only images.
    """

    images: Tensor
    targets: Tensor
    positions: Tensor
    clinical: Tensor


@dataclass(frozen=True, slots=True)
class ImageView:
    """How a stored image becomes what the network sees.

    Attributes:
        crop: What is cut out of each image before it is augmented: at random beside an augmentation, from the middle
            without one. None = the stored image as it is.
        augmentation: None for evaluation.
        seed: Seed of crop and augmentation.
    """

    crop: Crop | Patch | None = None
    augmentation: Augment | None = None
    seed: int = 0


AS_STORED = ImageView()


class StoreDataset(Dataset[Batch]):
    """Some rows of a store, and no others: it is handed the rows it may read.

    Asked for (epoch, position) pairs, so that a sample's augmentation depends on nothing but (seed, epoch,
    image_id), whichever worker makes it and whenever.

    Args:
        store: The store.
        rows: Manifest rows.
        targets: (N, T) of these rows.
        view: What is done to each image.
        clinical: (N, C) of these rows; None = none.
        soft: Targets that batches have in place of `targets`, as `encode_shares` returns them; None = `targets`.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        *,
        targets: NDArray[np.float64],
        view: ImageView = AS_STORED,
        clinical: NDArray[np.float32] | None = None,
        soft: NDArray[np.float64] | None = None,
    ) -> None:
        self.store, self.rows = store, rows
        self.seed, self.augmentation, self.crop = view.seed, view.augmentation, view.crop
        self.clinical = torch.empty(len(rows), 0) if clinical is None else torch.from_numpy(clinical)
        self.targets = torch.as_tensor(targets, dtype=torch.float32)
        self.soft = self.targets if soft is None else torch.as_tensor(soft, dtype=torch.float32)
        # Arrow, not Python strings: also forked workers share it instead of copying it count by count.
        self._image_ids = None if self.augmentation is None else store.read("image_id", rows=rows).column(0)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *spatial) of every image that it yields."""
        if self.crop is None:
            return self.store.shape
        return self.crop.shape(self.store.shape)

    @property
    def has_soft_targets(self) -> bool:
        """Batches have other targets than labels say."""
        return self.soft is not self.targets

    def view(self, image: NDArray[Any], *, epoch: int, position: int) -> NDArray[Any]:
        """Return what the network sees of one stored image (C, *spatial): cropped, augmented."""
        if self.augmentation is None or self._image_ids is None:
            if self.crop is None:
                return image
            return self.crop.take_center(image)
        image_id = self._image_ids[position].as_py()
        if self.crop is not None:
            # A stream of its own: with and without crops the same image is augmented alike.
            image = self.crop.take_random(image, make_generator("crop", self.seed, epoch, image_id))
        return self.augmentation(image, draw_seed(self.seed, epoch, image_id))

    def read_image(self, epoch: int, position: int) -> NDArray[Any]:
        """Return the image at a position as an epoch sees it, (C, *spatial)."""
        return self.view(self.store.image(int(self.rows[position])), epoch=epoch, position=position)

    def __getitem__(self, position: Position) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[Position]) -> Batch:
        """Return one whole batch: one copy out of the memory map, and one message from a worker instead of N."""
        places = np.array([position for _, position in positions], dtype=np.int64)
        stored = self.store.images(self.rows[places])
        images = stored if self.crop is None else np.empty((len(stored), *self.shape), dtype=stored.dtype)
        if self.augmentation is not None or self.crop is not None:
            for i, (epoch, position) in enumerate(positions):
                images[i] = self.view(stored[i], epoch=epoch, position=position)
        index = torch.from_numpy(places)
        return Batch(torch.from_numpy(images), self.soft[index], index, self.clinical[index])
