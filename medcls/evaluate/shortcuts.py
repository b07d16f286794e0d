"""How well the manufacturer, or another column, is told from what the head of the network sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medcls.config import EvaluateJob
from medcls.data.dataset import StoreDataset
from medcls.data.loaders import EpochSampler, build_loader, choose_workers
from medcls.evaluate.report_facts import read_subgroup_columns
from medcls.evaluate.split_predictions import SplitPredictions
from medcls.files import MODEL
from medcls.runs.model_file import read_model
from medcls.statistics.predictions import Floats
from medcls.statistics.site_prediction import compute_shortcut
from medcls.training.forward import predict_logits
from medcls.training.precision import choose_device, choose_precision
from medcls.training.state import StepRules


def measure_shortcuts(job: EvaluateJob, predictions: SplitPredictions) -> dict[str, Any]:
    """Returns for each column of shortcuts=[…] what `compute_shortcut` finds; one more pass over the images."""
    columns, absent = read_subgroup_columns(predictions, job.shortcuts)
    answer: dict[str, Any] = {name: {"reason": "the store has no such column"} for name in absent}
    features = compute_features(job, predictions)
    for name, values in columns.items():
        answer[name] = compute_shortcut(
            features,
            predictions.opened.targets,
            values,
            predictions.rows.patient_ids,
            least_patients=job.least_patients,
            replicates=job.replicates,
            seed=job.seed,
        )
    return answer


def compute_features(job: EvaluateJob, predictions: SplitPredictions) -> Floats:
    """Returns what the head sees of each opened row, (N, F)."""
    device = choose_device(job.device)
    rules = StepRules(device=device, precision=choose_precision(job.precision, device=device))
    model = read_model(predictions.run / MODEL)[0].to(device)
    opened = predictions.opened
    # The image's features only: what the columns say is no shortcut of the image.
    dataset = StoreDataset(opened.store, opened.rows, targets=opened.targets, crop=predictions.card.crop)
    sampler = EpochSampler(len(dataset), batch_size=job.batch_size)
    loader = build_loader(dataset, sampler, workers=choose_workers(job.workers, device=device), device=device)
    with torch.inference_mode():
        return predict_logits(nn.Sequential(model.normalize, model.backbone), loader, rules)
