"""Soft targets of votes, as the loss takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medcls.data.targets import Task, encode_targets
from medcls.data.votes import encode_shares
from medcls.errors import DataError


def table(**columns: list[str | None]) -> pa.Table:
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def test_binary_votes_are_the_share_of_the_positive_class() -> None:
    task = Task("binary", ["Normal", "OA"], ["label"], {"Normal": 0, "OA": 1})
    labels = table(
        label=["OA", None, "Normal", "OA", None],
        votes=['{"OA": 2, "normal": 1}', '{"Normal": 1, "OA": 1}', None, None, None],
    )
    shares = encode_shares(task, labels)
    np.testing.assert_allclose(shares, [[2 / 3], [0.5], [0], [1], [np.nan]])
    assert encode_targets(task, labels)[1].tolist() == [True, False, True, True, False], "metrics see labels only"


def test_multiclass_votes_are_shares_of_all_classes() -> None:
    task = Task("multiclass", ["a", "b", "c"], ["label"], {"a": 0, "b": 1, "c": 2})
    labels = table(label=["a", None, "c", None], votes=['{"a": 2, "b": 1}', '{"b": 1, "z": 3}', None, '{"z": 1}'])
    np.testing.assert_allclose(
        encode_shares(task, labels), [[2 / 3, 1 / 3, 0], [0, 1, 0], [0, 0, 1], [np.nan] * 3], equal_nan=True
    )


def test_merged_classes_add_up_their_votes() -> None:
    task = Task("binary", ["0+1", "2"], ["label"], {"0": 0, "1": 0, "2": 1})
    np.testing.assert_allclose(encode_shares(task, table(label=["1"], votes=['{"0": 1, "1": 1, "2": 2}'])), [[0.5]])


def test_multilabel_votes_are_the_share_of_yes() -> None:
    task = Task("multilabel", ["a", "b"], ["label_a", "label_b"])
    labels = table(label_a=["1.0", None], label_b=["0", None], votes_a=['{"0.0": 1, "1.0": 3}', '{"0": 0.5, "1": 0.5}'])
    np.testing.assert_allclose(encode_shares(task, labels), [[0.75, 0], [0.5, np.nan]], equal_nan=True)


@pytest.mark.parametrize("task", [Task("regression", [], ["label"]), Task("ordinal", ["0", "1"], ["label"], {"0": 0})])
def test_tasks_without_soft_losses_have_no_shares(task: Task) -> None:
    assert encode_shares(task, table(label=["0"], votes=['{"0": 1}'])) is None


def test_labels_without_votes_have_no_shares() -> None:
    assert encode_shares(Task("binary", ["0", "1"], ["label"], {"0": 0, "1": 1}), table(label=["0"])) is None


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": "x"}', "3"])
def test_damaged_votes_are_refused(text: Any) -> None:
    task = Task("binary", ["0", "1"], ["label"], {"0": 0, "1": 1})
    with pytest.raises(DataError, match="votes of the store is damaged"):
        encode_shares(task, table(label=["0"], votes=[text]))
