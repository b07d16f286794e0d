"""Find images with the same pixels: contradictions if their labels differ, links if their patients differ."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_prep.labels.label_rows import is_label
from medcls.config import SplitConfig
from medcls.data.columns import Codes, code_column
from medcls.data.duplicates import Differ, DuplicatePair, NearLimits, find_store_duplicates
from medcls.data.label_words import spelling_key
from medcls.data.splits import DROPPED, SPLIT_NAMES, Splits
from medcls.data.store import Store
from medcls.data.strata import read_measurements
from medcls.errors import WriteError
from medcls.files import atomic_file
from medcls.identity import format_count, guard_cell

_SHOWN = 5
# Two values of one image contradict each other if they differ by more than this share of the standard deviation.
_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Origin:
    """Where stored images come from, for messages and private lists.

    Attributes:
        name: Setting that the labels come from, such as "labels=FILE.csv" or "source=DIR".
        giver: What gives splits, as certificates name it.
        cut: Splits that are cut from the given train split by patient, by their fractions of it.
        patients_known: False if every image was declared another patient for want of knowledge.
        reuse: An older store whose patients may be in other splits.
        plan: Columns number (line of the labels file, 0 = none) and files of each planned image.
        places: (N,) row of the plan of each stored image, -1 for one that is not listed any more.
    """

    name: str = "labels"
    giver: str = "labels file"
    cut: Sequence[str] = ()
    patients_known: bool = True
    reuse: str | None = None
    plan: pa.Table | None = None
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def describe(self, rows: Sequence[int]) -> list[tuple[int, str]]:
        """Return line and path (the first of a volume's) of stored images; 0 and "" if they are unknown."""
        if self.plan is None:
            return [(0, "") for _ in rows]
        places = pa.array(self.places[np.asarray(rows, np.int64)])
        found = self.plan.select(["number", "files"]).take(places)
        return [(row["number"] or 0, row["files"][0]) for row in found.to_pylist()]


@dataclass(frozen=True, slots=True)
class SameImages:
    """What the search for the same image found.

    Attributes:
        links: Pairs of images of different patients.
        contradictions: Groups of rows of one image, two of which have different labels. Within one patient only
            identical pixels count: neighbouring slices and frames are nearly identical, and may differ in label.
        suspected: Pairs of nearly identical images of one patient with different labels.
    """

    links: list[DuplicatePair]
    contradictions: list[list[int]]
    suspected: list[DuplicatePair]

    @property
    def contradicting(self) -> list[int]:
        """The rows of all contradictions."""
        return [row for group in self.contradictions for row in group]


def find_same_images(store: Store, labels: pa.Table, *, patients: Codes, config: SplitConfig) -> SameImages:
    """Return the images that are the same, of different patients or under different labels.

    `labels` are "listed", and "label" or "label_NAME", a row for each stored image.
    """
    differ = build_differ(labels)
    limits = NearLimits(config.near_duplicate_bits, config.near_duplicate_correlation)
    pairs = find_store_duplicates(store, patients, limits, differ=differ)
    listed = labels.column("listed").to_numpy()
    pairs = [pair for pair in pairs if listed[pair.first] and listed[pair.second]]
    ends = np.array([(pair.first, pair.second) for pair in pairs], np.int64).reshape(-1, 2)
    links = patients.values[ends[:, 0]] != patients.values[ends[:, 1]]
    sure = links | np.array([pair.identical for pair in pairs], bool)
    return SameImages(
        links=[pair for pair, link in zip(pairs, links, strict=True) if link],
        contradictions=_group(ends[sure], differ(ends[sure, 0], ends[sure, 1]), size=len(store)),
        suspected=[pair for pair, certain in zip(pairs, sure, strict=True) if not certain],
    )


def build_differ(labels: pa.Table) -> Differ:
    """Return a function that tells whether known labels of two rows contradict each other.

    Classes contradict if they differ, in any label column; values on a scale if they are further apart than a tenth of
    the column's standard deviation (own choice, docs/decisions/0042-same-images.md). Unknown labels contradict nothing.
    """
    columns = []
    for name in (name for name in labels.column_names if is_label(name)):
        codes = code_column(labels.column(name))
        numbers, limit = read_measurements(codes), 0.0
        if numbers is None:
            keys = [spelling_key(str(text)) for text in codes.texts.to_pylist()]
            numbers = np.unique(keys, return_inverse=True)[1].astype(np.float64)
        else:
            limit = _TOLERANCE * float(numbers[codes.values[codes.values >= 0]].std())
        columns.append((codes.values, np.append(numbers, np.nan), limit))

    def differ(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        found = np.zeros(len(first), np.bool_)
        for values, numbers, limit in columns:
            found |= np.abs(numbers[values[first]] - numbers[values[second]]) > limit
        return found

    return differ


def _group(ends: NDArray[np.int64], differing: NDArray[np.bool_], *, size: int) -> list[list[int]]:
    """Return the groups of connected rows that hold a differing pair, in row order."""
    if not differing.any():
        return []
    links = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(size, size))
    _, group = connected_components(links, directed=False)
    found: dict[int, list[int]] = {}
    wanted = set(group[ends[differing, 0]].tolist())
    for row in np.unique(ends).tolist():
        if group[row] in wanted:
            found.setdefault(int(group[row]), []).append(row)
    return list(found.values())


def describe_contradictions(same: SameImages, origin: Origin) -> str:
    """Return counts of the contradictions and lines of the labels file, for the terminal.

    No label, path or image_id, which may be a path with a patient's name.
    """
    listed = []
    for group in same.contradictions[:_SHOWN]:
        names = [f"line {line}" for line, _ in origin.describe(group[:_SHOWN]) if line]
        if names:
            text = " = ".join(names)
            if len(group) > len(names):
                text += f" and {len(group) - len(names)} more"
            listed.append(text)
    number, images = len(same.contradictions), len(same.contradicting)
    pictures = format_count(number, "picture has", "pictures have")
    text = f"{pictures} more than one label ({format_count(images, 'image')})"
    if listed:
        text += f": {'; '.join(listed)}"
        if number > _SHOWN:
            text += f"; and {number - _SHOWN} more pictures"
    return text


def same_images_path(folder: Path) -> Path:
    """Return the path of the list of a store's same images: beside it, since it holds paths and labels."""
    folder = folder.resolve()
    return folder.parent / f"{folder.name}.same-images.csv"


def write_same_images(
    same: SameImages, store: Store, labels: pa.Table, *, origin: Origin, splits: Splits | None = None
) -> str:
    """Write the list of the images that are the same, mode 0600, one row for each image; return where it is, in words.

    Nothing found removes the list of an earlier call. A folder that cannot be written hides no finding. `splits` is
    None if there is no split yet.
    """
    path = same_images_path(store.folder)
    groups = list(_list_groups(same, splits))
    if not groups:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return f"nothing to list; {path} is from an earlier call and cannot be removed: remove it"
        return "nothing to list"
    names = [name for name in labels.column_names if is_label(name)]
    try:
        with atomic_file(path, private=True) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(text)
            writer.writerow(["group", "found", "line", "image_id", "path", "patient_id", "split", *names])
            for number, (found, rows) in enumerate(groups, start=1):
                known = store.read("image_id", "patient_id", rows=rows).to_pylist()
                taken = labels.select(names).take(pa.array(rows)).to_pylist()
                for row, ids, own, (line, name) in zip(rows, known, taken, origin.describe(rows), strict=True):
                    split = "" if splits is None else SPLIT_NAMES[splits[row]]
                    cells = [ids["image_id"], name, ids["patient_id"], split, *(own[column] or "" for column in names)]
                    writer.writerow([number, found, line or "", *map(guard_cell, cells)])
            text.flush()
            text.detach()
    except WriteError:
        return f"{path} cannot be written, so they are not listed"
    return f"{path} lists their paths and labels, mode 0600"


def _list_groups(same: SameImages, splits: Splits | None) -> Iterator[tuple[str, list[int]]]:
    for group in same.contradictions:
        yield "different labels", group
    for pair in same.suspected:
        yield "nearly identical in one patient, different labels", [pair.first, pair.second]
    for pair in same.links:
        rows = [pair.first, pair.second]
        if splits is None:
            yield "different patients", rows
            continue
        ends = {SPLIT_NAMES[splits[row]] for row in rows}
        if DROPPED not in ends:
            where = "one split" if len(ends) == 1 else "two splits"
            yield f"different patients, {where}", rows


def count_same_images(same: SameImages) -> dict[str, int]:
    """Return what a certificate states about contradictions: counts only."""
    return {
        "pictures": len(same.contradictions),
        "images": len(same.contradicting),
        "nearly_identical_in_one_patient": len(same.suspected),
    }
