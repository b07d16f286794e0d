"""The questions inside a task, and the band of a ROC curve."""

from __future__ import annotations

import numpy as np
import pytest

from medcls.statistics.curves import compute_roc_band, count_replicates, list_questions
from medcls.statistics.intervals import number_patients
from medcls.statistics.predictions import KINDS, check_predictions
from medcls.statistics.ranking import compute_curve, compute_roc


def check(task):
    task = dict(task)
    return check_predictions(task.pop("kind"), task.pop("y_true"), task.pop("y_score"), **task)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("binary", ["ill"]),
        ("multiclass", ["KL0", "KL1", "KL2", "KL3"]),
        ("multilabel", ["KL0", "KL1", "KL2", "KL3"]),
        ("regression", ["> KL0", "> KL1", "> KL2"]),
    ],
)
def test_each_task_asks_its_questions(make_task, kind, names):
    assert [question.name for question in list_questions(check(make_task(kind)))] == names


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_ranks_as_the_metric_of_its_name(make_task, kind):
    from medcls.statistics.metrics import compute_metrics
    from medcls.statistics.ranking import build_ranking, compute_areas

    task = make_task(kind)
    predictions = check(task)
    found = compute_metrics(predictions)
    for question in list_questions(predictions):
        area, _ = compute_areas(build_ranking(question.positive, question.score), np.ones((1, len(question.score))))
        assert area[0] == pytest.approx(found[f"auc{question.metric_suffix}"])


def test_the_band_encloses_the_curve_and_narrows_with_more_patients(make_task):
    grid, widths = np.linspace(0, 1, 51), []
    for rows in (60, 600):
        question = list_questions(check(make_task("binary", rows=rows)))[0]
        patients = number_patients([str(row // 2) for row in range(rows)], rows=rows)
        low, high = compute_roc_band(question, patients, false_positive_rates=grid, seed=0)
        rate, sensitivity = compute_roc(compute_curve(question.positive, question.score))
        curve = sensitivity[np.searchsorted(rate, grid, side="right") - 1]
        assert ((low <= curve + 1e-9) & (curve <= high + 1e-9)).mean() > 0.95
        widths.append((high - low).mean())
    assert widths[1] < 0.5 * widths[0]


def test_replicates_keep_the_rows_of_a_patient_together():
    positive = np.repeat([True, False, True, False], 3)
    predictions = check_predictions("binary", positive, np.full(12, 0.9), class_names=("a", "b"))
    counts = count_replicates(
        list_questions(predictions)[0], np.repeat(np.arange(4), 3), thresholds=[0.5], seed=0, replicates=50
    )
    assert counts.true_positives.shape == (50, 1)
    assert (counts.true_positives % 3 == 0).all()
    assert (counts.positives + counts.negatives == 12).all()
    assert len(np.unique(counts.positives)) > 2
