"""Encode written labels as the targets of a task: classes, grades, values, and unknown ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from shlex import quote
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.config import TaskConfig, nearest
from medcls.data.columns import code_column
from medcls.data.label_words import find_order, is_healthy, name_labels, propose_order, sort_key, spelling_key
from medcls.errors import ConfigError, DataError
from medcls.kinds import FORMS, KINDS, RECONSTRUCTION, TaskKind
from medcls.records import newer

_LABEL = "label"
_MOST_SHOWN = 20
# Where the user has to write something in a line that is proposed.
_PLACE = "?"


@dataclass(frozen=True, slots=True)
class Task:
    """What is learnt: kept in the run and in the model file.

    Attributes:
        kind: One of kinds.KINDS; "reconstruction" for a network that learnt without labels.
        class_names: Of each class: of ordered tasks from least to most, of binary ones the positive class second; of
            each label for multilabel; grades for regression with grades, else [].
        columns: Columns of labels.parquet that are read.
        mapping: Label -> class index, or grade if grades are words; {} for multilabel and other regression. Another
            spelling of a label (normal for Normal, 1.0 for 1) is that label.
        grades: Regression of an integer grade 0 to K - 1.
        ordinal: How a network answers an ordinal task: "corn" (K - 1 conditional logits), "softmax" (K classes) or
            "joint" (K classes and the grade as a value); "corn" for other kinds.
    """

    kind: str
    class_names: list[str]
    columns: list[str]
    mapping: dict[str, int] = field(default_factory=dict, metadata=newer())
    grades: bool = field(default=False, metadata=newer())
    ordinal: str = field(default="corn", metadata=newer())

    @property
    def num_classes(self) -> int:
        """K; 0 for plain regression."""
        return len(self.class_names)

    @property
    def traits(self) -> TaskKind:
        """What labels, scores and answers of its kind are."""
        return RECONSTRUCTION if self.kind == RECONSTRUCTION.name else KINDS[self.kind]

    @property
    def positive(self) -> str:
        """The class that sensitivity and probabilities of a binary task are about; "" for other kinds."""
        return self.class_names[1] if self.traits.pair else ""

    @property
    def output(self) -> str:
        """What the network's outputs are (models.heads.OUTPUTS): heads, losses and scores go by it, metrics by kind."""
        return FORMS.get(self.ordinal, self.kind)

    def asks_the_same(self, other: Task) -> bool:
        """Return whether predictions of the two compare: the same classes, however the network answers."""
        return self == replace(other, ordinal=self.ordinal)


def build_task(config: TaskConfig, train_labels: pa.Table) -> Task:
    """Return the task of the training rows' labels.

    Without `classes` and `order`, classes are the labels in natural order. The alphabet decides neither the order of
    grades nor the positive class: if the labels do not tell, the user is asked (docs/decisions/0039-*.md).

    Args:
        config: The kind, which labels, and what the user says of them.
        train_labels: Rows of labels.parquet in the training split.

    Raises:
        DataError: no such column, labels that are no numbers for regression, fewer than two classes.
        ConfigError: the order or the positive class is not known, or more than two classes for binary.
    """
    traits = KINDS[config.kind]
    if traits.multiple:
        return _build_multilabel(config, train_labels)
    column, found = _find_labels(config.label, train_labels)
    order = [_as_written(name, found) for name in config.order]
    if order:
        _check_order(order, found, traits)
    if traits.numeric:
        return _build_regression(config, column, found, order)
    positive = None if config.positive is None else _as_written(config.positive, found)
    mapping = {_as_written(key, found): index for key, index in config.classes.items()}
    if not mapping:
        if traits.pair:
            order = _order_binary(found, positive)
        elif not order and traits.ordered:
            order = _order_grades(found)
        elif not order:
            order = find_order(found) or found
        mapping = {name: index for index, name in enumerate(order)}
    _check_found("task.classes", list(mapping), found)
    if positive is not None and mapping.get(positive) != 1:
        raise ConfigError(
            f"task.positive={config.positive} contradicts task.classes, whose class 1 is the positive one: correct "
            "either"
        )
    names = [
        "+".join(sorted((label for label, index in mapping.items() if index == place), key=sort_key))
        for place in range(max(mapping.values()) + 1)
    ]
    if len(names) < 2:
        raise DataError(f"the training split has one class only ({names[0]}): expected at least two")
    return Task(config.kind, names, [column], mapping, ordinal=config.ordinal)


def _find_labels(label: str, table: pa.Table) -> tuple[str, list[str]]:
    """Return the column of a single label, and its labels in natural order, one spelling of each."""
    column = _find_column(table, label)
    codes = code_column(table.column(column))
    texts = [str(text) for text in codes.texts.to_pylist()]
    if not texts:
        raise DataError(f"task.label={label}: no image of the training split has one")
    counts = np.bincount(codes.values[codes.values >= 0], minlength=len(texts)).tolist()
    # data_prep has made one spelling of several; stores of 0.2.0 may still have them.
    return column, sorted(set(name_labels(dict(zip(texts, counts, strict=True))).values()), key=sort_key)


def _order_binary(found: Sequence[str], positive: str | None) -> list[str]:
    """Return the negative label, then the positive one."""
    if len(found) == 1:
        raise DataError(f"the training split has one class only ({found[0]}): expected at least two")
    if positive is not None and positive not in found:
        raise ConfigError(f"task.positive={positive}: the training split has no such label; it has {_list(found)}")
    if len(found) > 2:
        example = "{" + ", ".join(f"{name}: {1 if name == positive else '?'}" for name in found[:_MOST_SHOWN]) + "}"
        raise ConfigError(
            f"task=binary with {len(found)} labels ({_list(found)}): set task.classes='{example}' with each ? "
            "replaced by 1 (a label of the positive class) or 0 (of the negative one), without the labels to leave out"
        )
    if positive is None:
        healthy = [name for name in found if is_healthy(name)]
        if len(healthy) != 1:
            why = "both mean healthy" if healthy else "neither label says which is the finding"
            first, second = (quote(f"task.positive={name}") for name in found)
            raise ConfigError(f"task=binary with the labels {_list(found)}: {why}: set {first} or {second}")
        positive = next(name for name in found if name not in healthy)
    return [next(name for name in found if name != positive), positive]


def _order_grades(found: Sequence[str]) -> list[str]:
    """Return the labels from least to most, if they tell."""
    order = find_order(found)
    if order is None:
        proposal = propose_order(found)
        # Labels in the order of the alphabet would be pasted as they are: without a likely order, places to fill in.
        line = quote(f"task.order=[{','.join(proposal or [_PLACE] * len(found))}]")
        how = "the likely order" if proposal else f"with {_list(found)} from least to most in place of each {_PLACE}"
        raise ConfigError(
            f"task.order is not set and the {len(found)} labels ({_list(found)}) do not tell their order from least to "
            f"most: set {line}, {how}"
        )
    return order


def _check_order(order: Sequence[str], found: Sequence[str], traits: TaskKind) -> None:
    if _PLACE in order and _PLACE not in found:
        raise ConfigError(f"task.order has {_PLACE}: write {_list(found)} from least to most in place of each {_PLACE}")
    _check_found("task.order", order, found)
    twice = [name for i, name in enumerate(order) if name in order[:i]]
    if twice:
        raise ConfigError(f"task.order names {twice[0]} twice: expected each label once, from least to most")
    absent = [name for name in found if name not in order]
    if absent:
        classes = "" if traits.numeric else ", or set task.classes instead, which may leave labels out"
        raise ConfigError(f"task.order leaves out {_list(absent)}: add every label of the training split{classes}")


def _check_found(setting: str, names: Sequence[str], found: Sequence[str]) -> None:
    empty = sorted(name for name in names if name not in found)
    if empty:
        raise DataError(
            f"{setting} names {', '.join(empty)}: the training split has no such label; it has {_list(found)}"
        )


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(names[:_MOST_SHOWN]) + more


def _as_written(key: Any, found: Sequence[str]) -> str:
    """Return the label that a key of task.classes names, spelled as the store has it.

    YAML and Hydra read true and 1.0 as a truth value and a number, and people type normal for Normal.
    """
    text = str(key)
    return text if text in found else {spelling_key(label): label for label in found}.get(spelling_key(text), text)


def _find_column(table: pa.Table, label: str) -> str:
    names = [name for name in table.column_names if name != "image_id"]
    for name in (label, f"label_{label}"):
        if name in names:
            return name
    advice = "; task=multilabel takes label_NAME columns" if label == _LABEL else ""
    raise DataError(f"task.label={label}: the store's labels have {', '.join(names)}{nearest(label, names)}{advice}")


def _build_multilabel(config: TaskConfig, table: pa.Table) -> Task:
    there = [n.removeprefix("label_") for n in table.column_names if n.startswith("label_")]
    chosen = config.labels or there
    missing = [name for name in chosen if name not in there]
    if missing or not chosen:
        raise DataError(f"task=multilabel: no column label_{(missing or ['NAME'])[0]}; the store has {there or 'none'}")
    return Task(config.kind, chosen, [f"label_{name}" for name in chosen])


def _build_regression(config: TaskConfig, column: str, found: list[str], order: list[str]) -> Task:
    if config.grades and (order or any(sort_key(text)[0] for text in found)):
        # Words: their places are the grades.
        names = order or _order_grades(found)
        return Task(config.kind, names, [column], {name: i for i, name in enumerate(names)}, grades=True)
    values = [_number(text, column) for text in found]
    if not config.grades:
        return Task(config.kind, [], [column])
    wrong = [text for text, value in zip(found, values, strict=True) if value != int(value) or value < 0]
    if wrong:
        raise DataError(f"task.grades=true: {column}={wrong[0]!r}; expected whole grades from 0 up")
    return Task(config.kind, [str(i) for i in range(int(max(values)) + 1)], [column], grades=True)


def _number(text: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(
            f"task=regression: column {column} has a text that is not a number: correct the labels, or set another "
            "task.label"
        )
    return value


def encode_targets(task: Task, labels: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the targets of label rows and which rows have one.

    Args:
        task: The task.
        labels: Rows of labels.parquet.

    Returns:
        (N, T) float64 and (N,) bool. T = 1 with a class index or a value; multilabel T = K with 0, 1 or NaN
        (unknown). A row is out where its label is blank or no class of the task, or all its labels are unknown.

    Raises:
        DataError: a missing column, or a value that the task cannot take.
    """
    missing = [name for name in task.columns if name not in labels.column_names]
    if missing:
        raise DataError(f"the store's labels have no column {missing[0]}; they have {', '.join(labels.column_names)}")
    classes = {spelling_key(label): index for label, index in task.mapping.items()}
    array = np.empty((labels.num_rows, len(task.columns)), dtype=np.float64)
    for i, name in enumerate(task.columns):
        codes = code_column(labels.column(name))
        # Each text is encoded once; null has the code -1, the last place.
        values = [_encode(task, str(text), name, classes=classes) for text in codes.texts.to_pylist()]
        array[:, i] = np.array([*values, np.nan])[codes.values]
    known = np.asarray(~np.isnan(array).all(axis=1), dtype=np.bool_)
    return array, known


def _encode(task: Task, text: str, column: str, *, classes: Mapping[str, int]) -> float:
    if task.traits.multiple:
        return _encode_flag(text, column)
    if task.traits.numeric and not task.mapping:
        return _number(text, column)
    # The spelling itself first: runs of 0.2.0 may have two spellings as two classes.
    index = task.mapping.get(text, classes.get(spelling_key(text)))
    return np.nan if index is None else float(index)


def _encode_flag(value: str, column: str) -> float:
    key = spelling_key(value)
    if key not in ("0", "1"):
        raise DataError(
            f"task=multilabel: column {column} has a value other than 0, 1 and blank (unknown): correct the labels, or "
            "leave the column out of task.labels"
        )
    return float(key)


def describe_left_out(task: Task, labels: pa.Table, out: NDArray[np.bool_]) -> str:
    """Return one line that says how many images are left out, and why: without a label, or its label is no class.

    Args:
        task: The task.
        labels: Rows of labels.parquet with the task's columns.
        out: (N,) the rows that are left out, at least one.
    """
    blank = np.ones(len(out), dtype=np.bool_)
    for name in task.columns:
        blank &= code_column(labels.column(name)).values < 0
    none, other = int((out & blank).sum()), int((out & ~blank).sum())
    if none and other:
        why = f"{none} have no label of this task, and the label of {other} is not a class of the task"
    else:
        why = "they have no label of this task" if none else "their label is not a class of the task"
    return f"{none + other} of {len(out)} images are left out: {why}"


def find_respelled(task: Task, labels: pa.Table) -> dict[str, str]:
    """Return the labels that are spelled differently from the task's, each with the task's spelling.

    Args:
        task: A task with classes; {} is returned for other kinds.
        labels: Rows of labels.parquet with the task's columns.
    """
    known = {spelling_key(label): label for label in task.mapping}
    texts = [str(t) for name in task.columns if known for t in code_column(labels.column(name)).texts.to_pylist()]
    return {t: known[spelling_key(t)] for t in sorted(texts) if t not in task.mapping and spelling_key(t) in known}


def describe_positive(task: Task, *, recorded: bool) -> str:
    """Return one line that names the positive class of a binary task; "" for other kinds.

    Args:
        task: The task.
        recorded: The run was trained by a version that asks for the positive class if labels do not tell.
    """
    if not task.traits.pair:
        return ""
    negative, positive = task.class_names
    if not is_healthy(positive):
        # Of joined labels (benign+normal) the user said what they are, not the words.
        joined = list(task.mapping.values()).count(0) > 1
        healthy = ", which means healthy" if is_healthy(negative) and not joined else ""
        return f"positive class: {positive} (negative: {negative}{healthy})"
    if recorded:
        return f"positive class: {positive}, which means healthy, as requested (negative: {negative})"
    return (
        f"notice: the positive class is {positive}, which means healthy: the run was trained by a version that took "
        f"the alphabetically last label. Sensitivity, PPV and scores are those of {positive}; for those of {negative} "
        f"train again with {quote(f'task.positive={negative}')}"
    )


def check_classes_present(task: Task, targets: NDArray[np.float64], *, split: str) -> None:
    """Raise DataError where a class (or either side of a label) has no image in a split that training needs."""
    if task.traits.numeric:
        return
    if task.traits.multiple:
        absent = [n for i, n in enumerate(task.class_names) if not np.isin([0, 1], targets[:, i]).all()]
        what = "labels without both 0 and 1"
    else:
        found = np.unique(targets[:, 0])
        absent = [n for i, n in enumerate(task.class_names) if i not in found]
        what = "classes without an image"
    if absent:
        raise DataError(
            f"{what} in the {split} split: {', '.join(absent)}; add patients, or change the classes or splits"
        )
