"""The schema of how label values are read: spellings, uncertain and blank values, several readers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from medcls.config.checks import check_choice, check_range
from medcls.errors import ConfigError


@dataclass(slots=True)
class LabellingConfig:
    """labelling.*: what the values of a labels file mean (labels= itself is the path).

    Attributes:
        strict: Refuse labels that differ in spelling only, instead of reading them as one class with a notice.
        uncertain: What -1, u, uncertain and ? in 0/1 columns are read as: "unknown", "0", "1" or "0.5"; None refuses.
        blank: What blanks in 0/1 columns are read as: "unknown" or "0".
        readers: Columns of several readers, or the ends of their label columns.
        readers_rule: "majority", "share" (soft targets in training), or one of `readers`.
        max_classes: Largest number of different texts that a label column may have.
    """

    strict: bool = False
    uncertain: Any = None
    blank: Any = "unknown"
    readers: list[str] = field(default_factory=list)
    readers_rule: str = "majority"
    max_classes: int = 50

    def __post_init__(self) -> None:
        # Hydra reads 0 and 0.5 as numbers.
        self.blank = str(self.blank)
        check_choice("labelling.blank", self.blank, ("unknown", "0"))
        if self.uncertain is not None:
            self.uncertain = str(self.uncertain)
            check_choice("labelling.uncertain", self.uncertain, ("unknown", "0", "1", "0.5"))
        if len(self.readers) == 1 or len(set(self.readers)) < len(self.readers):
            raise ConfigError(f"labelling.readers={self.readers}: expected two or more different readers")
        if self.readers:
            check_choice("labelling.readers_rule", self.readers_rule, ("majority", "share", *self.readers))
        elif self.readers_rule != "majority":
            raise ConfigError(f"labelling.readers_rule={self.readers_rule} needs labelling.readers=[NAME,NAME,…]")
        check_range("labelling.max_classes", self.max_classes, low=2)
