"""Learn the encoding of clinical columns from the training rows only, and check which columns may be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.clinical.encode import MISSING, ClinicalSpec, Levels, NumericColumn, read_numbers, read_texts
from medcls.config import nearest
from medcls.errors import ConfigError, DataError

_IDENTIFIERS = frozenset(
    {
        *("image_id", "patient_id", "study_id", "series_id", "shard", "row", "affine", "notes"),
        *("pixel_sha256", "pixel_dhash", "declared_sha256"),
    }
)
_ONE = 1 - 1e-9  # correlation with the label


def check_columns(names: Sequence[str], *, there: Sequence[str]) -> None:
    """Raise ConfigError where a column is asked for twice, name a patient, image or label, or is not there."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"clinical: {name} is listed twice: name each column once")
        if name in _IDENTIFIERS:
            raise ConfigError(
                f"clinical: {name} identifies patients or images, so it is not a clinical value: remove it"
            )
        if name == "label" or name.startswith("label_"):
            raise ConfigError(
                f"clinical: {name} is a label, and a network that is given it learns nothing else: remove it"
            )
        if name not in there:
            known = [each for each in there if each not in _IDENTIFIERS]
            raise ConfigError(
                f"clinical: the store has no column {name}; it has {', '.join(known)}{nearest(name, known)}; "
                f"prepare the store with columns=[{name}] to keep it"
            )


def build_clinical(
    table: pa.Table,
    *,
    categorical: Sequence[str],
    numeric: Sequence[str],
    patients: int,
    reference: Mapping[str, Any] | None = None,
    unseen: str = "refuse",
) -> ClinicalSpec:
    """Return how the columns are encoded.

    Args:
        table: The training rows of these columns.
        categorical: Columns of levels; whole numbers count as levels, too.
        numeric: Columns of numbers, or of text that holds numbers.
        patients: Different ones among the rows.
        reference: Column -> its reference level; the most frequent one where none is named.
        unseen: As ClinicalSpec has it.

    Raises:
        ConfigError: a reference of another column, or no level of it; fractions asked for as levels.
        DataError: a column with one value only, with text that is no number, or with so many levels that it tells
            patients apart (fewer than two patients a level).
    """
    strangers = sorted(set(reference or {}) - set(categorical))
    if strangers:
        raise ConfigError(f"clinical.reference names {strangers[0]}, which is not in clinical.categorical")
    levels = [
        _find_levels(table.column(name), name, patients=patients, reference=(reference or {}).get(name))
        for name in categorical
    ]
    return ClinicalSpec(levels, [_measure(table.column(name), name) for name in numeric], unseen)


def _find_levels(column: pa.ChunkedArray[Any], name: str, *, patients: int, reference: Any) -> Levels:
    texts, codes = read_texts(column, name)
    counts = np.bincount(codes, minlength=len(texts))
    found: dict[str, int] = {}
    for text, count in zip(texts, counts.tolist(), strict=True):
        if count:
            found[text] = found.get(text, 0) + count
    known = sorted(set(found) - {MISSING})
    if len(found) < 2 or not known:
        what = "missing" if MISSING in found else "the same"
        raise DataError(f"clinical: {name} is {what} in every training row: remove it")
    if 2 * len(found) > patients:
        raise DataError(
            f"clinical: {name} has {len(found)} levels for {patients} patients in training: it identifies patients: "
            "remove it, merge levels, or move it to clinical.numeric"
        )
    if reference is not None and str(reference) not in known:
        raise ConfigError(f"clinical.reference: {name} has no level {reference} in training; it has {', '.join(known)}")
    chosen = str(reference) if reference is not None else max(known, key=lambda level: found[level])
    return Levels(name, chosen, [*(level for level in known if level != chosen), *({MISSING} & set(found))])


def _measure(column: pa.ChunkedArray[Any], name: str) -> NumericColumn:
    values = read_numbers(column)
    if np.isinf(values).any():
        raise DataError(
            f"clinical: {name} is not a number in {int(np.isinf(values).sum())} training rows: correct them, or "
            "move it to clinical.categorical"
        )
    known = values[~np.isnan(values)]
    if not len(known) or known.min() == known.max():
        raise DataError(f"clinical: {name} has only one value in training: remove it")
    return NumericColumn(name, float(known.mean()), float(known.std()), len(known) < len(values))


def check_no_label(spec: ClinicalSpec, table: pa.Table, targets: NDArray[np.float64]) -> None:
    """Raise DataError where a column says the label itself: each level one class and each class one level.

    Args:
        spec: Of the columns.
        table: Training rows.
        targets: (N, T) of them.
    """
    for target in targets.T:
        known = ~np.isnan(target)
        told = [name for name in (each.name for each in spec.levels) if _names(table.column(name), name, target, known)]
        told += [each.name for each in spec.numbers if _follows(table.column(each.name), target, known)]
        if told:
            raise DataError(f"clinical: {told[0]} determines the label of every training image: remove it")


def _names(column: pa.ChunkedArray[Any], name: str, target: NDArray[np.float64], known: NDArray[np.bool_]) -> bool:
    texts, codes = read_texts(column, name)
    levels = np.unique(np.array(texts), return_inverse=True)[1][codes][known]
    pairs = np.unique(np.stack([levels, target[known]]), axis=1).shape[1]
    return bool(pairs == len(np.unique(levels)) == len(np.unique(target[known])))


def _follows(column: pa.ChunkedArray[Any], target: NDArray[np.float64], known: NDArray[np.bool_]) -> bool:
    values = read_numbers(column)
    both = known & np.isfinite(values)
    if not both.any() or np.ptp(values[both]) == 0 or np.ptp(target[both]) == 0:
        return False
    return bool(abs(np.corrcoef(values[both], target[both])[0, 1]) > _ONE)
