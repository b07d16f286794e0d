"""The split of a store: made by patient or obeyed, searched for leaks, certified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from medcls.command_line import say
from medcls.config import SplitConfig
from medcls.data.columns import Codes, code_column
from medcls.data.duplicates import find_store_duplicates
from medcls.data.splits import DROPPED, ORDER, SPLIT_NAMES, TRAIN, Splits, code_splits, resolve_leaks, write_split_once
from medcls.data.store import Store
from medcls.data.strata import Strata, build_strata, describe_split, find_missing
from medcls.data.stratification import assign_splits
from medcls.errors import DataError


def split_store(
    store: Store, labels: pa.Table, config: SplitConfig, *, giver: str = "labels file", cut: Sequence[str] = ()
) -> None:
    """Makes or obeys the split, searches it for leaks, and writes it with its certificate.

    Args:
        store: The images.
        labels: One row for each stored image, in the store's order: "listed" (bool: the image has a label row; one
            without is left out), "split" (string, null where none is given), and "label" or "label_NAME" (strings,
            null = unknown).
        config: Fractions, seed and policies.
        giver: What gives "split", as the certificate names it.
        cut: Splits that are cut from the given train split by patient, by their fractions of it.

    Raises:
        DataError: too few patients, a class missing from a split, or a leak under on_leak="refuse".
        ConfigError: a split of this name is there already and differs.
    """
    strata = build_strata(labels)
    given = labels.column("split").null_count < labels.num_rows
    patients = store.codes("patient_id")
    splits = _given(labels) if given else _assigned(labels, patients=patients, strata=strata, config=config)
    fractions = None if given else _fractions(config)
    if given and cut:
        fractions = {name: share if name in cut else 0.0 for name, share in _fractions(config).items()}
        fractions["train"] = round(1 - sum(share for name, share in fractions.items() if name != TRAIN), 9)
        splits = _cut(splits, patients=patients, strata=strata, fractions=fractions, seed=config.seed)
    splits, found = resolve_leaks(
        splits,
        patients=patients,
        name_images=lambda rows: store.column("image_id", rows),
        duplicates=find_store_duplicates(
            store,
            patients,
            max_bits=config.near_duplicate_bits,
            min_correlation=config.near_duplicate_correlation,
        ),
        on_leak=config.on_leak,
    )
    empty = _check_classes(splits, strata, config=config, given=given)
    certificate = {
        "source": _name_source(giver if given else "", fractions),
        "seed": None if fractions is None else config.seed,
        "fractions": fractions,
        "on_leak": config.on_leak,
        "near_duplicates": {
            "max_bits_of_256": config.near_duplicate_bits,
            "min_correlation": config.near_duplicate_correlation,
        },
        **found,
        "classes_missing": empty,
        **describe_split(splits, strata, patients=patients),
    }
    write_split_once(store, config.name, splits=splits, certificate=certificate)
    _say_split(config.name, certificate)


def _given(labels: pa.Table) -> Splits:
    return code_splits(code_column(labels.column("split")))


def _assigned(labels: pa.Table, *, patients: Codes, strata: Strata, config: SplitConfig) -> Splits:
    listed = labels.column("listed").to_numpy()
    fractions = _fractions(config)
    _check_patients(patients.count(listed), fractions)
    return assign_splits(patients, strata, fractions=fractions, seed=config.seed, listed=listed)


def _cut(splits: Splits, *, patients: Codes, strata: Strata, fractions: dict[str, float], seed: int) -> Splits:
    """The splits after some patients of train went to the splits that were not given."""
    train = splits == SPLIT_NAMES.index(TRAIN)
    _check_patients(patients.count(train), fractions)
    parts = assign_splits(patients, strata.restrict(train), fractions=fractions, seed=seed, listed=train)
    return np.where(train, parts, splits)


def _name_source(giver: str, fractions: dict[str, float] | None) -> str:
    """Where a split comes from, as its certificate says."""
    if not giver:
        return "random by patient, stratified by label"
    cut = [name for name, share in (fractions or {}).items() if share and name != TRAIN]
    return giver + (f"; {' and '.join(cut)} cut from train at random by patient, stratified by label" if cut else "")


def _fractions(config: SplitConfig) -> dict[str, float]:
    return {"train": round(1 - config.test - config.val, 9), "val": config.val, "test": config.test}


def _check_patients(found: int, fractions: dict[str, float]) -> None:
    needed = sum(share > 0 for share in fractions.values())
    if found < needed:
        raise DataError(f"{found} patients cannot fill {needed} splits: more patients, or split.test=0 or split.val=0")


def _check_classes(splits: Splits, strata: Strata, *, config: SplitConfig, given: bool) -> dict[str, list[str]]:
    """Returns the strata missing from each split that should have images; refuses unless told to report."""
    images = dict(zip(SPLIT_NAMES, np.bincount(splits, minlength=len(SPLIT_NAMES)).tolist(), strict=True))
    wanted = [s for s in ORDER if images[s] or (not given and _fractions(config)[s] > 0)]
    empty = [name for name in wanted if not images[name]]
    if empty:
        raise DataError(
            f"no image is in the split {', '.join(empty)}: more patients, or a larger split.val, split.test"
        )
    missing = find_missing(splits, strata, wanted=wanted)
    if missing and config.on_missing == "refuse":
        listed = "; ".join(f"{name} has no image of {', '.join(labels)}" for name, labels in missing.items())
        raise DataError(
            f"classes missing from a split: {listed}: more patients, a larger split.val, another "
            "split.seed, or split.on_missing=report (to evaluate only: training needs every class in train and val)"
        )
    return missing


def _say_split(name: str, certificate: dict[str, Any]) -> None:
    images, patients = certificate["images"], certificate["patients"]
    counts = ", ".join(f"{s} {images[s]} images of {patients[s]} patients" for s in (*ORDER, DROPPED) if s in images)
    leaks = len(certificate["patients_in_several_splits"]) + len(certificate["images_in_several_splits"])
    linked = certificate["linked_patients_in_one_split"]
    say(f"split {name}: {counts}; leaks found: {leaks} (on_leak={certificate['on_leak']})")
    if linked:
        say(f"notice: {linked} pairs of images of different patients look the same, in one split: see its certificate")
