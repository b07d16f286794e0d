"""How the evaluated rows were used before: unseen, used for the model's choices, or trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from medcls.identity import format_count

UNSEEN, CHOSE, IN_SAMPLE, UNKNOWN = "unseen", "chose", "in_sample", "unknown"


@dataclass(frozen=True, slots=True)
class Exposure:
    """How many of the evaluated images the model has seen, itself or another image of their patients.

    Attributes:
        images: Images that are evaluated.
        trained: Of these, images that were trained on, or whose patient was.
        chose: Of the others, images that chose the epoch, the thresholds, the recalibration and the conformal bounds.
        known: False if nobody can say.
    """

    images: int
    trained: int = 0
    chose: int = 0
    known: bool = True

    @property
    def status(self) -> str:
        """One of "unseen", "chose", "in_sample" and "unknown"."""
        if not self.known:
            return UNKNOWN
        return IN_SAMPLE if self.trained else CHOSE if self.chose else UNSEEN

    @property
    def has_unseen(self) -> bool:
        """Whether some of the images could still judge the model."""
        return not self.known or self.images > self.trained + self.chose

    @property
    def title(self) -> str:
        """What a reader has to know before any number; "" for unseen rows."""
        images = format_count(self.images, "image")
        return {
            IN_SAMPLE: f"In-sample: the model was trained on {self.trained} of {images} or their patients",
            CHOSE: f"Validation rows: {self.chose} of {images} chose the epoch, the thresholds, the "
            "recalibration and the conformal bounds",
            UNKNOWN: "Unknown whether the model was trained on these rows",
            UNSEEN: "",
        }[self.status]

    @property
    def claim(self) -> str:
        """What may be claimed of the rows."""
        return {
            IN_SAMPLE: f"{self.title}; not a measure of performance",
            CHOSE: f"{self.title}; figures on them are too good",
            UNKNOWN: self.title,
            UNSEEN: "disjoint from training by patient",
        }[self.status]

    def to_json(self) -> dict[str, object]:
        """Return what metrics.json holds."""
        return asdict(self) | {"status": self.status, "claim": self.claim}
