"""The distance of images from the training images: fitted after training, used by evaluate and predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medcls.console import say
from medcls.data.dataset import ImageView, StoreDataset
from medcls.data.splits import TRAIN, VAL
from medcls.data.store import Store
from medcls.errors import DataError
from medcls.files import FEATURE_DISTANCE, MODEL, sha256_file
from medcls.models.classifier import Classifier
from medcls.reproducibility import draw_seed
from medcls.runs.model_file import ModelCard, compute_digest
from medcls.train.training_data import TrainingData
from medcls.training.feature_distance import (
    FeatureDistance,
    fit_distance,
    read_distance,
    tap_features,
    write_distance,
)
from medcls.training.forward import PredictOptions, predict_rows

# Of each split: a cloud and a quantile are known well enough from so many, and the pass over them stays short.
MOST_IMAGES = 1_000


def write_training_distance(
    run: Path, *, data: TrainingData, model: Classifier, state: dict[str, Tensor], options: PredictOptions
) -> str:
    """Fit the distance on training images, freeze its threshold on validation images, and write both into the run.

    Returns:
        The sha256 of the file; "" if there are too few images to fit a distance.
    """
    model.load_state_dict(state)
    features = {split: _compute_features(data, split, model=model, options=options) for split in (TRAIN, VAL)}
    digest = compute_digest({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    distance = fit_distance(features[TRAIN], features[VAL], model_sha256=digest)
    if distance is None:
        say("notice: too few images to measure how far others are from them: predict judges only the kind of image")
        return ""
    write_distance(run / FEATURE_DISTANCE, distance)
    return sha256_file(run / FEATURE_DISTANCE)


def _compute_features(data: TrainingData, split: str, *, model: Classifier, options: PredictOptions) -> NDArray[Any]:
    """Return the features (N, F) of a split's images, of up to MOST_IMAGES that are drawn by their ids."""
    stored = {TRAIN: data.train, VAL: data.val}[split]
    drawn = draw_images(data.store, stored.rows)
    if split in data.features:
        cached = data.features[split]
        return cached.views[0].read(cached.rows[drawn])
    dataset = StoreDataset(
        data.store,
        stored.rows[drawn],
        targets=stored.targets.numpy()[drawn],
        view=ImageView(stored.crop),
        clinical=stored.clinical.numpy()[drawn],
    )
    return run_backbone(model, dataset, options)


def draw_images(store: Store, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return places in `rows` of up to MOST_IMAGES images, drawn by their ids."""
    ids = store.column("image_id", rows)
    draws = [draw_seed("distance", image_id) for image_id in ids]
    return np.sort(np.argsort(draws, kind="stable")[:MOST_IMAGES])


def run_backbone(model: Classifier, dataset: StoreDataset, options: PredictOptions) -> NDArray[Any]:
    """Return the features (N, F) of all images of a dataset, in its order."""
    with tap_features(model.backbone) as found:
        predict_rows(model, dataset, options)
    return torch.cat(found).numpy()


def read_training_distance(run: Path, card: ModelCard) -> FeatureDistance | None:
    """Return the distance of a run's model; None where none was recorded.

    Raises:
        DataError: the file is not the one that belongs to the model.
    """
    if not card.distance_sha256:
        return None
    path = run / FEATURE_DISTANCE
    if not path.is_file():
        say(f"notice: {path} is missing, so distances from the training images are unknown: copy it beside {MODEL}")
        return None
    if sha256_file(path) != card.distance_sha256:
        raise DataError(f"{path} has changed since the training ended: restore it, or train the run again")
    return read_distance(path)
