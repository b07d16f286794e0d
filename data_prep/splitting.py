"""The split of a store: made by patient or obeyed, searched for leaks, certified."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.command_line import say
from medcls.config import SplitConfig
from medcls.data.columns import Codes, code_column, read_codes
from medcls.data.duplicates import DuplicatePair, find_duplicates
from medcls.data.splits import DROPPED, ORDER, SPLIT_NAMES, Splits, code_splits, resolve_leaks, write_split
from medcls.data.store import Store
from medcls.data.stratification import BIN, Strata, assign_splits, stratify
from medcls.errors import ConfigError, DataError
from medcls.files import SPLITS, read_json


def split_store(store: Store, labels: pa.Table, config: SplitConfig) -> None:
    """Makes or obeys the split, searches it for leaks, and writes it with its certificate.

    Args:
        store: The images.
        labels: One row for each stored image, in the store's order: "listed" (bool: the image has a label row; one
            without is left out), "split" (string, null where none is given), and "label" or "label_NAME" (strings,
            null = unknown).
        config: Fractions, seed and policies.

    Raises:
        DataError: too few patients, a class missing from a split, or a leak under on_leak="refuse".
        ConfigError: a split of this name is there already and differs.
    """
    strata = _strata(labels)
    given = labels.column("split").null_count < labels.num_rows
    patients = store.codes("patient_id")
    splits = _given(labels) if given else _assigned(labels, patients=patients, strata=strata, config=config)
    splits, found = resolve_leaks(
        splits,
        patients=patients,
        name_images=lambda rows: store.column("image_id", rows),
        duplicates=_find_duplicates(store, patients, config),
        on_leak=config.on_leak,
    )
    empty = _check_classes(splits, strata, config=config, given=given)
    used = [(name, splits == code) for code, name in enumerate(SPLIT_NAMES) if (splits == code).any()]
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
        "images": {name: int(chosen.sum()) for name, chosen in used},
        "patients": {name: patients.count(chosen) for name, chosen in used},
        "strata": _count_strata(splits, strata),
    }
    _write_split_once(store, config.name, splits=splits, certificate=certificate)
    _say_split(config.name, certificate)


def _given(labels: pa.Table) -> Splits:
    return code_splits(code_column(labels.column("split")))


def _assigned(labels: pa.Table, *, patients: Codes, strata: Strata, config: SplitConfig) -> Splits:
    listed = labels.column("listed").to_numpy()
    fractions = _fractions(config)
    _check_patients(patients.count(listed), fractions)
    return assign_splits(patients, strata, fractions=fractions, seed=config.seed, listed=listed)


def _fractions(config: SplitConfig) -> dict[str, float]:
    return {"train": round(1 - config.test - config.val, 9), "val": config.val, "test": config.test}


def _strata(labels: pa.Table) -> Strata:
    if "label" in labels.column_names:
        return stratify(code_column(labels.column("label")))
    code_of: dict[str, int] = {}
    rows, codes = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for column in sorted(name for name in labels.column_names if name.startswith("label_")):
        values = code_column(labels.column(column))
        for value, text in enumerate(values.texts.to_pylist()):
            if stratum := _stratum(column, str(text)):
                rows.append(np.flatnonzero(values.values == value))
                codes.append(np.full(len(rows[-1]), code_of.setdefault(stratum, len(code_of)), np.int32))
    return Strata(list(code_of), np.concatenate(rows), np.concatenate(codes))


def _stratum(name: str, value: str) -> str:
    """A label_NAME that is 1 counts under its name, one that is 0 or unknown not at all, any other by its value."""
    if value in ("0", "0.0"):
        return ""
    return name if value in ("1", "1.0") else f"{name}={value}"


def _check_patients(found: int, fractions: dict[str, float]) -> None:
    needed = sum(share > 0 for share in fractions.values())
    if found < needed:
        raise DataError(f"{found} patients cannot fill {needed} splits: more patients, or split.test=0 or split.val=0")


def _find_duplicates(store: Store, patients: Codes, config: SplitConfig) -> list[DuplicatePair]:
    extents = store.read("valid_y", "valid_x", "valid_height", "valid_width")

    def read_pixels(row: int) -> NDArray[Any]:
        y, x, height, width = (column[row].as_py() for column in extents.columns)
        return np.asarray(store.image(row))[:, y : y + height, x : x + width]

    return find_duplicates(
        patients.values,
        checksums=store.words("pixel_sha256"),
        hashes=store.words("pixel_dhash"),
        read_pixels=read_pixels,
        max_bits=config.near_duplicate_bits,
        min_correlation=config.near_duplicate_correlation,
    )


def _check_classes(splits: Splits, strata: Strata, *, config: SplitConfig, given: bool) -> dict[str, list[str]]:
    """Returns the strata missing from each split that should have images; refuses unless told to report."""
    images = dict(zip(SPLIT_NAMES, np.bincount(splits, minlength=len(SPLIT_NAMES)).tolist(), strict=True))
    wanted = [s for s in ORDER if images[s] or (not given and _fractions(config)[s] > 0)]
    empty = [name for name in wanted if not images[name]]
    if empty:
        raise DataError(
            f"no image is in the split {', '.join(empty)}: more patients, or a larger split.val, split.test"
        )
    counts = _count_by_name(splits, strata)
    every = {label for name in ORDER for label in counts[name] if not label.startswith(BIN)}
    missing = {name: sorted(every - counts[name].keys()) for name in wanted if every - counts[name].keys()}
    if missing and config.on_missing == "refuse":
        listed = "; ".join(f"{name} has no image of {', '.join(labels)}" for name, labels in missing.items())
        raise DataError(
            f"classes missing from a split: {listed}: more patients, a larger split.val, another "
            "split.seed, or split.on_missing=report (to evaluate only: training needs every class in train and val)"
        )
    return missing


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


def _write_split_once(store: Store, name: str, *, splits: Splits, certificate: dict[str, Any]) -> None:
    """Runs are tied to a split by its checksum, so a split of one name never changes."""
    path = store.folder / SPLITS / f"{name}.parquet"
    if path.is_file() and path.with_suffix(".json").is_file():
        written = read_json(path.with_suffix(".json"))
        same_policy = all(written.get(key) == certificate[key] for key in ("on_leak", "near_duplicates"))
        same = store.has_images_of(path) and (code_splits(read_codes(path, "split")) == splits).all()
        if not same_policy or not same:
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
