"""Check maps against a known place, a scrambled network, and the score itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from numpy.typing import NDArray

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
from medcls.explain.method import Explained, Method, Target
from medcls.explain.perturbation import build_background
from medcls.explain.sanity import SANITY_LIMIT, compare_structure, correlate_ranks, plan_cascade, scramble
from medcls.identity import format_count
from medcls.inputs import check_file
from medcls.models.classifier import Classifier

Box = tuple[int, int, int, int]
_BOX = ("box_y", "box_x", "box_h", "box_w")
ROLLS = 2


@dataclass(frozen=True, slots=True)
class Subject:
    """One image that is explained.

    Attributes:
        image_id: Id of the image in the store; it may be a path.
        row: Its row in predictions.parquet.
        image: (C, *spatial) as stored, or the middle of it where the model takes crops.
        target: What is explained.
        true: The truth in words.
        predicted: The prediction in words.
        patient: Whose image it is (pseudonym).
        box: (y, x, height, width) of the sign in pixels of `image`, or None.
        affine: (4, 4) of a volume, index to millimetres (RAS+), or None.
    """

    image_id: str
    row: int
    image: NDArray[Any]
    target: Target
    true: str
    predicted: str
    patient: str = ""
    box: Box | None = None
    affine: NDArray[np.float64] | None = None


def read_boxes(path: Path, store: Store) -> dict[str, Box]:
    """Return where the sign is, in stored pixels, by image_id.

    Args:
        path: CSV with image_id (or path, where ids are as declared) and box_y, box_x, box_h, box_w in file pixels.
        store: Of 2-D images that were padded or stretched into their frame.

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
    texts = [
        name
        for name in _BOX
        if not pa.types.is_floating(table[name].type) and not pa.types.is_integer(table[name].type)
    ]
    if texts or any(table[name].null_count for name in _BOX):
        raise DataError(f"boxes={path}: {', '.join(texts or _BOX)}: expected a number in every row")
    known = dict(zip(store.column("image_id"), _read_frames(store), strict=True))
    rows = table.select([key, *_BOX]).to_pylist()
    boxes = {str(row[key]): _place_box(row, known[str(row[key])]) for row in rows if str(row[key]) in known}
    if not boxes:
        raise DataError(f"boxes={path}: no {key} in it is an image_id of the store")
    return boxes


def _read_frames(store: Store) -> list[tuple[int, ...]]:
    names = ("source_height", "source_width", "valid_y", "valid_x", "valid_height", "valid_width")
    return list(zip(*(store.column(name) for name in names), strict=True))


def _place_box(row: dict[str, Any], frame: tuple[int, ...]) -> Box:
    """Return the file's pixels to the frame's, widened to whole pixels."""
    source_height, source_width, y, x, height, width = frame
    zoom_y, zoom_x = height / source_height, width / source_width
    top, left = int(np.floor(y + row["box_y"] * zoom_y)), int(np.floor(x + row["box_x"] * zoom_x))
    bottom = int(np.ceil(y + (row["box_y"] + row["box_h"]) * zoom_y))
    right = int(np.ceil(x + (row["box_x"] + row["box_w"]) * zoom_x))
    return top, left, max(1, bottom - top), max(1, right - left)


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
    of_map = method.count_images(first.image.shape[1:])
    levels = len(plan_cascade(list(model.stages)))
    parts = {
        "maps": len(subjects) * of_map,
        "curves": len(subjects) * count_curve_images(1 + ROLLS) if job.curves else 0,
        "weight randomisation": min(job.sanity_images, len(subjects)) * levels * of_map,
    }
    named = ", ".join(f"{name} {number * each:.0f} s" for name, number in parts.items() if number)
    shorter = (
        "; curves=false leaves out the curves, sanity_images=0 the randomisation"
        if sum(parts.values()) * each > 60
        else ""
    )
    seconds = f"{sum(parts.values()) * each:.0f} s"
    return f"{format_count(len(subjects), 'image')} explained in about {seconds} ({named}){shorter}"


def check_sanity(
    method: Method, model: Classifier, subjects: Sequence[Subject], explained: Sequence[Explained]
) -> dict[str, Any]:
    """Return how alike the maps stay while the network is scrambled from its output down, and the verdict.

    The verdict: "failed" from a mean |rank correlation| of SANITY_LIMIT with the wholly scrambled network's maps;
    "undecided" where all of these maps are constant.
    """
    levels = []
    for stages in plan_cascade(list(model.stages)):
        scrambled = scramble(model, stages, seed=(method.job.seed,))
        ranks, structures = [], []
        for subject, before in zip(subjects, explained, strict=True):
            after = method.explain(scrambled, subject.image, target=subject.target, name=subject.image_id)
            ranks.append(correlate_ranks(before.heat, after.heat))
            structures.append(compare_structure(before.heat, after.heat))
        levels.append(
            {
                "scrambled": stages,
                "rank_correlation": mean_of([None if rank is None else abs(rank) for rank in ranks]),
                "signed_rank_correlation": mean_of(ranks),
                "structural_similarity": mean_of(structures),
                "undefined": sum(rank is None for rank in ranks),
            }
        )
    return {"levels": levels, "limit": SANITY_LIMIT, "images": len(subjects), "verdict": judge_sanity(levels)}


def judge_sanity(levels: Sequence[dict[str, Any]]) -> str:
    """Return "passed", "failed" or "undecided" from the last level."""
    alike = levels[-1]["rank_correlation"]
    if alike is None:
        return "undecided"
    return "failed" if alike >= SANITY_LIMIT else "passed"


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of the defined values; None where there is none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
