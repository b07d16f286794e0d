"""Combine several views of an image into one answer: crops, mirror images, or dense application."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import VGG, ResNet

from medcls.errors import ConfigError
from medcls.models.classifier import Classifier, add_wide
from medcls.models.heads import average_logits


class ManyViews(nn.Module):
    """Averages the scores of a network over a grid of crops and their mirror images, and answers in logits.

    Args:
        model: Stored images (N, C, h, w) to logits (N, L).
        output: One of heads.OUTPUTS.
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
        """Return logits (N, L), float64, whose scores are the mean of the views'.

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
        """Return the crops (N, C, h, w), row by row."""
        if self.size is None:
            return [images]
        height, width = self.size
        tops, lefts = (
            place_grid(side, length, count=self.crops_per_side)
            for side, length in zip(images.shape[2:], self.size, strict=True)
        )
        return [images[..., top : top + height, left : left + width] for top in tops for left in lefts]


def place_grid(side: int, length: int, *, count: int) -> list[int]:
    """Return the different starts of `count` crops of a length, evenly spaced over a side; of one the middle."""
    room = side - length
    if room < 0:
        raise ValueError(f"a crop of {length} pixels out of {side}")
    if count == 1:
        return [room // 2]
    return sorted({(2 * room * i + count - 1) // (2 * (count - 1)) for i in range(count)})


class DenseClassifier(nn.Module):
    """The fully convolutional form of a classifier, sharing its weights: whole images in, averaged class maps out.

    A VGG's fully connected layers become convolutions whose window is the last feature map at the training size, 7 x 7
    at 224 pixels (at other sizes torchvision's adaptive pooling to 7 x 7 is part of the window's linear operator). A
    ResNet's head is applied at each place of the last map: by linearity this is its global pooling over the whole
    image.

    Args:
        classifier: In evaluation mode, of images.
        size: (H, W) that it was trained on, pixels.

    Raises:
        ConfigError: its network has no such form here.

    Source: Simonyan and Zisserman, arXiv 1409.1556, section 3.2.
    """

    def __init__(self, classifier: Classifier, *, size: tuple[int, int]) -> None:
        super().__init__()
        self.classifier = classifier
        body = classifier.backbone.body
        if isinstance(body, VGG):
            self.features: nn.Module = body.features
            self.window: tuple[int, ...] = self._measure(size)
            self.read: nn.Module = nn.Sequential(body.avgpool, nn.Flatten(), body.classifier)
        elif isinstance(body, ResNet) and not classifier.head.is_linear:
            raise ConfigError("views=dense: a ResNet has it only with model.head=linear: set views=multicrop")
        elif isinstance(body, ResNet):
            self.window = (1, 1)
            layers = (body.conv1, body.bn1, body.relu, body.maxpool, body.layer1, body.layer2, body.layer3, body.layer4)
            self.features, self.read = nn.Sequential(*layers), nn.Flatten()
        else:
            raise ConfigError(f"views=dense: a {type(body).__name__} has no dense form here: set views=multicrop")

    def _measure(self, size: tuple[int, int]) -> tuple[int, ...]:
        """(h, w) of the feature map of images (H, W)."""
        with torch.inference_mode():
            features = self.features(next(self.features.parameters()).new_zeros(1, 3, *size))
        return tuple(features.shape[2:])

    def compute_map(self, images: Tensor) -> Tensor:
        """Return the class map (N, L, H', W') of stored images (N, 1 or 3, H, W): logits at every place of the window.

        Raises:
            ValueError: the images are smaller than the window.
        """
        features: Tensor = self.features(self.classifier.normalize(images))
        if any(side < window for side, window in zip(features.shape[2:], self.window, strict=True)):
            raise ValueError(f"images {tuple(images.shape[2:])}: their feature map is smaller than {self.window}")
        # A convolution as a product of matrices: torch's own with so large a window is slower on the CPU (1.5 to 5
        # times). One row of places at a time: all of them together hold the map 49 times.
        windows = features.unfold(2, self.window[0], 1).unfold(3, self.window[1], 1)
        rows = [self._read_row(row) for row in windows.unbind(dim=2)]
        return torch.stack(rows, dim=2)

    def _read_row(self, windows: Tensor) -> Tensor:
        """Logits (N, L, W') of windows (N, C, W', h, w)."""
        logits: Tensor = self.classifier.head(self.read(windows.transpose(1, 2).flatten(0, 1)))
        return logits.view(len(windows), -1, logits.shape[1]).transpose(1, 2)

    def forward(self, images: Tensor, clinical: Tensor | None = None) -> Tensor:
        """Return logits (N, L): the class map averaged over space, before any link, as in the paper.

        Args:
            images: As for `compute_map`.
            clinical: As for the classifier; what they add to the logits does not depend on the place.
        """
        return add_wide(self.classifier.wide, self.compute_map(images).mean(dim=(2, 3)), clinical)
