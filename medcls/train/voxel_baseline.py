"""The linear baseline of volumes: fitted at training on the same rows, read again by evaluate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from medcls.console import say, show_progress
from medcls.data.splits import read_patients
from medcls.data.store import Store
from medcls.errors import DataError
from medcls.files import BASELINE, BASELINE_WEIGHTS, read_json, sha256_file, write_bytes, write_json
from medcls.statistics.metrics import compute_metrics
from medcls.statistics.predictions import check_predictions
from medcls.train.training_data import TrainingData
from medcls.train.voxels import VoxelModel, fit_voxels, shrink

NAME = "regression on voxels"
_CHUNK = 16


def write_baseline(run: Path, data: TrainingData, *, metric: str, seed: int) -> None:
    """Fit the baseline on the training rows, measure it on the validation rows, and keep it in the run."""
    train, val = data.train, data.val
    patients = read_patients(data.store, data.certificate)
    model = fit_voxels(
        read_features(data.store, train.rows),
        train.targets.numpy().astype(np.float64),
        patients.texts.take(pa.array(patients.values[train.rows])).to_pylist(),
        kind=data.task.kind,
        seed=seed,
    )
    write_bytes(run / BASELINE_WEIGHTS, save({"weight": model.weight, "bias": model.bias}))
    targets = val.targets.numpy().astype(np.float64)
    predictions = check_predictions(
        data.task.kind,
        targets if data.task.kind == "multilabel" else targets[:, 0],
        model.predict(read_features(data.store, val.rows)),
        class_names=data.task.class_names,
        grades=data.task.grades,
    )
    metrics = compute_metrics(predictions)
    known = {name: value for name, value in metrics.items() if np.isfinite(value)}
    content = {"name": NAME, "kind": model.kind, "weights_sha256": sha256_file(run / BASELINE_WEIGHTS)}
    write_json(run / BASELINE, content | model.facts | {"val": known})
    shown = f"{metrics[metric]:.3f}" if metric in metrics else "undefined"
    say(f"baseline, {NAME} of the same rows: validation {metric} {shown}; the network has to beat it")


def read_baseline(run: Path) -> VoxelModel | None:
    """Return the baseline of a run; None where it has none: images, or baseline=false.

    Raises:
        DataError: it has changed since the training.
    """
    if not (run / BASELINE).is_file():
        return None
    facts = read_json(run / BASELINE)
    if sha256_file(run / BASELINE_WEIGHTS) != facts["weights_sha256"]:
        raise DataError(f"{run / BASELINE_WEIGHTS} has changed since the training: restore it, or train again")
    tensors = load_file(run / BASELINE_WEIGHTS)
    return VoxelModel(facts["kind"], tensors["weight"], tensors["bias"], facts)


def read_features(store: Store, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return coarse voxels (N, F) of manifest rows, a few volumes in memory at a time."""
    chunks = range(0, len(rows), _CHUNK)
    bar = show_progress(chunks, desc="baseline", unit="batch", mininterval=1.0)
    return np.concatenate([shrink(store.images(rows[start : start + _CHUNK])) for start in bar])
