"""Soft targets: shares of readers' votes, and labels that are half of one class and half of another.

A store keeps them beside its labels: `votes` beside `label`, `votes_NAME` beside `label_NAME`, JSON of class -> votes.
The label itself is the class with the most votes, or unknown: whoever counts cases reads labels and never votes.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.data.columns import code_column
from medcls.data.targets import Task, encode_targets
from medcls.errors import DataError
from medcls.kinds import KINDS

VOTES = "votes"


def name_votes(column: str) -> str:
    """Return the name of the column of votes beside a label column."""
    return VOTES + column.removeprefix("label")


def has_votes(task: Task, labels: pa.Table) -> bool:
    """Return whether some label of the task has votes in the store."""
    return any(name_votes(column) in labels.column_names for column in task.columns)


def encode_shares(task: Task, labels: pa.Table) -> NDArray[np.float64] | None:
    """Return the shares of votes as the loss takes them; None if no row has votes, or the loss cannot take them.

    Args:
        task: The task; grades and numbers have no shares.
        labels: Rows of labels.parquet.

    Returns:
        (N, 1) the share of the second class (binary), (N, K) the share of each class (multiclass, rows add up to 1)
        or of yes (multilabel); NaN = unknown. Rows without votes have their label: 0 or 1.

    Raises:
        DataError: a column of votes that data_prep did not write.
    """
    row = KINDS.get(task.output)
    if row is None or row.ordered or row.numeric or not has_votes(task, labels):
        return None
    shares, _ = encode_targets(task, labels)
    if row.exclusive:
        unknown = np.isnan(shares[:, 0])
        shares = np.eye(task.num_classes)[np.nan_to_num(shares[:, 0]).astype(np.int64)]
        shares[unknown] = np.nan
    for place, column in enumerate(task.columns):
        if name_votes(column) not in labels.column_names:
            continue
        codes = code_column(labels.column(name_votes(column)))
        for code, text in enumerate(codes.texts.to_pylist()):
            share = _share(task, column, _parse(str(text), name_votes(column)))
            rows = codes.values == code
            if row.exclusive:
                shares[rows] = share
            else:
                shares[rows, place] = share[-1]
    return shares


def _share(task: Task, column: str, votes: dict[str, float]) -> NDArray[np.float64]:
    """Return the share of each class, (K,) or (no, yes); NaN where no vote is for a class of the task."""
    alone, size = task, task.num_classes
    if task.traits.multiple:
        alone, size = Task(task.kind, [column], [column]), 2
    places, known = encode_targets(alone, pa.table({column: list(votes)}))
    weights = np.array(list(votes.values()))[known]
    counts = np.bincount(places[known, 0].astype(np.int64), weights=weights, minlength=size)
    if not counts.sum():
        return np.full(size, np.nan)
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def _parse(text: str, column: str) -> dict[str, float]:
    try:
        return {str(label): float(count) for label, count in json.loads(text).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{column} of the store is damaged: prepare the store again") from error
