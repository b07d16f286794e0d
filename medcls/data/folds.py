"""Folds by patient, written as splits: the fold is the test split, the rest training with its own validation part.

Everything here is a pure function of the patients' ids, the labels and a seed: neither row order nor machine matters.
Patients that share an image, under two names or twice enrolled, stay together like one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medcls.config import FoldsConfig
from medcls.data.columns import Codes
from medcls.data.duplicates import DuplicatePair, NearLimits, find_store_duplicates
from medcls.data.splits import (
    OUT,
    SPLIT_NAMES,
    TEST,
    TRAIN,
    VAL,
    Certificate,
    Splits,
    read_certificate,
    read_split,
    resolve_leaks,
    write_split_once,
)
from medcls.data.store import Store
from medcls.data.strata import Strata, describe_split, find_missing
from medcls.data.stratification import DEALING, EARLIER, assign_shares, assign_splits, order_evenly
from medcls.errors import DataError
from medcls.files import SPLITS
from medcls.reproducibility import draw_seed

# By how much the validation part of version 0.2.0's folds may differ from folds.val.
_NEAR = 0.05
_TRAIN, _VAL, _TEST = (SPLIT_NAMES.index(name) for name in (TRAIN, VAL, TEST))


@dataclass(frozen=True, slots=True)
class Fold:
    """One training set with the test rows it never sees.

    Attributes:
        repeat: Of the whole partition, from 1.
        number: Of the fold in it, from 1.
        splits: Of each image: test = the fold, val = the inner validation part, train = the rest of the pool.
        size: Training images asked for; None = all.
        algorithm: How the patients were dealt, as the certificate names it; None = by a labels file.
    """

    repeat: int
    number: int
    splits: Splits
    size: int | None = None
    algorithm: str | None = DEALING

    @property
    def name(self) -> str:
        """Such as r1f3, or r1f3-n100 for a part of the training images."""
        return f"r{self.repeat}f{self.number}" + (f"-n{self.size}" if self.size else "")


def link_patients(patients: Codes, pairs: Sequence[DuplicatePair]) -> Codes:
    """Return the patients with those that share an image as one, under the first of their ids.

    Args:
        patients: patient_id of each image.
        pairs: Of images of different patients that are the same.
    """
    if not pairs:
        return patients
    size = len(patients.texts)
    first, second = (patients.values[[getattr(pair, end) for pair in pairs]] for end in ("first", "second"))
    links = coo_array((np.ones(len(pairs)), (first, second)), shape=(size, size))
    _, group = connected_components(links, directed=False)
    texts = patients.texts.to_pylist()
    names = [min(str(texts[code]) for code in np.flatnonzero(group == g)) for g in range(int(group.max()) + 1)]
    return Codes(group[patients.values].astype(np.int32), pa.array(names, pa.string()))


@dataclass(frozen=True, slots=True)
class Linked:
    """The patients of a store, and why some of them count as one.

    Attributes:
        patients: Patient of each image, those that share an image as one.
        pairs: Images of different patients that are the same.
    """

    patients: Codes
    pairs: Sequence[DuplicatePair]


def find_links(store: Store, certificate: Certificate) -> list[DuplicatePair]:
    """Return the pairs of images of different patients that are the same; searched for only where some are known.

    Args:
        store: The images.
        certificate: Of the split that data_prep made: it counts the pairs that were found then, and by which limits.
    """
    if not certificate["linked_patients_in_one_split"] and not certificate["images_in_several_splits"]:
        return []
    limits = certificate["near_duplicates"]
    near = NearLimits(limits["max_bits_of_256"], limits["min_correlation"])
    return find_store_duplicates(store, store.codes("patient_id"), near)


def make_folds(patients: Codes, strata: Strata, config: FoldsConfig, *, pool: NDArray[np.bool_]) -> list[Fold]:
    """Return the partitions of the pool into folds that the settings ask for, each stratified by label.

    Args:
        patients: Of each image, linked ones as one.
        strata: Labels of the images.
        config: Folds of a partition, partitions, share of a fold's other patients that is its validation part, seed.
        pool: (N,) images that take part; the others are dropped from every split.

    Raises:
        DataError: fewer patients than k folds with training and validation need.
    """
    (k, repeats), seed = config.shape, config.seed
    found = patients.count(pool)
    if found < max(k, 3):
        raise DataError(f"{found} patients cannot make {k} folds with training and validation: lower folds.k")
    folds = []
    for repeat in range(1, repeats + 1):
        shares = {f"fold {number}": 1 / k for number in range(1, k + 1)}
        place = assign_shares(
            patients, strata.restrict(pool), shares=shares, seed=draw_seed("folds", seed, repeat), listed=pool
        )
        for number in range(1, k + 1):
            rest = pool & (place != number - 1)
            splits = assign_splits(
                patients,
                strata.restrict(rest),
                fractions={TRAIN: 1 - config.val, VAL: config.val},
                seed=draw_seed("validation", seed, repeat, number),
                listed=rest,
            )
            splits[place == number - 1] = _TEST
            folds.append(Fold(repeat, number, splits))
    return folds


def keep_earlier(store: Store, name: str, *, fold: Fold, provenance: Certificate, val: float) -> Fold:
    """Return the fold as version 0.2.0 wrote it from the same arguments; the fold itself if it did not.

    That version dealt the patients with most images to training first. Runs are tied to its files: a comparison that it
    began ends with the same folds. It did not record folds.val: the share found in the file has to be near it.

    Args:
        store: Store of the images.
        name: Name of the fold's split.
        fold: Fold as it is dealt now.
        provenance: As in `write_fold`.
        val: Share of a fold's other patients that is its validation part.
    """
    path = store.folder / SPLITS / f"{name}.parquet"
    if not path.is_file() or not path.with_suffix(".json").is_file():
        return fold
    written = read_certificate(path)
    if written.get("algorithm", EARLIER) != EARLIER or written | provenance != written:
        return fold
    splits, _ = read_split(store, name)
    train, found = ((splits == code).sum() for code in (_TRAIN, _VAL))
    same = ((splits == OUT) == (fold.splits == OUT)).all() and abs(found / max(train + found, 1) - val) <= _NEAR
    return replace(fold, splits=splits, algorithm=EARLIER) if same else fold


def shrink_training(fold: Fold, size: int | None, *, patients: Codes, strata: Strata, seed: int = 0) -> Fold:
    """Return the fold with at most `size` training images: whole patients, and a smaller size within a larger.

    Args:
        fold: With all training images.
        size: Wanted; None = all.
        patients: As in `make_folds`, like strata.
        strata: Labels of the images.
        seed: Of the order of the patients.

    Raises:
        DataError: the fold has no more training images than that.
    """
    if size is None:
        return fold
    train = fold.splits == _TRAIN
    if size >= train.sum():
        raise DataError(f"sizes={size}: fold {fold.name} has {int(train.sum())} training images; 0 takes all of them")
    order = order_evenly(
        patients, strata.restrict(train), listed=train, seed=draw_seed("sizes", seed, fold.repeat, fold.number)
    )
    images = np.bincount(patients.values[train], minlength=len(patients.texts))
    kept = np.zeros(len(patients.texts), dtype=np.bool_)
    kept[order[np.cumsum(images[order]) <= size]] = True
    splits = np.where(train & ~kept[patients.values], np.int8(OUT), fold.splits)
    return replace(fold, splits=splits, size=size)


def check_labels(fold: Fold, strata: Strata) -> None:
    """Raise DataError where the training, validation or test part of a fold lacks a label that another part has."""
    empty = [name for name in (TRAIN, VAL, TEST) if not (fold.splits == SPLIT_NAMES.index(name)).any()]
    missing = {name: ["any label"] for name in empty} | find_missing(fold.splits, strata, wanted=(TRAIN, VAL, TEST))
    if missing:
        listed = "; ".join(f"{name} has no image of {', '.join(labels)}" for name, labels in missing.items())
        raise DataError(
            f"fold {fold.name}: {listed}: add patients, raise the size or folds.val, lower folds.k, change folds.seed, "
            "or set folds.on_missing=report if no arm needs these labels"
        )


def write_fold(
    store: Store,
    name: str,
    *,
    fold: Fold,
    strata: Strata,
    linked: Linked,
    provenance: Certificate,
) -> None:
    """Write a fold as a split of the store with its certificate, after one more check for leaks.

    Args:
        store: The images.
        name: Of the split.
        fold: To write.
        strata: Labels of the images, for the counts.
        linked: The patients.
        provenance: "source", "seed" and "near_duplicates" as the certificate states them.

    Raises:
        DataError: a patient, or an image under two names, is in two of its splits.
        ConfigError: the store has another split of this name.
    """
    patients = linked.patients
    splits, found = resolve_leaks(
        fold.splits,
        patients=patients,
        name_images=lambda rows: store.column("image_id", rows),
        duplicates=linked.pairs,
        on_leak="refuse",
    )
    certificate: Certificate = {
        **provenance,
        "algorithm": fold.algorithm,
        "fractions": None,
        "on_leak": "refuse",
        **found,
        "merged_patients": len(store.codes("patient_id").texts) - len(patients.texts),
        "classes_missing": find_missing(splits, strata, wanted=(TRAIN, VAL, TEST)),
        **describe_split(splits, strata, patients=patients),
    }
    write_split_once(store, name, splits=splits, certificate=certificate, patients=patients, setting="folds.name")
