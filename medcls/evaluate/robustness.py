"""Measure how the headline metric falls as images get worse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from medcls.console import show_progress
from medcls.data.dataset import Batch
from medcls.evaluate.perturbations import PERTURBATIONS, perturb
from medcls.evaluate.split_predictions import SplitPredictions
from medcls.files import MODEL
from medcls.models.heads import compute_scores
from medcls.reproducibility import draw_seed
from medcls.runs.model_file import read_model
from medcls.statistics.definitions import TASK_METRICS
from medcls.statistics.intervals import summarize
from medcls.statistics.metrics import build_estimator
from medcls.statistics.predictions import Floats
from medcls.statistics.support import find_support
from medcls.training.forward import PredictOptions, predict_rows

MOST_REPLICATES = 500  # thirty points: their intervals are for the eye


def measure_robustness(
    predictions: SplitPredictions, options: PredictOptions, *, replicates: int, seed: int
) -> dict[str, Any]:
    """Returns the metric, and for each perturbation its unit and a point with interval for each strength.

    The images are those of the opened split, predicted once more for each of the thirty points.
    """
    model = read_model(predictions.run / MODEL)[0].to(options.rules.device)
    dataset = predictions.opened.build_dataset(crop=predictions.card.crop)
    value_range = predictions.opened.store.spec.value_range
    metric = TASK_METRICS[predictions.rows.predictions.kind].joining
    plain = predictions.rows.predictions.y_score
    measure = partial(_measure, predictions, metric=metric, replicates=min(replicates, MOST_REPLICATES), seed=seed)
    curves: dict[str, Any] = {}
    points = [(name, strength) for name, (_, values) in PERTURBATIONS.items() for strength in values]
    for name, strength in show_progress(points, desc="robustness", unit="point"):
        worsen = partial(_worsen, name=name, strength=strength, seed=seed, value_range=value_range)
        logits = predict_rows(model, dataset, options, through=worsen)
        score: Floats = compute_scores(predictions.card.task.output, torch.from_numpy(logits)).numpy()
        curve = curves.setdefault(name, {"unit": PERTURBATIONS[name][0], "points": []})
        curve["points"].append({"strength": strength, **measure(score)})
    return {"metric": metric, "unchanged": measure(plain), "curves": curves}


def _worsen(
    batches: Iterable[Batch], *, name: str, strength: float, seed: int, value_range: tuple[float, float]
) -> Iterator[Batch]:
    """The batches with each image perturbed; what is drawn for an image depends on its place, not on its batch."""
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


def _measure(
    predictions: SplitPredictions, score: Floats, *, metric: str, replicates: int, seed: int
) -> dict[str, Any]:
    """The metric of other scores of the same rows."""
    changed = replace(predictions.rows.predictions, y_score=score)
    found = summarize(
        build_estimator(changed),
        predictions.rows.patients,
        support=lambda names: find_support(changed, names),
        replicates=replicates,
        seed=seed,
    )
    return found[metric]
