"""Splits made by patient, with every label in proportion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medcls.data.columns import Codes
from medcls.data.splits import DROPPED, ORDER, SPLIT_NAMES, Splits
from medcls.data.strata import Strata
from medcls.reproducibility import draw_seed

_OUT = SPLIT_NAMES.index(DROPPED)


def assign_splits(
    patients: Codes,
    strata: Strata,
    *,
    fractions: Mapping[str, float],
    seed: int,
    listed: NDArray[np.bool_] | None = None,
) -> Splits:
    """Returns a split for each image, as `assign_shares` deals them out; images that take no part are dropped.

    Args:
        patients: patient_id of each image.
        strata: Labels of the listed images: of each its label, or its positive labels.
        fractions: Split name -> share of the images, summing to 1; a share of 0 gets none.
        seed: Of the order.
        listed: (N,) images that take part, None = all.
    """
    shares = {name: fractions[name] for name in ORDER if fractions.get(name, 0) > 0}
    places = assign_shares(patients, strata, shares=shares, seed=seed, listed=listed)
    codes = np.array([*(SPLIT_NAMES.index(name) for name in shares), _OUT], dtype=np.int8)
    return np.asarray(codes[places])


def assign_shares(
    patients: Codes,
    strata: Strata,
    *,
    shares: Mapping[str, float],
    seed: int,
    listed: NDArray[np.bool_] | None = None,
) -> NDArray[np.int16]:
    """Returns for each image the place of its share: patients whole, each stratum in proportion to `shares`.

    The patients of the rarest stratum go first; each goes where its rarest stratum lacks most images. Ties and
    order come from a hash of (seed, patient_id), so the result is the same on every machine and in any row order.

    Args:
        patients: patient_id of each image.
        strata: Labels of the listed images.
        shares: Name -> share of the images, > 0, summing to 1.
        seed: Of the order.
        listed: (N,) images that take part, None = all; the others have the place -1.

    Source: iterative stratification, Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011, section 3, extended from
    examples to groups of examples.
    """
    owners = patients.values
    taking = np.ones(len(owners), dtype=np.bool_) if listed is None else listed
    counts = _count_labels(owners, strata, taking)
    order = _order_patients(patients, counts, seed=seed)
    share_of = np.full(len(patients.texts), -1, dtype=np.int16)
    names = list(shares)
    lack = [[shares[name] * total for name in names] for total in counts.totals.tolist()]
    every = len(lack) - 1
    for place in order.tolist():
        own = slice(counts.starts[place], counts.starts[place + 1])
        rarest, patient = lack[counts.rarest[place]], int(counts.patients[place])
        most = max(zip(rarest, lack[every], strict=True))
        best = [n for n in range(len(names)) if (rarest[n], lack[every][n]) == most]
        if len(best) > 1:
            text = patients.text(patient)
            best.sort(key=lambda n: draw_seed("tie", seed, text, names[n]), reverse=True)
        share_of[patient] = best[0]
        for label, count in zip(counts.labels[own].tolist(), counts.counts[own].tolist(), strict=True):
            lack[label][best[0]] -= count
    return np.where(taking, share_of[owners], np.int16(-1))


def order_evenly(patients: Codes, strata: Strata, *, listed: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """Returns the codes of the listed patients in an order whose every beginning has each stratum in proportion.

    A patient counts for the rarest of its labels, and the first patients of all strata come first, so that even a
    short beginning has an image of every label. Within a stratum the order comes from a hash of (seed, patient_id).

    Args:
        patients: patient_id of each image.
        strata: Labels of the listed images.
        listed: (N,) images that take part.
        seed: Of the order.
    """
    counts = _count_labels(patients.values, strata, listed)
    draws = np.array([draw_seed("order", seed, patients.text(code)) for code in counts.patients.tolist()], np.uint64)
    by_draw = np.lexsort((draws, counts.rarest))
    stratum, first, size = np.unique(counts.rarest[by_draw], return_index=True, return_counts=True)
    place = np.searchsorted(stratum, counts.rarest[by_draw])
    position = (np.arange(len(by_draw)) - first[place]) / size[place]
    return np.asarray(counts.patients[by_draw[np.lexsort((draws[by_draw], position))]])


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
