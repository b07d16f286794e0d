"""Odds ratios of clinical columns as tables, for the report and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medcls.report.assessed_tables import Cell, Row, Table
from medcls.statistics.number_text import Number, format_number, format_value

SPLITS = {"val": "Validation patients", "train": "Training patients"}


def build_odds_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Return a table for each contrast: each level or number, in the model itself and fitted again, with intervals.

    Args:
        metrics: As in metrics.json; "odds_ratios" is what training wrote.
    """
    found = metrics.get("odds_ratios")
    if not found:
        return []
    measure = found["measure"].capitalize()
    counts = " and ".join(f"{found['n_patients'][split]} {name.lower()}" for split, name in SPLITS.items())
    caption = f"{measure}s with 95 % intervals over {counts}. {found['limits']}"
    columns = ["Column", "Patients in training", f"{measure} in the model", *SPLITS.values()]
    tables = []
    for contrast in found["contrasts"]:
        rows: list[Row] = []
        for i, term in enumerate(found["terms"]):
            count = "—" if term["n_patients"] is None else str(term["n_patients"])
            numbers: list[Cell] = [format_number("", contrast[split][i]) for split in SPLITS]
            rows.append((name_term(term), [count, format_value(contrast["model"][i]), *numbers]))
        tables.append(Table(f"{measure}s of the clinical columns: {contrast['name']}", caption, columns, rows))
    return tables


def name_term(term: Mapping[str, Any]) -> str:
    """Return "sex: M against F", "age_years: 12.3 more" (a standard deviation), "sex: missing against F"."""
    change = f"{term['level']} against {term['reference']}" if term["level"] else f"{term['std']:.3g} more"
    return f"{term['column']}: {change}"


def say_number(cell: Cell) -> str:
    """Return "1.45 (1.02 – 2.06)" of a cell."""
    if not isinstance(cell, Number):
        return cell or ""
    return f"{cell.text} ({cell.interval})" if cell.interval else cell.text
