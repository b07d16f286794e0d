"""Check a table of scores of any tool: truth, scores and patients of each row, and every wrong row at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medcls.errors import ConfigError, DataError
from medcls.evaluate.own_predictions import translate
from medcls.evaluate.score_file import Faults, ScoreFile, read_number, read_score_file, spell_label
from medcls.evaluate.score_form import IMAGE, PATIENT, STUDY, ScoreForm, Wanted, add_known, find_form, find_role
from medcls.statistics.assessment import Rows
from medcls.statistics.predictions import ROW_SUM_TOLERANCE, Floats, check_margins, check_predictions

SEX = "sex"
_SEXES = {"male": "m", "female": "f", "other": "o", "u": "", "unknown": ""}
WEIGHTS = ("weight", "weights", "sample_weight")


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Checked rows of a file of scores.

    Attributes:
        form: The task.
        rows: Predictions, patients and studies of the rows with a known truth.
        image_ids: Image of each row; () if the file has no such column.
        columns: Other columns by name, "" = blank.
        left_out: Number of rows without a truth.
        outside: Number of scores outside [0, 1], of a task with probabilities.
        normalized: Number of rows whose probabilities were divided by their sum.
        sha256: Checksum of the file.
        patients_known: Whether the file says whose rows they are.
        total: Number of "images" and "patients" of the file, rows without a truth included.
        thresholds: Label to the threshold of the run's decision, of a table that medcls wrote; {} = not known.
        rule: Name of that decision; "" likewise.
        unscored: Number of images that predict gave no score.
    """

    form: ScoreForm
    rows: Rows
    image_ids: tuple[str, ...]
    columns: dict[str, list[str]] = field(default_factory=dict)
    left_out: int = 0
    outside: int = 0
    normalized: int = 0
    sha256: str = ""
    patients_known: bool = True
    total: dict[str, int] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    rule: str = ""
    unscored: int = 0


def read_scores(
    path: Path, *, name: str, wanted: Wanted, like: ScoreTable | None = None, margins: bool = False
) -> ScoreTable:
    """Return the checked rows of a file of scores.

    The classes and the positive class of `like`, a table of the same task, also hold here. With `margins` the scores
    are no probabilities even if all are in [0, 1]. `name` is the setting that names the file.

    Raises:
        MissingInputError: No such file.
        DataError: Columns that are missing or contradict one another, or bad rows; all of them at once, by position.
        ConfigError: A setting is needed, or contradicts the file.
    """
    own = translate(read_score_file(path, name=name), path)
    file, wanted = own.file, add_known(wanted, own.task)
    weights = [column for column in WEIGHTS if column in file.columns]
    if weights:
        raise DataError(
            f"{file.setting}: column {weights[0]}: rows have no weights here, every row counts once: remove it"
        )
    if like is not None:
        kind = like.form.kind
        wanted = Wanted(kind, None, like.form.class_names, like.form.grades, wanted.sums, wanted.patients)
    form = find_form(file, wanted)
    if like is not None:
        form = replace(form, why=like.form.why)
    table = _read_rows(file, form, wanted, margins=margins)
    return replace(table, thresholds=dict(own.thresholds), rule=own.rule, unscored=own.left_out)


def _read_rows(file: ScoreFile, form: ScoreForm, wanted: Wanted, *, margins: bool) -> ScoreTable:
    faults = Faults(file)
    patient, image, study = (find_role(file, role) for role in (PATIENT, IMAGE, STUDY))
    if patient is None and wanted.patients == "declared":
        raise ConfigError(
            f"{file.setting}: no column {PATIENT}: intervals are over patients: add it, or set patients=per_image if "
            "patients are not known (every page says so)"
        )
    truth = _read_cells(file, form.truths, faults, lambda column, cell: _read_truth(form, column, cell))
    score = _read_cells(file, form.scores, faults, _read_score)
    known = ~np.isnan(truth).all(axis=1)
    if form.kind != "multilabel":
        truth = truth[:, 0]
    ids = [str(row) for row in range(len(file))]
    if patient:
        ids = file.columns[patient]
        _check_patients(file, patient, faults)
    if image:
        first: dict[str, int] = {}
        for row, name in enumerate(file.columns[image]):
            if not name:
                faults.add(f"{image} is blank", row)
            elif first.setdefault(name, row) != row:
                faults.add(f"{image} is that of an earlier row", row)
    faults.check()
    if not known.any():
        raise DataError(f"{file.setting}: no row has a truth: nothing can be evaluated")
    outside = 0
    if form.kind != "regression":
        outside = int(((score < -1e-6) | (score > 1 + 1e-6)).sum())
    probabilities = not (outside or margins)
    score, normalized = _join_columns(file, form, score, wanted, probabilities=probabilities)
    rows = np.flatnonzero(known)
    check = check_predictions if probabilities else check_margins
    predictions = check(form.kind, truth[rows], score[rows], class_names=form.class_names, grades=form.grades)
    studies = [file.columns[study][row] or None for row in rows] if study else []
    used = {patient, image, study, *form.scores, *form.truths}
    return ScoreTable(
        form=form,
        rows=Rows(predictions, [ids[row] for row in rows], studies),
        image_ids=tuple(file.columns[image][row] for row in rows) if image else (),
        columns={column: [cells[row] for row in rows] for column, cells in file.columns.items() if column not in used},
        left_out=len(file) - len(rows),
        outside=outside,
        normalized=normalized,
        sha256=file.sha256,
        patients_known=patient is not None,
        total={"images": len(file), "patients": len(set(ids))},
    )


def _check_patients(file: ScoreFile, patient: str, faults: Faults) -> None:
    """Note rows without a patient, and those of another sex than an earlier row of their patient."""
    ids, said = file.columns[patient], dict[str, str]()
    sexes = file.columns.get(SEX, [""] * len(ids))
    for row, (name, cell) in enumerate(zip(ids, sexes, strict=True)):
        sex = _SEXES.get(cell.lower(), spell_label(cell).lower())
        if not name:
            faults.add(f"{patient} is blank", row)
        elif sex and said.setdefault(name, sex) != sex:
            faults.add(f"{SEX} is not that of an earlier row of the same patient", row)


def _read_cells(
    file: ScoreFile, columns: Sequence[str], faults: Faults, read: Callable[[str, str], float | str]
) -> Floats:
    """Return the number in each row and column, (N, C); NaN where `read` returns what is wrong instead."""
    table = np.full((len(file), len(columns)), np.nan)
    for row in range(len(file)):
        for place, column in enumerate(columns):
            value = read(column, file.columns[column][row])
            if isinstance(value, str):
                faults.add(value, row)
            else:
                table[row, place] = value
    return table


def _read_score(column: str, cell: str) -> float | str:
    value = read_number(cell)
    return f"{column} is not a finite number" if value is None else value


def _read_truth(form: ScoreForm, column: str, cell: str) -> float | str:
    """Return the class index or number of a cell, NaN for a blank one, or what is wrong with it."""
    if not cell:
        return float("nan")
    if form.labels:
        label = form.labels.get(spell_label(cell), form.labels.get(cell))
        if label is None:
            return f"{column} is not one of the classes ({', '.join(form.class_names)})"
        return label
    value = read_number(cell)
    if form.kind == "multilabel":
        return value if value in (0, 1) else f"{column} is not 0, 1 or blank"
    if value is None:
        return f"{column} is not a finite number"
    if form.grades and not (value == int(value) and 0 <= value < len(form.class_names)):
        return f"{column} is not a grade from 0 to {len(form.class_names) - 1}"
    return value


def _join_columns(
    file: ScoreFile, form: ScoreForm, score: Floats, wanted: Wanted, *, probabilities: bool
) -> tuple[Floats, int]:
    """Scores in the shape that `check_predictions` takes, and how many rows were divided by their sum."""
    if score.shape[1] == 1 or form.kind == "multilabel":
        return score, 0
    if not probabilities:
        if form.kind == "binary":
            raise DataError(
                f"{file.setting}: two columns of scores outside [0, 1]: give one column, the score of "
                f"{form.class_names[1]}"
            )
        return score, 0
    total = score.sum(axis=1)
    off = np.flatnonzero(np.abs(total - 1) > ROW_SUM_TOLERANCE)
    if len(off) and wanted.sums == "refuse":
        faults = Faults(file)
        for row in off:
            faults.add("the scores do not sum to 1", int(row))
        faults.check(remedy="correct them, or set sums=normalize to divide each row by its sum")
    faults = Faults(file)
    for row in np.flatnonzero(total <= 0):
        faults.add("the scores are all 0", int(row))
    faults.check()
    if len(off):
        score = np.where((np.abs(total - 1) > ROW_SUM_TOLERANCE)[:, None], score / total[:, None], score)
    if form.kind == "binary":
        score = score[:, 1:]
    return score, len(off)
