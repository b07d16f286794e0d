"""python -m data_prep: raw files to a store with proven splits."""

from __future__ import annotations

from medcls.command_line import run_command, say
from medcls.config import PrepareJob


def main(job: PrepareJob) -> None:
    """Prepares the store and says where it is."""
    from data_prep.prepare import prepare

    store = prepare(job)
    states = ", ".join(f"{count} {state}" for state, count in store.info["counts"]["states"].items())
    say(f"store {store.folder}: {len(store)} images; files: {states}")


if __name__ == "__main__":
    run_command("prepare", main, program="python -m data_prep")
