"""python -m medcls.predict: score raw images with a run; every file gets scores by class or a reason."""

from __future__ import annotations

from pathlib import Path

from medcls.cli.command_line import run_command
from medcls.config import PredictJob
from medcls.errors import UsageError
from medcls.inputs import check_file, check_images, check_run_folder


def main(job: PredictJob) -> None:
    """Predict every image of a folder, or one file."""
    missing = [f"{name}=" for name in ("run", "source", "out") if getattr(job, name) is None]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} missing: python -m medcls.predict run=DIR source=DIR_or_FILE out=FILE.parquet"
        )
    for run in job.runs:
        check_run_folder(run)
    check_images(Path(str(job.source)))
    for name in ("clinical_file", "boxes"):
        check_file(getattr(job, name), name)
    # torch takes seconds to import: --help, --cfg job and a mistake do without it.
    from medcls.predict.predict import predict

    predict(job)


if __name__ == "__main__":
    run_command("predict", main, program="python -m medcls.predict")
