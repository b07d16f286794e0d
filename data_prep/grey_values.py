"""Check that stored images keep the grey values of their files: first on a sample, then on the whole store."""

from __future__ import annotations

from collections import Counter
from math import ceil, floor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.labels.label_rows import ROI
from data_prep.manifest_rows import describe_values
from data_prep.plan import Plan
from data_prep.shard_work import ShardSetting
from medcls.console import say
from medcls.data.manifest import COLUMNS
from medcls.errors import DataError, ImageRefusedError
from medcls.identity import format_count
from medcls.imaging.decode import DecodeTask, Spec, decode_image
from medcls.imaging.grey_levels import FEW_LEVELS, loses_levels
from medcls.imaging.worker import run_limited

_SAMPLED, _WORTH_SAMPLING = 32, 512
"""Images of the sample; below so many images the whole set is decoded as soon."""

_NEARLY_ALL, _MOST = 0.9, 0.5
_DARK = 1 / 8
"""A store whose brightest pixels stay below this share of its range is said to be dark. Own choice."""

_NAMES = ("value_low", "value_high", "value_levels", "value_scaling", "stored_levels", "stored_high")
_COLUMNS = pa.schema([COLUMNS.field(name) for name in _NAMES])
_CAUSES = {
    "type": "they were divided by the largest value of their type",
    "voi_lut": "the VOI LUT in their header uses only a small part of its stated bits",
    "window": "the window in their header covers few of them",
    "own_range": "a few outlying pixels set the range of each image",
    "range": "image.range is much wider than their values",
}


def judge_sample(plan: Plan, setting: ShardSetting) -> None:
    """Decode a few images of a large plan and refuse what would be refused after hours of decoding.

    The sample is a pure function of the number of images, so that all jobs of one store see the same.

    Raises:
        DataError: nearly all images of the sample lose their grey levels.
    """
    if (
        setting.allow_few_levels
        or setting.earlier is not None
        or setting.spec.spatial_dims != 2
        or len(plan) < _WORTH_SAMPLING
    ):
        return
    places = np.sort(np.random.default_rng(0).choice(len(plan), _SAMPLED, replace=False))
    rows = plan.table.take(pa.array(places))
    tasks = []
    for row in rows.select(["files", *ROI]).to_pylist():
        box: Any = tuple(row[name] for name in ROI)
        if box[0] is None:
            box = None
        paths = tuple(setting.source / path for path in row["files"])
        tasks.append(DecodeTask(paths, box, setting.spec, setting.limits.memory_bytes))
    outcomes = run_limited(
        decode_image,
        tasks,
        workers=min(setting.workers, 4),
        limits=setting.limits,
        refuse_unreadable=setting.refuse_unreadable,
    )
    found = [describe_values(each) for each in outcomes if not isinstance(each, ImageRefusedError)]
    table = pa.Table.from_pylist(found, schema=_COLUMNS)
    lost = _find_losses(table, setting.spec)
    if found and lost.mean() >= _NEARLY_ALL:
        raise DataError(_describe(table, lost, setting.spec, of="a sample of "))


def judge_levels(manifest: pa.Table, spec: Spec, *, allow: bool) -> None:
    """Refuse a store most of whose images lost their grey levels; say so if some did, or if all of it is dark.

    Args:
        manifest: Of all images; null, or no such columns, for those that an earlier version stored.
        spec: What was done to them. Windows in HU that the user chose are taken as meant.
        allow: Say it, and go on.

    Raises:
        DataError: with the measured values and the settings.
    """
    if "stored_levels" not in manifest.column_names:
        return
    lost = _find_losses(manifest, spec)
    known = manifest.num_rows - manifest["stored_levels"].null_count
    if lost.any():
        said = _describe(manifest, lost, spec)
        if not allow and lost.sum() > _MOST * known:
            raise DataError(said)
        say(f"notice: {said}")
    elif known and spec.spatial_dims == 2:
        _say_dark(manifest, spec)


def _find_losses(table: pa.Table, spec: Spec) -> NDArray[np.bool_]:
    """For each row whether the image lost its grey levels; False if unknown, or if the user chose windows in HU."""
    pairs: Any = zip(table["value_levels"].to_pylist(), table["stored_levels"].to_pylist(), strict=True)
    known = [None not in pair and loses_levels(source=pair[0], stored=pair[1]) for pair in pairs]
    return np.array(known, np.bool_) & (not spec.windows_hu)


def _say_dark(manifest: pa.Table, spec: Spec) -> None:
    """Say that most images use a small part of the store's range, though no level was lost."""
    full = spec.value_range[1]
    bright = pc.drop_null(manifest["stored_high"]).to_numpy()
    dark = bright < _DARK * full
    if dark.sum() <= _MOST * len(bright):
        return
    say(
        f"notice: {dark.sum()} of {format_count(len(bright), 'image')} dark: in half of them the brightest pixel is "
        f"{np.median(bright[dark]):g} of {full:g} or less; their files hold grey values {_say_range(manifest)}. Set "
        f"{_propose(manifest)} (the same for all images) or image.intensity=minmax (each image by its own range) to "
        "use the whole range"
    )


def _describe(table: pa.Table, lost: NDArray[np.bool_], spec: Spec, *, of: str = "") -> str:
    few = table.filter(pa.array(lost))
    known = table.num_rows - table["stored_levels"].null_count
    stored, source = (int(np.median(few[name].to_numpy())) for name in ("stored_levels", "value_levels"))
    scaling: Any = Counter(few["value_scaling"].to_pylist()).most_common(1)[0][0]
    settings = [f"{_propose(few)} (the same for all images)"]
    if scaling != "window":  # what a window has cut off does not come back by stretching
        each = {"own_range": "percentile"}.get(scaling, "minmax")
        settings.append(f"image.intensity={each} (each image by its own range)")
    if spec.dtype == "uint8" and scaling in ("type", "voi_lut"):
        settings.append("image.dtype=uint16 (keeps every level)")
    return (
        f"image.few_levels=refuse: {lost.sum()} of {of}{known} images keep fewer than {FEW_LEVELS} grey levels (half "
        f"of them {stored} or fewer) of the {source} or more in their files: these are {_say_range(few)}, and "
        f"{_CAUSES.get(scaling, 'most of them were cut off')}. Set {', '.join(settings)} or image.few_levels=allow"
    )


def _say_range(table: pa.Table) -> str:
    low, high = (pc.drop_null(table[name]).to_numpy() for name in ("value_low", "value_high"))
    return f"{low.min():g} to {high.max():g}"


def _propose(table: pa.Table) -> str:
    """Return the setting that fits the values of all but one image in twenty: whole bits if that is near."""
    low, high = (pc.drop_null(table[name]).to_numpy() for name in ("value_low", "value_high"))
    bottom, top = float(np.percentile(low, 5)), float(np.percentile(high, 95))
    if top <= 1.0:
        return f"image.intensity=range image.range=[{bottom:.3g},{top:.3g}]"
    first, last = floor(bottom), ceil(top)
    if 0 <= bottom < top / 2:
        bits = max(1, int(np.ceil(np.log2(floor(top) + 1))))
        first, last = 0, (1 << bits) - 1
    return f"image.intensity=range image.range=[{first},{last}]"
