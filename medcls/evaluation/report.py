"""One evaluation as a folder of figures and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import ArrayLike

from medcls.evaluation.drawing import embed_image
from medcls.evaluation.panels import build_sections
from medcls.evaluation.predictions import check_predictions
from medcls.evaluation.tables import build_cards, build_class_table, build_counts, build_metric_table
from medcls.files import write_bytes

INTENDED_USE = "For research. Not a medical device: no diagnosis or treatment may rest on it."


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a report is made of.

    Attributes:
        kind: "binary", "multiclass", "ordinal", "multilabel" or "regression".
        class_names: K names.
        y_true: (N,) or (N, K), as in `metrics.compute_metrics`.
        y_score: (N, 1) or (N, K), as there.
        patient_ids: (N,) patient of each row.
        metrics: What `intervals.compute_intervals` answers; counts such as "n_images" may stand beside it.
        split: Name of the split that was opened.
        store_name: Name of the store.
        grades: The classes are ordered grades.
        seed: Of the intervals; the bands of the curves take it too.
        certificate: What was checked about the split (dataset.json).
        config_yaml: The composed configuration.
        environment: Versions and hardware.
        history: Rows of metrics.jsonl.
        notes: What a reader must know first: "synthetic data", "opened 2 times".
        intended_use: The line at the top.
        contact_sheets: Title and image file of each.
    """

    kind: str
    class_names: Sequence[str]
    y_true: ArrayLike
    y_score: ArrayLike
    patient_ids: Sequence[str]
    metrics: Mapping[str, Any]
    split: str
    store_name: str
    grades: bool = False
    seed: int = 0
    certificate: Mapping[str, Any] = field(default_factory=dict)
    config_yaml: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    intended_use: str = INTENDED_USE
    contact_sheets: Mapping[str, Path] = field(default_factory=dict)


def write_report(folder: Path, evaluation: Evaluation) -> Path:
    """The path of report.html; the figures stand beside it in figures/ as PNG.

    The page needs no network and no script, follows the reader's light or dark scheme, and shows no patient
    or image identifier.

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
    )
    page = _load_template().render(
        evaluation=evaluation,
        graded=predictions.has_grades,
        cards=build_cards(predictions, evaluation.metrics),
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
        ),
        contact_sheets={title: embed_image(path) for title, path in evaluation.contact_sheets.items()},
    )
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path


@cache
def _load_template() -> Any:
    environment = Environment(
        loader=PackageLoader("medcls.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
