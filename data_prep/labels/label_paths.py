"""Check the paths of labels: missing files, links out of the source, images named twice."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.labels.label_rows import CHUNK_ROWS, ROI, BadRows, Column


def with_folders(files: Column) -> pa.ChunkedArray[Any]:
    """Returns `files` (relative paths with /) and every folder that one of them lies in."""
    level: Any = files
    levels: list[Any] = []
    while len(level := pc.unique(parent_folders(level.filter(pc.match_substring(level, "/"))))):
        levels.append(level)
    folders = pc.unique(pa.chunked_array(levels, type=pa.string()))
    return pa.chunked_array([*(files.chunks if isinstance(files, pa.ChunkedArray) else [files]), folders])


def parent_folders(paths: Any) -> Any:
    """Returns the folder of each path of an Arrow array, "" for the source itself."""
    return pc.replace_substring_regex(paths, pattern=r"/?[^/]*\z", replacement="")


def check_paths(
    table: pa.Table,
    *,
    root: Path,
    listed: Column | None,
    bad: BadRows,
) -> None:
    """Finds rows whose path is no file of the source."""
    is_plain = _look_up(root) if listed is None else _never
    suspects = table.select(["number", "path"])
    if listed is not None:
        suspects = suspects.filter(pc.invert(pc.is_in(suspects["path"], value_set=listed)))
    for batch in suspects.to_batches(max_chunksize=CHUNK_ROWS):
        for number, path in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            try:
                # What was not listed is no file of this run, even if it has appeared since.
                if not is_plain(path) and (_is_missing(root, path) or listed is not None):
                    bad.add(f"row {number}: its file does not exist", missing=True)
            except ValueError as error:
                bad.add(f"row {number}: {error}")


def _never(path: str) -> bool:
    return False


def _look_up(root: Path) -> Callable[[str], bool]:
    """A check whether a path is a file that no link leads to; it looks at a folder once, not once a file."""

    @functools.lru_cache(maxsize=4096)
    def is_folder(folder: str) -> bool:
        parent = folder.rpartition("/")[0]
        return not folder or (is_folder(parent) and stat.S_ISDIR((root / folder).lstat().st_mode))

    def is_plain(path: str) -> bool:
        try:
            return is_folder(path.rpartition("/")[0]) and stat.S_ISREG((root / path).lstat().st_mode)
        except OSError:
            return False

    return is_plain


def _is_missing(root: Path, path: str) -> bool:
    """Whether the file is missing; raises ValueError where a link leads to it.

    A link out of the source reads somebody else's files; one inside gives a file two names.
    """
    try:
        file = Path(os.path.realpath(root / path))
        missing = not file.is_file()
    except OSError:  # a name too long for any file
        return True
    if not file.is_relative_to(root):
        raise ValueError("path is a link that leads out of the source folder")
    if file != root / path:
        raise ValueError("path is or contains a symbolic link; expected the file itself")
    return missing


_WHAT = {"path": "image", "series_uid": "series", "study_uid": "study", "dicom_patient_id": "patient"}


def check_together(table: pa.Table, *, key: str, labels: Sequence[str], bad: BadRows) -> None:
    """What one row alone cannot show: images named twice, a split for some of the rows."""
    for number, other, differ in _find_twice(table, key, labels):
        how = (
            "another label: keep the right row (for two readers: give each a column, and set labelling.readers)"
            if differ
            else "the same label: keep one row"
        )
        bad.add(f"row {number}: the same {_WHAT[key]} and region as row {other}, with {how}")
    blank = table["split"].null_count
    if 0 < blank < table.num_rows:
        for number in table.filter(pc.is_null(table["split"]))["number"]:
            bad.add(f"row {number}: split is blank; fill all or none")


def _find_twice(table: pa.Table, key: str, labels: Sequence[str]) -> list[tuple[int, int, bool]]:
    """The lines that name the same as another line, that line (of several the first or last), and if labels differ."""
    keys = [key] if table["roi_x"].null_count == table.num_rows else [key, *ROI]
    # A join never matches null with null.
    regions: Any = {name: pc.fill_null(table[name], pa.scalar(-1)) for name in keys if name in ROI}
    texts: Any = {name: pc.fill_null(table[name], "") for name in labels}
    filled: Any = pa.table({"number": table["number"], key: table[key], **regions, **texts})
    kinds = [("number", kind) for kind in ("count", "min", "max")] + [(name, "count_distinct") for name in labels]
    counts = filled.group_by(keys, use_threads=False).aggregate(kinds)
    twice = counts.filter(pc.field("number_count") > 1)
    if not twice.num_rows:
        return []
    # Python gets four small columns, however many labels there are.
    differ: Any = [pc.greater(twice[f"{name}_count_distinct"], 1) for name in labels]
    twice = twice.append_column("differ", functools.reduce(pc.or_, differ))
    twice = twice.select([*keys, "number_min", "number_max", "differ"])
    found = filled.select(["number", *keys]).join(twice, keys, join_type="inner")
    pairs = found.select(["number", "number_min", "number_max", "differ"]).to_pylist()
    return sorted(
        (
            row["number"],
            row["number_max"] if row["number"] == row["number_min"] else row["number_min"],
            row["differ"],
        )
        for row in pairs
    )
