"""Human readers beside the model: their table, and their points in the ROC plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from medcls.report.assessed_tables import MOST_ROWS, Cell, Table
from medcls.report.drawing import MUTED, SERIES, on_axes
from medcls.statistics.number_text import format_difference, format_number, format_reason, format_value

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
CAPTION = (
    "Each reader is analysed separately, on the images that they read; nothing follows about readers in general. "
    "Readers are numbered; their names are not shown. The model's sensitivity is taken at a threshold where it is at "
    "least as specific as the reader on these images, chosen again in every resample. p: McNemar over patients, at the "
    "model's own decision; Holm over the readers of one question."
)


def build_reader_table(metrics: Mapping[str, Any]) -> list[Table]:
    """Return the table of the readers; [] without readers."""
    measured = metrics.get("readers", {})
    entries = measured.get("entries", [])
    rows: list[tuple[str, list[Cell]]] = []
    several = len({entry["question"] for entry in entries}) > 1
    for entry in entries[:MOST_ROWS]:
        cut = "" if entry["cut"] is None else f", cut at {entry['cut']:g}"
        name = f"{entry['question']}: " if several else ""
        cells: list[Cell] = [f"{entry['n_images']} ({entry['n_patients']})"]
        cells += [format_number(rate, entry[rate]) for rate in ("sensitivity", "specificity")]
        cells += [format_number("sensitivity", entry["model_sensitivity"]), format_difference(entry["difference"])]
        for group in ("cases", "others"):
            found = entry["at_decision"].get(group)
            if found is None:
                cells.append(format_reason("no such image"))
            else:
                cells.append("{} ({})".format(*(format_value(found.get(key)) for key in ("p_value", "p_holm"))))
        rows.append((f"{name}{entry['reader']}{cut}", cells))
    columns = ["Reader", "Images (patients)", "Sensitivity", "Specificity", "Model's sensitivity there"]
    columns += ["Difference (model − reader)", "p (Holm), cases", "p (Holm), others"]
    caption = CAPTION
    if measured.get("level", "image") != "image":
        caption += f" Decisions are for whole patients; the model's images are combined by {measured.get('rule')}."
    return [Table("Readers and the model", caption, columns, rows)] if rows else []


@on_axes
def draw_readers(axes: Axes, curve: Mapping[str, Sequence[float]], entries: Sequence[Mapping[str, Any]]) -> None:
    """Draw the model's ROC curve with each reader as a point with both intervals."""
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 4)))
    axes.plot(curve["false_positive_rate"], curve["sensitivity"], color=SERIES[0], label="model")
    for k, name in enumerate(dict.fromkeys(entry["reader"] for entry in entries)):
        points = [entry for entry in entries if entry["reader"] == name and entry["sensitivity"]["value"] is not None]
        colour, marker = SERIES[1 + k % (len(SERIES) - 1)], MARKS[k % len(MARKS)]
        for entry in points:
            hit, clear = entry["sensitivity"], entry["specificity"]
            if clear["value"] is None:
                continue
            alarm = 1 - clear["value"]
            if hit["low"] is not None:
                axes.vlines(alarm, hit["low"], hit["high"], color=colour, linewidth=1.0, alpha=0.7)
            if clear["low"] is not None:
                axes.hlines(hit["value"], 1 - clear["high"], 1 - clear["low"], color=colour, linewidth=1.0, alpha=0.7)
            label = name if entry is points[0] else None
            axes.plot([alarm], [hit["value"]], linestyle="", markersize=7, label=label, color=colour, marker=marker)
    axes.set(xlabel="1 − specificity (false-positive rate)", ylabel="Sensitivity")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.015))
    axes.set_aspect("equal", adjustable="box")
    axes.legend(loc="lower right")
