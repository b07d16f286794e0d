"""Sweeps (--multirun): one ordinary command and run per job; a failed job does not stop the others."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from medcls.errors import MedclsError


class JobFailedError(MedclsError):
    """A job of a sweep has failed, and has said why; it ends with that job's exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def is_sweep(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for several jobs."""
    return bool({"-m", "--multirun"} & set(arguments))


@contextlib.contextmanager
def keep_tidy(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yield overrides that keep Hydra's own file of a sweep (multirun.yaml) out of the working folder.

    submitit's launchers exchange files with their jobs in the sweep's folder, which every node has to see.
    """
    chosen = [text for text in arguments if text.startswith(("hydra.sweep.dir=", "hydra/launcher=submitit"))]
    if not is_sweep(arguments) or chosen:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="medcls-sweep-") as folder:
        yield [f"hydra.sweep.dir='{folder}'"]


def describe_job(given: Sequence[str]) -> str:
    """Return "job 2 (seed=2, run='runs/2')" of the job at work: its number from 1 on, what was swept, and its run."""
    hydra, parser = HydraConfig.get(), OverridesParser.create()
    overrides = [parser.parse_override(text) for text in given if "=" in text]
    shown = {override.key_or_group for override in overrides if override.is_sweep_override()} | {"run"}
    chosen = [str(text) for text in hydra.overrides.task if str(text).partition("=")[0].lstrip("+") in shown]
    return f"job {hydra.job.num + 1} ({', '.join(chosen)})"
