"""python -m medcls.evaluate: metrics with intervals and report.html for a run and a split, or a file of scores."""

from __future__ import annotations

from pathlib import Path

from medcls.cli.command_line import run_command
from medcls.config import EvaluateJob
from medcls.errors import UsageError
from medcls.inputs import check_file, check_run_folder, check_store_folder


def main(job: EvaluateJob) -> None:
    """Evaluate one run, or several together, on one split, or a file of any tool's scores."""
    for name in ("analysis", "samplesize", "readers"):
        check_file(getattr(job, name), name)
    if job.predictions is not None:
        for name in ("predictions", "choices", "against"):
            check_file(getattr(job, name), name)
        from medcls.evaluate.evaluate_scores import evaluate_scores

        evaluate_scores(job)
        return
    if job.run is None:
        raise UsageError(
            "run=DIR is missing: python -m medcls.evaluate run=DIR split=test, or predictions=FILE.csv out=DIR"
        )
    for run in job.runs:
        check_run_folder(run)
    if job.against is not None:
        check_run_folder(Path(job.against), setting="against")
    if job.store is not None:
        check_store_folder(Path(job.store))
    # torch takes seconds to import: --help, --cfg job and a mistake do without it.
    from medcls.evaluate.evaluate import evaluate

    evaluate(job)


if __name__ == "__main__":
    run_command("evaluate", main, program="python -m medcls.evaluate")
