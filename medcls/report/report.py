"""Write one evaluation's report: a folder of figures and one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

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
    "explanations": "Explanations: what are its answers based on?",
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


def build_sections(evaluation: Evaluation, figures: Path, *, kept: Sequence[str] = ()) -> list[Section]:
    """Return the sections that have something to show, each figure also written as PNG.

    Args:
        evaluation: What to show.
        figures: Folder of the PNG files.
        kept: Anchors of sections whose content the page adds itself.
    """
    one, metrics = evaluation.predictions, evaluation.metrics
    plans = plan_panels(evaluation)
    named = partial(name_question, one.kind, grades=one.grades)
    answers = {
        "operating": tables.build_operating_tables(metrics, named),
        "calibration": tables.build_recalibration_table(metrics),
        "certainty": tables.build_conformal_tables(metrics),
        "levels": tables.build_level_table(metrics, choose_headlines(one)),
        "subgroups": [*tables.build_subgroup_table(metrics), *tables.build_shortcut_table(metrics)],
        "baseline": tables.build_comparison_tables(metrics.get("baseline", {})),
        "clinical": build_odds_tables(metrics),
        "comparison": tables.build_comparison_tables(metrics),
        "readers": build_reader_table(metrics),
    }
    known = str(metrics.get("patients_from", ""))
    sections = []
    for anchor, title in TITLES.items():
        drawn, shown = plans.get(anchor, []), answers.get(anchor, [])
        if drawn or shown or anchor in kept:
            panels = [write_panel(plan, figures) for plan in drawn]
            panels = [replace(panel, caption=name_units(panel.caption, known)) for panel in panels]
            sections.append(
                Section(anchor, name_units(title, known), panels, [_name_table(table, known) for table in shown])
            )
    return sections


def _name_table(table: Table, patients_from: str) -> Table:
    """The table with its title, caption and headings in the unit that is known; the cells of patients read unknown."""
    columns, rows = [name_units(column, patients_from) for column in table.columns], table.rows
    if patients_from == PER_IMAGE and "Patients" in table.columns:
        at = table.columns.index("Patients")
        columns[at] = "Patients"
        rows = [(name, [*cells[: at - 1], "unknown", *cells[at:]]) for name, cells in rows]
    return Table(name_units(table.title, patients_from), name_units(table.caption, patients_from), columns, rows)


REPORT = "report.html"
_SCRIPT = Path(__file__).with_name("slider.js").read_text(encoding="utf-8")


def write_report(folder: Path, evaluation: Evaluation) -> Path:
    """Write report.html, its figures, the model card and both checklists; return the page's path.

    The page needs no network, runs no script but its own (the threshold slider), follows the reader's light or dark
    scheme, and shows no patient or image identifier.

    Raises:
        OSError: A contact sheet cannot be read or a file not written.

    Source: own choice; what it holds follows the results items of CLAIM 2024 and TRIPOD+AI 2024.
    """
    one, metrics, patient_ids = evaluation.predictions, evaluation.metrics, evaluation.patient_ids
    slider = build_slider(
        one,
        metrics.get("operating_points", []),
        start=metrics.get("decision", {}).get("thresholds", {}),
        several_images=len(set(patient_ids)) < len(patient_ids),
    )
    added = {
        "operating": slider,
        "failures": evaluation.gallery,
        "explanations": evaluation.explanations or evaluation.explanation_notes,
    }
    kept = [anchor for anchor, content in added.items() if content]
    page = load_template("report", "report.html.j2").render(
        evaluation=evaluation,
        graded=one.has_grades,
        positive_class=one.positive_class,
        patients_known=metrics.get("patients_from") != PER_IMAGE,
        intervals=name_units(HOW_INTERVALS, str(metrics.get("patients_from", ""))),
        cards=build_cards(one, metrics),
        means=describe_means(one),
        counts=build_counts(one, patient_ids),
        metric_table=build_metric_table(metrics),
        class_table=build_class_table(one, metrics),
        sections=build_sections(evaluation, folder / "figures", kept=kept),
        verdicts=build_verdict_table(metrics.get("analysis")),
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
