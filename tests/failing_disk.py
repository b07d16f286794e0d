"""A disk that is full, fails, is slow or is gone in the middle, for code of this process: faults at the file layer.

Only what happens under one folder counts, in Python's own calls: libraries that write by themselves are not seen. Steps
are the calls that change the disk: a file made, a piece written, a sync, a rename, a deletion, a folder made.
"""

# ruff: noqa: PTH110, PTH115, PTH118, PTH119, PTH120
# pathlib calls the functions that are replaced here.
from __future__ import annotations

import builtins
import errno
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class KilledError(BaseException):
    """The process is gone: nothing that it does afterwards reaches the disk, its own tidying up neither."""


class Disk:
    """Counts the steps under a folder, and lets one of them fail, or end the process.

    Args:
        root: The folder.
        fail_at: Number of the step that fails, from 1 on; 0 = none.
        error: What it fails with.
        lasting: All later steps fail, too, but for deletions: a disk stays full.
        kill_at: Number of the step in place of which the process is killed; 0 = none.
        piece: Most bytes that one write takes; 0 = all.
        pause: Seconds before each step.
        unreadable: Path -> whether reading the file fails with `error`.
        times: So often; then it can be read again.
        stale: Asking for the file's state fails, too, as on a network folder that was mounted again.
    """

    def __init__(
        self,
        root: Path,
        *,
        fail_at: int = 0,
        error: int = errno.EIO,
        lasting: bool = False,
        kill_at: int = 0,
        piece: int = 0,
        pause: float = 0.0,
        unreadable: Callable[[Path], bool] = lambda path: False,
        times: float = float("inf"),
        stale: bool = False,
    ) -> None:
        self.steps: list[str] = []
        self.failed = 0
        self.piece = piece
        self._root = os.path.realpath(root)
        self._fail_at, self._error, self._lasting, self._kill_at = fail_at, error, lasting, kill_at
        self._pause, self._unreadable, self._times, self._stale = pause, unreadable, times, stale
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Disk:
        for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir"):
            self._patch.setattr(os, name, self._watch(name, getattr(os, name)))
        for name in ("fsync", "pwrite", "posix_fallocate", "ftruncate"):
            self._patch.setattr(os, name, self._watch(name, getattr(os, name)))
        self._open, self._os_open, self._stat = io.open, os.open, os.stat
        self._patch.setattr(io, "open", self._open_file)
        self._patch.setattr(builtins, "open", self._open_file)
        self._patch.setattr(os, "fdopen", self._open_file)
        self._patch.setattr(os, "open", self._open_descriptor)
        self._patch.setattr(io, "FileIO", self._build_raw_kind())
        if self._stale:
            self._patch.setattr(os, "stat", self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def step(self, name: str, path: str) -> None:
        """Count a step, and fail or kill if it is the one."""
        if not path.startswith(self._root + "/"):
            return
        self.steps.append(f"{name} {os.path.relpath(path, self._root)}")
        number = len(self.steps)
        if self._pause:
            time.sleep(self._pause)
        if self._kill_at and number >= self._kill_at:
            raise KilledError
        frees = name in ("unlink", "remove", "rmdir")
        if self._fail_at and (number == self._fail_at or (self._lasting and number > self._fail_at and not frees)):
            self.failed += 1
            raise OSError(self._error, os.strerror(self._error), path)

    def check_read(self, path: str) -> None:
        """Fail if the file is one that the disk does not give."""
        if path.startswith(self._root + "/") and self._unreadable(Path(path)) and self.failed < self._times:
            self.failed += 1
            raise OSError(self._error, os.strerror(self._error), path)

    def _watch(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(first: Any, *rest: Any, **named: Any) -> Any:
            self.step(name, _find_path(first, named.get("dir_fd")))
            return original(first, *rest, **named)

        return watched

    def _open_descriptor(self, path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            made = flags & os.O_CREAT and not os.path.exists(_find_path(path, named.get("dir_fd")))
            self.step("make" if made else "open", _find_path(path, named.get("dir_fd")))
        return self._os_open(path, flags, *rest, **named)

    def _open_file(self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        path = _find_path(file, None)
        if not path.startswith(self._root + "/"):
            return self._open(file, mode, buffering, *rest, **named)
        raw = _Raw(self, file, mode, closefd=named.pop("closefd", True), opener=named.pop("opener", None))
        if buffering == 0:
            return raw
        buffered: Any = (
            io.BufferedRandom(raw) if "+" in mode else io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)
        )
        if "b" in mode:
            return buffered
        names = ("encoding", "errors", "newline")
        return io.TextIOWrapper(buffered, **dict(zip(names, rest, strict=False)), **named)

    def _build_raw_kind(self) -> type[io.FileIO]:
        """A class, since others ask what is an instance of it."""
        disk = self

        class Raw(_Raw):
            def __init__(self, file: Any, mode: str = "r", **named: Any) -> None:
                super().__init__(disk, file, mode, **named)

        return Raw

    def _ask(self, path: Any, *rest: Any, **named: Any) -> os.stat_result:
        self.check_read(_find_path(path, named.get("dir_fd")))
        return self._stat(path, *rest, **named)


class _Raw(io.FileIO):
    """A file whose writes are steps, and whose reads may fail."""

    def __init__(self, disk: Disk, file: Any, mode: str, **named: Any) -> None:
        self._disk, self._path = disk, _find_path(file, None)
        if "r" not in mode and not isinstance(file, int):
            disk.step("make", self._path)
        super().__init__(file, mode.replace("b", "").replace("t", ""), **named)

    def write(self, content: Any) -> int:
        """Write what the disk takes."""
        self._disk.step("write", self._path)
        piece = self._disk.piece
        return super().write(memoryview(content)[:piece] if piece else content)

    def read(self, size: int | None = -1) -> bytes:
        """Read what the disk gives."""
        self._disk.check_read(self._path)
        return super().read(-1 if size is None else size)

    def readall(self) -> bytes:
        """Read what the disk gives."""
        self._disk.check_read(self._path)
        return super().readall()

    def readinto(self, buffer: Any) -> int:
        """Read what the disk gives."""
        self._disk.check_read(self._path)
        return super().readinto(buffer)


def _find_path(first: Any, folder: int | None) -> str:
    if isinstance(first, int):
        return os.readlink(f"/proc/self/fd/{first}").removesuffix(" (deleted)")
    if folder is not None:
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fspath(first))
    path = os.fsdecode(first)
    # The last part may be a link that is deleted itself.
    return os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
