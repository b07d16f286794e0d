"""The volumes of a source as tables that labels are joined to."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from data_prep.labels.joining import SERIES
from data_prep.ledger import LEFT_OUT
from medcls.config import StackRule
from medcls.imaging.instance import Instance
from medcls.imaging.volume.find import QUARANTINED, SKIPPED, find_series
from medcls.imaging.volume.select import SeriesRule
from medcls.imaging.volume.stack import Leftover

_BATCH = 4096
_SERIES = pa.schema([*SERIES, *((name, pa.string()) for name in ("patient_sex", "patient_age", "laterality"))])
_LOST = pa.schema([*_SERIES, ("reason", pa.string()), ("detail", pa.string())])


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
        """Add a volume, or files that became none."""
        self._series.add(_describe(first, paths, key=key, chosen=chosen))

    def leave(self, first: Instance, leftovers: list[Leftover]) -> None:
        """Add the files of a series that are in no volume, with their state and reason."""
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
    """Return what `find_series` finds, as tables.

    Args:
        index: catalog.INDEX, one row a file.
        series: Which series are taken.
        stack: How slices become volumes.
    """
    found = FoundVolumes()
    for each in find_series(index, series=series, stack=stack):
        for key, paths in each.volumes:
            found.add(each.first, paths, key=key, chosen=True)
        found.several += len(each.volumes) > 1
        found.leave(each.first, each.left)
    return found
