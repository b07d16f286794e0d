"""Collect the explanations beside an evaluation for its report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from medcls.disk import check_disk
from medcls.errors import DataError
from medcls.evaluate.report_runs import hide_folders
from medcls.evaluate.split_predictions import SplitPredictions, values_of
from medcls.files import read_json, sha256_file
from medcls.report.content import Explanation, Overlay

EXPLANATIONS = "explanations.json"
IMAGES = "images"
SHOWN = 6
WIDTH = 560  # pixels: two panels side by side, sharp at half the page


def read_explanations(predictions: SplitPredictions, *, store: str | None) -> tuple[list[Explanation], list[str]]:
    """Return the explanations of this model and store, by name of the method, and what to say below them.

    They are those in the run's own folder of this split, where `medcls.explain` without out= puts them. Explanations of
    another model or store are left out and named.

    Raises:
        DataError: an explanations.json is no JSON, or another one than explain writes.
    """
    if predictions.members:
        return [], ["Explanations exist only for single runs: see the reports of the runs that were averaged."]
    folder = predictions.log.parent
    paths = sorted(folder.glob(f"explanation-*/{EXPLANATIONS}"))
    found = {path.parent: read_json(path, remedy="restore it, or explain again") for path in paths}
    names = ("model_sha256", "store_sha256")
    own = {
        path: content
        for path, content in found.items()
        if all(content.get(name) == predictions.key[name] for name in names)
    }
    rows = {image_id: row for row, image_id in enumerate(values_of(predictions.opened, "image_id"))}
    notes = [
        f"{path.name} was made from another model or store and is left out: explain again."
        for path in found
        if path not in own
    ]
    if own and predictions.plan.name:
        notes.append("The explanations cover the center of each image, not the evaluated views.")
    if not own:
        rest = f" store={hide_folders(store)}" if store else ""
        rest += f" split={predictions.key['split']} method=gradcam"
        notes.append(
            "None were made for this model on this split. To get them: "
            f"python -m medcls.explain run={hide_folders(str(predictions.run))}{rest}; then evaluate again."
        )
    try:
        return [_read_one(path, content, rows) for path, content in own.items()], notes
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder}: an {EXPLANATIONS} is not as medcls.explain writes it ({error}): explain again"
        ) from error


def _read_one(folder: Path, content: Mapping[str, Any], rows: Mapping[str, int]) -> Explanation:
    sanity = content["summary"]["sanity"]
    pictured = [
        Overlay(rows[row["image_id"]], row["true"], row["predicted"], png)
        for row in content["images"][:SHOWN]
        if row["image_id"] in rows and (png := _shrink(folder / IMAGES / Path(row.get("picture", "")).name, row))
    ]
    return Explanation(
        method=content["method"],
        trusted=sanity is not None and sanity["verdict"] == "passed",
        sentences=content["found"],
        count=len(content["images"]),
        overlays=pictured,
    )


def _shrink(path: Path, row: Mapping[str, Any]) -> bytes:
    """Return the picture of a row as PNG, at most WIDTH wide; empty where there is none."""
    if not path.is_file() or path.is_symlink():
        return b""
    # Version 0.2.0 kept no checksums of pictures.
    if sha256_file(path) != row.get("picture_sha256", sha256_file(path)):
        raise DataError(f"{path} has changed since it was drawn: restore it, or explain again")
    picture = cv2.imread(str(path))
    if picture is None:
        check_disk(path)
        return b""
    height, width = picture.shape[:2]
    if width > WIDTH:
        picture = cv2.resize(picture, (WIDTH, round(height * WIDTH / width)), interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes())
