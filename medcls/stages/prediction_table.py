"""The table that predict writes: one row a file, with its scores or the reason why there are none."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.data.manifest import write_table
from medcls.data.targets import Task
from medcls.evaluation.predictions import Predictions
from medcls.files import write_bytes
from medcls.identity import Identity

OK, REFUSED, SKIPPED = "ok", "refused", "skipped"


@dataclass(slots=True)
class Case:
    """What became of one file.

    Attributes:
        path: Relative to the source, with /.
        state: "ok", "refused" or "skipped".
        reason: Fixed word; "" for ok, unless training never saw the like and out_of_domain=allow.
        detail: What was found and expected; no identifying value.
        headers: Allow-listed DICOM attributes; {} for other formats and where the header was not understood.
        logits: Of one run; None for several, and where there are no scores.
        scores: As compute_scores returns them, the mean over the runs; None where there are none.
    """

    path: str
    state: str = OK
    reason: str = ""
    detail: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    logits: list[float] | None = None
    scores: list[float] | None = None


def build_rows(
    cases: Sequence[Case], *, task: Task, identity: Identity, origin: dict[str, str]
) -> list[dict[str, Any]]:
    """Returns the output rows.

    Args:
        cases: One for each file.
        task: Of the runs.
        identity: How ids are named.
        origin: Columns that are the same in every row: what the scores were made by.
    """
    return [_build_row(case, task, identity) | origin for case in cases]


def _build_row(case: Case, task: Task, identity: Identity) -> dict[str, Any]:
    headers = case.headers
    return {
        "image_id": identity.name("image", case.path),
        "patient_id": identity.name("patient", headers.get("PatientID", "")) or None,
        "study_id": identity.name("study", headers.get("StudyInstanceUID", "")) or None,
        "series_id": identity.name("series", headers.get("SeriesInstanceUID", "")) or None,
        "state": case.state,
        "reason": case.reason or None,
        "detail": case.detail or None,
        "predicted": None if case.scores is None else decide(task, np.array(case.scores)),
        **name_scores(task, case.scores),
        "logits": case.logits,
    }


def decide(task: Task, scores: NDArray[np.float64]) -> str | float:
    """Returns the predicted class by the rule that evaluate counts by; a number for regression.

    Args:
        task: Of the runs.
        scores: (K,) or (1,) as compute_scores returns them.

    Returns:
        The class; the labels with a score of at least 0.5 joined by ";" for multilabel.
    """
    if task.kind == "regression":
        return float(scores[0])
    if task.kind == "multilabel":
        return ";".join(name for name, score in zip(task.class_names, scores, strict=True) if score >= 0.5)
    rule = Predictions(task.kind, np.zeros(1), scores[None], tuple(task.class_names), task.grades)
    return task.class_names[int(rule.grade_predicted[0])]


def name_scores(task: Task, scores: Sequence[float] | None) -> dict[str, float | None]:
    """Returns a column score_NAME for each class; {} for regression, whose value is `predicted`."""
    if task.kind == "regression":
        return {}
    if scores is None:
        return {f"score_{name}": None for name in task.class_names}
    values = [1 - scores[0], scores[0]] if task.kind == "binary" else scores
    return {f"score_{name}": value for name, value in zip(task.class_names, values, strict=True)}


def write_rows(path: Path, rows: Sequence[dict[str, Any]], *, task: Task, form: str) -> None:
    """Writes the rows atomically, as parquet or as one JSON object a line."""
    if form == "json":
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        write_bytes(path, "".join(lines).encode())
        return
    kinds = {name: pa.float64() for name in name_scores(task, None)} | {"logits": pa.list_(pa.float64())}
    if task.kind == "regression":
        kinds["predicted"] = pa.float64()
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]])
    write_table(path, pa.Table.from_pylist(list(rows), schema=schema))


def write_identity_map(path: Path, cases: Sequence[Case], identity: Identity) -> None:
    """Writes the way back from pseudonyms to files and patients; only its owner can read it (mode 0600)."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image_id", "patient_pseudonym", "path", "patient_id"])
    for case in cases:
        patient = case.headers.get("PatientID", "")
        writer.writerow([identity.name("image", case.path), identity.name("patient", patient), case.path, patient])
    write_bytes(path, text.getvalue().encode(), private=True)


def summarize(cases: Sequence[Case]) -> str:
    """Returns one line: how many files ended in each state, and why."""
    states = Counter(case.state for case in cases)
    reasons = Counter(f"{case.state}: {case.reason}" for case in cases if case.reason)
    counts = ", ".join(f"{states[state]} {state}" for state in (OK, REFUSED, SKIPPED))
    why = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return f"{len(cases)} files: {counts}" + (f" ({why})" if why else "")
