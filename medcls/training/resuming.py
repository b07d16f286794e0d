"""A training that was broken off, as tensors and JSON, and back to the bit: nothing is pickled."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from medcls.training.progress import Best, EpochResult, Progress
from medcls.training.state import Learner

_MODEL, _AVERAGE, _BEST, _OPTIMIZER = "model/", "average/", "best/", "optimizer/"


def pack_training(learner: Learner, progress: Progress) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns all that the next step depends on: tensors by name, and JSON values.

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
        "result": asdict(progress.result),
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
    """Puts a learner, built by the same settings, where the packed one stood, and returns where that is."""
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
    return Progress(state["epoch"], EpochResult(**state["result"]), state["groups"], best)


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
