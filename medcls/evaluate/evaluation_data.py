"""Open the rows to evaluate: the run's own store, or an external one that shares no patient with training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medcls.data.crops import Crop
from medcls.data.dataset import ImageView, StoreDataset
from medcls.data.regions import ALL, NONE, describe_share, summarize_regions
from medcls.data.splits import TRAIN, VAL, Certificate, Splits, read_split, rows_of
from medcls.data.store import Store
from medcls.data.targets import describe_left_out, encode_targets, find_respelled
from medcls.errors import DataError, MissingInputError
from medcls.files import IMAGES, LABELS, MODEL, PATIENTS, sha256_file
from medcls.identity import PER_IMAGE, describe_patients, format_count
from medcls.records import to_json
from medcls.runs.checksums import open_store
from medcls.runs.folder import read_store_folder
from medcls.runs.lineage import RUN, check_unseen, find_seen, list_incomparable, read_lineage
from medcls.runs.model_file import ModelCard
from medcls.statistics.exposure import Exposure
from medcls.train.clinical_columns import encode_rows
from medcls.train.training_data import check_grades


@dataclass(frozen=True, slots=True)
class RowRequest:
    """Which rows are evaluated.

    Attributes:
        split: "train", "val", "test" or "all".
        store: Folder; None = the run's own store.
        in_sample: "refuse" rows that the run was trained on, or "allow" them, marked as such.
    """

    split: str = VAL
    store: str | None = None
    in_sample: str = "refuse"


@dataclass(slots=True)
class Opened:
    """The rows that are evaluated, checked against a run.

    Attributes:
        run: Folder of the run.
        card: Card of its model.
        store: Where they lie.
        rows: Manifest rows with a label of the task.
        targets: (N, T) of them.
        certificate: Certificate of the split; {} for split=all of a store without one.
        notes: What a reader of the report has to know.
        exposure: What the model has seen of the rows.
        clinical: (N, C) of the rows for a model that takes clinical columns, else None.
    """

    run: Path
    card: ModelCard
    store: Store
    rows: NDArray[np.int64]
    targets: NDArray[np.float64]
    certificate: Certificate
    notes: list[str]
    exposure: Exposure
    clinical: NDArray[np.float32] | None = None

    def build_dataset(self, *, crop: Crop | None) -> StoreDataset:
        """Return the rows as a model takes them that was trained on crops such as this."""
        return StoreDataset(self.store, self.rows, targets=self.targets, view=ImageView(crop), clinical=self.clinical)

    def request_validation(self, wanted: RowRequest) -> RowRequest | None:
        """Return the same request for the validation rows of the run's own store; None if that store is not here."""
        own = self.store.folder
        if self.store.sha256 != self.card.store_sha256:
            own = read_store_folder(self.run)
        if not own.is_dir():
            return None
        return replace(wanted, store=str(own), split=VAL)


def open_rows(wanted: RowRequest, run: Path, card: ModelCard) -> Opened:
    """Open the store and the split that the run remembers, or the other store asked for, and check both."""
    folder = Path(wanted.store) if wanted.store else read_store_folder(run)
    if wanted.store is None and not folder.is_dir():
        raise MissingInputError(
            f"the run's store {folder} (sha256 {card.store_sha256}) does not exist: set store=DIR to its current path"
        )
    store = open_store(folder)
    external = store.sha256 != card.store_sha256
    if external and wanted.store is None:
        raise DataError(f"store {folder} has changed since this run was trained: restore it, or set store={folder}")
    check_same_preprocessing(store, card)
    notes = [*list_lineage_notes(card), *list_patient_notes(store, card)]
    certificate: Certificate = {}
    if external and wanted.split == "all":
        rows = np.arange(len(store), dtype=np.int64)
    else:
        splits, certificate = read_split(store, card.split_name)
        if not external and certificate["split_sha256"] != card.split_sha256:
            raise DataError(
                f"split {card.split_name} of {folder} is not the one this run was trained on: restore it, or give the "
                "run's own store"
            )
        rows = rows_of(splits, wanted.split)
    # Before labels are read: whether rows may be looked at does not depend on what is known of them.
    if external:
        check_same_regions(store, rows, card)
        trained, found = check_external(store, rows, run, card, in_sample=wanted.in_sample)
        chose = np.zeros_like(trained)
        notes += found
    else:
        trained, chose = find_used(store, rows, read_split(store, card.split_name)[0])
        refuse_in_sample(wanted, trained)
    if not external and sha256_file(store.folder / LABELS) != card.labels_sha256:
        notes.append("the store's labels have changed since this run was trained")
    labels = store.read_labels()
    targets, known = encode_targets(card.task, labels.take(rows))
    if not known.any():
        raise DataError(f"split={wanted.split}: no image with a label of this task ({', '.join(card.task.columns)})")
    check_grades(card.task, targets[known], split=wanted.split)
    notes += [
        f"labels of {store.name} that are spelled {text!r} are read as the class {label} of the run"
        for text, label in find_respelled(card.task, labels.take(rows)).items()
    ]
    if not known.all():
        notes.append(describe_left_out(card.task, labels.take(rows), ~known))
    if any("synthetic" in str(name).lower() for name in store.codes("manufacturer").texts.to_pylist()):
        notes.append("synthetic images: the figures say nothing about patients")
    rows = rows[known]
    exposure = Exposure(len(rows), int(trained[known].sum()), int(chose[known].sum()))
    notes = [*filter(None, [exposure.title]), *notes]
    clinical = encode_rows(card.clinical, store, rows, where=f"split={wanted.split}")
    return Opened(run, card, store, rows, targets[known], certificate, notes, exposure, clinical)


def find_used(store: Store, rows: NDArray[np.int64], splits: Splits) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows of a run's own store were trained on, and which others chose; by patient and by pixels."""
    trained, chose = np.zeros(len(rows), dtype=np.bool_), np.zeros(len(rows), dtype=np.bool_)
    for kind in ("patient_id", "pixel_sha256"):
        values = store.codes(kind).values
        trained |= np.isin(values[rows], values[rows_of(splits, TRAIN)])
        chose |= np.isin(values[rows], values[rows_of(splits, VAL)])
    return trained, chose & ~trained


def refuse_in_sample(wanted: RowRequest, trained: NDArray[np.bool_]) -> None:
    """Check that no figure is in-sample, unless it is asked for; what chooses on validation may not be stopped.

    Raises:
        DataError: in_sample=refuse, and rows were trained on.
    """
    if trained.any() and wanted.in_sample == "refuse" and wanted.split != VAL:
        raise DataError(
            f"split={wanted.split}: the run was trained on {int(trained.sum())} of "
            f"{format_count(len(trained), 'image')} or their patients: set split=test, or in_sample=allow to have "
            "every figure marked as in-sample"
        )


def check_same_preprocessing(store: Store, card: ModelCard) -> None:
    """Check that the store was preprocessed like the images that the model was trained on."""
    trained, here = to_json(card.preprocess), to_json(store.spec)
    names = {**trained, **here}
    changed = [f"{n}: {trained.get(n)} -> {here.get(n)}" for n in names if trained.get(n) != here.get(n)]
    if changed:
        raise DataError(
            f"store={store.folder} was preprocessed differently from the model's ({'; '.join(changed)}): prepare it "
            "with the same image settings"
        )


def check_same_regions(store: Store, rows: NDArray[np.int64], card: ModelCard) -> None:
    """Check that a model trained on regions gets regions, and one trained on whole images gets whole images."""
    if card.domain is None or not len(rows):
        return
    trained = card.domain.regions
    here, share = summarize_regions(store, rows)
    if trained == ALL and here == NONE:
        typical = describe_share(card.domain.region_share)
        raise DataError(
            f"store={store.folder} contains whole images, but the run was trained on regions{typical}: prepare it "
            "with roi_x, roi_y, roi_w and roi_h in its labels file"
        )
    if trained == NONE and here == ALL:
        raise DataError(
            f"store={store.folder} contains regions{describe_share(share)}, but the run was trained on whole images: "
            "prepare it without roi_x, roi_y, roi_w and roi_h"
        )


def check_external(
    store: Store, rows: NDArray[np.int64], run: Path, card: ModelCard, *, in_sample: str
) -> tuple[NDArray[np.bool_], list[str]]:
    """Return which of these rows this run or a model its weights went through has seen, and notes.

    Raises:
        DataError: patients or images were trained or selected on, and in_sample=refuse.
        MissingInputError: the run does not say whom it has seen.
    """
    sha256 = sha256_file(run / MODEL)
    lineage = read_lineage(run / MODEL, card, sha256=sha256, weights=RUN)
    if not lineage.models[-1]["seen"]:
        raise MissingInputError(
            f"run={run} lacks {PATIENTS} or {IMAGES}, which list the patients and images it was trained on: restore "
            "them"
        )
    seen = find_seen(lineage, store, rows)
    if seen.any() and in_sample == "allow":
        said = (
            f"external store {store.name}: {int(seen.sum())} of {format_count(len(seen), 'image')} not new to the run"
        )
        return seen, [said, *list_incomparable(store, lineage)]
    remedy = "remove them from the external store, or set in_sample=allow to have every figure marked as in-sample"
    notes = check_unseen(store, rows, lineage, remedy=remedy, own=sha256)
    what = "no patient id and no image of it was trained or selected on"
    if PER_IMAGE in (store.patients_from, card.training.get("patients_from")):
        what = "no image of it was trained or selected on; patients unknown"
    return seen, [f"external store {store.name}: {what}", *notes]


def list_patient_notes(store: Store, card: ModelCard) -> list[str]:
    """Return what a reader has to know if the patients of the store or of the training data are unknown."""
    notes = []
    if store.patients_from in (PER_IMAGE, ""):
        notes.append(describe_patients(store.patients_from))
    if store.patients_from != PER_IMAGE == card.training.get("patients_from"):
        notes.append("patients of the training data are unknown, so overlap with them cannot be ruled out")
    return notes


def list_lineage_notes(card: ModelCard) -> list[str]:
    """Return what a reader has to know where an ancestor had this run's own split (transfer.val_seen=allow)."""
    own = (card.store_sha256, card.split_sha256)
    if not any((model.get("store_sha256"), model.get("split_sha256")) == own for model in card.ancestors):
        return []
    return ["val is not held out for this run: a model that its weights come from was also selected on it"]
