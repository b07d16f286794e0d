"""Clinical values of raw files: a table's, else the header's, and a refusal where a model cannot do without."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from medcls.clinical.encode import ClinicalSpec, Levels, NumericColumn
from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.files import MODEL
from medcls.predict.clinical_values import ClinicalTable, encode_cases, read_clinical
from medcls.predict.predict import predict
from medcls.predict.prediction_table import Case
from medcls.runs.model_file import ModelCard, read_card

SEX, AGE = Levels("sex", "F", ["M"]), NumericColumn("age_years", 50.0, 10.0, False)


@pytest.fixture
def card(wide_run: Path) -> ModelCard:
    """Of a model that takes what headers say."""
    return replace(read_card(wide_run / MODEL), clinical=ClinicalSpec([SEX], [AGE]), deidentify={"kind": "declared"})


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / "clinical.csv").write_text(text, encoding="utf-8")
        return tmp_path / "clinical.csv"

    return write


def case(path: str = "a.dcm", **headers: str) -> Case:
    return Case(path, headers=headers)


def test_headers_say_sex_and_age_as_the_manifest_does(card: ModelCard) -> None:
    cases = [case(PatientSex="M", PatientAge="060Y"), case(PatientSex="F", PatientAge="006M")]
    values, faults = encode_cases(cases, card, ClinicalTable())
    np.testing.assert_allclose(values, [[1, 1], [0, -4.95]], atol=1e-6)
    assert faults == {}


def test_what_a_header_does_not_say_is_a_fault_of_that_file_alone(card: ModelCard) -> None:
    cases = [case(PatientSex="M", PatientAge="060Y"), case(PatientAge="060Y"), case(PatientSex="F", PatientAge="60")]
    assert encode_cases(cases, card, ClinicalTable())[1] == {
        1: "sex is missing, and training had none missing",
        2: "age_years is missing, and training had none missing",
    }


def test_ages_over_89_are_merged_where_the_store_had_pseudonyms(card: ModelCard, write_table: Any) -> None:
    old = case(PatientSex="F", PatientAge="099Y")
    keyed = replace(card, deidentify={"kind": "hmac"})
    table = read_clinical(write_table("path,age_years\na.dcm,97\n"), [card])
    found = [
        encode_cases([old], each, source)[0][0, 1] for each in (card, keyed) for source in (ClinicalTable(), table)
    ]
    np.testing.assert_allclose(found, [4.9, 4.7, 4.0, 4.0], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("path,sex,age_years\n./d\\a.dcm, M ,60\n", [case("d/a.dcm", PatientSex="F"), case("b.dcm")]),
        ("patient_id,sex,age_years\n17,M,60\n", [case(PatientID="17", PatientSex="F"), case(PatientID="18")]),
    ],
)
def test_a_table_goes_over_the_header_by_path_or_patient(
    card: ModelCard, write_table: Any, text: str, files: list[Case]
) -> None:
    values, faults = encode_cases(files, card, read_clinical(write_table(text), [card]))
    assert values[0].tolist() == [1.0, 1.0]
    assert list(faults) == [1]


def test_a_blank_cell_leaves_the_header_its_word(card: ModelCard, write_table: Any) -> None:
    table = read_clinical(write_table("path,sex,age_years\na.dcm,,60\n"), [card])
    assert encode_cases([case(PatientSex="M")], card, table)[0].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("sex,age_years\nM,60\n", "no column path or patient_id"),
        ("path,sex\na,M\na,F\n", "line 3: its path repeats that of an earlier line"),
        ("path,sex\na,M,60\n", "line 2: expected 2 cells"),
        ("path,sex,sex\na,M,F\n", "columns 2, 3 have the name of another column"),
        ("", "no column path or patient_id"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(card: ModelCard, write_table: Any, text: str, part: str) -> None:
    with pytest.raises(DataError, match=part):
        read_clinical(write_table(text), [card])


def test_a_table_must_be_there_have_the_columns_and_be_needed(
    card: ModelCard, write_table: Any, tmp_path: Path
) -> None:
    with pytest.raises(MissingInputError, match="no such file"):
        read_clinical(tmp_path / "none.csv", [card])
    site = replace(card, clinical=ClinicalSpec([Levels("site", "a", ["b"])], []))
    with pytest.raises(ConfigError, match=r"takes site beside the image: set clinical_file=FILE\.csv with path"):
        read_clinical(None, [card, site][1:])
    with pytest.raises(ConfigError, match=r"takes sex, age_years, site beside the image: .*csv lacks site"):
        read_clinical(write_table("path,sex\na,M\n"), [card, site])
    with pytest.raises(ConfigError, match="no run takes clinical columns"):
        read_clinical(write_table("path,sex\na,M\n"), [replace(card, clinical=None)])


def test_raw_files_get_the_logits_of_evaluate_or_a_refusal(
    wide_run: Path,
    run_evaluate: Callable[..., Path],
    clinical_store: Any,
    compose_job: Callable[..., Any],
    tmp_path: Path,
) -> None:
    raw = clinical_store.folder.parent / "raw"
    with (raw / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # The labels file itself is such a table; here without one image, and with a level that training did not have.
    rows[1]["site"] = "elsewhere"
    with (tmp_path / "clinical.csv").open("w", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[1:])
    out = tmp_path / "predictions.parquet"
    given = (
        f"run={wide_run}",
        f"source={raw}",
        f"out={out}",
        f"clinical_file={tmp_path / 'clinical.csv'}",
        "workers=0",
    )
    predict(compose_job("predict", *given, "device=cpu"))
    found = {row["image_id"]: row for row in pq.read_table(out).to_pylist() if row["level"] == "image"}
    refused = {name: row["detail"] for name, row in found.items() if row["reason"] == "clinical_value"}
    assert refused == {
        rows[0]["path"]: "sex is missing, and training had none missing",
        rows[1]["path"]: "site has a value that was not seen in training",
    }
    expected = pq.read_table(
        run_evaluate(wide_run, "split=val", "report=false", f"out={tmp_path / 'val'}") / "predictions.parquet"
    )
    known = [row for row in expected.to_pylist() if row["image_id"] not in refused]
    assert known
    np.testing.assert_allclose(
        [found[row["image_id"]]["logits"] for row in known], [row["logits"] for row in known], rtol=0, atol=1e-5
    )
