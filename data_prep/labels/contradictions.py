"""Find rows where the labels file and the image headers disagree: wrong rows, or patients about to leak."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.labels.label_rows import BadRows, name_place
from medcls.identity import AGE_CAP_YEARS
from medcls.imaging.dicom.terms import AGE_UNITS

CHECKS = ("patient", "study", "sex", "age", "side")
# Labels are often dated otherwise than the image, and one of the two is often rounded.
_AGE_TOLERANCE_YEARS = 1.0


def find_contradictions(
    joined: pa.Table, *, compare: Collection[str], show: Callable[[str], str], bad: BadRows
) -> None:
    """Add every contradiction to `bad`, by line and path, never by the value that identifies.

    A renaming (one patient_id for each PatientID) is none: research ids rename. One patient_id over two PatientIDs
    merges patients, two over one split them, and either may put one patient on both sides of a split.

    Args:
        joined: number, path, patient_id, sex, age_years, side as declared; header_patient, header_study,
            header_series and, where the index has them, header_sex, header_age, header_side. One row an image.
        compare: Which of CHECKS to look at.
        show: What a message may show of a path.
        bad: Where they are counted.
    """
    rows = joined.append_column("at", pa.array(np.arange(joined.num_rows)))

    def place(at: int) -> str:
        return name_place(joined, at, show)

    def add_split(one: str, several: str, text: str) -> None:
        known = rows.select(["at", one, several]).filter((pc.field(one) != "") & (pc.field(several) != ""))
        for first, other in find_split(known, one, several):
            bad.add(f"{place(first)} and {place(other)}: {text}")

    def add_different(name: str, text: str, different: Any) -> None:
        if name in compare and f"header_{name}" in joined.column_names:
            found: Any = rows.select(["number", "at"]).filter(different(joined, joined[f"header_{name}"]))
            # One line of the file may name hundreds of images; it is wrong once.
            for at in found.group_by("number", use_threads=False).aggregate([("at", "min")])["at_min"].to_pylist():
                bad.add(f"{place(at)}: {text}")

    if "patient" in compare:
        add_split("patient_id", "header_patient", "one patient_id, but two PatientIDs in the headers")
        add_split("header_patient", "patient_id", "one PatientID in the headers, but two patient_ids")
    if "study" in compare:
        add_split("header_study", "patient_id", "one study of two patients")
        add_split("header_series", "patient_id", "one series of two patients")
    add_different("sex", "sex is not the PatientSex of the header", _other_sex)
    add_different("age", "age_years is more than a year from the PatientAge of the header", _other_age)
    add_different("side", "side is not the laterality of the header", _other_side)


def find_split(rows: pa.Table, one: str, several: str) -> list[tuple[int, int]]:
    """Return, for each value of column `one` that meets two of `several`, the first two rows that differ.

    Rows are numbered by the column at, in ascending order within a value of `one`.
    """
    groups, values, at = _codes(rows[one]), _codes(rows[several]), np.asarray(rows["at"])
    order = np.argsort(groups, kind="stable")
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    firsts = np.repeat(order[starts], counts)
    differ = np.flatnonzero(values[order] != values[firsts])
    _, once = np.unique(firsts[differ], return_index=True)
    found = differ[once]
    return sorted(zip(at[firsts[found]].tolist(), at[order[found]].tolist(), strict=True))


def _codes(column: Any) -> NDArray[np.int64]:
    """Numbers for the values of a column, equal where they are; null is a value."""
    codes: NDArray[np.int64] = np.asarray(pc.fill_null(pc.index_in(column, value_set=pc.unique(column)), -1))
    return codes


def _other_sex(joined: Any, header: Any) -> Any:
    return _differ(joined["sex"], header, ("M", "F", "O"))


def _other_side(joined: Any, header: Any) -> Any:
    return _differ(joined["side"], header, ("L", "R"))


def _differ(declared: Any, header: Any, codes: tuple[str, ...]) -> Any:
    """Return where both say one of the codes, and not the same; blanks, B (both) and free text say nothing."""
    said = pc.is_in(header, value_set=pa.array(codes))
    return pc.fill_null(pc.and_(said, pc.not_equal(declared, header)), False)


def _other_age(joined: Any, header: Any) -> Any:
    declared, found = (
        pc.min_element_wise(x, pa.scalar(AGE_CAP_YEARS), skip_nulls=False)
        for x in (joined["age_years"], parse_ages(header))
    )
    return pc.fill_null(pc.greater(pc.abs(pc.subtract(declared, found)), pa.scalar(_AGE_TOLERANCE_YEARS)), False)


def parse_ages(texts: Any) -> Any:
    """Return the years of DICOM ages such as "057Y" or "006M", null where one is none.

    Source: PS3.5 6.2, value representation AS.
    """
    parts = pc.extract_regex(texts, pattern=r"^(?P<count>[0-9]{3})(?P<unit>[DWMY])$")
    unit = pc.index_in(pc.struct_field(parts, "unit"), value_set=pa.array(list(AGE_UNITS)))
    years: Any = pc.take(pa.array(list(AGE_UNITS.values())), unit)
    return pc.multiply(pc.cast(pc.struct_field(parts, "count"), pa.float64()), years)
