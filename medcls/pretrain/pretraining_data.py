"""Open the volumes for pretraining: train and val of a store, with and without labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from torch.utils.data import Dataset

from medcls.config import AugmentConfig, CorruptionConfig, PatchConfig
from medcls.console import say
from medcls.data.corruption import CorruptedDataset, Corruption
from medcls.data.crops import Patch
from medcls.data.dataset import Batch, ImageView, StoreDataset
from medcls.data.splits import TEST, TRAIN, VAL
from medcls.data.store import Store
from medcls.data.targets import Task
from medcls.errors import DataError
from medcls.kinds import RECONSTRUCTION
from medcls.train.augment_choice import choose_augmentation, read_kinds
from medcls.train.training_data import TrainingData, read_rows


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


def open_volumes(
    store: Store, split: str, *, patch: PatchConfig, augment: AugmentConfig, corruption: CorruptionConfig, seed: int
) -> PretrainingData:
    """Check a store's split again, and read the rows of train and val only, whatever their labels.

    Raises:
        DataError: a store of images, or without volumes in train or val.
        ConfigError: a patch that is larger than the volumes.
    """
    if store.spec.spatial_dims != 3:
        raise DataError(
            f"store={store.folder} contains images {store.shape}, but an autoencoder takes volumes: set "
            "store= to a store of volumes"
        )
    parts, certificate = read_rows(store, split, what="volumes")
    cut = build_patch(patch, store)
    shape = store.shape if cut is None else cut.shape(store.shape)
    chosen = choose_augmentation(augment, store.spec, shape=shape, sides=[], **read_kinds(store, parts[TRAIN]))
    if chosen.notice:
        say(chosen.notice)
    train, val = (
        StoreDataset(
            store,
            parts[name],
            targets=np.zeros((len(parts[name]), 1)),
            view=ImageView(cut, chosen.augmentation if name == TRAIN else None, seed),
        )
        for name in (TRAIN, VAL)
    )
    say(f"store {store.folder}: {len(train)} train, {len(val)} val volumes {shape}, labelled or not; no test volume")
    return PretrainingData(
        store,
        Task(RECONSTRUCTION.name, [], []),
        train,
        val,
        certificate,
        labels_sha256="",
        held_out=np.concatenate([parts[VAL], parts[TEST]]),
        corruption=build_corruption(corruption),
        seed=seed,
    )


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
    return None if chosen.kind == "none" else Corruption(**asdict(chosen))
