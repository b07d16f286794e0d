"""Write MODEL_CARD.md, claim.json and tripod_ai.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcls.files import write_bytes, write_json
from medcls.identity import PER_IMAGE, count_patients, name_units
from medcls.report.checklists import CLAIM, CLAIM_SOURCE, TRIPOD, TRIPOD_SOURCE, fill_checklist
from medcls.report.content import Evaluation
from medcls.report.odds_table import build_odds_tables, say_number
from medcls.statistics.curves import name_question
from medcls.statistics.definitions import DEFINITIONS, HOW_INTERVALS, choose_headlines
from medcls.statistics.exposure import Exposure
from medcls.statistics.number_text import format_number
from medcls.statistics.support import RATES
from medcls.statistics.thresholds import Rule

LEFT = "*Left to the authors.*"
_UNKNOWN = (
    "disjoint", "external", "failures", "internal", "recalibration_method", "sample_size", "subgroups_method"
)  # fmt: skip
"""Facts that nobody may know of an evaluation."""


def write_documents(folder: Path, evaluation: Evaluation) -> None:
    """Write the three files into the folder.

    Source: Mitchell et al. 2019 (model cards); the checklists name theirs.
    """
    facts = describe_facts(evaluation)
    write_json(folder / "claim.json", fill_checklist(CLAIM, facts, source=CLAIM_SOURCE))
    write_json(folder / "tripod_ai.json", fill_checklist(TRIPOD, facts, source=TRIPOD_SOURCE))
    write_bytes(folder / "MODEL_CARD.md", write_card(evaluation, facts).encode())


def describe_facts(evaluation: Evaluation) -> dict[str, object]:
    """Return what is known of the study without asking anyone, by the names that `checklists` uses."""
    one, model, metrics = evaluation.predictions, evaluation.model, evaluation.metrics
    exposure = evaluation.exposure or Exposure(0, known=False)
    marked = bool(exposure.title) and exposure.known
    known = str(metrics.get("patients_from", ""))
    trained = str(model["training"].get("patients_from", known)) if "training" in model else known
    by = "patient"
    if PER_IMAGE in (known, trained):
        by = "image; patients unknown"
    elif not known:
        by = "patient (how patients were told apart is not recorded)"
    claim = exposure.claim.replace("by patient", f"by {by}")
    performance = describe_headlines(evaluation)
    facts: dict[str, Any] = dict.fromkeys(_UNKNOWN, "") | {
        "missing": "Images without a label of the task are left out and counted; if one of several labels is unknown, "
        "the image is left out for that label. Unreadable files are quarantined with a reason.",
        "metrics": sorted(name for name in DEFINITIONS if name in metrics),
        "uncertainty": name_units(HOW_INTERVALS, known),
        "flow": [dict(step) for step in evaluation.flow],
        "demographics": {name: dict(facts) for name, facts in evaluation.demographics.items()},
        "numbers": {
            "images": metrics.get("n_images"),
            "patients": "unknown" if known == PER_IMAGE else metrics.get("n_patients"),
        },
        "accuracy": [
            {
                "rule": point["kind"],
                "target": point["target"],
                "question": name_question(one.kind, point["question"], grades=one.grades),
                **point["rates"],
            }
            for point in metrics.get("operating_points", [])
            if "rates" in point
        ],
        "robustness": metrics.get("robustness", ""),
        "subgroups": metrics.get("subgroups", ""),
        "recalibration": metrics.get("recalibration", ""),
        "software": {key: evaluation.environment[key] for key in sorted(evaluation.environment)},
        "partitions": dict(evaluation.certificate),
        "labels": list(evaluation.labelling),
        "readers": [sentence for sentence in evaluation.labelling if " readers, rule " in sentence],
        **_describe_choices(metrics),
    }
    if evaluation.gallery:
        facts["failures"] = f"report.html shows {len(evaluation.gallery)} of the worst and most uncertain images"
    if any(note.startswith("external store") for note in evaluation.notes):
        facts["external"] = f"{evaluation.where}: a different store from the training's; {claim}"
    else:
        facts["internal"] = f"{evaluation.where}: {claim}"
    if metrics.get("subgroups"):
        facts["subgroups_method"] = name_units(
            "The main metrics in each subgroup with intervals; groups with few patients are suppressed.", known
        )
    if evaluation.certificate.get("on_leak") in ("refuse", "drop") and not marked:
        facts["disjoint"] = f"by {by}"
    if one.kind == "binary":
        negative, positive = one.class_names
        facts["positive"] = f"{positive} (negative: {negative}); sensitivity, PPV and scores are those of {positive}"
        performance = {"Positive class": positive, **performance}
    if marked:
        performance = {"Rows": claim, **performance}
    facts["performance"] = performance
    if model:
        facts |= _describe_model(model)
    return facts | dict(evaluation.facts)


def _describe_choices(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return how the thresholds and the recalibration were chosen."""
    chosen, thresholds, fitted = metrics.get("chosen_on"), "", "."
    if chosen:
        frozen = chosen.get("frozen", True)
        how = "and frozen" if frozen is True else f"(whether that was before these rows were seen is {frozen})"
        thresholds, fitted = f"Chosen on {chosen['where']} {how}.", f", fitted on {chosen['where']} {how}."
    words = metrics.get("decision", {}).get("words", "")
    facts = {"thresholds": " ".join(filter(None, [thresholds, words]))}
    if metrics.get("recalibration"):
        facts["recalibration_method"] = f"Temperature, Platt or isotonic maps, as the number of patients allows{fitted}"
    return facts


def _describe_model(model: Mapping[str, Any]) -> dict[str, object]:
    task, training = model["task"], model["training"]
    technology = f"deep learning: {model['architecture']}, {task['kind']}"
    if task["kind"] == "binary":
        technology += f" (positive class {task['class_names'][1]}, negative {task['class_names'][0]})"
    elif task["class_names"]:
        technology += f" ({', '.join(task['class_names'])})"
    # Version 0.2.0 recorded the best epoch as `epoch`, counted from 0.
    best = training["best_epoch"] if "best_epoch" in training else training.get("epoch", -1) + 1
    return {
        "technology": technology,
        "preprocessing": model["preprocess"] | ({"crop": model["crop"]} if model.get("crop") else {}),
        "input": f"{model['in_channels']}-channel images, prepared as recorded in the model file",
        "model": {key: model[key] for key in ("architecture", "dropout", "in_channels", "max_value", "task")},
        "initialization": model["ancestors"] or "random",
        "training": {"transfer": str(training.get("transfer", "")), **training},
        "selection": f"epoch {int(best) or None} by validation {training.get('metric')}",
        "ensembling": "none",
        "input_checks": "predict refuses images of kinds not seen in training (modality, photometric interpretation, "
        "spacing), and files that cannot be decoded",
    }


def describe_headlines(evaluation: Evaluation) -> dict[str, str]:
    """Title to "0.871 (0.829 – 0.908)" of the headline numbers that are there, with their notes and reasons."""
    found = {name: evaluation.metrics.get(name) for name in choose_headlines(evaluation.predictions)}
    return {DEFINITIONS[name].title: _say_entry(entry) for name, entry in found.items() if entry is not None}


def _say_entry(entry: Mapping[str, Any]) -> str:
    """Return an entry of metrics.json as text: value, interval, and what a reader must know of it."""
    number = format_number("", entry)
    return "; ".join(filter(None, [say_number(number), number.reason]))


def write_card(evaluation: Evaluation, facts: Mapping[str, Any]) -> str:
    """Return the model card as Markdown."""
    known = str(evaluation.metrics.get("patients_from", ""))
    lines = ["# Model card", "", evaluation.intended_use, ""]
    lines += [f"> {_escape(note)}" for note in evaluation.notes] + [""]
    lines += ["## Model", "", *_list(facts, "technology", "positive", "initialization", "selection", "model")]
    lines += ["## Intended use", "", f"{evaluation.intended_use} {LEFT}", ""]
    lines += ["## Factors", "", "Subgroups that were measured are in report.html and metrics.json. " + LEFT, ""]
    where = _escape(evaluation.where)
    numbers = evaluation.metrics.get("n_images", 0), evaluation.metrics.get("n_patients")
    lines += ["## Evaluation data", "", f"{where}: {count_patients(*numbers, known)}."]
    over = name_units("95 % interval over patients", known)
    if facts.get("thresholds"):
        lines += ["", _escape(facts["thresholds"])]
    lines += _list_verdicts(evaluation.metrics.get("analysis"))
    if evaluation.labelling:
        lines += ["", *(f"- {_escape(sentence)}" for sentence in evaluation.labelling)]
    lines += ["", "## Results", "", f"| Metric | Value ({over}) |", "|---|---|"]
    lines += [_row(title, _escape(text)) for title, text in facts["performance"].items()]
    points = facts["accuracy"]
    if points:
        decided = str(evaluation.metrics.get("decision", {}).get("rule", ""))
        lines += ["", f"| Question | Rule | Sensitivity ({over}) | Specificity ({over}) |"]
        lines.append("|---|---|---|---|")
        for point in points:
            rule = Rule(point["rule"], point["target"]).mark(decided)
            rates = (_escape(_say_entry(point[name])) for name in RATES)
            lines.append(_row(_escape(str(point["question"])), rule, *rates))
    for table in build_odds_tables(evaluation.metrics):
        lines += ["", f"## {_escape(table.title)}", "", name_units(table.caption, known), ""]
        lines += [_row(*table.columns), "|---" * len(table.columns) + "|"]
        lines += [_row(*(_escape(say_number(cell)) for cell in (name, *cells))) for name, cells in table.rows]
    lines += ["", "## Training data", "", *_list(facts, "training", "preprocessing", "disjoint")]
    lines += ["## Ethical considerations", "", LEFT, "", "## Limitations", "", LEFT, ""]
    return "\n".join(lines)


def _list_verdicts(judged: Mapping[str, Any] | None) -> list[str]:
    """Return the criteria that were set beforehand, as a section of the card."""
    if judged is None:
        return []
    lines = ["", "## Decided beforehand", "", f"{judged['conclusion']}. {judged['multiplicity']}", ""]
    lines += [f"> {_escape(note)}" for note in judged["notes"]] + [""] * bool(judged["notes"])
    lines += ["| Criterion | Value (95 % interval) | Verdict |", "|---|---|---|"]
    for row in judged["criteria"]:
        verdict = ": ".join(filter(None, [row["verdict"], row["reason"]]))
        lines.append(_row(_escape(row["title"]), say_number(format_number("", row)), _escape(verdict)))
    return lines


def _row(*cells: str) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _list(facts: Mapping[str, Any], *names: str) -> list[str]:
    lines = []
    for name in names:
        value = facts.get(name)
        if value and not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
        if value:
            lines.append(f"- {name}: {_escape(value)}")
    return [*lines, ""]


def _escape(text: str) -> str:
    """Name of classes and store are other people's: no HTML, link, table border or new line may come of them."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|`]|\]\()", r"\\\1", plain)
