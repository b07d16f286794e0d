"""The index of a source folder: one row of header values per file, built once and read by many jobs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medcls.disk import check_disk
from medcls.errors import DataError, ImageRefusedError, MissingInputError
from medcls.files import atomic_file
from medcls.imaging.instance import Instance
from medcls.imaging.scan_file import scan_file
from medcls.imaging.source import SKIP_REASONS, list_files
from medcls.imaging.worker import Limits, run_limited

BATCH_ROWS = 8192
_LIMITS = Limits(memory_bytes=1 << 30, seconds=30.0)
_VERSION_KEY, _VERSION = b"medcls_index", b"1"
_SUM_KEY = b"medcls_index_sha256"
"""Key of the checksum of the rows, in the file's metadata; version 0.2.0 wrote none."""
_TYPES: dict[str, pa.DataType] = {
    "str": pa.string(),
    "int": pa.int64(),
    "tuple[float, ...]": pa.list_(pa.float64()),
    "float | None": pa.float64(),
}
INDEX = pa.schema(
    [pa.field(f.name, _TYPES[str(f.type)], nullable=str(f.type) == "float | None") for f in fields(Instance)]
)
"""The columns of an index: the fields of Instance, in their order."""

_NAMES = INDEX.names
_NEW = ("image_problem", "intent")
"""Columns that version 0.2.0 did not write: blank in an index of then, which means unknown."""
_LISTS = tuple(name for name in _NAMES if pa.types.is_list(INDEX.field(name).type))


def build_index(
    source: Path, files: Iterable[tuple[str, str]], *, workers: int, refuse_unreadable: bool = False
) -> pa.Table:
    """Return one row (INDEX) for every file, sorted by path; the same for any number of workers.

    Args:
        source: The folder.
        files: (path, skip reason or "") in sorted order, as source.list_files yields them; consumed lazily. A file
            with a skip reason is not opened: the reason becomes its problem.
        workers: Processes that read headers; 0 reads here, without limits of memory and time.
        refuse_unreadable: A file that the disk does not give has the problem "disk_failure", instead of a ReadError.

    Raises:
        ValueError: the paths are not in sorted order, or one is there twice.
    """
    batches = scan_batches(source, files, workers=workers, refuse_unreadable=refuse_unreadable)
    return pa.Table.from_batches(batches, schema=INDEX)


def scan_batches(
    source: Path, files: Iterable[tuple[str, str]], *, workers: int, refuse_unreadable: bool = False
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of `build_index` in batches of BATCH_ROWS, for indices that memory does not hold."""
    pending: list[tuple[str, str]] = []

    def note(items: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        last = ""
        for item in items:
            if item[0] <= last:
                raise ValueError("files must come in sorted order, each path once")
            last = item[0]
            pending.append(item)
            yield item

    outcomes = run_limited(
        partial(_scan_item, source),
        note(files),
        workers=workers,
        limits=_LIMITS,
        refuse_unreadable=refuse_unreadable,
    )
    while chunk := list(islice(outcomes, BATCH_ROWS)):
        instances = []
        for (path, _), outcome in zip(pending[: len(chunk)], chunk, strict=True):
            if isinstance(outcome, ImageRefusedError):  # its worker did not survive it
                size = 0
                with suppress(OSError):  # a disk that fails may not even give that
                    size = (source / path).lstat().st_size
                outcome = Instance(path=path, kind="other", size_bytes=size, problem=outcome.reason)
            instances.append(outcome)
        del pending[: len(chunk)]
        yield pa.record_batch([[getattr(each, name) for each in instances] for name in _NAMES], schema=INDEX)


def _scan_item(source: Path, item: tuple[str, str]) -> Instance:
    """Return one row; runs in a worker."""
    path, skip = item
    if skip:
        return Instance(path=path, kind="other", problem=skip)
    return scan_file(source / path, name=path)


def instances_of(table: pa.Table) -> Iterator[Instance]:
    """Yield the rows of an index, or of a slice, filter or take of one, as Instances."""
    for batch in table.select(_NAMES).to_batches(max_chunksize=BATCH_ROWS):
        columns = batch.to_pydict()
        for name in _LISTS:
            columns[name] = list(map(tuple, columns[name]))
        for row in zip(*columns.values(), strict=True):
            yield Instance(*row)


def write_index(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Write an index as Parquet that only its owner can read (mode 0600: the identifiers are real).

    Returns:
        The number of rows; one batch at a time is in memory.

    Raises:
        WriteError: the disk is full, the folder read-only or gone.
    """
    rows, checksum = 0, _Checksum()
    schema = INDEX.with_metadata({_VERSION_KEY: _VERSION})
    with (
        atomic_file(path, private=True) as file,
        pq.ParquetWriter(file, schema, compression="zstd", store_schema=True) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
            checksum.update(batch)
            rows += batch.num_rows
        writer.add_key_value_metadata({_SUM_KEY.decode(): checksum.digest()})
    return rows


class _Checksum:
    """SHA-256 of the rows of an index, however they are cut into batches: of each column lengths and values."""

    def __init__(self) -> None:
        self._columns = {name: (hashlib.sha256(), hashlib.sha256()) for name in _NAMES}

    def update(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch."""
        for name, (lengths, values) in self._columns.items():
            column: Any = batch.column(name)
            if pa.types.is_list(column.type):
                lengths.update(pc.list_value_length(column).fill_null(-1).to_numpy().tobytes())
                values.update(pc.list_flatten(column).to_numpy(zero_copy_only=False).tobytes())
            elif pa.types.is_string(column.type):
                lengths.update(pc.binary_length(column).fill_null(-1).to_numpy().tobytes())
                values.update("".join(column.drop_null().to_pylist()).encode())
            else:
                lengths.update(column.is_valid().to_numpy(zero_copy_only=False).tobytes())
                values.update(column.fill_null(0).to_numpy().tobytes())

    def digest(self) -> str:
        """Return the checksum of all rows so far."""
        parts = "".join(f"{n} {a.hexdigest()} {b.hexdigest()}\n" for n, (a, b) in self._columns.items())
        return hashlib.sha256(parts.encode()).hexdigest()


def read_index(path: Path, *, source: Path) -> pa.Table:
    """Return the index in a file, after comparing it with the names and sizes of the files that are there now.

    Raises:
        MissingInputError: no such file.
        DataError: not an index of this version, with paths that leave the source, or stale.
    """
    if not path.is_file():
        raise MissingInputError(f"index={path} is missing: python -m data_prep.index source={source} out={path}")
    try:
        with pq.ParquetFile(path) as file:
            table, written = file.read(), (file.metadata.metadata or {}).get(_SUM_KEY)
        table.validate(full=True)
        names = table.column_names
    except (pa.ArrowException, OSError, ValueError) as error:
        check_disk(path, error)
        raise DataError(f"index={path} is not a Parquet file: {_remedy(source, path)}") from error
    version = (table.schema.metadata or {}).get(_VERSION_KEY)
    for name in _NEW:
        if name not in names:
            blank = pa.repeat("", table.num_rows)
            table = table.add_column(INDEX.get_field_index(name), INDEX.field(name), blank)
    if version != _VERSION or not table.schema.equals(INDEX, check_metadata=False):
        raise DataError(f"index={path} is not an index of this version of medcls: {_remedy(source, path)}")
    if written is not None:
        checksum = _Checksum()
        for batch in table.to_batches():
            checksum.update(batch)
        if checksum.digest().encode() != written:
            raise DataError(f"index={path} has changed since it was written: {_remedy(source, path)}")
    if counts := _compare(table, source):
        found = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
        raise DataError(f"index={path} is stale, {found}: {_remedy(source, path)}")
    return table


def _remedy(source: Path, path: Path) -> str:
    return f"python -m data_prep.index source={source} out={path} builds it again"


def _compare(table: pa.Table, source: Path) -> Counter[str]:
    """What differs between an index and its folder, in one walk along both: they are sorted, and neither is held."""
    counts: Counter[str] = Counter()
    rows, files = _rows_of(table), list_files(source)
    row, file = next(rows, None), next(files, None)
    while row or file:
        if row is None or (file is not None and file[0] < row[0]):
            counts["new files"] += 1
            file = next(files, None)
        elif file is None or row[0] < file[0]:
            counts["missing files"] += 1
            row = next(rows, None)
        else:
            path, problem, size = row
            if file[1] or problem in SKIP_REASONS:
                counts["changed files"] += problem != file[1]
            else:
                counts["changed files"] += (source / path).lstat().st_size != size
            row, file = next(rows, None), next(files, None)
    return +counts


def _rows_of(table: pa.Table) -> Iterator[tuple[str, str, int]]:
    """Path, problem and size of every row; whoever edits an index could send us anywhere."""
    last = ""
    for batch in table.select(["path", "problem", "size_bytes"]).to_batches(max_chunksize=BATCH_ROWS):
        for path, problem, size in zip(*batch.to_pydict().values(), strict=True):
            pure = PurePosixPath(path)
            if path <= last or pure.is_absolute() or ".." in pure.parts or str(pure) != path:
                raise DataError(
                    "the index has paths that are not sorted or lead out of the source folder: build it again"
                )
            last = path
            yield path, problem, size
