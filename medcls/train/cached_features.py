"""Cached features in place of images: whether a run may train its head on them, where they are kept, who reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medcls.config import CropConfig, ModelConfig, TransferConfig
from medcls.console import say, show_progress
from medcls.data.dataset import StoreDataset
from medcls.data.loaders import build_loader
from medcls.data.splits import TRAIN, VAL
from medcls.data.store import Store
from medcls.errors import ConfigError
from medcls.identity import format_count
from medcls.models.backbones import CLINICAL
from medcls.models.classifier import Classifier
from medcls.models.transfer import StagePlan
from medcls.records import to_json
from medcls.runs.model_file import ModelCard, compute_digest
from medcls.train.training_data import TrainingData
from medcls.training.features import (
    FEATURES,
    FeatureCache,
    FeatureDataset,
    Portion,
    compute_features,
    list_batches,
)
from medcls.training.forward import PredictOptions
from medcls.training.state import StepRules

_FORMAT = 1


def choose_features(
    plans: list[StagePlan], *, model: ModelConfig, transfer: TransferConfig, varies: bool, run: Path
) -> bool:
    """Return whether the head is trained on cached features; say how to get them if it could be.

    Args:
        plans: How each stage is trained.
        model: The network asked for.
        transfer: Whether features are cached, and how many views of each image.
        varies: Whether a training image is another one in every epoch.
        run: The run's folder.

    Raises:
        ConfigError: transfer.features=cached or transfer.views where a stage below the head is trained; a run folder
            that is the folder of the features.
    """
    trained = [plan.name for plan in plans if plan.name != "head" and plan.first_epoch is not None]
    svm = model.head == "svm"
    asked = transfer.features == "cached" or transfer.views is not None or svm
    if asked and trained:
        raise ConfigError(
            f"{'model.head=svm' if svm else 'transfer.features=cached'}: {', '.join(trained)} of the network is "
            "trained, so its features change with every step: set transfer=frozen with weights for all of it, or "
            "remove model.head=svm, transfer.features and transfer.views"
        )
    if trained or transfer.features == "live" or model.name == CLINICAL:
        return False
    if varies and not asked:
        say(
            "notice: only the head is trained, but augmentation or crops make new images for every epoch, so each "
            "epoch computes its features; transfer.views=K computes K views of each image once"
        )
        return False
    if run.resolve().name == FEATURES:
        raise ConfigError(f"run={run}: {FEATURES} is the folder of cached features; choose another name")
    return True


def cache_features(
    run: Path,
    *,
    data: TrainingData,
    model: Classifier,
    key: dict[str, object],
    views: Sequence[Mapping[str, object]],
    options: PredictOptions,
) -> dict[str, FeatureDataset]:
    """Return the features of train and val in place of their images, computed where they are not there yet.

    The features are those of the network in evaluation mode, as validation and test see it. View v of the training
    images is what epoch v of a run without cached features would see. Rows of other splits are never read.

    Args:
        run: The run's folder; features are kept beside it.
        data: The rows.
        model: The network.
        key: What the features follow from, as `describe_inputs` returns it.
        views: Of the training images, as `list_views` returns them.
        options: Device, precision and loading; batches are small, and all of one size.
    """
    root, shape = run.resolve().parent / FEATURES, (len(data.store), model.backbone.num_features)
    plain = FeatureCache(root, key | {"view": None}, shape=shape)
    caches_of_train = [FeatureCache(root, key | {"view": view}, shape=shape) for view in views] or [plain]
    parts = ((TRAIN, data.train, caches_of_train), (VAL, data.val, [plain]))

    # Loaders draw from torch's own generator: dropout must not depend on how much had to be computed.
    with torch.random.fork_rng(devices=[]):
        for split, dataset, caches in parts:
            for epoch, cache in enumerate(caches):
                name = f"features {split}" + (f", view {epoch + 1}/{len(caches)}" if len(caches) > 1 else "")
                fill_cache(cache, dataset, epoch=epoch, model=model, options=options, name=name)
    return {
        split: FeatureDataset(
            caches, dataset.rows, targets=dataset.targets, clinical=dataset.clinical, soft=dataset.soft
        )
        for split, dataset, caches in parts
    }


def read_more_features(
    run: Path, card: ModelCard, *, model: Classifier, dataset: StoreDataset, options: PredictOptions, name: str
) -> FeatureDataset | None:
    """Return features of further rows in place of their images, computed into the cache that the training used.

    All runs beside one another whose networks are frozen share them: an evaluation of the second run computes none.

    Args:
        run: Folder of a finished run.
        card: Of its model.
        model: On the device of the options.
        dataset: The rows, ascending, as the model takes them without augmentation.
        options: Device, precision and loading.
        name: For messages.

    Returns:
        None if there is no cache for this very network, store and way to compute, or it cannot be written; crops have
        none.
    """
    root, store = run.resolve().parent / FEATURES, dataset.store
    if card.crop is not None or card.store_sha256 != store.sha256 or not root.is_dir():
        return None
    # The layout is a setting of the training that its model file does not record.
    for channels_last in (True, False):
        rules = replace(options.rules, channels_last=channels_last)
        key = describe_inputs(
            model, CropConfig(), architecture=card.architecture, normalize=card.normalize, store=store, rules=rules
        )
        cache = FeatureCache(root, key | {"view": None}, shape=(len(store), model.backbone.num_features))
        if os.access(cache.folder, os.R_OK | os.W_OK | os.X_OK):
            alike = replace(options, rules=rules)
            fill_cache(cache, dataset, epoch=0, model=model, options=alike, name=f"features {name}")
            return FeatureDataset([cache], dataset.rows, targets=dataset.targets, clinical=dataset.clinical)
    return None


def describe_inputs(
    model: Classifier, crop: CropConfig, *, architecture: str, normalize: str, store: Store, rules: StepRules
) -> dict[str, object]:
    """Return everything that the features follow from but the view, as JSON.

    Threads and kind of processor are not in it: they change the last bits only, and runs on several machines share.
    """
    # The mean and deviation that images are normalised with are no part of a state_dict.
    state = {**model.backbone.state_dict(), **dict(model.normalize.named_buffers(prefix="normalize"))}
    return {
        "format": _FORMAT,
        "architecture": architecture,
        "options": model.backbone.options,
        "weights_sha256": compute_digest({name: tensor.cpu().contiguous() for name, tensor in state.items()}),
        "normalize": normalize,
        "preprocess": to_json(store.spec),
        "crop": asdict(crop),
        "store_sha256": store.sha256,
        "precision": rules.precision,
        "device": rules.device,
        "channels_last": rules.channels_last,
        "torch": torch.__version__,
    }


def list_views(train: StoreDataset, count: int) -> list[dict[str, object]]:
    """Return what each of `count` views of a training image follows from; [] for 0: only the stored image is used."""
    # A list: the order of the transforms counts, and the keys of a JSON object are sorted.
    chosen = train.augmentation.transforms if train.augmentation else {}
    transforms = [[name, arguments] for name, arguments in chosen.items()]
    versions = {name: version(name) for name in ("albumentations", "monai")}
    common = {"transforms": transforms, "seed": train.seed, "versions": versions}
    return [common | {"epoch": epoch} for epoch in range(count)]


def fill_cache(
    cache: FeatureCache,
    dataset: StoreDataset,
    *,
    epoch: int,
    model: Classifier,
    options: PredictOptions,
    name: str,
) -> None:
    """Compute the rows of a dataset, as an epoch sees them, that a cache lacks; says what was computed."""
    total = len(dataset)

    def compute_missing(rows: NDArray[np.int64]) -> Iterator[Portion]:
        batches = list_batches(np.searchsorted(dataset.rows, rows).tolist(), epoch=epoch, shape=dataset.shape)
        loader = build_loader(dataset, batches, workers=options.workers, device=options.rules.device)
        with show_progress(total=total, initial=total - len(rows), unit="image", desc=name, mininterval=1.0) as bar:
            for places, features in compute_features(model, loader, options.rules):
                yield dataset.rows[places], features
                bar.update(min(len(places), total - int(bar.n)))

    place = f"{FEATURES}/{cache.folder.name[:12]}…"
    computed, damaged = cache.fill(dataset.rows, compute_missing, say=say)
    if damaged:
        say(f"notice: {name}: {format_count(damaged, 'image')} in the cache damaged: computed again")
    say(
        f"{name}: {computed} of {format_count(total, 'image')} computed, {total - computed} read from the cache "
        f"({place})"
    )
