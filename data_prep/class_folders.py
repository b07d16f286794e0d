"""Class-named folders to a table of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.label_rows import CHUNK_ROWS, CONTROL, Column, PatientRule, build_schema
from medcls.errors import ConfigError, DataError


def read_class_folder_table(source: Path, *, files: Column, rule: PatientRule) -> pa.Table:
    """Returns a row for each image of a source whose first-level folders are the classes, as `read_label_table` does.

    Args:
        source: Whose first-level folders are looked at.
        files: Relative paths of the image files, with /, in any order.
        rule: Where patient ids come from; without headers the "declared" rule has nothing to read here.

    Returns:
        Sorted by path; number is 0.

    Raises:
        ConfigError: no rule for the patients; guessing would leak.
        DataError: images outside class folders, fewer than two classes, an empty class, or no match.
    """
    if rule.needs_column:
        raise ConfigError(
            "without labels=FILE.csv the patients are unknown and a guess would leak between splits: give "
            "patient_id.pattern=REGEX (one group, matched on the path), or patients=per_image where every image "
            "is another patient"
        )
    paths: Any = files.take(pc.sort_indices(files))
    outside = len(paths.filter(pc.invert(pc.match_substring(paths, "/"))))
    if outside:
        raise DataError(f"{outside} images lie outside class folders in source={source}: give labels=FILE.csv")
    labels: Any = pc.replace_substring_regex(paths, pattern=r"(?s)/.*", replacement="")
    classes: list[str] = sorted(labels.unique().to_pylist())
    if any(map(CONTROL.search, classes)):
        raise DataError(f"source={source} has a class folder whose name holds a control character: rename it")
    empty = sorted(p.name for p in source.iterdir() if p.is_dir() and p.name not in classes and p.name[0] != ".")
    if empty:
        raise DataError(f"class folders without an image: {', '.join(empty)}; fill or remove them")
    if len(classes) < 2:
        raise DataError(f"source={source} has {len(classes)} class folders with images; expected at least 2")
    patients = _find_patients(paths, rule)
    unmatched = len(patients.filter(pc.equal(patients, pa.scalar(""))))
    if unmatched:
        raise DataError(f"patient_id.pattern={rule.pattern!r} does not match {unmatched} of {len(paths)} paths")
    known = {"path": paths, "patient_id": patients, "label": labels, "number": pa.repeat(0, len(paths))}
    schema = build_schema(["label"])
    return pa.table([known.get(f.name, pa.nulls(len(paths), f.type)) for f in schema], schema=schema)


def _find_patients(paths: Any, rule: PatientRule) -> Any:
    """The patient of each path, null where only its header can say."""
    if rule.pattern is None:
        return paths if rule.derives else pa.nulls(len(paths), pa.string())
    starts = range(0, len(paths), CHUNK_ROWS)
    pieces = (paths.slice(start, CHUNK_ROWS).to_pylist() for start in starts)
    chunks = [pa.array([rule.find(path, "") for path in piece], pa.string()) for piece in pieces]
    return pa.chunked_array(chunks, type=pa.string())
