"""The values of label columns: one class for each label, however it is spelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_prep.labels.label_file import PatientRule, read_label_table
from data_prep.labels.label_values import read_label_values
from medcls.config import LabellingConfig
from medcls.data.manifest import read_table
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.files import read_json, sha256_file


def table(**columns: Sequence[str | None]) -> pa.Table:
    return pa.table({name: pa.array(list(values), pa.string()) for name, values in columns.items()})


def read(values: Sequence[str | None], *, name: str = "label", **settings: Any) -> list[str | None]:
    labels, _ = read_label_values(table(**{name: values}), LabellingConfig(**settings))
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
        "label: 'Normal' (3 rows) and 'normal' (1 row) are read as one class, Normal; labelling.strict=true refuses"
        in capsys.readouterr().err
    )
    read(["L\u00e4sion", "La\u0308sion", "x"], name="label_a")
    assert "label_a: 'La\\u0308sion' (1 row) and 'L\\xe4sion' (1 row)" in capsys.readouterr().err


def test_labels_in_one_spelling_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert read(["0.0", "1.0", "1.0"]) == ["0.0", "1.0", "1.0"]
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
    with pytest.raises(DataError, match=rf"label: {rows} different texts in {rows} rows.*not shown") as error:
        read(names)
    assert "Mustermann" not in str(error.value) + capsys.readouterr().err


def test_a_name_for_each_patient_is_refused_however_many_images_there_are() -> None:
    patients = [f"P{i // 8}" for i in range(160)]
    names = [f"Mustermann {patient}" for patient in patients]
    with pytest.raises(DataError, match="label: 20 different texts in 160 rows of 20 patients") as error:
        read_label_values(table(patient_id=patients, label=names), LabellingConfig())
    assert "Mustermann" not in str(error.value)


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
    labels = read_table(store.folder / "labels.parquet").column("label").to_pylist()
    assert Counter(labels) == {"Normal": 12, "OA": 12}


# --- uncertain and blank values


@pytest.mark.parametrize(
    ("uncertain", "expected", "votes"),
    [
        ("unknown", ["1.0", None, None, "0.0"], None),
        (0, ["1.0", "0.0", None, "0.0"], None),
        ("1", ["1.0", "1.0", None, "0.0"], None),
        (0.5, ["1.0", None, None, "0.0"], [None, '{"0.0": 0.5, "1.0": 0.5}', None, None]),
    ],
)
def test_uncertain_values_are_read_as_asked(uncertain: Any, expected: list[str | None], votes: Any) -> None:
    labels, record = read_label_values(
        table(label_edema=["1.0", "-1.0", None, "0.0"]), LabellingConfig(uncertain=uncertain)
    )
    assert labels.column("label_edema").to_pylist() == expected
    assert (labels.column("votes_edema").to_pylist() if "votes_edema" in labels.column_names else None) == votes
    assert record["columns"]["label_edema"]["uncertain"] == {"rows": 1, "read_as": str(uncertain)}
    assert record["columns"]["label_edema"]["blank"] == {"rows": 1, "read_as": "unknown"}


def test_uncertain_values_are_refused_with_columns_and_counts_unless_asked() -> None:
    columns = table(label_a=["1", "-1", "0"], label_b=["u", "U", "1"], label_c=["1", "0", None])
    with pytest.raises(DataError) as error:
        read_label_values(columns, LabellingConfig())
    assert str(error.value).startswith(
        "uncertain values in 2 label columns: label_a ('-1' in 1 row), label_b ('U' in 1 row, 'u' in 1 row): set "
        "labelling.uncertain=unknown, 0, 1, or 0.5"
    )


def test_blanks_are_read_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert read(["1.0", None, "0.0", None], name="label_a") == ["1.0", None, "0.0", None]
    said = capsys.readouterr().err
    assert "blank labels are read as unknown: label_a (2 rows); labelling.blank=0 reads blanks of 0/1" in said
    assert read(["1.0", None, "0.0", None], name="label_a", blank=0) == ["1.0", "0.0", "0.0", "0.0"]
    assert "blank labels are read as 0: label_a (2 rows)" in capsys.readouterr().err
    assert read(["1", None, "-1"], name="label_a", blank=0, uncertain="unknown") == ["1", "0", None]
    assert read([None, None], name="label_a", blank=0) == ["0", "0"]


def test_readers_are_guessed_and_their_blanks_are_not_offered_as_votes(capsys: pytest.CaptureFixture[str]) -> None:
    columns = table(label_r1=["1", None, "0"], label_r2=["1", "0", "0"])
    read_label_values(columns, LabellingConfig())
    said = capsys.readouterr().err
    assert "label columns that end in r1, r2 are read as separate findings" in said
    assert "set labelling.readers=[r1,r2]" in said
    read_label_values(columns, LabellingConfig(readers=["r1", "r2"]))
    said = capsys.readouterr().err
    assert "blank labels are read as unknown: label_r1 (1 row)" in said
    assert "labelling.blank=0" not in said
    assert "set labelling.readers" not in said


def test_blanks_of_classes_stay_unknown() -> None:
    assert read(["mild", None, "severe", "mild"], blank=0) == ["mild", None, "severe", "mild"]
    assert read([None, None], blank=0) == [None, None]


def test_uncertain_among_other_classes_is_a_class_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    values = ["0", "1", "2", "-1"] * 3
    assert read(values, uncertain=0.5) == values
    assert "label ('-1' in 3 rows) is read as a class" in capsys.readouterr().err
    assert read(values, uncertain="unknown") == ["0", "1", "2", None] * 3
    assert capsys.readouterr().err.startswith("notice: uncertain labels are read as unknown: label (3 rows)")


def test_a_negative_measurement_is_not_uncertain(capsys: pytest.CaptureFixture[str]) -> None:
    values = [str(i / 10) for i in range(-15, 15)]
    assert "-1.0" in values
    assert read(values, uncertain="unknown") == values
    assert capsys.readouterr().err == ""


def test_ordered_words_stay_words() -> None:
    values = ["none", "mild", "moderate", "severe"] * 2
    assert read(values) == values


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"uncertain": 2}, "labelling.uncertain=2"),
        ({"blank": 1}, "labelling.blank=1"),
        ({"readers": ["a"]}, "two or more different readers"),
        ({"readers": ["a", "a"]}, "two or more different readers"),
        ({"readers": ["a", "b"], "readers_rule": "c"}, "expected one of majority, share, a, b"),
        ({"readers_rule": "share"}, "needs labelling.readers"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        LabellingConfig(**settings)


# --- several readers

READERS = {
    "label_r1": ["OA", "OA", "Normal", "OA", None, "normal"],
    "label_r2": ["OA", "Normal", "Normal", "Normal", None, None],
    "label_r3": ["oa", "OA", "Normal", None, None, None],
}


def read_readers(rule: str, columns: dict[str, Any] = READERS, **settings: Any) -> tuple[pa.Table, dict[str, Any]]:
    settings = {"readers": ["r1", "r2", "r3"], **settings}
    return read_label_values(table(**columns), LabellingConfig(readers_rule=rule, **settings))


def test_most_readers_decide_and_ties_are_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    labels, record = read_readers("majority")
    assert labels.column_names == ["label"]
    assert labels.column("label").to_pylist() == ["OA", "OA", "Normal", None, None, "Normal"]
    found = record["readers"]["label"]
    assert (found["rows"], found["unanimous"], found["ties"], found["images"]) == (5, 3, 1, 4)
    # Pairs that agree: 3 of 3, 1 of 3, 3 of 3, 0 of 1.
    assert found["agreement"]["value"] == pytest.approx((1 + 1 / 3 + 1 + 0) / 4)
    said = capsys.readouterr().err
    assert "label of 3 readers (r1, r2, r3): 4 rows with two or more, 58.3 % of their pairs agree" in said
    assert "labelling.readers_rule=majority: 1 ties are unknown" in said


def test_shares_of_votes_are_kept_beside_the_label_of_most_readers() -> None:
    labels, _ = read_readers("share")
    assert labels.column("label").to_pylist() == ["OA", "OA", "Normal", None, None, "Normal"]
    assert labels.column("votes").to_pylist() == [
        '{"OA": 3.0}',
        '{"Normal": 1.0, "OA": 2.0}',
        '{"Normal": 3.0}',
        '{"Normal": 1.0, "OA": 1.0}',
        None,
        '{"Normal": 1.0}',
    ]


def test_one_reader_may_be_chosen() -> None:
    labels, record = read_readers("r2")
    assert labels.column("label").to_pylist() == ["OA", "Normal", "Normal", "Normal", None, None]
    assert "alpha" in record["readers"]["label"]


def test_readers_of_several_findings_and_columns_of_any_name() -> None:
    columns = {"label_a_r1": ["1", "0"], "label_a_r2": ["1", "1"], "label_b_r1": ["0", "-1"], "label_b_r2": ["0", "1"]}
    labels, _ = read_readers("share", columns, readers=["r1", "r2"], uncertain=0.5)
    assert labels.column("label_a").to_pylist() == ["1", None]
    assert labels.column("label_b").to_pylist() == ["0", "1"]
    assert labels.column("votes_b").to_pylist()[1] == '{"0": 0.5, "1": 1.5}'
    named, _ = read_readers("majority", {"alice": ["x", "y"], "bob": ["x", "y"]}, readers=["alice", "bob"])
    assert named.column("label").to_pylist() == ["x", "y"]


def test_readers_without_a_column_or_beside_a_label_are_refused() -> None:
    with pytest.raises(DataError, match="there is no column r9 or label_r9"):
        read_readers("majority", readers=["r9", "r8"])
    with pytest.raises(DataError, match="there is no column label_r4"):
        read_readers("majority", readers=["r1", "r4"])
    with pytest.raises(DataError, match="makes the column label, which the file also has"):
        read_readers("majority", READERS | {"label": ["OA"] * 6})


def test_columns_of_readers_are_read_from_the_file(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").touch()
    path = tmp_path / "labels.csv"
    path.write_text("path,patient_id,first reader,second reader,note\na.png,P1,x,x,-\nb.png,P2,x,y,-\n")
    readers = ["first reader", "second reader"]
    config, listed = LabellingConfig(readers=readers), pa.array(["a.png", "b.png"])
    read_in = read_label_table(path, source=tmp_path, rule=PatientRule(), listed=listed, config=config)
    labels, record = read_label_values(read_in, config)
    assert labels.column("label").to_pylist() == ["x", None]
    assert record["readers"]["label"]["interval_over"] == "patients"
    assert "first reader" not in labels.column_names


def test_a_store_records_how_its_labels_were_read(
    tmp_path: Path, write_source: Callable[..., Path], run_prepare: Callable[..., Store]
) -> None:
    def read_twice(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in row.items() if key != "label"}
            | {"label_r1": row["label"], "label_r2": row["label"] if i % 4 else "mild"}
            for i, row in enumerate(rows)
        ]

    source = write_source(tmp_path / "raw", rewrite=read_twice)
    arguments = ("labelling.readers=[r1,r2]", "labelling.readers_rule=share", "split.on_missing=report")
    store = run_prepare(source, tmp_path / "store", *arguments)
    labels = read_table(store.folder / "labels.parquet")
    assert labels.column_names == ["image_id", "label", "votes"]
    record = read_json(store.folder / "labels.json")
    assert record["labels_sha256"] == sha256_file(store.folder / "labels.parquet")
    assert record["readers"]["label"]["ties"] == labels.column("label").null_count == 8
    assert 0 < record["readers"]["label"]["alpha"]["value"] < 1
