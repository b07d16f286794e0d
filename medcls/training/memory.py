"""Cut batches into pieces that fit into the device's memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medcls.data.dataset import Batch
from medcls.errors import MedclsError
from medcls.models.synchronization import waits_for_others


class MemoryLimitError(MedclsError):
    """The device has no room for the smallest piece of a batch: the same again would end alike."""

    exit_code = 70


def cut_batch(batch: Batch, size: int | None, *, least: int = 1) -> list[Batch]:
    """Return the batch in pieces of at most `size` images, which differ by one at most; whole where size is None.

    No piece is smaller than `least`, even if it is larger than `size`.
    """
    images = len(batch.images)
    count = 1 if size is None else max(1, min(-(-images // size), images // least))
    if count == 1:
        return [batch]
    return [Batch(*columns) for columns in zip(*(torch.tensor_split(c, count) for c in batch), strict=True)]


def count_least(model: nn.Module) -> int:
    """Return the images of the smallest piece a batch may be cut into; 2**31 = do not cut."""
    if waits_for_others(model):
        return 2**31
    # A statistic needs two images.
    return 2 if any(isinstance(module, _BatchNorm) and module.training for module in model.modules()) else 1


def halve_pieces(group: list[Batch], size: int | None, error: torch.OutOfMemoryError, *, least: int = 1) -> int:
    """Return half the images of the largest piece that there was no room for, rounded up.

    Raises:
        MemoryLimitError: the batches cannot be cut into smaller ones.
    """
    largest = _count_largest(group, size, least=least)
    half = -(-largest // 2)
    if _count_largest(group, half, least=least) == largest:
        raise MemoryLimitError(
            f"no room for {largest} image{'s'[: largest > 1]} at once, and fewer are not possible "
            f"({_read_reason(error)}): set "
            "trainer.activation_checkpointing=true, precision=bf16 or fp16, or use smaller images (crop.size)"
        ) from error
    return half


@contextlib.contextmanager
def explain_update() -> Iterator[None]:
    """The update of the weights, in the block, needs the same room however a batch is cut.

    Raises:
        MemoryLimitError: there is none.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError(
            f"no room for the optimizer beside the weights and their gradients ({_read_reason(error)}): set "
            "optimizer=sgd, train fewer stages (transfer=partial or frozen), or choose a smaller network"
        ) from error


def _read_reason(error: torch.OutOfMemoryError) -> str:
    return str(error).strip().partition("\n")[0][:200] or "out of memory"


def _count_largest(group: list[Batch], size: int | None, *, least: int) -> int:
    return max(len(piece.images) for batch in group for piece in cut_batch(batch, size, least=least))


def free_memory(device: str) -> None:
    """Give back what torch keeps for later: pieces of another size do not fit into it."""
    if device == "cuda":
        torch.cuda.empty_cache()
