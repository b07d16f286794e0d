"""Write the folds of a comparison into the store as ordinary splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medcls.config import FoldsConfig
from medcls.console import say
from medcls.data.folds import (
    Fold,
    Linked,
    check_labels,
    find_links,
    keep_earlier,
    link_patients,
    make_folds,
    shrink_training,
    write_fold,
)
from medcls.data.splits import DROPPED, SPLIT_NAMES, TEST, TRAIN, VAL, Certificate, read_patients, read_split, rows_of
from medcls.data.store import Store
from medcls.data.strata import build_strata
from medcls.data.stratification import EARLIER
from medcls.errors import DataError
from medcls.identity import format_count


@dataclass(frozen=True, slots=True)
class PlannedFold:
    """A fold, or a seed of a holdout, with all or some of its training images.

    Attributes:
        name: Of the fold: r1f2, or s1 for the second seed.
        repeat: Of the partition or seed, from 1.
        number: In it, from 1.
        size: Training images asked for; None = all.
        split: Name of the split file in the store.
        split_sha256: Its checksum.
        seed: Of the trainings.
        images: Split -> images.
    """

    name: str
    repeat: int
    number: int
    size: int | None
    split: str
    split_sha256: str
    seed: int
    images: dict[str, int]

    @property
    def folder(self) -> str:
        """Such as r1f2-n100."""
        return self.name + (f"-n{self.size}" if self.size else "")


def plan_folds(
    config: FoldsConfig, store: Store, *, sizes: Sequence[int], seed: int
) -> tuple[list[PlannedFold], float]:
    """Return the folds of all sizes, written as splits of the store, and the test share.

    The test share is test images over the other images, on average over the folds before any is made smaller: it does
    not depend on which sizes are asked for together.
    """
    splits, certificate = read_split(store, config.split)
    labels = store.read_labels()
    if config.label and config.label not in labels.column_names:
        raise DataError(f"folds.label={config.label}: the store's labels have {', '.join(labels.column_names)}")
    strata = build_strata(labels, label=config.label)
    pairs = find_links(store, certificate)
    patients = link_patients(read_patients(store, certificate), pairs)
    linked = Linked(patients, pairs)
    if config.kind == "holdout":
        dealt, (_, repeats) = certificate.get("algorithm", EARLIER), config.shape
        folds = [Fold(repeat, 1, splits, algorithm=dealt) for repeat in range(1, repeats + 1)]
    else:
        pool = splits != SPLIT_NAMES.index(DROPPED)
        if config.over == "development":
            pool &= splits != SPLIT_NAMES.index(TEST)
        folds = make_folds(patients, strata, config, pool=pool)
    provenance: Certificate = {
        "source": f"fold of {config.prefix} by patient, stratified by label, of the rows of {config.split} "
        f"({'train, val and test' if config.over == 'all' else 'train and val'})",
        "seed": config.seed,
        "near_duplicates": certificate["near_duplicates"],
    }
    if config.kind != "holdout":
        names = [f"{config.prefix}-{_name_fold(config, fold)}" for fold in folds]
        folds = [
            keep_earlier(store, name, fold=fold, provenance=provenance, val=config.val)
            for name, fold in zip(names, folds, strict=True)
        ]
        if any(fold.algorithm == EARLIER for fold in folds):
            say(
                f"notice: the store has folds {config.prefix} of version 0.2.0, which dealt the patients with most "
                "images to training first; they are kept for the runs that depend on them: set folds.name=NEW "
                "for random folds"
            )
    planned = []
    for fold in folds:
        for size in sizes:
            part = shrink_training(fold, size or None, patients=patients, strata=strata, seed=config.seed)
            if config.on_missing == "refuse":
                check_labels(part, strata)
            own = config.kind == "holdout" and not size
            label = _name_fold(config, part)
            name = config.split if own else f"{config.prefix}-{label}" + (f"-n{size}" if size else "")
            if not own:
                write_fold(store, name, fold=part, strata=strata, linked=linked, provenance=provenance)
            parts, written = read_split(store, name)
            planned.append(
                PlannedFold(
                    name=label,
                    repeat=part.repeat,
                    number=part.number,
                    size=part.size,
                    split=name,
                    split_sha256=written["split_sha256"],
                    seed=seed if config.same_seed else seed + part.repeat - 1,
                    images={each: len(rows_of(parts, each)) for each in (TRAIN, VAL, TEST)},
                )
            )
    say(
        f"folds: {len(folds)} ({config.prefix}), {format_count(len({fold.split for fold in planned}), 'split')} in "
        f"{store.folder}"
    )
    return planned, sum(map(_measure_test_share, folds)) / len(folds)


def _measure_test_share(fold: Fold) -> float:
    train, val, test = (len(rows_of(fold.splits, name)) for name in (TRAIN, VAL, TEST))
    return test / (train + val)


def _name_fold(config: FoldsConfig, fold: Fold) -> str:
    """Return the name of a fold; a holdout has seeds, each with its own draw of a smaller training set."""
    return f"s{fold.repeat}" if config.kind == "holdout" else f"r{fold.repeat}f{fold.number}"
