"""Write a contact sheet by class of the images that a network gets: it shows wrong windows, crops, augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from medcls.data.dataset import StoreDataset
from medcls.errors import DataError
from medcls.files import write_bytes
from medcls.imaging.picture import draw_pixels

_CELL, _GAP, _TITLE = 112, 4, 18
_EPOCH = 0


def write_contact_sheet(
    path: Path, dataset: StoreDataset, *, class_names: Sequence[str] = (), per_class: int = 8
) -> Path:
    """Write a PNG with a row of stored images (of volumes: middle slices) and one of augmented twins for each class.

    Args:
        path: Of the PNG.
        dataset: Images and targets; the targets' first column is the class index.
        class_names: One row pair each; () = one pair for all.
        per_class: Images in a row, evenly spaced through the dataset.

    Returns:
        `path`.
    """
    strips: list[NDArray[np.uint8]] = []
    bounds = dataset.store.spec.value_range
    classes = dataset.targets[:, 0].numpy()
    for index, name in enumerate(class_names or ["all"]):
        positions = np.flatnonzero(classes == index) if class_names else np.arange(len(dataset))
        if not len(positions):
            continue
        chosen = positions[np.linspace(0, len(positions) - 1, min(per_class, len(positions))).round().astype(int)]
        strips.append(_title(f"{name}  (n = {len(positions)})", per_class))
        strips.append(
            _strip([draw_pixels(dataset.store.image(int(dataset.rows[p])), bounds) for p in chosen], per_class)
        )
        if dataset.augmentation is not None:
            strips.append(_strip([draw_pixels(dataset.read_image(_EPOCH, int(p)), bounds) for p in chosen], per_class))
    if not strips:
        raise DataError("contact sheet: no image of any class")
    ok, png = cv2.imencode(".png", np.vstack(strips))
    if not ok:
        raise DataError("contact sheet: PNG encoding failed")
    write_bytes(path, png.tobytes())
    return path


def _title(text: str, columns: int) -> NDArray[np.uint8]:
    strip = np.full((_TITLE, columns * (_CELL + _GAP), 3), 255, np.uint8)
    # OpenCV's fonts have ASCII alone.
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(strip, plain, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def _strip(pictures: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    strip = np.full((_CELL + _GAP, columns * (_CELL + _GAP), 3), 255, np.uint8)
    for column, picture in enumerate(pictures):
        cell = _cell(picture)
        x = column * (_CELL + _GAP)
        strip[: cell.shape[0], x : x + cell.shape[1]] = cell
    return strip


def _cell(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 1 or 3) to at most _CELL x _CELL, BGR, proportions kept."""
    zoom = _CELL / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * zoom)), max(1, round(picture.shape[0] * zoom)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    code = cv2.COLOR_GRAY2BGR if small.ndim == 2 else cv2.COLOR_RGB2BGR
    return np.asarray(cv2.cvtColor(small, code), dtype=np.uint8)
