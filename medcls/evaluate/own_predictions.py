"""Read tables that medcls wrote (evaluate, predict) as files of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medcls.data.targets import Task
from medcls.errors import DataError
from medcls.evaluate.score_file import ScoreFile, read_number
from medcls.files import read_json, write_json
from medcls.kinds import KINDS
from medcls.statistics.decision import Decision

TRUE, SCORES, LEVEL, STATE, RULE, THRESHOLD = "y_true", "y_score", "level", "state", "rule", "threshold"
COLUMNS_SUFFIX = ".columns.json"
EVALUATED = {
    "image_id": "name of the image, as in the store",
    "patient_id": "patient of the image, as in the store",
    TRUE: "truth: the class, counted from 0, or the value; for several labels, 0, 1 or NaN (unknown) for each",
    "logits": "the network's outputs; for several runs, those that give the mean of their scores",
    SCORES: "scores: of the positive class, of each class or label, or the predicted value",
    "positive_class": "the class that y_true 1, y_score and the threshold refer to",
}
"""Columns of predictions.parquet."""


@dataclass(frozen=True, slots=True)
class OwnTable:
    """A file of scores in the columns that other tools write.

    Attributes:
        file: Cells of the file.
        task: Kind, classes and grades, as the file beside it says; {} = nobody says.
        thresholds: Label ("" or the positive class of a binary task) to the threshold of the run's decision; infinite =
            never called; {} = not known.
        rule: Name of that decision; "" likewise.
        left_out: Number of images without a score.
    """

    file: ScoreFile
    task: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    rule: str = ""
    left_out: int = 0


def name_sidecar(path: Path) -> Path:
    """Return where the description of a table of predictions is: FILE.columns.json beside it."""
    return path.with_name(f"{path.name}{COLUMNS_SUFFIX}")


def describe_evaluated(path: Path, task: Task, decision: Decision) -> None:
    """Write what predictions.parquet of an evaluation holds beside it, in the form of predict's tables."""
    columns, thresholds = dict(EVALUATED), dict[str, list[float]]()
    if not task.positive:
        del columns["positive_class"]
    for name, value in decision.thresholds.items():
        column = THRESHOLD if task.traits.pair else f"{THRESHOLD}_{name}"
        # A class that is never called has no threshold.
        thresholds[column] = [value] if math.isfinite(value) else []
    content = {
        "columns": columns,
        "task": task.kind,
        "classes": task.class_names,
        "grades": task.grades,
        "positive_class": task.positive or None,
        "rules": [decision.rule],
        "thresholds": thresholds,
    }
    write_json(name_sidecar(path), content)


def read_sidecar(path: Path) -> Mapping[str, Any]:
    """Return the description beside a table; {} without one.

    Raises:
        DataError: It is not as medcls wrote it.
    """
    beside = name_sidecar(path)
    if not beside.is_file():
        return {}
    found: Mapping[str, Any] = read_json(beside)
    if not isinstance(found, Mapping) or str(found.get("task")) not in KINDS or "classes" not in found:
        raise DataError(f"{beside}: not as medcls wrote it: restore it, or remove it")
    return found


def translate(file: ScoreFile, path: Path) -> OwnTable:
    """Return the table in the columns that other tools write; one of another tool as it is.

    Raises:
        DataError: A description that does not fit, or a table of lists without one.
    """
    beside = read_sidecar(path)
    if f"{SCORES}.0" in file.columns and f"{TRUE}.0" in file.columns:
        if not beside:
            name = name_sidecar(path).name
            raise DataError(f"{file.setting}: {name}, which names the classes, is missing: restore it")
        return _translate_evaluated(file, beside)
    if {LEVEL, STATE, RULE} <= set(file.columns):
        return _translate_predicted(file, beside)
    return OwnTable(file)


def _translate_evaluated(file: ScoreFile, beside: Mapping[str, Any]) -> OwnTable:
    kind, names = beside["task"], [str(name) for name in beside["classes"]]
    true = [cells for name, cells in file.columns.items() if name.startswith(f"{TRUE}.")]
    score = [cells for name, cells in file.columns.items() if name.startswith(f"{SCORES}.")]
    columns = {name: cells for name, cells in file.columns.items() if not name.startswith((f"{TRUE}.", f"{SCORES}."))}
    columns.pop("positive_class", None)
    # The classes that have a score, and the columns that then hold scores and truths.
    traits = KINDS[kind]
    asked = traits.list_questions(names) or names
    scores = [f"score_{name}" for name in asked]
    truths = ["truth"]
    if traits.numeric:
        asked, scores = [""], ["score"]
    if traits.multiple:
        truths = [f"label_{name}" for name in names]
    if len(score) != len(scores) or len(true) != len(truths):
        raise DataError(
            f"{file.setting}: {len(score)} scores per row, expected {len(scores)} of kind={kind}: restore it"
        )
    if not traits.multiple and not traits.numeric:
        true = [[names[int(float(cell))] for cell in true[0]]]
    columns |= dict(zip(truths + scores, true + score, strict=True))
    found, thresholds = beside.get("thresholds", {}), dict[str, float]()
    for name in asked:
        column = THRESHOLD if traits.pair else f"{THRESHOLD}_{name}"
        if column in found:
            # Without a value the class is never called.
            thresholds[name] = float([*found[column], math.inf][0])
    rules = beside.get("rules") or [""]
    return OwnTable(replace(file, columns=columns), beside, thresholds, str(rules[0]))


def _translate_predicted(file: ScoreFile, beside: Mapping[str, Any]) -> OwnTable:
    """Rows of images with a score: those of series and patients combine them, and others have none."""
    images = [row for row, level in enumerate(file.columns[LEVEL]) if level == "image"]
    kept = [row for row in images if file.columns[STATE][row] == "ok"]
    if not kept:
        raise DataError(f"{file.setting}: no image has a score (column {STATE}): nothing can be evaluated")
    columns = {name: [cells[row] for row in kept] for name, cells in file.columns.items() if name != "logits"}
    if not any(columns.get("patient_id", [])):
        # Only DICOM headers name patients.
        columns.pop("patient_id", None)
    if not any(name == "score" or name.startswith("score_") for name in columns):
        columns["score"] = columns["predicted"]
    if not any(name in ("truth", "label", TRUE) or name.startswith(("label_", "truth_")) for name in columns):
        raise DataError(
            f"{file.setting}: predict writes no truth: add a column truth, or label_NAME for several labels"
        )
    rules, thresholds = set(columns[RULE]), dict[str, float]()
    for name in columns:
        if name == THRESHOLD or name.startswith(f"{THRESHOLD}_"):
            values = {read_number(cell) if cell else math.inf for cell in columns[name]}
            if len(values) != 1 or None in values:
                raise DataError(f"{file.setting}: column {name} differs between rows: give the table of one run")
            thresholds[name.removeprefix(THRESHOLD).removeprefix("_")] = float(values.pop() or 0)
    rule = rules.pop() if len(rules) == 1 else ""
    table = replace(file, columns=columns, places=[file.places[row] for row in kept])
    return OwnTable(table, beside, thresholds, rule, len(images) - len(kept))
