"""How the headline metric falls while the images get worse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from medcls.config import EvaluateJob
from medcls.console import show_progress
from medcls.data.dataset import Batch
from medcls.data.loaders import EpochSampler, build_loader, choose_workers
from medcls.evaluate.perturbations import PERTURBATIONS, perturb
from medcls.evaluate.split_predictions import SplitPredictions
from medcls.files import MODEL
from medcls.models.classifier import Classifier
from medcls.models.heads import compute_scores
from medcls.reproducibility import draw_seed
from medcls.runs.model_file import read_model
from medcls.statistics.aggregation import DECIDING
from medcls.statistics.intervals import summarize
from medcls.statistics.metrics import build_estimator
from medcls.statistics.predictions import Floats
from medcls.statistics.support import find_support
from medcls.training.forward import predict_logits
from medcls.training.precision import choose_device, choose_precision
from medcls.training.state import StepRules

MOST_REPLICATES = 500  # thirty points: their intervals are for the eye


def measure_robustness(job: EvaluateJob, predictions: SplitPredictions) -> dict[str, Any]:
    """Returns the metric, and for each perturbation its unit and a point with interval for each strength.

    The images are those of the opened split, predicted once more for each of the thirty points.
    """
    device = choose_device(job.device)
    rules = StepRules(device=device, precision=choose_precision(job.precision, device=device))
    model = read_model(predictions.run / MODEL)[0].to(device)
    metric = DECIDING[predictions.rows.predictions.kind]
    plain = predictions.rows.predictions.y_score
    curves: dict[str, Any] = {}
    points = [(name, strength) for name, (_, values) in PERTURBATIONS.items() for strength in values]
    for name, strength in show_progress(points, desc="robustness", unit="point"):
        batches = _perturbed(job, predictions, name=name, strength=strength, device=device)
        score = _score(model, batches, rules, kind=predictions.card.task.output)
        curve = curves.setdefault(name, {"unit": PERTURBATIONS[name][0], "points": []})
        curve["points"].append({"strength": strength, **_summarize(job, predictions, score, metric=metric)})
    return {"metric": metric, "unchanged": _summarize(job, predictions, plain, metric=metric), "curves": curves}


def _perturbed(
    job: EvaluateJob, predictions: SplitPredictions, *, name: str, strength: float, device: str
) -> Iterator[Batch]:
    opened = predictions.opened
    dataset = opened.build_dataset(crop=predictions.card.crop)
    sampler = EpochSampler(len(dataset), batch_size=job.batch_size)
    for batch in build_loader(dataset, sampler, workers=choose_workers(job.workers, device=device), device=device):
        changed = [
            perturb(
                image,
                name,
                strength=strength,
                seed=draw_seed("robustness", name, job.seed, int(position)),
                value_range=opened.store.spec.value_range,
            )
            for image, position in zip(batch.images.numpy(), batch.positions, strict=True)
        ]
        yield batch._replace(images=torch.from_numpy(np.stack(changed)))


def _score(model: Classifier, batches: Iterator[Batch], rules: StepRules, *, kind: str) -> Floats:
    scores: Floats = compute_scores(kind, torch.from_numpy(predict_logits(model, batches, rules))).numpy()
    return scores


def _summarize(job: EvaluateJob, predictions: SplitPredictions, score: Floats, *, metric: str) -> dict[str, Any]:
    changed = replace(predictions.rows.predictions, y_score=score)
    found = summarize(
        build_estimator(changed),
        predictions.rows.patients,
        support=lambda names: find_support(changed, names),
        replicates=min(job.replicates, MOST_REPLICATES),
        seed=job.seed,
    )
    return found[metric]
