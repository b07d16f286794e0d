"""The split of a store: made by patient or obeyed, searched for leaks, certified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_prep.labels import LabelRow
from medcls.command_line import say
from medcls.config import SplitConfig
from medcls.data.duplicates import DuplicatePair, find_duplicates
from medcls.data.manifest import column_list, read_table
from medcls.data.splits import (
    BIN,
    DROPPED,
    ORDER,
    assign_splits,
    count_by_split,
    resolve_leaks,
    stratify,
    write_split,
)
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.files import SPLITS, read_json


def split_store(store: Store, rows: Sequence[LabelRow | None], config: SplitConfig) -> None:
    """Makes or obeys the split, searches it for leaks, and writes it with its certificate.

    Args:
        store: The images.
        rows: The label row of each stored image; None where it has none (its image is left out).
        config: Fractions, seed and policies.

    Raises:
        DataError: too few patients, a class missing from a split, or a leak under on_leak="refuse".
        ConfigError: a split of this name is there already and differs.
    """
    strata = _strata(rows)
    given = any(row is not None and row.split is not None for row in rows)
    patients = store.column("patient_id")
    splits = _given(rows) if given else _assigned(rows, patients=patients, strata=strata, config=config)
    duplicates = _find_duplicates(store, config)
    splits, found = resolve_leaks(
        splits,
        patient_ids=patients,
        image_ids=store.image_ids,
        duplicates=duplicates,
        on_leak=config.on_leak,
    )
    empty = _check_classes(splits, strata, config=config, given=given)
    certificate = {
        "source": "labels file" if given else "random by patient, stratified by label",
        "seed": None if given else config.seed,
        "fractions": None if given else _fractions(config),
        "on_leak": config.on_leak,
        "near_duplicates": {
            "max_bits_of_256": config.near_duplicate_bits,
            "min_correlation": config.near_duplicate_correlation,
        },
        **found,
        "classes_missing": empty,
        "images": dict(Counter(splits)),
        "patients": {s: len({p for p, x in zip(patients, splits, strict=True) if x == s}) for s in set(splits)},
        "strata": _count_strata(splits, strata),
    }
    _write_split_once(store, config.name, splits=splits, certificate=certificate)
    _say_split(config.name, certificate)


def _given(rows: Sequence[LabelRow | None]) -> list[str]:
    return [row.split if row is not None and row.split is not None else DROPPED for row in rows]


def _assigned(
    rows: Sequence[LabelRow | None],
    *,
    patients: Sequence[str],
    strata: Sequence[Sequence[str]],
    config: SplitConfig,
) -> list[str]:
    labelled = [i for i, row in enumerate(rows) if row is not None]
    fractions = _fractions(config)
    _check_patients([patients[i] for i in labelled], fractions)
    assigned = assign_splits(
        [patients[i] for i in labelled], [strata[i] for i in labelled], fractions=fractions, seed=config.seed
    )
    splits = [DROPPED] * len(rows)
    for i, split in zip(labelled, assigned, strict=True):
        splits[i] = split
    return splits


def _fractions(config: SplitConfig) -> dict[str, float]:
    return {"train": round(1 - config.test - config.val, 9), "val": config.val, "test": config.test}


def _strata(rows: Sequence[LabelRow | None]) -> list[list[str]]:
    names = sorted({name for row in rows if row for name in row.labels})
    if names == ["label"] or "label" in names:
        return stratify([row.labels["label"] if row else None for row in rows])
    return [[s for n in names if (s := _stratum(n, row.labels.get(n) if row else None))] for row in rows]


def _stratum(name: str, value: str | None) -> str:
    """A label_NAME that is 1 counts under its name, one that is 0 or unknown not at all, any other by its value."""
    if value in (None, "0", "0.0"):
        return ""
    return name if value in ("1", "1.0") else f"{name}={value}"


def _check_patients(patients: Sequence[str], fractions: dict[str, float]) -> None:
    needed = sum(share > 0 for share in fractions.values())
    found = len(set(patients))
    if found < needed:
        raise DataError(f"{found} patients cannot fill {needed} splits: more patients, or split.test=0 or split.val=0")


def _find_duplicates(store: Store, config: SplitConfig) -> list[DuplicatePair]:
    extents = list(zip(*(store.column(f"valid_{n}") for n in ("y", "x", "height", "width")), strict=True))

    def read_pixels(row: int) -> Any:
        y, x, height, width = extents[row]
        return np.asarray(store.image(row))[:, y : y + height, x : x + width]

    return find_duplicates(
        store.column("patient_id"),
        sha256=store.column("pixel_sha256"),
        dhash=store.column("pixel_dhash"),
        read_pixels=read_pixels,
        max_bits=config.near_duplicate_bits,
        min_correlation=config.near_duplicate_correlation,
    )


def _check_classes(
    splits: Sequence[str], strata: Sequence[Sequence[str]], *, config: SplitConfig, given: bool
) -> dict[str, list[str]]:
    """Returns the strata missing from each split that should have images; refuses unless told to report."""
    wanted = [s for s in ORDER if s in splits or (not given and _fractions(config)[s] > 0)]
    empty = [name for name in wanted if name not in splits]
    if empty:
        raise DataError(
            f"no image is in the split {', '.join(empty)}: more patients, or a larger split.val, split.test"
        )
    named = [[label for label in labels if not label.startswith(BIN)] for labels in strata]
    every = {label for split, labels in zip(splits, named, strict=True) if split != DROPPED for label in labels}
    missing = {}
    for name in wanted:
        here = {label for split, labels in zip(splits, named, strict=True) if split == name for label in labels}
        if every - here:
            missing[name] = sorted(every - here)
    if missing and config.on_missing == "refuse":
        listed = "; ".join(f"{name} has no image of {', '.join(labels)}" for name, labels in missing.items())
        raise DataError(
            f"classes missing from a split: {listed}: more patients, a larger split.val, another "
            "split.seed, or split.on_missing=report (to evaluate only: training needs every class in train and val)"
        )
    return missing


def _count_strata(splits: Sequence[str], strata: Sequence[Sequence[str]]) -> dict[str, dict[str, int]]:
    pairs = [(s, label) for s, labels in zip(splits, strata, strict=True) for label in (labels or ["unknown"])]
    return count_by_split([s for s, _ in pairs], [label for _, label in pairs])


def _write_split_once(store: Store, name: str, *, splits: Sequence[str], certificate: dict[str, Any]) -> None:
    """Runs are tied to a split by its checksum, so a split of one name never changes."""
    path = store.folder / SPLITS / f"{name}.parquet"
    if path.is_file() and path.with_suffix(".json").is_file():
        before = dict(zip(*(column_list(read_table(path), n) for n in ("image_id", "split")), strict=True))
        written = read_json(path.with_suffix(".json"))
        same_policy = all(written.get(key) == certificate[key] for key in ("on_leak", "near_duplicates"))
        if not same_policy or before != dict(zip(store.image_ids, splits, strict=True)):
            raise ConfigError(f"split.name={name} is in the store already, made otherwise: choose another split.name=")
    write_split(store, name, splits=splits, certificate=certificate)


def _say_split(name: str, certificate: dict[str, Any]) -> None:
    images, patients = certificate["images"], certificate["patients"]
    counts = ", ".join(f"{s} {images[s]} images of {patients[s]} patients" for s in (*ORDER, DROPPED) if s in images)
    leaks = len(certificate["patients_in_several_splits"]) + len(certificate["images_in_several_splits"])
    linked = certificate["linked_patients_in_one_split"]
    say(f"split {name}: {counts}; leaks found: {leaks} (on_leak={certificate['on_leak']})")
    if linked:
        say(f"notice: {linked} pairs of images of different patients look the same, in one split: see its certificate")
