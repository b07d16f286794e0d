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
from medcls.statistics.definitions import DEFINITIONS, HOW_INTERVALS, TASK_METRICS
from medcls.statistics.exposure import Exposure
from medcls.statistics.number_text import format_number, format_value
from medcls.statistics.thresholds import Rule

LEFT = "*Left to the authors.*"


def write_documents(folder: Path, evaluation: Evaluation) -> None:
    """Write the three files into the folder.

    Source: Mitchell et al. 2019 (model cards); the checklists name theirs.
    """
    facts = describe_facts(evaluation)
    write_json(folder / "claim.json", fill_checklist(CLAIM, facts, source=CLAIM_SOURCE))
    write_json(folder / "tripod_ai.json", fill_checklist(TRIPOD, facts, source=TRIPOD_SOURCE))
    write_bytes(folder / "MODEL_CARD.md", write_card(evaluation, facts).encode())


def describe_facts(evaluation: Evaluation) -> dict[str, Any]:
    """Return what is known of the study without asking anyone, by the names that `checklists` uses."""
    one, model, metrics = evaluation.predictions, evaluation.model, evaluation.metrics
    chosen = metrics.get("chosen_on") or {}
    decision = metrics.get("decision", {}).get("words", "")
    exposure = evaluation.exposure or Exposure(0, known=False)
    claim, marked = exposure.claim, bool(exposure.title) and exposure.known
    external = any(note.startswith("external store") for note in evaluation.notes)
    headline = describe_headlines(evaluation)
    here = evaluation.where
    known = str(metrics.get("patients_from", ""))
    trained = str(model.get("training", {}).get("patients_from", known)) if model else known
    by = "patient" if known else "patient (how patients were told apart is not recorded)"
    by = "image; patients unknown" if PER_IMAGE in (known, trained) else by
    claim = claim.replace("by patient", f"by {by}")
    counts = {"images": metrics.get("n_images"), "patients": metrics.get("n_patients")}
    facts: dict[str, Any] = {
        "missing": "Images without a label of the task are left out and counted; if one of several labels is unknown, "
        "the image is left out for that label. Unreadable files are quarantined with a reason.",
        "metrics": sorted(name for name in DEFINITIONS if name in metrics),
        "uncertainty": name_units(HOW_INTERVALS, known),
        "performance": headline,
        "flow": [dict(step) for step in evaluation.flow],
        "demographics": {name: dict(facts) for name, facts in evaluation.demographics.items()},
        "numbers": counts | ({"patients": "unknown"} if known == PER_IMAGE else {}),
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
        "failures": f"report.html shows {len(evaluation.gallery)} of the worst and most uncertain images"
        if evaluation.gallery
        else "",
        "internal": "" if external else f"{here}: {claim}",
        "external": f"{here}: a different store from the training's; {claim}" if external else "",
        "robustness": metrics.get("robustness", ""),
        "sample_size": "",
        "subgroups": metrics.get("subgroups", ""),
        "subgroups_method": name_units(
            "The main metrics in each subgroup with intervals; groups with few patients are suppressed.", known
        )
        if metrics.get("subgroups")
        else "",
        "recalibration": metrics.get("recalibration", ""),
        "recalibration_method": "Temperature, Platt or isotonic maps, as the number of patients allows"
        + (f", fitted on {chosen['where']} {_say_frozen(chosen)}." if chosen else ".")
        if metrics.get("recalibration")
        else "",
        "thresholds": " ".join(
            [
                *([f"Chosen on {chosen['where']} {_say_frozen(chosen)}."] if chosen else []),
                *([decision] if decision else []),
            ]
        ),
        "software": {key: evaluation.environment[key] for key in sorted(evaluation.environment)},
        "partitions": dict(evaluation.certificate),
        "labels": list(evaluation.labelling),
        "readers": [sentence for sentence in evaluation.labelling if " readers, rule " in sentence],
        "disjoint": f"by {by}" if evaluation.certificate.get("on_leak") in ("refuse", "drop") and not marked else "",
    }
    if one.kind == "binary":
        negative, positive = one.class_names
        facts["positive"] = f"{positive} (negative: {negative}); sensitivity, PPV and scores are those of {positive}"
        facts["performance"] = {"Positive class": positive, **headline}
    if marked:
        facts["performance"] = {"Rows": claim, **facts["performance"]}
    return facts | (_describe_model(model) if model else {}) | dict(evaluation.facts)


def _say_frozen(chosen: Mapping[str, Any]) -> str:
    frozen = chosen.get("frozen", True)
    return "and frozen" if frozen is True else f"(whether that was before these rows were seen is {frozen})"


def _describe_model(model: Mapping[str, Any]) -> dict[str, Any]:
    task, training = model["task"], model["training"]
    names = ", ".join(task["class_names"])
    if task["kind"] == "binary":
        names = f"positive class {task['class_names'][1]}, negative {task['class_names'][0]}"
    transfer = str(training.get("transfer", ""))
    return {
        "technology": f"deep learning: {model['architecture']}, {task['kind']}" + (f" ({names})" if names else ""),
        "preprocessing": model["preprocess"] | ({"crop": model["crop"]} if model.get("crop") else {}),
        "input": f"{model['in_channels']}-channel images, prepared as recorded in the model file",
        "model": {key: model[key] for key in ("architecture", "dropout", "in_channels", "max_value", "task")},
        "initialization": model["ancestors"] or "random",
        "training": {"transfer": transfer, **training},
        "selection": f"epoch {_find_best_epoch(training)} by validation {training.get('metric')}",
        "ensembling": "none",
        "input_checks": "predict refuses images of kinds not seen in training (modality, photometric interpretation, "
        "spacing), and files that cannot be decoded",
    }


def _find_best_epoch(training: Mapping[str, Any]) -> int | None:
    """Return the epoch that was kept, counted from 1; version 0.2.0 recorded it as `epoch`, counted from 0."""
    epoch = training["best_epoch"] if "best_epoch" in training else training.get("epoch", -1) + 1
    return int(epoch) or None


def describe_headlines(evaluation: Evaluation) -> dict[str, str]:
    """Title to "0.871 (0.829 – 0.908)" of the headline numbers that are there, with their notes and reasons."""
    found = {}
    for name in TASK_METRICS[evaluation.predictions.kind].headlines:
        entry = evaluation.metrics.get(name)
        if entry is None:
            continue
        found[DEFINITIONS[name].title] = _say_entry(entry)
    return found


def _say_entry(entry: Mapping[str, Any]) -> str:
    """Return an entry of metrics.json as text: value, interval, and what a reader must know of it."""
    number = format_number("", entry)
    interval = f" ({number.interval})" if number.interval else ""
    return f"{number.text}{interval}" + (f"; {number.reason}" if number.reason else "")


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
    lines += ["", *(f"- {_escape(sentence)}" for sentence in evaluation.labelling)] if evaluation.labelling else []
    lines += ["", "## Results", "", f"| Metric | Value ({over}) |", "|---|---|"]
    lines += [f"| {title} | {_escape(text)} |" for title, text in facts["performance"].items()]
    points = facts["accuracy"]
    if points:
        decided = str(evaluation.metrics.get("decision", {}).get("rule", ""))
        lines += ["", f"| Question | Rule | Sensitivity ({over}) | Specificity ({over}) |"]
        lines += ["|---|---|---|---|", *(_card_row(point, decided) for point in points)]
    for table in build_odds_tables(evaluation.metrics):
        lines += [
            "",
            f"## {_escape(table.title)}",
            "",
            name_units(table.caption, known),
            "",
            f"| {' | '.join(table.columns)} |",
        ]
        lines += ["|---" * len(table.columns) + "|"]
        lines += [
            f"| {' | '.join(_escape(say_number(cell)) for cell in (name, *cells))} |" for name, cells in table.rows
        ]
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
        interval = "" if row["low"] is None else f" ({format_value(row['low'])} – {format_value(row['high'])})"
        verdict = row["verdict"] + (f": {row['reason']}" if row["reason"] else "")
        lines.append(f"| {_escape(row['title'])} | {format_value(row['value'])}{interval} | {_escape(verdict)} |")
    return lines


def _card_row(point: Mapping[str, Any], decided: str) -> str:
    one = Rule(point["rule"], point["target"])
    rule = one.title + (" (decision)" if one.name == decided else "")
    rates = " | ".join(_escape(_say_entry(point[name])) for name in ("sensitivity", "specificity"))
    return f"| {_escape(str(point['question']))} | {rule} | {rates} |"


def _list(facts: Mapping[str, Any], *names: str) -> list[str]:
    known = [(name, facts[name]) for name in names if facts.get(name)]
    return [f"- {name}: {_escape(value if isinstance(value, str) else _dump(value))}" for name, value in known] + [""]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _escape(text: str) -> str:
    """Name of classes and store are other people's: no HTML, link, table border or new line may come of them."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|`]|\]\()", r"\\\1", plain)
