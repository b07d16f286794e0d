"""Find rows where the labels file and the image headers disagree: wrong rows, or patients about to leak."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.labels.label_rows import BadRows
from medcls.identity import AGE_CAP_YEARS
from medcls.imaging.dicom.terms import AGE_UNITS

CHECKS = ("patient", "study", "sex", "age", "side")
# Labels are often dated otherwise than the image, and one of the two is often rounded.
_AGE_TOLERANCE_YEARS = 1.0
_CODES = {"sex": ("M", "F", "O"), "side": ("L", "R")}
_SPLITS = (
    ("patient", "patient_id", "header_patient", "one patient_id, but two PatientIDs in the headers"),
    ("patient", "header_patient", "patient_id", "one PatientID in the headers, but two patient_ids"),
    ("study", "header_study", "patient_id", "one study of two patients"),
    ("study", "header_series", "patient_id", "one series of two patients"),
)
"""Check, column with one value, column that must not have two for it, and what is wrong if it has."""

_DIFFERENT = (
    ("sex", "sex", "sex is not the PatientSex of the header"),
    ("age", "age_years", "age_years is more than a year from the PatientAge of the header"),
    ("side", "side", "side is not the laterality of the header"),
)
"""Check, declared column, and what is wrong if the header says something else."""


def find_contradictions(joined: pa.Table, *, compare: Collection[str], bad: BadRows) -> None:
    """Add every contradiction to `bad`, by line and path, never by the value that identifies.

    A renaming (one patient_id for each PatientID) is not one: research ids rename. One patient_id over two PatientIDs
    merges patients, two over one split them, and either may put one patient on both sides of a split.

    Args:
        joined: number, path, patient_id, sex, age_years, side as declared; header_patient, header_study,
            header_series and, where the index has them, header_sex, header_age, header_side. One row an image.
        compare: Which of CHECKS to look at.
        bad: Where they are counted.
    """
    rows = joined.append_column("at", pa.array(np.arange(joined.num_rows)))
    for check, one, several, text in _SPLITS:
        if check in compare:
            known = rows.select(["at", one, several]).filter((pc.field(one) != "") & (pc.field(several) != ""))
            for ends in find_split(known, one, several):
                bad.add_at(joined, ends, text)
    for check, name, text in _DIFFERENT:
        header = f"header_{check}"
        if check not in compare or header not in joined.column_names:
            continue
        if check == "age":
            differ = _differ_in_age(joined[name], joined[header])
        else:
            # Blanks, B (both) and free text say nothing.
            said = pc.is_in(joined[header], value_set=pa.array(_CODES[check]))
            differ = pc.and_(said, pc.not_equal(joined[name], joined[header]))
        found: Any = rows.select(["number", "at"]).filter(pc.fill_null(differ, False))
        # One line of the file may name hundreds of images; it is wrong once.
        for at in found.group_by("number", use_threads=False).aggregate([("at", "min")])["at_min"].to_pylist():
            bad.add_at(joined, [at], text)


def find_split(rows: pa.Table, one: str, several: str) -> list[tuple[int, int]]:
    """Return, for each value of column `one` that meets two of `several`, the first two rows that differ.

    Rows are numbered by the column at, in ascending order within a value of `one`.
    """
    groups, values = (
        np.asarray(pc.fill_null(pc.index_in(column, value_set=pc.unique(column)), -1))  # null is a value
        for column in (rows[one], rows[several])
    )
    at = np.asarray(rows["at"])
    order = np.argsort(groups, kind="stable")
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    firsts = np.repeat(order[starts], counts)
    differ = np.flatnonzero(values[order] != values[firsts])
    _, once = np.unique(firsts[differ], return_index=True)
    found = differ[once]
    return sorted(zip(at[firsts[found]].tolist(), at[order[found]].tolist(), strict=True))


def _differ_in_age(years: Any, header: Any) -> Any:
    declared, found = (
        pc.min_element_wise(ages, pa.scalar(AGE_CAP_YEARS), skip_nulls=False) for ages in (years, parse_ages(header))
    )
    return pc.greater(pc.abs(pc.subtract(declared, found)), pa.scalar(_AGE_TOLERANCE_YEARS))


def parse_ages(texts: Any) -> Any:
    """Return the years of DICOM ages such as "057Y" or "006M", null where one is none.

    Source: PS3.5 6.2, value representation AS.
    """
    parts = pc.extract_regex(texts, pattern=r"^(?P<count>[0-9]{3})(?P<unit>[DWMY])$")
    unit = pc.index_in(pc.struct_field(parts, "unit"), value_set=pa.array(list(AGE_UNITS)))
    years: Any = pc.take(pa.array(list(AGE_UNITS.values())), unit)
    return pc.multiply(pc.cast(pc.struct_field(parts, "count"), pa.float64()), years)
