"""Find the task that a file of scores answers: its kind, classes, and columns of scores and truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medcls.config import nearest
from medcls.data.label_words import is_healthy
from medcls.errors import ConfigError, DataError
from medcls.evaluate.score_file import ScoreFile, read_number, spell_label
from medcls.identity import format_count

PATIENT, IMAGE, STUDY, TRUTH = "patient_id", "image_id", "study_id", "truth"
ROLES = {
    PATIENT: ("patient_id", "patient"),
    IMAGE: ("image_id", "image"),
    STUDY: ("study_id", "study"),
    TRUTH: ("truth", "label", "y_true"),
}
"""Purpose of a column, to the names that it may have."""
SCORE, SCORE_OF = "score", "score_"
LABELS_OF = ("label_", "truth_")


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


def add_known(wanted: Wanted, task: Mapping[str, Any]) -> Wanted:
    """Return what the command line says, and of the rest what a table that medcls wrote says itself."""
    if not task or wanted.kind not in ("auto", task["task"]):
        return wanted
    grades, classes = wanted.grades, wanted.classes
    if task["task"] == "regression":
        grades = grades or bool(task.get("grades"))
    if not classes and wanted.positive is None and (task["task"] != "regression" or grades):
        classes = tuple(map(str, task["classes"]))
    return replace(wanted, kind=str(task["task"]), classes=classes, grades=grades)


def find_role(file: ScoreFile, role: str) -> str | None:
    """Return the column of a role, or None; raise DataError if two columns have it."""
    found = [column for column in ROLES[role] if column in file.columns]
    if len(found) > 1:
        raise DataError(f"{file.setting}: columns {' and '.join(found)} mean the same: keep one")
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class _Columns:
    """What the columns of a file are for.

    Attributes:
        file: The file.
        wanted: What the command line says.
        scores: Columns of scores.
        truths: Columns of the truth.
        found: Labels in the column of the truth, sorted; [] of several columns.
        why: How the kind was found.
    """

    file: ScoreFile
    wanted: Wanted
    scores: list[str]
    truths: list[str]
    found: list[str]
    why: str = ""


def find_form(file: ScoreFile, wanted: Wanted) -> ScoreForm:
    """Return the task of a file, from its columns and labels and what the command line says of them."""
    scores = [column for column in file.columns if column == SCORE or column.startswith(SCORE_OF)]
    truths = [column for column in file.columns if column.startswith(LABELS_OF)]
    truth = find_role(file, TRUTH)
    if not scores:
        raise DataError(
            f"{file.setting}: no column of scores among {len(file.columns)}: name it score, or score_NAME for each "
            "class"
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
    found: list[str] = []
    if truth:
        found = sorted({spell_label(cell) for cell in file.columns[truth] if cell})
        if not found:
            raise DataError(f"{file.setting}: column {truth} is blank in every row: nothing can be evaluated")
    kind, why = _find_kind(file, wanted, scores=scores, truths=truths, found=found)
    if (kind == "multilabel") != bool(truths):
        expected = "label_NAME for each label" if kind == "multilabel" else ROLES[TRUTH][0]
        raise ConfigError(f"kind={kind}: the file has other columns of the truth: expected {expected}")
    if kind == "ordinal" and scores == [SCORE]:
        kind, why = "regression", f"{why}; one column: a predicted grade"
    build = {"binary": _form_binary, "multilabel": _form_multilabel, "regression": _form_number}.get(
        kind, _form_classes
    )
    return build(_Columns(file, wanted, scores, truths or [str(truth)], found, why))


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


def _form_binary(given: _Columns) -> ScoreForm:
    file, wanted, scores, found = given.file, given.wanted, given.scores, given.found
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
    return ScoreForm("binary", names, False, labels, tuple(scores), tuple(given.truths), given.why)


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
    positive = wanted.positive or _find_positive(names, named)
    if positive not in names:
        lines = " or ".join(f"positive={name}" for name in names)
        what = f"positive={positive} is not a label" if positive else "the positive class is not known"
        raise ConfigError(f"{file.setting}: {what}: set {lines}")
    return next(name for name in names if name != positive), positive


def _find_positive(names: list[str], named: list[str]) -> str | None:
    """Return the class whose score is given, unless that is the healthy one, or the only class that is not healthy."""
    ill = [name for name in names if not is_healthy(name)]
    if len(named) == 1 and named[0] in ill:
        return named[0]
    return ill[0] if len(ill) == 1 else None


def _check_positive(wanted: Wanted, names: tuple[str, str]) -> tuple[str, str]:
    if wanted.positive not in (None, names[1], "1"):
        raise ConfigError(f"positive={wanted.positive}: the positive class is {names[1]}, labelled 1: correct either")
    return names


def _form_multilabel(given: _Columns) -> ScoreForm:
    names = {column.removeprefix("label_").removeprefix("truth_"): column for column in given.truths}
    chosen = given.wanted.classes or tuple(names)
    scored = [column.removeprefix(SCORE_OF) for column in given.scores]
    for some, others, what in ((chosen, names, "label_"), (chosen, scored, SCORE_OF), (scored, chosen, "label_")):
        missing = [name for name in some if name not in others]
        if missing:
            hint = nearest(missing[0], others)
            raise DataError(
                f"{given.file.setting}: no column {what}{missing[0]}{hint}: each label needs a truth and a score"
            )
    scores = tuple(f"{SCORE_OF}{name}" for name in chosen)
    return ScoreForm("multilabel", chosen, False, {}, scores, tuple(names[name] for name in chosen), given.why)


def _form_number(given: _Columns) -> ScoreForm:
    file, wanted, scores, found = given.file, given.wanted, given.scores, given.found
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
    return ScoreForm("regression", names, bool(names), {}, tuple(scores), tuple(given.truths), given.why)


def _form_classes(given: _Columns) -> ScoreForm:
    wanted, scores = given.wanted, given.scores
    kind = wanted.kind
    if kind == "auto":
        kind = "multiclass"
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
    labels = {spell_label(name): k for k, name in enumerate(names)}
    return ScoreForm(kind, names, False, labels, columns, tuple(given.truths), given.why)
