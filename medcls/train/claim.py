"""Claim and lock the run folder for one configuration; refuse another configuration."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from medcls.config import PretrainJob, TrainJob
from medcls.console import say
from medcls.distributed import first_goes_ahead, is_first
from medcls.errors import ConfigError, UsageError
from medcls.files import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    HOLDER,
    MODEL,
    TEMPORARY,
    delete_folder,
    delete_partial,
    sha256_json,
    write_bytes,
    write_json,
)
from medcls.inputs import IMAGENET
from medcls.locks import lock_folder
from medcls.runs.folder import OURS, SETTINGS, read_settings
from medcls.training.checkpoints import delete_all

# They do not change what is learnt.
_FREE = ("run", "workers", "weights_dir", "demo", "baseline", "checkpoint")
# How long a training is.
_LENGTH = ("trainer.epochs:", "trainer.max_steps:", "trainer.patience:")


@contextlib.contextmanager
def hold_run(job: TrainJob | PretrainJob) -> Iterator[tuple[Path, bool]]:
    """Hold the run folder against other trainings while the block runs, and yield what `claim_run` returns."""
    command = "medcls.pretrain" if isinstance(job, PretrainJob) else "medcls.train"
    with lock_folder(Path(job.run or ""), command=command, say=say) if is_first() else contextlib.nullcontext():
        with first_goes_ahead():
            run, finished = claim_run(job)
            if is_first():
                for folder in (run, run / "config", run / CHECKPOINTS):
                    delete_partial(folder)
        yield run, finished


def claim_run(job: TrainJob | PretrainJob) -> tuple[Path, bool]:
    """Return the run folder and whether it holds a finished run with the very same settings.

    An unfinished run of the same settings goes on from its last checkpoint, or begins again where it has none.

    Raises:
        UsageError: no run=.
        ConfigError: the folder holds another run, or something that is no run.
    """
    if job.run is None:
        raise UsageError("run=DIR is missing: name the folder for this run's model and logs")
    run = Path(job.run)
    if run.exists() and not run.is_dir():
        raise ConfigError(f"run={run} is a file: choose a folder")
    settings = _settings_of(job)
    if not run.exists() or not _list_names(run):
        return run, False
    if _was_killed_at_once(run):
        return run, False
    if not (run / SETTINGS).is_file():
        strangers = [name for name in _list_names(run) if name not in OURS]
        raise ConfigError(
            f"run={run} holds {list_some(strangers) or 'a broken run'} but not a run: choose an empty folder"
        )
    # A setting that an older version did not have was as its default is.
    before = _fill(read_settings(run), _list_defaults(type(job)))
    finished = (run / MODEL).is_file()
    changed = sorted(_changes(_leave_out_places(before), _leave_out_places(settings)))
    if finished and changed and all(change.startswith(_LENGTH) for change in changed):
        onward = f"model.weights={run} transfer.val_seen=allow starts from its weights, "
        raise ConfigError(
            f"run={run} is finished ({'; '.join(changed)}): a longer training needs a run of its own, since its "
            f"schedule ends later: {onward if isinstance(job, TrainJob) else ''}with another run="
        )
    if changed:
        state = "a finished" if finished else "an unfinished"
        raise ConfigError(
            f"run={run} holds {state} run with other settings ({'; '.join(changed)}): choose another run="
        )
    return run, finished


def _list_names(run: Path) -> list[str]:
    """Return what is in the folder, but for the name of who holds it and what killed writes have left."""
    return sorted(p.name for p in run.iterdir() if p.name != HOLDER and not p.name.startswith(TEMPORARY))


def _was_killed_at_once(run: Path) -> bool:
    """Return whether there is nothing but the beginning of the very first write."""
    config = run / "config"
    if config.is_symlink() or _list_names(run) != [config.name] or not config.is_dir():
        return False
    return all(path.name.startswith(TEMPORARY) for path in config.iterdir())


def list_some(names: Sequence[str], *, shown: int = 5) -> str:
    """Return the first names in one line, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _settings_of(job: TrainJob | PretrainJob) -> dict[str, Any]:
    """As they come back from JSON, where the keys of task.classes={0: 0, 1: 1} are strings.

    The store's folder is absolute: evaluate finds it from any working folder.
    """
    settings: dict[str, Any] = json.loads(json.dumps(asdict(job)))
    settings["store"] = str(Path(job.store or "").resolve())
    return {key: value for key, value in settings.items() if key not in _FREE}


def _leave_out_places(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without where store and weights lie: before anything goes on their content is compared, by checksum."""
    model = settings.get("model")
    kept = {key: value for key, value in settings.items() if key != "store"}
    if isinstance(model, dict) and model.get("weights") not in (None, IMAGENET):
        kept["model"] = model | {"weights": "of a file"}
    return kept


def _list_defaults(schema: Any) -> dict[str, Any]:
    """Return the defaults of a schema by name; together they need not make a job, as those of pretraining do not."""
    factories = {f.name: f.default_factory for f in fields(schema) if f.default_factory is not MISSING}
    defaults = {f.name: f.default for f in fields(schema) if f.default is not MISSING}
    return defaults | {n: _list_defaults(make) if is_dataclass(make) else make() for n, make in factories.items()}


def _fill(settings: Any, defaults: Any) -> Any:
    if not (isinstance(settings, dict) and isinstance(defaults, dict)):
        return settings
    # Of a dictionary whose names are the user's (task.classes, augment.transforms) the default is empty.
    absent = {key: value for key, value in defaults.items() if key not in settings and key not in _FREE}
    return {key: _fill(value, defaults.get(key)) for key, value in settings.items()} | absent


def _changes(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(set(before) | set(now))
        return [c for k in keys for c in _changes(before.get(k), now.get(k), f"{name}.{k}" if name else k)]
    return [] if before == now else [f"{name}: {before} -> {now}"]


def start_run(run: Path, job: TrainJob | PretrainJob, *, environment: dict[str, Any]) -> None:
    """Empty an unfinished run without a checkpoint and write its configuration and environment.

    Killed at any moment, the same command begins again: checkpoints go first, since a run that has one is resumed and
    then needs all other files; the settings stay until others are in their place, since without them it is no run.
    """
    delete_all(run / CHECKPOINTS)
    for name in sorted(OURS - {"evaluation", "config", CHECKPOINTS}):
        delete_folder(run / name)
    write_settings(run, job, environment=environment)


def write_settings(run: Path, job: TrainJob | PretrainJob, *, environment: dict[str, Any]) -> None:
    """Write what the run was asked for, with where its store and weights lie now."""
    settings = _settings_of(job)
    write_json(run / SETTINGS, settings)
    write_bytes(run / CONFIG, OmegaConf.to_yaml(OmegaConf.create(asdict(job))).encode())
    write_json(run / ENVIRONMENT, environment | {"settings_sha256": sha256_json(settings)})
