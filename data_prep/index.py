"""python -m data_prep.index: list what a folder contains, from headers only: patients, series, geometry, problems."""

from __future__ import annotations

from pathlib import Path

from medcls.cli.command_line import check_printed, run_command
from medcls.config import IndexJob
from medcls.console import put, say, show_progress
from medcls.errors import ConfigError, UsageError
from medcls.identity import format_count
from medcls.inputs import check_source_folder


def main(job: IndexJob) -> None:
    """Print the overview of a source folder, and write its index where `out` says."""
    if job.source is None:
        raise UsageError("source=DIR is missing: python -m data_prep.index source=DIR")
    source, out = Path(job.source), Path(job.out) if job.out else None
    check_source_folder(source)
    if out is not None and out.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"out={out} is inside source={source}: choose a path outside it")
    from data_prep.overview import describe_folder
    from medcls.files import clear_private
    from medcls.imaging.catalog import build_index, write_index
    from medcls.imaging.source import list_files
    from medcls.imaging.worker import count_workers

    if out is not None:
        clear_private(out.resolve().parent)
    total = sum(1 for _ in list_files(source))  # before hours of work: a closed folder ends it here
    files = show_progress(list_files(source), total=total, desc="index", unit="file", mininterval=0.5)
    table = build_index(source, files, workers=count_workers(job.workers))
    for line in describe_folder(table, lines=job.lines):
        put(line)
    if out is None:
        check_printed()
    else:
        rows = write_index(out, table.to_batches())
        say(f"{out}: {format_count(rows, 'row')} with the real identifiers (mode 0600): store it with the images")


if __name__ == "__main__":
    run_command("index", main, program="python -m data_prep.index")
