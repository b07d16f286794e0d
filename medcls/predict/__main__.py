"""python -m medcls.predict: raw images and a run to scores by class, or a reason, for every file."""

from __future__ import annotations

from medcls.cli.command_line import run_command
from medcls.config import PredictJob
from medcls.errors import UsageError


def main(job: PredictJob) -> None:
    """Predicts every image of a folder, or one file."""
    missing = [f"{name}=" for name in ("run", "source", "out") if getattr(job, name) is None]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} missing: python -m medcls.predict run=DIR source=DIR_or_FILE out=FILE.parquet"
        )
    # torch takes seconds to import: --help and --cfg job do without it.
    from medcls.predict.predict import predict

    predict(job)


if __name__ == "__main__":
    run_command("predict", main, program="python -m medcls.predict")
