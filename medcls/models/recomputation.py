"""Activation checkpointing: blocks drop their activations and recompute them in the backward pass.

BatchNorm would take the same batch into its running statistics twice; here it leaves them alone the second time, so
that a step ends in the same numbers with and without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute_blocks(stages: Mapping[str, nn.Module]) -> int:
    """Make the blocks of a network's stages compute twice instead of keeping their maps; returns how many there are.

    A block is a module with layers inside: a residual block, or a convolution with its pool. The layers of a VGG stand
    alone, so it has none.

    Args:
        stages: Of a Backbone.
    """
    count = 0
    for stage in stages.values():
        for block in list_blocks(stage.children()):
            # Over the method, not around the module: parameters keep their names.
            block.forward = partial(_run, block)
            count += 1
    return count


def list_blocks(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the modules with layers inside; of a Sequential those within it."""
    found: list[nn.Module] = []
    for module in modules:
        if isinstance(module, nn.Sequential):
            found += list_blocks(module)
        elif any(True for _ in module.children()):
            found.append(module)
    return found


def _run(block: nn.Module, *inputs: Tensor) -> Any:
    forward = partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """For the first pass and for the second."""
    return contextlib.nullcontext(), _keep_statistics(block)


@contextlib.contextmanager
def _keep_statistics(block: nn.Module) -> Iterator[None]:
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Statistics that move by nothing; without them autograd would miss two tensors that it saw the first time.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
