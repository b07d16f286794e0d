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
    if predictions.traits.exclusive:
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
    columns: list[Definition] = []
    rows: dict[str, list[Number | None]] = {name: [] for name in names}
    for stem, definition in DEFINITIONS.items():
        entries = [metrics.get(f"{stem}_{name}") for name in names]
        if definition.by_class and any(entries):
            columns.append(definition)
            for name, entry in zip(names, entries, strict=True):
                # A class may lack a metric, as the last grade has no "above".
                rows[name].append(None if entry is None else format_number(stem, entry))
    return columns, list(rows.items()) if columns else []


def build_counts(predictions: Predictions, patient_ids: Sequence[str]) -> list[tuple[str, int, int]]:
    """Name, images and patients of each class and of all; of each label with and without it, and not known."""
    patients = np.asarray(patient_ids, dtype=str)
    names, true = predictions.class_names, predictions.y_true
    chosen: list[tuple[str, Any]] = []
    for k, name in enumerate(names):
        if predictions.has_classes:
            chosen.append((name, true == k))
        elif predictions.kind == "multilabel":
            chosen += [(name, true[:, k] == 1), (f"no {name}", true[:, k] == 0)]
            unknown = np.isnan(true[:, k])
            chosen += [(f"{name} unknown", unknown)] * bool(unknown.any())
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
    if "decision" in metrics:
        lines.append(f"  {metrics['decision']['words']}")
    lines += [f"  {line}" for line in calls]
    for name, entry in metrics.items():
        if not isinstance(entry, dict) or name not in DEFINITIONS or not DEFINITIONS[name].printed:
            continue
        shown = name + f" (mean of {labels} labels)" * bool(labels)
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
        line = f"  {name:28s} {entry['difference']:+.3f}  "
        line += "no interval" if entry["low"] is None else f"[{entry['low']:+.3f}, {entry['high']:+.3f}]"
        if entry["p_holm"] is not None:
            line += f"  p {format_p(entry['p_holm'])}"
        if "note" in entry:
            line += f" ({entry['note']})"
        lines.append(line)
    return "\n".join(lines)


def _build_row(name: str, entry: Mapping[str, Any]) -> MetricRow:
    definition = DEFINITIONS[name]
    return MetricRow(name, definition, format_number(name, entry), describe_direction(name))
