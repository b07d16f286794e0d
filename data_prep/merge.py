"""python -m data_prep.merge: what the jobs of shard.count have decoded to one complete store, and its split."""

from __future__ import annotations

from medcls.command_line import run_command, say
from medcls.config import PrepareJob


def main(job: PrepareJob) -> None:
    """Completes the store: takes the same arguments as the jobs, and decodes nothing."""
    from data_prep.prepare import describe_store, prepare

    store = prepare(job, decode=False)
    if store is not None:
        say(describe_store(store))


if __name__ == "__main__":
    run_command("merge", main, program="python -m data_prep.merge")
