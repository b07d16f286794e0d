"""Settings that many commands share: device, precision, worker processes, seed, batch size."""

from __future__ import annotations

from medcls.config.schema import setting


def device_setting() -> str:
    """Return the field of `device`."""
    return setting(
        "auto",
        "Where the network runs; auto takes a GPU if there is one.",
        choices=("auto", "cpu", "cuda"),
        common=True,
    )


def precision_setting(default: str = "auto") -> str:
    """Return the field of `precision`."""
    return setting(
        default,
        "Arithmetic of the network; auto takes bf16 or fp16 on a GPU and fp32 on the CPU.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )


def workers_setting(what: str = "load images") -> int:
    """Return the field of `workers`.

    Args:
        what: What the processes do, "load images".
    """
    return setting(
        -1,
        f"Processes that {what}; -1 chooses by the cores, 0 uses none; lower it if memory is short.",
        low=-1,
        high=256,
        common=True,
    )


def seed_setting(what: str) -> int:
    """Return the field of `seed`.

    Args:
        what: What is drawn from it, "the initial weights, the order and the augmentation".
    """
    return setting(0, f"Seed of {what}; the same seed gives the same result.", low=0, common=True)


def batch_setting() -> int:
    """Return the field of `batch_size` of a command that does not train."""
    return setting(64, "Images per batch; lower it if the GPU runs out of memory.", low=1)
