"""Degrade images at five strengths each (noise, blur, grey shift, lower resolution, JPEG, rotation) and measure again.

A volume is changed slice by slice, in the axial plane and all slices alike, as archives keep it and a head lies in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from medcls.console import show_progress
from medcls.data.dataset import Batch
from medcls.evaluate.split_predictions import SplitPredictions
from medcls.files import MODEL
from medcls.models.heads import compute_scores
from medcls.reproducibility import draw_seed
from medcls.runs.model_file import read_model
from medcls.statistics.definitions import TASK_METRICS
from medcls.statistics.intervals import MetricEntry, summarize
from medcls.statistics.metrics import build_estimator
from medcls.statistics.predictions import Floats
from medcls.statistics.support import find_support
from medcls.training.forward import PredictOptions, predict_rows

MOST_REPLICATES = 500  # thirty points: their intervals are for the eye
# Name: what the strength is, and its five values.
PERTURBATIONS: dict[str, tuple[str, tuple[float, ...]]] = {
    "noise": ("standard deviation, share of the range", (0.01, 0.02, 0.05, 0.1, 0.2)),
    "blur": ("Gaussian sigma, pixels", (0.5, 1.0, 1.5, 2.0, 3.0)),
    "window": ("grey level shifted, share of the range", (0.05, 0.1, 0.15, 0.2, 0.3)),
    "resampling": ("stored at 1 / this size", (1.5, 2.0, 3.0, 4.0, 6.0)),
    "jpeg": ("100 less the quality", (20.0, 40.0, 60.0, 80.0, 90.0)),
    "rotation": ("degrees", (2.0, 5.0, 10.0, 15.0, 20.0)),
}


def measure_robustness(
    predictions: SplitPredictions, options: PredictOptions, *, replicates: int, seed: int
) -> dict[str, Any]:
    """Return the metric, and for each perturbation its unit and a point with interval for each strength.

    The images are those of the opened split, predicted once more for each of the thirty points.
    """
    model = read_model(predictions.run / MODEL)[0].to(options.rules.device)
    dataset = predictions.opened.build_dataset(crop=predictions.card.crop)
    value_range = predictions.opened.store.spec.value_range
    metric = TASK_METRICS[predictions.rows.predictions.kind].joining
    plain = predictions.rows.predictions.y_score
    measure = partial(_measure, predictions, metric=metric, replicates=min(replicates, MOST_REPLICATES), seed=seed)
    curves: dict[str, dict[str, Any]] = {
        name: {"unit": unit, "points": []} for name, (unit, _) in PERTURBATIONS.items()
    }
    points = [(name, strength) for name, (_, values) in PERTURBATIONS.items() for strength in values]
    for name, strength in show_progress(points, desc="robustness", unit="point"):
        worsen = partial(_worsen, name=name, strength=strength, seed=seed, value_range=value_range)
        logits = predict_rows(model, dataset, options, through=worsen)
        score: Floats = compute_scores(predictions.card.task.output, torch.from_numpy(logits)).numpy()
        curves[name]["points"].append({"strength": strength, **measure(score)})
    return {"metric": metric, "unchanged": measure(plain), "curves": curves}


def _worsen(
    batches: Iterable[Batch], *, name: str, strength: float, seed: int, value_range: tuple[float, float]
) -> Iterator[Batch]:
    """Yield the batches with each image perturbed; the draws of an image depend on its place, not on its batch."""
    for batch in batches:
        changed = [
            perturb(
                image,
                name,
                strength=strength,
                seed=draw_seed("robustness", name, seed, int(position)),
                value_range=value_range,
            )
            for image, position in zip(batch.images.numpy(), batch.positions, strict=True)
        ]
        yield batch._replace(images=torch.from_numpy(np.stack(changed)))


def _measure(predictions: SplitPredictions, score: Floats, *, metric: str, replicates: int, seed: int) -> MetricEntry:
    """Return the metric of other scores of the same rows."""
    changed = replace(predictions.rows.predictions, y_score=score)
    estimate = build_estimator(changed)
    support = find_support(changed, estimate(np.ones((1, len(score)))))
    return summarize(estimate, predictions.rows.patients, support, replicates=replicates, seed=seed)[metric]


def perturb(
    image: NDArray[Any], name: str, *, strength: float, seed: int, value_range: tuple[float, float]
) -> NDArray[Any]:
    """Return the perturbed image, same shape and dtype.

    Signs (of the grey shift and the rotation) and noise are drawn from the seed.

    Args:
        image: (C, H, W) or (C, D, H, W), uint8, uint16, int16 or float16.
        name: One of `PERTURBATIONS`.
        strength: Strength in the unit of `PERTURBATIONS`.
        seed: One for each image.
        value_range: (lowest, highest) value that the image may have.

    Raises:
        ValueError: Unknown name.

    Source: after Hendrycks & Dietterich 2019 (corruptions at five strengths); kinds and values: own choice.
    """
    if name not in PERTURBATIONS:
        raise ValueError(f"perturbation {name!r}: expected one of {', '.join(PERTURBATIONS)}")
    low, high = value_range
    generator = np.random.default_rng(seed)
    planes = (image.reshape(-1, *image.shape[-2:]).astype(np.float32) - low) / (high - low)
    changed = np.clip(_CHANGES[name](planes, strength, generator), 0.0, 1.0) * (high - low) + low
    whole = changed if image.dtype.kind == "f" else np.round(changed)
    return whole.astype(image.dtype).reshape(image.shape)


Change = Callable[[NDArray[np.float32], float, np.random.Generator], NDArray[np.float32]]


def _by_channel(image: NDArray[np.float32], change: Callable[[NDArray[np.float32]], Any]) -> NDArray[np.float32]:
    return np.stack([np.asarray(change(np.ascontiguousarray(channel)), dtype=np.float32) for channel in image])


def _add_noise(image: NDArray[np.float32], strength: float, generator: np.random.Generator) -> NDArray[np.float32]:
    return image + strength * generator.standard_normal(image.shape, dtype=np.float32)


def _blur(image: NDArray[np.float32], strength: float, generator: np.random.Generator) -> NDArray[np.float32]:
    return _by_channel(image, lambda channel: cv2.GaussianBlur(channel, (0, 0), strength))


def _shift(image: NDArray[np.float32], strength: float, generator: np.random.Generator) -> NDArray[np.float32]:
    return image + np.float32(strength * generator.choice([-1, 1]))


def _resample(image: NDArray[np.float32], strength: float, generator: np.random.Generator) -> NDArray[np.float32]:
    height, width = image.shape[1:]
    small = (max(1, round(width / strength)), max(1, round(height / strength)))

    def change(channel: NDArray[np.float32]) -> Any:
        return cv2.resize(cv2.resize(channel, small, interpolation=cv2.INTER_AREA), (width, height))

    return _by_channel(image, change)


def _compress(image: NDArray[np.float32], strength: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """JPEG knows eight bits only: sixteen are reduced first."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, round(100 - strength)]

    def change(channel: NDArray[np.float32]) -> Any:
        _, coded = cv2.imencode(".jpg", np.round(channel * 255).astype(np.uint8), quality)
        return np.asarray(cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE), dtype=np.float32) / 255

    return _by_channel(image, change)


def _rotate(image: NDArray[np.float32], strength: float, generator: np.random.Generator) -> NDArray[np.float32]:
    height, width = image.shape[1:]
    angle = float(strength * generator.choice([-1, 1]))
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    return _by_channel(image, lambda channel: cv2.warpAffine(channel, matrix, (width, height)))


_CHANGES: dict[str, Change] = {
    "noise": _add_noise,
    "blur": _blur,
    "window": _shift,
    "resampling": _resample,
    "jpeg": _compress,
    "rotation": _rotate,
}
