"""The volumes of a source: series chosen by rule, their slices sorted into stacks, the rest with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.joining import SERIES
from data_prep.ledger import QUARANTINED, SKIPPED
from medcls.imaging.index import instances_of
from medcls.imaging.instances import Instance
from medcls.imaging.selection import SeriesKey, SeriesRule, select_series, series_key, summarize_series
from medcls.imaging.stacks import Leftover, Stack, StackRule, build_stacks

_KEY = ("patient_id", "study_uid", "series_uid")
_BATCH = 4096
_SERIES = pa.schema([*SERIES, *((name, pa.string()) for name in ("patient_sex", "patient_age", "laterality"))])
_LOST = pa.schema([*_SERIES, ("reason", pa.string()), ("detail", pa.string())])
LEFT_OUT = pa.schema([("path", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
# Files of a series that are no slices, and none is missing without them.
_NO_SLICE = frozenset({"no_pixel_data", "not_an_image", "dicomdir", "hidden", "symbolic_link", "special_file"})


class _Rows:
    """Rows that become an Arrow table piece by piece, so that no more than a piece is held as objects."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._pending: list[dict[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, row: dict[str, Any]) -> None:
        self._pending.append(row)
        if len(self._pending) == _BATCH:
            self._flush()

    def table(self) -> pa.Table:
        self._flush()
        return pa.Table.from_batches(self._batches, schema=self._schema)

    def _flush(self) -> None:
        if self._pending:
            self._batches.append(pa.RecordBatch.from_pylist(self._pending, schema=self._schema))
            self._pending = []


class FoundVolumes:
    """What a source holds for a store of volumes, while it is looked through; then as tables.

    Attributes:
        several: Series that became more than one volume.
    """

    def __init__(self) -> None:
        self._series, self._skipped, self._refused = _Rows(_SERIES), _Rows(LEFT_OUT), _Rows(LEFT_OUT)
        self._lost = _Rows(_LOST)
        self.several = 0

    @property
    def series(self) -> pa.Table:
        """Rows of joining.SERIES: each volume, and files together that became none."""
        return self._series.table()

    @property
    def skipped_files(self) -> pa.Table:
        """Rows of LEFT_OUT: files that a rule left out."""
        return self._skipped.table()

    @property
    def refused_files(self) -> pa.Table:
        """Rows of LEFT_OUT: files of what should have been a volume."""
        return self._refused.table()

    @property
    def lost(self) -> pa.Table:
        """A row, as of `series`, with reason and detail for each series that should have been a volume and is not."""
        return self._lost.table()

    def add(self, first: Instance, paths: tuple[str, ...], *, key: str = "", chosen: bool = False) -> None:
        """Adds a volume, or files that became none."""
        self._series.add(_describe(first, paths, key=key, chosen=chosen))

    def leave(self, first: Instance, leftovers: list[Leftover]) -> None:
        """Adds the files of a series that are in no volume, with their state and reason."""
        for path, state, reason, detail in leftovers:
            rows = self._skipped if state == SKIPPED else self._refused
            rows.add({"path": path, "reason": reason, "detail": detail})
        bad = [each for each in leftovers if each[1] == QUARANTINED]
        if bad:
            row = _describe(first, tuple(path for path, *_ in bad), key="", chosen=True)
            self._lost.add(row | {"reason": bad[0][2], "detail": bad[0][3]})
        if leftovers:
            self.add(first, tuple(path for path, *_ in leftovers))


def _describe(first: Instance, paths: tuple[str, ...], *, key: str, chosen: bool) -> dict[str, Any]:
    names = ("series_uid", "study_uid", "patient_id", "patient_sex", "patient_age", "laterality")
    return {
        "key": key or paths[0],
        "files": list(paths),
        "chosen": chosen,
        **{name: getattr(first, name) for name in names},
    }


def find_volumes(index: pa.Table, *, series: SeriesRule, stack: StackRule) -> FoundVolumes:
    """Returns the volumes that an index of a source promises; one series at a time is held as objects.

    Args:
        index: imaging.index.INDEX, one row a file.
        series: Which series are taken.
        stack: How slices become volumes.
    """
    taken, unchosen = _choose(index, series=series, stack=stack)
    found = FoundVolumes()
    for key, instances in _by_series(index):
        first = instances[0]
        if key not in taken:
            found.leave(first, [_leave_out(i, unchosen.get(key, "no_image")) for i in instances])
            continue
        stacks, leftovers = _stack(instances, stack)
        # One of a study is one volume, also where its series holds several (two echoes).
        others = stacks[1:] if series.per_study != "all" else []
        leftovers += [(path, SKIPPED, "not_preferred", "") for other in others for path in other.paths]
        found.several += len(stacks) - len(others) > 1
        for each in stacks[: len(stacks) - len(others)]:
            found.add(first, each.paths, key=f"{first.series_uid}{each.name}", chosen=True)
        found.leave(first, leftovers)
    images = _find_images(index)
    for nifti in instances_of(index.filter(pc.equal(index["kind"], "nifti"))):
        header = PurePosixPath(nifti.path).suffix.lower() == ".hdr"
        image = images.get(_without_suffix(nifti.path)) if header else None
        if nifti.problem:
            found.leave(nifti, [_leave_out(nifti, "")])
        elif header and image is None:
            found.leave(nifti, [(nifti.path, QUARANTINED, "nifti_pair", "its .img is missing")])
        else:
            found.add(nifti, (nifti.path, image) if image else (nifti.path,), key=nifti.path, chosen=True)
    return found


def _find_images(index: pa.Table) -> dict[str, str]:
    """The image files of headers beside them, by their path without .img."""
    paths = index.filter(pc.match_like(index["path"], "%.img", ignore_case=True))["path"].to_pylist()
    return {_without_suffix(str(path)): str(path) for path in paths}


def _without_suffix(path: str) -> str:
    return path[: -len(".img")]


def _choose(index: pa.Table, *, series: SeriesRule, stack: StackRule) -> tuple[set[SeriesKey], dict[SeriesKey, str]]:
    """The series that are taken, and a reason for each other; a preference chooses among those that make a volume."""
    candidates, unchosen = select_series(summarize_series(instances_of(index)), replace(series, per_study="all"))
    taken = {each.key for each in candidates}
    if series.per_study == "all":
        return taken, unchosen
    whole = {key for key, instances in _by_series(index) if key in taken and _stack(instances, stack)[0]}
    chosen, left = select_series((each for each in candidates if each.key in whole), series)
    # Those that make none go on, so that each file gets its own reason.
    return {each.key for each in chosen} | (taken - whole), unchosen | left


def _stack(instances: list[Instance], rule: StackRule) -> tuple[list[Stack], list[Leftover]]:
    """The stacks of a series; none where a slice cannot be read: without it a volume would be short, and look whole."""
    broken = [each for each in instances if each.problem and each.problem not in _NO_SLICE]
    if not broken:
        return build_stacks(instances, rule)
    detail = f"{len(broken)} of its files cannot be read"
    return [], [(i.path, QUARANTINED, i.problem or "incomplete_series", "" if i.problem else detail) for i in instances]


def _leave_out(instance: Instance, reason: str) -> Leftover:
    """A file of no volume: a broken one is quarantined whatever the rules say."""
    problem = instance.problem
    return instance.path, QUARANTINED if problem and problem not in _NO_SLICE else SKIPPED, problem or reason, ""


def _by_series(index: pa.Table) -> Iterator[tuple[SeriesKey, list[Instance]]]:
    """The DICOM files of each series, series by series."""
    dicom = index.filter(pc.equal(index["kind"], "dicom"))
    ordered = dicom.sort_by([(name, "ascending") for name in (*_KEY, "path")])
    for key, instances in groupby(instances_of(ordered), key=series_key):
        yield key, list(instances)
