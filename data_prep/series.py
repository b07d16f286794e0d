"""The volumes of a source as tables that labels are joined to."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from data_prep.labels.joining import SERIES
from data_prep.ledger import LEFT_OUT
from medcls.config import StackRule
from medcls.imaging.volume.find import QUARANTINED, SKIPPED, find_series
from medcls.imaging.volume.select import SeriesRule

_BATCH = 4096
_HEADER = ("series_uid", "study_uid", "patient_id", "patient_sex", "patient_age", "laterality")
_SERIES = pa.schema([*SERIES, *((name, pa.string()) for name in ("patient_sex", "patient_age", "laterality"))])
_LOST = pa.schema([*_SERIES, ("reason", pa.string()), ("detail", pa.string())])


class _Rows:
    """Rows that become an Arrow table piece by piece, so that no more than a piece is held as objects."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._pending: list[dict[str, object]] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, row: dict[str, object]) -> None:
        self._pending.append(row)
        if len(self._pending) == _BATCH:
            self._batches.append(pa.RecordBatch.from_pylist(self._pending, schema=self._schema))
            self._pending = []

    def table(self) -> pa.Table:
        last = pa.RecordBatch.from_pylist(self._pending, schema=self._schema)
        return pa.Table.from_batches([*self._batches, last], schema=self._schema)


@dataclass(frozen=True, slots=True)
class FoundVolumes:
    """What a source holds for a store of volumes.

    Attributes:
        series: Rows of joining.SERIES: each volume, and files together that became none.
        skipped_files: Rows of LEFT_OUT: files that a rule left out.
        refused_files: Rows of LEFT_OUT: files of what should have been a volume.
        lost: A row, as of `series`, with reason and detail for each series that should have been a volume and is not.
        several: Series that became more than one volume.
    """

    series: pa.Table
    skipped_files: pa.Table
    refused_files: pa.Table
    lost: pa.Table
    several: int


def find_volumes(index: pa.Table, *, series: SeriesRule, stack: StackRule) -> FoundVolumes:
    """Return what `find_series` finds in an index (catalog.INDEX), as tables."""
    volumes, lost = _Rows(_SERIES), _Rows(_LOST)
    files = {SKIPPED: _Rows(LEFT_OUT), QUARANTINED: _Rows(LEFT_OUT)}
    several = 0
    for each in find_series(index, series=series, stack=stack):
        several += len(each.volumes) > 1
        header = {name: getattr(each.first, name) for name in _HEADER}
        for key, paths in each.volumes:
            volumes.add({"key": key or paths[0], "files": list(paths), "chosen": True, **header})
        for path, state, reason, detail in each.left:
            files[state].add({"path": path, "reason": reason, "detail": detail})
        bad = [left for left in each.left if left[1] == QUARANTINED]
        if bad:
            first, _, reason, detail = bad[0]
            row = {"key": first, "files": [path for path, *_ in bad], "chosen": True, **header}
            lost.add(row | {"reason": reason, "detail": detail})
        if each.left:
            paths = tuple(path for path, *_ in each.left)
            volumes.add({"key": paths[0], "files": list(paths), "chosen": False, **header})
    return FoundVolumes(volumes.table(), files[SKIPPED].table(), files[QUARANTINED].table(), lost.table(), several)
