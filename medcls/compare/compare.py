"""Run a comparison: arms over the same folds, each an ordinary training and evaluation, then paired statistics.

It reads nothing but the files that those commands write, so everything in out/ can be made again by hand.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from medcls.compare.comparison_commands import Work
from medcls.compare.comparison_executors import Executor, LocalExecutor, SlurmExecutor
from medcls.compare.comparison_plan import ComparisonPlan, keep_plan, make_plan
from medcls.compare.comparison_results import format_comparison, write_results
from medcls.compare.comparison_runs import ComparisonFolder, is_finished, run_works
from medcls.config import CompareJob, FoldsConfig
from medcls.console import put, say
from medcls.entry import INTERRUPTED
from medcls.errors import MedclsError, ReadError
from medcls.files import OPENED, append_json_line, delete_partial, seal
from medcls.locks import lock_folder
from medcls.report.comparison_page import write_comparison_page


class ArmsFailedError(MedclsError):
    """Some arms could not be trained; the others were, and are compared.

    Args:
        message: Which arms, and where their logs are.
        codes: Exit code of each arm that failed. If a disk or an interruption ended them all, the same command may
            succeed (74, 75); else it is no use (70).
    """

    def __init__(self, message: str, codes: Sequence[int] = ()) -> None:
        super().__init__(message)
        if codes and set(codes) <= {ReadError.exit_code, INTERRUPTED}:
            self.exit_code = min(codes)


def compare(job: CompareJob) -> None:
    """Run what is not finished, compare the arms that are, and print the table and the report's path.

    Raises:
        ArmsFailedError: an arm failed; what the others gave is written before.
    """
    out = Path(job.out or "")
    with lock_folder(out, command="medcls.compare", say=say):
        delete_partial(out)
        plan = make_plan(job)
        keep_plan(out, plan)
        folder = ComparisonFolder(out, plan.store)
        left = [work for work in list_unfinished(folder, plan) if set(work.arms) & set(job.chosen)]
        say(f"plan: {len(plan.works)} trainings of {len(plan.arms)} arms, {len(left)} to do: {out / 'plan.json'}")
        if job.plan_only:
            return
        if any(work.evaluated for work in left):
            note_opening(job.folds, folder, arms=job.chosen)
        executor, threads = build_executor(job, out)
        failed = run_works(left, folder, executor, threads=threads)
        lacking = {arm for work in list_unfinished(folder, plan) for arm in work.arms}
        if lacking:
            # only= runs some, and all that are finished are compared.
            named = ", ".join(arm for arm in plan.arms if arm in lacking)
            say(f"notice: not finished, and left out of the results: {named}")
        finished = [arm for arm in plan.arms if arm not in lacking]
        results = write_results(job, folder, plan, arms=finished, failed=failed)
        if results:
            put(format_comparison(results))
            put(f"comparison: {out / 'comparison.json'}; report: {write_comparison_page(out, results)}")
    if failed:
        where = "; ".join(f"{arm} in {one.work}: see {out / one.log}" for arm, one in failed.items())
        raise ArmsFailedError(
            f"{len(failed)} of {len(job.chosen)} arms failed ({where}): correct the cause, then run the same command "
            f"again",
            [one.exit_code for one in failed.values()],
        )


def list_unfinished(folder: ComparisonFolder, plan: ComparisonPlan) -> list[Work]:
    """Return the works that have to run, in order."""
    folds = {fold.folder: fold for fold in plan.folds}
    return [work for work in plan.works if not is_finished(folder, work, fold=folds.get(work.fold or ""))]


def note_opening(config: FoldsConfig, folder: ComparisonFolder, *, arms: list[str]) -> None:
    """Say and write down that the store's test rows are opened, if these folds open them."""
    if config.over != "all" and config.kind != "holdout":
        return
    store, path = folder.store, folder.out / OPENED
    what = "test rows as part of the folds" if config.over == "all" else "test rows"
    say(f"opening the {what} of {store.name} (split {config.split}): noted in {path}")
    append_json_line(
        path, seal({"store_sha256": store.sha256, "split": config.split, "folds": config.kind, "arms": arms})
    )


def build_executor(job: CompareJob, out: Path) -> tuple[Executor, int]:
    """Return where the works run, and the threads of each process."""
    if job.executor == "slurm":
        threads = job.threads or int(job.slurm.get("cpus_per_task") or 1)
        return SlurmExecutor(out / "slurm", slots=job.jobs or 10_000, options=job.slurm), threads
    slots = job.jobs or 1
    return LocalExecutor(slots), job.threads or max(1, len(os.sched_getaffinity(0)) // slots)
