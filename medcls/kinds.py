"""Kinds of task, one row each: what their labels, scores and answers are, and which losses they have.

What a network's outputs mean is a row of models.heads.OUTPUTS, what a loss does a row of training.losses.LOSSES, which
metrics count a row of statistics.definitions.TASK_METRICS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Runs have this word for an answer by the kind's own outputs; the only kind with other forms has CORN's.
OWN = "corn"
FORMS = {"softmax": "multiclass", "joint": "joint"}
"""Form of a network's answer -> its outputs (models.heads.OUTPUTS), where they are not the kind's own."""

_CROSS_ENTROPIES = dict.fromkeys(("auto", "cross_entropy", "focal"), OWN)


@dataclass(frozen=True, slots=True)
class TaskKind:
    """One kind of task.

    Attributes:
        name: Value of task.kind, and of the network's outputs if no form has others.
        losses: Values of task.loss, each with the form of the network's answer (data.targets.Task.ordinal).
        thresholds: Each column of scores is the probability of one yes, and an answer needs a threshold.
        multiple: Each class is a label of its own, with a column of the truth in which it may be unknown.
        numeric: The truth and the score are a number; there are class names only if the numbers are grades.
        ordered: The classes go from least to most.
        fewest: Class names that it needs.
        most: Class names that it may have; None if there is no limit.
    """

    name: str
    losses: Mapping[str, str]
    thresholds: bool = False
    multiple: bool = False
    numeric: bool = False
    ordered: bool = False
    fewest: int = 2
    most: int | None = None

    @property
    def pair(self) -> bool:
        """Whether there are two classes, and one column with the score of the second."""
        return self.thresholds and not self.multiple

    @property
    def exclusive(self) -> bool:
        """Whether there is a column of scores for each class, and the highest one is the answer."""
        return not self.thresholds and not self.numeric

    @property
    def unordered(self) -> bool:
        """Whether each row has one class, and classes have no order."""
        return not (self.numeric or self.multiple or self.ordered)

    def count_scores(self, num_classes: int) -> int:
        """Return the columns of scores."""
        if self.pair or self.numeric:
            return 1
        return num_classes

    def list_questions(self, class_names: Sequence[str]) -> list[str]:
        """Return the class or label that each column of scores calls or does not call; [] without thresholds."""
        if self.pair:
            return list(class_names[1:])
        return list(class_names) if self.thresholds else []


KINDS: dict[str, TaskKind] = {
    row.name: row
    for row in (
        TaskKind("binary", _CROSS_ENTROPIES, thresholds=True, most=2),
        TaskKind("multiclass", _CROSS_ENTROPIES),
        TaskKind("multilabel", _CROSS_ENTROPIES, thresholds=True, multiple=True, fewest=1),
        TaskKind(
            "ordinal",
            {"auto": OWN, "corn": OWN, "cross_entropy": "softmax", "focal": "softmax", "joint": "joint"},
            ordered=True,
        ),
        TaskKind("regression", dict.fromkeys(("auto", "mse", "mae", "huber"), OWN), numeric=True, fewest=0),
    )
}
"""By name."""

RECONSTRUCTION = TaskKind("reconstruction", {}, fewest=0)
"""What pretraining learns, without labels: in cards only, not a value of task.kind."""
