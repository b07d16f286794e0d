"""Measure how well the scanner's manufacturer, or another column, can be told from the network's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from medcls.data.dataset import StoreDataset
from medcls.evaluate.report_facts import read_subgroup_columns
from medcls.evaluate.split_predictions import SplitPredictions
from medcls.files import MODEL
from medcls.runs.model_file import read_model
from medcls.statistics.predictions import Floats
from medcls.statistics.site_prediction import compute_shortcut
from medcls.training.forward import PredictOptions, predict_rows


def measure_shortcuts(
    predictions: SplitPredictions,
    names: Sequence[str],
    options: PredictOptions,
    *,
    least_patients: int,
    replicates: int,
    seed: int,
) -> dict[str, Any]:
    """Return for each named column what `compute_shortcut` finds; one more pass over the images."""
    columns, absent = read_subgroup_columns(predictions, names)
    answer: dict[str, Any] = {name: {"reason": "the store has no such column"} for name in absent}
    features = compute_features(predictions, options)
    for name, values in columns.items():
        answer[name] = compute_shortcut(
            features,
            predictions.opened.targets,
            values,
            predictions.rows.patient_ids,
            least_patients=least_patients,
            replicates=replicates,
            seed=seed,
        )
    return answer


def compute_features(predictions: SplitPredictions, options: PredictOptions) -> Floats:
    """Return what the head sees of each opened row, (N, F)."""
    model = read_model(predictions.run / MODEL)[0].to(options.rules.device)
    opened = predictions.opened
    # The image's features only: what the columns say is no shortcut of the image.
    dataset = StoreDataset(opened.store, opened.rows, targets=opened.targets, crop=predictions.card.crop)
    return predict_rows(nn.Sequential(model.normalize, model.backbone), dataset, options)
