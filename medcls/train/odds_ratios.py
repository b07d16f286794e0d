"""Write the odds ratios of a run's clinical columns, with intervals, at the end of training."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medcls.clinical.odds import REGRESSION, compute_ratios, list_contrasts, read_own
from medcls.console import say
from medcls.data.dataset import ImageView, StoreDataset
from medcls.data.splits import TRAIN, VAL, read_patients
from medcls.files import ODDS_RATIOS, write_json
from medcls.statistics.intervals import MetricEntry
from medcls.train.training_data import TrainingData
from medcls.training.features import FeatureDataset
from medcls.training.forward import PredictOptions, predict_rows

REPLICATES = 1000
_FORMAT = 1
_LIMITS = (
    "Adjusted for the other columns and for the image, as scored by this network, times one fitted factor. "
    "The intervals over patients do not cover the variation between trainings. On training patients a "
    "network that memorised them leaves the columns nothing to explain; its epoch was chosen on the validation "
    "patients. Associations, not effects."
)


def write_odds(
    run: Path, *, data: TrainingData, model: nn.Module, options: PredictOptions, l2: float, seed: int
) -> None:
    """Write odds_ratios.json of the clinical columns: of the training and of the validation patients.

    The network takes images, or cached features, and has the weights of the best epoch.

    Raises:
        ValueError: The data has no clinical columns.
    """
    if data.clinical is None:
        raise ValueError("there are no clinical columns")
    splits = {TRAIN: data.train, VAL: data.val}
    patients = {split: _patients(data, dataset) for split, dataset in splits.items()}
    own, kind = read_own(data.task.output, model.state_dict()["wide.weight"].cpu().double().numpy()), "coefficient"
    if data.task.output != REGRESSION:
        own, kind = [np.exp(each) for each in own], "odds ratio"
    measured = {}
    for split, dataset in splits.items():
        image = predict_alone(data, split, model=model, options=options)
        measured[split] = measure(data, dataset, image, l2=l2, seed=seed)
    contrasts = [
        {"name": name, "model": own[i].tolist(), **{split: measured[split][name] for split in splits}}
        for i, name in enumerate(measured[TRAIN])
    ]
    terms = []
    for term, column in zip(data.clinical.terms, data.train.clinical.numpy().T, strict=True):
        having = len(np.unique(patients[TRAIN][column == 1])) if term.level else None
        terms.append(asdict(term) | {"n_patients": having})
    content = {
        "format": _FORMAT,
        "measure": kind,
        "limits": _LIMITS,
        "l2": l2,
        "replicates": REPLICATES,
        "n_images": {split: len(dataset) for split, dataset in splits.items()},
        "n_patients": {split: len(np.unique(codes)) for split, codes in patients.items()},
        "terms": terms,
        "contrasts": contrasts,
    }
    write_json(run / ODDS_RATIOS, content)
    say(f"what the clinical columns add to the image: {run / ODDS_RATIOS}")


def measure(
    data: TrainingData, dataset: StoreDataset, image: NDArray[np.float64], *, l2: float, seed: int
) -> dict[str, list[MetricEntry]]:
    """Return for each contrast the ratio of each design column on the rows of a split."""
    contrasts = list_contrasts(
        data.task.output, dataset.targets.double().numpy(), image, class_names=data.task.class_names
    )
    ratios = compute_ratios(
        contrasts,
        dataset.clinical.double().numpy(),
        np.unique(_patients(data, dataset), return_inverse=True)[1],
        l2=l2,
        replicates=REPLICATES,
        seed=seed,
    )
    return {contrast.name: found for contrast, found in zip(contrasts, ratios, strict=True)}


def predict_alone(data: TrainingData, split: str, *, model: nn.Module, options: PredictOptions) -> NDArray[np.float64]:
    """Return the logits (N, L) of a split's rows by the image alone: with the columns at zero, and not augmented.

    Rows that were trained on cached features are seen in their first view.
    """
    stored = {TRAIN: data.train, VAL: data.val}[split]
    nothing = np.zeros(stored.clinical.shape, dtype=np.float32)
    if split in data.features:
        cached, clinical = data.features[split], torch.from_numpy(nothing)
        first = FeatureDataset(cached.views[:1], cached.rows, targets=cached.targets, clinical=clinical)
        return predict_rows(model, first, replace(options, workers=0))
    view, targets = ImageView(stored.crop), stored.targets.numpy()
    plain = StoreDataset(data.store, stored.rows, targets=targets, view=view, clinical=nothing)
    return predict_rows(model, plain, options)


def _patients(data: TrainingData, dataset: StoreDataset) -> NDArray[np.int32]:
    """Return a code of each row's patient, (N,)."""
    return read_patients(data.store, data.certificate).values[dataset.rows]
