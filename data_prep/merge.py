"""python -m data_prep.merge: join the shards of all shard.count jobs into one store, and split it."""

from __future__ import annotations

import medcls.entry  # noqa: F401 (before all others: it keeps the working folder's files from being imported)

# isort: split
from data_prep.__main__ import main as prepare_store
from medcls.cli.command_line import run_command
from medcls.config import PrepareJob


def main(job: PrepareJob) -> None:
    """Complete the store: takes the same arguments as the jobs, and decodes nothing."""
    prepare_store(job, decode=False)


if __name__ == "__main__":
    run_command("merge", main, program="python -m data_prep.merge")
