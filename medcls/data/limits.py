"""Check that memory suffices for loading processes, before they start."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from medcls import distributed
from medcls.console import say
from medcls.data.dataset import StoreDataset
from medcls.errors import ConfigError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (nothing is written there by name)
# Each process has two batches on their way, torch's prefetch_factor.
_PREFETCHED = 2
_MIB = 2**20
# Of its own beside the batches: 16 MiB measured without transforms, and as much again twice over for those.
_PROCESS_BYTES = 48 * _MIB
# Memory limits above this are none: cgroup v1 writes a number near 2^63.
_UNLIMITED = 2**60


def check_room(images: StoreDataset, *, workers: int, batch_size: int, copies: int = 1) -> None:
    """Say where loading processes may run out of shared memory or memory.

    Args:
        images: That they read.
        workers: Of this process.
        batch_size: Of the largest batch, of all processes of the training.
        copies: Of each image in a batch.

    Raises:
        ConfigError: they have to run out.
    """
    part = -(-batch_size // distributed.count_ranks())
    size = math.prod(images.shape) * np.dtype(images.store.spec.dtype).itemsize
    notice = check_loading(
        workers * distributed.count_local_ranks(),
        batch_bytes=copies * part * size,
        shared_free=read_shared_free(),
        memory_free=read_memory_free(),
    )
    if notice:
        say(f"notice: {notice}")


def check_loading(workers: int, *, batch_bytes: int, shared_free: int | None, memory_free: int | None) -> str:
    """Return a notice where loading processes may run out of room, "" where they have enough.

    Args:
        workers: Loading processes of all trainings here.
        batch_bytes: Of the largest batch that one of them hands over.
        shared_free: Bytes free in /dev/shm; None = not known.
        memory_free: Bytes of memory to be had; None = not known.

    Raises:
        ConfigError: the batches on their way alone do not fit: a process would be killed, sooner or later.
    """
    least = workers * _PREFETCHED * batch_bytes
    needs = {
        str(SHARED_MEMORY): (
            shared_free,
            least,
            2 * least,
            "a larger one (docker --shm-size, Kubernetes emptyDir medium: Memory)",
        ),
        "memory": (memory_free, least, least + workers * _PROCESS_BYTES, "a higher limit"),
    }
    notices = []
    for name, (free, smallest, wanted, other) in needs.items():
        if not workers or free is None or free >= wanted:
            continue
        line = (
            f"workers={workers}: {name} has {free / _MIB:,.0f} MiB free, and batches of {batch_bytes / _MIB:,.1f} MiB "
            f"take up to {wanted / _MIB:,.0f} MiB"
        )
        advice = f"fewer workers=, workers=0, a smaller trainer.batch_size, or {other}"
        if free < smallest:
            raise ConfigError(f"{line}: use {advice}")
        notices.append(f"{line}; if a loading process dies: {advice}")
    return "; ".join(notices)


def read_shared_free(folder: Path = SHARED_MEMORY) -> int | None:
    """Return the bytes that are free where processes share tensors; None where there is no such folder."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def read_memory_free(*, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes of memory that this process may still get; None where nothing is known.

    The smallest of what the kernel calls available and what is left below the limit of each control group that the
    process is in. Pages of files that a group can give back count as free.

    Args:
        proc: Where meminfo and self/cgroup lie.
        cgroup: Where control groups are mounted, version 2, or 1 with a folder `memory`.
    """
    available = _read_table(proc / "meminfo").get("MemAvailable")
    free = [_UNLIMITED if available is None else 1024 * available]
    for folder in _list_groups(proc, cgroup, ""):
        free.append(_read_group(folder, "memory.max", "memory.current", "inactive_file"))
    for folder in _list_groups(proc, cgroup / "memory", "memory"):
        free.append(_read_group(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
    return min(free) if min(free) < _UNLIMITED else None


def _list_groups(proc: Path, mount: Path, controller: str) -> list[Path]:
    """Return the folders of the groups from this process's own to the root.

    A container without a namespace of its own sees the host's path, which is not there: then the mount is its group.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    groups = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    paths = [path for _, names, path in groups if controller in names.split(",")]
    own = mount / paths[0].lstrip("/") if paths else mount
    return [folder for folder in (own, *own.parents) if folder == mount or mount in folder.parents]


def _read_group(folder: Path, limit: str, usage: str, reclaimable: str) -> int:
    try:
        text = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        most = _UNLIMITED if text == "max" else int(text)
    except (OSError, ValueError):
        return _UNLIMITED
    cached = _read_table(folder / "memory.stat").get(reclaimable, 0)
    return max(0, most - used + min(cached, used)) if most < _UNLIMITED else _UNLIMITED


def _read_table(path: Path) -> dict[str, int]:
    """Lines of a name and a number, as in meminfo and memory.stat; {} where it cannot be read."""
    try:
        rows = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}
