"""python -m benchmarks [SUITE …]: prints one table of the suites named, or of all; `make bench` runs all.

Every row compares two things within one run on this machine: a busy machine slows both.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import dicom, evaluation, features, heads, loader, memory, startup, store, throughput, volumes


@dataclass(frozen=True, slots=True)
class Suite:
    """One group of rows: (what, measured, compared with, ratio, aim)."""

    rows: Callable[[Path], Iterator[tuple[str, str, str, str, str]]]


SUITES = {
    "throughput": Suite(throughput.measure),
    "features": Suite(features.measure),
    "heads": Suite(heads.measure),
    "loader": Suite(loader.measure),
    "store": Suite(store.measure),
    "startup": Suite(startup.measure),
    "memory": Suite(memory.measure),
    "volumes": Suite(volumes.measure),
    "dicom": Suite(dicom.measure),
    "evaluation": Suite(evaluation.measure),
}


def main(names: list[str]) -> int:
    """Runs the named suites, all by default, and prints their rows as they come."""
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; expected {', '.join(SUITES)}", file=sys.stderr)
        return 64
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"| {'what':58s} | {'medcls':>16s} | {'beside':>30s} | {'ratio':>6s} | {'aim':>7s} |")
    print(f"|{'-' * 60}|{'-' * 18}|{'-' * 32}|{'-' * 8}|{'-' * 9}|")
    with tempfile.TemporaryDirectory() as folder:
        for name in names or SUITES:
            for what, ours, beside, ratio, aim in SUITES[name].rows(Path(folder)):
                print(f"| {what:58s} | {ours:>16s} | {beside:>30s} | {ratio:>6s} | {aim:>7s} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
