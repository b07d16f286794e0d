"""The wide part of a classifier: clinical columns straight to the logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medcls.models.heads import count_logits


def count_wide_outputs(output: str, num_classes: int) -> int:
    """Returns how many rows of weights the wide part has.

    Args:
        output: What the network's outputs are (data.targets.Task.output).
        num_classes: K.

    Returns:
        One for each logit; one for all of CORN's: a column then changes the odds of going on to the next grade by the
        same factor at every grade (continuation-ratio model). Other outputs have no such order.
    """
    return 1 if output == "ordinal" else count_logits(output, num_classes)


class WidePart(nn.Module):
    """A linear layer without bias, in the logits' (for regression the targets') unit; starts at zero.

    Args:
        num_columns: C, > 0.
        num_outputs: From `count_wide_outputs`.

    Source: the wide part of Cheng et al., arXiv 1606.07792, section 3.1, and of SIDLM (Yan et al. 2021), whose bias
    is the deep part's.
    """

    def __init__(self, num_columns: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_outputs, num_columns))

    def forward(self, clinical: Tensor) -> Tensor:
        """Returns what is added to the logits, (N, num_outputs) float32, of design rows (N, C)."""
        # A product and a sum: autocast leaves them in float32, a matrix product it does not.
        added: Tensor = (clinical[:, None] * self.weight).sum(dim=2)
        return added
