"""Write the odds ratios of a run's clinical columns, with intervals, at the end of training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medcls.clinical.odds import REGRESSION, compute_ratios, list_contrasts, read_own
from medcls.config import TrainJob
from medcls.console import say
from medcls.data.dataset import StoreDataset
from medcls.data.loaders import choose_workers
from medcls.data.splits import TRAIN, VAL, read_patients
from medcls.files import ODDS_RATIOS, write_json
from medcls.train.training_data import TrainingData
from medcls.training.features import FeatureDataset
from medcls.training.forward import PredictOptions, predict_rows
from medcls.training.state import StepRules

REPLICATES = 1000
_FORMAT = 1
_LIMITS = (
    "Adjusted for the other columns and for what the image says, as this network says it, times one fitted factor. "
    "Intervals over patients leave out that another training would give another network. On training patients a "
    "network that knows them by heart leaves nothing to the columns; on validation patients its epoch was chosen. "
    "Associations, no effects."
)


def write_odds(
    job: TrainJob, run: Path, *, data: TrainingData, model: nn.Module, state: dict[str, Tensor], rules: StepRules
) -> None:
    """Writes odds_ratios.json, where there are clinical columns: of the training and of the validation patients.

    Args:
        job: Of the run.
        run: Its folder.
        data: Its rows.
        model: Images, or cached features, and clinical columns to logits; gets the weights `state`.
        state: Of the best epoch.
        rules: Device and precision.
    """
    if data.clinical is None:
        return
    model.load_state_dict(state)
    linear = data.task.output == REGRESSION
    own = read_own(data.task.output, state["wide.weight"].double().numpy())
    splits = {TRAIN: data.train, VAL: data.val}
    measured = {
        split: measure(job, data, dataset, predict_alone(job, data, split, model=model, rules=rules))
        for split, dataset in splits.items()
    }
    contrasts = [
        {
            "name": name,
            "model": (own[i] if linear else np.exp(own[i])).tolist(),
            **{s: measured[s][name] for s in splits},
        }
        for i, name in enumerate(measured[TRAIN])
    ]
    content = {
        "format": _FORMAT,
        "measure": "coefficient" if linear else "odds ratio",
        "limits": _LIMITS,
        "l2": job.clinical.l2,
        "replicates": REPLICATES,
        "n_images": {split: len(dataset) for split, dataset in splits.items()},
        "n_patients": {split: len(np.unique(_patients(data, dataset))) for split, dataset in splits.items()},
        "terms": [
            asdict(term)
            | {"n_patients": len(np.unique(_patients(data, data.train)[column == 1])) if term.level else None}
            for term, column in zip(data.clinical.terms, data.train.clinical.numpy().T, strict=True)
        ],
        "contrasts": contrasts,
    }
    write_json(run / ODDS_RATIOS, content)
    say(f"what the clinical columns add to the image: {run / ODDS_RATIOS}")


def measure(
    job: TrainJob, data: TrainingData, dataset: StoreDataset, image: NDArray[np.float64]
) -> dict[str, list[dict[str, Any]]]:
    """Returns for each contrast the ratio of each design column on the rows of a split.

    Args:
        job: Of the run.
        data: Its rows.
        dataset: The split's.
        image: (N, L) logits by the image alone.
    """
    contrasts = list_contrasts(
        data.task.output, dataset.targets.double().numpy(), image, class_names=data.task.class_names
    )
    ratios = compute_ratios(
        contrasts,
        dataset.clinical.double().numpy(),
        np.unique(_patients(data, dataset), return_inverse=True)[1],
        linear=data.task.output == REGRESSION,
        l2=job.clinical.l2,
        replicates=REPLICATES,
        seed=job.seed,
    )
    return {contrast.name: found for contrast, found in zip(contrasts, ratios, strict=True)}


def predict_alone(
    job: TrainJob, data: TrainingData, split: str, *, model: nn.Module, rules: StepRules
) -> NDArray[np.float64]:
    """Returns the logits (N, L) of a split's rows by the image alone: with the columns at zero, and not augmented.

    Rows that were trained on cached features are seen in their first view.
    """
    stored = {TRAIN: data.train, VAL: data.val}[split]
    nothing = np.zeros(stored.clinical.shape, dtype=np.float32)
    cached = data.features.get(split)
    dataset = (
        FeatureDataset(cached.views[:1], cached.rows, targets=cached.targets, clinical=torch.from_numpy(nothing))
        if cached
        else StoreDataset(data.store, stored.rows, targets=stored.targets.numpy(), crop=stored.crop, clinical=nothing)
    )
    workers = 0 if cached else choose_workers(job.workers, device=rules.device)
    return predict_rows(model, dataset, PredictOptions(rules, 2 * job.trainer.batch_size, workers))


def _patients(data: TrainingData, dataset: StoreDataset) -> NDArray[np.int32]:
    """A code of each row's patient, (N,)."""
    return read_patients(data.store, data.certificate).values[dataset.rows]
