"""What each process of tests/test_distributed.py runs: python -m tests.ranks OUT; what it saw goes to OUT/RANK.json."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medcls import distributed
from medcls.config import ScheduleConfig
from medcls.data.dataset import Batch
from medcls.data.loaders import EpochSampler
from medcls.models.synchronization import share_statistics
from medcls.training.forward import predict_logits
from medcls.training.loop import draw_step_seed, train_step
from medcls.training.losses import build_loss
from medcls.training.optimizers import build_optimizer, build_schedule
from medcls.training.precision import build_scaler
from medcls.training.state import Learner, StepRules

IMAGES, BATCH, STEPS = 29, 10, 6


def make_images() -> Batch:
    """Returns 29 images (29, 1, 8, 8) of two classes."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (IMAGES, 1, 8, 8), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 3, (IMAGES, 1), generator=generator).float()
    return Batch(images, targets, torch.arange(IMAGES), torch.empty(IMAGES, 0))


class Tiny(nn.Module):
    """Stored integers (N, 1, 8, 8) to logits (N, 3), without BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images.float() / 255))
        return logits


def build(precision: str = "fp32", *, momentum: float = 0.9) -> Learner:
    """Returns a learner of the tiny network, the same in every process."""
    torch.manual_seed(3)
    model = Tiny()
    groups = [{"params": list(model.parameters()), "stage": "all", "weight_decay": 1e-3}]
    optimizer = build_optimizer("sgd", groups, lr=0.05, momentum=momentum)
    schedule = build_schedule(optimizer, ScheduleConfig("cosine"), steps_per_epoch=STEPS, epochs=1)
    scaler = build_scaler(precision, device="cpu")
    return Learner(model, build_loss("multiclass"), optimizer, schedule, scaler, None, model)


def take(batch: Batch, positions: list[int]) -> Batch:
    """Returns some images of a batch."""
    return Batch(*(column[positions] for column in batch))


def fit(part: tuple[int, int], rules: StepRules) -> tuple[Learner, list[float]]:
    """Trains the tiny network on this process's parts of two epochs, and returns it with the losses."""
    learner, whole, losses = build(rules.precision), make_images(), []
    sampler = EpochSampler(IMAGES, batch_size=BATCH, seed=1, shuffle=True, part=part)
    for sampler.epoch in (0, 1):
        batches = [take(whole, [position for _, position in positions]) for positions in sampler]
        for start in range(0, len(batches), rules.accumulate):
            loss, taken, images = train_step(learner, batches[start : start + rules.accumulate], rules)
            losses += [loss, float(taken), float(images)]
    return learner, losses


RULES = {
    "fp32": StepRules(),
    "clipped": StepRules(clip_norm=0.05),
    "accumulated": StepRules(accumulate=2),
    "fp16": StepRules(precision="fp16"),
}


def flatten(model: nn.Module) -> list[float]:
    """Returns all weights as one list."""
    return [value for tensor in model.state_dict().values() for value in tensor.flatten().tolist()]


def run(rank: int, ranks: int) -> dict[str, Any]:
    """Returns what this process saw."""
    seen: dict[str, Any] = {
        "add_up": distributed.add_up(1.5, float(rank)),
        "any": distributed.any_rank(rank == 1, False),
    }
    tensors = [torch.full((2, 3), float(rank)), torch.arange(4.0) * rank, torch.tensor([0.5], dtype=torch.float64)]
    distributed.sum_tensors(tensors, share=0.25 if rank == 0 else 0.75)
    seen["summed"] = [tensor.tolist() for tensor in tensors]
    rows = torch.arange(10.0).view(5, 2)
    mine = torch.arange(5)[rank::ranks]
    seen["gathered"] = distributed.gather_rows(rows[mine], mine, total=5).tolist()
    for name, call in {
        "twice": lambda: distributed.gather_rows(rows, torch.arange(5), total=5),
        "missing": lambda: distributed.gather_rows(rows[mine[:1]], mine[:1], total=5),
        "differ": lambda: distributed.check_same(f"weights of {rank}", what="weights"),
        "same": lambda: distributed.check_same("the same", what="weights"),
    }.items():
        try:
            call()
            seen[name] = ""
        except distributed.DisagreementError as error:
            seen[name] = str(error)
    for name, rules in RULES.items():
        learner, losses = fit((rank, ranks), rules)
        seen[name] = {"losses": losses, "weights": flatten(learner.model)}
    learner = build()
    mine_of = EpochSampler(IMAGES, batch_size=BATCH, part=(rank, ranks))
    parts = [take(make_images(), [position for _, position in positions]) for positions in mine_of]
    seen["predicted"] = predict_logits(learner.model, parts, StepRules(), total=IMAGES).tolist()
    seen["poisoned"] = poison(learner, parts, rank)
    norm = nn.BatchNorm2d(2)
    norm.running_mean, norm.running_var = torch.tensor([1.0, 2.0]) * rank, torch.tensor([4.0, 8.0]) * (1 - rank)
    frozen = nn.BatchNorm2d(1).eval()
    frozen.running_mean = torch.tensor([float(rank)])
    share_statistics(nn.ModuleList([norm, frozen]), share=0.25 if rank == 0 else 0.75)
    seen["statistics"] = [t.tolist() for t in (norm.running_mean, norm.running_var, frozen.running_mean)]
    seen["seed"] = draw_step_seed(0, epoch=0, step=0)
    with distributed.first_goes_ahead():
        seen["order"] = sorted(path.name for path in OUT.glob("*.here"))
        (OUT / f"{rank}.here").touch()
    return seen


def poison(learner: Learner, parts: list[Batch], rank: int) -> dict[str, Any]:
    """A loss that is not finite in the second process only: both skip the step, and go on alike."""
    loss, before = learner.loss, flatten(learner.model)
    learner.loss = lambda logits, targets: loss(logits, targets) * (math.inf if rank == 1 else 1.0)
    first = train_step(learner, parts[:1], StepRules())
    unchanged = flatten(learner.model) == before
    learner.loss = loss
    second = train_step(learner, parts[1:2], StepRules())
    return {"taken": [first[1], second[1]], "unchanged": unchanged, "weights": flatten(learner.model)}


if __name__ == "__main__":
    OUT = Path(sys.argv[1])
    torch.set_num_threads(1)
    np.random.seed(0)
    with distributed.join_ranks():
        result = run(distributed.get_rank(), distributed.count_ranks())
    (OUT / f"{distributed.get_rank()}.json").write_text(json.dumps(result))
