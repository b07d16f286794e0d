"""Room for loading processes, read from made-up /proc and cgroup files as machines and containers have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcls.data.limits import check_loading, read_memory_free, read_shared_free
from medcls.errors import ConfigError

MIB = 2**20


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def read_free(folder: Path, files: dict[str, str]) -> int | None:
    write_files(folder, files)
    return read_memory_free(proc=folder / "proc", cgroup=folder / "cgroup")


MEMINFO = {
    "proc/meminfo": "MemTotal:       16000 kB\nMemFree:   100 kB\nMemAvailable:    9000 kB\nHugePages_Total: 0\n"
}
V2 = {"proc/self/cgroup": "0::/\n"}


def test_machine_without_groups_has_what_the_kernel_says(tmp_path: Path) -> None:
    assert read_free(tmp_path, MEMINFO) == 9000 * 1024


def test_nothing_known_is_none(tmp_path: Path) -> None:
    assert read_free(tmp_path, {}) is None
    assert read_shared_free(tmp_path / "gone") is None
    assert read_shared_free(tmp_path) > 0


def test_container_of_version_2_has_what_its_limit_leaves(tmp_path: Path) -> None:
    group = {
        "cgroup/memory.max": "5000000\n",
        "cgroup/memory.current": "4000000\n",
        "cgroup/memory.stat": "anon 1000000\ninactive_file 2500000\n",
    }
    assert read_free(tmp_path, MEMINFO | V2 | group) == 3_500_000


def test_group_without_a_limit_is_none(tmp_path: Path) -> None:
    files = {"cgroup/memory.max": "max\n", "cgroup/memory.current": "7\n"}
    assert read_free(tmp_path, MEMINFO | V2 | files) == 9000 * 1024


def test_limit_of_a_group_further_up_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
        "cgroup/slurm/job_7/step_0/memory.max": "max\n",
        "cgroup/slurm/job_7/step_0/memory.current": "1000\n",
        "cgroup/slurm/job_7/memory.max": "3000000\n",
        "cgroup/slurm/job_7/memory.current": "1000000\n",
    }
    assert read_free(tmp_path, MEMINFO | files) == 2_000_000


def test_version_1_by_its_memory_controller(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "12:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n1:name=systemd:/docker/abc\n",
        "cgroup/memory/docker/abc/memory.limit_in_bytes": "4000000\n",
        "cgroup/memory/docker/abc/memory.usage_in_bytes": "1500000\n",
        "cgroup/memory/docker/abc/memory.stat": "inactive_file 1\ntotal_inactive_file 500000\n",
        "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    assert read_free(tmp_path, MEMINFO | files) == 3_000_000


def test_container_that_sees_the_path_of_its_host_takes_the_mount(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "9:memory:/docker/abc\n",
        "cgroup/memory/memory.limit_in_bytes": "2000000\n",
        "cgroup/memory/memory.usage_in_bytes": "2500000\n",
    }
    assert read_free(tmp_path, MEMINFO | files) == 0


def test_files_that_say_nothing_are_passed_over(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "nonsense\n", "cgroup/memory.max": "much\n", "cgroup/memory.current": "\n"}
    assert read_free(tmp_path, MEMINFO | files) == 9000 * 1024


@pytest.mark.parametrize(("free", "outcome"), [(320, ""), (319, "notice"), (160, "notice"), (159, "refused")])
def test_shared_memory_is_refused_where_it_must_fail_and_doubted_where_it_may(free: int, outcome: str) -> None:
    if outcome == "refused":
        named = r"workers=8: /dev/shm has 159 MiB free, and batches of 10.0 MiB take up to 320 MiB: use .*shm-size"
        with pytest.raises(ConfigError, match=named):
            check_loading(8, batch_bytes=10 * MIB, shared_free=free * MIB, memory_free=None)
    else:
        said = check_loading(8, batch_bytes=10 * MIB, shared_free=free * MIB, memory_free=None)
        assert ("if a loading process dies: fewer workers=" in said) == (outcome == "notice")


def test_memory_counts_the_processes_too() -> None:
    assert check_loading(4, batch_bytes=MIB, shared_free=None, memory_free=200 * MIB) == ""
    assert "memory has 199 MiB free" in check_loading(4, batch_bytes=MIB, shared_free=None, memory_free=199 * MIB)
    with pytest.raises(ConfigError, match=r"memory has 7 MiB free.*or a higher limit"):
        check_loading(4, batch_bytes=MIB, shared_free=None, memory_free=7 * MIB)


def test_without_processes_nothing_is_needed() -> None:
    assert check_loading(0, batch_bytes=MIB, shared_free=0, memory_free=0) == ""
