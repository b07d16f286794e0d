"""Memory grows by a few hundred bytes a row: no stage holds Python objects for each row of the manifest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.volumes import NETWORKS, VARIANTS, time_steps

ROOT = Path(__file__).resolve().parents[1]
SIZES = (50_000, 150_000)
# Bytes a row, measured 190 and 500 to 550 between these sizes. With Python lists and dictionaries of image_ids,
# patient_ids and checksums, opening a store alone took 710 and assigning its splits 990.
BOUNDS = {"split": 450, "train": 900}
PROGRAM = """
import json, sys
from pathlib import Path
from benchmarks.memory import run_step, write_store
steps, sizes = sys.argv[2].split(","), sys.argv[3].split(",")
stores = [write_store(Path(sys.argv[1]) / size, int(size)) for size in sizes]
print(json.dumps({step: [run_step(step, store)[0] for store in stores] for step in steps}))
"""


def test_a_row_takes_few_bytes_in_splitting_and_in_training(tmp_path: Path) -> None:
    """Peaks of processes that make a certified split, and of those that build the training rows."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), ",".join(BOUNDS), ",".join(map(str, SIZES))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for step, (small, large) in json.loads(done.stdout.splitlines()[-1]).items():
        grown = (large - small) / (SIZES[1] - SIZES[0])
        assert 0 < grown < BOUNDS[step], (step, grown)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_case_of_the_table_of_volumes_takes_its_steps(network: str, variant: str) -> None:
    """At the smallest size that all networks take: the table of docs/results/volumes.md can be made again."""
    found = time_steps(network, 24, VARIANTS[variant])
    assert found["volumes_per_second"] > 0
