"""Check maps against a known place and the score itself, and say beforehand how long it takes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from numpy.typing import NDArray

from medcls.data.crops import Box
from medcls.data.store import Store
from medcls.disk import check_disk
from medcls.errors import ConfigError, DataError
from medcls.explain.faithfulness import (
    Curves,
    compute_curves,
    compute_iou,
    count_curve_images,
    point_game,
    roll_map,
)
from medcls.explain.method import Method, Subject
from medcls.explain.perturbation import build_background
from medcls.explain.sanity import plan_cascade
from medcls.identity import format_count
from medcls.inputs import check_file
from medcls.models.classifier import Classifier

_BOX = ("box_y", "box_x", "box_h", "box_w")
# Where a file's pixels are in the store: its size, and the part of the stored frame that it fills.
_FRAME = ("source_height", "source_width", "valid_y", "valid_x", "valid_height", "valid_width")
ROLLS = 2


def read_boxes(path: Path, store: Store) -> dict[str, Box]:
    """Return where the sign is, in stored pixels, by image_id.

    Args:
        path: CSV with image_id (or path, where ids are as declared) and box_y, box_x, box_h, box_w in file pixels.
        store: Store of 2-D images that were padded or stretched into their frame.

    Raises:
        MissingInputError: no such file.
        DataError: no CSV, columns missing, or no box of any image of the store.
        ConfigError: images were cropped: where their pixels went is not kept.
    """
    check_file(path, "boxes")
    if len(store.shape) != 3 or store.spec.fit == "crop":
        raise ConfigError("boxes=: expected a store of 2-D images with image.fit=pad or stretch")
    try:
        table = pyarrow.csv.read_csv(path)
    except (pa.ArrowInvalid, OSError) as error:
        check_disk(path, error)
        # Arrow's own message quotes the line, which may hold a name.
        raise DataError(f"boxes={path} is not a CSV file with as many cells in each line as in its header") from error
    key = "image_id" if "image_id" in table.column_names else "path"
    missing = [name for name in (key, *_BOX) if name not in table.column_names]
    if missing:
        raise DataError(f"boxes={path}: missing columns {', '.join(missing)}; expected image_id, {', '.join(_BOX)}")
    numeric = [name for name in _BOX if table[name].type in (pa.int64(), pa.float64())]
    if len(numeric) < len(_BOX) or any(table[name].null_count for name in _BOX):
        texts = [name for name in _BOX if name not in numeric] or _BOX
        raise DataError(f"boxes={path}: {', '.join(texts)}: expected a number in every row")
    frames = zip(*(store.column(name) for name in _FRAME), strict=True)
    known = dict(zip(store.column("image_id"), frames, strict=True))
    boxes = {}
    for name, top, left, box_height, box_width in zip(*(table[name].to_pylist() for name in (key, *_BOX)), strict=True):
        if str(name) in known:
            source_height, source_width, y, x, height, width = known[str(name)]
            zoom_y, zoom_x = height / source_height, width / source_width
            first_y, first_x = math.floor(y + top * zoom_y), math.floor(x + left * zoom_x)
            last_y = math.ceil(y + (top + box_height) * zoom_y)
            last_x = math.ceil(x + (left + box_width) * zoom_x)
            boxes[str(name)] = first_y, first_x, max(1, last_y - first_y), max(1, last_x - first_x)
    if not boxes:
        raise DataError(f"boxes={path}: no {key} in it is an image_id of the store")
    return boxes


def measure_place(heat: NDArray[np.float32], box: Box) -> dict[str, float | None]:
    """Return the pointing game, the overlap, and the share of the image that the box takes: a blind guess's hits."""
    y, x, height, width = box
    region = np.zeros(heat.shape, dtype=bool)
    region[y : y + height, x : x + width] = True
    return {"pointing": point_game(heat, region), "iou": compute_iou(heat, region), "box_share": float(region.mean())}


def measure_curves(method: Method, model: Classifier, subject: Subject, heat: NDArray[np.float32]) -> list[Curves]:
    """Return the curves of the map, and of the same map moved to random places; [] for a blank map."""
    if is_blank(heat):
        return []
    score = method.score(model, subject.target)
    background = build_background(subject.image, kind=method.curve_background)
    rivals = [roll_map(heat, seed=(method.job.seed, subject.image_id, number)) for number in range(ROLLS)]
    return compute_curves(
        score, subject.image, [heat, *rivals], background=background, batch_size=method.job.batch_size
    )


def is_blank(heat: NDArray[np.float32]) -> bool:
    """Return whether a map has one value everywhere."""
    return bool(np.ptp(heat) == 0)


def summarize_areas(curves: list[Curves]) -> dict[str, float]:
    """Return the areas under the curves of a map, and the mean of its rivals'; {} without curves."""
    if not curves:
        return {}
    own, rivals = curves[0].areas, np.mean([each.areas for each in curves[1:]], axis=0)
    names = ("deletion_auc", "insertion_auc", "deletion_auc_random", "insertion_auc_random")
    return dict(zip(names, (*own, *map(float, rivals)), strict=True))


def estimate_time(method: Method, model: Classifier, subjects: Sequence[Subject]) -> str:
    """Return how long maps, curves and the randomisation check will take, by one batch of copies of the first image."""
    job, first = method.job, subjects[0]
    score = method.score(model, first.target)
    copies = torch.from_numpy(first.image.astype(np.float32))[None].expand(job.batch_size, *first.image.shape)
    with torch.inference_mode():
        score(copies[:1]).cpu()  # the first call also sets up the network
        start = time.perf_counter()
        score(copies).cpu()
    each = (time.perf_counter() - start) / job.batch_size
    of_map = method.technique.count_images(job, first.image.shape[1:])
    levels = len(plan_cascade(list(model.stages)))
    parts = {
        "maps": len(subjects) * of_map,
        "curves": len(subjects) * count_curve_images(1 + ROLLS) * job.curves,
        "weight randomisation": min(job.sanity_images, len(subjects)) * levels * of_map,
    }
    seconds = sum(parts.values()) * each
    named = ", ".join(f"{name} {number * each:.0f} s" for name, number in parts.items() if number)
    line = f"{format_count(len(subjects), 'image')} explained in about {seconds:.0f} s ({named})"
    if seconds > 60:
        line += "; curves=false leaves out the curves, sanity_images=0 the randomisation"
    return line
