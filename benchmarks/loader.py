"""The loader alone, one process, beside torchvision's ImageFolder and MONAI's CacheDataset on the same images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import monai.transforms as mt
import numpy as np
import torch
from monai.data import CacheDataset
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.images import make_store, radiograph_preset
from medcls.data.augment import Augmentation
from medcls.data.dataset import StoreDataset
from medcls.data.loaders import EpochSampler, build_loader

_SIZE, _COUNT, _BATCH, _ROUNDS = 224, 512, 32, 3


def measure(folder: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields a row for each peer; all on one core, rounds alternate, the median counts."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    source, store = make_store(folder / "loader", size=_SIZE, count=_COUNT)
    targets = np.zeros((len(store), 1))
    augmentation = Augmentation(radiograph_preset(), shape=store.shape)
    dataset = StoreDataset(store, np.arange(len(store)), targets=targets, augmentation=augmentation)
    sampler = EpochSampler(len(dataset), batch_size=_BATCH, shuffle=True)
    peers = {
        "torchvision ImageFolder + v2": (DataLoader(_image_folder(source), batch_size=_BATCH, shuffle=True), ">= 6"),
        "MONAI CacheDataset": (DataLoader(_cache_dataset(source), batch_size=_BATCH, shuffle=True), "> 1"),
    }
    ours = build_loader(dataset, sampler, workers=0, device="cpu")
    _rate(lambda: ours)
    for name, (loader, aim) in peers.items():
        rates = [(_rate(lambda: ours), _rate(lambda loader=loader: loader)) for _ in range(_ROUNDS)]
        mine, theirs = (float(np.median(column)) for column in zip(*rates, strict=True))
        what = f"loader alone, {_SIZE} px, radiograph preset, one core"
        yield what, f"{mine:.0f} images/s", f"{name} {theirs:.0f}", f"{mine / theirs:.1f}", aim


def _rate(loader: Callable[[], object]) -> float:
    start, count = time.perf_counter(), 0
    for batch in loader():  # type: ignore[attr-defined]
        images = batch[0] if not isinstance(batch, torch.Tensor) else batch
        count += len(images)
    return count / (time.perf_counter() - start)


def _image_folder(source: Path) -> ImageFolder:
    transform = v2.Compose(
        [
            v2.Grayscale(),
            v2.ToImage(),
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(degrees=8, translate=(0.06, 0.06), scale=(0.92, 1.08)),
            v2.ColorJitter(brightness=0.15, contrast=0.15),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return ImageFolder(str(source), transform)


def _cache_dataset(source: Path) -> CacheDataset:
    transform = mt.Compose(
        [
            mt.LoadImage(image_only=True, ensure_channel_first=True),
            mt.ScaleIntensity(),
            mt.RandFlip(prob=0.5, spatial_axis=0),
            mt.RandAffine(prob=0.9, rotate_range=0.14, translate_range=(13, 13), scale_range=0.08),
            mt.RandAdjustContrast(prob=0.7, gamma=(0.85, 1.15)),
        ]
    )
    return CacheDataset(sorted(str(p) for p in source.rglob("*.png")), transform, progress=False, num_workers=1)
