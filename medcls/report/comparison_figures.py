"""The figures of a comparison's report: arms with intervals, folds, learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from medcls.report.drawing import ACCENT, MUTED, SERIES, Draw

Entry = Mapping[str, Any]


def draw_arms(entries: Mapping[str, Entry], *, label: str) -> Draw:
    """Each arm's metric with its interval, one below the other; undefined ones are left out.

    Args:
        entries: Arm -> {"value", "low", "high"}.
        label: Of the axis.
    """
    known = {name: entry for name, entry in entries.items() if entry["value"] is not None}

    def draw(axes: Axes) -> None:
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

    return draw


def draw_folds(values: Mapping[str, Sequence[float | None]], *, label: str) -> Draw:
    """Each fold's metric of every arm, one thin line a fold, and the means.

    Args:
        values: Arm -> its metric in each fold; None where undefined.
        label: Of the axis.
    """
    names = list(values)
    table = np.array([[np.nan if value is None else value for value in values[name]] for name in names])

    def draw(axes: Axes) -> None:
        places = np.arange(len(names))
        for fold in table.T:
            axes.plot(places, fold, color=MUTED, linewidth=0.8, alpha=0.6, marker="o", markersize=2.5)
        axes.plot(places, table.mean(axis=1), color=ACCENT, linewidth=0, marker="D", markersize=7, label="mean")
        axes.set_xticks(places, names, rotation=20 if len(names) > 3 else 0, ha="right" if len(names) > 3 else "center")
        axes.set_xlim(-0.4, len(names) - 0.6)
        axes.set_ylabel(label)
        axes.legend(loc="best")

    return draw


def draw_learning_curves(curves: Mapping[str, Sequence[tuple[float, Entry]]], *, label: str) -> Draw:
    """Each arm's metric over the number of training images, with intervals; a logarithmic axis.

    Args:
        curves: Arm -> (training images, {"value", "low", "high"}), rising.
        label: Of the axis.
    """

    def draw(axes: Axes) -> None:
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

    return draw
