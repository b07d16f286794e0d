"""Tables of the report beyond plain metrics: thresholds, levels, calibration, sets, subgroups, two runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medcls.identity import format_count
from medcls.statistics.aggregation import NOISY_OR
from medcls.statistics.definitions import DEFINITIONS
from medcls.statistics.number_text import (
    Number,
    format_difference,
    format_interval,
    format_number,
    format_p,
    format_reason,
    format_threshold,
    format_value,
)
from medcls.statistics.thresholds import YOUDEN, Rule

Cell = Number | str | None
Row = tuple[str, list[Cell]]
MOST_ROWS = 120


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the report.

    Attributes:
        title: Its heading.
        caption: What a reader needs to know to read it.
        columns: Headings, the first of the row names.
        rows: Name of each row, and its other cells.
    """

    title: str
    caption: str
    columns: list[str]
    rows: list[Row]


def build_verdict_table(judged: Mapping[str, Any] | None) -> Table | None:
    """Return the criteria that were set beforehand with their verdicts; None without a plan."""
    if judged is None:
        return None
    rows: list[Row] = []
    for row in judged["criteria"]:
        number = format_number("", {**row, "reason": ""})
        rows.append(("Primary: " * row["primary"] + row["title"], [number, row["verdict"], row["reason"] or "—"]))
    return Table("Criteria", "", ["Criterion", "Value and interval", "Verdict", "Why"], rows)


def _describe_choice(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """Return where choices were made, and whether before these rows were seen, in words."""
    chosen = metrics.get("chosen_on") or {}
    if chosen.get("frozen", True) is True:
        return "the validation split", "frozen"
    return str(chosen["split"]), f"whether that was before these rows were seen is {chosen['frozen']}"


def build_operating_tables(metrics: Mapping[str, Any], name_question: Callable[[str], str] = str) -> list[Table]:
    """Return the frozen thresholds on these images, and on studies and patients.

    Args:
        metrics: As in metrics.json.
        name_question: Question of a point to its words.
    """
    chosen, decision, where = metrics.get("chosen_on"), metrics.get("decision", {}), ""
    if chosen:
        where = (
            f"Chosen on {chosen['where']}; {_describe_choice(metrics)[1]}. Youden's rule: {YOUDEN}. A rule's target "
            "was reached there and need not be reached here. Intervals are over patients; that of a threshold is over "
            "the patients it was chosen on."
        )
        if not decision.get("thresholds", True):
            where += " The decision above uses none of these thresholds."
    levels = {f"{level} level": entry for level, entry in metrics.get("levels", {}).items()}
    tables = []
    for name, entry in {"images": metrics, **levels}.items():
        points = [{**p, "question": name_question(p["question"])} for p in entry.get("operating_points", [])]
        if points:
            tables += _build_operating(name, points, where, rule=decision.get("rule", ""))
    return tables


def _build_operating(name: str, points: Sequence[Mapping[str, Any]], where: str, *, rule: str) -> list[Table]:
    """Rates at each threshold, and where prevalences are stated a second table of the predictive values there."""
    rates = ["sensitivity", "specificity", "ppv", "npv", "lr_positive", "lr_negative"]
    stated = list(dict.fromkeys(rate for point in points for rate in point.get("rates", {}) if "_at_" in rate))
    questions = list(dict.fromkeys(point["question"] for point in points))
    several = len(questions) > 1
    rows: list[Row] = []
    stated_rows: list[Row] = []
    for point in points[:MOST_ROWS]:
        head = Rule(point["kind"], point["target"]).mark(rule)
        if several:
            head = f"{point['question']}: {head}"
        if "rates" not in point:
            rows.append((head, [format_reason(str(point.get("reason", "")))]))
            continue
        low, high = point.get("threshold_interval", (None, None))
        interval = ""
        if low is not None:
            interval = f"{format_threshold(low)} – {'never' if high is None else format_threshold(high)}"
        cells: list[Cell] = [Number(format_threshold(point["threshold"]), interval, "", None)]
        cells += ["{tp} / {fn}".format(**point["counts"]), "{fp} / {tn}".format(**point["counts"])]
        rows.append((head, cells + [format_number(rate, point["rates"][rate]) for rate in rates]))
        stated_rows.append((head, [format_number(rate, point["rates"][rate]) for rate in stated]))
    columns = ["Rule", "Threshold", "Found / missed", "False / cleared", *(DEFINITIONS[rate].title for rate in rates)]
    if not several:
        where = f"Positive is {questions[0]}. {where}".strip()
    tables = [Table(f"Operating points: {name}", where, columns, rows)]
    if stated and stated_rows:
        names = [rate.split("_at_") for rate in stated]
        columns = ["Rule", *(f"{DEFINITIONS[name].title} at prevalence {share}" for name, share in names)]
        caption = "PPV and NPV at the stated prevalence, by Bayes' theorem."
        tables.append(Table(f"At a stated prevalence: {name}", caption, columns, stated_rows))
    return tables


def build_level_table(metrics: Mapping[str, Any], headlines: Sequence[str]) -> list[Table]:
    """Return the headline numbers of images, studies and patients."""
    levels = metrics.get("levels", {})
    names = [name for name in headlines if name in metrics]
    if not levels or not names:
        return []
    rows: list[Row] = [
        ("image", ["—", str(metrics["n_images"]), *(format_number(name, metrics[name]) for name in names)])
    ]
    caption = "How images are combined was not chosen."
    for level, entry in levels.items():
        if "metrics" not in entry:
            rows.append((level, [format_reason(entry["reason"])]))
            continue
        rule, size = entry["rule"].replace("_", "-"), str(entry["n_units"])
        if entry["chosen"]:
            where = _describe_choice(metrics)[0]
            caption = f"How images are combined was chosen on {where} (mean; max, the highest; or {NOISY_OR})."
        else:
            rule += " (not chosen)"
        if entry["left_out"]:
            size += f" ({entry['left_out']} with several classes left out)"
        rows.append((level, [rule, size, *(format_number(name, entry["metrics"][name]) for name in names)]))
    columns = ["Level", "Combined by", "Number", *(DEFINITIONS[name].title for name in names)]
    return [Table("Images, studies, patients", caption, columns, rows)]


def build_recalibration_table(metrics: Mapping[str, Any]) -> list[Table]:
    """Calibration metrics before and after each frozen map; several labels show the means over them."""
    measured = metrics.get("recalibration")
    if not measured:
        return []
    methods, chosen = measured["methods"], measured["chosen"]
    names = [name for name in methods["none"] if name in DEFINITIONS]
    rows: list[Row] = []
    for method, found in methods.items():
        title = "as it is" if method == "none" else method
        if method == chosen["method"]:
            title += " (chosen)"
        rows.append((title, [format_number(name, found[name]) for name in names]))
    where, frozen = _describe_choice(metrics)
    reason = ""
    if "reason" in chosen:
        reason = f"None was chosen: {chosen['reason']}. "
    caption = (
        f"Fitted on {where}; {frozen}. A map is chosen if it lowers the log loss of held-out patients "
        f"there by more than chance; only maps that the number of patients supports are tried. {reason}"
        "All other numbers in this report use the scores without recalibration."
    )
    return [Table("Recalibration", caption, ["Map", *(DEFINITIONS[name].title for name in names)], rows)]


def build_conformal_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Coverage and size of the sets, and what is left when images without a single class are referred."""
    measured = metrics.get("conformal")
    if not measured:
        return []
    least = 1 - measured["alpha"]
    promise = f"{least:.0%}".replace("%", " %")
    chosen = metrics.get("chosen_on") or {}
    bounds = ""
    if chosen:
        bounds = f"Their bounds were set on {chosen['where']}. "
    tables = []
    for problem in measured["problems"]:
        title = ": ".join(filter(None, ["Conformal sets and referral", problem["label"]]))
        marginal, by_class = problem["marginal"], problem["by_class"]
        rows: list[Row] = []
        for name in ("", *problem["classes"]):
            suffix = f"_{name}" if name else ""
            cells = [marginal[f"coverage{suffix}"], by_class[f"coverage{suffix}"]]
            cells += [by_class[f"{what}{suffix}"] for what in ("referred", "right_if_kept")]
            rows.append((name or "all", [format_number("recall", cell) for cell in cells]))
        one, each = (format_value(found["size"]["value"]) for found in (marginal, by_class))
        size = f"one bound for all {one}; a bound for each class {each}"
        caption = (
            f"Each image gets a set of classes; sets are meant to contain the true class in {promise}. {bounds}"
            f"{measured['assumption']} Each patient counts equally. An image is referred if its set, with a bound for "
            "each class, does not contain exactly one class; right if kept: among the others, the share whose single "
            f"class is true. One bound for all gives no guarantee for a single class. Mean size: {size}."
        )
        caption = " ".join([caption, *_say_unbounded(problem), *_say_broken(problem, least, promise)])
        columns = ["True class", "Coverage, one bound", "Coverage, bound by class", "Referred", "Right if kept"]
        tables.append(Table(title, caption, columns, rows))
    return tables


def _say_unbounded(problem: Mapping[str, Any]) -> list[str]:
    """Sentences on what no bound could be set for, whose coverage of 1 shows nothing."""
    said = []
    # Results of 0.2.0 have no list.
    for entry in problem.get("unbounded", []):
        counts = f"{entry['needed']} needed"
        if entry["patients"] is not None:
            counts = f"{format_count(entry['patients'], 'patient')}; {counts}"
        name, holds = entry["class"], "every set contains it"
        if not name:
            name, holds = "all classes together", "with one bound for all every set contains every class"
        said.append(f"No bound could be set for {name} ({counts}): {holds}.")
    return said


def _say_broken(problem: Mapping[str, Any], least: float, promise: str) -> list[str]:
    """Sentences on promised coverages that are lower here, beyond chance."""
    by_class = problem["by_class"]
    promised = {"one bound for all": problem["marginal"]["coverage"], "a bound for each class": by_class["coverage"]}
    promised |= {f"true class {name}, its own bound": by_class[f"coverage_{name}"] for name in problem["classes"]}
    return [
        f"The promise is not kept here ({name}): the interval {format_interval(entry['low'], entry['high'])} of the "
        f"measured coverage is below {promise}."
        for name, entry in promised.items()
        if entry["high"] is not None and entry["high"] < least
    ]


def build_subgroup_table(metrics: Mapping[str, Any]) -> list[Table]:
    """Sizes and main numbers of each group; small ones without numbers."""
    groups = metrics.get("subgroups", [])
    names = list(dict.fromkeys(name for group in groups for name in group["metrics"]))
    rows: list[Row] = []
    for group in groups:
        cells: list[Cell] = [str(group["n_images"]), str(group.get("n_patients", "—"))]
        if group["metrics"]:
            cells += [format_number(name, group["metrics"][name]) for name in names]
        else:
            cells.append(format_reason(group["reason"]))
        rows.append((f"{group['column']}: {group['value']}".rstrip(": "), cells))
    caption = "A difference within the intervals is not evidence; more groups make a chance difference likelier."
    columns = ["Group", "Images", "Patients", *(DEFINITIONS[name].title for name in names)]
    return [Table("Subgroups", caption, columns, rows[:MOST_ROWS])] if rows else []


def build_shortcut_table(metrics: Mapping[str, Any]) -> list[Table]:
    """Return how well columns such as the manufacturer are told from the features."""
    rows: list[Row] = []
    for name, found in metrics.get("shortcuts", {}).items():
        if "reason" in found:
            rows.append((name, [format_reason(found["reason"])]))
            continue
        values = ", ".join(f"{value} ({count})" for value, count in found["values"].items())
        cells: list[Cell] = [values]
        for side in ("features", "labels"):
            # Results of 0.2.0 have no p value.
            cells += [format_number("auc", found[side]), format_p(found[side].get("p_value"))]
        rows.append((name, cells))
    caption = (
        "AUC on held-out patients, one value against the rest, mean of five folds; 0.5 is chance, p is the "
        "share of permutations of the patients' values with an AUC this high. Features that reveal the site better "
        "than the labels do leave room for a shortcut; they do not prove that the model uses it."
    )
    columns = ["Column", "Values (patients)", "AUC from the features", "p", "AUC from only the labels", "p"]
    return [Table("Site in the features", caption, columns, rows)] if rows else []


def build_comparison_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Paired differences of two runs."""
    compared = metrics.get("comparison")
    if not compared:
        return []
    one, two = compared["first"], compared["second"]
    columns = ["Number", one, two, "Difference", "p", "p (Holm)"]
    rows = [(DEFINITIONS[name].title, _difference(entry)) for name, entry in compared["metrics"].items()]
    caption = f"{one} minus {two}; intervals and p values over patients, paired; Holm over this table."
    if compared.get("note"):
        caption += f" {compared['note']}"
    tables = [Table(f"{one} against {two}", caption, columns, rows)]
    areas = [(name, _difference(entry)[2:]) for name, entry in compared["auc"].items()]
    if areas:
        caption = "Paired DeLong test, patients as the unit; Holm over this table."
        tables.append(Table("AUC by DeLong", caption, ["Question", "Difference", "p", "p (Holm)"], areas))
    if "mcnemar" in compared:
        found = compared["mcnemar"]
        counts = str(found["only_first"]), str(found["only_second"])
        cells: list[Cell] = [*counts, format_p(found["p_value"]), found["method"]]
        columns = ["Right or wrong", f"only {one} right", f"only {two} right", "p", "Test"]
        tables.append(Table("McNemar", "Images that only one run classifies correctly.", columns, [("images", cells)]))
    return tables


def _difference(entry: Mapping[str, Any]) -> list[Cell]:
    both: list[Cell] = [format_value(entry.get("first")), format_value(entry.get("second"))]
    return [*both, format_difference(entry), format_p(entry["p_value"]), format_p(entry["p_holm"])]
