"""Seeds, counter-based random generators, and the record of a run's environment.

Every random draw that belongs to a sample is a pure function of (seed, epoch, image_id): order and augmentation
depend on neither workers, ranks nor restarts (own choice, docs/decisions/0004-randomness.md).
"""

from __future__ import annotations

import hashlib
import os
import platform
import random
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import medcls

_RECORDED_PACKAGES = (
    "torch", "torchvision", "monai", "pydicom", "albumentations", "hydra-core", "omegaconf", "numpy",
    "opencv-python-headless", "pillow", "pyarrow", "safetensors", "imagecodecs",
    "scikit-learn",
)  # fmt: skip


def draw_seed(*parts: object) -> int:
    """Return a 64-bit integer that is a pure function of `parts`, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def make_generator(*parts: object) -> np.random.Generator:
    """Return a numpy generator whose stream is a pure function of `parts` (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(draw_seed(*parts)))


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators and ask torch for deterministic kernels.

    Operations that CUDA has no deterministic kernel for warn instead of failing (VGG ends in one).
    """
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    # cuBLAS reads this when CUDA starts; without it matrix products are not repeatable.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would also fill every new tensor with NaN: that finds bugs, costs time and changes no result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def describe_environment(*, device: str, precision: str) -> dict[str, object]:
    """Return versions, processor, threads and git commit: what has to be equal for the same bits again."""
    import torch

    return describe_software() | {
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cuda": torch.version.cuda if device == "cuda" else None,
        "precision": precision,
    }


def describe_software() -> dict[str, Any]:
    """Return what `describe_environment` does without torch: versions, platform, processor and git commit."""
    return {
        "medcls": medcls.__version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "packages": {name: _version(name) for name in _RECORDED_PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def _git_commit() -> str | None:
    """Return the commit of a checkout, with "+changes" where the working tree differs; None in a wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
