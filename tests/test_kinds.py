"""Kinds of task: each row has its rows in the other tables."""

from __future__ import annotations

import pytest

from medcls.kinds import FORMS, KINDS, TaskKind
from medcls.models.heads import OUTPUTS
from medcls.statistics.definitions import TASK_METRICS
from medcls.training.losses import LOSSES, LossSettings, build_loss

NAMES = ["none", "mild", "severe"]


@pytest.mark.parametrize("row", KINDS.values(), ids=list(KINDS))
def test_each_loss_of_a_kind_is_built_for_the_outputs_that_it_needs(row: TaskKind) -> None:
    assert row.losses
    for name, form in row.losses.items():
        output = FORMS.get(form, row.name)
        assert output in OUTPUTS
        assert callable(build_loss(output, LossSettings(name)))
    assert row.name in TASK_METRICS


def test_no_loss_and_no_outputs_without_a_kind() -> None:
    needed = {(FORMS.get(form, row.name), name) for row in KINDS.values() for name, form in row.losses.items()}
    assert {output for output, _ in needed} == set(OUTPUTS) == set(LOSSES)
    # Outputs that a loss asks for have the "auto" of a kind of the same name.
    assert {(output, name) for output in LOSSES for name in LOSSES[output]} - needed == {("joint", "auto")}


def test_scores_and_questions_follow_from_the_row() -> None:
    assert {name: row.count_scores(3) for name, row in KINDS.items()} == {
        "binary": 1, "multiclass": 3, "multilabel": 3, "ordinal": 3, "regression": 1,
    }  # fmt: skip
    assert {name: row.list_questions(NAMES[-row.fewest :]) for name, row in KINDS.items() if row.thresholds} == {
        "binary": ["severe"],
        "multilabel": ["severe"],
    }
    assert KINDS["multilabel"].list_questions(NAMES) == NAMES
    assert [name for name, row in KINDS.items() if not row.list_questions(NAMES)] == [
        "multiclass", "ordinal", "regression",
    ]  # fmt: skip
