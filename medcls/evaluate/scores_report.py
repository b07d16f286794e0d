"""Collect what the report and metrics.json say of a file of scores; what it cannot prove reads "unknown"."""

from __future__ import annotations

from typing import Any

import numpy as np

from medcls.evaluate.judged_rows import Found, Judged
from medcls.evaluate.score_file import read_number
from medcls.evaluate.score_table import ScoreTable
from medcls.identity import PER_IMAGE, format_count
from medcls.report.content import Evaluation
from medcls.reproducibility import describe_software
from medcls.statistics.exposure import Exposure
from medcls.statistics.subgroups import count_patients

UNKNOWN = "unknown"
UNPROVEN = {
    "training_rows": "whether these rows trained or selected the model",
    "leaks": "whether patients of these rows were in its training data",
    "frozen_choices": "whether thresholds were chosen before these rows were seen",
    "openings": "how often these rows were evaluated",
}
"""What a file of scores cannot prove, by its name in metrics.json."""
AGE = ("age_years", "age")


def describe_facts(table: ScoreTable) -> dict[str, object]:
    """Return what metrics.json says of the rows and the file."""
    return {
        "rows": Exposure(len(table.rows.patient_ids), known=False).to_json(),
        "patients_from": "declared" if table.patients_known else PER_IMAGE,
        "openings": UNKNOWN,
        "unproven": dict.fromkeys(UNPROVEN, UNKNOWN),
        "source": {
            "kind": "file of scores",
            "sha256": table.sha256,
            "probabilities": table.rows.predictions.probabilities,
            "left_out": table.left_out,
            "normalized": table.normalized,
            "patients_known": table.patients_known,
        },
    }


def describe_loss(table: ScoreTable) -> list[str]:
    """Return how many rows were left out, and what was done with their scores."""
    notes = []
    if table.unscored:
        notes.append(
            f"{format_count(table.unscored, 'image')} without a score (refused or skipped by predict) left out: the "
            "numbers are those of the others"
        )
    if table.left_out:
        notes.append(f"{format_count(table.left_out, 'row')} without a truth left out")
    if not table.rows.predictions.probabilities and not table.rows.predictions.traits.numeric:
        notes.append(
            f"{format_count(table.outside, 'score')} outside [0, 1]: all are taken as margins, which rank images; "
            "calibration is not measured, since it needs probabilities"
        )
    if table.normalized:
        notes.append(
            f"sums=normalize: the probabilities of {format_count(table.normalized, 'row')} were divided by their sum"
        )
    if not table.patients_known:
        notes.append("patients are unknown: every row counts as a patient, so intervals may be too narrow")
    return notes


def build_evaluation(
    table: ScoreTable, judged: Judged, found: Found, *, notes: list[str], name: str, seed: int
) -> Evaluation:
    """Return what the report is made of; what a file cannot prove reads "unknown"."""
    rows, metrics = judged.rows, found.metrics
    sizes = {"images": metrics["n_images"], "patients": metrics["n_patients"]}
    left = {"without a score": table.unscored, "without a truth": table.left_out}
    whole = {"title": "Rows in the file", **table.total, "images": table.total["images"] + table.unscored}
    whole["left_out"] = [(why, count) for why, count in left.items() if count]
    flow = [whole, {"title": "Evaluated", **sizes, "left_out": []}]
    first = np.unique(rows.patients, return_index=True)[1].tolist()
    known = {column: [cells[row] or None for row in first] for column, cells in table.columns.items()}
    ages = next((known[column] for column in AGE if column in known), [])
    columns: dict[str, list[Any]] = {}
    for column in ("sex", "manufacturer", "modality"):
        if column in known:
            columns[column] = known[column]
    described = count_patients([read_number(cell or "") for cell in ages], columns)
    return Evaluation(
        predictions=rows.predictions,
        patient_ids=rows.patient_ids,
        metrics=metrics,
        split="",
        store_name="",
        source=f"a file of scores, {name}",
        seed=seed,
        exposure=Exposure(metrics["n_images"], known=False),
        environment=describe_software(),
        notes=notes,
        flow=flow,
        demographics={"evaluated": sizes | described},
        operating=judged.choices.operating,
        facts={**describe_unknown(table), **found.facts},
    )


def describe_unknown(table: ScoreTable) -> dict[str, object]:
    """Return the items of the checklists that only the makers of the scores know, as unknown."""
    technology = f"{UNKNOWN}: scores of another tool for {table.form.kind}"
    if table.form.class_names:
        technology += f" ({', '.join(table.form.class_names)})"
    seen = f"{UNKNOWN}: {UNPROVEN['training_rows']}, and {UNPROVEN['leaks']}"
    return {
        "technology": technology,
        "initialization": UNKNOWN,
        "selection": UNKNOWN,
        "training": UNKNOWN,
        "preprocessing": UNKNOWN,
        "partitions": UNKNOWN,
        "disjoint": seen,
        "internal": seen,
        "external": seen,
        "missing": f"{format_count(table.left_out, 'row')} without a truth left out; other losses are {UNKNOWN}",
    }
