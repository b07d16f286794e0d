"""Which images a label row names: by an id, or by a path to a file or a folder. Pairs of row numbers, no objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.labels.label_paths import parent_folders
from data_prep.labels.label_rows import Column

Rows = NDArray[np.int64]


def match_values(wanted: Column, present: Column) -> tuple[Rows, Rows]:
    """Returns (rows of `wanted`, rows of `present`) of all equal values, sorted by the first, then the second."""
    left = pa.table({"value": wanted, "label": np.arange(len(wanted))})
    right = pa.table({"value": pc.cast(present, pa.string()), "image": np.arange(len(present))})
    pairs = left.join(right, "value", join_type="inner", use_threads=False).select(["label", "image"])
    pairs = pairs.sort_by([("label", "ascending"), ("image", "ascending")])
    return pairs["label"].to_numpy(), pairs["image"].to_numpy()


def match_paths(wanted: Column, files: Column) -> tuple[Rows, Rows]:
    """Returns (rows of `wanted`, rows of `files`) where a wanted path is the file or a folder above it.

    Args:
        wanted: Paths with /, each once.
        files: Paths with /.

    Returns:
        Sorted by the first, then the second.
    """
    hits = [_rows_in(files, wanted)]
    folders: Any = parent_folders(files)
    level: Any = pc.unique(folders)
    code = _rows_in(folders, level)
    # Folders are far fewer than files, so the climb to the source is theirs.
    while pc.any(pc.not_equal(level, pa.scalar(""))).as_py():
        hits.append(_rows_in(level, wanted)[code])
        level = parent_folders(level)
    label_rows = np.concatenate([found[found >= 0] for found in hits])
    file_rows = np.concatenate([np.flatnonzero(found >= 0) for found in hits])
    order = np.lexsort((file_rows, label_rows))
    return label_rows[order], file_rows[order]


def _rows_in(values: Any, known: Any) -> Rows:
    """The row of each value in `known`, -1 where it is not there."""
    rows: Rows = pc.fill_null(pc.index_in(values, value_set=known), -1).to_numpy().astype(np.int64)
    return rows
