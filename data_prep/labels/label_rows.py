"""The columns of the table of labels, the rule for patient_id, the list of bad rows, and the checks of paths."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from medcls.errors import ConfigError

Column: TypeAlias = "pa.Array[Any] | pa.ChunkedArray[Any]"
# What names the images of a row: the column of the table, and the spellings in a labels file.
KEYS = {
    "path": ("path",),
    "series_uid": ("series_uid", "SeriesInstanceUID"),
    "study_uid": ("study_uid", "StudyInstanceUID"),
    "dicom_patient_id": ("dicom_patient_id", "PatientID"),
}
ROI = ("roi_x", "roi_y", "roi_w", "roi_h")
OPTIONAL_COLUMNS: list[tuple[str, pa.DataType]] = [
    *((name, pa.string()) for name in ("split", "sex")),
    ("age_years", pa.float64()),
    ("side", pa.string()),
    *((name, pa.int32()) for name in ROI),
]
"""Columns of labels.csv with a meaning of their own, beside the keys, the patient and the labels: name -> type."""
OWN_COLUMNS = (
    "number",
    *(s for spelled in KEYS.values() for s in spelled),
    "patient_id",
    *(name for name, _ in OPTIONAL_COLUMNS),
)
_SHOWN = 10
# A name that is shown in tables, figures and terminals has none of these.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Rows that are held as Python objects at a time.
CHUNK_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class PatientRule:
    """Where the patient id comes from: the column, a pattern on the path, every image for itself, or the header.

    Attributes:
        patients: "declared" or "per_image".
        pattern: Regular expression whose first group is the patient id, matched on the path; or None.
        headers: The source has DICOM headers: where nothing else names the patient, their PatientID does.
    """

    patients: str = "declared"
    pattern: str | None = None
    headers: bool = False

    def __post_init__(self) -> None:
        if self.pattern is not None and self.patients != "declared":
            raise ConfigError(f"patient_id.pattern with patients={self.patients}: remove one of the two")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ConfigError(
                    f"patient_id.pattern={self.pattern!r} is not a regular expression: {error}"
                ) from error
            if groups < 1:
                raise ConfigError(f"patient_id.pattern={self.pattern!r}: expected one group, as in '^([0-9]+)'")

    @property
    def derives(self) -> bool:
        """The path alone says whose image it is."""
        return self.pattern is not None or self.patients == "per_image"

    @property
    def needs_column(self) -> bool:
        """Neither the path nor a header names the patient, so the labels file has to."""
        return not self.derives and not self.headers

    def find(self, path: str, declared: str) -> str:
        """Return the patient id of one image; "" where the pattern does not match."""
        if self.patients == "per_image":
            return path
        if self.pattern is None:
            return declared
        match = re.search(self.pattern, path)
        if match is None:
            return ""
        return match.group(1) or ""


@dataclass(slots=True)
class BadRows:
    """What is wrong, counted whole and kept in part: a million bad rows end in one line.

    Attributes:
        show: What a message may show of a path.
        count: Problems.
        missing: Files of them that are not there.
        shown: The first problems.
    """

    show: Callable[[str], str] = str
    count: int = 0
    missing: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, problem: str, *, missing: bool = False) -> None:
        """Count a problem; `missing`: a file is not there."""
        self.count += 1
        self.missing += missing
        if len(self.shown) < _SHOWN:
            self.shown.append(problem)

    def add_at(self, table: pa.Table, rows: Iterable[int], problem: str) -> None:
        """Count a problem of one row, or of two together, of a table with number and path."""
        self.add(f"{' and '.join(self._name_row(table, row) for row in rows)}: {problem}")

    def _name_row(self, table: pa.Table, row: int) -> str:
        number, path = table["number"][row].as_py(), table["path"][row].as_py()
        shown = ""
        if path:
            shown = self.show(path)
        if not number:
            return shown
        return f"row {number} ({shown})" if shown else f"row {number}"

    def describe(self) -> str:
        """Return the first ten, and how many more there are."""
        shown = "; ".join(self.shown)
        if self.count > len(self.shown):
            shown += f"; and {self.count - len(self.shown)} more"
        return shown


def build_schema(labels: Iterable[str], columns: Iterable[str] = ()) -> pa.Schema:
    """Return the columns of a table of labels, for its label and further columns."""
    texts = [*KEYS, "patient_id", *labels]
    fields: list[tuple[str, pa.DataType]] = [("number", pa.int64())]
    fields += [*((name, pa.string()) for name in texts), *OPTIONAL_COLUMNS, *((name, pa.string()) for name in columns)]
    return pa.schema(fields)


def is_label(name: str) -> bool:
    """Return whether a column holds labels."""
    return name == "label" or name.startswith("label_")


def set_columns(table: pa.Table, **columns: Any) -> pa.Table:
    """Return a table with some of its columns replaced, or with further ones."""
    for name, column in columns.items():
        if name in table.column_names:
            table = table.set_column(table.schema.get_field_index(name), name, column)
        else:
            table = table.append_column(name, column)
    return table


def with_folders(files: Column) -> pa.ChunkedArray[Any]:
    """Return `files` (relative paths with /) and every folder that one of them is in."""
    level: Any = files
    levels: list[Any] = []
    while len(level := pc.unique(parent_folders(level.filter(pc.match_substring(level, "/"))))):
        levels.append(level)
    folders = pc.unique(pa.chunked_array(levels, type=pa.string()))
    chunks = files.chunks if isinstance(files, pa.ChunkedArray) else [files]
    return pa.chunked_array([*chunks, folders])


def parent_folders(paths: Any) -> Any:
    """Return the folder of each path of an Arrow array, "" for the source itself."""
    return pc.replace_substring_regex(paths, pattern=r"/?[^/]*\z", replacement="")


def check_paths(table: pa.Table, *, root: Path, listed: Column, bad: BadRows) -> None:
    """Find rows whose path is not a file of the source, nor a folder that may be named."""
    suspects = table.select(["number", "path"])
    suspects = suspects.filter(pc.invert(pc.is_in(suspects["path"], value_set=listed)))
    for batch in suspects.to_batches(max_chunksize=CHUNK_ROWS):
        for number, path in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            file = Path(os.path.realpath(root / path))
            # A link out of the source reads somebody else's files; one inside gives a file two names.
            if not file.is_relative_to(root):
                bad.add(f"row {number}: path is a link that leads out of the source folder")
            elif file != root / path:
                bad.add(f"row {number}: path is or contains a symbolic link; expected the file itself")
            else:
                # What was not listed is not a file of this run, even if it has appeared since.
                bad.add(f"row {number}: its file does not exist", missing=True)


_WHAT = {"path": "image", "series_uid": "series", "study_uid": "study", "dicom_patient_id": "patient"}


def check_together(table: pa.Table, *, key: str, labels: Sequence[str], bad: BadRows) -> None:
    """Find what one row alone cannot show: images named twice, a split for some of the rows."""
    for number, first, last, differ in _find_twice(table, key, labels):
        other, how = first, "the same label: keep one row"
        if number == first:
            other = last
        if differ:
            how = "another label: keep the right row (for two readers: give each a column, and set labelling.readers)"
        bad.add(f"row {number}: the same {_WHAT[key]} and region as row {other}, with {how}")
    blank = table["split"].null_count
    if 0 < blank < table.num_rows:
        for number in table.filter(pc.is_null(table["split"]))["number"]:
            bad.add(f"row {number}: split is blank; fill all or none")


def _find_twice(table: pa.Table, key: str, labels: Sequence[str]) -> list[tuple[int, int, int, bool]]:
    """Return the lines that name the same as another: number, those of the first and last, if their labels differ."""
    keys = [key]
    if table["roi_x"].null_count < table.num_rows:
        keys += ROI
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
    found = found.select(["number", "number_min", "number_max", "differ"])
    return sorted(zip(*found.to_pydict().values(), strict=True))
