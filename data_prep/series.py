"""The volumes of a source: series chosen by rule, their slices sorted into stacks, the rest with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.joining import SERIES
from medcls.imaging.index import instances_of
from medcls.imaging.instances import Instance
from medcls.imaging.selection import SeriesRule, select_series, series_key, summarize_series
from medcls.imaging.stacks import Leftover, Stack, StackRule, build_stacks

_KEY = ("patient_id", "study_uid", "series_uid")
_SERIES = pa.schema([*SERIES, *((name, pa.string()) for name in ("patient_sex", "patient_age", "laterality"))])
LEFT_OUT = pa.schema([("path", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


@dataclass(slots=True)
class FoundVolumes:
    """What a source holds for a store of volumes.

    Attributes:
        series: Rows of joining.SERIES: each volume, and files together that became none.
        skipped: path, reason, detail of files that a rule left out.
        refused: Of files that should have been a volume and are not.
    """

    series: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, first: Instance, paths: tuple[str, ...], *, key: str = "", chosen: bool = False) -> None:
        """Adds a volume, or files that became none."""
        self.series.append(
            {
                "key": key or paths[0],
                "files": list(paths),
                "series_uid": first.series_uid,
                "study_uid": first.study_uid,
                "patient_id": first.patient_id,
                "patient_sex": first.patient_sex,
                "patient_age": first.patient_age,
                "laterality": first.laterality,
                "chosen": chosen,
            }
        )

    def leave(self, first: Instance, leftovers: list[Leftover]) -> None:
        """Adds files that are in no volume, with their state and reason."""
        for path, state, reason, detail in leftovers:
            (self.skipped if state == "skipped" else self.refused).append((path, reason, detail))
        if leftovers:
            self.add(first, tuple(path for path, *_ in leftovers))


def find_volumes(index: pa.Table, *, series: SeriesRule, stack: StackRule) -> FoundVolumes:
    """Returns the volumes that an index of a source promises; one series at a time is held as objects.

    Args:
        index: imaging.index.INDEX, one row a file.
        series: Which series are taken.
        stack: How slices become volumes.
    """
    chosen, unchosen = select_series(summarize_series(instances_of(index)), series)
    taken = {each.key for each in chosen}
    found = FoundVolumes()
    for key, instances in _by_series(index):
        first = instances[0]
        if key not in taken:
            reason = unchosen.get(key, "no_image")
            found.leave(first, [(i.path, "skipped", i.problem or reason, "") for i in instances])
            continue
        stacks, leftovers = build_stacks(instances, stack)
        # One of a study is one volume, also where its series holds several (two echoes).
        others = stacks[1:] if series.per_study != "all" else []
        leftovers += [(path, "skipped", "not_preferred", "") for other in others for path in other.paths]
        for each in stacks[: len(stacks) - len(others)]:
            found.add(first, each.paths, key=_volume_key(first, each), chosen=True)
        found.leave(first, leftovers)
    for nifti in instances_of(index.filter(pc.equal(index["kind"], "nifti"))):
        if nifti.problem:
            found.leave(nifti, [(nifti.path, "quarantined", nifti.problem, "")])
        else:
            found.add(nifti, (nifti.path,), key=nifti.path, chosen=True)
    return found


def _by_series(index: pa.Table) -> Iterator[tuple[tuple[str, str, str], list[Instance]]]:
    """The DICOM files of each series, series by series, as far as their header says one."""
    dicom = index.filter(pc.equal(index["kind"], "dicom"))
    ordered = dicom.sort_by([(name, "ascending") for name in (*_KEY, "path")])
    for key, instances in groupby(instances_of(ordered), key=series_key):
        yield key, list(instances)


def _volume_key(first: Instance, stack: Stack) -> str:
    """A volume is known by its series, whatever its files are called."""
    return f"{first.series_uid}{stack.name}"


def series_table(found: FoundVolumes) -> pa.Table:
    """Returns the rows as joining.SERIES."""
    return pa.Table.from_pylist(found.series, schema=_SERIES)


def left_out_table(rows: list[tuple[str, str, str]]) -> pa.Table:
    """Returns files that no image is made of, with reason and detail."""
    return pa.Table.from_pylist([dict(zip(LEFT_OUT.names, row, strict=True)) for row in rows], schema=LEFT_OUT)
