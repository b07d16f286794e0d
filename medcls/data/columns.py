"""Read parquet columns as Arrow and numpy: only those requested, without a Python object per row."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medcls.data.manifest import refuse_parquet
from medcls.errors import DataError, MissingInputError

_BATCH = 1 << 14
_BUFFER_BYTES = 1 << 20
_WORDS = 4  # of 64 bits: SHA-256 and the 256-bit difference hash


@dataclass(frozen=True, slots=True)
class Codes:
    """A column of strings that repeat, such as patient_id or a label.

    Attributes:
        values: (N,), int32: of each row its place in `texts`, -1 where null.
        texts: The different strings, in Arrow; each occurs.
    """

    values: NDArray[np.int32]
    texts: pa.StringArray

    def text(self, code: int) -> str:
        """Return the string of a code."""
        return str(self.texts[code].as_py())

    def count(self, chosen: NDArray[np.bool_]) -> int:
        """Return how many different strings the chosen rows (N,) have."""
        seen = np.zeros(len(self.texts) + 1, dtype=np.bool_)
        seen[self.values[chosen]] = True
        return int(seen[:-1].sum())


@dataclass(frozen=True, slots=True)
class Words:
    """A column of 256-bit values, without its empty rows.

    Attributes:
        rows: (n,), int64, ascending: the rows that have a value.
        words: (n, 4), uint64: their values; they sort as their hexadecimal text does.
    """

    rows: NDArray[np.int64]
    words: NDArray[np.uint64]


def read_names(path: Path) -> list[str]:
    """Return the names of a parquet file's columns; raises as read_columns does."""
    with _open(path) as file:
        names: list[str] = file.schema_arrow.names
    return names


def read_columns(path: Path, *names: str, coded: bool = False) -> pa.Table:
    """Return the named columns of a parquet file.

    Args:
        path: The file.
        names: Of the columns.
        coded: Strings come as dictionaries: 4 bytes a row, and each different text once.

    Raises:
        MissingInputError: no such file.
        DataError: not parquet, or a column is missing.
    """
    with _open(path, *names, coded=coded) as file:
        table = file.read(columns=list(names))
        table.validate(full=True)  # Arrow trusts texts to be UTF-8
    return table.unify_dictionaries() if coded else table


def read_codes(path: Path, name: str) -> Codes:
    """Return a column of strings that repeat, coded; raises as read_columns does."""
    return code_column(read_columns(path, name, coded=True).column(name))


def code_column(column: pa.ChunkedArray[Any]) -> Codes:
    """Return a column of strings, or of strings in a dictionary, coded."""
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    array: Any = coded.unify_dictionaries().combine_chunks()
    values = array.indices.fill_null(-1).to_numpy()
    used = np.flatnonzero(np.bincount(values + 1, minlength=len(array.dictionary) + 1)[1:])
    place = np.full(len(array.dictionary) + 1, -1, np.int32)  # the last one is that of null
    place[used] = np.arange(len(used))
    return Codes(place[values], array.dictionary.take(pa.array(used, pa.int64())))


def read_words(path: Path, name: str) -> Words:
    """Return a column of 256-bit values, 64 hexadecimal digits or 32 bytes each; raises as read_columns does."""
    count, start = 0, 0
    with _open(path, name) as file:
        rows = np.empty(file.metadata.num_rows, np.int64)
        words = np.empty((len(rows), _WORDS), np.uint64)
        for batch in file.iter_batches(_BATCH, columns=[name]):
            column = batch.column(0)
            here = start + np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
            rows[count : count + len(here)] = here
            words[count : count + len(here)] = _parse_words(column.drop_null())
            count, start = count + len(here), start + len(batch)
    return Words(rows[:count], words[:count])


def _parse_words(column: pa.Array[Any]) -> NDArray[np.uint64]:
    width = 64 if pa.types.is_string(column.type) else 32
    fixed: Any = column.cast(pa.binary()).cast(pa.binary(width))
    data = np.frombuffer(fixed.buffers()[1], np.uint8, width * len(fixed), width * fixed.offset).reshape(-1, width)
    if width == 64:
        digits = (data & 15) + np.uint8(9) * (data >> 6)  # ASCII of 0-9 a-f
        data = np.ascontiguousarray(digits[:, ::2] << 4 | digits[:, 1::2], np.uint8)
    return data.view(">u8").astype(np.uint64)


def find_repeats(values: Words) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows whose value another row has too, ascending, and a code of each one's value."""
    # Values that stand alone, most of all, are known by their first word: 8 bytes of 32 are sorted.
    first = np.sort(values.words[:, 0])
    repeated = np.unique(first[1:][first[1:] == first[:-1]])
    place = np.searchsorted(repeated, values.words[:, 0])
    place[place == len(repeated)] = 0
    candidates = np.flatnonzero(repeated[place] == values.words[:, 0]) if len(repeated) else place[:0]
    _, codes, counts = np.unique(values.words[candidates], axis=0, return_inverse=True, return_counts=True)
    several = counts[codes] > 1
    return values.rows[candidates[several]], codes[several]


def compute_checksum(path: Path, name: str) -> str:
    """Return the SHA-256 of a string column's values and their order, whatever the file's row groups.

    Raises:
        MissingInputError, DataError: as read_columns.
    """
    lengths, texts = hashlib.sha256(), hashlib.sha256()
    with _open(path, name) as file:
        for batch in file.iter_batches(_BATCH, columns=[name]):
            column: Any = batch.column(0)
            lengths.update(pc.binary_length(column).fill_null(-1).to_numpy().tobytes())
            texts.update("".join(column.drop_null().to_pylist()).encode())
    return lengths.hexdigest() + texts.hexdigest()


@contextlib.contextmanager
def _open(path: Path, *names: str, coded: bool = False) -> Iterator[pq.ParquetFile]:
    if not path.is_file():
        raise MissingInputError(f"{path} is missing")
    try:
        with pq.ParquetFile(
            path, buffer_size=_BUFFER_BYTES, pre_buffer=False, read_dictionary=list(names) if coded else []
        ) as file:
            there = file.schema_arrow.names
            missing = [name for name in names if name not in there]
            if missing:
                raise DataError(f"{path}: missing columns {', '.join(missing)}; it has {', '.join(there)}")
            yield file
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        # KeyError: a column to be coded that is not there.
        raise refuse_parquet(path, error) from error
