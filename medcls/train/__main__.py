"""python -m medcls.train: train a classifier on a store; transfers, fine-tunes, and never reads the test split."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from medcls.cli.command_line import run_command
from medcls.config import TrainJob
from medcls.console import say
from medcls.distributed import count_ranks
from medcls.errors import UsageError
from medcls.inputs import check_training_inputs

# Small enough for two cores; the demo's ids are made up.
_DEMO_SETTINGS = ("image.size=96", "deidentify=declared")


def main(job: TrainJob) -> None:
    """Check what can be checked without torch, then train."""
    check_job(job)
    if job.demo:
        prepare_demo(Path(str(job.store)))
    # torch takes seconds to import: --help, --cfg job and a mistake do without it.
    from medcls.train.train import train

    train(job)
    say(f"next: python -m medcls.evaluate run={job.run} split=test")


def check_job(job: TrainJob) -> None:
    """Raise what a user has to hear before torch is imported: a missing setting, store or file of weights."""
    if job.store is None:
        raise UsageError("store=DIR is missing: name the store that data_prep wrote, or experiment=demo")
    if job.run is None:
        raise UsageError("run=DIR is missing: name the folder for this run's model and logs")
    if not job.demo:
        check_training_inputs(job.run, store=job.store, weights=job.model.weights, weights_dir=job.weights_dir)


def prepare_demo(store: Path) -> None:
    """Write the synthetic demo set and its store, where missing, through the commands that a user types."""
    if (store / "dataset.json").is_file():
        return
    if count_ranks() > 1:
        raise UsageError("the demo's images are made by one process: run python -m medcls.train once without torchrun")
    raw = store.parent / "raw"
    say("experiment=demo: preparing the SYNTHETIC demo set first")
    commands = [
        ["data_prep.demo", f"out={raw}"],
        ["data_prep", f"source={raw}", f"labels={raw}/labels.csv", f"store={store}", *_DEMO_SETTINGS],
    ]
    for module, *arguments in commands:
        code = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
        if code:
            raise SystemExit(code)


if __name__ == "__main__":
    run_command("train", main, program="python -m medcls.train", default="experiment=demo")
