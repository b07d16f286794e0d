"""python -m medcls.compare: train and evaluate arms over the same folds of a store, with paired statistics."""

from __future__ import annotations

from pathlib import Path

from medcls.cli.command_line import run_command
from medcls.config import CompareJob
from medcls.errors import UsageError
from medcls.inputs import check_store_folder


def main(job: CompareJob) -> None:
    """Run every arm on every fold and compare them."""
    if job.store is None:
        raise UsageError("store=DIR is missing: name the store that data_prep wrote")
    if job.out is None:
        raise UsageError("out=DIR is missing: name the folder for runs, logs and results")
    if not job.arms:
        raise UsageError("no arms: set comparison=NAME, or arms.NAME=[overrides of medcls.train]")
    check_store_folder(Path(job.store))
    from medcls.compare.comparison_commands import check_arms, list_arms

    check_arms([arm for arm in list_arms(job) if arm.name in job.chosen])
    # torch takes seconds to import: --help, --cfg job and a mistake do without it.
    from medcls.compare.compare import compare

    compare(job)


if __name__ == "__main__":
    run_command("compare", main, program="python -m medcls.compare")
