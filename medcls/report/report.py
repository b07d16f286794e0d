"""Write one evaluation's report: a folder of figures and one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from medcls.files import write_bytes
from medcls.identity import PER_IMAGE, name_units
from medcls.report import assessed_tables as tables
from medcls.report.assessed_tables import Table, build_verdict_table
from medcls.report.content import Evaluation
from medcls.report.documents import write_documents
from medcls.report.drawing import embed_image
from medcls.report.odds_table import build_odds_tables
from medcls.report.page_tables import build_cards, build_class_table, build_counts, build_metric_table, describe_means
from medcls.report.panels import Panel, plan_panels, write_panel
from medcls.report.reader_panel import build_reader_table
from medcls.report.slider import build_slider
from medcls.report.templates import load_template
from medcls.statistics.curves import name_question
from medcls.statistics.definitions import HOW_INTERVALS, choose_headlines
from medcls.statistics.intervals import number_patients
from medcls.statistics.predictions import Predictions

TITLES = {
    "discrimination": "Does it rank cases above non-cases?",
    "operating": "What does a threshold do?",
    "classes": "Which classes does it confuse?",
    "values": "How far off are the values?",
    "calibration": "Are its probabilities calibrated?",
    "certainty": "When should a reader decide?",
    "levels": "How good is it for whole patients?",
    "subgroups": "Is it equally good for all groups?",
    "baseline": "Is it better than a linear model?",
    "clinical": "What do the clinical columns add?",
    "comparison": "Is it better than the other model?",
    "readers": "How does it compare with readers?",
    "robustness": "Is it robust to degraded images?",
    "failures": "Where does it fail?",
    "explanations": "Explanations: where does it look?",
    "training": "How was it trained?",
}


@dataclass(frozen=True, slots=True)
class Section:
    """Figures and tables that answer one question.

    Attributes:
        anchor: For links.
        title: Its heading.
        panels: Figures.
        tables: Below them.
    """

    anchor: str
    title: str
    panels: list[Panel] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def build_sections(
    predictions: Predictions,
    patient_ids: Sequence[str],
    *,
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    seed: int,
    figures: Path,
    kept: Sequence[str] = (),
) -> list[Section]:
    """Return the sections that have something to show, each figure also written as PNG.

    Args:
        predictions: Of N rows.
        patient_ids: (N,).
        metrics: As in metrics.json.
        history: Rows of metrics.jsonl.
        seed: Of the bands.
        figures: Folder of the PNG files.
        kept: Anchors of sections whose content the page adds itself.
    """
    patients = number_patients(patient_ids, rows=len(predictions.y_score))
    plans = plan_panels(predictions, patients, metrics=metrics, history=history, seed=seed)
    named = partial(name_question, predictions.kind, grades=predictions.grades)
    answers = {
        "operating": tables.build_operating_tables(metrics, named),
        "calibration": tables.build_recalibration_table(metrics),
        "certainty": tables.build_conformal_tables(metrics),
        "levels": tables.build_level_table(metrics, choose_headlines(predictions)),
        "subgroups": [*tables.build_subgroup_table(metrics), *tables.build_shortcut_table(metrics)],
        "baseline": tables.build_comparison_tables(metrics.get("baseline", {})),
        "clinical": build_odds_tables(metrics),
        "comparison": tables.build_comparison_tables(metrics),
        "readers": build_reader_table(metrics),
    }
    known = str(metrics.get("patients_from", ""))
    return [
        Section(
            anchor,
            name_units(title, known),
            [_name_panel(write_panel(plan, figures), known) for plan in plans.get(anchor, [])],
            [_name_table(table, known) for table in answers.get(anchor, [])],
        )
        for anchor, title in TITLES.items()
        if plans.get(anchor) or answers.get(anchor) or anchor in kept
    ]


def _name_panel(panel: Panel, patients_from: str) -> Panel:
    return replace(panel, caption=name_units(panel.caption, patients_from))


def _name_table(table: Table, patients_from: str) -> Table:
    """The table with its title, caption and headings in the unit that is known; the cells of patients read unknown."""
    at = [i for i, column in enumerate(table.columns) if column == "Patients" and patients_from == PER_IMAGE]
    rows = [(name, ["unknown" if i + 1 in at else cell for i, cell in enumerate(cells)]) for name, cells in table.rows]
    columns = [column if i in at else name_units(column, patients_from) for i, column in enumerate(table.columns)]
    title, caption = (name_units(text, patients_from) for text in (table.title, table.caption))
    return Table(title, caption, columns, rows)


REPORT = "report.html"
_SCRIPT = Path(__file__).with_name("slider.js").read_text(encoding="utf-8")


def write_report(folder: Path, evaluation: Evaluation) -> Path:
    """Return the path of report.html; beside it figures/ as PNG, MODEL_CARD.md, claim.json and tripod_ai.json.

    The page needs no network, runs no script but its own (the threshold slider), follows the reader's light or dark
    scheme, and shows no patient or image identifier.

    Args:
        folder: Is made if missing.
        evaluation: What to show.

    Raises:
        OSError: A contact sheet cannot be read or a file not written.

    Source: own choice; what it holds follows the results items of CLAIM 2024 and TRIPOD+AI 2024.
    """
    predictions = evaluation.predictions
    start = evaluation.metrics.get("decision", {}).get("thresholds", {})
    slider = build_slider(
        predictions,
        evaluation.metrics.get("operating_points", []),
        start=start,
        several_images=len(set(evaluation.patient_ids)) < len(evaluation.patient_ids),
    )
    page = load_template("report", "report.html.j2").render(
        evaluation=evaluation,
        graded=predictions.has_grades,
        positive_class=predictions.positive_class,
        patients_known=evaluation.metrics.get("patients_from") != PER_IMAGE,
        intervals=name_units(HOW_INTERVALS, str(evaluation.metrics.get("patients_from", ""))),
        cards=build_cards(predictions, evaluation.metrics),
        means=describe_means(predictions),
        counts=build_counts(predictions, evaluation.patient_ids),
        metric_table=build_metric_table(evaluation.metrics),
        class_table=build_class_table(predictions, evaluation.metrics),
        sections=build_sections(
            predictions,
            evaluation.patient_ids,
            metrics=evaluation.metrics,
            history=evaluation.history,
            seed=evaluation.seed,
            figures=folder / "figures",
            kept=choose_kept(evaluation, slider=bool(slider)),
        ),
        verdicts=build_verdict_table(evaluation.metrics.get("analysis")),
        slider=slider,
        # A browser unescapes nothing inside <script>: the escape of JSON keeps a class name from ending it.
        slider_json=json.dumps(slider).replace("<", "\\u003c"),
        script=_SCRIPT,
        script_sha256=base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode(),
        demographic_rows=list(dict.fromkeys(fact for facts in evaluation.demographics.values() for fact in facts)),
        contact_sheets={title: embed_image(path) for title, path in evaluation.contact_sheets.items()},
    )
    path = folder / REPORT
    write_bytes(path, page.encode())
    write_documents(folder, evaluation)
    return path


def choose_kept(evaluation: Evaluation, *, slider: bool) -> list[str]:
    """Return the anchors of the sections whose content the page adds itself."""
    given = {
        "operating": slider,
        "failures": bool(evaluation.gallery),
        "explanations": bool(evaluation.explanations or evaluation.explanation_notes),
    }
    return [anchor for anchor, here in given.items() if here]
