"""The content of one evaluation's report: Evaluation, Explanation and Overlay."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcls.report.gallery import Picture
from medcls.statistics.exposure import Exposure
from medcls.statistics.predictions import Predictions


@dataclass(frozen=True, slots=True)
class Overlay:
    """An image under its map.

    Attributes:
        row: Its number in predictions.parquet: the only name it gets.
        true: The truth in words.
        predicted: What the model said, in words.
        png: Bytes of a small PNG.
    """

    row: int
    true: str
    predicted: str
    png: bytes

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What one method showed.

    Attributes:
        method: Its name in words.
        trusted: It passed the weight-randomisation check.
        sentences: What was measured, the verdict of that check first.
        count: Number of images that were explained.
        overlays: Of some of them.
    """

    method: str
    trusted: bool
    sentences: Sequence[str]
    count: int
    overlays: Sequence[Overlay]


INTENDED_USE = "For research. Not a medical device: no diagnosis or treatment may rest on it."


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a report is made of.

    Attributes:
        predictions: Labels and scores of N rows, with the thresholds of the decision.
        patient_ids: (N,) patient of each row.
        metrics: What `intervals.measure_predictions` returns; counts such as "n_images" may stand beside it.
        split: Name of the split that was opened.
        store_name: Name of the store.
        source: What was evaluated if it was not a split of a store, in words.
        seed: Of the intervals; the bands of the curves take it too.
        certificate: What was checked about the split, for the checklists.
        split_facts: The same in words, a sentence each.
        config_yaml: The composed configuration.
        environment: Versions and hardware.
        history: Rows of metrics.jsonl.
        notes: What a reader must know first: "synthetic data", "opened 2 times".
        intended_use: The line at the top.
        contact_sheets: Title and image file of each.
        flow: Steps from files to evaluated images: "title", "files" or "images" and "patients", "left_out".
        demographics: Split to what is known of its patients.
        gallery: Worst and most uncertain images.
        explanations: What each method showed.
        explanation_notes: What else there is to say of them, such as the command that makes some.
        operating: operating_points.json.
        model: The metadata of the model file.
        exposure: What the model has seen of the rows; None = not said.
        facts: What else is known for the checklists, by the names that `checklists` uses.
        labelling: How the labels were read, a sentence each.
        shows_ids: The certificate lists ids of patients and images.
    """

    predictions: Predictions
    patient_ids: Sequence[str]
    metrics: Mapping[str, Any]
    split: str
    store_name: str
    source: str = ""
    seed: int = 0
    certificate: Mapping[str, Any] = field(default_factory=dict)
    split_facts: Sequence[str] = ()
    config_yaml: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    intended_use: str = INTENDED_USE
    contact_sheets: Mapping[str, Path] = field(default_factory=dict)
    flow: Sequence[Mapping[str, Any]] = ()
    demographics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gallery: Sequence[Picture] = ()
    explanations: Sequence[Explanation] = ()
    explanation_notes: Sequence[str] = ()
    operating: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    exposure: Exposure | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    labelling: Sequence[str] = ()
    shows_ids: bool = False

    @property
    def where(self) -> str:
        """What was evaluated, in words."""
        return self.source or f"split {self.split} of store {self.store_name}"

    @property
    def title(self) -> str:
        """The heading of the page."""
        return (
            f"Evaluation of {self.source}" if self.source else f"Evaluation on {self.store_name}, split “{self.split}”"
        )
