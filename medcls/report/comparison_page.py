"""Write the page of a comparison, in the style of the evaluation's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medcls.files import write_bytes
from medcls.identity import PER_IMAGE, describe_patients, format_count, name_units
from medcls.report.assessed_tables import Cell, Row, Table
from medcls.report.content import INTENDED_USE
from medcls.report.drawing import draw_arms, draw_folds, draw_learning_curves
from medcls.report.panels import Panel, PanelPlan, write_panel
from medcls.report.templates import load_template
from medcls.statistics.definitions import find_definition, name_metric
from medcls.statistics.number_text import Number, format_interval, format_number, format_p, format_value

Results = Mapping[str, Any]
ALL = "all"
_COLUMNS = 7  # more do not fit the page
_TESTS = {
    "kfold": "corrected resampled t test (Nadeau & Bengio 2003)",
    "repeated": "corrected resampled t test (Nadeau & Bengio 2003; Bouckaert & Frank 2004)",
    "5x2": "5x2cv F test (Alpaydin 1999)",
    "holdout": "bootstrap over patients and seeds",
}


def write_comparison_page(folder: Path, results: Results) -> Path:
    """Write report.html and its figures; return the page's path.

    The page needs no network, runs no script, follows the reader's light or dark scheme, and shows no patient or image
    identifier.
    """
    # All training images first: what a reader asks about.
    sizes = sorted(results["sizes"], key=lambda size: size != ALL)
    page = load_template("report", "comparison.html.j2").render(
        results=results,
        title=name_metric(results["metric"]),
        test=name_units(_TESTS[results["design"]["kind"]], _origin(results)),
        units=name_units("patients", _origin(results)),
        unit=name_unit(results),
        facts=list_facts(results),
        notes=list_notes(results),
        panels=draw_panels(results, folder / "figures"),
        arm_tables=[_name_table(table, results) for size in sizes for table in build_arm_tables(results, size)],
        pair_tables=[_name_table(table, results) for size in sizes for table in build_pair_tables(results, size)],
        folds=[build_fold_table(results, size) for size in sizes],
        cost=build_cost_table(results),
        definitions=list_definitions(results),
        intended_use=INTENDED_USE,
    )
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path


def list_facts(results: Results) -> list[tuple[str, str]]:
    """Numbers for the head of the page."""
    design = results["design"]
    first = next(iter(next(iter(results["sizes"].values()))["arms"].values()))["folds"]
    once = [fold for fold in first if fold["repeat"] == first[0]["repeat"]]
    shape = {
        "kfold": f"{design['k']} folds",
        "repeated": f"{design['repeats']} × {design['k']} folds",
        "5x2": "5 × 2 folds",
        "holdout": f"{design['repeats']} seeds, one test set",
    }[design["kind"]]
    return [
        (str(len(results["arms"])), "arms"),
        (shape, name_units("by patient", _origin(results))),
        (str(sum(fold["images"] for fold in once)), "images tested"),
        (_count_patients(sum(fold["patients"] for fold in once), results), "patients"),
    ]


def _count_patients(number: int, results: Results) -> str:
    return "unknown" if _origin(results) == PER_IMAGE else str(number)


def list_notes(results: Results) -> list[str]:
    """Return what a reader has to know first."""
    notes = [
        f"arm {arm} failed in {one['work']} (exit code {one['exit_code']}) and is left out of every table"
        for arm, one in results["failed"].items()
    ]
    openings = results["design"]["openings"]
    if openings:
        notes.append(f"the store's test rows were opened {format_count(openings, 'time')} for this comparison")
    unknown = describe_patients(_origin(results)) if "patients_from" in results else ""
    return [*filter(None, [unknown]), *results.get("notes", []), *notes]


def _origin(results: Results) -> str:
    """Return what told patients apart in the store; "" if it is not recorded."""
    return str(results.get("patients_from", ""))


def _name_table(table: Table, results: Results) -> Table:
    """Return the table with its caption in the unit that is known."""
    return replace(table, caption=name_units(table.caption, _origin(results)))


def name_unit(results: Results) -> str:
    """Return what numbers are averaged over: "fold", or "seed" of a holdout."""
    return "seed" if results["design"]["kind"] == "holdout" else "fold"


def describe_spread(results: Results) -> str:
    """Return what a number is the mean of, and what its interval is over."""
    unit = name_unit(results)
    over = name_units("patients", _origin(results))
    return f"Mean over {unit}s with 95 % interval over {over}" + " and seeds" * (unit == "seed")


def draw_panels(results: Results, figures: Path) -> list[Panel]:
    """Return the figures: all arms, their folds, and over sizes."""
    metric, label = results["metric"], name_metric(results["metric"])
    largest = max(results["sizes"], key=lambda size: math.inf if size == ALL else int(size))
    arms = results["sizes"][largest]["arms"]
    entries = {name: arm["metrics"][metric] for name, arm in arms.items()}
    by_fold = {name: [fold["metrics"][metric] for fold in arm["folds"]] for name, arm in arms.items()}
    what = f"Training images: {largest}."
    height = 1.4 + 0.42 * len(arms)
    mean = f"{describe_spread(results)}. {what}"
    unit = name_unit(results)
    lines = f"Each line is one {unit}, the same for all arms. {what}"
    plans = [
        PanelPlan("arms", label, mean, draw_arms(entries, label=label), 5.6, max(3.2, height)),
        PanelPlan("folds", f"{label} in each {unit}", lines, draw_folds(by_fold, label=label), 5.6, max(3.2, height)),
    ]
    if len(results["sizes"]) > 1:
        curves = draw_learning_curves(build_curves(results), label=label)
        caption = f"{describe_spread(results)}; validation and test rows are the same at every size."
        plans.append(PanelPlan("learning_curves", "Learning curves", caption, curves, 9.0, 4.6))
    return [write_panel(plan, figures) for plan in plans]


def build_curves(results: Results) -> dict[str, list[tuple[float, Mapping[str, Any]]]]:
    """Arm -> its metric at each number of training images, rising; "all" is the mean over the folds."""
    images: dict[str, list[int]] = {}
    for fold in results["folds"]:
        images.setdefault(str(fold["size"] or ALL), []).append(fold["images"]["train"])
    sizes = sorted((sum(images[size]) / len(images[size]), size) for size in results["sizes"])
    names = next(iter(results["sizes"].values()))["arms"]
    return {
        name: [(number, results["sizes"][size]["arms"][name]["metrics"][results["metric"]]) for number, size in sizes]
        for name in names
    }


def build_arm_tables(results: Results, size: str) -> list[Table]:
    """Arms in rows, the metrics in columns: the main ones, and a table of further ones."""
    unit = name_unit(results)
    over = "patients and seeds" if unit == "seed" else "patients, for these trained models"
    caption = f"Computed within each {unit} and averaged; 95 % intervals by bootstrap over {over}."
    arms = results["sizes"][size]["arms"]
    tables = []
    for part, metrics in enumerate(_divide([results["metric"], *results["secondary"]])):
        rows: list[Row] = [
            (name, [format_number(metric, arm["metrics"][metric]) for metric in metrics]) for name, arm in arms.items()
        ]
        further = ", further metrics" * (part > 0)
        columns = ["Arm", *map(name_metric, metrics)]
        tables.append(Table(f"Arms{further}, training images: {size}", caption * (part == 0), columns, rows))
    return tables


def _divide(metrics: Sequence[str]) -> list[list[str]]:
    return [list(metrics[start : start + _COLUMNS]) for start in range(0, len(metrics), _COLUMNS)]


def build_pair_tables(results: Results, size: str) -> list[Table]:
    """Return all pairs in the main metric, and in a second table the other metrics."""
    pairs = results["sizes"][size]["pairs"]
    main = results["metric"]
    tables = [_build_pairs(pairs[main], name_metric(main), results, size)]
    caption = "Differences; p values are Holm-corrected over the pairs of a metric, not over the metrics."
    for metrics in _divide([metric for metric in results["secondary"] if metric in pairs]):
        rows: list[Row] = []
        for pair, *others in zip(pairs[main], *(pairs[metric] for metric in metrics), strict=True):
            cells: list[Cell] = []
            for other in others:
                p_holm = (other["test"] or other["bootstrap"])["p_holm"]
                cells.append(Number(_signed(other["difference"]), f"p {format_p(p_holm)}", "", None))
            rows.append((f"{pair['first']} − {pair['second']}", cells))
        title = f"Pairs in other metrics, training images: {size}"
        tables.append(Table(title, caption, ["Pair", *map(name_metric, metrics)], rows))
    return [table for table in tables if table.rows]


def _build_pairs(pairs: Sequence[Mapping[str, Any]], title: str, results: Results, size: str) -> Table:
    columns = ["Pair", "Difference", "Bootstrap interval", "p of the bootstrap", "Holm"]
    caption = f"{title}: {results['direction']}. Test: {_TESTS[results['design']['kind']]}"
    if any(pair["test"] for pair in pairs):
        columns[2:2] = ["p of the test", "Holm"]
        caption += "; the bootstrap keeps the trained models and resamples patients"
    rows: list[Row] = []
    for pair in pairs:
        test, drawn = pair["test"], pair["bootstrap"]
        undefined = "undefined in a fold" * (pair["difference"] is None)
        bounds = format_interval(drawn["low"], drawn["high"]) or "—"
        cells: list[Cell] = [
            Number(_signed(pair["difference"]), "", undefined, None),
            Number(bounds, "", str(drawn.get("reason") or drawn.get("note") or ""), None),
            format_p(drawn["p_value"]),
            format_p(drawn["p_holm"]),
        ]
        if test:
            interval = format_interval(test["low"], test["high"])
            cells[0] = Number(_signed(pair["difference"]), interval, undefined, None)
            cells[1:1] = [format_p(test["p_value"]), format_p(test["p_holm"])]
        rows.append((f"{pair['first']} − {pair['second']}", cells))
    caption += ". Holm over the pairs of this table."
    return Table(f"Pairs in {title}, training images: {size}", caption, columns, rows)


def _signed(value: float | None) -> str:
    return f"+{format_value(value)}" if value is not None and value > 0 else format_value(value)


def build_fold_table(results: Results, size: str) -> Table:
    """Folds in rows, arms in columns: the main metric."""
    arms = results["sizes"][size]["arms"]
    folds = next(iter(arms.values()))["folds"]
    rows: list[Row] = []
    for k, fold in enumerate(folds):
        values = [format_value(arm["folds"][k]["metrics"][results["metric"]]) for arm in arms.values()]
        rows.append((fold["fold"], [str(fold["images"]), _count_patients(fold["patients"], results), *values]))
    unit = name_unit(results)
    columns = [unit.capitalize(), "Images tested", "Patients", *arms]
    return Table(f"{name_metric(results['metric'])} by {unit}, training images: {size}", "", columns, rows)


def build_cost_table(results: Results) -> Table:
    """Seconds of all folds together."""
    rows: list[Row] = []
    for size, found in results["sizes"].items():
        for name, arm in found["arms"].items():
            cost = arm["cost"]
            seconds = [cost[key] for key in ("train_seconds", "shared_seconds", "evaluate_seconds")]
            speed = cost["train_images_per_second"]
            cells: list[Cell] = [size, str(cost["trainings"])]
            numbers = [*((each, 0) for each in seconds), (speed, 1)]
            rows.append((name, [*cells, *("—" if each is None else f"{each:.{digits}f}" for each, digits in numbers)]))
    caption = (
        "Wall time of whole processes, including start-up; shared steps on another store serve all folds and arms. "
        "Cached features are computed by the first run that needs them, and are free for later ones."
    )
    columns = ["Arm", "Training images", "Trainings", "Training, s", "Shared steps, s", "Evaluation, s", "Images/s"]
    return Table("Cost", caption, columns, rows)


def list_definitions(results: Results) -> list[tuple[str, str, str]]:
    """Title, text and source of each metric that is shown."""
    found = [find_definition(metric) for metric in (results["metric"], *results["secondary"])]
    known = {one.title: one for one in found if one is not None}
    return [(one.title, one.text, one.source) for one in known.values()]
