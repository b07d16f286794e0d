"""What a source folder holds: every file once, in the order of whole paths, and nothing from outside."""

from __future__ import annotations

import os
import socket
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcls.errors import DataError
from medcls.imaging.source import list_files

NAMES = st.text("ab-./+_0é漢", min_size=1, max_size=3).filter(lambda t: "/" not in t and t not in (".", ".."))
PATHS = st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), max_size=12)


@settings(max_examples=40, deadline=None)
@given(PATHS)
def test_the_walk_comes_in_the_order_of_whole_paths(paths: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, made = Path(name), set()
        for path in paths:
            try:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).touch(exist_ok=False)
                made.add(path)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                continue
        assert [path for path, _ in list_files(folder)] == sorted(made)


def test_a_folder_sorts_by_its_files_and_not_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/x", "a-b", "a.b", "a0"):
        (tmp_path / name).touch()
    assert [path for path, _ in list_files(tmp_path)] == ["a-b", "a.b", "a/x", "a0"]


def test_pipes_and_sockets_are_listed_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.dcm")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert list(list_files(tmp_path)) == [("pipe.dcm", "special_file"), ("socket", "special_file")]


def test_links_to_files_and_folders_outside_are_not_followed(tmp_path: Path) -> None:
    outside, source = tmp_path / "outside", tmp_path / "source"
    outside.mkdir()
    source.mkdir()
    (outside / "secret").touch()
    (source / "folder").symlink_to(outside)
    (source / "up").symlink_to("..")
    (source / "file").symlink_to(outside / "secret")
    assert list(list_files(source)) == [(name, "symbolic_link") for name in ("file", "folder", "up")]


def test_a_folder_that_is_gone_is_named_by_its_source_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be listed: No such file"):
        list(list_files(tmp_path / "gone"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_a_closed_folder_stops_the_walk(tmp_path: Path, mode: int) -> None:
    closed = tmp_path / "patient-name"
    closed.mkdir()
    closed.chmod(mode)
    try:
        with pytest.raises(DataError, match="may not be read") as error:
            list(list_files(tmp_path))
        assert "patient-name" not in str(error.value)
    finally:
        closed.chmod(0o700)


def test_a_closed_folder_stops_the_walk_for_root_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    with pytest.raises(DataError, match="may not be read"):
        list(list_files(tmp_path))


def test_memory_holds_one_folder_and_not_the_tree(tmp_path: Path) -> None:
    def peak(folders: int) -> int:
        root = tmp_path / str(folders)
        for folder in range(folders):
            (root / f"{folder:04}").mkdir(parents=True)
            for name in range(40):
                (root / f"{folder:04}" / f"a-rather-long-name-of-a-file-{name:04}").touch()
        tracemalloc.start()
        assert sum(1 for _ in list_files(root)) == folders * 40
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(80) < peak(5) + 80 * 1500  # 75 more folders, 3,000 more files: not 300 bytes for each file
