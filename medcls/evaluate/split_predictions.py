"""Predict one run on one split: log the opening of a test split, keep the predictions, reuse unchanged ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from medcls.console import say, show_progress
from medcls.data.manifest import column_list, read_table, write_table
from medcls.data.splits import read_patients
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.evaluate.evaluation_data import Opened, RowRequest
from medcls.evaluate.image_views import Pass, ViewPlan, ViewRequest, build_passes, find_sides_of, plan_views
from medcls.files import (
    EVALUATION,
    LABELS,
    MODEL,
    OPENED,
    append_json_line,
    open_seal,
    read_json,
    read_json_lines,
    seal,
    sha256_file,
    sha256_json,
    write_json,
)
from medcls.identity import format_count
from medcls.models.classifier import FeatureClassifier
from medcls.models.heads import average_logits, compute_scores
from medcls.runs.model_file import ModelCard, read_model
from medcls.statistics.assessment import Rows
from medcls.statistics.predictions import check_predictions
from medcls.train.cached_features import read_more_features
from medcls.training.forward import PredictOptions, choose_options, predict_rows
from medcls.training.loop import NonFiniteError

PREDICTIONS = "predictions.parquet"
INPUTS = "inputs.json"
TESTS = ("test", "all")
"""Splits that hold test rows; of these version 0.2.0 counted the openings."""
PIXELS = "pixel_sha256"
_OF_PREDICTIONS = "predictions_sha256"
EVALUATED = "evaluated"


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """Which predictions are asked for: the rows, the views of each image, and how they are computed.

    Attributes:
        rows: Which rows.
        views: Which views of each image.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "fp32", "bf16" or "fp16".
        batch_size: Largest batch.
        workers: Loading processes; -1 chooses by the cores.
    """

    rows: RowRequest
    views: ViewRequest = field(default_factory=ViewRequest)
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 64
    workers: int = -1

    def choose_options(self) -> PredictOptions:
        """Return how to compute on this machine."""
        return choose_options(
            device=self.device, precision=self.precision, batch_size=self.batch_size, workers=self.workers
        )


@dataclass(frozen=True, slots=True)
class SplitPredictions:
    """What a run says about the images of a split.

    Attributes:
        opened: The rows.
        rows: Scores and truth, and whose they are.
        folder: Folder of the results.
        log: opened.jsonl.
        key: Checksums of all that the predictions follow from.
        plan: The views of each image.
        logits: (N, L).
        members: Predictions of each of several runs, if these are their mean; () for one run. If there are some,
            `opened`, `log` and `plan` are the first one's.
    """

    opened: Opened
    rows: Rows
    folder: Path
    log: Path
    key: Mapping[str, Any]
    plan: ViewPlan
    logits: NDArray[np.float64]
    members: tuple[SplitPredictions, ...] = ()

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.opened.run

    @property
    def card(self) -> ModelCard:
        """Card of its model."""
        return self.opened.card

    @property
    def parts(self) -> tuple[SplitPredictions, ...]:
        """Predictions of each run by itself."""
        return self.members or (self,)

    @property
    def openings(self) -> int:
        """How often these rows were opened by the run; of several by the one that opened them most."""
        return max(len(list_openings(part.opened, split=part.key["split"])) for part in self.parts)


def predict_split(
    request: SplitRequest, opened: Opened, *, folder: Path | None = None, use: str = EVALUATED
) -> SplitPredictions:
    """Return the predictions of the opened rows and keep them as predictions.parquet, one row an image.

    The same inputs as before give the predictions of before. They are opened again only for another use: test rows
    that have judged a run judge an ensemble, a comparison or its explanations once more.

    `use` says what the rows are opened for; the results go into the folder of this split in the run if none is given.
    """
    run, card = opened.run, opened.card
    plan = plan_views(request.views, crop=card.crop, stored=opened.store.shape, sides=find_sides_of(card))
    split = request.rows.split
    log = run / EVALUATION / f"{opened.store.name}-{split}" / OPENED
    folder = folder or log.parent.with_name("-".join(filter(None, (log.parent.name, plan.name))))
    check_folder(folder, opened.store)
    folder.mkdir(parents=True, exist_ok=True)
    key = list_inputs(request, opened, plan)
    logits = read_repetition(folder, key)
    if logits is None:
        logits = predict_views(request, opened, plan=plan, log=log, use=use)
    elif opened.exposure.has_unseen and not any(
        line["key"] == key and line.get("use", EVALUATED) == use for line in list_openings(opened, split=split)
    ):
        log_opening(opened, key=key, log=log, use=use)
    rows = build_rows(opened, logits)
    write_predictions(folder, opened, rows=rows, logits=logits, key=key)
    return SplitPredictions(opened, rows, folder, log, key, plan, logits)


def list_inputs(request: SplitRequest, opened: Opened, plan: ViewPlan) -> Mapping[str, Any]:
    """Return the checksums and settings that predictions follow from."""
    return {
        "model_sha256": sha256_file(opened.run / MODEL),
        "store_sha256": opened.store.sha256,
        "split": request.rows.split,
        "split_sha256": opened.certificate.get("split_sha256"),
        "labels_sha256": sha256_file(opened.store.folder / LABELS),
        "precision": request.precision,
        "device": request.device,
    } | plan.to_json()


def build_rows(opened: Opened, logits: NDArray[np.float64]) -> Rows:
    """Return scores and truth of the opened rows, checked, and whose they are."""
    task, truth = opened.card.task, opened.targets
    if task.kind != "multilabel":
        truth = truth[:, 0]
    scores = compute_scores(task.output, torch.from_numpy(logits)).numpy()
    predictions = check_predictions(task.kind, truth, scores, class_names=task.class_names, grades=task.grades)
    return Rows(predictions, name_patients(opened), values_of(opened, "study_id"))


def name_patients(opened: Opened) -> list[Any]:
    """Return the patient of each opened row; patients whom the split has merged (split.merge_linked) are one."""
    patients = read_patients(opened.store, opened.certificate)
    return patients.texts.take(pa.array(patients.values[opened.rows])).to_pylist()


def values_of(opened: Opened, column: str) -> list[Any]:
    """Return the values of a manifest column at the opened rows (None where null)."""
    return opened.store.column(column, opened.rows)


def check_folder(folder: Path, store: Store) -> None:
    """Check that the folder does not hold the results of another store, which may have the same name."""
    if (folder / INPUTS).is_file() and read_json(folder / INPUTS).get("store_sha256") != store.sha256:
        raise ConfigError(f"{folder} holds the results of another store: choose a folder with out=DIR")


def predict_views(
    request: SplitRequest, opened: Opened, *, plan: ViewPlan, log: Path, use: str = EVALUATED
) -> NDArray[np.float64]:
    """Return the logits (N, L) of the opened rows, the scores of several views averaged; the opening is counted.

    The log is in the run, wherever the results go and whatever the views: nothing makes an opening uncounted.
    """
    # A model or device that cannot be used is found before the split is opened.
    model, card = read_model(opened.run / MODEL)
    options = request.choose_options()
    passes = build_passes(plan, model.to(options.rules.device), output=card.task.output)
    # Counted before the first image is read: an evaluation that is interrupted was an opening, too.
    log_opening(opened, key=list_inputs(request, opened, plan), log=log, use=use)
    split = request.rows.split
    cached = None
    if not plan.scales:
        dataset = opened.build_dataset(crop=plan.crop)
        cached = read_more_features(opened.run, card, model=model, dataset=dataset, options=options, name=split)
    if cached is None:
        logits = [compute_logits(opened, passed, options, split=split) for passed in passes]
    else:
        # Features are read faster than a process could hand them over.
        here = PredictOptions(options.rules, options.batch_size)
        logits = [check_finite(predict_rows(FeatureClassifier(model), cached, here))]
    averaged: NDArray[np.float64] = average_logits(card.task.output, torch.from_numpy(np.stack(logits))).numpy()
    return averaged


def log_opening(opened: Opened, *, key: Mapping[str, Any], log: Path, use: str) -> None:
    """Append an opening to the log, with the content of its rows beside it; of rows that can judge the run say so."""
    log.parent.mkdir(parents=True, exist_ok=True)
    split = key["split"]
    rows = hash_rows(opened)
    name = f"opened-{rows[:16]}.parquet"
    if not (log.parent / name).is_file():
        write_table(log.parent / name, opened.store.read(PIXELS, rows=opened.rows))
    number = len(list_openings(opened, split=split)) + 1
    line = {
        "key": key,
        "split": split,
        "number": number,
        "use": use,
        "store": opened.store.name,
        "images": len(opened.rows),
        "rows": name,
        "rows_sha256": rows,
        "unseen": opened.exposure.has_unseen,
    }
    append_json_line(log, seal(line))
    if opened.exposure.has_unseen:
        what = f"split={split} of {opened.store.name}"
        say(f"opening {what} ({use}): {format_count(len(opened.rows), 'image')}; opening number {number}")


def hash_rows(opened: Opened) -> str:
    """Return the checksum of the pixels of the opened rows, in whichever order and store they are."""
    return sha256_json(sorted(values_of(opened, PIXELS)))


def list_openings(opened: Opened, *, split: str) -> list[Mapping[str, Any]]:
    """Return every line on any of these rows, in the order of opening: by content, not by folder, store, view or use.

    Of rows that can judge the run only openings of such rows: split=all holds the validation split, too.

    Version 0.2.0 wrote no content: its lines are on these rows if store and split agree.
    """
    rows, values = hash_rows(opened), pa.array(values_of(opened, PIXELS))
    known: dict[str, bool] = {rows: True}
    found = []
    for log in sorted((opened.run / EVALUATION).glob(f"*/{OPENED}")):
        for line in _read_openings(log):
            if opened.exposure.has_unseen and not _is_unseen(line):
                continue
            sha256 = line.get("rows_sha256")
            if sha256 is None:
                splits = {line["key"]["split"], split}
                if line["key"]["store_sha256"] == opened.store.sha256 and (len(splits) == 1 or "all" in splits):
                    found.append(line)
                continue
            if sha256 not in known:
                other = _read_opened(log.parent / Path(line["rows"]).name, sha256=sha256)
                known[sha256] = bool(pc.any(pc.is_in(values, value_set=other)).as_py())
            if known[sha256]:
                found.append(line)
    return sorted(found, key=lambda line: line.get("number", 0))


def _read_opened(path: Path, *, sha256: str) -> pa.ChunkedArray[Any]:
    """Return the checksums of the pixels of rows that were opened, as `log_opening` wrote them."""
    column = read_table(path, columns=(PIXELS,)).column(PIXELS)
    if sha256_json(sorted(map(str, column.to_pylist()))) != sha256:
        raise DataError(f"{path} has changed since it was written: restore it from a copy of the run")
    return column


def count_test_openings(run: Path, model_sha256: str) -> int:
    """Return how often rows that can judge the run, of any store, were opened with this model."""
    lines = [line for log in sorted((run / EVALUATION).glob(f"*/{OPENED}")) for line in _read_openings(log)]
    return sum(line["key"]["model_sha256"] == model_sha256 and _is_unseen(line) for line in lines)


def _is_unseen(line: Mapping[str, Any]) -> bool:
    """Return whether rows that can judge the run were opened; version 0.2.0 knew by the split's name."""
    return bool(line.get("unseen", line["key"]["split"] in TESTS))


def _read_openings(log: Path) -> Sequence[Mapping[str, Any]]:
    """Return the lines of a log, checked: one that cannot be counted is not a log without openings."""
    lines = [open_seal(line, log, remedy="restore it from a copy of the run") for line in read_json_lines(log)]
    names = {"model_sha256", "store_sha256", "split"}
    if not all(isinstance(line.get("key"), dict) and names <= set(line["key"]) for line in lines):
        raise DataError(f"{log} has a line that no evaluation wrote: restore the file")
    if (log.parent / INPUTS).is_file():
        # Openings are logged before predictions are made: a log that was cut off would hide them.
        inputs = read_json(log.parent / INPUTS)
        if not any(line["key"] | {_OF_PREDICTIONS: inputs.get(_OF_PREDICTIONS)} == inputs for line in lines):
            raise DataError(f"{log} lacks the opening of the predictions beside it: restore it from a copy of the run")
    return lines


def read_repetition(folder: Path, key: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Return the logits there where they are whole and were made from the very same inputs; else None."""
    if not (folder / PREDICTIONS).is_file() or not (folder / INPUTS).is_file():
        return None
    if read_json(folder / INPUTS) != {**key, _OF_PREDICTIONS: sha256_file(folder / PREDICTIONS)}:
        return None
    say(f"predictions of {folder}: the same inputs as before; reused")
    table = read_table(folder / PREDICTIONS, columns=("logits",))
    return np.array(column_list(table, "logits"), dtype=np.float64)


def compute_logits(opened: Opened, passed: Pass, options: PredictOptions, *, split: str) -> NDArray[np.float64]:
    """Return the logits (N, L) of the opened rows in one pass over their images.

    Raises:
        NonFiniteError: The network's outputs for an image are not finite.
    """
    show = partial(show_progress, desc=" ".join(filter(None, ("predict", split, passed.name))), unit="batch")
    logits = predict_rows(passed.network, opened.build_dataset(crop=passed.crop), options, through=show)
    return check_finite(logits)


def check_finite(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logits (N, L); raise NonFiniteError if those of an image are not finite."""
    if not np.isfinite(logits).all():
        wrong = int((~np.isfinite(logits).all(axis=1)).sum())
        raise NonFiniteError(f"the outputs for {wrong} of {len(logits)} images are not finite: try precision=fp32")
    return logits


def write_predictions(
    folder: Path, opened: Opened, *, rows: Rows, logits: NDArray[np.float64], key: Mapping[str, Any]
) -> None:
    """Write one row an image (image_id, patient_id, y_true, logits, y_score), and what they were made from."""
    columns = {
        "image_id": values_of(opened, "image_id"),
        "patient_id": list(rows.patient_ids),
        "y_true": opened.targets.tolist(),
        "logits": logits.tolist(),
        "y_score": rows.predictions.y_score.tolist(),
    }
    if rows.predictions.positive_class:
        # y_true 1 and y_score are about this class.
        columns["positive_class"] = [rows.predictions.positive_class] * len(opened.rows)
    written = write_table(folder / PREDICTIONS, pa.table(columns))
    write_json(folder / INPUTS, {**key, _OF_PREDICTIONS: written})
