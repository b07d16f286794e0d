"""The values of label columns to classes: one class for each label, however it is spelled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.label_rows import is_label
from medcls.command_line import say
from medcls.config import LabellingConfig
from medcls.data.columns import Codes, code_column
from medcls.data.spelling import are_measurements, are_numbers, clean_label, name_labels, spelling_key
from medcls.errors import DataError

# Fewer different texts than this are shown whatever the number of rows.
_FEW_CLASSES = 5


def read_label_values(labels: pa.Table, config: LabellingConfig, *, unit: str = "rows") -> pa.Table:
    """Return the table of labels with one spelling for each class; print a notice for each merged class.

    Args:
        labels: `read_label_table` or `read_class_folder_table`.
        config: How values are read.
        unit: What a row is called in messages: "rows" of a labels file, "images" in class folders.

    Raises:
        DataError: several spellings of one class under labelling.strict, or a column of names or free text.
    """
    for name in [name for name in labels.column_names if is_label(name)]:
        codes = code_column(labels.column(name))
        check_are_classes(name, codes, config, unit=unit)
        labels = _set(labels, name, merge_spellings(name, codes, config, unit=unit))
    return labels


def count_values(codes: Codes) -> dict[str, int]:
    """Return how often each text of a column occurs."""
    counts = np.bincount(codes.values[codes.values >= 0], minlength=len(codes.texts))
    return dict(zip(map(str, codes.texts.to_pylist()), counts.tolist(), strict=True))


def check_are_classes(name: str, codes: Codes, config: LabellingConfig, *, unit: str) -> None:
    """Check that a column holds classes or numbers; what it holds instead may be names, so it is not shown.

    Raises:
        DataError: more different texts than labelling.max_classes, or nearly one for each row.
    """
    counts = count_values(codes)
    labels = {spelling_key(text) for text in counts}
    rows = sum(counts.values())
    if len(labels) > config.max_classes and not are_measurements(counts):
        raise DataError(
            f"{name}: {len(labels)} different texts in {rows} {unit} (expected at most "
            f"labelling.max_classes={config.max_classes}); they are not shown, since they may be names or free text: "
            "correct the column, or set labelling.max_classes"
        )
    if len(labels) > max(_FEW_CLASSES, rows / 2) and not are_numbers(counts):
        raise DataError(
            f"{name}: {len(labels)} different texts in only {rows} {unit}; they are not shown, since they may be names "
            "or free text: name the column of classes label, or give each class more images"
        )


def merge_spellings(name: str, codes: Codes, config: LabellingConfig, *, unit: str) -> Codes:
    """Return a column with the most frequent spelling of each label in place of the others.

    Raises:
        DataError: there are several spellings, under labelling.strict.
    """
    counts = count_values(codes)
    if are_measurements(counts):
        return codes
    names = name_labels(counts)
    for kept in sorted(set(names.values())):
        spellings = sorted((text for text in counts if names[text] == kept), key=lambda text: (-counts[text], text))
        if len(spellings) == 1:
            continue
        listed = [f"{_quote(text, spellings)} ({counts[text]} {unit})" for text in spellings]
        if config.strict:
            raise DataError(
                f"labelling.strict=true: {name} has one class in {len(spellings)} spellings: {', '.join(listed)}: "
                "spell it alike everywhere, or set labelling.strict=false"
            )
        say(
            f"notice: {name}: {', '.join(listed[:-1])} and {listed[-1]} are read as one class, {kept}; "
            "labelling.strict=true refuses"
        )
    texts = sorted(set(names.values()))
    place = np.array([*(texts.index(names[text]) for text in counts), -1], dtype=np.int32)
    return Codes(place[codes.values], pa.array(texts, pa.string()))


def _quote(text: str, spellings: list[str]) -> str:
    """Quote a spelling; escape it if another one looks the same (Unicode forms, invisible characters)."""
    alike = sum(clean_label(other) == clean_label(text) for other in spellings)
    return ascii(text) if alike > 1 else repr(text)


def _set(labels: pa.Table, name: str, codes: Codes) -> pa.Table:
    places: Any = pa.array(codes.values, mask=codes.values < 0)
    column = codes.texts.take(places)
    return labels.set_column(labels.schema.get_field_index(name), name, column)
