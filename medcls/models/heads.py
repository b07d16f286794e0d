"""Heads: features to logits, and logits to the scores that metrics take."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcls.errors import ConfigError

HEADS = ("linear", "mlp", "svm")


def count_logits(kind: str, num_classes: int) -> int:
    """Return the outputs a task's head has.

    Args:
        kind: What the outputs are (data.targets.Task.output): "binary", "multiclass", "multilabel", "ordinal" (CORN),
            "joint" (K classes and a value) or "regression".
        num_classes: K; ignored for binary and regression.
    """
    sizes = {"binary": 1, "regression": 1, "multiclass": num_classes, "multilabel": num_classes}
    sizes |= {"ordinal": num_classes - 1, "joint": num_classes + 1}
    if kind not in sizes:
        raise ConfigError(f"task.kind={kind}: expected one of {', '.join(sizes)}")
    return sizes[kind]


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


def compute_scores(kind: str, logits: Tensor) -> Tensor:
    """Return what the metrics take, float64.

    Args:
        kind: What the outputs are, as for `count_logits`.
        logits: (N, L), any floating dtype.

    Returns:
        binary (N, 1): probability of class 1. multiclass, ordinal and joint (N, K): probabilities summing to 1 (the
        value of joint is left out). multilabel (N, K): a probability for each label. regression (N, 1): the value.

    Source: ordinal: CORN, Shi, Cao and Raschka, arXiv 2111.08851, equation 4: logit k gives
    P(y > k | y > k - 1), and their products P(y > k) never increase with k.
    """
    logits = logits.double()
    if kind == "regression":
        return logits
    if kind in ("multiclass", "joint"):
        return (logits[:, :-1] if kind == "joint" else logits).softmax(dim=1)
    if kind in ("binary", "multilabel"):
        return logits.sigmoid()
    above = logits.sigmoid().cumprod(dim=1)
    ones, zeros = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
    return torch.cat([ones, above], dim=1) - torch.cat([above, zeros], dim=1)


def average_logits(kind: str, logits: Tensor) -> Tensor:
    """Return the logits whose scores are the mean of several views' or runs' scores, (N, L) float64.

    The link is inverted within logarithms, so that nothing is lost where a probability is next to 0 or 1.

    Args:
        kind: What the outputs are, as for `count_logits`; they must have the same meaning in every view.
        logits: (V, N, L), any floating dtype. The logits of one view come back as they are.
    """
    logits = logits.double()
    if len(logits) == 1:
        return logits[0]
    if kind == "regression":
        return logits.mean(dim=0)
    if kind == "joint":
        return torch.cat([average_logits("multiclass", logits[..., :-1]), logits[..., -1:].mean(dim=0)], dim=-1)
    if kind == "multiclass":
        # Log probabilities are logits: the softmax does not see the constant between them.
        return logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))
    yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)
    if kind == "ordinal":
        # log P(y > k) and log P(y = k), k = 0 … K - 2; their difference is CORN's conditional logit.
        yes, no = yes.cumsum(dim=-1), F.pad(yes.cumsum(dim=-1), (1, -1)) + no
    return yes.logsumexp(dim=0) - no.logsumexp(dim=0)
