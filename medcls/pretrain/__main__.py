"""python -m medcls.pretrain: train an autoencoder on a store of volumes, without labels or the test split."""

from __future__ import annotations

from medcls.cli.command_line import run_command
from medcls.config import PretrainJob
from medcls.console import say
from medcls.errors import UsageError
from medcls.inputs import check_training_inputs


def main(job: PretrainJob) -> None:
    """Check what can be checked without torch, then pretrain."""
    check_job(job)
    # torch takes seconds to import: --help, --cfg job and a mistake do without it.
    from medcls.pretrain.pretrain import pretrain

    say(f"next: {pretrain(job)}")


def check_job(job: PretrainJob) -> None:
    """Raise what a user has to hear before torch is imported: a missing setting or store."""
    if job.store is None:
        raise UsageError("store=DIR is missing: name a store of volumes that data_prep wrote")
    if job.run is None:
        raise UsageError("run=DIR is missing: name the folder for this run's model and logs")
    check_training_inputs(job.run, store=job.store)


if __name__ == "__main__":
    run_command("pretrain", main, program="python -m medcls.pretrain")
