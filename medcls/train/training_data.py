"""Open the train and val splits of a store, and check them again before anything is learnt from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch.utils.data import Dataset

from medcls.clinical.encode import ClinicalSpec
from medcls.config import AugmentConfig, ClinicalConfig, CropConfig, TaskConfig
from medcls.console import say
from medcls.data.columns import code_column
from medcls.data.contact_sheet import write_contact_sheet
from medcls.data.crops import Crop
from medcls.data.dataset import Batch, ImageView, StoreDataset
from medcls.data.manifest import write_table
from medcls.data.regions import summarize_regions
from medcls.data.splits import TEST, TRAIN, VAL, Certificate, read_split, rows_of
from medcls.data.store import Store
from medcls.data.targets import (
    Task,
    build_task,
    check_classes_present,
    describe_left_out,
    describe_positive,
    encode_targets,
)
from medcls.data.votes import encode_shares, has_votes
from medcls.errors import DataError
from medcls.files import CONTACT_SHEET, IMAGES, LABELS, PATIENTS, sha256_file
from medcls.identity import format_count
from medcls.imaging.domain import Domain, summarize_domain
from medcls.imaging.grey_levels import loses_levels
from medcls.train.augment_choice import choose_augmentation, list_sides, read_kinds
from medcls.train.clinical_columns import encode_rows, learn_clinical
from medcls.training.features import FeatureDataset

SplitRows = dict[str, NDArray[np.int64]]
# Volumes have all three.
SPACINGS = ("spacing_slice_mm", "spacing_row_mm", "spacing_column_mm")


@dataclass(slots=True)
class TrainingData:
    """The two splits that training may see, and what is learnt from them.

    Attributes:
        store: The store that holds them.
        task: What is learnt.
        train: Images that are learnt from.
        val: Images that the best epoch is chosen on.
        certificate: Certificate of the split.
        labels_sha256: Checksum of the store's labels; "" if no label is looked at.
        held_out: Manifest rows of val and test: nothing that the weights went through may have seen them.
        clinical: How clinical columns are encoded; None where there are none.
        augment: Preset, transforms and sides, as the model card keeps them.
        features: Split -> features in place of its images; {} where the network sees images.
    """

    store: Store
    task: Task
    train: StoreDataset
    val: StoreDataset
    certificate: Certificate
    labels_sha256: str
    held_out: NDArray[np.int64]
    clinical: ClinicalSpec | None = None
    augment: dict[str, object] = field(default_factory=dict)
    features: dict[str, FeatureDataset] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[Dataset[Batch], Dataset[Batch]]:
        """What the loop trains on, and what it validates on."""
        return self.features.get(TRAIN, self.train), self.features.get(VAL, self.val)


@dataclass(frozen=True, slots=True)
class Variation:
    """What makes another image of a training image in every epoch.

    Attributes:
        crop: What is cut out of it.
        augment: How it is changed.
        seed: Seed of both.
    """

    crop: CropConfig
    augment: AugmentConfig
    seed: int


def read_rows(store: Store, split: str, *, what: str = "images") -> tuple[SplitRows, Certificate]:
    """Return the manifest rows of each part of a split, after checking that train and val have some; its certificate.

    Raises:
        DataError: they have none, or the split has changed.
    """
    splits, certificate = read_split(store, split)
    rows = {name: rows_of(splits, name) for name in (TRAIN, VAL, TEST)}
    if not len(rows[TRAIN]) or not len(rows[VAL]):
        raise DataError(
            f"split {split}: {len(rows[TRAIN])} train and {len(rows[VAL])} val {what}: expected both; prepare the "
            "store with both, or choose another split.name="
        )
    return rows, certificate


def open_data(
    store: Store, split: str, *, task: TaskConfig, varied: Variation, clinical: ClinicalConfig
) -> TrainingData:
    """Check a store's split again, and read the rows of train and val only."""
    parts, certificate = read_rows(store, split)
    labels = store.read_labels()
    learnt = build_task(task, labels.take(parts[TRAIN]))
    crop = build_crop(varied.crop, store)
    chosen = choose_augmentation(
        varied.augment,
        store.spec,
        shape=store.shape if crop is None else crop.shape(store.shape),
        sides=list_sides(learnt, clinical=clinical.columns),
        **read_kinds(store, parts[TRAIN]),
    )
    if chosen.notice:
        say(chosen.notice)
    datasets: dict[str, StoreDataset] = {}
    spec: ClinicalSpec | None = None
    for name in (TRAIN, VAL):
        kept, targets, soft = select_labelled(learnt, labels, parts[name], split=name)
        check_classes_present(learnt, targets, split=name)
        check_grades(learnt, targets, split=name)
        if name == TRAIN:
            spec = learn_clinical(clinical, store, kept, targets)
        datasets[name] = StoreDataset(
            store,
            kept,
            targets=targets,
            view=ImageView(crop, chosen.augmentation if name == TRAIN else None, varied.seed),
            clinical=encode_rows(spec, store, kept, where=name),
            soft=soft,
        )
    say(describe_data(store, learnt, datasets))
    return TrainingData(
        store,
        learnt,
        datasets[TRAIN],
        datasets[VAL],
        certificate,
        labels_sha256=sha256_file(store.folder / LABELS),
        held_out=np.concatenate([parts[VAL], parts[TEST]]),
        clinical=spec,
        augment=chosen.to_json(),
    )


def build_crop(config: CropConfig, store: Store) -> Crop | None:
    """Return what is cut out of the stored images; None = they are taken as they are.

    Raises:
        ConfigError: the store's images are smaller than the largest scale, or it holds volumes.
    """
    if not config.scales:
        return None
    crop = Crop(config.size, *config.scales)
    crop.check(store.shape)
    return crop


def check_grades(task: Task, targets: NDArray[np.float64], *, split: str) -> None:
    """Raise DataError where a value is none of the grades 0 … K - 1 that the training rows have."""
    wrong = np.setdiff1d(targets[:, 0] if task.grades else [], np.arange(task.num_classes))
    if len(wrong):
        known = f"0 to {task.num_classes - 1}"
        raise DataError(
            f"{split}: grade {wrong[0]:g} does not occur in training ({known}): correct the labels or the split"
        )


def select_labelled(
    task: Task, labels: pa.Table, rows: NDArray[np.int64], *, split: str
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64] | None]:
    """Return the rows that have a target, their targets (N, T), and soft targets for training; print what is left out.

    Rows between classes (votes of readers, labels that are half and half) are trained on, and their target is NaN.
    """
    targets, known = encode_targets(task, labels.take(rows))
    soft = encode_shares(task, labels.take(rows)) if split == TRAIN else None
    usable = known if soft is None else known | ~np.isnan(soft).all(axis=1)
    if not usable.all():
        say(f"{split}: {describe_left_out(task, labels.take(rows), ~usable)}")
    if not known.any():
        raise DataError(f"{split}: no image has a label of this task ({', '.join(task.columns)})")
    if soft is not None:
        shares = soft[usable]
        between = int(((shares > 0) & (shares < 1)).any(axis=1).sum())
        say(
            f"{split}: {format_count(between, 'image')} with soft targets (votes of readers, uncertain labels), "
            f"{int((usable & ~known).sum())} of them without a label; class weights, validation and metrics use only "
            f"labels"
        )
    elif split == TRAIN and has_votes(task, labels):
        say(
            f"{split}: only the majority label of the readers is used, not their votes: task.kind={task.kind} takes "
            "one label"
        )
    return rows[usable], targets[usable], None if soft is None else soft[usable]


def describe_data(store: Store, task: Task, datasets: dict[str, StoreDataset]) -> str:
    """Return one line: store, sizes, classes."""
    sizes = ", ".join(f"{len(dataset)} {name}" for name, dataset in datasets.items())
    classes = f"classes {', '.join(task.class_names)}" if task.class_names else "a number"
    if task.traits.ordered or task.grades:
        classes = f"{' < '.join(task.class_names)}"
    what = "volumes" if store.spec.spatial_dims == 3 else "images"
    positive = describe_positive(task, recorded=True)
    ending = f"; {positive}" if positive else ""
    return f"store {store.folder}: {sizes} {what} {store.shape}; task {task.kind}: {classes}{ending}"


def look_at_data(run: Path, data: TrainingData) -> None:
    """Write the cheapest check there is: what the network will see, by class, plain and augmented."""
    groups = [] if data.task.traits.multiple else data.task.class_names
    path = write_contact_sheet(run / CONTACT_SHEET, data.train, class_names=groups)
    say(f"look at {path}: training images by class, each above its augmented version")


def write_seen(run: Path, data: TrainingData) -> None:
    """Write which patients and images were trained and selected on: other stores are checked against them."""
    splits = [(TRAIN, data.train.rows), (VAL, data.val.rows)]
    for file, column in ((PATIENTS, "patient_id"), (IMAGES, "pixel_sha256")):
        seen = [
            data.store.read(column, rows=rows).append_column("split", pa.array([name]).take(pa.array(0 * rows)))
            for name, rows in splits
        ]
        write_table(run / file, _sort_unique(pa.concat_tables(seen)))


def _sort_unique(table: pa.Table) -> pa.Table:
    """Return the different rows in order; sorting takes a third of the memory that group_by does."""
    table = table.sort_by([(name, "ascending") for name in table.column_names]).combine_chunks()
    new = np.ones(table.num_rows, dtype=np.bool_)
    changes = [pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)) for column in table.columns]
    new[1:] = np.logical_or.reduce([change.to_numpy() for change in changes])
    return table if new.all() else table.filter(pa.array(new))


def read_domain(data: TrainingData) -> Domain:
    """Return the kinds of images in the training rows: predict refuses others."""
    kinds = data.store.read("modality", "photometric", rows=data.train.rows, coded=True)
    modalities, photometrics = (_different(kinds.column(name)) for name in kinds.column_names)
    names = [name for name in SPACINGS if name in data.store.column_names]
    spacings = data.store.read(*names, rows=data.train.rows)
    known = [end for column in spacings.columns for end in (pc.min(column).as_py(), pc.max(column).as_py())]
    parts = _different(data.store.read("body_part", rows=data.train.rows, coded=True).column("body_part"))
    intents = None
    if "intent" in data.store.column_names:
        intents = _different(data.store.read("intent", rows=data.train.rows, coded=True).column("intent"))
    domain = summarize_domain(modalities, photometrics, spacings_mm=known, body_parts=parts, intents=intents)
    regions, share = summarize_regions(data.store, data.train.rows)
    return replace(domain, few_levels=_find_few_levels(data), regions=regions, region_share=share)


def _find_few_levels(data: TrainingData) -> bool | None:
    """Return whether a training image lost its grey levels; None if unknown, or if the user chose windows in HU."""
    names = ("value_levels", "stored_levels")
    if data.store.spec.windows_hu or any(name not in data.store.column_names for name in names):
        return None
    source, stored = (column.to_numpy() for column in data.store.read(*names, rows=data.train.rows).columns)
    known = ~(np.isnan(source) | np.isnan(stored))
    if not known.any():
        return None
    return any(loses_levels(source=n, stored=k) for n, k in zip(source[known], stored[known], strict=True))


def _different(column: pa.ChunkedArray[Any]) -> list[str | None]:
    codes = code_column(column)
    return [*codes.texts.to_pylist(), *([None] if (codes.values < 0).any() else [])]
