"""The schema of how label values are read: spellings, uncertain and blank values, several readers."""

from __future__ import annotations

from dataclasses import dataclass

from medcls.config.checks import check_range


@dataclass(slots=True)
class LabellingConfig:
    """labelling.*: what the values of a labels file mean (labels= itself is the path).

    Attributes:
        strict: Refuse labels that differ in spelling only, instead of reading them as one class with a notice.
        max_classes: Largest number of different texts that a label column may have.
    """

    strict: bool = False
    max_classes: int = 50

    def __post_init__(self) -> None:
        check_range("labelling.max_classes", self.max_classes, low=2)
