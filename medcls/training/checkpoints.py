"""Checkpoints of an unfinished training: one folder each, checksums inside, COMPLETE last; the newest valid one wins.

checkpoints/
  step-0000001234/   tensors.safetensors  state.json  COMPLETE (sha256 of the two)

Nothing is pickled. A folder is made under a temporary name and renamed when it is whole, and the one before it is
deleted only then: at every moment a valid one exists.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer

from medcls.disk import describe_unwritten, read_again
from medcls.errors import DataError, MissingInputError
from medcls.files import (
    TEMPORARY,
    delete_folder,
    format_json,
    read_json,
    sha256_file,
    sync_folder,
    write_bytes,
    write_json,
)
from medcls.records import from_json, to_json
from medcls.training.state import Best, EpochResult, Learner, Progress

TENSORS, STATE, COMPLETE = "tensors.safetensors", "state.json", "COMPLETE"
_PREFIX = "step-"
ASIDE = "damaged-"
_MODEL, _AVERAGE, _BEST, _OPTIMIZER = "model/", "average/", "best/", "optimizer/"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was read from a valid checkpoint.

    Attributes:
        path: Its folder.
        tensors: By name, on the CPU.
        state: The JSON object.
    """

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def write_checkpoint(
    folder: Path, name: str, *, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write one checkpoint, delete all but the newest `keep`, and return its folder.

    Args:
        folder: Of the checkpoints; it is made where the folder around it is there.
        name: Sorts after the names before it: `name_checkpoint`.
        tensors: Of any dtype and device.
        state: JSON values.
        keep: How many stay, this one included; 1 or more.

    Raises:
        WriteError: no space, read-only or gone; the checkpoints before it are as they were.
    """
    try:
        # Not its parents: a run that is gone in the middle of a training is not begun anew without its settings.
        folder.mkdir(exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder))
    except OSError as error:
        raise describe_unwritten(error, str(folder)) from error
    try:
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        write_bytes(temporary / TENSORS, save(plain))
        write_json(temporary / STATE, dict(state))
        whole = {part: sha256_file(temporary / part) for part in (TENSORS, STATE)}
        write_bytes(temporary / COMPLETE, format_json(whole))
        temporary.replace(folder / name)
        sync_folder(folder)
    except OSError as error:
        raise describe_unwritten(error, str(folder / name)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _list(folder)[keep:]:
        delete_folder(old)
    return folder / name


def name_checkpoint(step: int, *, validated: bool) -> str:
    """Return the folder's name at a step; the one after its epoch's validation sorts behind the one before."""
    return f"{_PREFIX}{step:010d}{'-validated' if validated else ''}"


def read_newest(
    folder: Path, *, accept: Callable[[dict[str, Any]], bool] = lambda state: True
) -> tuple[Checkpoint | None, dict[Path, str]]:
    """Return the newest valid checkpoint, None where there is none, and newer ones with what is wrong with them.

    A flipped bit or a missing byte is noticed.

    Args:
        folder: Of the checkpoints.
        accept: State -> whether it will do; others are passed over.

    Raises:
        ReadError: the disk fails: an older checkpoint would be taken in place of one that may be sound.
    """
    damaged: dict[Path, str] = {}
    for path in _list(folder):
        try:
            found = Checkpoint(path, *_read(path))
        except (DataError, MissingInputError) as error:
            damaged[path] = str(error)
            continue
        if accept(found.state):
            return found, damaged
    return None, damaged


def delete_newer(path: Path) -> None:
    """Delete the checkpoints that are newer than that of a folder: the training goes another way from there."""
    for newer in _list(path.parent):
        if newer.name > path.name:
            delete_folder(newer)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, which then counts no more, and return its new path: a person may still want it."""
    aside = path.with_name(f"{ASIDE}{path.name}")
    number = 2
    while aside.exists():
        aside, number = path.with_name(f"{ASIDE}{path.name}-{number}"), number + 1
    path.rename(aside)
    return aside


def delete_all(folder: Path) -> None:
    """Delete all checkpoints of a folder but those that were set aside, each at once."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.name.startswith(ASIDE):
            delete_folder(path)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _list(folder: Path) -> list[Path]:
    """Newest first; temporary ones are none."""
    return sorted((path for path in folder.glob(f"{_PREFIX}*") if path.is_dir()), reverse=True)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    expected = read_json(path / COMPLETE)
    for part in (TENSORS, STATE):
        if expected.get(part) != sha256_file(path / part):
            raise DataError(f"{path / part} has changed since it was written")
    complete = read_again((path / COMPLETE).read_bytes, str(path / COMPLETE))
    if complete != format_json({part: expected[part] for part in (TENSORS, STATE)}):
        raise DataError(f"{path / COMPLETE} has changed since it was written")
    content = read_again((path / TENSORS).read_bytes, str(path / TENSORS))
    try:
        return load(content), read_json(path / STATE)
    except SafetensorError as error:
        raise DataError(f"{path / TENSORS} cannot be read: {error}") from error


def pack_training(learner: Learner, progress: Progress) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return all that the next step depends on: tensors by name, and JSON values.

    Random numbers are not among it: every draw is a function of seed, epoch and step.
    """
    tensors = _prefix(_MODEL, learner.model.state_dict())
    if learner.average is not None:
        tensors |= _prefix(_AVERAGE, learner.average.state_dict())
    tensors |= _prefix(_BEST, progress.best.state or {})
    saved = learner.optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in saved["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{index}/{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    best = progress.best
    return tensors, {
        "epoch": progress.epoch,
        "groups": progress.groups,
        "result": to_json(progress.result),
        "best": {
            "epoch": best.epoch,
            "score": best.score if math.isfinite(best.score) else None,
            "loss": best.loss if math.isfinite(best.loss) else None,
        },
        "optimizer": {"groups": saved["param_groups"], "numbers": numbers},
        "schedule": learner.schedule.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "nonfinite": learner.nonfinite,
        "retreats": learner.retreats,
        "piece": learner.piece,
    }


def unpack_training(learner: Learner, tensors: dict[str, Tensor], state: dict[str, Any]) -> Progress:
    """Put a learner, built by the same settings, where the packed one stood, and return where that is."""
    learner.model.load_state_dict(_strip(_MODEL, tensors))
    if learner.average is not None:
        learner.average.load_state_dict(_strip(_AVERAGE, tensors))
    _load_optimizer(learner.optimizer, _strip(_OPTIMIZER, tensors), state["optimizer"])
    learner.schedule.load_state_dict(state["schedule"])
    if state["scaler"]:
        learner.scaler.load_state_dict(state["scaler"])
    learner.nonfinite, learner.retreats, learner.piece = (state[key] for key in ("nonfinite", "retreats", "piece"))
    score, loss = state["best"]["score"], state["best"].get("loss")
    best = Best(
        score=-math.inf if score is None else score,
        epoch=state["best"]["epoch"],
        loss=math.nan if loss is None else loss,
        state=_strip(_BEST, tensors) or None,
    )
    return Progress(state["epoch"], from_json(EpochResult, state["result"], name="result"), state["groups"], best)


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], saved: dict[str, Any]) -> None:
    entries: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in saved["numbers"].items()}
    for key, tensor in tensors.items():
        index, name = key.split("/", 1)
        entries.setdefault(int(index), {})[name] = tensor
    groups = [{key: _from_json(key, value) for key, value in group.items()} for group in saved["groups"]]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            # The file has no strides: in channels_last a sum over the moments would go in another order.
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _from_json(key: str, value: Any) -> Any:
    """JSON knows no tuples: Adam's betas."""
    return tuple(value) if isinstance(value, list) and key != "params" else value


def _prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _strip(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
