"""Clinical columns become numbers by the training rows alone; what they did not have is refused by name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcls.clinical.encode import MISSING, ClinicalSpec, Levels, NumericColumn, check_faults, encode_clinical
from medcls.clinical.learn import build_clinical, check_columns, check_no_label
from medcls.errors import ConfigError, DataError
from medcls.records import from_json, to_json

SEX = pa.table({"sex": ["F", "M", "F", "M", "F", "F"], "age_years": [40.0, 50.0, 60.0, 50.0, 40.0, 60.0]})
THERE = ["image_id", "patient_id", "sex", "age_years", "site", "label_a"]


def build(table: pa.Table, **choice: Any) -> ClinicalSpec:
    return build_clinical(table, **{"categorical": [], "numeric": [], "patients": 100} | choice)


def encode(spec: ClinicalSpec, **columns: Any) -> list[list[float]]:
    values, faults = encode_clinical(spec, pa.table(columns))
    assert (values.dtype, faults) == (np.float32, {})
    return np.round(values, 4).tolist()


def test_a_level_is_a_column_but_for_the_most_frequent_one() -> None:
    spec = build(SEX, categorical=["sex"])
    assert spec.levels == [Levels("sex", "F", ["M"])]
    assert [term.name for term in spec.terms] == ["sex=M"]
    assert encode(spec, sex=["M", "F", " M "]) == [[1.0], [0.0], [1.0]]


def test_the_reference_may_be_named_also_where_yaml_reads_a_number() -> None:
    table = pa.table({"site": ["1", "2", "2", "3", "3", "3"]})
    assert build(table, categorical=["site"], reference={"site": 1}).levels == [Levels("site", "1", ["2", "3"])]


def test_numbers_are_standardised_by_the_training_rows() -> None:
    spec = build(SEX, numeric=["age_years"])
    assert spec.numbers == [NumericColumn("age_years", 50.0, pytest.approx(np.std(SEX["age_years"])), False)]
    assert np.mean(encode(spec, age_years=SEX["age_years"])) == pytest.approx(0, abs=1e-4)
    assert encode(spec, age_years=[50.0]) == [[0.0]]


def test_text_that_holds_numbers_is_numeric_where_asked_for() -> None:
    table = pa.table({"bmi": ["20", "30", None, " 25.0"]})
    spec = build(table, numeric=["bmi"])
    assert [term.name for term in spec.terms] == ["bmi", "bmi=missing"]
    assert encode(spec, bmi=["25", "", "missing", None])[:2] == [[0.0, 0.0], [0.0, 1.0]]


def test_whole_numbers_may_be_levels() -> None:
    spec = build(pa.table({"grade": pa.array([1, 2, 2, None])}), categorical=["grade"])
    assert spec.levels == [Levels("grade", "2", ["1", MISSING])]


def test_missing_is_a_level_of_its_own_and_never_zero_in_silence() -> None:
    table = pa.table({"sex": ["F", None, "", "M", "F"], "age_years": [40.0, None, 60.0, np.nan, 50.0]})
    spec = build(table, categorical=["sex"], numeric=["age_years"])
    assert [term.name for term in spec.terms] == ["sex=M", "sex=missing", "age_years", "age_years=missing"]
    assert encode(spec, sex=[None, "F"], age_years=[50.0, None]) == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_missing_is_never_the_reference() -> None:
    assert build(pa.table({"sex": ["", "", "", "F"]}), categorical=["sex"]).levels == [Levels("sex", "F", [MISSING])]


def test_a_term_says_what_it_is_compared_with() -> None:
    table = pa.table({"sex": ["F", "M", "F"], "age_years": [40.0, None, 60.0]})
    sex, age, missing = build(table, categorical=["sex"], numeric=["age_years"]).terms
    assert (sex.column, sex.level, sex.reference, sex.std) == ("sex", "M", "F", 0.0)
    assert (age.level, age.reference, age.std) == ("", "", 10.0)
    assert (missing.column, missing.level, missing.reference) == ("age_years", MISSING, "the mean")


def test_what_training_did_not_have_is_a_fault_with_its_reason() -> None:
    spec = build(SEX, categorical=["sex"], numeric=["age_years"])
    table = pa.table({"sex": ["F", "O", None, "F", "F"], "age_years": [40.0, 40.0, 40.0, None, np.inf]})
    values, faults = encode_clinical(spec, table)
    assert faults == {
        1: "sex has a value that was not seen in training",
        2: "sex is missing, and training had none missing",
        3: "age_years is missing, and training had none missing",
        4: "age_years is not a number",
    }
    assert np.isnan(values[1:]).all()
    assert np.isfinite(values[0]).all()
    with pytest.raises(
        DataError, match=r"4 of 5 rows of val have no values: age_years is missing.*sex has a value that was not"
    ):
        check_faults(faults, where="val", rows=5)


def test_a_long_text_is_not_shown() -> None:
    spec = build(pa.table({"site": ["a", "b", "a"]}), categorical=["site"])
    _, faults = encode_clinical(spec, pa.table({"site": ["Dr. Someone Somewhere"]}))
    assert faults == {0: "site has a value that was not seen in training"}


def test_unseen_levels_are_taken_for_missing_where_asked_for_and_known() -> None:
    table = pa.table({"site": ["a", "b", "a", None]})
    assert encode(build(table, categorical=["site"], unseen="missing"), site=["new"]) == [[0.0, 1.0]]
    whole = build(table.slice(0, 3), categorical=["site"], unseen="missing")
    assert encode_clinical(whole, pa.table({"site": ["new"]}))[1] == {
        0: "site has a value that was not seen in training"
    }


def test_the_spec_survives_json() -> None:
    spec = build(SEX, categorical=["sex"], numeric=["age_years"], unseen="missing")
    assert from_json(ClinicalSpec, json.loads(json.dumps(to_json(spec)))) == spec


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=3, max_size=30))
def test_every_row_has_exactly_one_level(column: list[str | None]) -> None:
    kinds = set(column)
    if kinds == {None} or len(kinds) < 2:
        return
    spec = build(pa.table({"x": pa.array(column, pa.string())}), categorical=["x"])
    values, faults = encode_clinical(spec, pa.table({"x": pa.array(column, pa.string())}))
    named = [spec.levels[0].levels[int(row.argmax())] if row.any() else spec.levels[0].reference for row in values]
    assert named == [text or MISSING for text in column]
    assert not faults


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_training_numbers_have_mean_0_and_deviation_1(column: list[float]) -> None:
    if np.std(column) < 1e-3:
        return
    values, _ = encode_clinical(build(pa.table({"x": column}), numeric=["x"]), pa.table({"x": column}))
    assert (float(values.mean()), float(values.std())) == (pytest.approx(0, abs=1e-3), pytest.approx(1, abs=1e-3))


REFUSED: list[tuple[dict[str, list[Any]], dict[str, Any], str]] = [
    ({"x": ["a", "a"]}, {"categorical": ["x"]}, "x is the same in every training row"),
    ({"x": [None, ""]}, {"categorical": ["x"]}, "x is missing in every training row"),
    ({"x": ["a", "b", "c"]}, {"categorical": ["x"], "patients": 5}, "3 levels for 5 patients"),
    ({"x": [1.0, 1.0, None]}, {"numeric": ["x"]}, "only one value"),
    ({"x": ["1", "2", "two"]}, {"numeric": ["x"]}, "not a number in 1 training rows"),
]


@pytest.mark.parametrize(("columns", "choice", "part"), REFUSED)
def test_columns_that_say_nothing_or_too_much_are_refused(
    columns: dict[str, list[Any]], choice: dict[str, Any], part: str
) -> None:
    with pytest.raises(DataError, match=part):
        build(pa.table({"x": pa.array(columns["x"], None if any(columns["x"]) else pa.string())}), **choice)


def test_choices_that_contradict_the_columns_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"age_years is a number: move it to clinical\.numeric"):
        build(SEX, categorical=["age_years"])
    with pytest.raises(ConfigError, match="sex has no level X in training; it has F, M"):
        build(SEX, categorical=["sex"], reference={"sex": "X"})
    with pytest.raises(ConfigError, match="names age_years, which is not in"):
        build(SEX, numeric=["age_years"], reference={"age_years": 40})


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("patient_id", "identifies patients or images"),
        ("label_a", "is a label"),
        ("sitee", r"no column sitee.*nearest: site.*columns=\[sitee\]"),
    ],
)
def test_ids_labels_and_unknown_columns_are_refused(name: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        check_columns([name], there=THERE)
    check_columns(["sex", "site"], there=THERE)


def test_a_column_is_asked_for_once() -> None:
    with pytest.raises(ConfigError, match="sex is listed twice"):
        check_columns(["sex", "sex"], there=THERE)


def test_a_column_that_is_the_label_is_refused_and_one_that_tells_much_is_not() -> None:
    grade = np.array([[0.0], [1.0], [2.0], [0.0], [1.0], [2.0]])
    table = pa.table({"same": list("abcabc"), "near": list("abcabb"), "twice": [10.0 * x for x in range(3)] * 2})
    near = build(table, categorical=["near"])
    check_no_label(near, table, grade)
    for choice in ({"categorical": ["near", "same"]}, {"numeric": ["twice"]}):
        with pytest.raises(DataError, match="determines the label of every training image"):
            check_no_label(build(table, **choice), table, grade)


def test_one_of_several_labels_is_enough_to_be_refused_unknown_ones_aside() -> None:
    table = pa.table({"x": ["a", "b", "a", "b"]})
    labels = np.array([[0, 1], [0, 0], [1, np.nan], [1, 0]])
    with pytest.raises(DataError, match="x determines the label"):
        check_no_label(build(table, categorical=["x"]), table, labels)
    check_no_label(build(table, categorical=["x"]), table, labels[:, :1])
