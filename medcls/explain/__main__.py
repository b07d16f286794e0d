"""python -m medcls.explain: a run and images to maps of where the answers come from, and whether they are true."""

from __future__ import annotations

from medcls.cli.command_line import run_command
from medcls.config import ExplainJob
from medcls.errors import UsageError


def main(job: ExplainJob) -> None:
    """Explains the images of one split by one method."""
    if job.run is None:
        raise UsageError("run=DIR is missing: python -m medcls.explain run=DIR method=gradcam worst=20")
    # torch takes seconds to import: --help and --cfg job do without it.
    from medcls.explain.explain import explain

    explain(job)


if __name__ == "__main__":
    run_command("explain", main, program="python -m medcls.explain")
