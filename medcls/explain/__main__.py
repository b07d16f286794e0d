"""python -m medcls.explain: draw maps of where a run's answers come from, and check whether they are true."""

from __future__ import annotations

from pathlib import Path

from medcls.cli.command_line import run_command
from medcls.config import ExplainJob
from medcls.errors import UsageError
from medcls.inputs import check_file, check_run_folder, check_store_folder


def main(job: ExplainJob) -> None:
    """Explain the images of one split by one method."""
    if job.run is None:
        raise UsageError("run=DIR is missing: python -m medcls.explain run=DIR method=gradcam worst=20")
    check_run_folder(Path(job.run))
    if job.store is not None:
        check_store_folder(Path(job.store))
    check_file(job.boxes, "boxes")
    # torch takes seconds to import: --help, --cfg job and a mistake do without it.
    from medcls.explain.explain import explain

    explain(job)


if __name__ == "__main__":
    run_command("explain", main, program="python -m medcls.explain")
