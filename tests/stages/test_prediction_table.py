"""Scores get their classes' names, and the predicted class is the one that evaluate counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medcls.data.targets import Task
from medcls.identity import Identity
from medcls.predict.prediction_table import (
    Case,
    build_predictions,
    build_rows,
    name_answers,
    name_scores,
    summarize,
    write_rows,
)

BINARY = Task("binary", ["no", "yes"], ["label"])
GRADES = Task("ordinal", ["0", "1+2", "3"], ["label"])
FINDINGS = Task("multilabel", ["bright", "low", "wide"], ["label_bright", "label_low", "label_wide"])
AGE = Task("regression", [], ["label"])


@pytest.mark.parametrize(
    ("task", "scores", "predicted", "columns"),
    [
        (BINARY, [0.5], "yes", {"score_no": 0.5, "score_yes": 0.5}),
        (BINARY, [0.25], "no", {"score_no": 0.75, "score_yes": 0.25}),
        (GRADES, [0.2, 0.5, 0.3], "1+2", {"score_0": 0.2, "score_1+2": 0.5, "score_3": 0.3}),
        (FINDINGS, [0.5, 0.49, 0.9], "bright;wide", {"score_bright": 0.5, "score_low": 0.49, "score_wide": 0.9}),
        (FINDINGS, [0.1, 0.1, 0.1], "", {"score_bright": 0.1, "score_low": 0.1, "score_wide": 0.1}),
        (AGE, [61.5], 61.5, {}),
    ],
)
def test_every_task_names_its_scores(
    task: Task, scores: list[float], predicted: str | float, columns: dict[str, float]
) -> None:
    assert name_answers(build_predictions(task, np.array([scores]))) == [predicted]
    assert name_scores(task, scores) == columns
    assert name_scores(task, None) == dict.fromkeys(columns)


@pytest.mark.parametrize("task", [BINARY, GRADES, FINDINGS, AGE])
def test_a_table_without_any_score_has_the_types_of_one_with_scores(task: Task, tmp_path: Path) -> None:
    count = {"binary": 1, "regression": 1}.get(task.kind, 3)
    schemas = []
    for scores in (None, [0.5] * count):
        case = Case("a.png", "ok" if scores else "refused", "" if scores else "truncated", scores=scores, logits=scores)
        case.chosen = {"above_youden": scores and True, "calibrated_x": scores and 0.5}
        rows = build_rows([case], task=task, identity=Identity(), origin={"model_sha256": "a"})
        write_rows(tmp_path / "out.parquet", rows, task=task, form="parquet")
        schemas.append(pq.read_schema(tmp_path / "out.parquet"))
    assert schemas[0] == schemas[1]
    assert schemas[0].field("predicted").type == (pa.float64() if task is AGE else pa.string())
    types = [schemas[0].field(name).type for name in ("images", "above_youden", "calibrated_x", "level")]
    assert types == [pa.int64(), pa.bool_(), pa.float64(), pa.string()]


def test_the_summary_counts_states_and_reasons() -> None:
    cases = [Case("a"), Case("b", "refused", "colour"), Case("c", "refused", "colour"), Case("d", "skipped", "hidden")]
    assert summarize(cases) == "4 files: 1 ok, 2 refused, 1 skipped (2 refused: colour; 1 skipped: hidden)"
    assert summarize(cases[:1]) == "1 file: 1 ok, 0 refused, 0 skipped"
