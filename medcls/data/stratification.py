"""Deal patients to splits and folds at random, inside strata of label and number of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medcls.data.columns import Codes
from medcls.data.splits import ORDER, OUT, Splits
from medcls.data.strata import Strata
from medcls.reproducibility import draw_seed

DEALING = "at random inside strata of label and number of images, version 2"
EARLIER = "patients with most images to training first, version 0.2.0"
"""Algorithms of dealing as certificates name them; a certificate without a name is of version 0.2.0."""

# Neighbours in number of images that change places at random: a tenth, the usual share of val, is one of them.
_BLOCK = 10
_GOLDEN = 0.6180339887498949
_EPSILON = 1e-9


def assign_splits(
    patients: Codes,
    strata: Strata,
    *,
    fractions: Mapping[str, float],
    seed: int,
    listed: NDArray[np.bool_] | None = None,
    known: NDArray[np.int8] | None = None,
) -> Splits:
    """Return a split for each image, as `assign_shares` deals the patients; images that take no part are dropped.

    Args:
        patients: patient_id of each image.
        strata: Labels of the listed images: of each its label, or its positive labels.
        fractions: Split name -> share of the patients, summing to 1; a share of 0 gets nobody new.
        seed: Seed of all draws.
        listed: (N,) images that take part, None = all.
        known: (patients.texts,) split of each patient that stays where it was, OUT for new ones.
    """
    shares = {name: fractions.get(name, 0.0) for name in ORDER}
    stay = None if known is None else np.where(known == OUT, -1, known).astype(np.int16)
    places = assign_shares(patients, strata, shares=shares, seed=seed, listed=listed, known=stay)
    return np.where(places < 0, OUT, places).astype(np.int8)


def assign_shares(
    patients: Codes,
    strata: Strata,
    *,
    shares: Mapping[str, float],
    seed: int,
    listed: NDArray[np.bool_] | None = None,
    known: NDArray[np.int16] | None = None,
) -> NDArray[np.int16]:
    """Return for each image the place of its share: patients whole, at random inside strata.

    A patient belongs to the rarest of its labels. How many patients of a label each share gets is settled first, from
    the numbers of patients alone; what an earlier label gave or took is made up for, and every share gets one where
    there are enough. Inside a label the patients are ordered by their number of images, neighbours of this order change
    places at random, and the shares follow one another evenly from a random start. So of the patients of a label each
    has the same probability of a share, whatever its images, age or sex (docs/decisions/0041-random-splits.md).

    All draws are a hash of (seed, patient_id or label): the same on every machine and in any row order.

    Args:
        patients: patient_id of each image.
        strata: Labels of the listed images.
        shares: Name -> share of the patients, summing to 1; a share of 0 gets nobody new.
        seed: Seed of all draws.
        listed: (N,) images that take part, None = all; the others have the place -1.
        known: (patients.texts,) place of each patient that stays where it is, -1 for those to deal; None = all.

    Source: own choice, of systematic sampling from an ordered list (Madow & Madow, Annals of Mathematical Statistics
    1944) and permuted blocks in strata (Zelen, Journal of Chronic Diseases 1974); labels from the rarest, as in
    Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011.
    """
    taking = np.ones(len(patients.values), dtype=np.bool_) if listed is None else listed
    counts = _count_labels(patients.values, strata, taking)
    draws = np.array([draw_seed("deal", seed, patients.text(code)) for code in counts.patients.tolist()], np.uint64)
    images = counts.counts[counts.starts[1:] - 1]
    owner = np.repeat(np.arange(len(counts.patients)), np.diff(counts.starts))
    # Of all its images how many have its rarest label: a second order inside the first.
    own = counts.counts[counts.labels == counts.rarest[owner]]
    portion = np.array(list(shares.values()))
    place = np.full(len(counts.patients), -1, np.int16) if known is None else known[counts.patients].copy()
    totals = np.bincount(counts.labels, minlength=len(counts.totals))
    placed = np.zeros((len(totals), len(portion)), np.int64)
    _add_placed(placed, counts, place, np.flatnonzero(place >= 0))
    names = [*strata.names, ""]
    start = _draw_fraction("quota", seed)
    new = np.flatnonzero(place < 0)
    by_label = new[np.argsort(counts.rarest[new], kind="stable")]
    ends = np.searchsorted(counts.rarest[by_label], np.arange(len(totals) + 1))
    for step, label in enumerate(counts.rarity.tolist()):
        members = by_label[ends[label] : ends[label + 1]]
        if not len(members):
            continue
        quota = _settle_quota(
            portion * totals[label] - placed[label],
            len(members),
            placed=placed[label],
            portion=portion,
            # Steps of the golden ratio: small labels of one size do not all round to the same share.
            chance=(start + step * _GOLDEN) % 1,
        )
        ordered = _order_by_images(members, images=images, own=own, draws=draws)
        place[ordered] = _spread_evenly(quota, parts=("spread", seed, names[label]))
        _add_placed(placed, counts, place, members)
    _fill_empty(place, new, draws=draws, wanted=portion * len(place))
    share_of = np.full(len(patients.texts), -1, dtype=np.int16)
    share_of[counts.patients] = place
    return np.where(taking, share_of[patients.values], np.int16(-1))


def _add_placed(
    placed: NDArray[np.int64], counts: _PatientCounts, place: NDArray[np.int16], members: NDArray[np.int64]
) -> None:
    """Count the members, each under all its labels, in `placed` (labels, shares)."""
    sizes = counts.starts[members + 1] - counts.starts[members]
    first = np.repeat(counts.starts[members] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
    entries = first + np.arange(len(first))
    np.add.at(placed, (counts.labels[entries], np.repeat(place[members], sizes)), 1)


def _settle_quota(
    wanted: NDArray[np.float64],
    number: int,
    *,
    placed: NDArray[np.int64],
    portion: NDArray[np.float64],
    chance: float,
) -> NDArray[np.int64]:
    """Return how many of `number` patients each share gets: `wanted` on average, and none is without if it can be."""
    room = np.where(portion > 0, np.maximum(wanted, 0), 0)
    exact = room * (number / room.sum())
    quota: NDArray[np.int64] = np.floor(exact + _EPSILON).astype(np.int64)
    rest = np.cumsum(np.maximum(exact - quota, 0))
    steps = rest * ((number - quota.sum()) / rest[-1]) if rest[-1] > 0 else rest
    quota += np.diff(np.floor(np.concatenate([[0.0], steps]) + chance + _EPSILON)).astype(np.int64)
    if placed.sum() + number >= (portion > 0).sum():
        while len(without := np.flatnonzero((portion > 0) & (placed + quota == 0))):
            spare = np.where((quota > 0) & (placed + quota > 1), quota - exact, -np.inf)
            if not np.isfinite(spare.max()):
                break
            quota[spare.argmax()] -= 1
            quota[without[0]] += 1
    return quota


def _order_by_images(
    members: NDArray[np.int64], *, images: NDArray[np.int64], own: NDArray[np.int64], draws: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Return the members by number of images, those of one block of neighbours in random order."""
    ordered = members[np.lexsort((draws[members], own[members], images[members]))]
    block, chance = np.arange(len(ordered)) // _BLOCK, draws[ordered]
    return ordered[np.lexsort((chance, chance & np.uint64(0xFFFFFFFF), block))]


def _spread_evenly(quota: NDArray[np.int64], *, parts: Sequence[object]) -> NDArray[np.int16]:
    """Return the places of the shares in a row, each as often as its quota and evenly, from a random start."""
    keys = [(np.arange(size) + _draw_fraction(*parts, share)) / max(size, 1) for share, size in enumerate(quota)]
    row = np.repeat(np.arange(len(quota)), quota)[np.argsort(np.concatenate(keys), kind="stable")]
    return np.roll(row, int(_draw_fraction(*parts, "start") * len(row))).astype(np.int16)


def _fill_empty(
    place: NDArray[np.int16], new: NDArray[np.int64], *, draws: NDArray[np.uint64], wanted: NDArray[np.float64]
) -> None:
    """Give a share that is left without a patient one of the fullest share, in place: few patients of many labels."""
    size = np.bincount(place, minlength=len(wanted))
    while len(empty := np.flatnonzero((size == 0) & (wanted > 0))):
        movable = new[size[place[new]] > 1]
        if not len(movable):
            return
        fullest = max(set(place[movable].tolist()), key=lambda share: (size - wanted)[share])
        candidates = movable[place[movable] == fullest]
        moved = candidates[draws[candidates].argmin()]
        size[[fullest, empty[0]]] += [-1, 1]
        place[moved] = empty[0]


def _draw_fraction(*parts: object) -> float:
    """Return a number of [0, 1) that is a pure function of `parts`."""
    return (draw_seed(*parts) >> 11) / (1 << 53)


def order_evenly(patients: Codes, strata: Strata, *, listed: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """Return the codes of the listed patients in an order whose every beginning has each stratum in proportion.

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
    (E,), rarest (P,) their rarest label. totals (L,) are of each label, rarity (L,) the labels from the rarest.
    """

    patients: NDArray[np.int64]
    starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    counts: NDArray[np.int64]
    rarest: NDArray[np.int64]
    totals: NDArray[np.int64]
    rarity: NDArray[np.int64]


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
    return _PatientCounts(patients, np.append(starts, len(keys)), labels, counts, rarest, totals, rarity)
