"""python -m medcls.evaluate: a run and a split to predictions, metrics with intervals, and report.html."""

from __future__ import annotations

from medcls.command_line import run_command
from medcls.config import EvaluateJob
from medcls.errors import UsageError


def main(job: EvaluateJob) -> None:
    """Evaluates one run, or several together, on one split."""
    if job.run is None:
        raise UsageError("run=DIR is missing: python -m medcls.evaluate run=DIR split=test")
    # torch takes seconds to import: --help and --cfg job do without it.
    from medcls.stages.evaluate import evaluate

    evaluate(job)


if __name__ == "__main__":
    run_command("evaluate", main, program="python -m medcls.evaluate")
