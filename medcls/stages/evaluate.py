"""The evaluation stage: a run and a split to predictions, metrics with intervals, and report.html."""

from __future__ import annotations

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
from medcls.data.store import Store
from medcls.errors import ConfigError, MissingInputError
from medcls.evaluation.intervals import compute_intervals
from medcls.evaluation.report import Evaluation, write_report
from medcls.files import (
    CONFIG,
    CONTACT_SHEET,
    ENVIRONMENT,
    LABELS,
    METRICS_LOG,
    MODEL,
    append_json_line,
    read_json,
    read_json_lines,
    sha256_file,
    write_json,
)
from medcls.models.classifier import Classifier
from medcls.models.heads import compute_scores
from medcls.stages.evaluation_data import Opened, open_rows
from medcls.training.checkpoint import ModelCard, read_card, read_model
from medcls.training.engine import NonFiniteError, StepRules, predict_logits
from medcls.training.precision import choose_device, choose_precision

PREDICTIONS = "predictions.parquet"
OPENED = "opened.jsonl"
INPUTS = "inputs.json"
HEADLINES = frozenset(
    {"auc", "average_precision", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "f1"}
    | {"quadratic_kappa", "mae", "mse", "rmse", "r2", "pearson", "spearman", "brier", "log_loss", "ece"}
)


def evaluate(job: EvaluateJob) -> None:
    """Evaluates one run on one split and prints the metrics and the report's path."""
    run = Path(job.run or "")
    if not run.is_dir():
        raise MissingInputError(f"run={run} is not a folder: python -m medcls.train run={run} makes it")
    card = read_card(run / MODEL)
    opened = open_rows(job, run, card)
    folder = Path(job.out) if job.out else run / "evaluation" / f"{opened.store.name}-{job.split}"
    check_folder(folder, opened.store)
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


def check_folder(folder: Path, store: Store) -> None:
    """Raises ConfigError where the folder holds the results of another store, which may have the same name."""
    if (folder / INPUTS).is_file() and read_json(folder / INPUTS)["store_sha256"] != store.sha256:
        raise ConfigError(f"{folder} holds the results of another store: choose a folder with out=DIR")


def predict_once(
    job: EvaluateJob, run: Path, *, folder: Path, opened: Opened, key: dict[str, Any], log: Path
) -> NDArray[np.float64]:
    """Returns the logits; those made before from the very same inputs are reused."""
    if is_repetition(folder, key):
        say(f"predictions of {folder}: the same inputs as before; reused")
        table = read_table(folder / PREDICTIONS, columns=("logits",))
        return np.array(column_list(table, "logits"), dtype=np.float64)
    # A model or device that cannot be used is found before the split is opened.
    model, _ = read_model(run / MODEL)
    device = choose_device(job.device)
    log.parent.mkdir(parents=True, exist_ok=True)
    # Counted before the first image is read: an evaluation that is broken off was an opening, too.
    append_json_line(log, {"key": key, "split": job.split})
    if job.split in ("test", "all"):
        count = count_openings(log, opened.store)
        say(f"opening split={job.split} of {opened.store.name}: {len(opened.rows)} images; opening number {count}")
    return compute_logits(job, opened, model=model, device=device)


def count_openings(log: Path, store: Store) -> int:
    """Returns how often the split was opened: stores of one name share a log, and are told apart by checksum."""
    return sum(row["key"]["store_sha256"] == store.sha256 for row in read_json_lines(log))


def is_repetition(folder: Path, key: dict[str, Any]) -> bool:
    """Returns whether the predictions there are whole and were made from the very same inputs."""
    if not (folder / PREDICTIONS).is_file() or not (folder / INPUTS).is_file():
        return False
    return read_json(folder / INPUTS) == key | {"predictions_sha256": sha256_file(folder / PREDICTIONS)}


def compute_logits(job: EvaluateJob, opened: Opened, *, model: Classifier, device: str) -> NDArray[np.float64]:
    """Returns the model's logits (N, L) of the opened rows."""
    rules = StepRules(device=device, precision=choose_precision(job.precision, device=device))
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
    openings = count_openings(log, opened.store)
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
    write_table(folder / PREDICTIONS, pa.table(columns))
    write_json(folder / INPUTS, key | {"predictions_sha256": sha256_file(folder / PREDICTIONS)})


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
