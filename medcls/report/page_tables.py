"""The report's numbers as rows of text: headline cards, all metrics, one row per class, counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medcls.identity import count_patients, format_count, name_units
from medcls.statistics.definitions import (
    DEFINITIONS,
    Definition,
    choose_headlines,
    describe_direction,
)
from medcls.statistics.exposure import UNSEEN
from medcls.statistics.number_text import Number, format_number, format_p
from medcls.statistics.predictions import Predictions


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric with its meaning."""

    name: str
    definition: Definition
    number: Number
    better: str


def build_cards(predictions: Predictions, metrics: Mapping[str, Any]) -> list[MetricRow]:
    """Return the headline numbers of this kind of task, in the order of their weight."""
    return [_build_row(name, metrics[name]) for name in choose_headlines(predictions) if name in metrics]


def describe_means(predictions: Predictions) -> dict[str, str]:
    """Return what a headline number is the mean of, by its name; of others nothing."""
    number = len(predictions.class_names)
    if predictions.kind == "multilabel":
        return dict.fromkeys(choose_headlines(predictions), f"mean of {format_count(number, 'label')}")
    if predictions.kind in ("multiclass", "ordinal"):
        classes = "grades" if predictions.has_grades else "classes"
        return dict.fromkeys(("auc", "average_precision"), f"mean of {number} {classes}, each against all others")
    return {}


def build_metric_table(metrics: Mapping[str, Any]) -> list[MetricRow]:
    """Return every metric of the whole task, in the order of `DEFINITIONS`."""
    return [_build_row(name, metrics[name]) for name in DEFINITIONS if name in metrics]


def build_class_table(
    predictions: Predictions, metrics: Mapping[str, Any]
) -> tuple[list[Definition], list[tuple[str, list[Number | None]]]]:
    """Columns and rows of the metrics of single classes; both empty where the task has none."""
    names = predictions.class_names
    stems = [
        stem for stem, row in DEFINITIONS.items() if row.by_class and any(f"{stem}_{name}" in metrics for name in names)
    ]
    rows = [(name, [_find_number(stem, name, metrics) for stem in stems]) for name in names if stems]
    return [DEFINITIONS[stem] for stem in stems], rows


def _find_number(stem: str, class_name: str, metrics: Mapping[str, Any]) -> Number | None:
    """None where a class has no such metric, as the last grade has no "above"."""
    entry = metrics.get(f"{stem}_{class_name}")
    return None if entry is None else format_number(stem, entry)


def build_counts(predictions: Predictions, patient_ids: Sequence[str]) -> list[tuple[str, int, int]]:
    """Name, images and patients of each class and of all; of each label with and without it, and not known."""
    patients = np.asarray(patient_ids, dtype=str)
    names, true = predictions.class_names, predictions.y_true
    chosen: list[tuple[str, Any]] = []
    if predictions.kind == "multilabel":
        for k, name in enumerate(names):
            sides = [
                (name, true[:, k] == 1),
                (f"no {name}", true[:, k] == 0),
                (f"{name} unknown", np.isnan(true[:, k])),
            ]
            chosen += sides if sides[2][1].any() else sides[:2]
    elif predictions.kind != "regression" or predictions.grades:
        chosen = [(name, true == k) for k, name in enumerate(names)]
    chosen.append(("All", np.ones(len(patients), dtype=bool)))
    return [(name, int(rows.sum()), len(np.unique(patients[rows]))) for name, rows in chosen]


def count_labels(predictions: Predictions) -> int:
    """Return how many labels the numbers of a whole task are a mean of; 0 = it is no task of several labels."""
    return len(predictions.class_names) if predictions.kind == "multilabel" else 0


def format_metrics(metrics: Mapping[str, Any], *, title: str, calls: Sequence[str] = (), labels: int = 0) -> str:
    """Return the headline metrics with their intervals, one per line; metrics.json has those of each class too.

    Args:
        metrics: As in metrics.json.
        title: What was evaluated.
        calls: Sentences on classes that none or all of the images were called.
        labels: Of `count_labels`.
    """
    known = str(metrics.get("patients_from", ""))
    over = name_units("95 % intervals over patients", known)
    lines = [f"{title}: {count_patients(metrics['n_images'], metrics['n_patients'], known)}, {over}"]
    if metrics.get("rows", {}).get("status", UNSEEN) != UNSEEN:
        lines.insert(0, f"{metrics['rows']['claim']}.")
    if "positive_class" in metrics:
        lines[-1] += f"; positive class {metrics['positive_class']}"
    lines += [f"  {line}" for line in (*([metrics["decision"]["words"]] if "decision" in metrics else []), *calls)]
    for name, entry in metrics.items():
        if not isinstance(entry, dict) or name not in DEFINITIONS or not DEFINITIONS[name].printed:
            continue
        shown = f"{name} (mean of {labels} labels)" if labels else name
        why = str(entry.get("reason") or entry.get("note", "")).removeprefix("no interval: ")
        if entry["value"] is None:
            lines.append(f"  {shown:28s} undefined: {why}")
        else:
            found = f"no interval: {why}"
            if entry["low"] is not None:
                found = f"[{entry['low']:.3f}, {entry['high']:.3f}]" + (f"  ({why})" if why else "")
            lines.append(f"  {shown:28s} {entry['value']:.3f}  {found}")
    return "\n".join(lines)


def format_comparison(compared: Mapping[str, Any], *, patients_from: str = "") -> str:
    """Return the paired differences of the headline metrics, one per line; the report also has AUCs and McNemar's test.

    Args:
        compared: What metrics.json holds under "comparison".
        patients_from: What told patients apart, as a store records it.
    """
    over = name_units("paired over patients", patients_from)
    lines = [
        f"{compared['first']} minus {compared['second']}, {over}; p corrected for {len(compared['metrics'])} metrics"
    ]
    for name, entry in compared["metrics"].items():
        if entry["difference"] is None:
            lines.append(f"  {name:28s} undefined")
            continue
        low, high = entry["low"], entry["high"]
        interval = "no interval" if low is None else f"[{low:+.3f}, {high:+.3f}]"
        p_value = "" if entry["p_holm"] is None else f"  p {format_p(entry['p_holm'])}"
        note = f" ({entry['note']})" if "note" in entry else ""
        lines.append(f"  {name:28s} {entry['difference']:+.3f}  {interval}{p_value}{note}")
    return "\n".join(lines)


def _build_row(name: str, entry: Mapping[str, Any]) -> MetricRow:
    definition = DEFINITIONS[name]
    return MetricRow(name, definition, format_number(name, entry), describe_direction(name))
