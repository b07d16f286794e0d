"""Benchmarks are run by hand; that they can still be imported is held here."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import benchmarks

NAMES = sorted(path.stem for path in Path(str(benchmarks.__file__)).parent.glob("*.py") if path.stem != "__main__")


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_finds_everything_that_it_imports(name: str) -> None:
    try:
        importlib.import_module("benchmarks" if name == "__init__" else f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("medcls", "data_prep", "benchmarks"):
            raise
        pytest.skip(f"{error.name} is not installed")
