"""What two commands may write is held by one of them; what names persons is written where only its owner sees it."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medcls import locks
from medcls.errors import BusyError, WriteError
from medcls.files import PRIVATE, TEMPORARY, atomic_file, clear_private, delete_partial, write_bytes
from medcls.identity import write_key
from medcls.locks import lock_file, lock_folder, lock_folders
from tests.failing_disk import Disk, KilledError


def list_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_second_holder_waits_with_a_line_and_takes_the_folder_when_it_is_free(tmp_path: Path) -> None:
    folder, first, lines = tmp_path / "run", contextlib.ExitStack(), []
    first.enter_context(lock_folder(folder, command="medcls.evaluate"))

    def release(line: str) -> None:
        lines.append(line)
        first.close()

    with lock_folder(folder, wait_seconds=60, say=release):
        (line,) = lines
        assert line.startswith(f"waiting for {folder}, which is in use by another process: medcls.evaluate, process ")
        with pytest.raises(BusyError), lock_folder(folder):
            pass


def test_wait_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.01)
    second = lock_folder(tmp_path / "run", wait_seconds=0.05)
    with lock_folder(tmp_path / "run"), pytest.raises(BusyError, match="is in use by another process: wait"), second:
        pass


@pytest.mark.parametrize("again", [False, True])
def test_folder_that_is_removed_before_it_is_locked_is_made_and_locked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """The first holder removes its empty folder; a lock on what is removed would hold nobody."""
    folder, real = tmp_path / "run", fcntl.flock

    def flock(descriptor: int, kind: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        folder.rmdir()
        if again:
            folder.mkdir()
        real(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock_folder(folder):
        assert folder.is_dir()
        with pytest.raises(BusyError), lock_folder(folder):
            pass


def test_several_folders_are_locked_in_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two evaluations that compare the same two runs would else wait for each other."""
    taken: list[str] = []
    original = locks.lock_folder
    monkeypatch.setattr(locks, "lock_folder", lambda f, **named: (taken.append(f.name), original(f, **named))[1])
    for names in (("b", "a"), ("a", "b", "a")):
        with lock_folders([tmp_path / name for name in names], command="", wait_seconds=0, say=print):
            pass
    assert taken == ["a", "b"] * 2


def test_file_is_written_by_one_command_at_a_time(tmp_path: Path) -> None:
    with lock_file(tmp_path / "out.csv"):
        said = r"out\.csv is going to be written by another process: wait"
        with pytest.raises(BusyError, match=said), lock_file(tmp_path / "out.csv"):
            pass
        with lock_file(tmp_path / "other.csv"):
            write_bytes(tmp_path / "other.csv", b"x", apart=True)
        write_bytes(tmp_path / "out.csv", b"y", apart=True)
    assert list_files(tmp_path) == ["other.csv", "out.csv"]
    assert not (tmp_path / PRIVATE).exists()


def test_commands_that_write_into_one_folder_at_once_do_not_clear_each_others_files(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(150):
            with lock_file(tmp_path / f"{number}.csv"):
                write_bytes(tmp_path / f"{number}.csv", b"x", apart=True)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, number) for number in range(4)]:
            done.result()
    assert list_files(tmp_path) == [f"{number}.csv" for number in range(4)]
    assert not (tmp_path / PRIVATE).exists()


def test_file_that_is_deleted_cannot_be_locked_by_its_maker_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer locks its temporary file just after making it: whoever clears the folder must not let it in between."""
    (tmp_path / f"{TEMPORARY}x.csv").touch()
    real, refused = Path.unlink, []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refused.append(path.name)
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    delete_partial(tmp_path)
    assert refused == [f"{TEMPORARY}x.csv"]
    assert list_files(tmp_path) == []


@pytest.mark.parametrize("reason", ["ENOSYS", "EOPNOTSUPP", "ENOLCK", "EBADF", "EINVAL"])
@pytest.mark.parametrize("shared", [False, True])
def test_file_system_without_locks_is_written_all_the_same_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, shared: bool
) -> None:
    """Lustre has no locks unless it is mounted with them; NFS locks no folder that is open for reading."""
    number, lines = getattr(errno, reason), list[str]()

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_noticed", set())
    folder = tmp_path / "run" / "evaluation"
    with lock_folder(folder, shared=shared, command="medcls.evaluate", say=lines.append):
        assert folder.is_dir()
        with lock_folders([folder, tmp_path / "out"], command="medcls.explain", wait_seconds=0, say=lines.append):
            write_bytes(folder / "metrics.json", b"x")
        with lock_file(tmp_path / "out.csv", say=lines.append):
            write_bytes(tmp_path / "out.csv", b"x", apart=True)
    assert list_files(tmp_path) == ["out.csv", "run/evaluation/metrics.json"]
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / PRIVATE).exists()
    (line,) = lines
    assert line.startswith(f"notice: {folder} cannot be locked, its file system has no locks ({os.strerror(number)}): ")


def test_disk_that_fails_while_it_locks_ends_with_74(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    for lock in (lock_folder(tmp_path / "run"), lock_file(tmp_path / "out.csv")):
        with pytest.raises(WriteError, match=r"cannot lock .*(run|out\.csv): Input/output error; free"), lock:
            pass


@pytest.mark.parametrize("hold", [lock_folder, lock_file])
def test_folder_that_nobody_can_make_ends_with_74_and_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Callable[..., contextlib.AbstractContextManager[None]]
) -> None:
    """As below a mount point of autofs, in /proc, or in a working folder that was deleted: mkdir finds no place."""

    def find_no_place(path: Path, *args: object, **kwargs: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "mkdir", find_no_place)
    with pytest.raises(WriteError, match=r"cannot write .*No such file or directory"), hold(tmp_path / "auto" / "x"):
        pass
    # The folder is there, and no other can be made in it.
    with pytest.raises(WriteError, match="No such file"), atomic_file(tmp_path / "table", private=True):
        pass


def test_folder_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot write"), lock_file(tmp_path / "file" / "out.csv"):
        pass


@pytest.mark.parametrize("private", [False, True])
def test_killed_at_any_step_it_leaves_names_of_persons_only_where_their_owner_sees_them(
    tmp_path: Path, private: bool
) -> None:
    for step in itertools.count(1):
        folder = tmp_path / str(step)
        folder.mkdir()
        (folder / "map.csv").write_bytes(b"old")
        with Disk(folder, kill_at=step) as disk, contextlib.suppress(KilledError), lock_file(folder / "map.csv"):
            write_bytes(folder / "map.csv", b"Mueller", private=private, apart=True)
        assert [name for name in list_files(folder) if not name.startswith(PRIVATE)] == ["map.csv"]
        assert (folder / "map.csv").read_bytes() in (b"old", b"Mueller")
        if (folder / PRIVATE).exists():
            assert stat.S_IMODE((folder / PRIVATE).stat().st_mode) == 0o700
            for name in list_files(folder / PRIVATE):
                assert stat.S_IMODE((folder / PRIVATE / name).stat().st_mode) in (0o600, 0o644)
        # Another file of the same folder is written next.
        with lock_file(folder / "other.csv"):
            pass
        assert list_files(folder) == ["map.csv"]
        assert not (folder / PRIVATE).exists()
        if len(disk.steps) < step:
            break
    assert step > 7


def test_temporary_file_is_private_while_it_is_written(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "map.csv", private=True) as file:
        file.write(b"Mueller")
        (name,) = list_files(tmp_path)
        assert name.startswith(f"{PRIVATE}/.partial-")
        modes = [stat.S_IMODE((tmp_path / each).stat().st_mode) for each in (PRIVATE, name)]
        assert modes == [0o700, 0o600]
        clear_private(tmp_path)
        delete_partial(tmp_path / PRIVATE)
    assert (tmp_path / "map.csv").read_bytes() == b"Mueller"
    assert not (tmp_path / PRIVATE).exists()


def test_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PRIVATE).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with atomic_file(tmp_path / "map.csv", private=True) as file:
        file.write(b"x")
        assert list_files(tmp_path / "elsewhere") == []
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(f"{PRIVATE}-")]
    assert (tmp_path / "map.csv").read_bytes() == b"x"
    # Neither of both is ours.
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(WriteError, match="somebody else's"):
        write_bytes(tmp_path / "map.csv", b"y", private=True)
    assert (tmp_path / "map.csv").read_bytes() == b"x"


def test_own_files_in_a_folder_of_that_name_stay(tmp_path: Path) -> None:
    (tmp_path / PRIVATE).mkdir()
    (tmp_path / PRIVATE / "thesis.docx").write_text("mine")
    with lock_file(tmp_path / "map.csv"):
        write_bytes(tmp_path / "map.csv", b"x", private=True)
    assert list_files(tmp_path) == [f"{PRIVATE}/thesis.docx", "map.csv"]


def test_what_version_0_2_0_left_of_the_same_file_is_cleared(tmp_path: Path) -> None:
    for name in (".partial-a1b2c3d4map.csv", ".partial-a1b2c3d4map.csv.columns.json", ".partial-a1b2c3d4other.csv"):
        (tmp_path / name).write_text("Mueller")
    with lock_file(tmp_path / "map.csv", suffixes=[".columns.json"]):
        pass
    assert list_files(tmp_path) == [".partial-a1b2c3d4other.csv"]


def test_key_that_cannot_be_written_leaves_no_half_key(tmp_path: Path) -> None:
    """It would never be overwritten, and refused as a key."""
    for step in itertools.count(1):
        failing = Disk(tmp_path, fail_at=step, error=errno.ENOSPC, lasting=True)
        with failing as disk, contextlib.suppress(WriteError):
            write_key(tmp_path / "key.txt")
        if not disk.failed:
            break
        assert list_files(tmp_path) == []
    assert step > 3
    with (tmp_path / "key.txt").open(encoding="ascii") as file:
        assert [len(row[0]) for row in csv.reader(file)] == [64, len("check:") + 16]
