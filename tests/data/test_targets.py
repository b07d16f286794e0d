"""Labels as written become the targets of each kind of task; what does not fit is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import cohen_kappa_score

from medcls.config import TaskConfig
from medcls.data.targets import (
    Task,
    build_task,
    check_classes_present,
    describe_left_out,
    describe_positive,
    encode_targets,
    find_respelled,
)
from medcls.errors import ConfigError, DataError
from medcls.statistics.metrics import compute_metrics
from medcls.statistics.predictions import check_predictions


def table(**columns: list[str | None]) -> pa.Table:
    rows = len(next(iter(columns.values())))
    schema = pa.schema([("image_id", pa.string()), *((name, pa.string()) for name in columns)])
    return pa.table({"image_id": [f"i{i}" for i in range(rows)], **columns}, schema=schema)


def encode(task: Task, labels: pa.Table) -> tuple[list[list[float]], list[bool]]:
    targets, known = encode_targets(task, labels)
    assert (targets.dtype, known.dtype) == (np.float64, np.bool_)
    return targets.tolist(), known.tolist()


def test_classes_are_the_training_labels_in_natural_order() -> None:
    assert build_task(TaskConfig("multiclass"), table(label=["10", "9", "b", "1.5", "a", None])).class_names == [
        "1.5",
        "9",
        "10",
        "a",
        "b",
    ]


def test_class_indices_follow_the_names() -> None:
    task = build_task(TaskConfig("multiclass"), table(label=["b", "a", "c"]))
    targets, known = encode(task, table(label=["c", "a", None, "new"]))
    assert targets[:2] == [[2.0], [0.0]]
    assert known == [True, True, False, False]


def test_classes_may_join_labels_and_leave_some_out() -> None:
    labels = table(label=["0", "1", "2", "3", "4"])
    task = build_task(TaskConfig("binary", classes={0: 0, 1: 0, 3: 1, "4": 1}), labels)
    assert task.class_names == ["0+1", "3+4"]
    targets, known = encode(task, labels)
    assert known == [True, True, False, True, True]
    assert [t for [t], k in zip(targets, known, strict=True) if k] == [0, 0, 1, 1]


@pytest.mark.parametrize("spelling", [("true", "false"), ("True", "False"), ("TRUE", "FALSE")])
def test_truth_values_of_yaml_find_the_label_as_written(spelling: tuple[str, str]) -> None:
    yes, no = spelling
    task = build_task(TaskConfig("binary", classes={False: 0, True: 1}), table(label=[yes, no]))
    assert task.mapping == {no: 0, yes: 1}


def test_a_label_column_by_its_name() -> None:
    labels = table(label_effusion=["0", "1"], label_grade=["a", "b"])
    assert build_task(TaskConfig("multiclass", label="grade"), labels).columns == ["label_grade"]
    assert build_task(TaskConfig("multiclass", label="label_grade"), labels).columns == ["label_grade"]


def test_multilabel_keeps_unknown_apart_from_absent() -> None:
    labels = table(label_a=["0", "1", None, "1.0"], label_b=["1", None, None, "0.0"])
    task = build_task(TaskConfig("multilabel"), labels)
    assert task.class_names == ["a", "b"]
    targets, known = encode_targets(task, labels)
    np.testing.assert_array_equal(targets, [[0, 1], [1, np.nan], [np.nan, np.nan], [1, 0]])
    assert known.tolist() == [True, True, False, True]
    assert build_task(TaskConfig("multilabel", labels=["b"]), labels).columns == ["label_b"]


def test_regression_of_a_number_and_of_a_grade() -> None:
    labels = table(label=["0", "2", "3", None])
    plain = build_task(TaskConfig("regression"), labels)
    assert (plain.class_names, plain.num_classes) == ([], 0)
    graded = build_task(TaskConfig("regression", grades=True), labels)
    assert (graded.class_names, graded.num_classes) == (["0", "1", "2", "3"], 4)
    targets, known = encode_targets(plain, table(label=["1.5", None]))
    np.testing.assert_array_equal(targets, [[1.5], [np.nan]])
    assert known.tolist() == [True, False]


def test_ordinal_classes_are_in_order() -> None:
    task = build_task(TaskConfig("ordinal"), table(label=["2", "0", "10", "1"]))
    assert task.class_names == ["0", "1", "2", "10"]


WRONG: list[tuple[str, dict[str, list[str | None]], dict[str, Any], type[Exception], str]] = [
    ("multiclass", {"label_a": ["x", "y"]}, {}, DataError, "the store's labels have label_a.*multilabel takes"),
    ("multiclass", {"label": ["x", "y"]}, {"label": "lable"}, DataError, "nearest: label"),
    ("multiclass", {"label": [None, None]}, {}, DataError, "no image of the training split has one"),
    ("multiclass", {"label": ["x", "x"]}, {}, DataError, r"one class only \(x\)"),
    ("multiclass", {"label": ["x", "y"]}, {"classes": {"x": 0, "z": 1}}, DataError, "names z: .* it has x, y"),
    ("binary", {"label": ["0", "1", "2"]}, {}, ConfigError, r"task\.classes='\{0: \?, 1: \?, 2: \?\}'"),
    ("multilabel", {"label": ["x", "y"]}, {}, DataError, "no column label_NAME"),
    ("multilabel", {"label_a": ["0", "1"]}, {"labels": ["b"]}, DataError, "no column label_b; the store has"),
    ("regression", {"label": ["1", "x"]}, {}, DataError, "column label has a text that is not a number"),
    ("regression", {"label": ["1", "1.5"]}, {"grades": True}, DataError, "whole grades from 0 up"),
    ("regression", {"label": ["1", "-1"]}, {"grades": True}, DataError, "label='-1'"),
]


# Labels, the settings given, and the class names: the negative one, then the positive one.
POSITIVE: list[tuple[list[str], dict[str, Any], list[str]]] = [
    (["AD", "CN"], {}, ["CN", "AD"]),
    (["cancer", "normal"], {}, ["normal", "cancer"]),
    (["Abnormal", "Normal "], {}, ["Normal", "Abnormal"]),
    (["benign", "malignant"], {}, ["benign", "malignant"]),
    (["No_Finding", "Effusion"], {}, ["No_Finding", "Effusion"]),
    (["yes", "no"], {}, ["no", "yes"]),
    (["negative", "positive"], {}, ["negative", "positive"]),
    (["false", "true"], {}, ["false", "true"]),
    (["0", "1"], {}, ["0", "1"]),
    (["0.0", "1.0"], {}, ["0.0", "1.0"]),
    (["0", "4"], {}, ["0", "4"]),
    (["nevus", "melanoma"], {"positive": "melanoma"}, ["nevus", "melanoma"]),
    (["melanoma", "nevus"], {"positive": "melanoma"}, ["nevus", "melanoma"]),
    (["cancer", "normal"], {"positive": "normal"}, ["cancer", "normal"]),
    (["true", "false"], {"positive": False}, ["true", "false"]),
    (["1", "2"], {"positive": 1}, ["2", "1"]),
    (["cancer", "normal"], {"classes": {"cancer": 0, "normal": 1}}, ["cancer", "normal"]),
    (["AD", "CN", "MCI"], {"classes": {"CN": 0, "AD": 1, "MCI": 1}, "positive": "MCI"}, ["CN", "AD+MCI"]),
]


@pytest.mark.parametrize(("labels", "settings", "classes"), POSITIVE)
def test_positive_class_is_the_one_that_is_not_healthy(
    labels: list[str], settings: dict[str, Any], classes: list[str]
) -> None:
    for rows in (labels, labels[::-1]):
        task = build_task(TaskConfig("binary", **settings), table(label=[*rows, *rows]))
        assert (task.class_names, task.positive) == (classes, classes[1])
        positive, _ = encode_targets(task, table(label=[classes[1].split("+")[0], classes[0]]))
        assert positive.tolist() == [[1.0], [0.0]]


NOT_BINARY: list[tuple[list[str], dict[str, Any], str]] = [
    (["nevus", "melanoma"], {}, "neither label .*: set task.positive=melanoma or task.positive=nevus"),
    (["normal", "benign"], {}, "both mean healthy: set task.positive=benign or task.positive=normal"),
    (["left knee", "right knee"], {}, "set 'task.positive=left knee' or 'task.positive=right knee'"),
    (["not normal", "normal tissue"], {}, "neither label"),
    (["1", "2"], {}, "neither label"),
    (["AD", "CN"], {"positive": "MCI"}, "task.positive=MCI: the training split has no such label; it has AD, CN"),
    (
        ["AD", "CN"],
        {"positive": "AD", "classes": {"AD": 0, "CN": 1}},
        "task.positive=AD contradicts task.classes, whose class 1 is the positive",
    ),
    (
        ["nevus", "melanoma", "bcc"],
        {},
        r"task.classes='\{bcc: \?, melanoma: \?, nevus: \?\}' with each \? replaced by 1",
    ),
    (["nevus", "melanoma", "bcc"], {"positive": "melanoma"}, r"'\{bcc: \?, melanoma: 1, nevus: \?\}'"),
]


@pytest.mark.parametrize(("labels", "settings", "line"), NOT_BINARY)
def test_binary_task_without_a_positive_class_is_refused_with_the_line_to_type(
    labels: list[str], settings: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        build_task(TaskConfig("binary", **settings), table(label=labels))


SEVERITY = ["mild", "moderate", "none", "severe"]


@pytest.mark.parametrize(("kind", "grades"), [("ordinal", False), ("regression", True)])
def test_ordered_task_with_words_asks_for_their_order_and_takes_it(kind: str, grades: bool) -> None:
    labels = table(label=SEVERITY)
    with pytest.raises(ConfigError, match=r"set .task.order=\[none,mild,moderate,severe\].?, the likely order"):
        build_task(TaskConfig(kind, grades=grades), labels)
    with pytest.raises(ConfigError, match=r"task.order=\[\?,\?,\?\].?, with A, B, C from least to most in place of"):
        build_task(TaskConfig(kind, grades=grades), table(label=["B", "A", "C"]))
    with pytest.raises(ConfigError, match=r"task.order has \?: write A, B, C from least to most in place of each \?"):
        build_task(TaskConfig(kind, order=["?", "?", "?"], grades=grades), table(label=["B", "A", "C"]))
    task = build_task(TaskConfig(kind, order=["none", "mild", "moderate", "severe"], grades=grades), labels)
    assert task.class_names == ["none", "mild", "moderate", "severe"]
    targets, known = encode_targets(task, table(label=[*SEVERITY, "unheard of"]))
    assert targets[:4].tolist() == [[1.0], [2.0], [0.0], [3.0]]
    assert known.tolist() == [True, True, True, True, False]


def test_left_out_images_without_a_label_are_not_said_to_have_one() -> None:
    task = build_task(TaskConfig("multiclass"), table(label=["a", "b"]))
    said = {
        (None, None, "a"): "2 of 3 images are left out: they have no label of this task",
        ("c", "b", "a"): "1 of 3 images are left out: their label is not a class of the task",
        (
            None,
            "c",
            "a",
        ): "2 of 3 images are left out: 1 have no label of this task, and the label of 1 is not a class of",
    }
    for rows, line in said.items():
        labels = table(label=[*rows])
        assert describe_left_out(task, labels, ~encode_targets(task, labels)[1]).startswith(line)


def test_joined_negative_class_is_not_called_healthy() -> None:
    labels = table(label=["benign", "malignant", "normal"])
    joined = build_task(TaskConfig("binary", classes={"benign": 0, "malignant": 1, "normal": 0}), labels)
    assert describe_positive(joined, recorded=True) == "positive class: malignant (negative: benign+normal)"
    alone = build_task(TaskConfig("binary"), table(label=["malignant", "normal"]))
    assert describe_positive(alone, recorded=True).endswith("(negative: normal, which means healthy)")


def test_quadratic_kappa_follows_the_order_of_the_task() -> None:
    truth = ["none", "mild", "moderate", "severe"] * 5
    answers = ["none", "none", "mild", "severe", "mild", "mild", "moderate", "moderate"] * 2 + truth[:4]
    task = build_task(TaskConfig("ordinal", order=["none", "mild", "moderate", "severe"]), table(label=truth))
    (true, _), (answered, _) = (encode_targets(task, table(label=rows)) for rows in (truth, answers))
    scores = np.eye(4)[answered[:, 0].astype(int)]
    metrics = compute_metrics(check_predictions("ordinal", true[:, 0], scores, class_names=task.class_names))
    ranks = {name: i for i, name in enumerate(["none", "mild", "moderate", "severe"])}
    expected = cohen_kappa_score([ranks[t] for t in truth], [ranks[a] for a in answers], weights="quadratic")
    assert metrics["quadratic_kappa"] == pytest.approx(expected, abs=1e-12)
    by_alphabet = cohen_kappa_score(truth, answers, weights="quadratic")
    assert abs(expected - by_alphabet) > 0.2


def test_order_of_classes_without_an_order_of_grades() -> None:
    task = build_task(TaskConfig("multiclass", order=["c", "a", "b"]), table(label=["b", "a", "c"]))
    assert task.class_names == ["c", "a", "b"]
    stages = build_task(TaskConfig("multiclass"), table(label=["KL10", "KL2", "KL0"]))
    assert stages.class_names == ["KL0", "KL2", "KL10"]


def test_order_that_does_not_fit_the_labels_is_refused() -> None:
    labels = table(label=["a", "b", "c"])
    with pytest.raises(DataError, match=r"task.order names d: .* it has a, b, c"):
        build_task(TaskConfig("ordinal", order=["a", "b", "c", "d"]), labels)
    with pytest.raises(ConfigError, match=r"task.order leaves out c: add every label"):
        build_task(TaskConfig("ordinal", order=["a", "b"]), labels)
    with pytest.raises(ConfigError, match=r"task.order names a twice"):
        build_task(TaskConfig("ordinal", order=["a", "b", "c", "a"]), labels)


@pytest.mark.parametrize(("kind", "columns", "arguments", "error", "part"), WRONG, ids=[w[4] for w in WRONG])
def test_what_makes_no_task_is_refused(
    kind: str, columns: dict[str, list[str | None]], arguments: dict[str, Any], error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        build_task(TaskConfig(kind, **arguments), table(**columns))


def test_values_that_a_task_cannot_take() -> None:
    task = build_task(TaskConfig("multilabel"), table(label_a=["0", "1"]))
    with pytest.raises(DataError, match="column label_a has a value other than 0, 1 and blank"):
        encode_targets(task, table(label_a=["2"]))
    with pytest.raises(DataError, match="no column label_a; they have image_id, label"):
        encode_targets(task, table(label=["1"]))
    with pytest.raises(DataError, match="column label has a text that is not a number"):
        encode_targets(build_task(TaskConfig("regression"), table(label=["1"])), table(label=["nan"]))


def test_no_rows_have_no_targets() -> None:
    for kind, columns in (("multiclass", {"label": ["x", "y"]}), ("multilabel", {"label_a": ["0"], "label_b": ["1"]})):
        task = build_task(TaskConfig(kind), table(**columns))
        targets, known = encode_targets(task, table(**{name: [] for name in columns}))
        assert (targets.shape, known.shape) == ((0, len(columns)), (0,))


def test_a_class_without_an_image_is_named_with_its_split() -> None:
    task = build_task(TaskConfig("multiclass"), table(label=["a", "b", "c"]))
    check_classes_present(task, np.array([[0.0], [1], [2]]), split="val")
    with pytest.raises(DataError, match="classes without an image in the val split: b, c"):
        check_classes_present(task, np.array([[0.0]]), split="val")


def test_a_label_needs_both_sides() -> None:
    task = build_task(TaskConfig("multilabel"), table(label_a=["0", "1"], label_b=["0", "1"]))
    check_classes_present(task, np.array([[0.0, 1], [1, 0]]), split="train")
    with pytest.raises(DataError, match="labels without both 0 and 1 in the train split: b"):
        check_classes_present(task, np.array([[0.0, 1], [1, np.nan]]), split="train")


def test_regression_has_no_classes_to_miss() -> None:
    check_classes_present(build_task(TaskConfig("regression"), table(label=["1"])), np.array([[1.0]]), split="val")


def test_how_an_ordinal_task_is_answered_decides_outputs_and_not_the_question() -> None:
    labels = table(label=["0", "1", "2"])
    corn, softmax, joint = (
        build_task(TaskConfig("ordinal", loss=loss), labels) for loss in ("corn", "cross_entropy", "joint")
    )
    assert [task.output for task in (corn, softmax, joint)] == ["ordinal", "multiclass", "joint"]
    assert corn.asks_the_same(joint)
    assert softmax.asks_the_same(corn)
    assert not corn.asks_the_same(build_task(TaskConfig("multiclass"), labels))
    assert not corn.asks_the_same(build_task(TaskConfig("ordinal"), table(label=["0", "1"])))
    assert build_task(TaskConfig("multiclass", loss="cross_entropy"), labels).output == "multiclass"


def test_another_spelling_is_the_same_class() -> None:
    task = build_task(TaskConfig("binary"), table(label=["Normal", "OA", "Normal"]))
    other = table(label=["normal ", "OA", "oa", "NORMAL", "knee"])
    targets, known = encode_targets(task, other)
    assert targets[:4, 0].tolist() == [0, 1, 1, 0]
    assert known.tolist() == [True] * 4 + [False]
    assert find_respelled(task, other) == {"NORMAL": "Normal", "normal ": "Normal", "oa": "OA"}
    numbers = build_task(TaskConfig("binary"), table(label=["0.0", "1.0"]))
    assert encode_targets(numbers, table(label=["1", "0", "01"]))[0][:, 0].tolist() == [1, 0, 1]


def test_two_spellings_in_an_old_store_are_one_class() -> None:
    task = build_task(TaskConfig("multiclass"), table(label=["normal", "Normal", "Normal", "OA"]))
    assert task.class_names == ["Normal", "OA"]
    assert encode_targets(task, table(label=["normal", "Normal"]))[0][:, 0].tolist() == [0, 0]


def test_a_run_with_two_spellings_as_two_classes_keeps_them() -> None:
    task = Task("multiclass", ["Normal", "OA", "normal"], ["label"], {"Normal": 0, "OA": 1, "normal": 2})
    assert encode_targets(task, table(label=["normal", "Normal", "OA"]))[0][:, 0].tolist() == [2, 0, 1]
    assert find_respelled(task, table(label=["normal", "Normal", "OA"])) == {}


def test_classes_may_be_asked_for_in_another_spelling() -> None:
    task = build_task(TaskConfig("binary", classes={0: 0, "1": 1, 2: 1}), table(label=["0.0", "1.0", "2.0"]))
    assert task.mapping == {"0.0": 0, "1.0": 1, "2.0": 1}
    assert build_task(
        TaskConfig("binary", classes={"oa": 1, "NORMAL": 0}), table(label=["Normal", "OA"])
    ).class_names == [
        "Normal",
        "OA",
    ]


def test_flags_may_be_spelled_as_numbers() -> None:
    task = build_task(TaskConfig("multilabel"), table(label_a=["1", "0"]))
    assert encode_targets(task, table(label_a=["1.00", "01", "0.", "00"]))[0][:, 0].tolist() == [1, 1, 0, 0]
