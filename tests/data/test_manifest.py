"""Tables come back as written, the same bytes each time; what is no table is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medcls.data.columns import read_columns
from medcls.data.manifest import COLUMNS, build_table, column_list, read_table, write_table
from medcls.errors import DataError, MissingInputError
from medcls.evaluate.score_file import read_score_file


def row(**changes: object) -> dict[str, object]:
    return {"image_id": "a", "patient_id": "p", "shard": 0, "row": 0, "pixel_dhash": bytes(32)} | changes


def test_a_manifest_has_the_contracts_columns_and_the_users() -> None:
    table = build_table([row(site="north"), row(image_id="b", age_years=61.5)], extra=["site"])
    assert table.column_names == [*COLUMNS.names, "site"]
    assert column_list(table, "site") == ["north", None]
    assert column_list(table, "age_years") == [None, 61.5]
    assert column_list(table, "pixel_dhash") == [bytes(32)] * 2


def test_a_hash_of_another_length_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid):
        build_table([row(pixel_dhash=bytes(8))])


def test_the_same_table_gives_the_same_bytes_and_comes_back(tmp_path: Path) -> None:
    table = build_table([row(), row(image_id="b")])
    write_table(tmp_path / "a.parquet", table)
    write_table(tmp_path / "b.parquet", build_table([row(), row(image_id="b")]))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert read_table(tmp_path / "a.parquet").to_pylist() == table.to_pylist()


def test_an_empty_table_comes_back(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", build_table([]))
    assert read_table(tmp_path / "a.parquet", columns=("image_id",)).num_rows == 0


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"a\.parquet is missing"):
        read_table(tmp_path / "a.parquet")
    write_table(tmp_path / "a.parquet", pa.table({"x": [1]}))
    with pytest.raises(DataError, match="missing columns y; it has x"):
        read_table(tmp_path / "a.parquet", columns=("x", "y"))


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_half_a_table_is_a_data_error(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, build_table([row()]))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="not a whole parquet file"):
        read_table(path)


READERS = {
    "table": read_table,
    "columns": lambda path: read_columns(path, "pixel_md5"),
    "scores": lambda path: read_score_file(path, name="predictions"),
}


@pytest.mark.parametrize("damaged", [b"pixel_md5", b"a text of the first row"])
@pytest.mark.parametrize("reader", READERS)
def test_a_name_or_a_text_that_is_not_utf_8_is_a_data_error(damaged: bytes, reader: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.table({"pixel_md5": ["a text of the first row", "b"]}), path,
        compression="none", use_dictionary=False, write_statistics=False, store_schema=False,
    )  # fmt: skip
    content = path.read_bytes()
    assert damaged in content
    path.write_bytes(content.replace(damaged, b"\xe5" + damaged[1:]))
    with pytest.raises(DataError, match=r"not a whole [Pp]arquet file"):
        READERS[reader](path)
