"""The real loop, augmentation included, beside the same network on one batch that stays in memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.images import make_store, radiograph_preset
from medcls.config import ScheduleConfig
from medcls.console import show_progress
from medcls.data.augment import Augmentation
from medcls.data.dataset import Batch, StoreDataset
from medcls.data.loaders import EpochSampler, build_loader
from medcls.data.store import Store
from medcls.models.classifier import Answer, build_classifier
from medcls.models.transfer import apply_plan, build_parameter_groups, choose_first_epochs, plan_transfer
from medcls.training.loop import Keeper, train_epoch
from medcls.training.losses import build_loss
from medcls.training.optimizers import build_optimizer, build_schedule
from medcls.training.precision import build_scaler
from medcls.training.state import Learner, Progress, StepRules

_ROUNDS = 3


def measure(folder: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields a row for each image size; rounds alternate, the median counts."""
    for size, batch_size, steps in ((64, 32, 12), (224, 16, 4)):
        _, store = make_store(folder, size=size, count=batch_size * steps)
        learner, rules = _build_learner(), StepRules()
        loop_rates, resident_rates, waits = [], [], []
        loader, sampler = _build_loader(store, batch_size)
        resident = [next(iter(loader))] * steps
        _train(learner, resident[:1], rules)
        for epoch in range(_ROUNDS):
            sampler.epoch = epoch
            rate, wait = _train(learner, loader, rules)
            loop_rates.append(rate)
            waits.append(wait)
            resident_rates.append(_train(learner, resident, rules)[0])
        ours, beside = float(np.median(loop_rates)), float(np.median(resident_rates))
        what = f"training loop, ResNet-18 at {size}, waiting {100 * float(np.median(waits)):.1f} %"
        yield what, f"{ours:.1f} images/s", f"resident batch {beside:.1f}", f"{ours / beside:.2f}", ">= 0.9"


def _build_learner() -> Learner:
    model = build_classifier("resnet18", Answer("multiclass", 2))
    model.to(memory_format=torch.channels_last)
    epochs = choose_first_epochs(list(model.stages), kind="scratch")
    plans = plan_transfer(model, epochs, layer_decay=1.0, batchnorm="train")
    apply_plan(model, plans)
    model.train()
    optimizer = build_optimizer("adamw", build_parameter_groups(model, plans, lr=1e-3, weight_decay=0.0), lr=1e-3)
    schedule = build_schedule(optimizer, ScheduleConfig("constant"), steps_per_epoch=1, epochs=1)
    scaler = build_scaler("fp32", device="cpu")
    return Learner(model, build_loss("multiclass"), optimizer, schedule, scaler, None, model)


def _build_loader(store: Store, batch_size: int) -> tuple[torch.utils.data.DataLoader[Batch], EpochSampler]:
    augmentation = Augmentation(radiograph_preset(), shape=store.shape)
    targets = (np.arange(len(store)) % 2).astype(np.float64)[:, None]
    dataset = StoreDataset(store, np.arange(len(store)), targets=targets, augmentation=augmentation)
    sampler = EpochSampler(len(dataset), batch_size=batch_size, shuffle=True)
    return build_loader(dataset, sampler, workers=0, device="cpu"), sampler


def _train(learner: Learner, batches: Iterable[Batch], rules: StepRules) -> tuple[float, float]:
    start, progress = time.perf_counter(), Progress()
    train_epoch(learner, progress, batches, rules, Keeper(), show_progress(disable=True))
    seconds, result = time.perf_counter() - start, progress.result
    return result.images / seconds, result.wait_seconds / seconds
