"""python -m data_prep.merge: join the shards of all shard.count jobs into one store, and split it."""

from __future__ import annotations

from pathlib import Path

from medcls.cli.command_line import run_command
from medcls.config import PrepareJob
from medcls.console import say
from medcls.inputs import check_file, check_source_folder


def main(job: PrepareJob) -> None:
    """Completes the store: takes the same arguments as the jobs, and decodes nothing."""
    if job.source is not None:
        check_source_folder(Path(job.source))
    check_file(job.labels, "labels")
    from data_prep.prepare import describe_store, prepare
    from data_prep.split_table import describe_split_table

    store = prepare(job, decode=False)
    if store is not None:
        say(describe_store(store))
        say(describe_split_table(store, job.split.name, patients_known=job.patients != "per_image"))


if __name__ == "__main__":
    run_command("merge", main, program="python -m data_prep.merge")
