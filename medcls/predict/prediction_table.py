"""Write the table of predict: a row per file, series and patient, with scores or the reason for none."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.data.manifest import write_table
from medcls.data.targets import Task
from medcls.evaluate.own_predictions import name_sidecar
from medcls.files import write_bytes, write_json
from medcls.identity import Identity, format_count, guard_cell
from medcls.imaging.preprocess import Box
from medcls.statistics.decision import Decision
from medcls.statistics.predictions import Predictions

OK, REFUSED, SKIPPED = "ok", "refused", "skipped"
IMAGE = "image"
Row = dict[str, str | float | bool | list[float] | None]
"""One row of the table: column to cell."""


@dataclass(slots=True)
class Case:
    """What became of one file, or of the images of one series or patient.

    Attributes:
        path: Relative to the source, with /; of a volume its first file; "" of a series or patient.
        state: "ok", "refused" or "skipped".
        reason: Fixed word; "" for ok, unless the file is notable (corrupt_stream, first_picture …), or training never
            saw the like and out_of_domain=allow.
        detail: What was found and expected; no identifying value.
        headers: Allow-listed DICOM attributes; {} for other formats and where the header was not understood.
        logits: Outputs of one run; None for several runs, or without scores.
        scores: Mean over the runs of what compute_scores returns; None if there are none.
        level: "image", "series" or "patient".
        images: How many went into the scores of a series or patient.
        aggregation: By which rule; "" of an image.
        chosen: Columns that the run's frozen choices add, the same names in every row.
        files: All of a volume; () of an image, which is its path.
        key: What the image_id is made of, as in a store; "" = the path.
        predicted: The answer of the decision: a class, labels joined by ";", or a number; None without scores.
        decision: The rule that answered, with its thresholds; None without scores.
        distance: Distance from the training images, in units of the threshold frozen on validation; None if not known.
        pixel_sha256: Checksum of the pixels of an image; "" for a series or patient.
        region: (x, y, width, height) in pixels of the file; None = the whole image.
        notes: Words of imaging.volume.NOTES with spaces between; "" of an image of 2-D.
    """

    path: str
    state: str = OK
    reason: str = ""
    detail: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    logits: list[float] | None = None
    scores: list[float] | None = None
    level: str = IMAGE
    images: int = 0
    aggregation: str = ""
    chosen: dict[str, float | bool | None] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    key: str = ""
    predicted: str | float | None = None
    decision: Decision | None = None
    distance: float | None = None
    pixel_sha256: str = ""
    region: Box | None = None
    notes: str = ""

    @property
    def name(self) -> str:
        """What a store would name the image by: a series, else a file."""
        return self.key or self.path


def build_rows(cases: Sequence[Case], *, task: Task, identity: Identity, origin: Mapping[str, str]) -> list[Row]:
    """Return the output rows.

    `origin` holds columns that are the same in every row: what the scores were made by.
    """
    return [{**_build_row(case, task, identity), **origin} for case in cases]


def _build_row(case: Case, task: Task, identity: Identity) -> Row:
    headers = case.headers
    row: Row = {
        "level": case.level,
        "image_id": identity.name("image", case.name) or None,
        "patient_id": identity.name("patient", headers.get("PatientID", "")) or None,
        "study_id": identity.name("study", headers.get("StudyInstanceUID", "")) or None,
        "series_id": identity.name("series", headers.get("SeriesInstanceUID", "")) or None,
        "images": case.images or int(case.scores is not None),
        "aggregation": case.aggregation or None,
        "state": case.state,
        "reason": case.reason or None,
        "detail": case.detail or None,
        "predicted": case.predicted,
    }
    if task.positive:
        row["positive_class"] = task.positive
    if task.kind == "regression" and task.grades:
        row["grade"] = name_grade(task, case.scores)
    row["rule"] = case.decision.rule if case.decision else None
    row |= name_thresholds(task, case.decision) | name_scores(task, case.scores) | case.chosen
    row |= {"training_distance": case.distance, "logits": case.logits}
    return row


def name_answers(predictions: Predictions) -> list[str | float]:
    """Return what each row is called: a class, the called labels joined by ";", or the number of a regression."""
    names = predictions.class_names
    if predictions.kind == "regression":
        return [float(value) for value in predictions.y_score[:, 0]]
    if predictions.kind == "multilabel":
        return [";".join(n for n, called in zip(names, row, strict=True) if called) for row in predictions.called]
    return [names[grade] for grade in predictions.grade_predicted.tolist()]


def name_grade(task: Task, scores: Sequence[float] | None) -> str | None:
    """Return the grade that a predicted value is rounded to, as evaluate counts it; None without a value."""
    if scores is None:
        return None
    return task.class_names[int(build_predictions(task, np.array([scores])).grade_predicted[0])]


def name_thresholds(task: Task, decision: Decision | None, *, prefix: str = "threshold") -> dict[str, float | None]:
    """Return the column threshold, or threshold_<label> for each label; {} for tasks without thresholds.

    Null where there is no score, and where the class is never called.
    """
    if task.kind not in ("binary", "multilabel"):
        return {}
    names = [prefix] if task.kind == "binary" else [f"{prefix}_{name}" for name in task.class_names]
    values = list(decision.thresholds.values()) if decision else [None] * len(names)
    return {
        name: value if value is not None and np.isfinite(value) else None
        for name, value in zip(names, values, strict=True)
    }


def build_predictions(task: Task, scores: NDArray[np.float64]) -> Predictions:
    """Return the scores as evaluation takes them, with zeros for the labels that nobody knows."""
    labels = np.zeros(scores.shape if task.kind == "multilabel" else len(scores))
    return Predictions(task.kind, labels, scores, tuple(task.class_names), task.grades)


def name_scores(task: Task, scores: Sequence[float] | None, *, prefix: str = "score") -> dict[str, float | None]:
    """Return a column PREFIX_NAME for each class; {} for regression, whose value is `predicted`."""
    if task.kind == "regression":
        return {}
    if scores is None:
        return {f"{prefix}_{name}": None for name in task.class_names}
    values = [1 - scores[0], scores[0]] if task.kind == "binary" else scores
    return {f"{prefix}_{name}": value for name, value in zip(task.class_names, values, strict=True)}


def build_table(rows: Sequence[Row], *, task: Task) -> pa.Table:
    """Return the rows, at least one, with the type that each column has whatever is in it."""
    schema = pa.schema([(name, _find_type(name, task)) for name in rows[0]])
    return pa.Table.from_pylist(list(rows), schema=schema)


def write_rows(path: Path, rows: Sequence[Row], *, task: Task, form: str) -> None:
    """Write the rows atomically and apart: they may name patients.

    As "parquet"; "csv", a blank cell for null; "json", one array of objects; or "jsonl", one object a line.
    """
    if form == "parquet":
        write_table(path, build_table(rows, task=task), apart=True)
        return
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(guard_cell, rows[0]))
        writer.writerows([_write_cell(value) for value in row.values()] for row in rows)
        write_bytes(path, text.getvalue().encode(), apart=True)
        return
    objects = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    content = "[\n" + ",\n".join(objects) + "\n]\n" if form == "json" else "\n".join(objects) + "\n"
    write_bytes(path, content.encode(), apart=True)


def _write_cell(value: Any) -> Any:
    """Return what a CSV holds of a value: nothing for null, true or false, JSON for a list, no formulas."""
    if value is None:
        return ""
    if isinstance(value, bool | list):
        return json.dumps(value)
    return guard_cell(value) if isinstance(value, str) else value


def _find_type(name: str, task: Task) -> pa.DataType:
    """Said, not guessed from the values: a column of nulls has it, too."""
    if name.startswith(("score_", "calibrated_", "threshold")) or (name == "predicted" and task.kind == "regression"):
        return pa.float64()
    if name.startswith("above_"):
        return pa.bool_()
    types = {"logits": pa.list_(pa.float64()), "images": pa.int64(), "training_distance": pa.float64()}
    return types.get(name, pa.string())


MAP_SUFFIX = ".identity-map.csv"
"""Of the files beside a table of predictions, behind its name."""

COLUMNS = {
    "level": "image (a file or volume), series or patient",
    "image_id": "name of the image: a keyed pseudonym, or its series or path; as in a store made with the same key",
    "patient_id": "patient in the DICOM header, as deidentify= sets; null for other formats",
    "study_id": "study of the DICOM header",
    "series_id": "series of the DICOM header",
    "images": "images that the scores are based on",
    "aggregation": "rule by which the images of a series or patient were combined",
    "state": "ok, refused (an image, and no score) or skipped (not an image of this job)",
    "reason": "one fixed word: why there is no score, or what is unusual about an image that has one",
    "detail": "what was found and what was expected",
    "predicted": "the class that the rule chooses; the labels chosen, joined by ;; or the predicted value",
    "positive_class": "the class that score, threshold, sensitivity and PPV refer to",
    "grade": "the grade that the predicted value is rounded to",
    "rule": "the run's rule for calling a class, as evaluate uses it",
    "threshold": "a score of at least this calls the class, or the label that the column is named by",
    "score": "score of the class that the column is named by, before any recalibration",
    "calibrated": "recalibrated probability of the class that the column is named by",
    "above": "whether the score reaches the frozen operating point that the column is named by",
    "training_distance": "distance of the image's features from those of training; 1 = the threshold frozen on "
    "validation, above it the image is far from what was trained on",
    "logits": "the network's outputs, of a single run",
    "model_sha256": "SHA-256 of the model file, of several runs joined by +",
    "preprocess_sha256": "SHA-256 of the preprocessing",
}
"""What a column holds; of columns that carry a class, a label or a rule in their name, by the word before it."""


def write_columns(path: Path, rows: Sequence[Row], *, task: Task, intended_use: str) -> None:
    """Write what a table of predictions holds beside it, as PATH.columns.json."""
    decided = [name for name in rows[0] if name == "rule" or name.startswith("threshold")]
    found: dict[str, list[Any]] = {}
    for name in decided:
        values: set[Any] = {row[name] for row in rows if row[name] is not None}
        found[name] = sorted(values)
    content = {
        "columns": {name: describe_column(name) for name in rows[0]},
        "task": task.kind,
        "classes": task.class_names,
        "grades": task.grades,
        "positive_class": task.positive or None,
        "rules": found.pop("rule", []),
        "thresholds": found,
        "intended_use": intended_use,
    }
    write_json(name_sidecar(path), content, apart=True)


def describe_column(name: str) -> str:
    """Return what a column of the table holds."""
    stem = name if name in COLUMNS else name.partition("_")[0]
    return COLUMNS[stem]


def write_identity_map(path: Path, cases: Sequence[Case], identity: Identity) -> None:
    """Write the way back from pseudonyms to files and patients; only its owner can read it (mode 0600)."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image_id", "patient_pseudonym", "path", "patient_id"])
    for case in cases:
        patient = case.headers.get("PatientID", "")
        cells = [identity.name("image", case.name), identity.name("patient", patient), case.path, patient]
        writer.writerow(map(guard_cell, cells))
    write_bytes(path, text.getvalue().encode(), private=True)


def summarize(cases: Sequence[Case]) -> str:
    """Return one line of cases of files: how many ended in each state, and why."""
    states = Counter(case.state for case in cases)
    reasons = Counter(f"{case.state}: {case.reason}" for case in cases if case.reason)
    counts = ", ".join(f"{states[state]} {state}" for state in (OK, REFUSED, SKIPPED))
    why = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return f"{format_count(len(cases), 'file')}: {counts}" + (f" ({why})" if why else "")
