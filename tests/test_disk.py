"""A disk that fails ends a command with 74 after a few tries; nothing is judged or deleted for it."""

from __future__ import annotations

import errno
import functools
import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors import SafetensorError
from torch._utils import ExceptionWrapper

from data_prep import prepare
from data_prep.shard_work import checksum
from medcls.cli.command_line import _explain
from medcls.data.manifest import read_table, write_table
from medcls.data.store import Store
from medcls.disk import (
    check_disk,
    describe_failure,
    describe_unwritten,
    find_disk_failure,
    is_disk_failure,
    read_again,
)
from medcls.errors import DataError, ImageRefusedError, MedclsError, ReadError, WriteError
from medcls.files import LEDGER, read_json, read_json_lines, sha256_file, write_json
from medcls.imaging.catalog import build_index
from medcls.imaging.image import is_dicom
from medcls.imaging.source import list_files
from medcls.imaging.worker import run_limited
from medcls.runs import model_file as checkpoint
from medcls.runs.model_file import read_card
from tests.failing_disk import Disk

FAILURES = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT]


@pytest.mark.parametrize("number", FAILURES)
def test_failure_is_the_disks(number: int) -> None:
    assert is_disk_failure(OSError(number, "x"))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "x"),
        PermissionError(errno.EACCES, "x"),
        OSError(errno.EINVAL, "a seek before the beginning, as a false length in a file asks for"),
        OSError("image file is truncated"),
        ValueError("x"),
    ],
)
def test_what_a_file_or_a_library_is_to_blame_for_is_not_the_disks(error: Exception) -> None:
    assert not is_disk_failure(error)


def test_failure_is_found_behind_the_error_that_a_reader_made_of_it() -> None:
    failure, refusal = OSError(errno.EIO, "Input/output error"), ImageRefusedError("truncated")
    refusal.__cause__ = failure
    assert find_disk_failure(refusal) is failure
    assert find_disk_failure(ImageRefusedError("truncated")) is None


def test_reading_is_tried_again_with_pauses_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("medcls.disk.time.sleep", pauses.append)

    def fail(times: int) -> Callable[[], str]:
        left = [None] * times

        def read() -> str:
            if left:
                left.pop()
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return "content"

        return read

    assert read_again(fail(3), "x") == "content"
    assert pauses == [0.1, 0.5, 2.0]
    with pytest.raises(ReadError, match=r"cannot read x \(Stale file handle, 4 times\): repair the disk"):
        read_again(fail(4), "x")


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("number", FAILURES)
@pytest.mark.parametrize("read", [read_json, read_json_lines, sha256_file, read_table])
def test_file_on_a_failing_disk_is_neither_missing_nor_damaged(
    tmp_path: Path, number: int, stale: bool, read: Callable[[Path], Any], no_pauses: None
) -> None:
    path = tmp_path / "file"
    if read is read_table:
        write_table(path, pa.table({"a": [1]}))
    else:
        path.write_text('{"a": 1}\n')
    expected = read(path)
    if read is not read_table or stale:  # Arrow opens files itself
        failing = Disk(tmp_path, unreadable=lambda _: True, error=number, stale=stale)
        with failing, pytest.raises((ReadError, OSError)) as caught:
            read(path)
        assert find_disk_failure(caught.value)
    with Disk(tmp_path, unreadable=lambda _: True, error=number, stale=stale, times=0 if read is read_table else 3):
        assert read(path) == expected


def test_library_that_names_no_cause_is_not_believed(tmp_path: Path, no_pauses: None) -> None:
    (tmp_path / "file").write_bytes(b"x")
    check_disk(tmp_path / "file", ValueError("damaged"))
    check_disk(tmp_path / "absent", ValueError("damaged"))
    with Disk(tmp_path, unreadable=lambda _: True), pytest.raises(ReadError, match="Input/output error"):
        check_disk(tmp_path / "file", ValueError("damaged"))


def test_model_file_on_a_failing_disk_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    """The library of safetensors says of every failure that the header is invalid."""

    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("Error while deserializing header: MetadataIncompleteBuffer")

    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr(checkpoint, "safe_open", fail)
    with pytest.raises(DataError, match="is not a model file of medcls, or is damaged"):
        read_card(path)
    with Disk(tmp_path, unreadable=lambda _: True), pytest.raises(ReadError, match=f"cannot read {path}"):
        read_card(path)


def test_shard_on_a_failing_disk_is_not_called_damaged(small_store: Store, no_pauses: None) -> None:
    store = Store(small_store.folder)
    failing = Disk(store.folder, unreadable=lambda path: path.name.startswith("shard"))
    with failing, pytest.raises(ReadError, match=r"shard-00000\.npy"):
        store.images(np.arange(2))


def test_folder_on_a_failing_disk_is_not_called_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(ReadError, match="cannot read a folder of source="):
        list(list_files(tmp_path))


@pytest.mark.parametrize("look", [is_dicom, functools.partial(checksum, most_bytes=1000)], ids=["is_dicom", "checksum"])
def test_raw_file_on_a_failing_disk_is_not_judged_and_its_name_is_not_shown(
    tmp_path: Path, look: Callable[[Path], Any], no_pauses: None
) -> None:
    (tmp_path / "Mueller_Anna.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with Disk(tmp_path, unreadable=lambda _: True), pytest.raises(ReadError) as caught:
        look(tmp_path / "Mueller_Anna.dcm")
    assert str(caught.value).startswith("cannot read a file of the source (find SOURCE -type f")
    assert "Mueller" not in str(caught.value)


def test_index_of_a_failing_disk_is_not_written_as_a_list_of_bad_files(source: Path, no_pauses: None) -> None:
    def index() -> Any:
        return build_index(source, list_files(source), workers=0)

    with Disk(source, unreadable=lambda path: path.name == "p01L.png") as disk, pytest.raises(ReadError):
        index()
    assert disk.failed == 4
    whole = index()
    with Disk(source, unreadable=lambda path: path.name == "p01L.png", times=2):
        assert index().equals(whole)


@pytest.mark.parametrize("stale", [False, True])
def test_image_on_a_failing_disk_is_not_quarantined_and_the_next_data_prep_stores_it(
    source: Path, tmp_path: Path, run_prepare: Callable[..., Store], small_store: Store, stale: bool, no_pauses: None
) -> None:
    arguments = ("deidentify=declared", "shard.rows=16")
    failing = Disk(source, unreadable=lambda path: path.name == "p05L.png", error=errno.ESTALE, stale=stale)
    with failing, pytest.raises(ReadError, match="cannot read a file of the source") as caught:
        run_prepare(source, tmp_path / "store", *arguments)
    assert "p05L" not in str(caught.value)
    assert caught.value.exit_code == 74
    store = run_prepare(source, tmp_path / "store", *arguments)
    states = store.info["counts"]["states"]
    assert {name: count for name, count in states.items() if not name.startswith("skipped")} == {"ok": len(small_store)}


@pytest.mark.parametrize("labels", ["labels.csv", None])
def test_image_on_a_failing_disk_is_quarantined_if_that_is_set(
    source: Path, tmp_path: Path, run_prepare: Callable[..., Store], labels: str | None, no_pauses: None
) -> None:
    raw = Path(shutil.copytree(source / "images", tmp_path / "raw")) if labels is None else source
    arguments = ["deidentify=declared", "split.test=0.3", "split.val=0.3"]
    if labels is None:
        for path in sorted(raw.glob("*.png")):
            folder = raw / ("left" if path.stem.endswith("L") else "right")
            folder.mkdir(exist_ok=True)
            path.rename(folder / path.name)
        arguments.append("patients=per_image")
    failing = Disk(raw, unreadable=lambda path: path.name == "p05L.png")
    with failing, pytest.raises(ReadError, match=r"set image\.unreadable=quarantine to continue without such files"):
        run_prepare(raw, tmp_path / "stopped", *arguments, labels=labels)
    failing = Disk(raw, unreadable=lambda path: path.name == "p05L.png")
    with failing:
        store = run_prepare(raw, tmp_path / "store", *arguments, "image.unreadable=quarantine", labels=labels)
    states = store.info["counts"]["states"]
    assert states["quarantined: disk_failure"] == 1
    (entry,) = [row for row in read_table(store.folder / LEDGER).to_pylist() if row["state"] == "quarantined"]
    assert (entry["reason"], entry["detail"]) == (
        "disk_failure",
        "the disk does not give the file (Input/output error)",
    )
    assert entry["path"].endswith("p05L.png")
    whole = run_prepare(raw, tmp_path / "whole", *arguments, labels=labels)
    assert len(store) == len(whole) - 1
    dead = Disk(raw, unreadable=lambda path: path.suffix == ".png")
    with dead, pytest.raises(DataError, match=r"images are unreadable: .*disk_failure"):
        run_prepare(raw, tmp_path / "dead", *arguments, "image.unreadable=quarantine", labels=labels)


def test_too_many_open_files_quarantine_nothing(monkeypatch: pytest.MonkeyPatch, no_pauses: None) -> None:
    def read(_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with pytest.raises(ReadError, match="Too many open files"):
        list(run_limited(read, [1], workers=0, refuse_unreadable=True))


def test_parts_that_cannot_be_read_are_not_decoded_again(
    source: Path, tmp_path: Path, run_prepare: Callable[..., Store], no_pauses: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that was interrupted behind its shards: their parts are taken, or end the next call."""

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder, name = tmp_path / "store", "shard.rows=16"
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "assemble_store", fail)
        with pytest.raises(KeyboardInterrupt):
            run_prepare(source, folder, name)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert len(before) == 1 + 3 + 3 * 3
    failing = Disk(folder, unreadable=lambda path: path.name == "00001.json")
    with failing as disk, pytest.raises(ReadError, match=r"cannot read .*parts/00001\.json"):
        run_prepare(source, folder, name)
    assert disk.steps == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert len(run_prepare(source, folder, name)) == 48


# --- a limit that was reached, which is not the disk's


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.EAGAIN, "ulimit -u"),
        (errno.ENOMEM, "ulimit -v"),
    ],
)
def test_reached_limit_is_told_with_its_setting(
    number: int, advice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = OSError(number, os.strerror(number), str(tmp_path))
    for said in (str(describe_failure(error, "x")), str(describe_unwritten(error, "x"))):
        assert os.strerror(number) in said
        assert advice in said
        assert "lower workers=" in said
        assert "repair the disk" not in said
        assert "free or change" not in said
    assert _explain("command", error) == 74
    assert re.search(
        rf"^command: cannot read or write .*; raise .*{advice}.*, or lower workers=", capsys.readouterr().err
    )


def test_too_many_open_files_are_no_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medcls.disk.READ_PAUSES", [0.0])
    (tmp_path / "a.json").write_text("{}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(ReadError) as read:
            read_json(tmp_path / "a.json")
        with pytest.raises(WriteError) as written:
            write_json(tmp_path / "b.json", {})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for caught in (read, written):
        assert "Too many open files" in str(caught.value)
        assert "raise the limit of open files of a process (ulimit -n)" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 8 failed"),
        SafetensorError("Error while deserializing: I/O error: Cannot allocate memory (os error 12)"),
    ],
)
def test_missing_memory_is_no_damaged_file(error: Exception, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"sound")
    with pytest.raises(MedclsError, match=r"no memory to read .*a\.npy: raise the limit of memory") as caught:
        check_disk(tmp_path / "a.npy", error)
    assert type(caught.value) is MedclsError


def test_shard_that_there_is_no_memory_to_map_is_not_called_damaged(
    small_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    store = Store(small_store.folder)
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(MedclsError, match="no memory to read") as caught:
        store.image(0)
    assert not isinstance(caught.value, DataError)


def test_missing_memory_ends_a_command_with_one_line_and_70(capsys: pytest.CaptureFixture[str]) -> None:
    assert _explain("command", MemoryError("Unable to allocate 3.00 GiB")) == 70
    said = capsys.readouterr().err
    assert said.startswith("command: no memory (Unable to allocate 3.00 GiB): raise the limit of memory")
    assert said.count("\n") == 1


def test_error_of_a_loading_process_is_told_without_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ReadError("cannot read shard-00000.npy (Input/output error): repair the disk")
    except ReadError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(ReadError) as caught:
        wrapped.reraise()
    assert _explain("command", caught.value) == 74
    said = capsys.readouterr().err
    assert said == "command: cannot read shard-00000.npy (Input/output error): repair the disk\n"
