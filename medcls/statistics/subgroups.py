"""The same metrics for subgroups of patients that are large enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from medcls.statistics.definitions import choose_task_metrics
from medcls.statistics.intervals import MetricEntries, number_patients, summarize_metrics
from medcls.statistics.predictions import Predictions, select_rows

UNKNOWN = "not recorded"
AGE_BANDS = (0, 18, 40, 60, 80)
MOST_VALUES = 20


class Subgroup(TypedDict):
    """The size of a group, and its main metrics, or {} and the reason."""

    column: str
    value: str
    n_images: int
    n_patients: NotRequired[int]
    metrics: MetricEntries
    reason: NotRequired[str]


def name_age_band(age_years: float | None) -> str | None:
    """Return the band as "40–59" or "80+"; None where the age is not known.

    Source: own choice: children, and adults in steps of twenty years.
    """
    if age_years is None or not np.isfinite(age_years) or age_years < 0:
        return None
    start = max(bound for bound in AGE_BANDS if bound <= age_years)
    later = [bound for bound in AGE_BANDS if bound > start]
    return f"{start}–{later[0] - 1}" if later else f"{start}+"


def count_patients(ages: Sequence[float | None], columns: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Return age, and the shares of the values of each column, in words; one value for each patient.

    Args:
        ages: Years; None = not recorded.
        columns: Name to a value for each patient.
    """
    facts: dict[str, str] = {}
    known = [age for age in ages if age is not None]
    if known:
        low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
        counted = f" (of {len(known)})" if len(known) < len(ages) else ""
        facts["age, median (quartiles)"] = f"{middle:.0f} ({low:.0f}–{high:.0f}){counted}"
    for column, values in columns.items():
        counts = Counter(value or UNKNOWN for value in values)
        facts[column] = ", ".join(
            f"{name} {count} ({count / len(values):.0%})" for name, count in counts.most_common(6)
        )
    return facts


def compute_subgroups(
    predictions: Predictions,
    patient_ids: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    least_patients: int = 20,
    replicates: int = 2000,
    seed: int = 0,
) -> list[Subgroup]:
    """Return the size of the group of each value of each column, and its main metrics, or why there are none.

    Args:
        predictions: Of N rows, with the thresholds of the decision.
        patient_ids: (N,).
        columns: Name to the value of each row; None = not recorded. A column with a single value has no subgroups.
        least_patients: Groups with fewer patients show only their size.
        replicates: Bootstrap samples.
        seed: Seed of the bootstrap.
    """
    ids = np.asarray(patient_ids, dtype=str)
    shown = choose_task_metrics(predictions.kind, grades=predictions.grades).subgroups
    entries: list[Subgroup] = []
    for column, values in columns.items():
        named = np.array([UNKNOWN if value in (None, "") else str(value) for value in values])
        groups = sorted(set(named.tolist()), key=lambda name: (name == UNKNOWN, name))
        if len(groups) > MOST_VALUES:
            reason = f"{len(groups)} values: more than {MOST_VALUES} are not groups"
            entries.append({"column": column, "value": "", "n_images": len(ids), "reason": reason, "metrics": {}})
            continue
        for group in groups if len(groups) > 1 else []:
            rows = named == group
            size = int(rows.sum())
            patients = number_patients(ids[rows].tolist(), rows=size)
            count = int(patients.max()) + 1
            entry: Subgroup = {
                "column": column, "value": group, "n_images": size, "n_patients": count, "metrics": {}
            }  # fmt: skip
            if count < least_patients:
                entry["reason"] = f"fewer than {least_patients} patients: suppressed"
            else:
                part = select_rows(predictions, rows)
                found = summarize_metrics(part, patients, replicates=replicates, seed=seed)
                entry["metrics"] = {name: found[name] for name in shown if name in found}
            entries.append(entry)
    return entries
