from __future__ import annotations

import numpy as np
import pytest

from medcls.report.gallery import Picture, Worst, choose_worst
from medcls.statistics.predictions import KINDS, check_predictions

NAMES = ("well", "ill")


def test_the_worst_are_the_surest_errors_and_the_uncertain_the_nearest_to_a_tie():
    predictions = check_predictions("binary", [1, 1, 0, 0, 1], [0.1, 0.45, 0.3, 0.52, 0.9], class_names=NAMES)
    chosen = choose_worst(predictions, count=2)
    assert [(one.row, one.why) for one in chosen] == [(0, "worst"), (1, "worst"), (3, "uncertain"), (2, "uncertain")]
    assert (chosen[0].true, chosen[0].predicted) == ("ill", "well, P(ill) 0.100")


def test_right_rows_are_not_among_the_worst():
    predictions = check_predictions("binary", [1, 0], [0.9, 0.2], class_names=NAMES)
    assert [one.why for one in choose_worst(predictions, count=5)] == ["uncertain", "uncertain"]
    assert choose_worst(predictions, count=0) == []


def test_several_classes_and_labels_are_said_in_words():
    multiclass = check_predictions("multiclass", [2], [[0.7, 0.2, 0.1]], class_names=("a", "b", "c"))
    assert (choose_worst(multiclass, count=1)[0].true, choose_worst(multiclass, count=1)[0].predicted) == (
        "c",
        "a 0.70",
    )
    labels = check_predictions("multilabel", [[1, 0, np.nan]], [[0.2, 0.8, 0.9]], class_names=("a", "b", "c"))
    assert choose_worst(labels, count=1)[0].true == "a, c unknown"
    assert choose_worst(labels, count=1)[0].predicted == "b 0.80, c 0.90; not called: a 0.20"


def test_the_threshold_of_the_decision_says_who_is_wrong_and_who_is_near_a_tie():
    predictions = check_predictions("binary", [1, 1, 0], [0.3, 0.9, 0.1], class_names=NAMES, thresholds=[0.25])
    chosen = choose_worst(predictions, count=2)
    assert [(one.row, one.why) for one in chosen] == [(0, "uncertain"), (2, "uncertain")]
    assert chosen[0].predicted == "ill, P(ill) 0.300"
    labels = {"class_names": ("a", "b"), "thresholds": [0.1, 0.95]}
    assert (
        choose_worst(check_predictions("multilabel", [[1, 0]], [[0.2, 0.9]], **labels), count=1)[0].why == "uncertain"
    )


def test_scores_near_the_threshold_have_the_digits_that_tell_them_from_it():
    """The last score is the threshold itself, which is called."""
    score, threshold = [0.42504, 0.42511, 0.9, 0.42508], 0.42508
    predictions = check_predictions("binary", [0, 1, 1, 1], score, class_names=NAMES, thresholds=[threshold])
    said = {one.row: one.predicted for one in choose_worst(predictions, count=4)}
    assert said == {
        0: "well, P(ill) 0.4250 (threshold 0.4251)",
        1: "ill, P(ill) 0.42511 (threshold 0.42508)",
        2: "ill, P(ill) 0.900",
        3: "ill, P(ill) 0.425 (the threshold)",
    }
    labels = check_predictions("multilabel", [[1, 0]], [[0.497, 0.503]], class_names=("a", "b"))
    assert (
        choose_worst(labels, count=1)[0].predicted == "b 0.503 (threshold 0.500); not called: a 0.497 (threshold 0.500)"
    )


def test_a_blank_label_is_unknown_and_no_error():
    labels = check_predictions("multilabel", [[0, np.nan]], [[0.1, 0.9]], class_names=("a", "fracture"))
    (one,) = choose_worst(labels, count=1)
    assert (one.why, one.true) == ("uncertain", "fracture unknown")


def test_values_have_no_ties_and_the_largest_error_first():
    predictions = check_predictions("regression", [1.0, 2.0, 3.0], [1.0, 4.0, 3.5], class_names=())
    assert [(one.row, one.true, one.predicted) for one in choose_worst(predictions, count=9)] == [
        (1, "2", "4.00"), (2, "3", "3.50"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_has_a_gallery_without_repetition(kind, make_task):
    chosen = choose_worst(check_predictions(**make_task(kind)), count=5)
    assert len({one.row for one in chosen}) == len(chosen) > 0


def test_a_picture_is_a_data_uri():
    assert Picture(Worst(0, "worst", "a", "b"), b"\xff\xd8").uri == "data:image/jpeg;base64,/9g="
