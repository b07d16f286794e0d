"""From the command to the end of the first training step, less `import torch` itself."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.images import make_store

_ROUNDS = 3


def measure(folder: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields the start-up of train, and of its --help, which must not import torch."""
    _, store = make_store(folder / "startup", size=32, count=64)
    train = [f"store={store.folder}", "transfer=scratch", "trainer.max_steps=1", "trainer.epochs=1", "task=binary"]
    best = {"torch": 1e9, "train": 1e9, "help": 1e9}
    for round_ in range(_ROUNDS):
        runs = {
            "torch": ["-c", "import torch"],
            "train": ["-m", "medcls.train", *train, f"run={folder}/run-{round_}"],
            "help": ["-m", "medcls.train", "--help"],
        }
        for name, arguments in runs.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            best[name] = min(best[name], time.perf_counter() - start)
    rest = best["train"] - best["torch"]
    beside = f"import torch {best['torch']:.1f} s"
    yield "medcls.train to its first step and model file", f"{rest:.1f} s more", beside, "", ""
    yield "medcls.train --help", f"{best['help']:.2f} s", "aim 1.5 s", "", "<= 1.5"
