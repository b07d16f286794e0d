"""python -m data_prep: raw files to a store with proven splits."""

from __future__ import annotations

from medcls.command_line import run_command, say
from medcls.config import PrepareJob


def main(job: PrepareJob) -> None:
    """Prepares the store, or this job's share of it, and says where it is."""
    from data_prep.prepare import describe_store, prepare

    store = prepare(job)
    if store is not None:
        say(describe_store(store))


if __name__ == "__main__":
    run_command("prepare", main, program="python -m data_prep")
