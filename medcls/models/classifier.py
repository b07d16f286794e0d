"""The classifier: stored integers in, logits out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medcls.errors import ConfigError
from medcls.models.backbones import Backbone, build_backbone
from medcls.models.heads import LinearHead, count_logits
from medcls.models.weights import IMAGENET_MEAN, IMAGENET_STD


class InputNormalization(nn.Module):
    """Stored integers to normalised colour, on the device that computes.

    Grey is expanded to three channels and every channel is normalised with its own mean and standard deviation:
    the same logits as of the grey image saved as RGB. (Summing the first filters over the colours is not the
    same: the three means and standard deviations differ.)

    Args:
        max_value: Largest stored integer: 255 or 65535.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, max_value: int) -> None:
        super().__init__()
        self.max_value = float(max_value)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns (N, 3, H, W) float32 of images (N, 1 or 3, H, W), integers in [0, max_value]."""
        scaled = images.to(torch.float32) / self.max_value
        normalised: Tensor = (scaled - self.mean) / self.std
        return normalised


class Classifier(nn.Module):
    """Normalisation, backbone and head.

    Args:
        backbone: Images to features.
        head: Features to logits.
        max_value: Largest stored integer.
        normalize: Of volumes; None = ImageNet's, of images.
    """

    def __init__(
        self, backbone: Backbone, head: LinearHead, *, max_value: int = 255, normalize: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.normalize = normalize or InputNormalization(max_value)
        self.backbone = backbone
        self.head = head

    @property
    def stages(self) -> dict[str, nn.Module]:
        """Stage name -> module, from input to output; the last is "head"."""
        return {**self.backbone.stages, "head": self.head}

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (N, L) of images (N, C, H, W) or volumes (N, C, D, H, W) as stored."""
        logits: Tensor = self.head(self.backbone(self.normalize(images)))
        return logits


class FeatureClassifier(nn.Module):
    """The part of a classifier above its backbone: features in, logits out; parameter names are the classifier's.

    Args:
        classifier: Whose modules it shares.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.head = classifier.head

    def forward(self, features: Tensor) -> Tensor:
        """Returns logits (N, L) of features (N, num_features)."""
        logits: Tensor = self.head(features)
        return logits


def build_classifier(
    name: str,
    *,
    kind: str,
    num_classes: int,
    in_channels: int = 1,
    max_value: int = 255,
    dropout: float = 0.0,
    normalize: nn.Module | None = None,
) -> Classifier:
    """Returns a randomly initialised classifier.

    Args:
        name: Architecture, one of backbones.ARCHITECTURES.
        kind: What the outputs are (data.targets.Task.output).
        num_classes: K.
        in_channels: Channels of the stored images, 1 or 3.
        max_value: Largest stored integer, 255 or 65535.
        dropout: Inside VGG's fully connected layers, or before a ResNet's head.
        normalize: Of volumes; None = ImageNet's, of images.

    Raises:
        ConfigError: unknown name or task, or another number of channels.
    """
    if in_channels not in (1, 3):
        raise ConfigError(f"the store has {in_channels} channels: {name} takes 1 (grey) or 3 (colour)")
    backbone = build_backbone(name, dropout=dropout)
    # VGG's own layers carry the dropout; a second one before the head would double it.
    head_dropout = 0.0 if name.startswith("vgg") else dropout
    head = LinearHead(backbone.num_features, count_logits(kind, num_classes), dropout=head_dropout)
    return Classifier(backbone, head, max_value=max_value, normalize=normalize)
