"""python -m medcls.evaluate: a run and a split, or a file of scores, to metrics with intervals and report.html."""

from __future__ import annotations

from medcls.cli.command_line import run_command
from medcls.config import EvaluateJob
from medcls.errors import UsageError


def main(job: EvaluateJob) -> None:
    """Evaluate one run, or several together, on one split, or a file of any tool's scores."""
    if job.predictions is not None:
        from medcls.evaluate.evaluate_scores import evaluate_scores

        evaluate_scores(job)
        return
    if job.run is None:
        raise UsageError(
            "run=DIR is missing: python -m medcls.evaluate run=DIR split=test, or predictions=FILE.csv out=DIR"
        )
    # torch takes seconds to import: --help and --cfg job do without it.
    from medcls.evaluate.evaluate import evaluate

    evaluate(job)


if __name__ == "__main__":
    run_command("evaluate", main, program="python -m medcls.evaluate")
