"""The curves and plots of the report; called without axes, each function returns a drawing for `write_figure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from medcls.report.drawing import ACCENT, INK, MUTED, SERIES, on_axes
from medcls.statistics.calibration import NUM_BINS, compute_reliability
from medcls.statistics.curves import (
    Question,
    compute_net_benefit,
    compute_roc_band,
    count_at_thresholds,
    count_replicates,
)
from medcls.statistics.predictions import Floats, Integers
from medcls.statistics.ranking import compute_curve, compute_precision_recall, compute_roc

GRID = np.linspace(0, 1, 201)


@on_axes
def draw_roc(
    axes: Axes, questions: Sequence[Question], labels: Sequence[str], *, patients: Integers, seed: int
) -> None:
    """Draw the ROC curve of each question with both classes; of a single one with a 95 % band over patients."""
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 4)))
    for k, (question, label) in enumerate(zip(questions, labels, strict=True)):
        false_positive_rate, sensitivity = compute_roc(compute_curve(question.positive, question.score))
        axes.plot(false_positive_rate, sensitivity, color=_colour(k), label=label)
    if len(questions) == 1:
        low, high = compute_roc_band(questions[0], patients, false_positive_rates=GRID, seed=seed)
        axes.fill_between(GRID, low, high, color=ACCENT, alpha=0.16, linewidth=0, label="95 % band")
    _frame_unit_square(axes, "1 − specificity (false-positive rate)", "Sensitivity")
    _add_legend(axes, len(questions))


@on_axes
def draw_precision_recall(axes: Axes, questions: Sequence[Question], labels: Sequence[str]) -> None:
    """Draw the precision-recall curve of each question, with the prevalence that a useless model would reach."""
    for k, (question, label) in enumerate(zip(questions, labels, strict=True)):
        recall, precision = compute_precision_recall(compute_curve(question.positive, question.score))
        axes.step(
            np.append(0, recall),
            np.append(precision[0], precision),
            where="pre",
            color=_colour(k),
            label=label,
        )
        axes.axhline(question.positive.mean(), color=_colour(k), linewidth=0.8, linestyle=":", alpha=0.8)
    _frame_unit_square(axes, "Recall (sensitivity)", "Precision (PPV)")
    _add_legend(axes, len(questions))


@on_axes
def draw_confusion(axes: Axes, confusion: Floats, class_names: Sequence[str]) -> None:
    """Draw counts (K, K), true classes in rows, and row percentages, shaded by the percentage."""
    totals = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, totals, out=np.zeros_like(confusion), where=totals > 0)
    number = len(class_names)
    size = 9.5 if number <= 6 else 7.5
    for row in range(number):
        for column in range(number):
            cell = share[row, column]
            axes.fill_between([column, column + 1], row, row + 1, color=ACCENT, alpha=0.04 + 0.6 * cell, linewidth=0)
            text = f"{confusion[row, column]:.0f}\n{100 * cell:.0f} %"
            weight = "bold" if row == column else "normal"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, weight=weight)
    axes.set(xlim=(0, number), ylim=(number, 0), xlabel="Predicted class", ylabel="True class")
    rows = [f"{name}\n(n = {total:.0f})" for name, total in zip(class_names, totals[:, 0], strict=True)]
    axes.set_xticks(np.arange(number) + 0.5, class_names)
    axes.set_yticks(np.arange(number) + 0.5, rows)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


@on_axes
def draw_reliability(axes: Axes, forecasts: Sequence[tuple[str, Floats, Floats]], *, axis_label: str) -> None:
    """Draw observed frequency against forecast in equal-width bins, dots sized by the rows, with 95 % Wilson bars.

    Forecasts are a name, (n,) forecast in [0, 1] and (n,) outcome 0 or 1 each.

    Source: bars: Wilson 1927; they take the rows of a bin as independent.
    """
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 4)))
    for k, (name, forecast, outcome) in enumerate(forecasts):
        bins = compute_reliability(forecast, outcome, num_bins=NUM_BINS)
        size = 12 + 110 * bins.size / bins.size.max()
        axes.plot(bins.forecast, bins.observed, color=_colour(k), linewidth=1.2, alpha=0.8)
        axes.scatter(bins.forecast, bins.observed, s=size, color=_colour(k), alpha=0.85, label=name, linewidth=0)
        if len(forecasts) == 1:
            z, share, size = 1.959964, bins.observed, bins.size
            centre = (share + z**2 / (2 * size)) / (1 + z**2 / size)
            reach = z * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
            low, high = centre - reach, centre + reach
            axes.vlines(bins.forecast, low, high, color=_colour(k), linewidth=1.0, alpha=0.7)
    _frame_unit_square(axes, axis_label, "Observed frequency")
    if len(forecasts) > 1:
        _add_legend(axes, len(forecasts))


@on_axes
def draw_scores(
    axes: Axes, groups: Sequence[tuple[str, Floats]], *, axis_label: str, limits: tuple[float, float] | None
) -> None:
    """Draw the histogram of (n,) scores in each named group of rows, as shares of the group; empty groups are left out.

    Limits are those of the bins; None = of the data.
    """
    filled = [(k, name, score) for k, (name, score) in enumerate(groups) if len(score)]
    everything = np.concatenate([score for _, _, score in filled])
    edges = np.histogram_bin_edges(everything, bins=25, range=limits).tolist()
    for k, name, score in filled:
        share = np.full(len(score), 1 / len(score))
        axes.hist(score, edges, weights=share, color=_colour(k), alpha=0.14, linewidth=0)
        axes.hist(
            score,
            edges,
            weights=share,
            color=_colour(k),
            histtype="step",
            linewidth=1.5,
            label=f"{name} (n = {len(score)})",
        )
    axes.set(xlabel=axis_label, ylabel="Share of the group")
    axes.legend()


@on_axes
def draw_decision(axes: Axes, question: Question, *, patients: Integers, seed: int) -> None:
    """Draw the net benefit of the model over thresholds, with a 95 % band, beside calling all or none positive."""
    thresholds = np.linspace(0.01, 0.99, 99)
    model, everyone = compute_net_benefit(
        count_at_thresholds(question.positive, question.score, thresholds=thresholds), thresholds=thresholds
    )
    drawn, _ = compute_net_benefit(
        count_replicates(question, patients, thresholds=thresholds, seed=seed), thresholds=thresholds
    )
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    prevalence = float(question.positive.mean())
    axes.axhline(0, color=MUTED, linewidth=1.0)
    axes.text(0.99, 0, "none positive ", color=MUTED, ha="right", va="bottom", fontsize=8)
    axes.plot(thresholds, everyone[0], color=SERIES[1], linewidth=1.3, label="all positive")
    axes.plot(thresholds, model[0], color=ACCENT, label="model")
    axes.fill_between(thresholds, low, high, color=ACCENT, alpha=0.16, linewidth=0, label="95 % band")
    axes.set(xlabel="Threshold probability", ylabel="Net benefit", xlim=(0, 1))
    axes.set_ylim(-0.35 * max(prevalence, 0.05), 1.15 * max(prevalence, 0.05))
    axes.legend()


@on_axes
def draw_by_grade(axes: Axes, true: Floats, predicted: Floats, class_names: Sequence[str]) -> None:
    """Draw the predicted value of each row by its true grade, with boxes (quartiles; whiskers to 1.5 ranges)."""
    grades = true.astype(int)
    groups = [(grade, predicted[grades == grade]) for grade in range(len(class_names)) if (grades == grade).any()]
    jitter = np.random.default_rng(0).uniform(-0.28, 0.28, len(true))
    axes.plot(
        [-0.5, len(class_names) - 0.5],
        [-0.5, len(class_names) - 0.5],
        color=MUTED,
        lw=0.9,
        ls=(0, (4, 4)),
    )
    axes.scatter(true + jitter, predicted, s=7, color=ACCENT, alpha=0.35, linewidth=0, rasterized=len(true) > 5000)
    line = {"color": INK, "linewidth": 1.2}
    axes.boxplot(
        [values for _, values in groups],
        positions=[grade for grade, _ in groups],
        widths=0.62,
        showfliers=False,
        medianprops={"color": SERIES[1], "linewidth": 2},
        boxprops=line,
        whiskerprops=line,
        capprops=line,
    )
    axes.set_xticks(range(len(class_names)), class_names)
    axes.set(xlabel="True grade", ylabel="Predicted value", xlim=(-0.6, len(class_names) - 0.4))


@on_axes
def draw_scatter(axes: Axes, true: Floats, predicted: Floats) -> None:
    """Draw predicted against true values."""
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, color=MUTED, linewidth=0.9, linestyle=(0, (4, 4)))
    axes.scatter(true, predicted, s=9, color=ACCENT, alpha=0.45, linewidth=0, rasterized=len(true) > 5000)
    axes.set(xlabel="True value", ylabel="Predicted value")


@on_axes
def draw_residuals(axes: Axes, true: Floats, predicted: Floats) -> None:
    """Draw the error against the mean of true and predicted value, with the mean error and its limits of agreement.

    Source: Bland & Altman 1986.
    """
    error, middle = predicted - true, (predicted + true) / 2
    axes.scatter(middle, error, s=9, color=ACCENT, alpha=0.45, linewidth=0, rasterized=len(true) > 5000)
    spread = float(error.std(ddof=1)) if len(error) > 1 else 0.0
    for offset, label in ((0.0, "mean error"), (1.96, "+1.96 SD"), (-1.96, "−1.96 SD")):
        level = float(error.mean()) + offset * spread
        axes.axhline(level, color=SERIES[1], linewidth=1.2, linestyle="-" if offset == 0 else "--")
        axes.annotate(
            f"{label}: {level:.2f}".replace("-", "−"),
            (1, level),
            (0, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8,
        )
    axes.set(xlabel="Mean of true and predicted value", ylabel="Predicted − true")


@on_axes
def draw_history(axes: Axes, history: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Draw curves of the named columns of metrics.jsonl over the epochs."""
    for k, name in enumerate(names):
        points = [(row["epoch"], row[name]) for row in history if is_number(row.get(name))]
        axes.plot(*zip(*points, strict=True), color=_colour(k), label=name, marker="o", markersize=2.5)
    axes.set(xlabel="Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def is_number(value: object) -> bool:
    """Return whether a value is a finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _frame_unit_square(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set(xlabel=x_label, ylabel=y_label, xlim=(-0.01, 1.01), ylim=(-0.01, 1.015))
    axes.set_aspect("equal", adjustable="box")


def _add_legend(axes: Axes, curves: int) -> None:
    """Inside for one curve; below for more, where it cannot hide them."""
    handles, labels = axes.get_legend_handles_labels()
    # The middle of a long name goes: a legend that is wider than its figure leaves no room for the curves.
    short = [label if len(label) <= _LONGEST else f"{label[:26]} … {label[-26:]}" for label in labels]
    if curves == 1:
        axes.legend(handles, short, loc="lower right")
    else:
        columns = 2 if max(map(len, short)) <= _LONGEST // 2 else 1
        axes.legend(
            handles,
            short,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
            ncols=columns,
            columnspacing=1.2,
            handlelength=1.4,
        )


_LONGEST = 56
"""Characters of a legend's line; of half a line where there are two columns."""


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]
