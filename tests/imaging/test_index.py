"""The index: every file once, the same for any number of workers, private on disk, refused when stale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medcls.errors import DataError, ImageRefusedError, MissingInputError
from medcls.imaging import catalog as index
from medcls.imaging.catalog import INDEX, build_index, instances_of, read_index, scan_batches, write_index
from medcls.imaging.instance import Instance
from medcls.imaging.scan_file import scan_file
from medcls.imaging.source import list_files


@pytest.fixture
def source(tmp_path: Path, write_dicom: Callable[..., Path]) -> Path:
    """Five DICOM files, a truncated one, a text, a hidden file and a link."""
    folder = tmp_path / "source"
    (folder / "a").mkdir(parents=True)
    for number in range(6):
        path = write_dicom(np.zeros((4, 4), np.uint16), PatientID=f"P{number}", ImagePositionPatient=[0, 0, number])
        path.rename(folder / "a" / f"{number}")
    (folder / "a" / "5").write_bytes((folder / "a" / "5").read_bytes()[:-3])
    (folder / "notes.txt").write_text("notes")
    (folder / ".hidden").touch()
    (folder / "link").symlink_to("a")
    return folder


def build(source: Path, *, workers: int = 0) -> pa.Table:
    return build_index(source, list_files(source), workers=workers)


def test_every_file_is_there_once_in_order(source: Path) -> None:
    table = build(source)
    assert table.schema.equals(INDEX)
    rows = [(each.path, each.kind, each.problem, each.patient_id) for each in instances_of(table)]
    assert rows == [
        (".hidden", "other", "hidden", ""),
        *((f"a/{number}", "dicom", "", f"P{number}") for number in range(5)),
        ("a/5", "dicom", "truncated", "P5"),
        ("link", "other", "symbolic_link", ""),
        ("notes.txt", "other", "", ""),
    ]


def test_instances_come_back_as_they_were_scanned(source: Path) -> None:
    scanned = [scan_file(source / f"a/{n}", name=f"a/{n}") for n in range(6)]
    table = build(source)
    assert list(instances_of(table.slice(1, 6))) == scanned
    assert list(instances_of(table.take(pa.array([6, 1])))) == [scanned[5], scanned[0]]
    assert list(instances_of(table.slice(0, 0))) == []


def test_it_is_the_same_for_any_number_of_workers_and_size_of_batch(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = build(source)
    assert build(source, workers=2).equals(table)
    monkeypatch.setattr(index, "BATCH_ROWS", 2)
    batches = list(scan_batches(source, list_files(source), workers=0))
    assert [batch.num_rows for batch in batches] == [2, 2, 2, 2, 1]
    assert pa.Table.from_batches(batches).equals(table)


def test_files_are_taken_as_they_are_needed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "BATCH_ROWS", 2)
    taken = []
    files = ((taken.append(path) or path, skip) for path, skip in list_files(source))
    next(scan_batches(source, files, workers=0))
    assert len(taken) <= 3


@pytest.mark.parametrize("names", [["b", "a"], ["a", "a"]])
def test_unsorted_files_are_a_programming_error(source: Path, names: list[str]) -> None:
    with pytest.raises(ValueError, match="sorted order"):
        build_index(source, [(name, "hidden") for name in names], workers=0)


def test_a_file_that_kills_its_worker_costs_its_own_row(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(function: Any, items: Iterable[Any], **_: Any) -> Iterator[Any]:
        for item in items:
            yield ImageRefusedError("crashed") if item[0] == "a/2" else function(item)

    monkeypatch.setattr(index, "run_limited", run)
    found = {each.path: each for each in instances_of(build(source))}
    size = (source / "a/2").stat().st_size
    assert found["a/2"] == Instance(path="a/2", kind="other", size_bytes=size, problem="crashed")
    assert (found["a/3"].patient_id, found["a/3"].problem) == ("P3", "")


def test_it_comes_back_from_a_file_that_only_its_owner_reads(source: Path, tmp_path: Path) -> None:
    table, path = build(source), tmp_path / "out" / "index.parquet"
    assert write_index(path, table.to_batches(max_chunksize=2)) == 9
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_index(path, source=source).equals(table)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda source: (source / "new").touch(), "1 new files"),
        (lambda source: (source / "a/0").unlink(), "1 missing files"),
        (lambda source: (source / "notes.txt").write_text("longer notes"), "1 changed files"),
        (lambda source: (source / "notes.txt").rename(source / "z.txt"), "1 missing files, 1 new files"),
        (lambda source: (source / "link").unlink() or (source / "link").touch(), None),
    ],
)
def test_a_stale_index_is_refused(
    source: Path, tmp_path: Path, change: Callable[[Path], None], found: str | None
) -> None:
    path = tmp_path / "index.parquet"
    write_index(path, build(source).to_batches())
    change(source)
    with pytest.raises(DataError, match=f"is stale, {found or '1 changed files'}: .*data_prep.index source="):
        read_index(path, source=source)


def test_what_is_no_index_is_refused(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.parquet"
    with pytest.raises(MissingInputError, match=r"python -m data_prep\.index source="):
        read_index(path, source=source)
    path.write_bytes(b"not parquet")
    with pytest.raises(DataError, match="not a Parquet file"):
        read_index(path, source=source)
    pq.write_table(build(source), path)
    with pytest.raises(DataError, match="not an index of this version"):
        read_index(path, source=source)


@pytest.mark.parametrize("evil", ["../outside", "/etc/passwd", "a/../../x", "a//5"])
def test_an_index_whose_paths_leave_the_source_is_refused(source: Path, tmp_path: Path, evil: str) -> None:
    table = build(source)
    paths = table.column("path").to_pylist()
    paths[paths.index("a/0")] = evil
    edited = table.set_column(0, INDEX.field("path"), pa.array(paths)).sort_by("path")
    write_index(tmp_path / "i.parquet", edited.combine_chunks().to_batches())
    with pytest.raises(DataError, match="lead out of the source folder"):
        read_index(tmp_path / "i.parquet", source=source)
