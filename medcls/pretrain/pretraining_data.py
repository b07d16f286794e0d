"""Open the volumes for pretraining: train and val of a store, with and without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from medcls.config import CorruptionConfig, PatchConfig, PretrainJob
from medcls.console import say
from medcls.data.corruption import CorruptedDataset, Corruption
from medcls.data.crops import Patch
from medcls.data.dataset import Batch, StoreDataset
from medcls.data.splits import TEST, TRAIN, VAL, read_split, rows_of
from medcls.data.store import Store
from medcls.data.targets import Task
from medcls.errors import DataError
from medcls.kinds import RECONSTRUCTION
from medcls.runs.checksums import open_store
from medcls.train.augment_choice import choose_augmentation, read_kinds
from medcls.train.training_data import TrainingData


@dataclass(slots=True)
class PretrainingData(TrainingData):
    """Volumes and, where they are corrupted, their twins.

    Attributes:
        corruption: None where the autoencoder sees what it has to return.
        seed: Of the corruption.
    """

    corruption: Corruption | None = None
    seed: int = 0

    @property
    def inputs(self) -> tuple[Dataset[Batch], Dataset[Batch]]:
        """What the loop trains on, and what it validates on: corrupted alike in every epoch."""
        if self.corruption is None:
            return self.train, self.val
        return (
            CorruptedDataset(self.train, self.corruption, seed=self.seed),
            CorruptedDataset(self.val, self.corruption, seed=self.seed, varies=False),
        )


def open_volumes(job: PretrainJob) -> PretrainingData:
    """Open the store, check it and its split again, and read the rows of train and val only, whatever their labels.

    Raises:
        DataError: a store of images, or without volumes in train or val.
        ConfigError: a patch that is larger than the volumes.
    """
    store = open_store(Path(job.store or ""))
    if store.spec.spatial_dims != 3:
        raise DataError(
            f"store={store.folder} contains images {store.shape}, but an autoencoder takes volumes: set "
            "store= to a store of volumes"
        )
    splits, certificate = read_split(store, job.split.name)
    rows = {name: rows_of(splits, name) for name in (TRAIN, VAL)}
    if not all(len(chosen) for chosen in rows.values()):
        raise DataError(
            f"split {job.split.name}: {len(rows[TRAIN])} train and {len(rows[VAL])} val volumes: expected both; "
            f"prepare the store with both, or choose another split.name="
        )
    patch = build_patch(job.patch, store)
    shape = store.shape if patch is None else patch.shape(store.shape)
    chosen = choose_augmentation(job.augment, store.spec, shape=shape, sides=[], **read_kinds(store, rows[TRAIN]))
    if chosen.notice:
        say(chosen.notice)
    train, val = (
        StoreDataset(
            store,
            rows[name],
            targets=np.zeros((len(rows[name]), 1)),
            augmentation=chosen.augmentation if name == TRAIN else None,
            crop=patch,
            seed=job.seed,
        )
        for name in (TRAIN, VAL)
    )
    say(f"store {store.folder}: {len(train)} train, {len(val)} val volumes {shape}, labelled or not; no test volume")
    held_out = np.concatenate([rows[VAL], rows_of(splits, TEST)])
    task = Task(RECONSTRUCTION.name, [], [])
    corruption = build_corruption(job.corruption)
    return PretrainingData(store, task, train, val, certificate, "", held_out, corruption=corruption, seed=job.seed)


def build_patch(config: PatchConfig, store: Store) -> Patch | None:
    """Return the part of each volume that is taken; None = all of it."""
    if not config.size:
        return None
    depth, height, width = config.size
    patch = Patch((depth, height, width))
    patch.check(store.shape)
    return patch


def build_corruption(chosen: CorruptionConfig) -> Corruption | None:
    """Return what is done to the volumes that the autoencoder sees; None = nothing."""
    if chosen.kind == "none":
        return None
    return Corruption(
        chosen.kind,
        noise_std=chosen.noise_std,
        mask_ratio=chosen.mask_ratio,
        mask_size=chosen.mask_size,
        max_boxes=chosen.max_boxes,
    )
