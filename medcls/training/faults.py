"""Find the layer where a step became not finite: the step is repeated with hooks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from medcls.data.dataset import Batch
from medcls.models.synchronization import waits_for_others
from medcls.training.loop import accumulate_gradients, take_back
from medcls.training.state import Learner, StepRules

Place = tuple[str, str]
"""Where it shows, "forward", "loss", "backward" or "", and the layer."""


def describe_fault(learner: Learner, group: list[Batch], rules: StepRules, *, loss: float, seed: int) -> dict[str, Any]:
    """Return what is known of a step that was skipped because it was not finite, as JSON values.

    Args:
        learner: As the step left it: as it was before.
        group: Its batches.
        rules: How it was made.
        loss: What came out.
        seed: That torch was seeded with before it.
    """
    where, layer = find_layer(learner, group, rules, loss=loss, seed=seed)
    return {
        "where": where,
        "layer": layer,
        "loss": loss if math.isfinite(loss) else str(loss),
        "lr": learner.rates,
        "precision": rules.precision,
        "nonfinite_in_a_row": learner.nonfinite,
        "retreats": learner.retreats,
        "positions": [batch.positions.tolist() for batch in group],
    }


def find_layer(learner: Learner, group: list[Batch], rules: StepRules, *, loss: float, seed: int) -> Place:
    """Return the first place that is not finite when a skipped step is made again; ("", "") where it is none now.

    That is the first layer whose output is not finite ("forward"), else the loss, else the first layer or parameter
    whose gradient is not ("backward"). Weights, statistics and scale stay as they are. With BatchNorm over all
    processes it is not made again: not all of them may be here.
    """
    if waits_for_others(learner.model):
        return "", ""
    found: list[Place] = []
    again = replace(learner, forward=learner.model)  # hooks are seen by the network itself, not by a compiled one
    buffers = [buffer.clone() for buffer in learner.model.buffers()]
    scale = learner.scaler.state_dict()
    if scale and math.isfinite(loss):
        # The step has lowered it already; at half the scale the same gradient may be finite.
        learner.scaler.update(scale["scale"] / scale["backoff_factor"])
    handles = list(_watch(learner.model, found))
    try:
        torch.manual_seed(seed)
        loss = accumulate_gradients(again, group, rules)
    except torch.OutOfMemoryError:
        # Hooks and an uncompiled network may take more: no reason to end a training.
        return "", ""
    finally:
        for handle in handles:
            handle.remove()
        take_back(learner, buffers)
        if scale:
            learner.scaler.load_state_dict(scale)
    if found:
        return found[0]
    return ("", "") if math.isfinite(loss) else ("loss", "")


def _watch(model: nn.Module, found: list[Place]) -> Iterator[RemovableHandle]:
    """Hooks on every layer and parameter; a layer inside another one ends before it, and is found first."""
    for name, module in model.named_modules():
        yield module.register_forward_hook(partial(_look_at_output, name or type(model).__name__, found))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield parameter.register_hook(partial(_look, ("backward", name), found))  # type: ignore[no-untyped-call]


def _look_at_output(name: str, found: list[Place], module: nn.Module, inputs: Any, output: Any) -> None:
    for tensor in output if isinstance(output, tuple | list) else (output,):
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            _look(("forward", name), found, tensor)
            if tensor.requires_grad:
                # Not module.register_full_backward_hook: it forbids activations that work in place.
                tensor.register_hook(partial(_look, ("backward", name), found))  # type: ignore[no-untyped-call]


def _look(place: Place, found: list[Place], tensor: Tensor) -> None:
    if not found and not tensor.isfinite().all():
        found.append(place)
