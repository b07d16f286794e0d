"""Claim and lock the run folder for one configuration; refuse another configuration, and other data."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from medcls.config import PretrainJob, TrainJob
from medcls.console import say
from medcls.data.splits import read_split
from medcls.data.store import Store
from medcls.distributed import first_goes_ahead, is_first
from medcls.errors import ConfigError, MissingInputError, UsageError
from medcls.files import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    HOLDER,
    LABELS,
    MODEL,
    TEMPORARY,
    delete_folder,
    delete_partial,
    sha256_file,
    sha256_json,
    write_bytes,
    write_json,
)
from medcls.inputs import NAMED, find_own_weights
from medcls.locks import lock_folder
from medcls.runs.folder import OURS, SETTINGS, read_settings
from medcls.runs.model_file import read_any_card
from medcls.training.checkpoints import delete_all

Settings = Mapping[str, object]
# They do not change what is learnt.
_FREE = ("run", "workers", "weights_dir", "demo", "baseline", "checkpoint")
# How long a training is.
_LENGTH = ("trainer.epochs:", "trainer.max_steps:", "trainer.patience:")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The run that a command asks for.

    Attributes:
        folder: The run folder.
        command: "medcls.train" or "medcls.pretrain".
        store: Folder of the store, as typed.
        split: Name of the split.
        weights: model.weights, as typed.
        settings: What is learnt, as JSON; the store's folder is absolute.
        defaults: What settings mean that a run of an older version lacks.
        config: The whole configuration as YAML, which can be run again.
    """

    folder: Path
    command: str
    store: Path
    split: str
    weights: str | None
    settings: Settings
    defaults: Settings
    config: str


def request_run(job: TrainJob | PretrainJob) -> RunRequest:
    """Return the run that a job asks for.

    Raises:
        UsageError: no run=.
    """
    if job.run is None:
        raise UsageError("run=DIR is missing: name the folder for this run's model and logs")
    store = Path(job.store or "")
    # As they come back from JSON, where the keys of task.classes={0: 0, 1: 1} are strings.
    settings = json.loads(json.dumps(asdict(job)))
    # Absolute: evaluate finds the store from any working folder.
    settings["store"] = str(store.resolve())
    return RunRequest(
        folder=Path(job.run),
        command="medcls.pretrain" if isinstance(job, PretrainJob) else "medcls.train",
        store=store,
        split=job.split.name,
        weights=job.model.weights,
        settings={key: value for key, value in settings.items() if key not in _FREE},
        defaults=_list_defaults(type(job)),
        config=OmegaConf.to_yaml(OmegaConf.create(asdict(job))),
    )


@contextlib.contextmanager
def hold_run(asked: RunRequest) -> Iterator[bool]:
    """Hold the run folder against other trainings while the block runs, and yield what `claim_run` returns."""
    run = asked.folder
    with lock_folder(run, command=asked.command, say=say) if is_first() else contextlib.nullcontext():
        with first_goes_ahead():
            finished = claim_run(asked)
            if is_first():
                for folder in (run, run / "config", run / CHECKPOINTS):
                    delete_partial(folder)
        yield finished


def claim_run(asked: RunRequest) -> bool:
    """Return whether the folder holds a finished run with the very same settings.

    An unfinished run of the same settings goes on from its last checkpoint, or begins again where it has none.

    Raises:
        ConfigError: the folder holds another run, or something that is not a run.
    """
    run = asked.folder
    if run.exists() and not run.is_dir():
        raise ConfigError(f"run={run} is a file: choose a folder")
    names = _list_names(run)
    if not names or _was_killed_at_once(run, names):
        return False
    if not (run / SETTINGS).is_file():
        strangers = [name for name in names if name not in OURS]
        shown = ", ".join(strangers[:_SHOWN]) or "a broken run"
        more = f" and {len(strangers) - _SHOWN} more" if len(strangers) > _SHOWN else ""
        raise ConfigError(f"run={run} holds {shown}{more} but not a run: choose an empty folder")
    before = _leave_out_places(_fill(read_settings(run), asked.defaults))
    changed = sorted(_list_changes(before, _leave_out_places(asked.settings)))
    finished = (run / MODEL).is_file()
    if finished and changed and all(change.startswith(_LENGTH) for change in changed):
        onward = ""
        if asked.command == "medcls.train":
            onward = f"model.weights={run} transfer.val_seen=allow starts from its weights, "
        raise ConfigError(
            f"run={run} is finished ({'; '.join(changed)}): a longer training needs a run of its own, since its "
            f"schedule ends later: {onward}with another run="
        )
    if changed:
        others = f"run with other settings ({'; '.join(changed)})"
        if finished:
            raise ConfigError(f"run={run} holds a finished {others}: choose another run=")
        raise ConfigError(
            f"run={run} holds an unfinished {others}: set them as before to resume it, or choose another run="
        )
    return finished


def _list_names(run: Path) -> list[str]:
    """Return what is in the folder, but for the name of who holds it and what killed writes have left."""
    if not run.exists():
        return []
    return sorted(p.name for p in run.iterdir() if p.name != HOLDER and not p.name.startswith(TEMPORARY))


def _was_killed_at_once(run: Path, names: list[str]) -> bool:
    """Return whether there is nothing but the beginning of the very first write."""
    config = run / "config"
    if config.is_symlink() or names != [config.name] or not config.is_dir():
        return False
    return all(path.name.startswith(TEMPORARY) for path in config.iterdir())


def _leave_out_places(settings: Settings) -> Settings:
    """Settings without where store and weights lie: before anything goes on their content is compared, by checksum."""
    model = settings.get("model")
    kept = {key: value for key, value in settings.items() if key != "store"}
    if isinstance(model, dict) and model.get("weights") not in (None, *NAMED):
        kept["model"] = model | {"weights": "of a file"}
    return kept


def _list_defaults(schema: Any) -> Settings:
    """Return the defaults of a schema by name; together they need not make a job, as those of pretraining do not."""
    defaults: dict[str, object] = {f.name: f.default for f in fields(schema) if f.default is not MISSING}
    for f in fields(schema):
        make: Any = f.default_factory
        if make is not MISSING:
            defaults[f.name] = _list_defaults(make) if is_dataclass(make) else make()
    return defaults


def _fill(settings: Settings, defaults: Settings) -> Settings:
    """Return settings in which one that an older version did not have is as its default is."""
    # Of a dictionary whose names are the user's (task.classes, augment.transforms) the default is empty.
    filled = {key: value for key, value in defaults.items() if key not in _FREE} | dict(settings)
    for key, value in settings.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            filled[key] = _fill(value, default)
    return filled


def _list_changes(before: object, now: object, name: str = "") -> list[str]:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [f"{name}: {before} -> {now}"]
    changes = []
    for key in sorted(set(before) | set(now)):
        changes += _list_changes(before.get(key), now.get(key), f"{name}.{key}".removeprefix("."))
    return changes


def start_run(asked: RunRequest, *, environment: Settings) -> None:
    """Empty an unfinished run without a checkpoint and write its configuration and environment.

    Killed at any moment, the same command begins again: checkpoints go first, since a run that has one is resumed and
    then needs all other files; the settings stay until others are in their place, since without them it is no run.
    """
    delete_all(asked.folder / CHECKPOINTS)
    for name in sorted(OURS - {"evaluation", "config", CHECKPOINTS}):
        delete_folder(asked.folder / name)
    write_settings(asked, environment=environment)


def write_settings(asked: RunRequest, *, environment: Settings) -> None:
    """Write what the run was asked for, with where its store and weights lie now."""
    run = asked.folder
    write_json(run / SETTINGS, dict(asked.settings))
    write_bytes(run / CONFIG, asked.config.encode())
    write_json(run / ENVIRONMENT, {**environment, "settings_sha256": sha256_json(asked.settings)})


def confirm_finished(asked: RunRequest) -> None:
    """Say that a run is finished, and delete what a kill after its last write left.

    Raises:
        ConfigError: its store or weights have other content now.
        MissingInputError: they are said to lie elsewhere than before, and are not there.
    """
    _check_same_data(asked)
    if is_first():
        delete_folder(asked.folder / CHECKPOINTS)
    say(f"run {asked.folder}: finished already with these settings; nothing to do")


def _check_same_data(asked: RunRequest) -> None:
    """Compare store and weights with those of the finished run; where they lay before they may be gone by now."""
    run, weights = asked.folder, find_own_weights(asked.weights)
    before = read_settings(run)
    missing = []
    if not asked.store.is_dir() and asked.settings["store"] != before.get("store"):
        missing.append(f"store={asked.store}")
    if weights and not weights.is_file() and asked.weights != before.get("model", {}).get("weights"):
        missing.append(f"model.weights={asked.weights}")
    if missing:
        raise MissingInputError(
            f"{missing[0]} does not exist; run={run} used it at another path: set store= or model.weights= to the "
            "current one"
        )
    if not asked.store.is_dir():
        return
    store, card = Store(asked.store), read_any_card(run / MODEL)
    changed = []
    if card.store_sha256 != store.sha256:
        changed.append("images")
    if card.labels_sha256 and card.labels_sha256 != sha256_file(store.folder / LABELS):
        changed.append("labels")
    if card.split_sha256 != read_split(store, asked.split)[1]["split_sha256"]:
        changed.append("splits")
    if weights and weights.is_file() and card.ancestors[-1]["sha256"] != sha256_file(weights):
        changed.append("weights")
    if changed:
        raise ConfigError(
            f"run={run} was trained on other {', '.join(changed)} than store={store.folder} and model.weights= have "
            "now: choose another run="
        )
