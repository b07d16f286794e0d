"""The manifest: one row per stored image with its patient, its place in a shard, and its checked attributes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from medcls.disk import check_disk
from medcls.errors import DataError, MissingInputError
from medcls.files import atomic_file

_FIELDS: list[tuple[str, pa.DataType]] = [
    ("image_id", pa.string()),
    ("patient_id", pa.string()),
    ("study_id", pa.string()),
    ("series_id", pa.string()),
    ("shard", pa.int32()),
    ("row", pa.int64()),
    ("source_height", pa.int32()),
    ("source_width", pa.int32()),
    # Of the region that was taken of the file; null = the whole image.
    ("roi_height", pa.int32()),
    ("roi_width", pa.int32()),
    ("valid_y", pa.int32()),
    ("valid_x", pa.int32()),
    ("valid_height", pa.int32()),
    ("valid_width", pa.int32()),
    ("spacing_row_mm", pa.float64()),
    ("spacing_column_mm", pa.float64()),
    ("spacing_source", pa.string()),
    ("modality", pa.string()),
    ("photometric", pa.string()),
    ("body_part", pa.string()),
    ("side", pa.string()),
    ("sex", pa.string()),
    ("age_years", pa.float64()),
    ("manufacturer", pa.string()),
    ("pixel_sha256", pa.string()),
    ("pixel_dhash", pa.binary(32)),
    ("declared_sha256", pa.string()),
    ("value_low", pa.float64()),
    ("value_high", pa.float64()),
    ("value_levels", pa.int32()),
    ("value_scaling", pa.string()),
    ("stored_levels", pa.int32()),
    ("stored_high", pa.float64()),
    ("intent", pa.string()),
]
COLUMNS = pa.schema(_FIELDS)
"""What every manifest has; those from value_low on came after version 0.2.0 and are null for images stored before.

value_low, value_high, value_levels, value_scaling: imaging.grey_levels.SourceValues of the file. stored_levels,
stored_high: distinct values and the largest value of the stored pixels outside the frame's padding. intent:
terms.name_intent.
"""

_VOLUME_FIELDS: list[tuple[str, pa.DataType]] = [
    ("source_depth", pa.int32()),
    ("valid_z", pa.int32()),
    ("valid_depth", pa.int32()),
    ("spacing_slice_mm", pa.float64()),
    ("affine", pa.list_(pa.float64(), 16)),
    ("source_files", pa.int32()),
    ("slices_removed", pa.int32()),
    ("notes", pa.string()),
    ("may_show_face", pa.bool_()),
]
VOLUME_COLUMNS = pa.schema(_VOLUME_FIELDS)
"""What volumes have beside COLUMNS: affine (4 x 4 by rows) takes (d, h, w, 1) of the stored voxels to patient mm."""


def build_table(rows: Sequence[Mapping[str, Any]], *, extra: Iterable[str] = (), volumes: bool = False) -> pa.Table:
    """Return the manifest of `rows`, in their order, with the string columns `extra` appended."""
    schema = pa.schema([*COLUMNS, *(VOLUME_COLUMNS if volumes else ())])
    for name in extra:
        schema = schema.append(pa.field(name, pa.string()))
    return pa.Table.from_pylist(list(rows), schema=schema)


def write_table(path: Path, table: pa.Table, *, apart: bool = False) -> str:
    """Write a parquet file atomically, and return the SHA-256 of what was written; the same table gives the same bytes.

    Args:
        path: The file.
        table: Its content.
        apart: As of `atomic_file`.
    """
    with atomic_file(path, apart=apart) as file:
        hashing = _HashingWriter(file)
        pq.write_table(table, cast(BinaryIO, hashing), compression="zstd", store_schema=False)
    return hashing.digest.hexdigest()


class _HashingWriter(io.RawIOBase):
    """Hands on what is written, and hashes it: the file may be another's by the time that it could be read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return self._file.write(content)


def read_table(path: Path, *, columns: Sequence[str] = ()) -> pa.Table:
    """Return a parquet file's table.

    Args:
        path: The file.
        columns: Columns that must be there.

    Raises:
        MissingInputError: no such file.
        DataError: not parquet, or a column is missing.
    """
    if not path.is_file():
        raise MissingInputError(f"{path} is missing")
    try:
        table = pq.read_table(path, memory_map=False)
        # Arrow trusts names and texts to be UTF-8: without this a damaged one fails wherever it is first looked at.
        names = table.column_names
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise refuse_parquet(path, error) from error
    missing = [name for name in columns if name not in names]
    if missing:
        raise DataError(f"{path}: missing columns {', '.join(missing)}; it has {', '.join(names)}")
    return table


def refuse_parquet(path: Path, error: Exception) -> DataError:
    """Return what is wrong with a parquet file that cannot be read.

    Raises:
        ReadError: The disk has failed, not the file.
    """
    check_disk(path, error)
    return DataError(f"{path} is not a whole parquet file ({' '.join(str(error).split())[:200]}): make it again")


def column_list(table: pa.Table, name: str) -> list[Any]:
    """Return a column as Python values (None where null)."""
    values: list[Any] = table.column(name).to_pylist()
    return values
