"""The encoding of clinical columns: levels as 0 and 1, standardised numbers, indicators of missing values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.data.columns import code_column
from medcls.errors import ConfigError, DataError

MISSING = "missing"
# Places of a text that is no design column.
_REFERENCE, _FAULT = -1, -2

Faults = dict[int, str]


@dataclass(frozen=True, slots=True)
class Levels:
    """A categorical column.

    Attributes:
        name: Of the column.
        reference: The level that the others are compared with; it has no design column.
        levels: The other levels of the training rows, sorted; MISSING last, where training had such rows.
    """

    name: str
    reference: str
    levels: list[str]


@dataclass(frozen=True, slots=True)
class NumericColumn:
    """A numeric column.

    Attributes:
        name: Of the column.
        mean: Of the training rows that have a value.
        std: Theirs, > 0: 1 in the design matrix.
        missing: Training had rows without a value: they have the mean, and a design column of their own.
    """

    name: str
    mean: float
    std: float
    missing: bool


@dataclass(frozen=True, slots=True)
class Term:
    """One design column.

    Attributes:
        name: "sex=M", "age_years" or "age_years=missing".
        column: Of the manifest.
        level: Of a categorical column, or MISSING; "" of a number itself.
        reference: What the level is compared with; "" of a number.
        std: What a change by 1 is in the column's own unit; 0 of a level.
    """

    name: str
    column: str
    level: str
    reference: str
    std: float


@dataclass(frozen=True, slots=True)
class ClinicalSpec:
    """How columns become numbers: learnt from the training rows alone, part of the model card.

    Attributes:
        levels: Categorical columns, in order.
        numbers: Numeric columns, after them.
        unseen: What is done with a level that training did not have: "refuse", or "missing", which takes it for a
            missing value where training had such.
    """

    levels: list[Levels]
    numbers: list[NumericColumn]
    unseen: str = "refuse"

    @property
    def columns(self) -> list[str]:
        """Names of the manifest's columns."""
        return [*(each.name for each in self.levels), *(each.name for each in self.numbers)]

    @property
    def terms(self) -> list[Term]:
        """The C design columns, in order."""
        terms = [
            Term(f"{each.name}={x}", each.name, x, each.reference, 0.0) for each in self.levels for x in each.levels
        ]
        for each in self.numbers:
            terms.append(Term(each.name, each.name, "", "", each.std))
            if each.missing:
                terms.append(Term(f"{each.name}={MISSING}", each.name, MISSING, "the mean", 0.0))
        return terms


def read_texts(column: pa.ChunkedArray[Any], name: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return the different texts, MISSING for blanks, and for each row (N,) the place of its own.

    Raises:
        ConfigError: a column of fractions.
    """
    if pa.types.is_floating(column.type):
        raise ConfigError(f"clinical: {name} is a number: move it to clinical.numeric")
    coded = pa.types.is_string(column.type) or pa.types.is_dictionary(column.type)
    codes = code_column(column if coded else column.cast(pa.string()))
    texts = [str(text).strip() or MISSING for text in codes.texts.to_pylist()]
    # Null has the code -1: the last place.
    return [*texts, MISSING], np.where(codes.values < 0, len(texts), codes.values)


def read_numbers(column: pa.ChunkedArray[Any]) -> NDArray[np.float64]:
    """Return the numbers (N,): NaN where there is none, infinite where the text is no number."""
    if pa.types.is_string(column.type) or pa.types.is_dictionary(column.type):
        codes = code_column(column)
        parsed = [_parse(str(text).strip()) for text in codes.texts.to_pylist()]
        return np.array([*parsed, np.nan])[codes.values]
    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)


def _parse(text: str) -> float:
    if text in ("", MISSING):
        return np.nan
    try:
        value = float(text)
    except ValueError:
        return np.inf
    return value if np.isfinite(value) else np.inf


def encode_clinical(spec: ClinicalSpec, table: pa.Table) -> tuple[NDArray[np.float32], Faults]:
    """Return the design matrix of some rows, and why rows have none.

    Returns:
        (N, C) float32, NaN in rows with a fault; place of the row -> what is wrong with it. A fault is a missing value
        where training had none, a level that training did not have, and a text that is no number.
    """
    faults: Faults = {}
    parts = [_encode_levels(each, table.column(each.name), unseen=spec.unseen, faults=faults) for each in spec.levels]
    parts += [_encode_number(each, table.column(each.name), faults=faults) for each in spec.numbers]
    values = np.concatenate(parts, axis=1, dtype=np.float32) if parts else np.empty((table.num_rows, 0), np.float32)
    values[list(faults)] = np.nan
    return values, faults


def _encode_levels(spec: Levels, column: pa.ChunkedArray[Any], *, unseen: str, faults: Faults) -> NDArray[np.float64]:
    texts, codes = read_texts(column, spec.name)
    known = {level: place for place, level in enumerate(spec.levels)} | {spec.reference: _REFERENCE}
    # A new level is read as missing only if training had missing ones.
    otherwise = known.get(MISSING, _FAULT) if unseen == MISSING else _FAULT
    places = np.array([known.get(text, otherwise) for text in texts])
    for row in np.flatnonzero(places[codes] == _FAULT).tolist():
        what = "has a value that was not seen in training"
        if texts[codes[row]] == MISSING:
            what = "is missing, and training had none missing"
        faults.setdefault(row, f"{spec.name} {what}")
    # The reference and faults find no one: eye() has no row for them but zeros.
    one_hot = np.concatenate([np.eye(len(spec.levels)), np.zeros((2, len(spec.levels)))])
    return np.asarray(one_hot[places][codes])


def _encode_number(spec: NumericColumn, column: pa.ChunkedArray[Any], *, faults: Faults) -> NDArray[np.float64]:
    values = read_numbers(column)
    missing = np.isnan(values)
    for row in np.flatnonzero(np.isinf(values)).tolist():
        faults.setdefault(row, f"{spec.name} is not a number")
    if not spec.missing:
        for row in np.flatnonzero(missing).tolist():
            faults.setdefault(row, f"{spec.name} is missing, and training had none missing")
    with np.errstate(invalid="ignore"):
        scaled = np.where(missing, 0.0, (values - spec.mean) / spec.std)
    return np.stack([scaled, missing], axis=1) if spec.missing else scaled[:, None]


def check_faults(faults: Faults, *, where: str, rows: int) -> None:
    """Raise DataError where rows cannot be encoded, with their number and each reason once.

    Args:
        faults: From `encode_clinical`.
        where: "val", or what else the rows are.
        rows: All of them.
    """
    if faults:
        reasons = sorted(set(faults.values()))
        more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise DataError(
            f"clinical: {len(faults)} of {rows} rows of {where} have no values: {'; '.join(reasons[:5])}{more}: "
            "fill them in, or train without these columns (clinical.unseen=missing reads new levels as missing)"
        )
