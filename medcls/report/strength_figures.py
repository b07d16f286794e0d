"""Curves over how much is referred, and over how much worse the images get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator

from medcls.report.drawing import ACCENT, MUTED, Draw
from medcls.statistics.predictions import Floats


def draw_risk(kept: Floats, wrong: Floats) -> Draw:
    """Share of wrong classes over the share of images kept.

    Args:
        kept: (N,) rising to 1.
        wrong: (N,).
    """

    def draw(axes: Axes) -> None:
        axes.plot(kept, wrong, color=ACCENT, drawstyle="steps-post")
        axes.set(xlabel="Share of images kept", ylabel="Wrong among them", xlim=(0, 1.01))
        axes.set_ylim(bottom=-0.005)
        axes.xaxis.set_major_locator(MultipleLocator(0.2))

    return draw


def draw_strengths(points: Sequence[Mapping[str, Any]], *, unchanged: float | None, x_label: str, y_label: str) -> Draw:
    """A metric at each strength with its interval; undefined ones are left out.

    Args:
        points: {"strength", "value", "low", "high"} each.
        unchanged: The metric on the images as they are.
        x_label: What the strength is.
        y_label: The metric.
    """
    known = [point for point in points if point["value"] is not None]

    def draw(axes: Axes) -> None:
        if unchanged is not None:
            axes.axhline(unchanged, color=MUTED, linewidth=1.0, linestyle=":")
        strengths, values = [p["strength"] for p in known], [p["value"] for p in known]
        bounds = [[p["value"] if p[side] is None else p[side] for p in known] for side in ("low", "high")]
        reach = np.abs(np.array(bounds) - np.array(values)) if known else None
        axes.errorbar(strengths, values, yerr=reach, color=ACCENT, marker="o", markersize=4, capsize=2.5, linewidth=1.4)
        axes.set(xlabel=x_label, ylabel=y_label)

    return draw
