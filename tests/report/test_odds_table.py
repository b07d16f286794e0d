"""Odds ratios as a reader sees them, in the report and in the model card."""

from __future__ import annotations

from typing import Any

from medcls.report.content import Evaluation
from medcls.report.documents import write_card
from medcls.report.odds_table import build_odds_tables, name_term, say_number
from medcls.statistics.predictions import check_predictions

SEX = {"name": "sex=M", "column": "sex", "level": "M", "reference": "F", "std": 0.0, "n_patients": 31}
AGE = {"name": "age_years", "column": "age_years", "level": "", "reference": "", "std": 12.34, "n_patients": None}
RATIO = {"value": 1.5, "low": 1.1, "high": 2.0}
NONE = {"value": 0.9, "low": None, "high": None, "reason": "one patient only"}
FOUND: dict[str, Any] = {
    "measure": "odds ratio",
    "limits": "Associations.",
    "n_patients": {"train": 80, "val": 20},
    "terms": [SEX, AGE],
    "contrasts": [
        {"name": "ill <b>| against healthy", "model": [1.4, 0.95], "train": [RATIO, RATIO], "val": [RATIO, NONE]}
    ],
}


def test_a_term_says_against_what() -> None:
    assert [name_term(SEX), name_term(AGE)] == ["sex: M against F", "age_years: 12.3 more"]


def test_a_table_has_the_model_and_both_fits() -> None:
    (table,) = build_odds_tables({"odds_ratios": FOUND})
    assert table.title == "Odds ratios of the clinical columns: ill <b>| against healthy"
    assert "over 20 validation patients and 80 training patients. Associations." in table.caption
    said = [(name, [say_number(cell) for cell in cells]) for name, cells in table.rows]
    ratio = "1.500 (1.100 – 2.000)"
    assert said == [
        ("sex: M against F", ["31", "1.400", ratio, ratio]),
        ("age_years: 12.3 more", ["—", "0.950", "0.900", ratio]),
    ]


def test_a_run_without_columns_has_no_table() -> None:
    assert build_odds_tables({}) == []


def test_the_card_has_the_table_and_escapes_the_users_words(make_task: Any, make_patients: Any) -> None:
    task, patients = make_task("binary"), make_patients(60)
    evaluation = Evaluation(
        check_predictions(**task), patients, metrics={"odds_ratios": FOUND}, split="test", store_name="knees"
    )
    card = write_card(evaluation, {"performance": {}, "accuracy": []})
    assert "| sex: M against F | 31 | 1.400 | 1.500 (1.100 – 2.000) | 1.500 (1.100 – 2.000) |" in card
    assert "ill &lt;b>\\| against healthy" in card
