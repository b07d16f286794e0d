"""Splits made by patient, with every label in proportion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.data.columns import Codes
from medcls.data.splits import DROPPED, ORDER, SPLIT_NAMES, Splits
from medcls.reproducibility import draw_seed

BIN = "bin "
_OUT = SPLIT_NAMES.index(DROPPED)


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
        """Returns (len(SPLIT_NAMES), len(names)): the images of each label in each split."""
        size = len(self.names)
        pairs = splits[self.rows].astype(np.int64) * size + self.codes
        return np.bincount(pairs, minlength=len(SPLIT_NAMES) * size).reshape(len(SPLIT_NAMES), size)


def assign_splits(
    patients: Codes,
    strata: Strata,
    *,
    fractions: Mapping[str, float],
    seed: int,
    listed: NDArray[np.bool_] | None = None,
) -> Splits:
    """Returns a split for each image: patients whole, each stratum in proportion to `fractions`.

    The patients of the rarest stratum go first; each goes where its rarest stratum lacks most images. Ties and
    order come from a hash of (seed, patient_id), so the result is the same on every machine and in any row order.

    Args:
        patients: patient_id of each image.
        strata: Labels of the listed images: of each its label, or its positive labels.
        fractions: Split name -> share of the images, summing to 1; a share of 0 gets none.
        seed: Of the order.
        listed: (N,) images that take part, None = all; the others are dropped.

    Source: iterative stratification, Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011, section 3, extended from
    examples to groups of examples.
    """
    owners = patients.values
    taking = np.ones(len(owners), dtype=np.bool_) if listed is None else listed
    counts = _count_labels(owners, strata, taking)
    order = _order_patients(patients, counts, seed=seed)
    split_of = np.full(len(patients.texts), _OUT, dtype=np.int8)
    lack = [[fractions.get(name, 0) * total for name in ORDER] for total in counts.totals.tolist()]
    names = [i for i, name in enumerate(ORDER) if fractions.get(name, 0) > 0]
    every = len(lack) - 1
    for place in order.tolist():
        own = slice(counts.starts[place], counts.starts[place + 1])
        rarest, patient = lack[counts.rarest[place]], int(counts.patients[place])
        most = max((rarest[n], lack[every][n]) for n in names)
        best = [n for n in names if (rarest[n], lack[every][n]) == most]
        if len(best) > 1:
            name = patients.text(patient)
            best.sort(key=lambda n: draw_seed("tie", seed, name, ORDER[n]), reverse=True)
        split_of[patient] = best[0]
        for label, count in zip(counts.labels[own].tolist(), counts.counts[own].tolist(), strict=True):
            lack[label][best[0]] -= count
    return np.where(taking, split_of[owners], np.int8(_OUT))


@dataclass(frozen=True, slots=True)
class _PatientCounts:
    """Images by patient and label; the last label stands for every image.

    Of the P patients that take part: patients (P,) their codes, starts (P + 1,) of their entries in labels and counts
    (E,), rarest (P,) their rarest label. totals (L,) are of each label.
    """

    patients: NDArray[np.int64]
    starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    counts: NDArray[np.int64]
    rarest: NDArray[np.int64]
    totals: NDArray[np.int64]


def _count_labels(owners: NDArray[np.int32], strata: Strata, taking: NDArray[np.bool_]) -> _PatientCounts:
    every = len(strata.names)
    size = every + 1
    pairs = [owners[strata.rows].astype(np.int64) * size + strata.codes, owners[taking].astype(np.int64) * size + every]
    keys, counts = np.unique(np.concatenate(pairs), return_counts=True)
    labels = keys % size
    patients, starts = np.unique(keys // size, return_index=True)
    totals = np.bincount(labels, weights=counts, minlength=size).astype(np.int64)
    # Ties of equal totals go by name, "" for every image.
    rarity = np.array(sorted(range(size), key=lambda i: (totals[i], [*strata.names, ""][i])))
    rank = np.argsort(rarity)
    rarest = rarity[np.minimum.reduceat(rank[labels], starts)] if len(starts) else starts
    return _PatientCounts(patients, np.append(starts, len(keys)), labels, counts, rarest, totals)


def _order_patients(patients: Codes, counts: _PatientCounts, *, seed: int) -> NDArray[np.int64]:
    """Places of the patients: those of the rarest label first, then those of many images, then by hash."""
    names = (patients.text(code) for code in counts.patients.tolist())
    draws = np.fromiter((draw_seed("split", seed, name) for name in names), np.uint64, len(counts.patients))
    images = counts.counts[counts.starts[1:] - 1]
    return np.lexsort((draws, -images, counts.totals[counts.rarest]))


def stratify(labels: Codes, *, bins: int = 10) -> Strata:
    """Returns the strata of single labels: the label itself, or its quantile bin where labels are continuous.

    Labels count as continuous where all are numbers and more than 20 of them differ. A bin then holds at least 20
    images, so that a split of a tenth has some of each.

    Args:
        labels: Of each image.
        bins: At most.
    """
    found: list[Any] = labels.texts.to_pylist()
    rows = np.flatnonzero(labels.values >= 0)
    codes = labels.values[rows]
    try:
        numbers = np.array([float(label) for label in found])
    except ValueError:
        numbers = np.empty(0)
    if len(numbers) <= 20:
        return Strata(found, rows, codes)
    bins = max(1, min(bins, len(rows) // 20))
    edges = np.quantile(numbers[codes], np.linspace(0, 1, bins + 1)[1:-1])
    places = np.searchsorted(edges, numbers)
    return Strata([f"{BIN}{i}" for i in range(bins)], rows, places[codes].astype(np.int32))
