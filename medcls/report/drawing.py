"""The style of figures: one drawing as PNG for papers and as SVG for light and dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, MultipleLocator, NullFormatter, NullLocator

from medcls.files import write_bytes
from medcls.statistics.predictions import Floats

# Light colour of each role, and what it becomes on a dark page. Each must be a colour that nothing else uses,
# since the dark page is made by replacing it.
INK, MUTED, RULE = "#1d2733", "#667382", "#d5dbe2"
DARK = {INK: "#e6eaf0", MUTED: "#98a4b3", RULE: "#343d4a"}
ACCENT = "#2f7fc1"
# Middle tones: readable on white and on near-black, and apart for the common colour-vision deficiencies.
SERIES = ("#2f7fc1", "#e08a1e", "#2a9d76", "#c4527f", "#8a6fd1", "#7a8a1f", "#3aa3b8", "#b0603a")

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "medcls",
    "text.parse_math": False,  # a class may be called "$5"
}

Draw = Callable[[Axes], None]
P = ParamSpec("P")


def on_axes(draw: Callable[Concatenate[Axes, P], None]) -> Callable[P, Draw]:
    """Turn a function that draws on axes into one that takes the other arguments and returns a drawing."""

    @wraps(draw)
    def build(*args: P.args, **kwargs: P.kwargs) -> Draw:
        return lambda axes: draw(axes, *args, **kwargs)

    return build


def write_figure(draw: Draw, path: Path, *, width: float = 5.2, height: float = 4.2) -> str:
    """Return the drawing as a data URI of an SVG that follows the colour scheme; a PNG is written at `path`.

    Args:
        draw: Draws on one axes, with the colours of this module.
        path: Of the PNG.
        width: Inches.
        height: Inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        draw(figure.add_subplot())
        # Once: a layout engine that stays would draw everything again before each of the two files.
        ConstrainedLayoutEngine().execute(figure)
        raster, vector = io.BytesIO(), io.StringIO()
        figure.savefig(raster, format="png", dpi=160, facecolor="white", metadata={"Software": None})
        figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    write_bytes(path, raster.getvalue())
    return _embed(_follow_scheme(vector.getvalue()).encode(), "image/svg+xml")


def embed_image(path: Path) -> str:
    """Return the image file as a data URI.

    Raises:
        OSError: It cannot be read.
        ValueError: It is neither PNG nor JPEG by its name.
    """
    types = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
    if path.suffix.lower() not in types:
        raise ValueError(f"{path.name} is not a PNG or JPEG; a report can contain only these")
    return _embed(path.read_bytes(), types[path.suffix.lower()])


def _embed(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _follow_scheme(svg: str) -> str:
    """Return the SVG with the neutral colours as variables that a dark scheme sets anew."""
    light, dark = "", ""
    for number, (colour, replacement) in enumerate(DARK.items()):
        svg = svg.replace(colour, f"var(--c{number})")
        light += f"--c{number}:{colour};"
        dark += f"--c{number}:{replacement};"
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    start = svg.index("<svg")
    end = svg.index(">", start) + 1
    return svg[start:end] + style + svg[end:]


@on_axes
def draw_risk(axes: Axes, kept: Floats, wrong: Floats) -> None:
    """Draw the share of wrong classes over the share of images kept, which rises to 1; (N,) each."""
    axes.plot(kept, wrong, color=ACCENT, drawstyle="steps-post")
    axes.set(xlabel="Share of images kept", ylabel="Wrong among them", xlim=(0, 1.01))
    axes.set_ylim(bottom=-0.005)
    axes.xaxis.set_major_locator(MultipleLocator(0.2))


@on_axes
def draw_strengths(
    axes: Axes, points: Sequence[Mapping[str, Any]], *, unchanged: float | None, x_label: str, y_label: str
) -> None:
    """Draw a metric at each strength with its interval; undefined ones are left out.

    Points have "strength", "value", "low" and "high"; `unchanged` is the metric on the images as they are.
    """
    known = [point for point in points if point["value"] is not None]
    if unchanged is not None:
        axes.axhline(unchanged, color=MUTED, linewidth=1.0, linestyle=":")
    strengths, values = [p["strength"] for p in known], [p["value"] for p in known]
    bounds = [[p["value"] if p[side] is None else p[side] for p in known] for side in ("low", "high")]
    reach = np.abs(np.array(bounds) - np.array(values)) if known else None
    axes.errorbar(strengths, values, yerr=reach, color=ACCENT, marker="o", markersize=4, capsize=2.5, linewidth=1.4)
    axes.set(xlabel=x_label, ylabel=y_label)


Entry = Mapping[str, Any]


@on_axes
def draw_arms(axes: Axes, entries: Mapping[str, Entry], *, label: str) -> None:
    """Draw each arm's metric with its interval, one below the other; undefined ones are left out."""
    known = {name: entry for name, entry in entries.items() if entry["value"] is not None}
    places = np.arange(len(known))
    for place, entry in zip(places, known.values(), strict=True):
        if entry["low"] is not None:
            axes.plot([entry["low"], entry["high"]], [place, place], color=ACCENT, linewidth=2.4, alpha=0.55)
        axes.plot(entry["value"], place, marker="o", markersize=6.5, color=ACCENT)
    axes.set_yticks(places, list(known))
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


@on_axes
def draw_folds(axes: Axes, values: Mapping[str, Sequence[float | None]], *, label: str) -> None:
    """Draw each fold's metric of every arm, one thin line per fold, and the means; None where undefined."""
    names = list(values)
    table = np.array([[np.nan if value is None else value for value in values[name]] for name in names])
    places = np.arange(len(names))
    for fold in table.T:
        axes.plot(places, fold, color=MUTED, linewidth=0.8, alpha=0.6, marker="o", markersize=2.5)
    axes.plot(places, table.mean(axis=1), color=ACCENT, linewidth=0, marker="D", markersize=7, label="mean")
    axes.set_xticks(places, names, rotation=20 if len(names) > 3 else 0, ha="right" if len(names) > 3 else "center")
    axes.set_xlim(-0.4, len(names) - 0.6)
    axes.set_ylabel(label)
    axes.legend(loc="best")


@on_axes
def draw_learning_curves(axes: Axes, curves: Mapping[str, Sequence[tuple[float, Entry]]], *, label: str) -> None:
    """Draw each arm's metric, with intervals, over rising numbers of training images; a logarithmic axis."""
    ticks = sorted({size for points in curves.values() for size, _ in points})
    for number, (name, points) in enumerate(curves.items()):
        colour, shift = SERIES[number % len(SERIES)], 1 + 0.02 * (number - (len(curves) - 1) / 2)
        known = [(size * shift, entry) for size, entry in points if entry["value"] is not None]
        sizes, values = [size for size, _ in known], [entry["value"] for _, entry in known]
        for size, entry in known:
            if entry["low"] is not None:
                axes.plot([size, size], [entry["low"], entry["high"]], color=colour, linewidth=1.2, alpha=0.5)
        axes.plot(sizes, values, color=colour, marker="o", markersize=4.5, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(ticks, [f"{round(tick):,}".replace(",", " ") for tick in ticks])
    axes.set(xlabel="Training images", ylabel=label)
    axes.legend(loc="best")
