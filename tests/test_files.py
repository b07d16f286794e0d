"""A reader sees the old file or the new one; what cannot be written ends with a WriteError."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from medcls import files
from medcls.errors import BusyError, ConfigError, DataError, MissingInputError, WriteError
from medcls.files import (
    HOLDER,
    append_json_line,
    atomic_file,
    read_json,
    read_json_lines,
    sha256_file,
    sha256_json,
    write_bytes,
    write_json,
)
from medcls.locks import lock_folder
from tests.failing_disk import Disk


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "out.bin"
    with atomic_file(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert names(path.parent) == ["out.bin"]


@pytest.mark.parametrize("error", [RuntimeError("defect"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_failure_leaves_the_old_file_and_no_other(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    expected = WriteError if isinstance(error, OSError) else type(error)

    def fail() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(expected):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_no_space_at_any_step_leaves_the_old_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(WriteError, match=r"cannot write .*out\.bin: No space left on device; free or change"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_device_that_is_full_is_a_write_error() -> None:
    with pytest.raises(WriteError, match="No space left on device"):
        append_json_line(Path("/dev/full"), {"a": 1})


def test_a_folder_that_is_a_file_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot write"):
        write_bytes(tmp_path / "file" / "out", b"")
    with pytest.raises(WriteError, match="cannot write"):
        append_json_line(tmp_path / "absent" / "log", {})


def test_outputs_follow_the_umask_and_private_ones_do_not(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "open", b"")
        write_bytes(tmp_path / "private", b"", private=True)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"open": 0o640, "private": 0o600}


def test_data_is_synced_before_the_rename_and_the_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def log_fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "data")
        fsync(descriptor)

    def log_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(Path, "replace", log_replace)
    write_bytes(tmp_path / "out", b"x")
    assert events == ["data", "rename", "folder"]


def test_json_is_sorted_utf8_and_comes_back(tmp_path: Path) -> None:
    content = {"z": [1, 2.5, None], "ä": {"b": True}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    checksum = sha256_json(content).encode()
    assert (tmp_path / "a.json").read_bytes() == (
        b'{\n  "content_sha256": "' + checksum + b'",\n'
        b'  "z": [\n    1,\n    2.5,\n    null\n  ],\n  "\xc3\xa4": {\n    "b": true\n  }\n}\n'
    )


def test_json_refuses_what_other_readers_would_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[1]", b""])
def test_what_is_no_json_object_is_a_data_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json"):
        read_json(path)


def test_json_lines_are_appended(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert read_json_lines(log) == []
    append_json_line(log, {"b": 1, "a": "x\u2028y"})
    append_json_line(log, {"c": 2})
    assert read_json_lines(log) == [{"a": "x\u2028y", "b": 1}, {"c": 2}]
    assert len(log.read_text().split("\n")) == 3


def test_a_broken_json_line_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"b": \n{"a": 1}\n')
    with pytest.raises(DataError, match=r"log\.jsonl has a line that is not JSON"):
        read_json_lines(log)


@pytest.mark.parametrize("rest", [b'{"b": ', b'{"b": 2}', b"\xc3"])
def test_last_json_line_that_was_broken_off_was_never_written(tmp_path: Path, rest: bytes) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"a": 1}\n' + rest)
    whole = [{"b": 2}] if rest.endswith(b"}") else []
    assert read_json_lines(log) == [{"a": 1}, *whole]
    append_json_line(log, {"c": 3})
    assert read_json_lines(log) == [{"a": 1}, *whole, {"c": 3}]
    assert log.read_bytes().endswith(b'\n{"c": 3}\n')


@pytest.mark.parametrize("end", [b"\x0b", b"\x8a", b"J"])
def test_last_json_line_whose_end_was_damaged_is_not_lost(end: bytes, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"a": 1}\n{"b": 2}' + end)
    with pytest.raises(DataError, match=r"log\.jsonl has a line that is not JSON"):
        read_json_lines(log)


def test_json_line_that_fails_at_any_step_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    append_json_line(log, {"a": 1})
    for piece in (0, 3):
        for step in itertools.count(1):
            failing = Disk(tmp_path, fail_at=step, error=errno.ENOSPC, piece=piece)
            with failing as disk, contextlib.suppress(WriteError):
                append_json_line(log, {"b": 2})
            if not disk.failed:
                break
            assert log.read_bytes() == b'{"a": 1}\n'
        assert step > (3 if piece else 2)
        assert read_json_lines(log) == [{"a": 1}, {"b": 2}]
        log.write_bytes(b'{"a": 1}\n')


def test_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256_file(path) == hashlib.sha256(b"abc").hexdigest()
    assert sha256_json({"b": 1, "a": "ä"}) == hashlib.sha256('{"a":"ä","b":1}'.encode()).hexdigest()
    assert sha256_json({"b": 1, "a": 2}) == sha256_json(json.loads('{"a": 2, "b": 1}'))


def test_missing_files_are_missing_input(tmp_path: Path) -> None:
    for read in (read_json, sha256_file):
        with pytest.raises(MissingInputError, match="nothing is missing"):
            read(tmp_path / "nothing")


def test_the_names_of_the_contract() -> None:
    assert (files.DATASET, files.MANIFEST, files.LABELS, files.LEDGER) == (
        "dataset.json",
        "manifest.parquet",
        "labels.parquet",
        "ledger.parquet",
    )
    assert (files.MODEL, files.PATIENTS, files.METRICS_LOG) == (
        "model.safetensors",
        "patients.parquet",
        "metrics.jsonl",
    )


def test_a_device_or_folder_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="it is a folder or a device"):
        write_bytes(Path("/dev/null"), b"x")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(WriteError, match="it is a folder or a device"):
        write_bytes(tmp_path, b"x")


def test_a_locked_folder_is_busy_until_it_is_released(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with lock_folder(folder):
        (folder / "kept").write_text("")
        with pytest.raises(BusyError, match="in use by another process") as caught, lock_folder(folder):
            pass
        assert caught.value.exit_code == 75
    with lock_folder(folder):
        pass
    assert (folder / "kept").is_file()


def test_a_lock_leaves_no_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"), lock_folder(tmp_path / "run"):
        raise ValueError("boom")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"), lock_folder(tmp_path / "file"):
        pass


HOLDING = """
import sys, time
from pathlib import Path
from medcls.locks import lock_folder
with lock_folder(Path(sys.argv[1]), command="medcls.train"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_holder_is_named_until_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        named = (
            rf"run is in use by another process: medcls.train, process {process.pid} on \S+ since 20\S+ \S+ UTC: wait"
        )
        with pytest.raises(BusyError, match=named) as caught, lock_folder(folder):
            pass
        assert (caught.value.exit_code, "\n" in str(caught.value)) == (75, False)
        process.kill()
    # The name is still there; what it held is free, and the next holder writes its own.
    assert (folder / HOLDER).is_file()
    with (
        lock_folder(folder, command="medcls.pretrain"),
        pytest.raises(BusyError, match=f"medcls.pretrain, process {os.getpid()} on"),
        lock_folder(folder),
    ):
        pass
    assert not folder.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", '{"pid": "x\\n"}', '{"pid": [], "host": 1, "started": 2, "command": 3}', None]
)
def test_record_that_is_none_names_nobody(tmp_path: Path, content: str | None) -> None:
    with lock_folder(tmp_path):
        (tmp_path / "secret").write_text('{"pid": 1, "host": "h", "started": "s", "command": "c"}')
        if content is None:
            (tmp_path / HOLDER).symlink_to(tmp_path / "secret")
        else:
            (tmp_path / HOLDER).write_text(content)
        with pytest.raises(BusyError, match="is in use by another process: wait for it"), lock_folder(tmp_path):
            pass


def test_folder_that_cannot_be_written_is_held_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("medcls.files.tempfile.mkstemp", refuse)
    with lock_folder(tmp_path, command="medcls.train"):
        assert [*tmp_path.iterdir()] == []
        with pytest.raises(BusyError, match="by another process: wait"), lock_folder(tmp_path):
            pass
