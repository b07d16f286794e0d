"""The same metrics for subgroups of patients that are large enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medcls.statistics.definitions import choose_task_metrics
from medcls.statistics.intervals import explain_undefined, number_patients, summarize
from medcls.statistics.metrics import build_estimator
from medcls.statistics.predictions import Integers, Predictions
from medcls.statistics.support import find_support

UNKNOWN = "not recorded"
AGE_BANDS = (0, 18, 40, 60, 80)
MOST_VALUES = 20


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
) -> list[dict[str, Any]]:
    """One entry for each value of each column: sizes, and the main metrics with intervals, or why there are none.

    Args:
        predictions: Of N rows, with the thresholds of the decision.
        patient_ids: (N,).
        columns: Name to the value of each row; None = not recorded. A column with one value only is no subgroup.
        least_patients: Groups with fewer patients show their size alone.
        replicates: Bootstrap samples.
        seed: Of the bootstrap.
    """
    ids = np.asarray(patient_ids, dtype=str)
    entries: list[dict[str, Any]] = []
    for column, values in columns.items():
        named = np.array([UNKNOWN if value in (None, "") else str(value) for value in values])
        groups = sorted(set(named.tolist()), key=lambda name: (name == UNKNOWN, name))
        if len(groups) > MOST_VALUES:
            reason = f"{len(groups)} values: more than {MOST_VALUES} are not groups"
            entries.append({"column": column, "value": "", "n_images": len(ids), "reason": reason, "metrics": {}})
            continue
        for group in groups if len(groups) > 1 else []:
            rows = named == group
            entry = {
                "column": column,
                "value": group,
                "n_images": int(rows.sum()),
                "n_patients": len(np.unique(ids[rows])),
                "metrics": {},
            }
            if entry["n_patients"] < least_patients:
                entry["reason"] = f"fewer than {least_patients} patients: suppressed"
            else:
                part = replace(predictions, y_true=predictions.y_true[rows], y_score=predictions.y_score[rows])
                patients = number_patients(ids[rows].tolist(), rows=int(rows.sum()))
                entry["metrics"] = _summarize(part, patients, replicates=replicates, seed=seed)
            entries.append(entry)
    return entries


def _summarize(predictions: Predictions, patients: Integers, *, replicates: int, seed: int) -> dict[str, Any]:
    names = choose_task_metrics(predictions.kind, grades=predictions.grades).subgroups
    found = summarize(
        build_estimator(predictions),
        patients,
        support=lambda known: find_support(predictions, known),
        replicates=replicates,
        seed=seed,
        explain=lambda name: explain_undefined(name, predictions),
    )
    return {name: found[name] for name in names if name in found}
