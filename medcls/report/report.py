"""One evaluation as a folder of figures and one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from medcls.files import write_bytes
from medcls.identity import PER_IMAGE, name_units
from medcls.report.assessed_tables import build_verdict_table
from medcls.report.content import Evaluation
from medcls.report.documents import write_documents
from medcls.report.drawing import embed_image
from medcls.report.page_tables import build_cards, build_class_table, build_counts, build_metric_table, describe_means
from medcls.report.sections import build_sections
from medcls.report.slider import build_slider
from medcls.report.templates import load_template
from medcls.statistics.definitions import HOW_INTERVALS
from medcls.statistics.predictions import check_predictions

REPORT = "report.html"
_SCRIPT = Path(__file__).with_name("slider.js").read_text(encoding="utf-8")


def write_report(folder: Path, evaluation: Evaluation) -> Path:
    """The path of report.html; beside it figures/ as PNG, MODEL_CARD.md, claim.json and tripod_ai.json.

    The page needs no network, runs no script but its own (the threshold slider), follows the reader's light or dark
    scheme, and shows no patient or image identifier.

    Args:
        folder: Is made if missing.
        evaluation: What to show.

    Raises:
        ValueError: Labels or scores are not as `check_predictions` expects.
        OSError: A contact sheet cannot be read or a file not written.

    Source: own choice; what it holds follows the results items of CLAIM 2024 and TRIPOD+AI 2024.
    """
    predictions = check_predictions(
        evaluation.kind,
        evaluation.y_true,
        evaluation.y_score,
        class_names=evaluation.class_names,
        grades=evaluation.grades,
        thresholds=evaluation.thresholds,
        probabilities=evaluation.probabilities,
    )
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
    """The anchors of the sections whose content the page adds itself."""
    given = {
        "operating": slider,
        "failures": bool(evaluation.gallery),
        "explanations": bool(evaluation.explanations or evaluation.explanation_notes),
    }
    return [anchor for anchor, here in given.items() if here]
