"""Clinical columns of a training: learnt from its training rows, and encoded for any rows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from medcls.clinical.encode import ClinicalSpec, check_faults, encode_clinical
from medcls.clinical.learn import build_clinical, check_columns, check_no_label
from medcls.clinical.odds import REGRESSION, fit_contrast, list_contrasts
from medcls.config import ClinicalConfig
from medcls.console import say
from medcls.data.dataset import StoreDataset
from medcls.data.store import Store
from medcls.data.targets import Task
from medcls.errors import DataError
from medcls.models.classifier import Classifier
from medcls.models.heads import count_logits

Rows = NDArray[np.int64]


def learn_clinical(
    settings: ClinicalConfig, store: Store, rows: Rows, targets: NDArray[np.float64]
) -> ClinicalSpec | None:
    """Return how the columns asked for are encoded, by the training rows alone; None if no column is asked for."""
    if not settings.columns:
        return None
    check_columns(settings.columns, there=store.column_names)
    table = store.read(*settings.columns, rows=rows)
    spec = build_clinical(
        table,
        categorical=settings.categorical,
        numeric=settings.numeric,
        patients=len(np.unique(store.codes("patient_id").values[rows])),
        reference=settings.reference,
        unseen=settings.unseen,
    )
    check_no_label(spec, table, targets)
    say(f"clinical columns: {', '.join(term.name for term in spec.terms)}")
    return spec


def encode_rows(spec: ClinicalSpec | None, store: Store, rows: Rows, *, where: str) -> NDArray[np.float32] | None:
    """Return the design matrix (N, C) of store rows; None without a spec.

    Raises:
        DataError: the store lacks a column, or rows have a value that cannot be encoded.
    """
    if spec is None:
        return None
    absent = [name for name in spec.columns if name not in store.column_names]
    if absent:
        raise DataError(
            f"store={store.folder} has no column {', '.join(absent)}, which the model takes in addition to images: "
            f"prepare it with columns=[{','.join(absent)}]"
        )
    values, faults = encode_clinical(spec, store.read(*spec.columns, rows=rows))
    check_faults(faults, where=where, rows=len(rows))
    return values


def start_wide(model: Classifier, task: Task, train: StoreDataset, *, l2: float) -> None:
    """Start the wide part and the bias at the regression on the clinical columns alone: the image learns the rest.

    Source: own choice, docs/decisions/0018; without it the first steps would go to what a regression finds at once.
    """
    head, wide = model.head, model.wide
    if wide is None:
        raise ValueError("this model takes no clinical columns")
    targets, clinical = (part.double().numpy() for part in (train.targets, train.clinical))
    weight, bias = _fit_alone(task.output, targets, clinical, names=task.class_names, l2=l2)
    if task.output == "joint":
        value, mean = _fit_alone(REGRESSION, targets, clinical, names=[], l2=l2)
        weight, bias = np.concatenate([weight, value]), np.concatenate([bias, mean])
    with torch.no_grad():
        wide.weight.copy_(torch.from_numpy(weight))
        head.linear.bias.copy_((torch.from_numpy(bias) - head.shift) / head.scale)


def _fit_alone(
    output: str, targets: NDArray[np.float64], clinical: NDArray[np.float64], *, names: list[str], l2: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (O, C) and biases (L,) of the logits; 0 where a regression has no maximum."""
    nothing = np.zeros((len(targets), count_logits(output if output != "joint" else "multiclass", len(names))))
    everyone = np.ones((1, len(targets)))
    fits = [
        fit_contrast(each, clinical, weights=everyone, l2=l2)
        for each in list_contrasts(output, targets, nothing, class_names=names)
    ]
    bias, weight = (np.nan_to_num(np.concatenate(parts)) for parts in zip(*fits, strict=True))
    if output in ("multiclass", "joint"):
        # The first class is what the others are compared with.
        bias, weight = np.pad(bias, ((1, 0), (0, 0))), np.pad(weight, ((1, 0), (0, 0)))
    return weight, bias.ravel()
