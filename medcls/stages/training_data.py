"""The two splits that training may see, checked once more before anything is learnt from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.command_line import say
from medcls.config import TrainJob
from medcls.data.augment import Augmentation
from medcls.data.dataset import StoreDataset
from medcls.data.manifest import column_list, read_table, write_table
from medcls.data.splits import TRAIN, VAL, read_split, rows_of
from medcls.data.store import Store
from medcls.data.targets import Task, build_task, check_classes_present, encode_targets
from medcls.errors import DataError
from medcls.files import IMAGES, LABELS, PATIENTS, sha256_file
from medcls.imaging.domain import Domain, summarize_domain


@dataclass(slots=True)
class TrainingData:
    """The two splits that training may see, and what is learnt from them."""

    store: Store
    task: Task
    train: StoreDataset
    val: StoreDataset
    certificate: dict[str, Any]
    labels_sha256: str


def open_data(job: TrainJob) -> TrainingData:
    """Opens the store, checks it and its split again, and reads the rows of train and val only."""
    store = Store(Path(job.store or ""))
    store.verify()
    splits, certificate = read_split(store, job.split.name)
    labels = read_store_labels(store)
    train_rows, val_rows = rows_of(store, splits, TRAIN), rows_of(store, splits, VAL)
    if not len(train_rows) or not len(val_rows):
        raise DataError(f"split {job.split.name}: {len(train_rows)} train and {len(val_rows)} val images: both needed")
    task = build_task(
        job.task.kind,
        labels.take(train_rows),
        label=job.task.label,
        labels=job.task.labels,
        classes=job.task.classes,
        grades=job.task.grades,
    )
    augmentation = Augmentation(job.augment.transforms, shape=store.shape, dtype=store.spec.dtype)
    datasets: dict[str, StoreDataset] = {}
    for name, rows in ((TRAIN, train_rows), (VAL, val_rows)):
        kept, targets = select_labelled(task, labels, rows, split=name)
        check_classes_present(task, targets, split=name)
        check_grades(task, targets, split=name)
        chosen = augmentation if name == TRAIN else None
        datasets[name] = StoreDataset(store, kept, targets=targets, augmentation=chosen, seed=job.seed)
    say(describe_data(store, task, datasets))
    sha = sha256_file(store.folder / LABELS)
    return TrainingData(store, task, datasets[TRAIN], datasets[VAL], certificate, sha)


def read_store_labels(store: Store) -> pa.Table:
    """Returns labels.parquet, one row for each stored image in the store's order.

    Raises:
        DataError: its images are not the store's, or in another order.
    """
    labels = read_table(store.folder / LABELS, columns=("image_id",))
    if column_list(labels, "image_id") != store.image_ids:
        raise DataError(f"{store.folder / LABELS}: its rows are not the store's images; write it again by data_prep")
    return labels


def check_grades(task: Task, targets: NDArray[np.float64], *, split: str) -> None:
    """Raises DataError where a value is none of the grades 0 … K - 1 that the training rows have."""
    wrong = sorted(set(targets[:, 0].tolist()) - set(range(task.num_classes))) if task.grades else []
    if wrong:
        known = f"0 to {task.num_classes - 1}"
        raise DataError(f"{split}: grade {wrong[0]:g} is none of those in training ({known}); correct labels or splits")


def select_labelled(
    task: Task, labels: pa.Table, rows: NDArray[np.int64], *, split: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the rows that have a target and their targets (N, T); says how many were left out."""
    targets, known = encode_targets(task, labels.take(rows))
    if not known.all():
        say(f"{split}: {int((~known).sum())} of {len(rows)} images are left out: their label is no class of the task")
    if not known.any():
        raise DataError(f"{split}: no image has a label of this task ({', '.join(task.columns)})")
    return rows[known], targets[known]


def describe_data(store: Store, task: Task, datasets: dict[str, StoreDataset]) -> str:
    """Returns one line: store, sizes, classes."""
    sizes = ", ".join(f"{len(dataset)} {name}" for name, dataset in datasets.items())
    classes = f"classes {', '.join(task.class_names)}" if task.class_names else "a number"
    return f"store {store.folder}: {sizes} images {store.shape}; task {task.kind}: {classes}"


def write_seen(run: Path, data: TrainingData) -> None:
    """Writes which patients and images were trained and selected on: other stores are checked against them."""
    splits = [(name, row) for name, d in (("train", data.train), ("val", data.val)) for row in d.rows]
    for file, column in ((PATIENTS, "patient_id"), (IMAGES, "pixel_sha256")):
        values = data.store.column(column)
        rows = sorted({(values[row], name) for name, row in splits})
        write_table(run / file, pa.table({column: [v for v, _ in rows], "split": [name for _, name in rows]}))


def read_domain(data: TrainingData) -> Domain:
    """Returns the kinds of images in the training rows: predict refuses others."""
    rows = data.store.manifest.take(data.train.rows)
    spacings = column_list(rows, "spacing_row_mm") + column_list(rows, "spacing_column_mm")
    return summarize_domain(column_list(rows, "modality"), column_list(rows, "photometric"), spacings_mm=spacings)
