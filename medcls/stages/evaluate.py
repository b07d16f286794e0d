"""The evaluation stage: a run and a split to predictions, metrics with intervals, and report.html."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from medcls.command_line import say
from medcls.config import EvaluateJob
from medcls.data.dataset import StoreDataset
from medcls.data.loaders import EpochSampler, build_loader, choose_workers
from medcls.data.manifest import column_list, read_table, write_table
from medcls.data.splits import read_split, rows_of
from medcls.data.store import Store
from medcls.data.targets import encode_targets
from medcls.errors import DataError, MissingInputError
from medcls.evaluation.intervals import compute_intervals
from medcls.evaluation.report import Evaluation, write_report
from medcls.files import (
    CONFIG,
    CONTACT_SHEET,
    ENVIRONMENT,
    LABELS,
    METRICS_LOG,
    MODEL,
    PATIENTS,
    append_json_line,
    read_json,
    read_json_lines,
    sha256_file,
    sha256_json,
    write_json,
)
from medcls.models.heads import compute_scores
from medcls.stages.training_data import read_store_labels
from medcls.training.checkpoint import ModelCard, read_card, read_model
from medcls.training.engine import NonFiniteError, StepRules, predict_logits
from medcls.training.precision import choose_device, choose_precision

PREDICTIONS = "predictions.parquet"
OPENED = "opened.jsonl"
KEY = b"medcls.inputs_sha256"
HEADLINES = frozenset(
    {"auc", "average_precision", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "f1"}
    | {"quadratic_kappa", "mae", "mse", "rmse", "r2", "pearson", "spearman", "brier", "log_loss", "ece"}
)


@dataclass(slots=True)
class Opened:
    """The rows that are evaluated.

    Attributes:
        store: Where they lie.
        rows: Manifest rows with a label of the task.
        targets: (N, T) of them.
        certificate: Of the split; {} for split=all of a store without one.
        notes: What a reader of the report has to know.
    """

    store: Store
    rows: NDArray[np.int64]
    targets: NDArray[np.float64]
    certificate: dict[str, Any]
    notes: list[str]


def evaluate(job: EvaluateJob) -> None:
    """Evaluates one run on one split and prints the metrics and the report's path."""
    run = Path(job.run or "")
    if not run.is_dir():
        raise MissingInputError(f"run={run} is not a folder: python -m medcls.train run={run} makes it")
    card = read_card(run / MODEL)
    opened = open_rows(job, run, card)
    folder = Path(job.out) if job.out else run / "evaluation" / f"{opened.store.name}-{job.split}"
    folder.mkdir(parents=True, exist_ok=True)
    key = {
        "model_sha256": sha256_file(run / MODEL),
        "store_sha256": opened.store.sha256,
        "split": job.split,
        "split_sha256": opened.certificate.get("split_sha256"),
        "labels_sha256": sha256_file(opened.store.folder / LABELS),
        "precision": job.precision,
        "device": job.device,
    }
    # Counted in the run, wherever the results go: out= makes no opening uncounted.
    log = run / "evaluation" / f"{opened.store.name}-{job.split}" / OPENED
    logits = predict_once(job, run, folder=folder, opened=opened, key=key, log=log)
    write_results(job, run, folder=folder, opened=opened, card=card, logits=logits, key=key, log=log)


def open_rows(job: EvaluateJob, run: Path, card: ModelCard) -> Opened:
    """Opens the store and the split that the run remembers, or the other store asked for, and checks both."""
    folder = Path(job.store or card.training["store"])
    if job.store is None and not folder.is_dir():
        raise MissingInputError(f"the run's store {folder} (sha256 {card.store_sha256}) is gone: say store=DIR")
    store = Store(folder)
    store.verify()
    external = store.sha256 != card.store_sha256
    if external and job.store is None:
        raise DataError(f"store {folder} has changed since this run was trained: restore it, or say store={folder}")
    notes = check_same_preprocessing(store, card)
    certificate: dict[str, Any] = {}
    if external and job.split == "all":
        rows = np.arange(len(store), dtype=np.int64)
    else:
        splits, certificate = read_split(store, card.split_name)
        if not external and certificate["split_sha256"] != card.split_sha256:
            raise DataError(f"split {card.split_name} of {folder} has changed since this run was trained: restore it")
        rows = rows_of(store, splits, job.split)
    if external:
        check_no_shared_patients(store, rows, run)
        notes.append(f"external store {store.name}: no patient of it was trained or selected on")
    elif sha256_file(store.folder / LABELS) != card.labels_sha256:
        notes.append("the store's labels have changed since this run was trained")
    labels = read_store_labels(store)
    targets, known = encode_targets(card.task, labels.take(rows))
    if not known.any():
        raise DataError(f"split={job.split}: no image with a label of this task ({', '.join(card.task.columns)})")
    if not known.all():
        notes.append(f"{int((~known).sum())} of {len(rows)} images are left out: their label is no class of the task")
    if any("synthetic" in (name or "").lower() for name in store.column("manufacturer")):
        notes.append("synthetic images: the figures say nothing about patients")
    return Opened(store, rows[known], targets[known], certificate, notes)


def check_same_preprocessing(store: Store, card: ModelCard) -> list[str]:
    """Raises DataError where the store's pixels were made otherwise than those the model was trained on."""
    trained, here = card.preprocess.to_json(), store.spec.to_json()
    changed = [f"{name}: {trained[name]} -> {here[name]}" for name in trained if trained[name] != here[name]]
    if changed:
        raise DataError(
            f"store={store.folder} was preprocessed otherwise than the model's ({'; '.join(changed)}): prepare it with "
            "the same image settings"
        )
    return []


def check_no_shared_patients(store: Store, rows: NDArray[np.int64], run: Path) -> None:
    """Raises DataError where patients of an external store were trained or selected on by this run."""
    seen = set(column_list(read_table(run / PATIENTS, columns=("patient_id",)), "patient_id"))
    patients = store.column("patient_id")
    shared = sorted({patients[row] for row in rows} & seen)
    if shared:
        raise DataError(
            f"{len(shared)} patients of store={store.folder} were trained or selected on by this run, the first "
            f"{shared[0]!r}: leave them out of the external store"
        )


def predict_once(
    job: EvaluateJob, run: Path, *, folder: Path, opened: Opened, key: dict[str, Any], log: Path
) -> NDArray[np.float64]:
    """Returns the logits; those made before from the very same inputs are reused."""
    if (folder / PREDICTIONS).is_file():
        table = read_table(folder / PREDICTIONS, columns=("logits",))
        if (table.schema.metadata or {}).get(KEY) == sha256_json(key).encode():
            say(f"predictions of {folder}: the same inputs as before; reused")
            return np.array(column_list(table, "logits"), dtype=np.float64)
    log.parent.mkdir(parents=True, exist_ok=True)
    # Counted before the first image is read: an evaluation that is broken off was an opening, too.
    append_json_line(log, {"key": key, "split": job.split})
    if job.split in ("test", "all"):
        count = len(read_json_lines(log))
        say(f"opening split={job.split} of {opened.store.name}: {len(opened.rows)} images; opening number {count}")
    return compute_logits(job, run, opened)


def compute_logits(job: EvaluateJob, run: Path, opened: Opened) -> NDArray[np.float64]:
    """Returns the model's logits (N, L) of the opened rows."""
    device = choose_device(job.device)
    rules = StepRules(device=device, precision=choose_precision(job.precision, device=device))
    model, _ = read_model(run / MODEL)
    model.to(device)
    dataset = StoreDataset(opened.store, opened.rows, targets=opened.targets)
    sampler = EpochSampler(len(dataset), batch_size=job.batch_size)
    workers = choose_workers(job.workers, device=device)
    loader = build_loader(dataset, sampler, workers=workers, device=device)
    logits = predict_logits(model, tqdm(loader, desc=f"predict {job.split}", unit="batch"), rules)
    if not np.isfinite(logits).all():
        wrong = int((~np.isfinite(logits).all(axis=1)).sum())
        raise NonFiniteError(f"the outputs for {wrong} of {len(logits)} images are not finite: try precision=fp32")
    return logits


def write_results(
    job: EvaluateJob,
    run: Path,
    *,
    folder: Path,
    opened: Opened,
    card: ModelCard,
    logits: NDArray[np.float64],
    key: dict[str, Any],
    log: Path,
) -> None:
    """Writes predictions.parquet, metrics.json and report.html, and prints the numbers."""
    task = card.task
    scores = compute_scores(task.kind, torch.from_numpy(logits)).numpy()
    all_patients = opened.store.column("patient_id")
    patients = [all_patients[row] for row in opened.rows]
    write_predictions(folder, opened, patients=patients, logits=logits, scores=scores, key=key)
    y_true = opened.targets if task.kind == "multilabel" else opened.targets[:, 0]
    metrics: dict[str, Any] = compute_intervals(
        task.kind,
        y_true,
        scores,
        patient_ids=patients,
        class_names=task.class_names,
        grades=task.grades,
        replicates=job.replicates,
        seed=job.seed,
    )
    metrics |= {"n_images": len(patients), "n_patients": len(set(patients))}
    write_json(folder / "metrics.json", metrics)
    openings = len(read_json_lines(log))
    notes = [
        *opened.notes,
        f"split {job.split} was opened {openings} time{'s' if openings != 1 else ''} by this run",
    ]
    sheet = run / CONTACT_SHEET
    report = write_report(
        folder,
        Evaluation(
            kind=task.kind,
            class_names=task.class_names,
            grades=task.grades,
            y_true=y_true,
            y_score=scores,
            patient_ids=patients,
            metrics=metrics,
            split=job.split,
            store_name=opened.store.name,
            seed=job.seed,
            certificate=opened.certificate,
            config_yaml=(run / CONFIG).read_text(encoding="utf-8"),
            environment=read_json(run / ENVIRONMENT),
            history=read_json_lines(run / METRICS_LOG),
            notes=notes,
            contact_sheets={"Training images by class, stored above and augmented below": sheet}
            if sheet.is_file()
            else {},
        ),
    )
    print(format_metrics(metrics, split=job.split))
    print(f"report: {report}")


def write_predictions(
    folder: Path,
    opened: Opened,
    *,
    patients: list[str],
    logits: NDArray[np.float64],
    scores: NDArray[np.float64],
    key: dict[str, Any],
) -> None:
    """Writes one row an image (image_id, patient_id, y_true, logits, y_score), and what they were made from."""
    columns = {
        "image_id": [opened.store.image_ids[row] for row in opened.rows],
        "patient_id": patients,
        "y_true": opened.targets.tolist(),
        "logits": logits.tolist(),
        "y_score": scores.tolist(),
    }
    table = pa.table(columns).replace_schema_metadata({KEY: sha256_json(key)})
    write_table(folder / PREDICTIONS, table)


def format_metrics(metrics: dict[str, Any], *, split: str) -> str:
    """Returns the headline metrics with their intervals, one a line; metrics.json has those of each class too."""
    lines = [f"{split}: {metrics['n_images']} images of {metrics['n_patients']} patients, 95 % intervals over patients"]
    for name, entry in metrics.items():
        if not isinstance(entry, dict) or name not in HEADLINES:
            continue
        if entry["value"] is None:
            lines.append(f"  {name:28s} undefined: {entry.get('reason', '')}")
        else:
            interval = "" if entry["low"] is None else f"  [{entry['low']:.3f}, {entry['high']:.3f}]"
            lines.append(f"  {name:28s} {entry['value']:.3f}{interval}")
    return "\n".join(lines)
