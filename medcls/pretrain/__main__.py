"""python -m medcls.pretrain: a store of volumes to an autoencoder, without labels; never reads the test split."""

from __future__ import annotations

from medcls.cli.command_line import run_command
from medcls.config import PretrainJob
from medcls.console import say
from medcls.errors import UsageError


def main(job: PretrainJob) -> None:
    """Checks what can be checked without torch, then pretrains."""
    if job.store is None:
        raise UsageError("store=DIR is missing: name a store of volumes that data_prep wrote")
    if job.run is None:
        raise UsageError("run=DIR is missing: name the folder for this run's model and logs")
    # torch takes seconds to import: --help and --cfg job do without it.
    from medcls.pretrain.pretrain import pretrain

    say(f"next: {pretrain(job)}")


if __name__ == "__main__":
    run_command("pretrain", main, program="python -m medcls.pretrain")
