"""The table printed at the end of data_prep: images and patients by split and class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.labels.label_rows import is_label
from medcls.data.columns import Codes, code_column
from medcls.data.label_words import spelling_key
from medcls.data.splits import SPLIT_NAMES, Splits, read_patients, read_split
from medcls.data.store import Store
from medcls.data.strata import read_measurements
from medcls.data.votes import name_votes

_LABEL = "label"
_MOST_ROWS = 60
_WIDEST = 24


class SplitRow(TypedDict):
    """What each split has of one class: split -> count; of values on a scale, split -> [low, high]."""

    label: str
    images: dict[str, int]
    patients: NotRequired[dict[str, int]]
    range: NotRequired[dict[str, list[float]]]


def build_table(labels: pa.Table, splits: Splits, *, patients: Codes | None) -> list[SplitRow]:
    """Return what each split has of each class: one row a class, "between classes" and "unknown", and the total.

    Between classes are labels with votes of which none leads, as of uncertain ones that are read as 0.5. Of one label
    column the rows are its classes; of several, those of each in turn: positive, negative and unknown, or its values.
    Values on a scale are one row with their range.

    Args:
        labels: "label" or "label_NAME" columns, strings, null = unknown, and their votes, if any; a row for each image.
        splits: (N,) split of each image.
        patients: Patient of each image; None = unknown, so that images alone are counted.

    Returns:
        Rows of "label", "images" and, if they are known, "patients": split -> count. "range" is split -> [low, high].
    """
    names = [name for name in labels.column_names if is_label(name)]
    names = [_LABEL] if _LABEL in names else names
    used = [(name, splits == code) for code, name in enumerate(SPLIT_NAMES) if (splits == code).any()]
    rows = []
    for name in names:
        prefix = "" if name == _LABEL else name.removeprefix(f"{_LABEL}_")
        codes = code_column(labels.column(name))
        votes = name_votes(name)
        between = np.zeros(labels.num_rows, dtype=np.bool_)
        if votes in labels.column_names:
            between = (code_column(labels.column(votes)).values >= 0) & (codes.values < 0)
        for label, chosen, numbers in _list_classes(codes, prefix, between):
            row = _count(label, {split: part & chosen for split, part in used}, patients)
            if numbers is not None:
                row["range"] = {
                    split: [float(numbers[part & chosen].min()), float(numbers[part & chosen].max())]
                    for split, part in used
                    if (part & chosen).any()
                }
            rows.append(row)
    return [*rows, _count("all", dict(used), patients)]


def _list_classes(
    codes: Codes, prefix: str, between: NDArray[np.bool_]
) -> Iterator[tuple[str, NDArray[np.bool_], NDArray[np.float64] | None]]:
    """Yield the name of each row, the images that count in it, and their values if they are on a scale."""
    measured = read_measurements(codes)
    texts = [str(text) for text in codes.texts.to_pylist()]
    if measured is not None:
        yield prefix or "values", codes.values >= 0, np.append(measured, np.nan)[codes.values]
    else:
        # Stores of version 0.2.0 may hold one label in several spellings.
        by_key: dict[str, list[int]] = {}
        for place in sorted(range(len(texts)), key=lambda place: _natural(texts[place])):
            by_key.setdefault(spelling_key(texts[place]), []).append(place)
        signs = {"1": "positive", "0": "negative"} if prefix and set(by_key) <= {"0", "1"} else {}
        for key in sorted(by_key, reverse=True) if signs else by_key:
            label = texts[by_key[key][0]]
            named = f"{prefix} {signs[key]}" if signs else f"{prefix}={label}" if prefix else label
            yield named, np.isin(codes.values, by_key[key]), None
    if between.any():
        yield f"{prefix} between classes".strip(), between, None
    unknown = (codes.values < 0) & ~between
    if unknown.any():
        yield f"{prefix} unknown".strip(), unknown, None


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def _count(label: str, chosen: dict[str, NDArray[np.bool_]], patients: Codes | None) -> SplitRow:
    row: SplitRow = {"label": label, "images": {split: int(rows.sum()) for split, rows in chosen.items()}}
    if patients is not None:
        row["patients"] = {split: patients.count(rows) for split, rows in chosen.items()}
    return row


def describe_split_table(store: Store, name: str, *, patients_known: bool = True) -> str:
    """Return the table of a split of a store for the terminal; of a split of version 0.2.0 it is counted now."""
    splits, certificate = read_split(store, name)
    rows = certificate.get("table")
    if rows is None:
        labels = store.read_labels()
        labels = labels.select([column for column in labels.column_names if is_label(column)])
        rows = build_table(labels, splits, patients=read_patients(store, certificate) if patients_known else None)
    return format_table(name, rows)


def format_table(name: str, rows: list[SplitRow]) -> str:
    """Return the table as the terminal shows it: a line a class, images and in brackets patients by split."""
    known = "patients" in rows[-1]
    splits = [split for split in SPLIT_NAMES if split in rows[-1]["images"]]
    shown = rows if len(rows) <= _MOST_ROWS else [*rows[: _MOST_ROWS - 1], rows[-1]]
    cells = [["", *splits]]
    for row in shown:
        counts = [str(row["images"][s]) + (f" ({row['patients'][s]})" if known else "") for s in splits]
        cells.append([_cut(row["label"]), *counts])
        if "range" in row:
            ranges = ["{:.4g} to {:.4g}".format(*row["range"][s]) if s in row["range"] else "" for s in splits]
            cells.append(["  lowest to highest", *ranges])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells]
    what = "images (patients)" if known else "images; patients are unknown (patients=per_image)"
    left = len(rows) - len(shown)
    note = [f"{left} more {'class' if left == 1 else 'classes'}: see splits/{name}.json"] if left else []
    return "\n".join([f"split {name}: {what}", *(line.rstrip() for line in lines), *note])


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
