"""Strata of images by label, as needed to make and describe splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.data.columns import Codes, code_column
from medcls.data.label_words import are_measurements, spelling_key
from medcls.data.splits import ORDER, SPLIT_NAMES, Certificate, Splits

BIN = "bin "


@dataclass(frozen=True, slots=True)
class Strata:
    """Which image has which label: pairs of the two, in any order.

    Attributes:
        names: The labels.
        rows: (M,), int64: the image of each pair.
        codes: (M,), int32: the label of each pair, a place in `names`.
    """

    names: list[str]
    rows: NDArray[np.int64]
    codes: NDArray[np.int32]

    def count(self, splits: Splits) -> NDArray[np.int64]:
        """Return (len(SPLIT_NAMES), len(names)): the images of each label in each split."""
        size = len(self.names)
        pairs = splits[self.rows].astype(np.int64) * size + self.codes
        return np.bincount(pairs, minlength=len(SPLIT_NAMES) * size).reshape(len(SPLIT_NAMES), size)

    def restrict(self, listed: NDArray[np.bool_]) -> Strata:
        """Return the pairs of the listed images (N,) alone."""
        kept = listed[self.rows]
        return Strata(self.names, self.rows[kept], self.codes[kept])


def stratify(labels: Codes, *, bins: int = 10) -> Strata:
    """Return the strata of single labels: the label itself, or its quantile bin if labels are continuous.

    A bin holds at least 20 images, so that a split of a tenth has some of each.

    Args:
        labels: Of each image.
        bins: At most.
    """
    rows = np.flatnonzero(labels.values >= 0)
    codes = labels.values[rows]
    numbers = read_measurements(labels)
    if numbers is None:
        found: list[Any] = labels.texts.to_pylist()
        return Strata(found, rows, codes)
    bins = max(1, min(bins, len(rows) // 20))
    edges = np.quantile(numbers[codes], np.linspace(0, 1, bins + 1)[1:-1])
    places = np.searchsorted(edges, numbers)
    return Strata([f"{BIN}{i}" for i in range(bins)], rows, places[codes].astype(np.int32))


def read_measurements(labels: Codes) -> NDArray[np.float64] | None:
    """Return the number that each text of `labels` is, if they are values on a scale; None for classes."""
    texts = [str(text) for text in labels.texts.to_pylist()]
    return np.array([float(spelling_key(text)) for text in texts]) if are_measurements(texts) else None


def build_strata(labels: pa.Table, *, label: str | None = None) -> Strata:
    """Return the strata of label columns: of one column its values, of several label_NAME columns the positive ones.

    Args:
        labels: Columns of labels.parquet, strings, null = unknown.
        label: The column to go by; None = "label", or every label_NAME where there is none.
    """
    if label is None and "label" not in labels.column_names:
        return _build_positive(labels)
    return stratify(code_column(labels.column(label or "label")))


def _build_positive(labels: pa.Table) -> Strata:
    code_of: dict[str, int] = {}
    rows, codes = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for column in sorted(name for name in labels.column_names if name.startswith("label_")):
        values = code_column(labels.column(column))
        for value, text in enumerate(values.texts.to_pylist()):
            if stratum := _name_stratum(column, str(text)):
                rows.append(np.flatnonzero(values.values == value))
                codes.append(np.full(len(rows[-1]), code_of.setdefault(stratum, len(code_of)), np.int32))
    return Strata(list(code_of), np.concatenate(rows), np.concatenate(codes))


def _name_stratum(name: str, value: str) -> str:
    """A label_NAME that is 1 counts under its name, one that is 0 or unknown not at all, any other by its value."""
    key = spelling_key(value)
    if key == "0":
        return ""
    return name if key == "1" else f"{name}={value}"


def find_missing(splits: Splits, strata: Strata, *, wanted: Sequence[str]) -> dict[str, list[str]]:
    """Return the labels that some split has and a wanted split lacks, by split; bins of numbers do not count."""
    counts = _count_by_name(splits, strata)
    every = {label for name in ORDER for label in counts[name] if not label.startswith(BIN)}
    return {name: sorted(every - counts[name].keys()) for name in wanted if every - counts[name].keys()}


def describe_split(splits: Splits, strata: Strata, *, patients: Codes) -> Certificate:
    """Return the images, patients and labels of each split that has any, as a certificate states them."""
    used = [(name, splits == code) for code, name in enumerate(SPLIT_NAMES) if (splits == code).any()]
    return {
        "images": {name: int(chosen.sum()) for name, chosen in used},
        "patients": {name: patients.count(chosen) for name, chosen in used},
        "strata": _count_strata(splits, strata),
    }


def _count_by_name(splits: Splits, strata: Strata) -> dict[str, dict[str, int]]:
    """Split -> label -> images, where there are any."""
    return {
        split: {label: count for label, count in zip(strata.names, row, strict=True) if count}
        for split, row in zip(SPLIT_NAMES, strata.count(splits).tolist(), strict=True)
    }


def _count_strata(splits: Splits, strata: Strata) -> dict[str, dict[str, int]]:
    """Split -> label -> images; those without a label count as "unknown"."""
    counts = _count_by_name(splits, strata)
    unlabelled = np.ones(len(splits), dtype=np.bool_)
    unlabelled[strata.rows] = False
    for split, of_label in counts.items():
        unknown = int((splits[unlabelled] == SPLIT_NAMES.index(split)).sum())
        if unknown:
            of_label["unknown"] = of_label.get("unknown", 0) + unknown
    kinds = sorted({label for of_label in counts.values() for label in of_label})
    return {split: {kind: of_label.get(kind, 0) for kind in kinds} for split, of_label in counts.items() if of_label}
