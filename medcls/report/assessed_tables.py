"""Tables of the report beyond plain metrics: thresholds, levels, calibration, sets, subgroups, two runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medcls.identity import format_count
from medcls.statistics.aggregation import NOISY_OR
from medcls.statistics.definitions import DEFINITIONS, find_definition
from medcls.statistics.number_text import Number, format_number, format_p, format_threshold, format_value
from medcls.statistics.thresholds import YOUDEN, Rule

Cell = Number | str | None
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
    rows: list[tuple[str, list[Cell]]]


def build_verdict_table(judged: Mapping[str, Any] | None) -> Table | None:
    """Return the criteria that were set beforehand with their verdicts; None without a plan."""
    if judged is None:
        return None
    rows: list[tuple[str, list[Cell]]] = [
        (
            ("Primary: " if row["primary"] else "") + row["title"],
            [format_number("", row | {"reason": ""}), row["verdict"], row["reason"] or "—"],
        )
        for row in judged["criteria"]
    ]
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
    chosen = metrics.get("chosen_on") or {}
    frozen = _describe_choice(metrics)[1]
    where = (
        f"Chosen on {chosen['where']}; {frozen}. Youden's rule: {YOUDEN}. A rule's target was reached there "
        "and need not be reached here. Intervals are over patients; that of a threshold is over the patients it was "
        "chosen on."
        if chosen
        else ""
    )
    if chosen and not metrics.get("decision", {}).get("thresholds", True):
        where += " The decision above uses none of these thresholds."
    found = [("images", metrics.get("operating_points", []))]
    found += [
        (f"{level} level", entry.get("operating_points", [])) for level, entry in metrics.get("levels", {}).items()
    ]
    rule = metrics.get("decision", {}).get("rule", "")
    named = [(n, [point | {"question": name_question(point["question"])} for point in points]) for n, points in found]
    return [table for name, points in named if points for table in _build_operating(name, points, where, rule=rule)]


def _build_operating(name: str, points: Sequence[Mapping[str, Any]], where: str, *, rule: str) -> list[Table]:
    """Rates at each threshold, and where prevalences are stated a second table of the predictive values there."""
    rates = ["sensitivity", "specificity", "ppv", "npv", "lr_positive", "lr_negative"]
    stated = list(dict.fromkeys(rate for point in points for rate in point.get("rates", {}) if "_at_" in rate))
    questions = list(dict.fromkeys(point["question"] for point in points))
    several = len(questions) > 1
    rows: list[tuple[str, list[Cell]]] = []
    stated_rows: list[tuple[str, list[Cell]]] = []
    for point in points[:MOST_ROWS]:
        one = Rule(point["kind"], point["target"])
        title = one.title + (" (decision)" if one.name == rule else "")
        head = f"{point['question']}: {title}" if several else title
        if "rates" not in point:
            rows.append((head, [Number("—", "", str(point.get("reason", "")), None)]))
            continue
        counts = point["counts"]
        low, high = point.get("threshold_interval", (None, None))
        interval = (
            "" if low is None else f"{format_threshold(low)} – {'never' if high is None else format_threshold(high)}"
        )
        cells: list[Cell] = [Number(format_threshold(point["threshold"]), interval, "", None)]
        cells += [f"{counts['tp']} / {counts['fn']}", f"{counts['fp']} / {counts['tn']}"]
        rows.append((head, cells + [format_number(rate, point["rates"][rate]) for rate in rates]))
        stated_rows.append((head, [format_number(rate, point["rates"][rate]) for rate in stated]))
    columns = ["Rule", "Threshold", "Found / missed", "False / cleared", *(DEFINITIONS[rate].title for rate in rates)]
    caption = where if several else f"Positive is {questions[0]}. {where}".strip()
    tables = [Table(f"Operating points: {name}", caption, columns, rows)]
    if stated and stated_rows:
        columns = ["Rule", *(_name_stated(rate) for rate in stated)]
        caption = "PPV and NPV at the stated prevalence, by Bayes' theorem."
        tables.append(Table(f"At a stated prevalence: {name}", caption, columns, stated_rows))
    return tables


def _name_stated(rate: str) -> str:
    name, prevalence = rate.split("_at_")
    return f"{DEFINITIONS[name].title} at prevalence {prevalence}"


def build_level_table(metrics: Mapping[str, Any], headlines: Sequence[str]) -> list[Table]:
    """Return the headline numbers of images, studies and patients."""
    levels = metrics.get("levels", {})
    names = [name for name in headlines if name in metrics]
    if not levels or not names:
        return []
    rows: list[tuple[str, list[Cell]]] = [
        ("image", ["—", str(metrics["n_images"]), *(format_number(name, metrics[name]) for name in names)])
    ]
    for level, entry in levels.items():
        if "metrics" not in entry:
            rows.append((level, [Number("—", "", entry["reason"], None)]))
            continue
        rule = entry["rule"].replace("_", "-") + ("" if entry["chosen"] else " (not chosen)")
        size = f"{entry['n_units']}" + (
            f" ({entry['left_out']} with several classes left out)" if entry["left_out"] else ""
        )
        rows.append((level, [rule, size, *(format_number(name, entry["metrics"][name]) for name in names)]))
    chosen = any(entry.get("chosen") for entry in levels.values())
    where = _describe_choice(metrics)[0]
    how = f"was chosen on {where} (mean; max, the highest; or {NOISY_OR})" if chosen else "was not chosen"
    caption = f"How images are combined {how}."
    columns = ["Level", "Joined by", "Number", *(DEFINITIONS[name].title for name in names)]
    return [Table("Images, studies, patients", caption, columns, rows)]


def build_recalibration_table(metrics: Mapping[str, Any]) -> list[Table]:
    """Calibration metrics before and after each frozen map; several labels show the means over them."""
    measured = metrics.get("recalibration")
    if not measured:
        return []
    methods, chosen = measured["methods"], measured["chosen"]["method"]
    names = [name for name in methods["none"] if name in DEFINITIONS]
    rows: list[tuple[str, list[Cell]]] = [
        (
            ("as it is" if method == "none" else method) + (" (chosen)" if method == chosen else ""),
            [format_number(name, methods[method][name]) for name in names],
        )
        for method in methods
    ]
    reason = f"None was chosen: {measured['chosen']['reason']}. " if measured["chosen"].get("reason") else ""
    where, frozen = _describe_choice(metrics)
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
    bounds = f"Their bounds were set on {chosen['where']}. " if chosen else ""
    tables = []
    for problem in measured["problems"]:
        label = f": {problem['label']}" if problem["label"] else ""
        rows: list[tuple[str, list[Cell]]] = []
        for name in ("", *problem["classes"]):
            suffix = f"_{name}" if name else ""
            marginal, by_class = problem["marginal"], problem["by_class"]
            cells = [marginal[f"coverage{suffix}"], by_class[f"coverage{suffix}"]]
            cells += [by_class[f"{what}{suffix}"] for what in ("referred", "right_if_kept")]
            rows.append((name or "all", [format_number("recall", cell) for cell in cells]))
        size = "; ".join(
            f"{title} {format_value(problem[kind]['size']['value'])}"
            for title, kind in (("one bound for all", "marginal"), ("a bound for each class", "by_class"))
        )
        caption = (
            f"Each image gets a set of classes; sets are meant to contain the true class in {promise}. {bounds}"
            f"{measured['assumption']} Each patient counts equally. An image is referred if its set, with a bound for "
            "each class, does not contain exactly one class; right if kept: among the others, the share whose single "
            f"class is true. One bound for all gives no guarantee for a single class. Mean size: {size}."
        )
        caption = " ".join([caption, *_say_unbounded(problem), *_say_broken(problem, least, promise)])
        columns = ["True class", "Coverage, one bound", "Coverage, bound by class", "Referred", "Right if kept"]
        tables.append(Table(f"Conformal sets and referral{label}", caption, columns, rows))
    return tables


def _say_unbounded(problem: Mapping[str, Any]) -> list[str]:
    """Sentences on what no bound could be set for, whose coverage of 1 shows nothing."""
    said = []
    # Results of 0.2.0 have no list.
    for entry in problem.get("unbounded", []):
        have = "" if entry["patients"] is None else f"{format_count(entry['patients'], 'patient')}; "
        name = entry["class"] or "all classes together"
        holds = "every set contains it" if entry["class"] else "with one bound for all every set contains every class"
        said.append(f"No bound could be set for {name} ({have}{entry['needed']} needed): {holds}.")
    return said


def _say_broken(problem: Mapping[str, Any], least: float, promise: str) -> list[str]:
    """Sentences on promised coverages that are lower here, beyond chance."""
    promised = {
        "one bound for all": problem["marginal"]["coverage"],
        "a bound for each class": problem["by_class"]["coverage"],
    }
    promised |= {
        f"true class {name}, its own bound": problem["by_class"][f"coverage_{name}"] for name in problem["classes"]
    }
    return [
        f"The promise is not kept here ({name}): the interval {format_value(entry['low'])} – "
        f"{format_value(entry['high'])} of the measured coverage is below {promise}."
        for name, entry in promised.items()
        if entry["high"] is not None and entry["high"] < least
    ]


def build_subgroup_table(metrics: Mapping[str, Any]) -> list[Table]:
    """Sizes and main numbers of each group; small ones without numbers."""
    groups = metrics.get("subgroups", [])
    names = list(dict.fromkeys(name for group in groups for name in group["metrics"]))
    rows: list[tuple[str, list[Cell]]] = []
    for group in groups:
        cells: list[Cell] = [str(group["n_images"]), str(group.get("n_patients", "—"))]
        if group["metrics"]:
            cells += [format_number(name, group["metrics"][name]) for name in names]
        else:
            cells.append(Number("—", "", group["reason"], None))
        rows.append((f"{group['column']}: {group['value']}".rstrip(": "), cells))
    titles = [definition.title for definition in (find_definition(name) for name in names) if definition]
    caption = "A difference within the intervals is not evidence; more groups make a chance difference likelier."
    columns = ["Group", "Images", "Patients", *titles]
    return [Table("Subgroups", caption, columns, rows[:MOST_ROWS])] if rows else []


def build_shortcut_table(metrics: Mapping[str, Any]) -> list[Table]:
    """Return how well columns such as the manufacturer are told from the features."""
    rows: list[tuple[str, list[Cell]]] = []
    for name, found in metrics.get("shortcuts", {}).items():
        if "reason" in found:
            rows.append((name, [Number("—", "", found["reason"], None)]))
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
    rows = [(DEFINITIONS[name].title, _difference(name, entry)) for name, entry in compared["metrics"].items()]
    caption = f"{one} minus {two}; intervals and p values over patients, paired; Holm over this table."
    caption = f"{caption} {compared['note']}" if compared.get("note") else caption
    tables = [Table(f"{one} against {two}", caption, columns, rows)]
    areas = [(name, _difference("auc", entry)[2:]) for name, entry in compared["auc"].items()]
    if areas:
        caption = "Paired DeLong test, patients as the unit; Holm over this table."
        tables.append(Table("AUC by DeLong", caption, ["Question", "Difference", "p", "p (Holm)"], areas))
    if "mcnemar" in compared:
        found = compared["mcnemar"]
        cells: list[Cell] = [
            str(found["only_first"]),
            str(found["only_second"]),
            format_p(found["p_value"]),
            found["method"],
        ]
        columns = ["Right or wrong", f"only {one} right", f"only {two} right", "p", "Test"]
        tables.append(Table("McNemar", "Images that only one run classifies correctly.", columns, [("images", cells)]))
    return tables


def _difference(name: str, entry: Mapping[str, Any]) -> list[Cell]:
    both: list[Cell] = [format_value(entry.get("first")), format_value(entry.get("second"))]
    number = format_number(
        "difference", {"value": entry["difference"], **{k: entry.get(k) for k in ("low", "high", "reason", "note")}}
    )
    return [*both, number, format_p(entry["p_value"]), format_p(entry["p_holm"])]
