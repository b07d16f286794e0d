"""Read a table of text from CSV or Parquet; faults are named by position, never by value."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medcls.disk import check_disk
from medcls.errors import DataError
from medcls.files import sha256_file
from medcls.identity import format_count
from medcls.inputs import check_file

_SHOWN = 5  # positions that an error names before it only counts
_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True, slots=True)
class ScoreFile:
    """Cells of a file as text.

    Attributes:
        setting: "predictions=scores.csv", for messages.
        columns: Name to the cells, stripped; "" = blank. Numbers of a Parquet file are spelt so that they read back
            to the same bits.
        places: Place of each row: its line in the file (CSV, the header is line 1) or its number from 1 (Parquet).
        unit: "line" or "row".
        sha256: Checksum of the file.
    """

    setting: str
    columns: dict[str, list[str]]
    places: list[int]
    unit: str
    sha256: str

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.columns)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.places)


@dataclass(slots=True)
class Faults:
    """Faults of cells, collected so that one error names them all.

    Attributes:
        file: Whose they are.
        found: What is wrong, to the rows (from 0).
    """

    file: ScoreFile
    found: dict[str, list[int]] = field(default_factory=dict)

    def add(self, what: str, row: int) -> None:
        """Note that a row has a fault."""
        self.found.setdefault(what, []).append(row)

    def check(self, *, remedy: str = "correct the file") -> None:
        """Raise DataError if there is any fault, with the kind, count and first positions of each."""
        if not self.found:
            return
        bad = {row for rows in self.found.values() for row in rows}
        listed = "; ".join(f"{what} in {self._place(rows)}" for what, rows in self.found.items())
        raise DataError(
            f"{self.file.setting}: {format_count(len(bad), 'bad row')} of {len(self.file)}: {listed}: {remedy}"
        )

    def _place(self, rows: Sequence[int]) -> str:
        places = [str(self.file.places[row]) for row in rows[:_SHOWN]]
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        return f"{self.file.unit}{'s' if len(rows) > 1 else ''} {', '.join(places)}{more}"


def read_score_file(path: Path, *, name: str) -> ScoreFile:
    """Return the cells of a .csv, .tsv or .parquet file.

    `name` is the setting that names the file, such as "predictions".

    Raises:
        MissingInputError: No such file.
        DataError: It is not such a table: another suffix, rows of other lengths, a column without a name or named
            twice, no rows.
    """
    setting = f"{name}={path}"
    check_file(path, name)
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".parquet"):
        raise DataError(f"{setting}: expected a .csv, .tsv or .parquet file")
    header, rows, places = _read_parquet(path, setting) if suffix == ".parquet" else _read_csv(path, setting)
    _check_header(header, setting)
    if not rows:
        raise DataError(f"{setting}: the table has no rows: give at least one")
    columns = {column: [row[k] for row in rows] for k, column in enumerate(header)}
    return ScoreFile(setting, columns, places, "row" if suffix == ".parquet" else "line", sha256_file(path))


def _read_csv(path: Path, setting: str) -> tuple[list[str], list[list[str]], list[int]]:
    rows: list[list[str]] = []
    places: list[int] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            # The header has names of columns alone: the mark that it has most of separates them.
            reader = csv.reader(file, delimiter=max(_DELIMITERS, key=first.count), strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    rows.append([cell.strip() for cell in cells])
                    places.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{setting}: not CSV in UTF-8 ({type(error).__name__}): save it as CSV UTF-8") from error
    if any("\0" in cell for row in rows for cell in row):
        raise DataError(f"{setting}: NUL bytes: save it as CSV UTF-8")
    if not rows:
        raise DataError(f"{setting}: the file is empty: expected a header and rows")
    header, body = rows[0], rows[1:]
    uneven = [place for place, cells in zip(places[1:], body, strict=True) if len(cells) != len(header)]
    if uneven:
        shown = ", ".join(map(str, uneven[:_SHOWN]))
        raise DataError(
            f"{setting}: {format_count(len(uneven), 'line')} without the {len(header)} cells of the header (line "
            f"{shown}"
            f"{' …' if len(uneven) > _SHOWN else ''}): quote cells that contain the separator"
        )
    return header, body, places[1:]


def _read_parquet(path: Path, setting: str) -> tuple[list[str], list[list[str]], list[int]]:
    try:
        table = pq.read_table(path)
        table.validate(full=True)
        table.column_names  # noqa: B018 (a name that is not UTF-8 fails where it is first asked for)
    except (pa.ArrowException, OSError, ValueError) as error:
        check_disk(path, error)
        raise DataError(f"{setting}: not a whole Parquet file ({type(error).__name__})") from error
    table = _unfold(table)
    nested = [k for k, kind in enumerate(table.schema.types, start=1) if pa.types.is_nested(kind)]
    if nested:
        raise DataError(
            f"{setting}: {format_count(len(nested), 'column')} of lists (the first is column {nested[0]}): give one "
            "column of numbers for each class, score_NAME"
        )
    cells = [[_spell(value) for value in column.to_pylist()] for column in table.columns]
    rows = [list(row) for row in zip(*cells, strict=True)]
    return list(map(str, table.column_names)), rows, list(range(1, table.num_rows + 1))


def _unfold(table: pa.Table) -> pa.Table:
    """Return lists of medcls's own tables as columns: y_true.0, y_score.0, y_score.1 …; logits are left out."""
    lists = {"y_true", "y_score"}
    own = lists <= set(table.column_names) and all(pa.types.is_nested(table[name].type) for name in lists)
    if not own and not {"level", "state", "rule"} <= set(table.column_names):
        return table
    table = table.drop_columns(["logits"]) if "logits" in table.column_names else table
    for name in sorted(lists) if own else ():
        rows: list[Any] = table[name].to_pylist()
        for k in range(len(rows[0]) if rows else 0):
            table = table.append_column(f"{name}.{k}", pa.array([row[k] for row in rows], pa.float64()))
        table = table.drop_columns([name])
    return table


def _spell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value).strip()


def _check_header(header: Sequence[str], setting: str) -> None:
    blank = [k for k, name in enumerate(header, start=1) if not name]
    twice = [k for k, name in enumerate(header, start=1) if name and name in header[: k - 1]]
    for places, what in ((blank, "have no name"), (twice, "repeat the name of another")):
        if places:
            raise DataError(f"{setting}: columns {', '.join(map(str, places[:_SHOWN]))} {what}: name each once")


def read_number(text: str) -> float | None:
    """Return the finite number that a cell spells, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def spell_label(text: str) -> str:
    """Return a label in one spelling: 1 for 1.0, other texts as they are."""
    value = read_number(text)
    return str(int(value)) if value is not None and value == int(value) and abs(value) < 1e15 else text
