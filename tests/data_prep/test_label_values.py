"""The values of label columns: one class for each label, however it is spelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_prep.label_values import read_label_values
from medcls.config import LabellingConfig
from medcls.data.store import Store
from medcls.errors import DataError


def table(**columns: Sequence[str | None]) -> pa.Table:
    return pa.table({name: pa.array(list(values), pa.string()) for name, values in columns.items()})


def read(values: Sequence[str | None], *, name: str = "label", **settings: Any) -> list[str | None]:
    labels = read_label_values(table(**{name: values}), LabellingConfig(**settings))
    found: list[str | None] = labels.column(name).to_pylist()
    return found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["Normal", "normal", "Normal", "OA"], ["Normal", "Normal", "Normal", "OA"]),
        (["normal", "NORMAL", "Normal", "normal", None], ["normal"] * 4 + [None]),
        (["0", "0.0", "1", "1.0", "01", "1"], ["0", "0", "1", "1", "1", "1"]),
        (["2", "2.50", "2.5", "2.5"], ["2", "2.5", "2.5", "2.5"]),
        (["no finding", "no\u00a0finding", "No  Finding", "no finding"], ["no finding"] * 4),
        (["L\u00e4sion", "La\u0308sion", "La\u0308sion"], ["L\u00e4sion"] * 3),
        (["\uff29\uff29", "II", "II"], ["II"] * 3),
        (["OA\u200b", "OA", "OA"], ["OA"] * 3),
        (["I", "II", "III", "0", "-0"], ["I", "II", "III", "-0", "-0"]),
        (["1e1", "10", "10", "NC", "nc"], ["10", "10", "10", "NC", "NC"]),
    ],
)
def test_spellings_of_one_label_become_one_class(values: list[str | None], expected: list[str | None]) -> None:
    assert read(values) == expected
    assert read(values[::-1]) == expected[::-1], "the kept spelling must not depend on the order of rows"


def test_equally_frequent_spellings_keep_the_first_by_code_points() -> None:
    assert read(["normal", "Normal", "OA"]) == read(["Normal", "normal", "OA"]) == ["Normal", "Normal", "OA"]


def test_merged_spellings_are_named_with_their_counts(capsys: pytest.CaptureFixture[str]) -> None:
    read(["normal", *["Normal"] * 3, "OA"])
    assert (
        "label: 'Normal' (3 rows) and 'normal' (1 rows) are read as one class, Normal; labelling.strict=true refuses"
        in capsys.readouterr().err
    )
    read(["L\u00e4sion", "La\u0308sion", "x"], name="label_a")
    assert "label_a: 'La\\u0308sion' (1 rows) and 'L\\xe4sion' (1 rows)" in capsys.readouterr().err


def test_labels_in_one_spelling_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert read(["0.0", "1.0", "1.0", None]) == ["0.0", "1.0", "1.0", None]
    assert read(["no_finding", "no finding", "no-finding"]) == ["no_finding", "no finding", "no-finding"]
    assert capsys.readouterr().err == ""


def test_strict_labelling_refuses_two_spellings() -> None:
    with pytest.raises(DataError, match=r"strict=true: label has one class in 2 spellings: 'Normal' \(2 rows\), 'no"):
        read(["Normal", "normal", "Normal", "OA"], strict=True)
    assert read(["Normal", "OA"], strict=True) == ["Normal", "OA"]


def test_measurements_keep_their_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    values = [f"{i}.0" for i in range(30)] + ["7", "7.00"]
    assert read(values) == values
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("rows", [60, 12])
def test_a_column_of_names_is_refused_without_a_name(rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"Mustermann {chr(65 + i // 26)}{chr(65 + i % 26)}" for i in range(rows)]
    with pytest.raises(DataError, match=rf"label: {rows} different texts in .*{rows} rows.*not shown") as error:
        read(names)
    assert "Mustermann" not in str(error.value) + capsys.readouterr().err


def test_many_classes_are_read_if_asked_for() -> None:
    values = [f"species {i // 3}" for i in range(180)]
    with pytest.raises(DataError, match=r"60 different texts in 180 rows .*labelling\.max_classes=50"):
        read(values)
    assert read(values, max_classes=60) == values


def test_class_folders_in_two_spellings_are_one_class(
    tmp_path: Path, write_source: Callable[..., Path], run_prepare: Callable[..., Store]
) -> None:
    source = write_source(tmp_path / "raw", patients=12, classes=("Normal", "OA"))
    for number, image in enumerate(sorted((source / "images").iterdir())):
        folder = source / ("OA" if number // 2 % 2 else ("normal" if number == 0 else "Normal"))
        folder.mkdir(exist_ok=True)
        image.rename(folder / image.name)
    (source / "images").rmdir()
    (source / "labels.csv").unlink()
    pattern = r"patient_id.pattern='(p\d+)[LR]\.png'"
    store = run_prepare(source, tmp_path / "store", pattern, "split.test=0.34", "split.val=0.34", labels=None)
    from medcls.data.manifest import read_table

    labels = read_table(store.folder / "labels.parquet").column("label").to_pylist()
    assert Counter(labels) == {"Normal": 12, "OA": 12}
