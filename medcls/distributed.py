"""Several processes as one training: who writes, sums over processes, and checks that all agree.

Everything here does nothing in one process, and is called by all of several in the same order. torchrun's environment
says how many there are (RANK, WORLD_SIZE, LOCAL_RANK); gradients are added up here, without torch's
DistributedDataParallel (docs/decisions/0029-several-processes.md). The only module that imports torch.distributed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from medcls.errors import MedclsError

if TYPE_CHECKING:
    from torch import Tensor, nn

# The first process checks a whole store, and computes features, while the others wait; a death is noticed at once.
_TIMEOUT = timedelta(hours=24)
_SECONDS_TO_EXIT = 3.0


class PeerError(MedclsError):
    """Another process of the training has ended; what it said counts, and the same command goes on."""

    exit_code = 75


class DisagreementError(MedclsError):
    """The processes of a training do not hold the same."""

    exit_code = 70


def count_ranks() -> int:
    """Return the number of processes, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def count_local_ranks() -> int:
    """Return how many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if count_ranks() > 1 else 1


def get_rank() -> int:
    """Return this process's number, 0 … count_ranks() - 1."""
    return int(os.environ.get("RANK", "0")) if count_ranks() > 1 else 0


def get_part() -> tuple[int, int]:
    """Return (rank, rank): which part of every batch is this process's."""
    return get_rank(), count_ranks()


def is_first() -> bool:
    """Return whether this process is the one that writes files and say what happens."""
    return get_rank() == 0


@contextlib.contextmanager
def join_ranks() -> Iterator[None]:
    """Join the processes while the block runs: gloo for tensors on the CPU, NCCL for those on GPUs, each its own."""
    if count_ranks() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    backend = "gloo"
    # More processes than GPUs are for device=cpu: choose_device refuses others.
    if torch.cuda.is_available() and count_local_ranks() <= torch.cuda.device_count():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    with _translate_errors():
        dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield
    except dist.DistError as error:
        # Of torch's own messages, such as those of BatchNorm over all processes.
        raise PeerError(f"another process of this training has ended ({error}): run the same command again") from error
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def first_goes_ahead() -> Iterator[None]:
    """The first process runs the block, then the others: what it finds wrong is said once, what it makes is there."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def wait() -> None:
    """Return when every process has come here."""
    any_rank(False)


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set in any process."""
    if count_ranks() == 1:
        return flags
    import torch

    counts = _sum(torch.tensor(flags, dtype=torch.int64))
    return tuple(count > 0 for count in counts.tolist())


def add_up(*values: float) -> tuple[float, ...]:
    """Return the sums of the values over the processes; in one process the values themselves, to the bit."""
    if count_ranks() == 1:
        return values
    import torch

    return tuple(_sum(torch.tensor(values, dtype=torch.float64)).tolist())


def sum_tensors(tensors: Sequence[Tensor], *, share: float) -> None:
    """Replace each tensor by the sum over processes of share times it: by a mean where the shares make one.

    Args:
        tensors: The same shapes in the same order in each process, in float32 or another float; changed in place.
        share: Of this process, 0 to 1.
    """
    if count_ranks() == 1:
        return
    import torch

    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        # One message instead of hundreds.
        total = _sum(torch.cat([tensor.reshape(-1) for tensor in alike]).mul_(share))
        for tensor, part in zip(alike, torch.split(total, [tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def sum_gradients(parameters: Iterable[nn.Parameter], *, share: float) -> None:
    """Replace the gradients by the sum over processes of share times them; parameters without one are left out."""
    sum_tensors([parameter.grad for parameter in parameters if parameter.grad is not None], share=share)


def gather_rows(rows: Tensor, positions: Tensor, *, total: int) -> Tensor:
    """Return all rows (total, …) from those (N, …) of each process, by their positions.

    Raises:
        DisagreementError: a position has no row, or several.
    """
    import torch

    whole = torch.zeros((total, *rows.shape[1:]), dtype=rows.dtype)
    counts = torch.zeros(total, dtype=torch.int64)
    whole[positions] = rows
    counts.index_add_(0, positions, torch.ones_like(positions))
    if count_ranks() > 1:
        # Zeros elsewhere: the sum is the row itself, to the bit.
        whole, counts = _sum(whole), _sum(counts)
    if not bool((counts == 1).all()):
        wrong = int((counts != 1).sum())
        raise DisagreementError(f"{wrong} of {total} rows were evaluated twice or not at all: please report this bug")
    return whole


def check_same(content: str, *, what: str) -> None:
    """Raise DisagreementError where `content` differs between the processes."""
    if count_ranks() == 1:
        return
    import torch

    digest = torch.frombuffer(bytearray(hashlib.sha256(content.encode()).digest()), dtype=torch.uint8).double()
    mean = _sum(digest.clone()) / count_ranks()
    if any_rank(not torch.equal(mean, digest))[0]:
        raise DisagreementError(
            f"the processes have different {what}: give each machine the same store, weights and version of medcls"
        )


def _sum(tensor: Tensor) -> Tensor:
    import torch.distributed as dist

    with _translate_errors():
        dist.all_reduce(tensor)
    return tensor


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """A process that ends closes its connections; the others meet that as RuntimeError of gloo or NCCL."""
    try:
        yield
    except RuntimeError as error:
        # The one with a reason of its own is to exit first: torchrun's agent ends the others at the first exit.
        time.sleep(_SECONDS_TO_EXIT)
        reason = " ".join(str(error).split())[:200]
        raise PeerError(
            f"another process of this training has ended, or cannot be reached ({reason}): run the same command again"
        ) from error
