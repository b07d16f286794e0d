"""Read the values of label columns as classes, and record how each spelling was read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.labels.label_columns import (
    check_are_classes,
    check_uncertain,
    merge_spellings,
    open_column,
    read_blank,
    read_uncertain,
    say_values,
)
from data_prep.labels.label_readers import combine_readers, find_readers, halve_votes, suggest_readers
from data_prep.labels.label_rows import is_label, set_columns
from medcls.config import LabellingConfig
from medcls.data.columns import code_column
from medcls.data.votes import name_votes


def read_label_values(
    labels: pa.Table, config: LabellingConfig, *, unit: str = "rows"
) -> tuple[pa.Table, dict[str, Any]]:
    """Return the table of labels with one spelling for each class, and the record of what was read how.

    Uncertain and blank values of 0/1 columns are read as `config` says, and the columns of several readers become one.
    A target between classes is unknown in its label column and is in a column of votes beside it, which training
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
    if not of_readers:
        suggest_readers(labels.column_names)
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
    record = {"unit": unit, "rows": labels.num_rows, "columns": {c.name: c.record for c in every}}
    labels = labels.drop_columns(sorted(read))
    agreements = {}
    for target, group in columns.items():
        if target in of_readers:
            label, votes, agreements[target] = combine_readers(target, group, config, patients=patients)
        else:
            label, votes = group[0].to_arrow(), halve_votes(group[0])
        labels = set_columns(labels, **{target: label})
        if votes is not None:
            labels = set_columns(labels, **{name_votes(target): votes})
    if agreements:
        record["readers"] = agreements
    return labels, record


def _number_patients(labels: pa.Table) -> NDArray[np.int64] | None:
    """Return a number for the patient of each row; None if the labels do not name one in every row."""
    for name in ("patient_id", "dicom_patient_id"):
        if name in labels.column_names:
            codes = code_column(labels.column(name)).values
            if len(codes) and (codes >= 0).all():
                return np.asarray(codes, dtype=np.int64)
    return None
