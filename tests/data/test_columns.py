"""Columns come as numbers: codes of strings, words of checksums; whatever the file's row groups."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medcls.data.columns import (
    code_column,
    compute_checksum,
    find_repeats,
    read_codes,
    read_columns,
    read_names,
    read_words,
)
from medcls.errors import DataError, MissingInputError

COUNT = 70_001  # more than one batch of 16,384 rows


def write(path: Path, *, group: int = 10_000, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=group, store_schema=False)
    return path


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patients of two rows each, checksums of which every 100th is the same, a hash missing in every 7th row."""
    rows = range(COUNT)
    return write(
        tmp_path_factory.mktemp("columns") / "table.parquet",
        patient=[f"patient{row // 2}" for row in rows],
        label=[None if row % 3 == 0 else "ab"[row % 2] for row in rows],
        checksum=[digest(0 if row % 100 == 0 else row) for row in rows],
        hash=pa.array([None if row % 7 == 0 else bytes.fromhex(digest(row)) for row in rows], pa.binary(32)),
    )


def test_strings_become_codes_and_back(path: Path) -> None:
    codes = read_codes(path, "patient")
    assert (len(codes.values), len(codes.texts), codes.values.dtype) == (COUNT, 35_001, np.int32)
    assert [codes.text(code) for code in codes.values[:5]] == [
        "patient0",
        "patient0",
        "patient1",
        "patient1",
        "patient2",
    ]
    table = read_columns(path, "patient")
    assert codes.texts.take(pa.array(codes.values)).equals(table.column("patient").combine_chunks())


def test_null_has_no_code_and_only_what_occurs_has_one(path: Path) -> None:
    labels = read_columns(path, "label", coded=True).column("label")
    assert code_column(labels).values[:3].tolist() == [-1, 0, 1]
    taken = code_column(labels.take(pa.array([3, 4, 4, 8])))
    assert (taken.values.tolist(), taken.texts.to_pylist()) == ([-1, 0, 0, 0], ["a"])
    assert code_column(pa.chunked_array([pa.array([None, None], pa.string())])).values.tolist() == [-1, -1]
    assert len(code_column(pa.chunked_array([], pa.string())).values) == 0


def test_different_strings_of_chosen_rows_are_counted(path: Path) -> None:
    codes = read_codes(path, "label")
    assert codes.count(np.arange(COUNT) < 3) == 2
    assert codes.count(np.arange(COUNT) == 0) == 0


def test_words_sort_as_their_text_and_skip_empty_rows(path: Path) -> None:
    checksums = read_words(path, "checksum")
    assert "".join(f"{word:016x}" for word in checksums.words[5].tolist()) == digest(5)
    texts = read_columns(path, "checksum").column("checksum").to_pylist()
    order = np.lexsort(checksums.words.T[::-1])
    assert [texts[row] for row in order[:50]] == sorted(texts)[:50]
    hashes = read_words(path, "hash")
    assert hashes.rows.tolist() == [row for row in range(COUNT) if row % 7]
    place = np.flatnonzero(hashes.rows == 69_999)[0]
    assert hashes.words[place].astype(">u8").tobytes().hex() == digest(69_999)


def test_repeats_are_found_by_their_whole_value(path: Path) -> None:
    rows, values = find_repeats(read_words(path, "checksum"))
    assert rows.tolist() == list(range(0, COUNT, 100))
    assert len(set(values.tolist())) == 1


def test_values_that_share_their_first_word_alone_are_no_repeats(tmp_path: Path) -> None:
    texts = ["0" * 64, "0" * 63 + "1", "f" * 64, "0" * 64]
    rows, values = find_repeats(read_words(write(tmp_path / "t.parquet", checksum=texts), "checksum"))
    assert rows.tolist() == [0, 3]
    assert values[0] == values[1]


def test_no_rows_have_no_words_and_no_repeats(tmp_path: Path) -> None:
    empty = write(tmp_path / "t.parquet", checksum=pa.array([], pa.string()))
    assert read_words(empty, "checksum").words.shape == (0, 4)
    assert find_repeats(read_words(empty, "checksum"))[0].tolist() == []


def test_the_checksum_is_of_values_and_order_and_not_of_row_groups(tmp_path: Path) -> None:
    texts = [f"i{row}" for row in range(COUNT)]
    first, *others = (
        compute_checksum(write(tmp_path / f"{n}.parquet", group=group, image_id=values), "image_id")
        for n, (group, values) in enumerate(
            [
                (COUNT, texts),
                (999, texts),
                (COUNT, [texts[1], texts[0], *texts[2:]]),
                (COUNT, texts[:-1]),
                (COUNT, ["i", "0i1", *texts[2:]]),  # the same characters, cut elsewhere
            ]
        )
    )
    assert [other == first for other in others] == [True, False, False, False]


def test_what_cannot_be_read_is_said(tmp_path: Path, path: Path) -> None:
    assert read_names(path) == ["patient", "label", "checksum", "hash"]
    with pytest.raises(MissingInputError, match="is missing"):
        read_columns(tmp_path / "none.parquet", "patient")
    with pytest.raises(DataError, match="missing columns age; it has patient, label"):
        read_columns(path, "age", "patient")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="is not a whole parquet file"):
        read_words(broken, "checksum")
