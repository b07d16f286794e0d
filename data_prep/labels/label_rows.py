"""The columns of the table of labels, the rule for patient_id, and the list of bad rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa

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
_AFTER: list[tuple[str, pa.DataType]] = [
    *((name, pa.string()) for name in ("split", "sex")),
    ("age_years", pa.float64()),
    ("side", pa.string()),
    *((name, pa.int32()) for name in ROI),
]
OWN_COLUMNS = (
    "number",
    *(s for spelled in KEYS.values() for s in spelled),
    "patient_id",
    *(name for name, _ in _AFTER),
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
        """Returns the patient id of one image; "" where the pattern does not match."""
        if self.patients == "per_image":
            return path
        if self.pattern is None:
            return declared
        match = re.search(self.pattern, path)
        return (match.group(1) or "") if match else ""


@dataclass(slots=True)
class BadRows:
    """What is wrong, counted whole and kept in part: a million bad rows end in one line."""

    count: int = 0
    missing: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, problem: str, *, missing: bool = False) -> None:
        """Counts a problem; `missing`: a file is not there."""
        self.count += 1
        self.missing += missing
        if len(self.shown) < _SHOWN:
            self.shown.append(problem)

    def describe(self) -> str:
        """Returns the first ten, and how many more there are."""
        more = self.count - len(self.shown)
        return "; ".join(self.shown) + (f"; and {more} more" if more else "")


def build_schema(labels: Iterable[str], columns: Iterable[str] = ()) -> pa.Schema:
    """Returns the columns of a table of labels, for its label and further columns."""
    texts = [*KEYS, "patient_id", *labels]
    fields: list[tuple[str, pa.DataType]] = [("number", pa.int64())]
    fields += [*((name, pa.string()) for name in texts), *_AFTER, *((name, pa.string()) for name in columns)]
    return pa.schema(fields)


def is_label(name: str) -> bool:
    """Returns whether a column holds labels."""
    return name == "label" or name.startswith("label_")


def name_place(table: pa.Table, at: int, show: Callable[[str], str]) -> str:
    """Returns what a message calls a row of a table of labels: its line, and its path as far as that may be shown."""
    number, path = table["number"][at].as_py(), table["path"][at].as_py()
    shown = show(path) if path else ""
    return (f"row {number} ({shown})" if shown else f"row {number}") if number else shown
