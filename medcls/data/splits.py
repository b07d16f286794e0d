"""Splits by patient: checked for leaks, certified, and checked again when read.

A split is an array with a code for each image: its place in SPLIT_NAMES. Patients are codes, too, so that nothing here
holds a Python object for each image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.data.columns import Codes, code_column, find_repeats, read_codes
from medcls.data.duplicates import DuplicatePair
from medcls.data.manifest import write_table
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.files import SPLITS as SPLITS_FOLDER
from medcls.files import read_json, sha256_file, write_json
from medcls.identity import format_count

TRAIN, VAL, TEST, DROPPED = "train", "val", "test", "dropped"
ORDER = (TRAIN, VAL, TEST)
SPLIT_NAMES = (*ORDER, DROPPED)
OUT = SPLIT_NAMES.index(DROPPED)
_NAME = "split.name"
Splits = NDArray[np.int8]


class LeakedPair(TypedDict):
    """One image in two splits, as a certificate states it."""

    images: list[str]
    splits: list[str]
    correlation: float
    identical: bool


class Leaks(TypedDict):
    """What `resolve_leaks` found; dropped: images that it took out of their split."""

    patients_in_several_splits: dict[str, list[str]]
    images_in_several_splits: list[LeakedPair]
    linked_patients_in_one_split: int
    dropped: NotRequired[int]


class Certificate(TypedDict, total=False):
    """What is known of a split, in splits/<name>.json; those of version 0.2.0 lack some of it.

    source: where it comes from, in words. algorithm: how patients were dealt, None = given by the user.
    near_duplicates: limits of the search for same images. merged_patients: how many patients count as another one, with
    whom they share images. images, patients, strata: counts of each split. table: rows that `show` prints.
    """

    name: str
    source: str
    algorithm: str | None
    seed: int | None
    fractions: dict[str, float] | None
    patients_from: str
    on_leak: str
    near_duplicates: dict[str, Any]
    on_contradiction: str
    contradictions: dict[str, int]
    extends: list[Any]
    merged_patients: int
    patients_in_several_splits: dict[str, list[str]]
    images_in_several_splits: list[LeakedPair]
    linked_patients_in_one_split: int
    dropped: int
    classes_missing: dict[str, list[str]]
    images: dict[str, int]
    patients: dict[str, int | None]
    strata: dict[str, dict[str, int]]
    table: list[Any]
    store_sha256: str
    split_sha256: str


def code_splits(names: Codes) -> Splits:
    """Return the codes of split names; null becomes DROPPED.

    Raises:
        ValueError: a name that is none of SPLIT_NAMES.
    """
    known = list(SPLIT_NAMES)
    of_name = np.array([*(known.index(str(name)) for name in names.texts.to_pylist()), OUT], dtype=np.int8)
    return np.asarray(of_name[names.values])


def find_shared_patients(patients: Codes, splits: Splits) -> dict[str, list[str]]:
    """Return the patients (or other values) that stand in more than one split, with those splits."""
    seen = _splits_of_values(patients, splits)
    several = np.flatnonzero(seen.sum(axis=1) > 1)
    where = [
        (patients.text(i), [name for name, there in zip(ORDER, seen[i], strict=True) if there])
        for i in several.tolist()
    ]
    return dict(sorted(where))


def _splits_of_values(column: Codes, splits: Splits) -> NDArray[np.bool_]:
    """(different values, 3): whether a value stands in train, val, test."""
    seen = np.zeros((len(column.texts), len(ORDER)), dtype=np.bool_)
    kept = splits != OUT
    seen[column.values[kept], splits[kept]] = True
    return seen


def resolve_leaks(
    splits: Splits,
    *,
    patients: Codes,
    name_images: Callable[[Sequence[int]], list[str]],
    duplicates: Sequence[DuplicatePair],
    on_leak: str,
    remedy: str = "correct the labels file",
) -> tuple[Splits, Leaks]:
    """Return the splits after the policy, and what was found.

    Args:
        splits: Of each image.
        patients: patient_id of each image.
        name_images: Rows -> image_ids, for messages and the certificate.
        duplicates: Pairs of rows that show the same image.
        on_leak: "refuse" raises; "drop" takes the rows out of the split that is nearer to training, so that the
            more held-out split stays as it was; "report" changes nothing.
        remedy: What to do about a leak, for the error.

    Raises:
        DataError: on_leak="refuse" and there is a leak; the message counts the patients and images.
    """
    shared = find_shared_patients(patients, splits)
    kept = [d for d in duplicates if OUT not in (splits[d.first], splits[d.second])]
    crossing = [d for d in kept if splits[d.first] != splits[d.second]]
    names = name_images([row for d in crossing for row in (d.first, d.second)])
    found: Leaks = {
        "patients_in_several_splits": shared,
        "images_in_several_splits": [
            {
                "images": names[2 * i : 2 * i + 2],
                "splits": [SPLIT_NAMES[splits[d.first]], SPLIT_NAMES[splits[d.second]]],
                "correlation": round(d.correlation, 4),
                "identical": d.identical,
            }
            for i, d in enumerate(crossing)
        ],
        "linked_patients_in_one_split": len(kept) - len(crossing),
    }
    if on_leak == "refuse" and (shared or crossing):
        raise DataError(
            f"leak between splits: {count_leaks(found)}: {remedy}, or set split.on_leak=drop (leaves out the rows "
            "nearer to training)"
        )
    result = splits
    if on_leak == "drop":
        result = _drop_leaks(splits, patients, crossing)
    return result, {**found, "dropped": int((result == OUT).sum() - (splits == OUT).sum())}


def _drop_leaks(splits: Splits, patients: Codes, crossing: Sequence[DuplicatePair]) -> Splits:
    seen = _splits_of_values(patients, splits)
    # The most held-out split of each patient; one of no split has no images that could leave it.
    last = np.where(seen, np.arange(len(ORDER)), 0).max(axis=1)
    result = np.where(splits < last[patients.values], np.int8(OUT), splits)
    for pair in crossing:
        result[min((pair.first, pair.second), key=lambda row: splits[row])] = OUT
    return result


def count_leaks(found: Leaks | Certificate) -> str:
    """Return how many patients and pairs of images are in more than one split, and in which; "" without any.

    Args:
        found: Certificate of a split, or what `resolve_leaks` found.
    """
    patients, images = found.get("patients_in_several_splits", {}), found.get("images_in_several_splits", [])
    lines = []
    if patients:
        are = "is" if len(patients) == 1 else "are"
        number = format_count(len(patients), "patient")
        lines.append(f"{number} {are} in more than one split: {_count_ends(patients.values())}")
    if images:
        identical = sum(pair["identical"] for pair in images)
        lines.append(
            f"{format_count(len(images), 'pair')} of the same image {'is' if len(images) == 1 else 'are'} in more than "
            f"one split, {identical} of them identical: "
            f"{_count_ends(pair['splits'] for pair in images)}"
        )
    return "; ".join(lines)


def _count_ends(splits: Iterable[Sequence[str]]) -> str:
    """Return how many leaks there are between which splits; ids of patients and images may be names and paths."""
    counts = Counter(" and ".join(sorted(names, key=ORDER.index)) for names in splits)
    return ", ".join(f"{count} in {where}" for where, count in sorted(counts.items()))


def write_split_once(
    store: Store,
    name: str,
    *,
    splits: Splits,
    certificate: Certificate,
    patients: Codes | None = None,
    setting: str = _NAME,
) -> Path:
    """Write a split as `write_split` does, unless another one of this name is there: runs are tied to its checksum.

    A file with the same splits stays as it is, to the byte; its certificate is written again, with the labels of today.

    Args:
        store: Store of the images.
        name: Name of the split.
        splits: Split of each image.
        certificate: With "on_leak" and "near_duplicates", which have to be the same, too, like "merged_patients".
        patients: As in `write_split`.
        setting: Setting that gives the split another name, for the message.

    Raises:
        ConfigError: a split of this name is there already and differs.
    """
    path = store.folder / SPLITS_FOLDER / f"{name}.parquet"
    certificate_file = path.with_suffix(".json")
    if path.is_file() and certificate_file.is_file():
        written = read_certificate(path)
        same_policy = written.get("on_leak") == certificate["on_leak"]
        same_policy &= written.get("near_duplicates") == certificate["near_duplicates"]
        same_policy &= written.get("merged_patients", 0) == certificate.get("merged_patients", 0)
        same = store.has_images_of(path) and (code_splits(read_codes(path, "split")) == splits).all()
        if not same_policy or not same:
            raise ConfigError(
                f"split.name={name} is already in the store, made with other labels, settings or version: "
                f"choose another {setting}="
                + (f"; split.extends={certificate_file} leaves patients where they are" if setting == _NAME else "")
            )
        return _write_certificate(store, path, certificate)
    return write_split(store, name, splits=splits, certificate=certificate, patients=patients)


def write_split(
    store: Store, name: str, *, splits: Splits, certificate: Certificate, patients: Codes | None = None
) -> Path:
    """Write splits/<name>.parquet and its certificate <name>.json; return the parquet file's path.

    Args:
        store: Store of the images.
        name: Name of the split.
        splits: Split of each image.
        certificate: What it is; "merged_patients" above 0 = the manifest's patients are not those of this split.
        patients: Patient of each image; written if some are merged.
    """
    path = store.folder / SPLITS_FOLDER / f"{name}.parquet"
    names = pa.array(SPLIT_NAMES).take(pa.array(splits, pa.int8()))
    table = store.read("image_id").append_column("split", names)
    if patients is not None and certificate.get("merged_patients"):
        table = table.append_column("patient", patients.texts.take(pa.array(patients.values)))
    write_table(path, table)
    return _write_certificate(store, path, certificate)


def _write_certificate(store: Store, path: Path, certificate: Certificate) -> Path:
    content = {**certificate, "store_sha256": store.sha256, "split_sha256": sha256_file(path), "name": path.stem}
    write_json(path.with_suffix(".json"), content)
    return path


def read_split(store: Store, name: str) -> tuple[Splits, Certificate]:
    """Return the split of each image and the certificate, after checking both against the store again.

    Raises:
        MissingInputError: no split of that name; the message lists those there are.
        DataError: the split or its certificate has changed, belongs to another store, or has a patient or an
            identical image in two splits although its certificate says it has none.
    """
    path = store.folder / SPLITS_FOLDER / f"{name}.parquet"
    if not path.is_file() or not path.with_suffix(".json").is_file():
        names = sorted(p.stem for p in path.parent.glob("*.parquet"))
        raise MissingInputError(f"split.name={name}: store has {', '.join(names) or 'none'}; make it with data_prep")
    certificate = read_certificate(path)
    if certificate.get("split_sha256") != sha256_file(path):
        raise DataError(
            f"{path} has changed since its certificate was written: restore it, or remove both and run data_prep again"
        )
    if certificate.get("store_sha256") != store.sha256:
        raise DataError(f"{path} was made for another store: make the split again with data_prep")
    if not store.has_images_of(path):
        raise DataError(f"{path}: its images are not the store's: make the split again with data_prep")
    splits = code_splits(read_codes(path, "split"))
    if certificate.get("on_leak") != "report":
        _check_again(store, splits, path)
    return splits, certificate


def read_certificate(path: Path) -> Certificate:
    """Return the certificate beside a split's parquet file, after checking that it is as it was written.

    Raises:
        DataError: it has changed.
        MissingInputError: it is missing.
    """
    # Repeated beside a damaged certificate, data_prep cannot tell whether the split is the one that it would make.
    content: Any = read_json(path.with_suffix(".json"), remedy="restore it, or remove it and run data_prep again")
    return cast(Certificate, content)


def read_patients(store: Store, certificate: Certificate) -> Codes:
    """Return the patient of each image as a split counts them: those who were merged are one, under one of their ids.

    Args:
        store: Store of the images.
        certificate: Certificate of the split, as `read_split` returns it; {} = the manifest's patients.
    """
    if not certificate.get("merged_patients"):
        return store.codes("patient_id")
    return read_codes(store.folder / SPLITS_FOLDER / f"{Path(str(certificate['name'])).name}.parquet", "patient")


def _check_again(store: Store, splits: Splits, path: Path) -> None:
    repeated, _ = find_repeats(store.words("pixel_sha256"))
    copies = code_column(store.read("pixel_sha256", rows=repeated).column(0))
    for name, column, of_row in (
        ("patient_id", store.codes("patient_id"), splits),
        ("pixel_sha256", copies, splits[repeated]),
    ):
        shared = find_shared_patients(column, of_row)
        if shared:
            raise DataError(
                f"{path}: {len(shared)} values of {name} are in several splits, which must be disjoint by patient: "
                "make the split again with data_prep"
            )


def rows_of(splits: Splits, name: str) -> NDArray[np.int64]:
    """Return the manifest rows of one split ("all": every row that is not dropped), ascending."""
    return np.flatnonzero(splits != OUT if name == "all" else splits == SPLIT_NAMES.index(name))
