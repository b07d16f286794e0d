"""A dataset reads the rows it was handed, and augments by seed, epoch and image alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from medcls.data.augment import Augmentation
from medcls.data.dataset import ImageView, StoreDataset
from medcls.data.store import Store
from medcls.reproducibility import draw_seed

ROWS = np.array([40, 3, 17, 5], dtype=np.int64)
TARGETS = np.array([[0.0], [1], [2], [np.nan]])
TRANSFORMS = {"Affine": {"rotate": [-20, 20], "p": 1.0}, "HorizontalFlip": {"p": 0.5}}


@pytest.fixture
def make_dataset(small_store: Store) -> Callable[..., StoreDataset]:
    def make(rows: np.ndarray = ROWS, *, seed: int = 0, augment: bool = True) -> StoreDataset:
        augmentation = Augmentation(TRANSFORMS, shape=small_store.shape) if augment else None
        return StoreDataset(
            small_store, rows, targets=np.resize(TARGETS, (len(rows), 1)), view=ImageView(None, augmentation, seed)
        )

    return make


def test_a_batch_holds_the_stored_integers(make_dataset: Callable[..., StoreDataset], small_store: Store) -> None:
    batch = make_dataset(augment=False).__getitems__([(0, 2), (0, 0), (0, 3)])
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (3, 1, 32, 32)
    for image, row in zip(batch.images, (17, 40, 5), strict=True):
        assert (image.numpy() == small_store.image(row)).all()
    assert batch.positions.tolist() == [2, 0, 3]
    torch.testing.assert_close(batch.targets, torch.tensor([[2.0], [0], [torch.nan]]), equal_nan=True)


def test_16_bits_stay_16_bits(make_store: Callable[..., Store]) -> None:
    store = make_store("image.dtype=uint16")
    batch = StoreDataset(store, ROWS, targets=TARGETS)[(0, 1)]
    assert batch.images.dtype == torch.uint16
    assert (batch.images[0].numpy() == store.image(3)).all()


def test_length(make_dataset: Callable[..., StoreDataset]) -> None:
    assert len(make_dataset()) == 4


def test_augmentation_is_drawn_from_the_image_id(small_store: Store) -> None:
    """Written down: another recipe would change every finished run."""
    drawn: list[int] = []
    dataset = StoreDataset(
        small_store,
        ROWS,
        targets=TARGETS,
        view=ImageView(None, lambda image, seed: drawn.append(seed) or image, 7),
    )
    dataset.__getitems__([(2, 1), (2, 0)])
    ids = small_store.column("image_id")
    assert drawn == [draw_seed(7, 2, ids[3]), draw_seed(7, 2, ids[40])]


def test_only_the_rows_it_was_handed_are_read(
    make_dataset: Callable[..., StoreDataset], small_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    image, images = Store.image, Store.images
    monkeypatch.setattr(Store, "image", lambda self, index: read.append(index) or image(self, index))
    monkeypatch.setattr(Store, "images", lambda self, rows: read.extend(rows.tolist()) or images(self, rows))
    dataset = make_dataset()
    dataset.__getitems__([(epoch, position) for epoch in range(3) for position in range(len(dataset))])
    dataset.read_image(0, 1)
    assert read == [*ROWS.tolist() * 3, ROWS[1]]
    with pytest.raises(IndexError):
        dataset.read_image(0, 4)


def test_augmentation_depends_on_seed_epoch_and_image_and_on_nothing_else(
    make_dataset: Callable[..., StoreDataset],
) -> None:
    dataset = make_dataset()
    first = dataset.read_image(3, 1).copy()
    dataset.read_image(0, 0)
    assert (dataset.read_image(3, 1) == first).all()
    assert (make_dataset(ROWS[::-1]).read_image(3, 2) == first).all()  # the same image at another position
    others = [dataset.read_image(4, 1), make_dataset(seed=1).read_image(3, 1), dataset.read_image(3, 2)]
    assert not any((other == first).all() for other in others)
