"""Heads: features to logits, and logits to the scores that metrics take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcls.errors import ConfigError

HEADS = ("linear", "mlp", "svm")


class LinearHead(nn.Module):
    """Dropout and one linear layer, with small random weights; outputs in the targets' unit for regression.

    With deep supervision the features are those of several layers side by side, each with a linear layer of its own:
    while training all of them answer, later the last one alone.

    Args:
        num_features: Of the backbone; of its last layer alone where there are `earlier` ones; of `before`.
        num_logits: Outputs.
        dropout: Probability, [0, 1).
        earlier: Lengths of the features of earlier layers, from input to output.
        before: What the features go through first.

    Source: deep supervision, Lee et al., arXiv 1409.5185 (there with SVMs).
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        num_features: int,
        num_logits: int,
        *,
        dropout: float = 0.0,
        earlier: Sequence[int] = (),
        before: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.before = before or nn.Identity()
        self.sizes = (*earlier, num_features)
        self.dropout = nn.Dropout(dropout)
        self.earlier = nn.ModuleList(nn.Linear(size, num_logits) for size in earlier)
        self.linear = nn.Linear(num_features, num_logits)
        # Starts near the prior: the first steps teach the head before they can disturb transferred layers.
        for linear in self.layers:
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    @property
    def layers(self) -> list[nn.Linear]:
        """The linear layers, from input to output; the last is `linear`."""
        return [*(layer for layer in self.earlier if isinstance(layer, nn.Linear)), self.linear]

    @property
    def is_linear(self) -> bool:
        """Whether logits of averaged features are averaged logits."""
        return isinstance(self.before, nn.Identity)

    def set_unit(self, targets: Tensor) -> None:
        """Make the outputs start at the mean of the targets, in units of their standard deviation (regression).

        Args:
            targets: (N, 1) of the training rows, without NaN.
        """
        self.shift.fill_(float(targets.mean()))
        spread = float(targets.std(correction=0))
        self.scale.fill_(spread if spread > 0 else 1.0)

    def set_grade(self, targets: Tensor) -> None:
        """Make the last output, the value of a joint head, start at the mean grade.

        Args:
            targets: (N, 1) of the training rows.
        """
        with torch.no_grad():
            for linear in self.layers:
                linear.bias[-1] = targets.mean()

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, num_logits), float32, of features; those of all layers side by side while training."""
        parts = list(zip(self.layers, self.dropout(self.before(features)).split(self.sizes, dim=1), strict=True))
        answers = [linear(part).float() for linear, part in (parts if self.training else parts[-1:])]
        # In half precision a unit would be lost: bfloat16 knows no number between 128 and 129 (months of bone age).
        return torch.cat(answers, dim=1) * self.scale + self.shift


class UnitNorm(nn.Module):
    """Features divided by their L2 norm; those that are all zero stay so."""

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, F) float32 of features (N, F)."""
        return F.normalize(features.float())


def build_head(
    name: str, levels: Sequence[int], num_logits: int, *, dropout: float = 0.0, width: int = 0
) -> LinearHead:
    """Return a head with random weights.

    Args:
        name: "linear"; "mlp", a hidden layer with ReLU before it; or "svm", on L2-normalised features, whose numbers
            svm.fit_svm finds.
        levels: Lengths of the parts of the feature vector, from input to output; several = deep supervision.
        num_logits: Outputs.
        dropout: Before the last layer of linear and mlp.
        width: Hidden units of mlp.

    Raises:
        ConfigError: unknown name, or another than "linear" with several levels.

    Source: svm: features as Simonyan and Zisserman, arXiv 1409.1556, appendix B, and Menegola et al., arXiv 1703.07479
    (their code), use them.
    """
    *earlier, last = levels
    if name not in HEADS:
        raise ConfigError(f"model.head={name}: expected one of {', '.join(HEADS)}")
    if name == "linear":
        return LinearHead(last, num_logits, dropout=dropout, earlier=earlier)
    if earlier:
        raise ConfigError(f"model.head={name} with model.supervision: only model.head=linear answers from every layer")
    if name == "svm":
        return LinearHead(last, num_logits, before=UnitNorm())
    return LinearHead(width, num_logits, dropout=dropout, before=nn.Sequential(nn.Linear(last, width), nn.ReLU()))


@dataclass(frozen=True, slots=True)
class Output:
    """What the outputs of a network mean (data.targets.Task.output).

    Attributes:
        count: Number of classes K -> number of outputs L.
        score: Logits (N, L) float64 -> what the metrics take, (N, 1) or (N, K) float64.
        average: Logits (V, N, L) float64 of V > 1 views -> logits (N, L) whose scores are the mean of their scores.
        proportional: A clinical column changes all logits by the same amount.
    """

    count: Callable[[int], int]
    score: Callable[[Tensor], Tensor]
    average: Callable[[Tensor], Tensor]
    proportional: bool = False


def _score_classes(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)


def _score_grades(logits: Tensor) -> Tensor:
    """Return P(y = k); logit k of CORN gives P(y > k | y > k - 1), and their products P(y > k) never increase."""
    above = logits.sigmoid().cumprod(dim=1)
    ones, zeros = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
    return torch.cat([ones, above], dim=1) - torch.cat([above, zeros], dim=1)


def _average_classes(logits: Tensor) -> Tensor:
    # Log probabilities are logits: the softmax does not see the constant between them.
    return logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))


def _average_flags(logits: Tensor) -> Tensor:
    return F.logsigmoid(logits).logsumexp(dim=0) - F.logsigmoid(-logits).logsumexp(dim=0)


def _average_grades(logits: Tensor) -> Tensor:
    # log P(y > k) and log P(y = k), k = 0 … K - 2; their difference is CORN's conditional logit.
    above = F.logsigmoid(logits).cumsum(dim=-1)
    equal = F.pad(above, (1, -1)) + F.logsigmoid(-logits)
    return above.logsumexp(dim=0) - equal.logsumexp(dim=0)


def _average_joint(logits: Tensor) -> Tensor:
    return torch.cat([_average_classes(logits[..., :-1]), logits[..., -1:].mean(dim=0)], dim=-1)


OUTPUTS: dict[str, Output] = {
    "binary": Output(lambda classes: 1, torch.sigmoid, _average_flags),
    "multiclass": Output(lambda classes: classes, _score_classes, _average_classes),
    "multilabel": Output(lambda classes: classes, torch.sigmoid, _average_flags),
    "ordinal": Output(lambda classes: classes - 1, _score_grades, _average_grades, proportional=True),
    "joint": Output(lambda classes: classes + 1, lambda logits: _score_classes(logits[:, :-1]), _average_joint),
    "regression": Output(lambda classes: 1, lambda logits: logits, lambda logits: logits.mean(dim=0)),
}
"""By name: the outputs of each kind of task, and the other ones that a loss needs (medcls.kinds).

ordinal: CORN, K - 1 conditional logits (Shi, Cao and Raschka, arXiv 2111.08851, equation 4). joint: K classes and the
grade as a value, which the scores leave out.
"""


def count_logits(output: str, num_classes: int) -> int:
    """Return the outputs that a head has.

    Args:
        output: One of OUTPUTS.
        num_classes: K; ignored for binary and regression.

    Raises:
        ConfigError: there are no such outputs.
    """
    if output not in OUTPUTS:
        raise ConfigError(f"task.kind={output}: expected one of {', '.join(OUTPUTS)}")
    return OUTPUTS[output].count(num_classes)


def compute_scores(output: str, logits: Tensor) -> Tensor:
    """Return what the metrics take, float64.

    Args:
        output: One of OUTPUTS.
        logits: (N, L), any floating dtype.

    Returns:
        binary (N, 1): probability of class 1. multiclass, ordinal and joint (N, K): probabilities summing to 1.
        multilabel (N, K): a probability for each label. regression (N, 1): the value.
    """
    return OUTPUTS[output].score(logits.double())


def average_logits(output: str, logits: Tensor) -> Tensor:
    """Return the logits whose scores are the mean of several views' or runs' scores, (N, L) float64.

    The link is inverted within logarithms, so that nothing is lost where a probability is next to 0 or 1.

    Args:
        output: One of OUTPUTS; the logits must have the same meaning in every view.
        logits: (V, N, L), any floating dtype. The logits of one view come back as they are.
    """
    logits = logits.double()
    if len(logits) == 1:
        return logits[0]
    return OUTPUTS[output].average(logits)
