"""Several views of each image, crops and mirror images, as one answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medcls.models.heads import average_logits


class ManyViews(nn.Module):
    """Averages the scores of a network over a grid of crops and their mirror images, and answers in logits.

    Args:
        model: Stored images (N, C, h, w) to logits (N, L).
        output: What the logits are, as for `heads.count_logits`.
        size: (h, w) of the crops; None = the image as it is given (a dense network takes it whole).
        crops_per_side: Of the grid, evenly spaced from edge to edge; 1 = the middle. Where the image leaves less room
            there are fewer.
        flips: Mirror images left to right, too.

    Source: Simonyan and Zisserman, arXiv 1409.1556, section 3.2: 5 x 5 crops and their flips, softmax averaged.
    """

    def __init__(
        self, model: nn.Module, *, output: str, size: tuple[int, int] | None, crops_per_side: int = 1, flips: bool
    ) -> None:
        super().__init__()
        self.model, self.output, self.size = model, output, size
        self.crops_per_side, self.flips = crops_per_side, flips

    def forward(self, images: Tensor, *clinical: Tensor) -> Tensor:
        """Returns logits (N, L), float64, whose scores are the mean of the views'.

        Args:
            images: (N, C, H, W) as stored.
            clinical: (N, C) where the model takes them: the same for every view.
        """
        logits = []
        for crop in self.list_crops(images):
            logits.append(self.model(crop, *clinical))
            if self.flips:
                # torch cannot mirror uint16.
                logits.append(self.model(crop.float().flip(-1), *clinical))
        return average_logits(self.output, torch.stack(logits))

    def list_crops(self, images: Tensor) -> list[Tensor]:
        """Returns the crops (N, C, h, w), row by row."""
        if self.size is None:
            return [images]
        height, width = self.size
        tops, lefts = (
            place_grid(side, length, count=self.crops_per_side)
            for side, length in zip(images.shape[2:], self.size, strict=True)
        )
        return [images[..., top : top + height, left : left + width] for top in tops for left in lefts]


def place_grid(side: int, length: int, *, count: int) -> list[int]:
    """Returns the different starts of `count` crops of a length, evenly spaced over a side; of one the middle."""
    room = side - length
    if room < 0:
        raise ValueError(f"a crop of {length} pixels out of {side}")
    if count == 1:
        return [room // 2]
    return sorted({(2 * room * i + count - 1) // (2 * (count - 1)) for i in range(count)})
