"""How figures look, and how one drawing becomes a PNG for papers and an SVG that follows light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from medcls.files import write_bytes

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


def write_figure(draw: Draw, path: Path, *, width: float = 5.2, height: float = 4.2) -> str:
    """The drawing as a data URI of an SVG that follows the colour scheme; a PNG is written at `path`.

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
    """The image file as a data URI.

    Raises:
        OSError: It cannot be read.
        ValueError: It is neither PNG nor JPEG by its name.
    """
    types = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
    if path.suffix.lower() not in types:
        raise ValueError(f"{path.name} is no PNG or JPEG; a report can hold only these")
    return _embed(path.read_bytes(), types[path.suffix.lower()])


def _embed(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _follow_scheme(svg: str) -> str:
    """The SVG with the neutral colours as variables that a dark scheme sets anew."""
    light, dark = "", ""
    for number, (colour, replacement) in enumerate(DARK.items()):
        svg = svg.replace(colour, f"var(--c{number})")
        light += f"--c{number}:{colour};"
        dark += f"--c{number}:{replacement};"
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    start = svg.index("<svg")
    end = svg.index(">", start) + 1
    return svg[start:end] + style + svg[end:]
