"""python -m data_prep: decode raw files and labels into a store with proven splits."""

from __future__ import annotations

from pathlib import Path

from medcls.cli.command_line import run_command
from medcls.config import PrepareJob
from medcls.console import say
from medcls.inputs import check_file, check_source_folder


def main(job: PrepareJob, *, decode: bool = True) -> None:
    """Prepare the store, or this job's share of it, and say where it is."""
    if job.source is not None:
        check_source_folder(Path(job.source))
    check_file(job.labels, "labels")
    from data_prep.prepare import describe_store, prepare
    from data_prep.split_table import describe_split_table

    store = prepare(job, decode=decode)
    if store is not None:
        say(describe_store(store))
        say(describe_split_table(store, job.split.name, patients_known=job.patients != "per_image"))


if __name__ == "__main__":
    run_command("prepare", main, program="python -m data_prep")
