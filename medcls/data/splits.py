"""Splits by patient: made, checked for leaks, certified, and checked again by whoever reads them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.data.duplicates import DuplicatePair
from medcls.data.manifest import column_list, read_table, write_table
from medcls.data.store import Store
from medcls.errors import DataError, MissingInputError
from medcls.files import SPLITS as SPLITS_FOLDER
from medcls.files import read_json, sha256_file, write_json
from medcls.reproducibility import draw_seed

TRAIN, VAL, TEST, DROPPED = "train", "val", "test", "dropped"
ORDER = (TRAIN, VAL, TEST)
_SHOWN = 10


def assign_splits(
    patient_ids: Sequence[str], strata: Sequence[Sequence[str]], *, fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Returns a split for each image: patients whole, each stratum in proportion to `fractions`.

    The patients of the rarest stratum go first; each goes where its rarest stratum lacks most images. Ties and
    order come from a hash of (seed, patient_id), so the result is the same on every machine and in any row order.

    Args:
        patient_ids: Of each image.
        strata: Of each image: its label, or its positive labels.
        fractions: Split name -> share of the images, summing to 1; a share of 0 gets none.
        seed: Of the order.

    Source: iterative stratification, Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011, section 3, extended from
    examples to groups of examples.
    """
    names = [name for name in ORDER if fractions.get(name, 0) > 0]
    by_patient: dict[str, Counter[str]] = defaultdict(Counter)
    for patient, labels in zip(patient_ids, strata, strict=True):
        by_patient[patient].update([*labels, ""])  # "" counts every image
    totals: Counter[str] = Counter()
    for counts in by_patient.values():
        totals.update(counts)
    lack = {label: {n: fractions[n] * total for n in names} for label, total in totals.items()}

    def rank(patient: str) -> tuple[int, int, int]:
        counts = by_patient[patient]
        return min(totals[label] for label in counts), -counts[""], draw_seed("split", seed, patient)

    chosen: dict[str, str] = {}
    for patient in sorted(by_patient, key=rank):
        counts = by_patient[patient]
        rarest = min(counts, key=lambda label: (totals[label], label))
        best = max(names, key=lambda n: (lack[rarest][n], lack[""][n], draw_seed("tie", seed, patient, n)))
        chosen[patient] = best
        for label, count in counts.items():
            lack[label][best] -= count
    return [chosen[patient] for patient in patient_ids]


BIN = "bin "


def stratify(labels: Sequence[str | None], *, bins: int = 10) -> list[list[str]]:
    """Returns the strata of single labels: the label itself, or its quantile bin where labels are continuous.

    Labels count as continuous where all are numbers and more than 20 of them differ. A bin then holds at least 20
    images, so that a split of a tenth has some of each.
    """
    known = {label for label in labels if label is not None}
    try:
        numbers = {label: float(label) for label in known}
    except ValueError:
        numbers = {}
    if len(numbers) <= 20:
        return [[] if label is None else [label] for label in labels]
    bins = max(1, min(bins, sum(label is not None for label in labels) // 20))
    edges = np.quantile([numbers[label] for label in labels if label is not None], np.linspace(0, 1, bins + 1)[1:-1])
    return [[] if x is None else [f"{BIN}{int(np.searchsorted(edges, numbers[x]))}"] for x in labels]


def find_shared_patients(patient_ids: Sequence[str], splits: Sequence[str]) -> dict[str, list[str]]:
    """Returns the patients that stand in more than one split, with those splits."""
    where: dict[str, set[str]] = defaultdict(set)
    for patient, split in zip(patient_ids, splits, strict=True):
        if split != DROPPED:
            where[patient].add(split)
    return {p: [s for s in ORDER if s in found] for p, found in sorted(where.items()) if len(found) > 1}


def resolve_leaks(
    splits: Sequence[str],
    *,
    patient_ids: Sequence[str],
    image_ids: Sequence[str],
    duplicates: Sequence[DuplicatePair],
    on_leak: str,
) -> tuple[list[str], dict[str, Any]]:
    """Returns the splits after the policy, and what was found.

    Args:
        splits: Of each image.
        patient_ids: Of each image.
        image_ids: Of each image, for messages.
        duplicates: Pairs of rows that show the same image.
        on_leak: "refuse" raises; "drop" takes the rows out of the split that is nearer to training, so that the
            more held-out split stays as it was; "report" changes nothing.

    Raises:
        DataError: on_leak="refuse" and there is a leak; the message lists the patients and images.
    """
    shared = find_shared_patients(patient_ids, splits)
    kept = [d for d in duplicates if DROPPED not in (splits[d.first], splits[d.second])]
    crossing = [d for d in kept if splits[d.first] != splits[d.second]]
    found = {
        "patients_in_several_splits": shared,
        "images_in_several_splits": [
            {
                "images": [image_ids[d.first], image_ids[d.second]],
                "splits": [splits[d.first], splits[d.second]],
                "correlation": round(d.correlation, 4),
                "identical": d.identical,
            }
            for d in crossing
        ],
        "linked_patients_in_one_split": len(kept) - len(crossing),
    }
    if on_leak == "refuse" and (shared or crossing):
        raise DataError(_describe_leak(found))
    result = list(splits)
    if on_leak == "drop":
        for row, (patient, split) in enumerate(zip(patient_ids, splits, strict=True)):
            if patient in shared and split != shared[patient][-1]:
                result[row] = DROPPED
        for d in crossing:
            row = min((d.first, d.second), key=lambda r: ORDER.index(splits[r]))
            result[row] = DROPPED
    return result, found | {"dropped": result.count(DROPPED) - list(splits).count(DROPPED)}


def _describe_leak(found: dict[str, Any]) -> str:
    patients, images = found["patients_in_several_splits"], found["images_in_several_splits"]
    lines = []
    if patients:
        listed = [f"{p!r} in {' and '.join(s)}" for p, s in patients.items()]
        lines.append(f"{len(patients)} patients are in more than one split: {_some(listed)}")
    if images:
        listed = [
            f"{d['images'][0]} ({d['splits'][0]}) = {d['images'][1]} ({d['splits'][1]}), "
            + ("identical" if d["identical"] else f"correlation {d['correlation']:.3f}")
            for d in images
        ]
        lines.append(f"{len(images)} images are in more than one split: {_some(listed)}")
    advice = "correct the labels file, or split.on_leak=drop (leaves the rows nearer to training out)"
    return f"leak between splits: {'; '.join(lines)}: {advice}"


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def count_by_split(splits: Sequence[str], values: Sequence[Any]) -> dict[str, dict[str, int]]:
    """Returns split -> value -> count, in the order train, val, test, dropped."""
    pairs = Counter(zip(splits, values, strict=True))
    names = [n for n in (*ORDER, DROPPED) if n in set(splits)]
    kinds = sorted({str(v) for v in values})
    return {n: {k: sum(c for (s, v), c in pairs.items() if s == n and str(v) == k) for k in kinds} for n in names}


def write_split(store: Store, name: str, *, splits: Sequence[str], certificate: dict[str, Any]) -> Path:
    """Writes splits/<name>.parquet and its certificate <name>.json, and returns the parquet file's path."""
    path = store.folder / SPLITS_FOLDER / f"{name}.parquet"
    write_table(path, pa.table({"image_id": store.image_ids, "split": list(splits)}))
    content = certificate | {"store_sha256": store.sha256, "split_sha256": sha256_file(path), "name": name}
    write_json(path.with_suffix(".json"), content)
    return path


def read_split(store: Store, name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns image_id -> split and the certificate, after checking both against the store again.

    Raises:
        MissingInputError: no split of that name; the message lists those there are.
        DataError: the split or its certificate has changed, belongs to another store, or has a patient or an
            identical image in two splits although its certificate says it has none.
    """
    path = store.folder / SPLITS_FOLDER / f"{name}.parquet"
    if not path.is_file() or not path.with_suffix(".json").is_file():
        names = sorted(p.stem for p in path.parent.glob("*.parquet"))
        raise MissingInputError(f"split.name={name}: store has {', '.join(names) or 'none'}; data_prep makes them")
    certificate = read_json(path.with_suffix(".json"))
    if certificate.get("split_sha256") != sha256_file(path):
        raise DataError(f"{path} has changed since its certificate was written: make the split again by data_prep")
    if certificate.get("store_sha256") != store.sha256:
        raise DataError(f"{path} was made for another store: make the split again by data_prep")
    table = read_table(path, columns=("image_id", "split"))
    splits = dict(zip(column_list(table, "image_id"), column_list(table, "split"), strict=True))
    _check_again(store, splits, certificate, path)
    return splits, certificate


def _check_again(store: Store, splits: dict[str, str], certificate: dict[str, Any], path: Path) -> None:
    if set(splits) != set(store.image_ids):
        raise DataError(f"{path}: its images are not the store's; make the split again by data_prep")
    if certificate["on_leak"] == "report":
        return
    of_row = [splits[image_id] for image_id in store.image_ids]
    for name in ("patient_id", "pixel_sha256"):
        shared = find_shared_patients(store.column(name), of_row)
        if shared:
            value, where = next(iter(shared.items()))
            raise DataError(f"{path}: {name} {value!r} is in {' and '.join(where)}; splits must be disjoint by patient")


def rows_of(store: Store, splits: Mapping[str, str], name: str) -> NDArray[np.int64]:
    """Returns the manifest rows of one split ("all": every row that is not dropped), ascending."""
    wanted = set(ORDER) if name == "all" else {name}
    return np.array([i for i, x in enumerate(store.image_ids) if splits[x] in wanted], dtype=np.int64)
