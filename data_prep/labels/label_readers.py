"""Combine the label columns of several readers: majority, shares, or one reader."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.labels.label_columns import FLAGS, LabelColumn
from data_prep.labels.label_rows import is_label
from medcls.config import LabellingConfig
from medcls.console import say
from medcls.errors import DataError
from medcls.identity import format_count
from medcls.statistics.reader_agreement import measure_agreement

# Safe to print from any header: such a name is nobody's.
_READER = re.compile(
    r"(?:(?P<stem>label(?:_.+)?)_)?(?P<reader>(?:r|reader|rater|annotator|observer)[_-]?[0-9]{1,2})", re.I
)


def guess_readers(names: Sequence[str]) -> list[str]:
    """Return what labelling.readers may be: columns called r1, reader1, rater_1 … or such ends of label columns.

    Args:
        names: Columns of the file.

    Returns:
        Two or more names, in the file's order; [] if nothing looks like several readers.
    """
    found = [match for name in names if (match := _READER.fullmatch(name))]
    for of_labels in (True, False):
        readers = list(dict.fromkeys(match["reader"] for match in found if bool(match["stem"]) == of_labels))
        if len(readers) > 1:
            return readers
    return []


def suggest_readers(names: Sequence[str]) -> None:
    """Print a notice if label columns look like those of several readers of one finding."""
    ends = guess_readers([name for name in names if is_label(name)])
    if ends:
        say(
            f"notice: the label columns that end in {', '.join(ends)} are read as separate findings; if they are "
            f"readers of one finding, set labelling.readers=[{','.join(ends)}]"
        )


def find_readers(names: Sequence[str], readers: Sequence[str]) -> dict[str, list[str]]:
    """Return label column -> columns of its readers, in the order of `readers`; {} without readers.

    Readers are columns of the file, which make `label`; or the ends of label columns: r1 and r2 make `label` of
    label_r1 and label_r2, and `label_edema` of label_edema_r1 and label_edema_r2.

    Args:
        names: Columns of the file.
        readers: labelling.readers.

    Raises:
        DataError: a reader has no column, or the label column is there beside the readers'.
    """
    if not readers:
        return {}
    if all(reader in names for reader in readers):
        found = {"label": list(readers)}
    else:
        stems = {n.removesuffix(f"_{r}") for r in readers for n in names if is_label(n) and n.endswith(f"_{r}")}
        found = {stem: [f"{stem}_{reader}" for reader in readers] for stem in sorted(stems)}
    absent = [name for columns in found.values() for name in columns if name not in names]
    if absent or not found:
        missing = next(iter(absent), f"{readers[0]} or label_{readers[0]}")
        raise DataError(
            f"labelling.readers={list(readers)}: there is no column {missing}: name a column of each reader, or the "
            "ends of their label columns (r1 for label_r1 or label_NAME_r1)"
        )
    twice = [stem for stem in found if stem in names]
    if twice:
        raise DataError(
            f"labelling.readers={list(readers)} makes the column {twice[0]}, which the file also has: rename that "
            "column, or remove labelling.readers"
        )
    return found


def combine_readers(
    target: str, group: Sequence[LabelColumn], config: LabellingConfig, *, patients: NDArray[np.int64] | None
) -> tuple[Any, Any, Mapping[str, object]]:
    """Combine several readers' columns into one by labelling.readers_rule, and print how far they agree.

    The class with the most votes is the label; if several have the most, it is unknown.

    Args:
        target: Name of the column.
        group: A column of each reader, in one spelling, in the order of labelling.readers.
        config: The rule.
        patients: (N,): a number for the patient of each row; None = not known from the labels.

    Returns:
        (N,) the class of each row, null = unknown; (N,) JSON of class -> votes in the rows with a soft target, null in
        others, or None if there is none; and the record of how readers agree.
    """
    classes = sorted({text for column in group for text in [*column.counts, *_half_classes(column)]})
    votes = np.zeros((len(group[0].codes.values), len(classes)))
    for column in group:
        rows = np.flatnonzero(column.codes.values >= 0)
        places = np.array([classes.index(text) for text in column.counts], dtype=np.int64)
        votes[rows, places[column.codes.values[rows]]] += 1
        votes[column.undecided] += [0.5 * (name in _half_classes(column)) for name in classes]
    most = votes.max(axis=1, initial=0)
    units, over = patients, "patients"
    if units is None:
        units, over = np.arange(len(votes)), "rows"
    leaders = (votes == most[:, None]).sum(axis=1)
    has_votes = most > 0
    record = {
        "readers": list(config.readers),
        "rule": config.readers_rule,
        "rows": int(has_votes.sum()),
        "unanimous": int(((votes > 0).sum(axis=1) == 1).sum()),
        "ties": int((has_votes & (leaders > 1)).sum()),
        "interval_over": over,
        **measure_agreement(votes, units),
    }
    say(describe_readers(target, record))
    if config.readers_rule in config.readers:
        one = group[config.readers.index(config.readers_rule)]
        return one.to_arrow(), halve_votes(one), record
    first = np.zeros(len(votes), dtype=np.int64)
    if classes:
        first = votes.argmax(axis=1)
    winner: Any = pa.array(first, mask=(leaders != 1) | ~has_votes)
    shares = None
    if config.readers_rule == "share" and has_votes.any():
        kinds, of_row = np.unique(votes, axis=0, return_inverse=True)
        texts = [json.dumps({c: v for c, v in zip(classes, kind, strict=True) if v}) for kind in kinds.tolist()]
        shares = pa.array(texts).take(pa.array(of_row.ravel().astype(np.int32), mask=~has_votes))
    return pa.array(classes, pa.string()).take(winner), shares, record


def _half_classes(column: LabelColumn) -> list[str]:
    """Return the two classes that an undecided row is half of each; [] if there is no such row."""
    if not column.undecided.any():
        return []
    return [column.spell_flag(flag) for flag in FLAGS]


def halve_votes(column: LabelColumn) -> Any:
    """Return the votes of a column whose undecided rows count one half for each flag; None if it has no such row."""
    if not column.undecided.any():
        return None
    votes = json.dumps(dict.fromkeys(_half_classes(column), 0.5))
    places: Any = pa.array(np.zeros(len(column.undecided), dtype=np.int32), mask=~column.undecided)
    return pa.array([votes]).take(places)


def describe_readers(target: str, record: Mapping[str, Any]) -> str:
    """Return one line: who read, how far they agree, and what became of ties."""
    rule = record["rule"]
    line = f"{target} of {format_count(len(record['readers']), 'reader')} ({', '.join(record['readers'])})"
    if "alpha" in record:
        alpha, agreement = record["alpha"], 100 * record["agreement"]["value"]
        line += f": {format_count(record['images'], 'row')} with two or more, {agreement:.1f} % of their pairs agree"
        if alpha["value"] is not None:
            line += f", Krippendorff's alpha {alpha['value']:.2f}"
        if alpha["low"] is not None:
            line += f" (95 % {alpha['low']:.2f} to {alpha['high']:.2f}, bootstrap over {record['interval_over']})"
    line += f"; labelling.readers_rule={rule}"
    if rule not in record["readers"]:
        line += f": {record['ties']} ties are unknown"
        if rule == "share":
            line += ", except in training, which takes shares"
    return line
