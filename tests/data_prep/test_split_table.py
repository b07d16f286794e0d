"""The table at the end: class by split, images and patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from data_prep.split_table import build_table, describe_split_table, format_table
from medcls.data.columns import Codes, code_column
from medcls.data.splits import Splits, read_split, write_split
from medcls.data.store import Store


def code(texts: Sequence[str]) -> Codes:
    return code_column(pa.chunked_array([pa.array(texts, pa.string())]))


SPLITS: Splits = np.array([0, 0, 0, 1, 2, 2], np.int8)
PATIENTS = code(["a", "a", "b", "c", "d", "d"])


def text(columns: dict[str, list[str | None]], patients: Codes | None = PATIENTS) -> list[str]:
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    return format_table("x", build_table(table, SPLITS, patients=patients)).splitlines()


def test_classes_by_split_with_unknown_ones() -> None:
    assert text({"label": ["ill", "well", "ill", None, "well", "well"]}) == [
        "split x: images (patients)",
        "         train    val   test",
        "ill      2 (2)  0 (0)  0 (0)",
        "well     1 (1)  0 (0)  2 (1)",
        "unknown  0 (0)  1 (1)  0 (0)",
        "all      3 (2)  1 (1)  2 (1)",
    ]


def test_labels_between_classes_are_not_counted_as_unknown() -> None:
    half = '{"0": 0.5, "1": 0.5}'
    shown = text({"label_a": ["1", None, None, "0", "0", None], "votes_a": [None, half, None, None, None, half]})
    assert [line.split() for line in shown[4:6]] == [
        ["a", "between", "classes", "1", "(1)", "0", "(0)", "1", "(1)"],
        ["a", "unknown", "1", "(1)", "0", "(0)", "0", "(0)"],
    ]


def test_several_labels_have_positive_negative_and_unknown() -> None:
    shown = text({"label_fluid": ["1", "0", "1.0", None, "0", "0"], "label_grade": ["1", "2", "10", "1", "1", "2"]})
    assert [line.rsplit("  ", 3)[0].strip() for line in shown[2:]] == [
        "fluid positive",
        "fluid negative",
        "fluid unknown",
        "grade=1",
        "grade=2",
        "grade=10",
        "all",
    ]
    assert shown[2].split("  ")[-3:] == ["2 (2)", "0 (0)", "0 (0)"]


def test_values_on_a_scale_have_a_count_and_a_range() -> None:
    values = [str(i / 2) for i in range(60)]
    splits: Splits = np.repeat(np.array([0, 1, 2], np.int8), 20)
    table = pa.table({"label": pa.array(values, pa.string())})
    rows = build_table(table, splits, patients=code([f"p{i}" for i in range(60)]))
    assert rows[0]["range"] == {"train": [0.0, 9.5], "val": [10.0, 19.5], "test": [20.0, 29.5]}
    assert "lowest to highest  0 to 9.5  10 to 19.5  20 to 29.5" in " ".join(format_table("x", rows).split("\n")[3:4])


def test_unknown_patients_are_not_counted() -> None:
    shown = text({"label": ["ill", "well", "ill", "ill", "well", "well"]}, patients=None)
    assert shown[0] == "split x: images; patients are unknown (patients=per_image)"
    assert "(" not in "".join(shown[1:])


def test_the_table_is_in_the_certificate_and_counted_for_splits_of_version_0_2_0(
    fresh_store: Store, split_names: Callable[..., dict[str, str]]
) -> None:
    splits, certificate = read_split(fresh_store, "default")
    assert [row["label"] for row in certificate["table"]] == ["mild", "none", "severe", "all"]
    assert certificate["table"][-1]["images"] == certificate["images"]
    assert certificate["table"][-1]["patients"] == certificate["patients"]
    shown = describe_split_table(fresh_store, "default")
    old = {name: value for name, value in certificate.items() if name != "table"}
    write_split(fresh_store, "default", splits=splits, certificate=old)
    assert describe_split_table(fresh_store, "default") == shown
