"""Read boxes=FILE: the regions of raw images that predict classifies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medcls.console import say
from medcls.data.regions import ALL, NONE, describe_share
from medcls.errors import ConfigError, DataError
from medcls.imaging.preprocess import Box
from medcls.predict.clinical_values import read_csv
from medcls.predict.prediction_table import OK, REFUSED, Case
from medcls.runs.model_file import ModelCard

COLUMNS = ("roi_x", "roi_y", "roi_w", "roi_h")
Regions = dict[str, list[tuple[int, Box | None]]]
"""Path -> row of the file and region, each; None is the whole image."""

_LINE = f"boxes=FILE.csv with the columns path, {', '.join(COLUMNS)}, one row for each region"


def check_regions(path: Path | None, cards: Sequence[ModelCard], *, runs: Sequence[Path], allow: bool) -> None:
    """Check that regions are given to runs that were trained on regions, and whole images to the others.

    With `allow` (out_of_domain=allow) what does not fit is said, and prediction goes on.

    Raises:
        ConfigError: regions and runs do not fit, or a run takes volumes.
    """
    for run, card in zip(runs, cards, strict=True):
        if path is not None and card.preprocess.spatial_dims == 3:
            raise ConfigError(f"boxes={path}: run={run} takes volumes, which have no regions: remove boxes=")
        trained = card.domain.regions if card.domain else ""
        fault = ""
        if path is None and trained == ALL:
            share = describe_share(card.domain.region_share if card.domain else [])
            fault = f"run={run} was trained on regions{share}, but source= contains whole images: set {_LINE}"
        elif path is not None and trained == NONE:
            fault = f"boxes={path}: run={run} was trained on whole images: remove boxes="
        if fault and not allow:
            raise ConfigError(f"{fault} (out_of_domain=allow predicts all the same)")
        if fault:
            say(f"notice: {fault}")
        elif path is not None and not trained:
            say(f"notice: run={run} does not record whether it was trained on regions (an older version wrote it)")


def read_regions(path: Path) -> Regions:
    """Return the regions of each file, (x, y, width, height) in its pixels.

    Args:
        path: CSV with path (relative to the source) and the four columns; others are ignored, so a labels file will do.

    Raises:
        MissingInputError: no such file.
        DataError: no CSV, a missing column, a cell that is no whole number, or a region that occurs twice.
    """
    header, records = read_csv(path, setting="boxes")
    missing = [name for name in ("path", *COLUMNS) if name not in header]
    if missing:
        raise DataError(f"boxes={path}: missing columns {', '.join(missing)}; expected path, {', '.join(COLUMNS)}")
    regions: Regions = {}
    for number, record in enumerate(records, start=2):
        cells = [record[name] for name in COLUMNS]
        box = _read_box(cells)
        if any(cells) and (box is None or min(box[:2]) < 0 or min(box[2:]) < 1):
            raise DataError(
                f"boxes={path}, row {number}: expected whole numbers of pixels in {', '.join(COLUMNS)}, x and y from "
                "0, width and height from 1; or all four blank for the whole image"
            )
        of_file = regions.setdefault(record["path"].replace("\\", "/").removeprefix("./"), [])
        if box in [known for _, known in of_file]:
            raise DataError(f"boxes={path}, row {number}: repeats the region of an earlier row; keep one")
        of_file.append((number, box))
    return regions


def _read_box(cells: Sequence[str]) -> Box | None:
    try:
        x, y, width, height = (int(cell) for cell in cells)
    except ValueError:
        return None
    return x, y, width, height


def split_cases(cases: Sequence[Case], regions: Regions, *, path: Path, trained: str, allow: bool) -> list[Case]:
    """Return a case for each region, named as a store names it; files without a row stay whole, or are refused.

    `trained` is what the model card says of regions; with `allow` whole images are predicted all the same.

    Raises:
        DataError: rows that name no file of the source.
    """
    known = {case.path for case in cases}
    strange = [rows[0][0] for name, rows in regions.items() if name not in known]
    if strange:
        raise DataError(
            f"boxes={path}: {len(strange)} of {len(regions)} paths are not files of the source (the first is in row "
            f"{strange[0]}): write them relative to source="
        )
    split = []
    for case in cases:
        boxes = [box for _, box in regions.get(case.path, [])] if case.state == OK else []
        for box in boxes or [None]:
            if box is not None:
                split.append(replace(case, region=box, key=f"{case.path}@{','.join(map(str, box))}"))
            elif case.state == OK and trained == ALL:
                detail = "the run was trained on regions, and boxes= has none for this file"
                split.append(replace(case, state=OK if allow else REFUSED, reason="no_region", detail=detail))
            else:
                split.append(case)
    return split
