"""What a training step of each network of volumes takes: peak memory and volumes a second, by size and by option.

`python -m benchmarks.volumes NETWORK SIZE VARIANT` is one case in a process of its own: the loop's own step on random
volumes. On CUDA it reports torch's own peak and the clock's seconds; on the CPU VmHWM less what the imports take, and
the processor's seconds of all threads together, which other work on the machine hardly changes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.memory import read_memory, run_child
from medcls.config import ScheduleConfig
from medcls.data.dataset import Batch
from medcls.models.autoencoder import CLASSIFIER_OF, build_autoencoder
from medcls.models.classifier import Answer, Input, build_classifier
from medcls.models.normalization import VolumeNormalization
from medcls.models.recomputation import recompute_blocks
from medcls.training.forward import move_model
from medcls.training.loop import train_step
from medcls.training.losses import Loss, build_loss, build_reconstruction_loss, supervise_deeply
from medcls.training.optimizers import build_optimizer, build_schedule
from medcls.training.precision import build_scaler, choose_device
from medcls.training.state import Learner, StepRules

SIZES = (64, 96, 128)
NETWORKS = ("dsa3dcnn", "encoder3d", "resnet18_3d", "autoencoder3d")
BATCH_SIZE = 2
_RANGE = (0.0, 255.0)


@dataclass(frozen=True, slots=True)
class Variant:
    """How the step is made; the first of VARIANTS is what medcls.train does unless told otherwise.

    Attributes:
        precision: "fp32" or "bf16".
        channels_last: trainer.channels_last.
        recompute: trainer.activation_checkpointing.
    """

    precision: str = "fp32"
    channels_last: bool = True
    recompute: bool = False


VARIANTS = {
    "fp32": Variant(),
    "fp32, contiguous": Variant(channels_last=False),
    "fp32, recomputed": Variant(recompute=True),
    "bf16": Variant("bf16"),
}


def measure(folder: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields a row for each network, size and variant; the ratio is its peak over that of the first variant."""
    for network in NETWORKS:
        for size in SIZES:
            first = 0.0
            for name in VARIANTS:
                found = run_child("benchmarks.volumes", network, str(size), name)
                peak = found["peak_bytes"]
                first = first or peak
                rate = f"{found['volumes_per_second']:.3g} volumes/s"
                yield f"{network}, {size} cubed, {name}", f"{peak / 1e6:,.0f} MB", rate, f"{peak / first:.2f}", ""


def time_steps(network: str, size: int, variant: Variant) -> dict[str, float]:
    """Returns "peak_bytes" and "volumes_per_second" of the second training step of this process.

    Args:
        network: One of NETWORKS.
        size: Voxels along each axis.
        variant: How the step is made.
    """
    rules = StepRules(choose_device("auto"), variant.precision, channels_last=variant.channels_last)
    before = 0 if rules.device == "cuda" else read_memory("VmRSS")
    learner = build_learner(network, size, recompute=variant.recompute, rules=rules)
    volumes = torch.randint(0, 256, (BATCH_SIZE, 1, size, size, size), dtype=torch.uint8)
    targets = torch.arange(BATCH_SIZE).float()[:, None] % 2
    batch = Batch(volumes, targets, torch.arange(BATCH_SIZE), torch.zeros(BATCH_SIZE, 0))
    train_step(learner, [batch], rules)
    clock = time.perf_counter if rules.device == "cuda" else time.process_time
    start = clock()
    # It reads the gradient's norm, so it returns when the device has all but finished.
    train_step(learner, [batch], rules)
    seconds = clock() - start
    peak = torch.cuda.max_memory_allocated() if rules.device == "cuda" else read_memory("VmHWM") - before
    return {"peak_bytes": float(peak), "volumes_per_second": BATCH_SIZE / seconds}


def build_learner(network: str, size: int, *, recompute: bool, rules: StepRules) -> Learner:
    """Returns the network with AdamW, in training mode."""
    model, loss = build_network(network, size, recompute=recompute)
    move_model(model, rules)
    optimizer = build_optimizer("adamw", [{"params": list(model.parameters())}], lr=1e-4)
    schedule = build_schedule(optimizer, ScheduleConfig("constant"), steps_per_epoch=1, epochs=1)
    model.train()
    return Learner(model, loss, optimizer, schedule, build_scaler(rules.precision, device=rules.device), None, model)


def build_network(network: str, size: int, *, recompute: bool) -> tuple[nn.Module, Loss]:
    """Returns a network of volumes (1, size, size, size) and its loss; classifiers have two classes."""
    normalize = VolumeNormalization("z_score", _RANGE)
    if network in CLASSIFIER_OF:
        autoencoder = build_autoencoder(network, in_channels=1, normalize=normalize)
        autoencoder.recompute = recompute
        return autoencoder, build_reconstruction_loss("mse")
    deep = network == "dsa3dcnn"
    model = build_classifier(
        "acnn3d" if deep else network,
        Answer("multiclass", 2),
        Input((1, size, size, size), normalize=normalize),
        options={"all_levels": True} if deep else {},
    )
    if recompute:
        recompute_blocks(model.backbone.stages)
    loss = build_loss("multiclass")
    return model, supervise_deeply(loss, [0.5, 1.0]) if deep else loss


def main(network: str, size: str, variant: str) -> None:
    """Runs one case in this process and prints its numbers as JSON."""
    print(json.dumps(time_steps(network, int(size), VARIANTS[variant])))


if __name__ == "__main__":
    main(*sys.argv[1:])
