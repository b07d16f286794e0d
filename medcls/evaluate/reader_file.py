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
from medcls.statistics.predictions import Integers, Predictions
from medcls.statistics.reader_study import Readings, compare_readers

READER, DECISION, GRADE = "reader", "decision", "grade"


@dataclass(frozen=True, slots=True)
class Readers:
    """What all readers said.

    Attributes:
        level: "image", or "patient" if the file names patients that have several images.
        readings: One for each reader; their rows are rows of the predictions, or patients by their number.
        notes: What a reader of the report has to know.
        sha256: Of the file.
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
        image_ids: Of each of them; () = not known.
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
    read = _choose_parser(one, labels, ordered=ordered)
    answers = np.array(
        [[_parse(file, faults, read, column, row) for column in columns] for row in range(len(file))], np.float64
    )
    index = _index_rows(rows, image_ids, level, by_image=key in ("image_id", "image"))
    seen: set[tuple[str, str]] = set()
    for row, pair in enumerate(zip(file.columns[READER], file.columns[key], strict=True)):
        if not all(pair):
            faults.add(f"{READER} or {key} is blank", row)
        elif pair in seen:
            faults.add(f"the same {READER} and {key} as an earlier row", row)
        seen.add(pair)
    faults.check()
    place = np.array([index.get(name, -1) for name in file.columns[key]], np.int64)
    known = place >= 0
    if not known.any():
        raise DataError(f"{file.setting}: no {key} of its {len(file)} rows is among the evaluated ones: check the ids")
    notes = [
        f"readers: {int((~known).sum())} of {format_count(len(file), 'decision')} left out: of images that were not "
        "evaluated"
    ]
    names = list(dict.fromkeys(file.columns[READER]))
    readings = []
    for number, name in enumerate(names, start=1):
        mine = np.flatnonzero(known & (np.array(file.columns[READER]) == name))
        mine = mine[np.argsort(place[mine])]
        if len(mine):
            given = answers[mine] if one.kind == "multilabel" else answers[mine, 0]
            readings.append(Readings(f"reader {number}", place[mine], given, ordered))
    return Readers(level, readings, [] if known.all() else notes, file.sha256)


def measure_readers(
    path: Path,
    rows: Rows,
    *,
    image_ids: Sequence[str],
    labels: Mapping[str, int],
    operating: Mapping[str, Any],
    replicates: int,
    seed: int,
) -> tuple[dict[str, Any], list[str]]:
    """Return what metrics.json holds under "readers", and what a reader of the report has to know.

    Args:
        path: The file.
        rows: The rows that were evaluated, with the thresholds of the decision.
        image_ids: As in `read_readers`.
        labels: As in `read_readers`.
        operating: operating_points.json, for readers of whole patients; {} = nothing was chosen.
        replicates: Bootstrap samples.
        seed: Seed of the bootstrap.
    """
    readers = read_readers(path, rows, image_ids=image_ids, labels=labels)
    one, patients, rule, readings = rows.predictions, rows.patients, None, readers.readings
    if readers.level == PATIENT:
        rule = operating.get("levels", {}).get(PATIENT, {}).get("aggregation", {}).get("rule", "mean")
        merged = aggregate(one, patients, rule=rule)
        one = read_decision(operating, merged.predictions, level=PATIENT).apply(merged.predictions)
        units, patients = patients[merged.first], np.arange(len(merged.first))
        place = np.full(int(rows.patients.max()) + 1, -1)
        place[units] = np.arange(len(units))
        readings = [_move(reading, place[reading.rows]) for reading in readings]
    found = compare_readers(one, patients, readings, replicates=replicates, seed=seed)
    return {"level": readers.level, "rule": rule, "sha256": readers.sha256, **found}, readers.notes


def _move(reading: Readings, rows: Integers) -> Readings:
    """Return the same answers for other rows; those of patients that were left out (-1) are left out, too."""
    kept = rows >= 0
    return replace(reading, rows=rows[kept], answers=reading.answers[kept])


def _find_key(file: ScoreFile, rows: Rows, image_ids: Sequence[str]) -> tuple[str, str]:
    """Return the column that names the rows, and the level that it names."""
    image = next((name for name in ("image_id", "image") if name in file.columns), None)
    patient = next((name for name in ("patient_id", "patient") if name in file.columns), None)
    if image and image_ids:
        return image, IMAGE
    if patient is None:
        missing = "the evaluated rows have no image_id" if image else "no column image_id or patient_id"
        raise DataError(f"{file.setting}: {missing}: name the image or the patient of each decision")
    several = len(set(rows.patient_ids)) < len(rows.patient_ids)
    return patient, PATIENT if several else IMAGE


def _index_rows(rows: Rows, image_ids: Sequence[str], level: str, *, by_image: bool) -> dict[str, int]:
    if by_image:
        return {name: row for row, name in enumerate(image_ids)}
    if level == IMAGE:
        return {name: row for row, name in enumerate(rows.patient_ids)}
    return dict(zip(rows.patient_ids, rows.patients.tolist(), strict=True))


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


def _parse(file: ScoreFile, faults: Faults, read: tuple[Callable[[str], Any], str], column: str, row: int) -> float:
    value = read[0](file.columns[column][row])
    if value is None:
        faults.add(f"{column} is not {read[1]}", row)
    return float("nan") if value is None else float(value)
