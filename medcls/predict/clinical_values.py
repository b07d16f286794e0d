"""Read the clinical values of raw files: from a table, otherwise from their DICOM headers."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.clinical.encode import Faults, encode_clinical
from medcls.disk import check_disk
from medcls.errors import ConfigError, DataError
from medcls.identity import Identity
from medcls.imaging.dicom.terms import describe_headers
from medcls.inputs import check_file
from medcls.predict.prediction_table import Case
from medcls.runs.model_file import ModelCard

KEYS = ("path", "patient_id")


@dataclass(frozen=True, slots=True)
class ClinicalTable:
    """What clinical_file=FILE says; empty without a file.

    Attributes:
        key: "path" (relative to the source) or "patient_id" (the PatientID of the DICOM header); "" = no file.
        rows: Key -> its columns.
    """

    key: str = ""
    rows: dict[str, dict[str, str]] = field(default_factory=dict)

    def find(self, case: Case) -> Mapping[str, str]:
        """Return the cells of a file's row that are filled."""
        named = case.path if self.key == "path" else case.headers.get("PatientID", "")
        return self.rows.get(named, {})


def read_clinical(path: Path | None, cards: Sequence[ModelCard]) -> ClinicalTable:
    """Return the table, after checking that every column that a model takes is in it or in DICOM headers.

    The CSV has path or patient_id, and the models' columns as the store's manifest names them; None = no table.

    Raises:
        ConfigError: a table without a model that takes it, or no source for a column.
        MissingInputError, DataError: no file, no CSV, no key, or a key that stands in it twice.
    """
    needed = list(dict.fromkeys(name for card in cards if card.clinical for name in card.clinical.columns))
    if path is not None and not needed:
        raise ConfigError(f"clinical_file={path}: no run takes clinical columns: remove it")
    header, records = read_csv(path, setting="clinical_file") if path else ([], [])
    absent = [name for name in needed if name not in header and name not in describe_headers({})]
    if absent:
        where = f"clinical_file={path} lacks" if path else "set clinical_file=FILE.csv with path or patient_id and"
        raise ConfigError(f"the run takes {', '.join(needed)} beside the image: {where} {', '.join(absent)}")
    if path is None:
        return ClinicalTable()
    key = next((name for name in KEYS if name in header), "")
    if not key:
        raise DataError(f"clinical_file={path}: no column path or patient_id, by which its rows are found")
    rows: dict[str, dict[str, str]] = {}
    for number, record in enumerate(records, start=2):
        name = record[key].replace("\\", "/").removeprefix("./") if key == "path" else record[key]
        if name in rows:
            raise DataError(
                f"clinical_file={path}, line {number}: its {key} repeats that of an earlier line: keep one row"
            )
        rows[name] = {column: record[column] for column in needed if record.get(column)}
    return ClinicalTable(key, rows)


def read_csv(path: Path, *, setting: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return the header and the rows of a CSV file, cells stripped, blank lines left out.

    `setting` names the file in messages.

    Raises:
        MissingInputError: no such file.
        DataError: no CSV in UTF-8, a column name that occurs twice, or a row of another length.
    """
    check_file(path, setting)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, strict=True) if any(line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        check_disk(path, error)
        raise DataError(
            f"{setting}={path} is not CSV in UTF-8 ({type(error).__name__}): save it as CSV UTF-8"
        ) from error
    if any("\0" in cell for line in lines for cell in line):
        raise DataError(f"{setting}={path} has NUL bytes: save it as CSV in UTF-8")
    header = lines[0] if lines else []
    wrong = [number for number, line in enumerate(lines, start=1) if len(line) != len(header)]
    if len(set(header)) != len(header):
        twice = [str(i) for i, name in enumerate(header, start=1) if header.count(name) > 1]
        raise DataError(f"{setting}={path}: columns {', '.join(twice)} have the name of another column: rename them")
    if wrong:
        raise DataError(
            f"{setting}={path}, line {wrong[0]}: expected {len(header)} cells; quote those that contain commas"
        )
    return header, [dict(zip(header, line, strict=True)) for line in lines[1:]]


def encode_cases(cases: Sequence[Case], card: ModelCard, table: ClinicalTable) -> tuple[NDArray[np.float32], Faults]:
    """Return the design matrix (N, C) of files, and why files have none, as `encode_clinical` does.

    Values that headers say are those that data_prep would have put into the manifest.
    """
    if card.clinical is None:
        return np.empty((len(cases), 0), np.float32), {}
    # Ages are merged into 90 where the store that was trained on has pseudonyms.
    identity = Identity(kind=str(card.deidentify.get("kind", "declared")))
    found = [describe_headers(case.headers) | dict(table.find(case)) for case in cases]
    columns = {name: [_as_text(name, values.get(name), identity) for values in found] for name in card.clinical.columns}
    return encode_clinical(card.clinical, pa.table({k: pa.array(v, pa.string()) for k, v in columns.items()}))


def _as_text(name: str, value: Any, identity: Identity) -> str | None:
    if name == "age_years" and value is not None:
        with contextlib.suppress(ValueError):  # no number: encoding says so
            value = identity.age_years(float(value))
    return None if value is None else str(value)
