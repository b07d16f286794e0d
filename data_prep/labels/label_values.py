"""Read the values of label columns as classes, and record how each spelling was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.labels.label_columns import (
    LabelColumn,
    check_are_classes,
    check_uncertain,
    merge_spellings,
    open_column,
    read_blank,
    read_uncertain,
    say_values,
)
from data_prep.labels.label_readers import Combined, combine_readers, find_readers, guess_readers, halve_votes
from data_prep.labels.label_rows import is_label
from medcls.config import LabellingConfig
from medcls.console import say
from medcls.data.columns import code_column
from medcls.data.votes import name_votes


def read_label_values(
    labels: pa.Table, config: LabellingConfig, *, unit: str = "rows"
) -> tuple[pa.Table, dict[str, Any]]:
    """Return the table of labels with one spelling for each class, and the record of what was read how.

    Uncertain and blank values of 0/1 columns are read as `config` says, and the columns of several readers become one.
    A target between classes is unknown in its label column and stands in a column of votes beside it, which training
    reads and nothing else.

    Args:
        labels: `read_label_table` or `read_class_folder_table`.
        config: How values are read.
        unit: What a row is called in messages: "rows" of a labels file, "images" in class folders.

    Raises:
        DataError: several spellings of one class under labelling.strict, a column of names or free text, uncertain
            values without labelling.uncertain, or readers without their columns.
    """
    of_readers = find_readers(labels.column_names, config.readers)
    ends = [] if of_readers else guess_readers([name for name in labels.column_names if is_label(name)])
    if ends:
        say(
            f"notice: the label columns that end in {', '.join(ends)} are read as separate findings; if they are "
            f"readers of one finding, set labelling.readers=[{','.join(ends)}]"
        )
    read = {name for names in of_readers.values() for name in names}
    groups = {name: [name] for name in labels.column_names if is_label(name) and name not in read} | of_readers
    columns = {target: [open_column(labels, name) for name in names] for target, names in groups.items()}
    every = [column for group in columns.values() for column in group]
    patients = _number_patients(labels)
    number = labels.num_rows if patients is None else len(np.unique(patients))
    for group in columns.values():
        flags = all(column.is_flag for column in group)
        for column in group:
            check_are_classes(column, config, patients=number, unit=unit)
            column.is_flag = flags
    check_uncertain(every, config, unit=unit)
    for group in columns.values():
        merge_spellings(group, config, unit=unit)
        for column in group:
            read_uncertain(column, config)
            read_blank(column, config)
    say_values(every, readers=read, unit=unit)
    record: dict[str, Any] = {"unit": unit, "rows": labels.num_rows, "columns": {c.name: c.record for c in every}}
    labels = labels.drop_columns(sorted(read))
    for target, group in columns.items():
        one = _finish(target, group, config, readers=of_readers, patients=patients)
        if one.record:
            record.setdefault("readers", {})[target] = one.record
        labels = _set(labels, target, one.label)
        if one.votes is not None:
            labels = _set(labels, name_votes(target), one.votes)
    return labels, record


def _finish(
    target: str,
    group: Sequence[LabelColumn],
    config: LabellingConfig,
    *,
    readers: dict[str, list[str]],
    patients: NDArray[np.int64] | None,
) -> Combined:
    if target in readers:
        return combine_readers(target, group, config, patients=patients)
    return Combined(group[0].to_arrow(), halve_votes(group[0]), {})


def _number_patients(labels: pa.Table) -> NDArray[np.int64] | None:
    """Return a number for the patient of each row; None if the labels do not name one in every row."""
    for name in ("patient_id", "dicom_patient_id"):
        if name in labels.column_names:
            codes = code_column(labels.column(name)).values
            if len(codes) and (codes >= 0).all():
                return np.asarray(codes, dtype=np.int64)
    return None


def _set(labels: pa.Table, name: str, column: Any) -> pa.Table:
    if name not in labels.column_names:
        return labels.append_column(name, column)
    return labels.set_column(labels.schema.get_field_index(name), name, column)
