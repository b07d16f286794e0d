"""The sheet shows what is stored, by class, above what a network would see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from medcls.data.augment import Augmentation
from medcls.data.contact_sheet import write_contact_sheet
from medcls.data.dataset import ImageView, StoreDataset
from medcls.data.store import Store
from medcls.errors import DataError

CELL, TITLE = 116, 18


def make_dataset(store: Store, classes: list[float], *, transforms: dict[str, object] | None = None) -> StoreDataset:
    augmentation = None if transforms is None else Augmentation(transforms, shape=store.shape, dtype=store.spec.dtype)
    rows = np.arange(len(classes), dtype=np.int64)
    return StoreDataset(store, rows, targets=np.array(classes)[:, None], view=ImageView(augmentation=augmentation))


def read(path: Path) -> np.ndarray:
    sheet = cv2.imread(str(path))
    assert sheet is not None
    return sheet


def cell(sheet: np.ndarray, row: int, column: int, *, strips: int) -> np.ndarray:
    """The picture at a strip and column; `strips` strips follow each title."""
    top = TITLE * (row // strips + 1) + CELL * row
    return sheet[top : top + 112, CELL * column : CELL * column + 112]


def test_stored_images_stand_above_their_augmented_twins(small_store: Store, tmp_path: Path) -> None:
    dataset = make_dataset(small_store, [0, 1, 0, 1, 0], transforms={"HorizontalFlip": {"p": 1.0}})
    path = write_contact_sheet(tmp_path / "sheet.png", dataset, class_names=["a", "b"], per_class=3)
    sheet = read(path)
    assert sheet.shape == (2 * (TITLE + 2 * CELL), 3 * CELL, 3)
    for row, rows in ((0, (0, 2, 4)), (2, (1, 3))):
        for column, index in enumerate(rows):
            stored = cv2.resize(small_store.image(index)[0], (112, 112), interpolation=cv2.INTER_AREA)
            assert np.abs(cell(sheet, row, column, strips=2)[:, :, 0].astype(int) - stored).max() <= 1
            assert np.abs(cell(sheet, row + 1, column, strips=2)[:, :, 0].astype(int) - stored[:, ::-1]).max() <= 1
    assert (cell(sheet, 2, 2, strips=2) == 255).all()  # class b has two images


def test_a_class_without_images_is_left_out_and_none_at_all_is_an_error(small_store: Store, tmp_path: Path) -> None:
    dataset = make_dataset(small_store, [1, 1])
    path = write_contact_sheet(tmp_path / "sheet.png", dataset, class_names=["a", "b"], per_class=2)
    assert read(path).shape == (TITLE + CELL, 2 * CELL, 3)
    with pytest.raises(DataError, match="no image of any class"):
        write_contact_sheet(tmp_path / "none.png", dataset, class_names=["a"])
    assert not (tmp_path / "none.png").exists()


def test_without_class_names_all_images_are_spread_evenly(small_store: Store, tmp_path: Path) -> None:
    dataset = make_dataset(small_store, [float("nan")] * 9)
    sheet = read(write_contact_sheet(tmp_path / "sheet.png", dataset, per_class=3))
    for column, index in enumerate((0, 4, 8)):
        stored = cv2.resize(small_store.image(index)[0], (112, 112), interpolation=cv2.INTER_AREA)
        assert np.abs(cell(sheet, 0, column, strips=1)[:, :, 0].astype(int) - stored).max() <= 1


def test_colour_is_not_swapped_and_proportions_stay(make_store: Callable[..., Store], tmp_path: Path) -> None:
    store = make_store("image=photo", "image.size=[16,32]", "image.dtype=uint16")
    store.image = lambda index: np.broadcast_to(  # type: ignore[method-assign]
        np.array([65535, 0, 0], np.uint16)[:, None, None], (3, 16, 32)
    )
    sheet = read(write_contact_sheet(tmp_path / "sheet.png", make_dataset(store, [0, 0]), per_class=1))
    assert (cell(sheet, 0, 0, strips=1)[:56, :112] == [0, 0, 255]).all()  # BGR: red
    assert (cell(sheet, 0, 0, strips=1)[57:] == 255).all()


def test_a_title_outside_ascii_is_drawn_all_the_same(small_store: Store, tmp_path: Path) -> None:
    dataset = make_dataset(small_store, [0])
    assert write_contact_sheet(tmp_path / "sheet.png", dataset, class_names=["größer 漢"]).is_file()
