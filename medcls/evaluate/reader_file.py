"""Read the decisions of human readers, match them to the evaluated rows, and compare them with the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcls.errors import DataError
from medcls.evaluate.score_file import Faults, ScoreFile, read_number, read_score_file, spell_label
from medcls.identity import format_count
from medcls.statistics.aggregation import aggregate
from medcls.statistics.assessment import IMAGE, PATIENT, Rows, read_decision
from medcls.statistics.predictions import Floats, Predictions
from medcls.statistics.reader_study import Readings, compare_readers

READER, DECISION, GRADE = "reader", "decision", "grade"


@dataclass(frozen=True, slots=True)
class Readers:
    """What all readers said.

    Attributes:
        level: "image", or "patient" if the file names patients that have several images.
        readings: One for each reader; their rows are rows of the predictions, or patients by their number.
        notes: What a reader of the report has to know.
        sha256: Checksum of the file.
    """

    level: str
    readings: list[Readings]
    notes: list[str]
    sha256: str


def read_readers(path: Path, rows: Rows, *, image_ids: Sequence[str], labels: Mapping[str, int]) -> Readers:
    """Return the readers of a file, numbered in the order in which it first names them.

    Columns: reader; image_id (or patient_id); decision (a class, or 0 and 1), grade (ordered suspicion for a binary
    task), or decision_NAME for several labels.

    Args:
        path: .csv, .tsv or .parquet.
        rows: The rows that were evaluated.
        image_ids: Image of each row; () = not known.
        labels: Label as written to class index; {} for several labels and grades as numbers.

    Raises:
        MissingInputError: No such file.
        DataError: Missing columns, bad rows (all at once, by position), or no row of an evaluated image.
    """
    file = read_score_file(path, name="readers")
    one = rows.predictions
    if one.kind == "regression" and not one.grades:
        raise DataError(f"{file.setting}: a regression has no yes-or-no question: remove readers=")
    if READER not in file.columns:
        raise DataError(f"{file.setting}: no column {READER}: give the column that names the readers this name")
    key, level = _find_key(file, rows, image_ids)
    columns, ordered = _find_answers(file, one)
    faults = Faults(file)
    answers = _read_answers(file, columns, one, labels, ordered, faults)
    _check_pairs(file, key, faults)
    faults.check()
    by_image = key in ("image_id", "image")
    index = {name: row for row, name in enumerate(image_ids if by_image else rows.patient_ids)}
    if level == PATIENT:
        index = dict(zip(rows.patient_ids, rows.patients.tolist(), strict=True))
    place = np.array([index.get(name, -1) for name in file.columns[key]], np.int64)
    known = place >= 0
    if not known.any():
        raise DataError(f"{file.setting}: no {key} of its {len(file)} rows is among the evaluated ones: check the ids")
    notes = []
    if not known.all():
        left, of = int((~known).sum()), format_count(len(file), "decision")
        notes.append(f"readers: {left} of {of} left out: of images that were not evaluated")
    names = list(dict.fromkeys(file.columns[READER]))
    readings = []
    for number, name in enumerate(names, start=1):
        mine = np.flatnonzero(known & (np.array(file.columns[READER]) == name))
        mine = mine[np.argsort(place[mine])]
        if len(mine):
            given = answers[mine]
            if one.kind != "multilabel":
                given = given[:, 0]
            readings.append(Readings(f"reader {number}", place[mine], given, ordered))
    return Readers(level, readings, notes, file.sha256)


def measure_readers(
    readers: Readers, rows: Rows, operating: Mapping[str, Any], *, replicates: int, seed: int
) -> dict[str, object]:
    """Return what metrics.json holds under "readers"."""
    one, patients, rule, readings = rows.predictions, rows.patients, None, readers.readings
    if readers.level == PATIENT:
        rule = operating.get("levels", {}).get(PATIENT, {}).get("aggregation", {}).get("rule", "mean")
        merged = aggregate(one, patients, rule=rule)
        one = read_decision(operating, merged.predictions, level=PATIENT).apply(merged.predictions)
        place = np.full(int(patients.max()) + 1, -1)
        place[patients[merged.first]] = np.arange(len(merged.first))
        patients, readings = np.arange(len(merged.first)), []
        for reading in readers.readings:
            moved = place[reading.rows]
            # Answers on patients whose images were left out are left out, too.
            readings.append(replace(reading, rows=moved[moved >= 0], answers=reading.answers[moved >= 0]))
    found = compare_readers(one, patients, readings, replicates=replicates, seed=seed)
    return {"level": readers.level, "rule": rule, "sha256": readers.sha256, **found}


def _find_key(file: ScoreFile, rows: Rows, image_ids: Sequence[str]) -> tuple[str, str]:
    """Return the column that names the rows, and the level that it names."""
    image = next((name for name in ("image_id", "image") if name in file.columns), None)
    patient = next((name for name in ("patient_id", "patient") if name in file.columns), None)
    if image and image_ids:
        return image, IMAGE
    if patient is None:
        missing = "no column image_id or patient_id"
        if image:
            missing = "the evaluated rows have no image_id"
        raise DataError(f"{file.setting}: {missing}: name the image or the patient of each decision")
    if len(set(rows.patient_ids)) < len(rows.patient_ids):
        return patient, PATIENT
    return patient, IMAGE


def _find_answers(file: ScoreFile, one: Predictions) -> tuple[list[str], bool]:
    """Return the columns of the answers, and whether they are ordered grades of suspicion."""
    if one.kind == "multilabel":
        columns = [f"{DECISION}_{name}" for name in one.class_names]
        missing = [column for column in columns if column not in file.columns]
        if missing:
            raise DataError(f"{file.setting}: no column {missing[0]}: each label needs a decision of 0 or 1")
        return columns, False
    found = [name for name in (DECISION, GRADE) if name in file.columns]
    if len(found) != 1:
        raise DataError(f"{file.setting}: {len(found)} columns of {DECISION} and {GRADE}: expected one of them")
    return found, found == [GRADE] and one.kind == "binary"


def _check_pairs(file: ScoreFile, key: str, faults: Faults) -> None:
    seen: set[tuple[str, str]] = set()
    for row, pair in enumerate(zip(file.columns[READER], file.columns[key], strict=True)):
        if not all(pair):
            faults.add(f"{READER} or {key} is blank", row)
        elif pair in seen:
            faults.add(f"the same {READER} and {key} as an earlier row", row)
        seen.add(pair)


def _read_answers(
    file: ScoreFile, columns: Sequence[str], one: Predictions, labels: Mapping[str, int], ordered: bool, faults: Faults
) -> Floats:
    """Return the answer in each row and column; wrong cells are noted as faults."""
    read, expected = _choose_parser(one, labels, ordered=ordered)
    answers = np.full((len(file), len(columns)), np.nan)
    for row in range(len(file)):
        for place, column in enumerate(columns):
            value = read(file.columns[column][row])
            if value is None:
                faults.add(f"{column} is not {expected}", row)
            else:
                answers[row, place] = value
    return answers


def _choose_parser(one: Predictions, labels: Mapping[str, int], *, ordered: bool) -> tuple[Callable[[str], Any], str]:
    """Return what reads a cell (None = wrong), and what is expected."""
    if ordered:
        return read_number, "a number"
    if one.kind == "multilabel":
        return lambda cell: {"0": 0, "1": 1}.get(spell_label(cell)), "0 or 1"
    names = {name: k for k, name in enumerate(one.class_names)} | dict(labels)
    if one.kind == "binary":
        names = {"0": 0, "1": 1} | names
    return lambda cell: names.get(spell_label(cell), names.get(cell)), f"one of {', '.join(one.class_names)}"
