"""Draw held-out volumes, their inputs to the autoencoder, and its reconstructions."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medcls.console import say
from medcls.data.dataset import Batch
from medcls.files import write_bytes
from medcls.models.autoencoder import Autoencoder
from medcls.training.forward import move_images
from medcls.training.state import StepRules

_CELL, _GAP, _TITLE = 112, 4, 18
_VIEWS = ("axial", "coronal", "sagittal")


@torch.inference_mode()
def draw_reconstructions(
    path: Path, model: Autoencoder, volumes: Dataset[Batch], *, count: int, rules: StepRules
) -> None:
    """Write a PNG: for each of the first `count` volumes three rows, one an axis, of input, corrupted and output.

    The slices are the middle ones, along left and right a quarter off the middle: no profile of a face. All are drawn
    by the range of the intact volume, the first channel of several.

    All levels take part, also where they were trained one by one. Nothing is written for count=0.
    """
    model.eval()
    model.choose_level(None)
    blocks = []
    for position in range(min(count, len(volumes))):  # type: ignore[arg-type]
        batch = volumes[(0, position)]
        images = move_images(batch.images, rules)
        made, target = model(images)[0]
        seen = model.normalize(images[:, -model.in_channels :], like=images[:, : model.in_channels])[0]
        columns = [target, seen, made] if images.shape[1] > model.in_channels else [target, made]
        blocks.append(_draw_block([part[0].float().cpu() for part in columns]))
    if not blocks:
        return
    ok, png = cv2.imencode(".png", np.vstack(blocks))
    if not ok:
        raise RuntimeError(f"{path.name} could not be encoded")
    write_bytes(path, png.tobytes())
    say(f"look at {path}: held-out volumes, their inputs to the autoencoder, and its reconstructions")


def _draw_block(columns: list[Tensor]) -> NDArray[np.uint8]:
    """Columns (D, H, W) as rows of slices with a title over them."""
    low, high = float(columns[0].min()), float(columns[0].max())
    names = ("input", "corrupted", "output") if len(columns) == 3 else ("input", "output")
    width = len(columns) * (_CELL + _GAP)
    title = np.full((_TITLE, width), 255, np.uint8)
    for i, name in enumerate(names):
        cv2.putText(title, name, (i * (_CELL + _GAP) + 2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, 0, 1, cv2.LINE_AA)
    rows = [title]
    for view in range(len(_VIEWS)):
        row = np.full((_CELL + _GAP, width), 255, np.uint8)
        for i, volume in enumerate(columns):
            picture = _draw_slice(volume, view, low=low, high=high)
            row[: picture.shape[0], i * (_CELL + _GAP) : i * (_CELL + _GAP) + picture.shape[1]] = picture
        rows.append(row)
    return np.vstack(rows)


def _draw_slice(volume: Tensor, axis: int, *, low: float, high: float) -> NDArray[np.uint8]:
    length = volume.shape[axis]
    # The middle sagittal slice of a head is a profile.
    flat = volume.select(axis, length // 4 if axis == 2 else length // 2).numpy()
    # Heads stand upright: depth runs from inferior to superior.
    flat = flat if axis == 0 else flat[::-1]
    levels = np.clip((flat - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    zoom = _CELL / max(levels.shape)
    size = (max(1, round(levels.shape[1] * zoom)), max(1, round(levels.shape[0] * zoom)))
    return cv2.resize(np.ascontiguousarray(levels), size, interpolation=cv2.INTER_NEAREST).astype(np.uint8)
