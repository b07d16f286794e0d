"""Choose the number that a map explains: which class, as a logit or as a score."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medcls.config import nearest
from medcls.data.targets import Task
from medcls.errors import ConfigError
from medcls.explain.perturbation import Score
from medcls.models.heads import compute_scores
from medcls.training.precision import autocast

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Target:
    """Which number of a task's answer is explained.

    Attributes:
        kind: The task.
        index: Class; -1 = the whole answer (a value, or the expected grade).
        words: For readers.
        output: What the network's outputs are; "" = as the kind says.
        clinical: (C,) the image's own columns, held fixed; () where the network takes none.
    """

    kind: str
    index: int
    words: str
    output: str = ""
    clinical: tuple[float, ...] = ()

    def score(self, logits: Tensor) -> Tensor:
        """Returns what readers are shown, (N,) float64: a probability, a value, or an expected grade."""
        scores = compute_scores(self.output or self.kind, logits)
        if self.kind == "ordinal":
            # P(y >= k) for each k from 1 up; their sum is the expected grade.
            above = scores.flip(1).cumsum(1).flip(1)[:, 1:]
            return above.sum(dim=1) if self.index < 0 else above[:, self.index - 1]
        if self.kind == "binary":
            return scores[:, 0] if self.index == 1 else 1 - scores[:, 0]
        return scores[:, max(self.index, 0)]

    def slope(self, logits: Tensor) -> Tensor:
        """Returns what gradients are taken of, (N,): before softmax or sigmoid, which flatten where a score is sure."""
        if self.kind == "ordinal":
            score = self.score(logits)
            return score if self.index < 0 else torch.logit(score, eps=1e-12)
        if self.kind == "binary":
            return logits[:, 0] if self.index == 1 else -logits[:, 0]
        return logits[:, max(self.index, 0)]


def choose_target(task: Task, scores: NDArray, *, target: str = AUTO) -> Target:  # type: ignore[type-arg]
    """Returns what is explained of one image.

    Args:
        task: Of the run.
        scores: (1 or K,) of this image, as compute_scores returns them.
        target: "auto": the predicted class; the positive class of two; the label with the highest probability; the
            expected grade of ordinal classes; the value. Or the name of a class: of ordinal classes the probability
            of this grade or a higher one.

    Raises:
        ConfigError: no such class, or one that has no score of its own.
    """
    names = task.class_names
    if task.kind == "regression":
        if target != AUTO:
            raise ConfigError(f"target={target}: task.kind=regression has one value: remove target")
        return Target(task.kind, -1, "predicted value")
    if target != AUTO and target not in names:
        raise ConfigError(f"target={target}: expected auto or one of {', '.join(names)}{nearest(target, names)}")
    if task.kind == "ordinal":
        return replace(_choose_grade(names, target), output=task.output)
    if target != AUTO:
        index = names.index(target)
    else:
        index = 1 if task.kind == "binary" else int(scores.argmax())
    return Target(task.kind, index, f"probability of {names[index]}")


def _choose_grade(names: list[str], target: str) -> Target:
    if target == AUTO:
        return Target("ordinal", -1, "expected grade")
    if target == names[0]:
        raise ConfigError(f"target={target}: every image has this grade or a higher one: choose a higher grade")
    return Target("ordinal", names.index(target), f"probability of {target} or higher")


def build_score(model: nn.Module, target: Target, *, device: str, precision: str, slope: bool = False) -> Score:
    """Returns images (N, C, *spatial) float32 -> (N,): the target's slope or score by this network."""
    held = torch.tensor([target.clinical], device=device) if target.clinical else None

    def score(images: Tensor) -> Tensor:
        with autocast(precision, device=device):
            images = images.to(device)
            logits = model(images) if held is None else model(images, held.expand(len(images), -1))
        return target.slope(logits.float()) if slope else target.score(logits)

    return score
