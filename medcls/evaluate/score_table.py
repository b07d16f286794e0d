"""Check a table of scores of any tool: the role of each column, the kind of task, the wrong rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcls.config import nearest
from medcls.data.label_words import is_healthy
from medcls.errors import ConfigError, DataError
from medcls.evaluate.own_predictions import translate
from medcls.evaluate.score_file import Faults, ScoreFile, read_number, read_score_file, spell_label
from medcls.identity import format_count
from medcls.statistics.assessment import Rows
from medcls.statistics.predictions import ROW_SUM_TOLERANCE, Floats, Predictions, check_margins, check_predictions

PATIENT, IMAGE, STUDY, TRUTH = "patient_id", "image_id", "study_id", "truth"
ROLES = {
    PATIENT: ("patient_id", "patient"),
    IMAGE: ("image_id", "image"),
    STUDY: ("study_id", "study"),
    TRUTH: ("truth", "label", "y_true"),
}
"""What a column is for, to the names that it may have."""
SCORE, SCORE_OF = "score", "score_"
LABELS_OF = ("label_", "truth_")
SEX = "sex"
_SEXES = {"male": "m", "female": "f", "other": "o", "u": "", "unknown": ""}
WEIGHTS = ("weight", "weights", "sample_weight")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says about the files; the files say the rest.

    Attributes:
        kind: "auto", or a kind of task.
        positive: Name of the positive class of a binary task, or None.
        classes: Names in their order (binary: negative, positive; ordinal: from least to most); () = as in the file.
        grades: A regression predicts grades 0, 1, …
        sums: "refuse" or "normalize" rows of probabilities that do not sum to 1.
        patients: "declared", or "per_image" if the file does not say whose rows they are.
    """

    kind: str = "auto"
    positive: str | None = None
    classes: tuple[str, ...] = ()
    grades: bool = False
    sums: str = "refuse"
    patients: str = "declared"


@dataclass(frozen=True, slots=True)
class ScoreForm:
    """The task that a file of scores answers.

    Attributes:
        kind: Kind of the task.
        class_names: K names; of a binary task the negative, then the positive one.
        grades: A regression of grades.
        labels: Cell of the truth to class index; {} for multilabel and regression.
        scores: Columns of scores, in the order of the classes; of a binary task the positive class's last.
        truths: Columns of the truth.
        why: How the kind was found, for the terminal.
    """

    kind: str
    class_names: tuple[str, ...]
    grades: bool
    labels: dict[str, int]
    scores: tuple[str, ...]
    truths: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Checked rows of a file of scores.

    Attributes:
        form: The task.
        rows: Predictions, patients and studies of the rows with a known truth.
        image_ids: Of each row; () if the file has no such column.
        columns: Other columns by name, "" = blank.
        left_out: Number of rows without a truth.
        outside: Number of scores outside [0, 1], of a task with probabilities.
        normalized: Number of rows whose probabilities were divided by their sum.
        sha256: Of the file.
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

    Args:
        path: .csv, .tsv or .parquet.
        name: The setting that names it, such as "predictions".
        wanted: What the command line says.
        like: A table of the same task that was read before: its classes and positive class hold here, too.
        margins: The scores are margins even if all are in [0, 1].

    Raises:
        MissingInputError: No such file.
        DataError: Columns that are missing or contradict one another, or bad rows; all of them at once, by position.
        ConfigError: A setting is needed, or contradicts the file.
    """
    own = translate(read_score_file(path, name=name), path)
    file, wanted = own.file, _add_known(wanted, own.task)
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


def _add_known(wanted: Wanted, task: Mapping[str, Any]) -> Wanted:
    """Return what the command line says, and of the rest what a table that medcls wrote says itself."""
    if not task or wanted.kind not in ("auto", task["task"]):
        return wanted
    grades = wanted.grades or (bool(task.get("grades")) and task["task"] == "regression")
    named = task["task"] != "regression" or grades
    classes = wanted.classes or (tuple(map(str, task["classes"])) if named and wanted.positive is None else ())
    return replace(wanted, kind=str(task["task"]), classes=classes, grades=grades)


def find_role(file: ScoreFile, role: str) -> str | None:
    """Return the column of a role, or None; raise DataError if two columns have it."""
    found = [column for column in ROLES[role] if column in file.columns]
    if len(found) > 1:
        raise DataError(f"{file.setting}: columns {' and '.join(found)} mean the same: keep one")
    return found[0] if found else None


def find_form(file: ScoreFile, wanted: Wanted) -> ScoreForm:
    """Return the task of a file, from its columns and labels and what the command line says of them."""
    scores = [column for column in file.names if column == SCORE or column.startswith(SCORE_OF)]
    truths = [column for column in file.names if column.startswith(LABELS_OF)]
    truth = find_role(file, TRUTH)
    if not scores:
        raise DataError(
            f"{file.setting}: no column of scores among {len(file.names)}: name it score, or score_NAME for each class"
        )
    if SCORE in scores and len(scores) > 1:
        raise DataError(f"{file.setting}: a column score beside {len(scores) - 1} columns score_NAME: keep one kind")
    if truth and truths:
        raise DataError(
            f"{file.setting}: a column {truth} beside {len(truths)} columns label_NAME: keep {truth} for one label per "
            "row, or label_NAME for several"
        )
    if not truth and not truths:
        raise DataError(f"{file.setting}: no column of the truth: name it {' or '.join(ROLES[TRUTH])}, or label_NAME")
    found = sorted({spell_label(cell) for cell in file.columns[truth] if cell}) if truth else []
    if truth and not found:
        raise DataError(f"{file.setting}: column {truth} is blank in every row: nothing can be evaluated")
    kind, why = _find_kind(file, wanted, scores=scores, truths=truths, found=found)
    if (kind == "multilabel") != bool(truths):
        expected = "label_NAME for each label" if kind == "multilabel" else ROLES[TRUTH][0]
        raise ConfigError(f"kind={kind}: the file has other columns of the truth: expected {expected}")
    build = {"binary": _form_binary, "multilabel": _form_multilabel, "regression": _form_number}
    if kind == "ordinal" and scores == [SCORE]:
        return _form_number(
            file, wanted, scores, truths or [str(truth)], found, f"{why}; one column: a predicted grade"
        )
    return build.get(kind, _form_classes)(file, wanted, scores, truths or [str(truth)], found, why)


def _find_kind(
    file: ScoreFile, wanted: Wanted, *, scores: Sequence[str], truths: Sequence[str], found: Sequence[str]
) -> tuple[str, str]:
    if wanted.kind != "auto":
        return wanted.kind, "as set"
    if truths:
        return "multilabel", f"{format_count(len(truths), 'column')} of labels"
    if len(scores) > 2:
        return "multiclass", f"{len(scores)} columns of scores"
    if len(scores) == 2 or len(found) <= 2 or len(wanted.classes) == 2:
        return "binary", f"{format_count(len(scores), 'column')} of scores, {format_count(len(found), 'label')}"
    if all(read_number(label) is not None for label in found):
        return "regression", "one column of scores, a number as truth"
    raise ConfigError(
        f"{file.setting}: one column of scores for {len(found)} labels: give a column score_NAME for each class, or "
        "two labels"
    )


def _form_binary(
    file: ScoreFile, wanted: Wanted, scores: list[str], truths: list[str], found: list[str], why: str
) -> ScoreForm:
    named = [column.removeprefix(SCORE_OF) for column in scores if column != SCORE]
    if len(scores) > 2:
        raise ConfigError(f"kind=binary: {len(scores)} columns of scores: keep one, or set kind=multiclass")
    names = _name_classes(file, wanted, named=named, found=found)
    labels = {name: k for k, name in enumerate(names)}
    if set(found) <= {"0", "1"}:
        labels |= {"0": 0, "1": 1}
    if len(scores) == 2:
        missing = [name for name in named if name not in names]
        if missing:
            raise DataError(f"{file.setting}: columns of scores for {', '.join(named)}: expected {', '.join(names)}")
        scores = [f"{SCORE_OF}{name}" for name in names]
    elif named and named[0] == names[0]:
        raise ConfigError(
            f"{file.setting}: the only column of scores is that of {names[0]}, the negative class: give the score of "
            f"{names[1]}, or set positive={names[0]}"
        )
    return ScoreForm("binary", names, False, labels, tuple(scores), tuple(truths), why)


def _name_classes(file: ScoreFile, wanted: Wanted, *, named: list[str], found: list[str]) -> tuple[str, str]:
    """Return the negative and the positive class."""
    if wanted.classes:
        if len(wanted.classes) != 2:
            raise ConfigError(f"classes={list(wanted.classes)}: kind=binary has two, the negative and the positive one")
        if wanted.positive not in (None, wanted.classes[1]):
            raise ConfigError(
                f"positive={wanted.positive} contradicts classes={list(wanted.classes)}: the last is positive"
            )
        return wanted.classes[0], wanted.classes[1]
    zero_one = set(found) <= {"0", "1"}
    if zero_one and len(named) == 1 and named[0] not in ("0", "1"):
        return _check_positive(wanted, (f"no {named[0]}", named[0]))
    if zero_one and not named:
        return _check_positive(wanted, ("0", "1"))
    names = sorted({*found, *named})
    if len(names) > 2:
        raise DataError(
            f"{file.setting}: {len(found)} labels in the column of the truth and {len(named)} named columns of scores, "
            f"{len(names)} names in all: expected the same two: correct the names, or set classes=[NEGATIVE,POSITIVE]"
        )
    if len(names) < 2:
        raise ConfigError(f"{file.setting}: one label only: set classes=[NEGATIVE,POSITIVE]")
    positive = wanted.positive or (named[0] if len(named) == 1 and not is_healthy(named[0]) else None)
    if positive is None:
        ill = [name for name in names if not is_healthy(name)]
        positive = ill[0] if len(ill) == 1 else None
    if positive not in names:
        lines = " or ".join(f"positive={name}" for name in names)
        what = "the positive class is not known" if positive is None else f"positive={positive} is not a label"
        raise ConfigError(f"{file.setting}: {what}: set {lines}")
    return next(name for name in names if name != positive), positive


def _check_positive(wanted: Wanted, names: tuple[str, str]) -> tuple[str, str]:
    if wanted.positive not in (None, names[1], "1"):
        raise ConfigError(f"positive={wanted.positive}: the positive class is {names[1]}, labelled 1: correct either")
    return names


def _form_multilabel(
    file: ScoreFile, wanted: Wanted, scores: list[str], truths: list[str], found: list[str], why: str
) -> ScoreForm:
    names = {column.removeprefix("label_").removeprefix("truth_"): column for column in truths}
    chosen = wanted.classes or tuple(names)
    given = [column.removeprefix(SCORE_OF) for column in scores]
    for some, others, what in ((chosen, names, "label_"), (chosen, given, SCORE_OF), (given, chosen, "label_")):
        missing = [name for name in some if name not in others]
        if missing:
            hint = nearest(missing[0], others)
            raise DataError(f"{file.setting}: no column {what}{missing[0]}{hint}: each label needs a truth and a score")
    truths = [names[name] for name in chosen]
    return ScoreForm("multilabel", chosen, False, {}, tuple(f"{SCORE_OF}{name}" for name in chosen), tuple(truths), why)


def _form_number(
    file: ScoreFile, wanted: Wanted, scores: list[str], truths: list[str], found: list[str], why: str
) -> ScoreForm:
    if len(scores) != 1:
        raise ConfigError(f"kind=regression: {len(scores)} columns of scores: keep one, the predicted value")
    names: tuple[str, ...] = ()
    if wanted.grades or wanted.kind == "ordinal":
        values = [read_number(label) for label in found]
        whole = [int(value) for value in values if value is not None and value == int(value) and value >= 0]
        if len(whole) < len(values):
            raise DataError(
                f"{file.setting}: {len(values) - len(whole)} labels are not whole grades from 0 up: number them"
            )
        names = wanted.classes or tuple(str(grade) for grade in range(max([1, *whole]) + 1))
    return ScoreForm("regression", names, bool(names), {}, tuple(scores), tuple(truths), why)


def _form_classes(
    file: ScoreFile, wanted: Wanted, scores: list[str], truths: list[str], found: list[str], why: str
) -> ScoreForm:
    kind = "multiclass" if wanted.kind == "auto" else wanted.kind
    names = tuple(column.removeprefix(SCORE_OF) for column in scores)
    if scores == [SCORE] or len(names) < 2:
        raise ConfigError(f"kind={kind}: expected a column score_NAME for each class, found one column of scores")
    if wanted.classes and set(wanted.classes) != set(names):
        missing = sorted(set(wanted.classes) ^ set(names))
        raise ConfigError(f"classes={list(wanted.classes)}: {', '.join(missing)} is in one of setting and columns only")
    if kind == "ordinal" and not wanted.classes:
        values = [read_number(name) for name in names]
        if None in values:
            raise ConfigError(
                f"kind=ordinal: set the order, from least to most: classes=[{','.join(names)}], rearranged"
            )
        names = tuple(sorted(names, key=float))
    names = wanted.classes or names
    columns = tuple(f"{SCORE_OF}{name}" for name in names)
    return ScoreForm(
        kind, names, False, {spell_label(name): k for k, name in enumerate(names)}, columns, tuple(truths), why
    )


def _read_rows(file: ScoreFile, form: ScoreForm, wanted: Wanted, *, margins: bool) -> ScoreTable:
    faults = Faults(file)
    patient, image, study = (find_role(file, role) for role in (PATIENT, IMAGE, STUDY))
    if patient is None and wanted.patients == "declared":
        raise ConfigError(
            f"{file.setting}: no column {PATIENT}: intervals are over patients: add it, or set patients=per_image if "
            "patients are not known (every page says so)"
        )
    truth = _read_truth(file, form, faults)
    score = np.array(
        [[_read_score(file, faults, column, row) for column in form.scores] for row in range(len(file))], np.float64
    )
    known = ~np.isnan(truth).all(axis=1) if truth.ndim == 2 else ~np.isnan(truth)
    ids = file.columns[patient] if patient else [str(row) for row in range(len(file))]
    if patient:
        _check_patients(file, patient, faults)
    if image:
        first: dict[str, int] = {}
        for row, name in enumerate(file.columns[image]):
            if not name or first.setdefault(name, row) != row:
                faults.add(f"{image} is {'blank' if not name else 'that of an earlier row'}", row)
    faults.check()
    if not known.any():
        raise DataError(f"{file.setting}: no row has a truth: nothing can be evaluated")
    outside = 0 if form.kind == "regression" else int(((score < -1e-6) | (score > 1 + 1e-6)).sum())
    probabilities = not (outside or margins)
    score, normalized = _join_columns(file, form, score, wanted, probabilities=probabilities)
    rows = np.flatnonzero(known)
    predictions = _check(form, truth[rows], score[rows], probabilities=probabilities)
    studies = [file.columns[study][row] or None for row in rows] if study else []
    used = {patient, image, study, *form.scores, *form.truths}
    return ScoreTable(
        form,
        Rows(predictions, [ids[row] for row in rows], studies),
        tuple(file.columns[image][row] for row in rows) if image else (),
        {column: [cells[row] for row in rows] for column, cells in file.columns.items() if column not in used},
        len(file) - len(rows),
        outside,
        normalized,
        file.sha256,
        patient is not None,
        {"images": len(file), "patients": len(set(ids))},
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


def _check(form: ScoreForm, truth: Floats, score: Floats, *, probabilities: bool) -> Predictions:
    check = check_predictions if probabilities else check_margins
    return check(form.kind, truth, score, class_names=form.class_names, grades=form.grades)


def _read_score(file: ScoreFile, faults: Faults, column: str, row: int) -> float:
    value = read_number(file.columns[column][row])
    if value is None:
        faults.add(f"{column} is not a finite number", row)
    return float("nan") if value is None else value


def _read_truth(file: ScoreFile, form: ScoreForm, faults: Faults) -> Floats:
    """(N,), or (N, K) of a multilabel task; NaN = blank."""

    def read(column: str, row: int) -> float:
        cell = file.columns[column][row]
        if not cell:
            return float("nan")
        if form.labels:
            label = form.labels.get(spell_label(cell), form.labels.get(cell))
            if label is None:
                faults.add(f"{column} is not one of the classes ({', '.join(form.class_names)})", row)
            return float("nan") if label is None else float(label)
        value = read_number(cell)
        if form.kind == "multilabel" and value not in (0, 1):
            faults.add(f"{column} is not 0, 1 or blank", row)
        elif value is None:
            faults.add(f"{column} is not a finite number", row)
        elif form.grades and not (value == int(value) and 0 <= value < len(form.class_names)):
            faults.add(f"{column} is not a grade from 0 to {len(form.class_names) - 1}", row)
        return float("nan") if value is None else value

    table = np.array([[read(column, row) for column in form.truths] for row in range(len(file))], np.float64)
    return table if form.kind == "multilabel" else table[:, 0]


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
    return (score[:, 1:] if form.kind == "binary" else score), len(off)
