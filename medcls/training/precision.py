"""Choose the device and number format, and build the gradient scaler that fp16 needs."""

from __future__ import annotations

import torch

from medcls.distributed import count_local_ranks
from medcls.errors import ConfigError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str) -> str:
    """Return "cuda" or "cpu"; "auto" takes CUDA where there is one.

    Raises:
        ConfigError: device=cuda without a CUDA device, or fewer of them than processes.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("device=cuda: torch finds no CUDA device here: set device=auto to use the CPU")
    chosen = ("cuda" if available else "cpu") if device == "auto" else device
    processes = count_local_ranks()
    if chosen == "cuda" and processes > max(1, torch.cuda.device_count()):
        gpus = torch.cuda.device_count()
        raise ConfigError(
            f"{processes} processes on a machine of {gpus} GPUs: set --nproc-per-node={gpus}, or device=cpu"
        )
    return chosen


def choose_precision(precision: str, *, device: str) -> str:
    """Return "fp32", "bf16" or "fp16".

    "auto" is bf16 on GPUs that have it in hardware, fp16 with gradient scaling on older ones, fp32 on the CPU (where
    bf16 is emulated and many times slower).
    """
    if precision != "auto":
        return precision
    if device == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(precision: str, *, device: str) -> torch.autocast:
    """Return the autocast context of a precision; for fp32 it does nothing."""
    return torch.autocast(device, dtype=_DTYPES[precision], enabled=precision != "fp32")


def build_scaler(precision: str, *, device: str) -> torch.amp.GradScaler:
    """Return the gradient scaler: active for fp16, which underflows without it; a no-op otherwise."""
    return torch.amp.GradScaler(device, enabled=precision == "fp16")
