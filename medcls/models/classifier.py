"""The classifier: stored integers in, logits out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medcls.errors import ConfigError
from medcls.models.backbones import CLINICAL, Backbone
from medcls.models.families import build_backbone, choose_family
from medcls.models.heads import OUTPUTS, LinearHead, build_head, count_logits
from medcls.models.normalization import IMAGENET_MEAN, IMAGENET_STD, ColourNormalization, VolumeNormalization


def count_wide_outputs(output: str, num_classes: int) -> int:
    """Return how many rows of weights the wide part has.

    Args:
        output: One of heads.OUTPUTS.
        num_classes: K.

    Returns:
        One for each logit; one for all of CORN's: a column then changes the odds of going on to the next grade by the
        same factor at every grade (continuation-ratio model). Other outputs have no such order.
    """
    return 1 if OUTPUTS[output].proportional else count_logits(output, num_classes)


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
        """Return what is added to the logits, (N, num_outputs) float32, of design rows (N, C)."""
        # A product and a sum: autocast leaves them in float32, a matrix product it does not.
        added: Tensor = (clinical[:, None] * self.weight).sum(dim=2)
        return added


class InputNormalization(nn.Module):
    """Stored integers to normalised colour, on the device that computes.

    Grey is expanded to three channels and every channel is normalised with its own mean and standard deviation:
    the same logits as of the grey image saved as RGB. (Summing the first filters over the colours is not the
    same: the three means and standard deviations differ.)

    Args:
        max_value: Largest stored integer: 255 or 65535.
        mean: What becomes 0 in each channel, of values in [0, 1].
        std: What becomes 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        max_value: int,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.max_value = float(max_value)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, 3, H, W) float32 of images (N, 1 or 3, H, W), integers in [0, max_value]."""
        scaled = images.to(torch.float32) / self.max_value
        normalised: Tensor = (scaled - self.mean) / self.std
        return normalised


class Classifier(nn.Module):
    """Normalisation, backbone and head; and a wide part beside them, where it takes clinical columns.

    Args:
        backbone: Images to features.
        head: Features to logits.
        max_value: Largest stored integer.
        normalize: Of volumes; None = ImageNet's, of images.
        wide: Clinical columns to what is added to the logits.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: LinearHead,
        *,
        max_value: int = 255,
        normalize: nn.Module | None = None,
        wide: WidePart | None = None,
    ) -> None:
        super().__init__()
        self.normalize = normalize or InputNormalization(max_value)
        self.backbone = backbone
        self.head = head
        self.wide = wide

    @property
    def stages(self) -> dict[str, nn.Module]:
        """Stage name -> module, from input to output; the last is "head". The wide part lies beside this path."""
        return {**self.backbone.stages, "head": self.head}

    def forward(self, images: Tensor, clinical: Tensor | None = None) -> Tensor:
        """Return logits (N, L).

        Args:
            images: (N, C, H, W), or volumes (N, C, D, H, W), as stored.
            clinical: (N, C), float32, where there is a wide part.

        Raises:
            ValueError: clinical columns are missing, or given to a model that takes none.
        """
        return add_wide(self.wide, self.head(self.backbone(self.normalize(images))), clinical)


def add_wide(wide: WidePart | None, logits: Tensor, clinical: Tensor | None) -> Tensor:
    """Return logits (N, L) with what clinical columns (N, C) add to them; raises ValueError as `Classifier` does."""
    if clinical is None and wide is None:
        return logits
    if clinical is None or wide is None:
        needs = "takes only images" if wide is None else "takes clinical columns"
        raise ValueError(f"clinical columns {'are missing' if clinical is None else 'given'}: this model {needs}")
    added: Tensor = wide(clinical)
    # With deep supervision every layer's answer has the clinical columns added.
    return logits + added.repeat(1, logits.shape[1] // added.shape[1])


class FeatureClassifier(nn.Module):
    """The part of a classifier above its backbone: features in, logits out; parameter names are the classifier's.

    Args:
        classifier: Whose modules it shares.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.head = classifier.head
        self.wide = classifier.wide

    def forward(self, features: Tensor, clinical: Tensor | None = None) -> Tensor:
        """Return logits (N, L) of features (N, num_features), and of clinical columns as `Classifier` takes them."""
        return add_wide(self.wide, self.head(features), clinical)


@dataclass(frozen=True, slots=True)
class Input:
    """The stored images or volumes that a classifier takes.

    Attributes:
        shape: (C, *spatial); C is 1 or 3 where weights may be ImageNet's; only acnn3d's weights, and networks of fixed
            size, depend on the spatial axes: without them it is (C,).
        max_value: Largest stored integer, 255 or 65535.
        normalize: Of volumes; None = ImageNet's, of images.
    """

    shape: tuple[int, ...] = (1,)
    max_value: int = 255
    normalize: VolumeNormalization | None = None


GREY = Input()
"""Grey images of 8 bits and of any size."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The logits of a classifier, and the parts that compute them.

    Attributes:
        kind: One of heads.OUTPUTS.
        num_classes: K.
        head: One of heads.HEADS.
        head_width: Hidden units of head="mlp".
        num_clinical: Columns C of the wide part; 0 = none.
    """

    kind: str
    num_classes: int
    head: str = "linear"
    head_width: int = 0
    num_clinical: int = 0


def build_classifier(
    name: str,
    answer: Answer,
    stored: Input = GREY,
    *,
    dropout: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Classifier:
    """Return a randomly initialised classifier.

    Args:
        name: Architecture, as families.build_backbone takes it; "clinical" has no image network, only a bias.
        answer: Logits, the head and the wide part.
        stored: Images or volumes that it takes.
        dropout: After the backbone's fully connected layers, or before the head of one without any.
        options: Of the architecture: acnn3d has all_levels (deep supervision), slices_ planes, num_slices and pooling;
            a VGG or ResNet above and width (initialization.Slim).

    Raises:
        ConfigError: unknown name or task, another number of channels, or "clinical" without columns.
    """
    columns = answer.num_clinical
    if name == CLINICAL and not columns:
        raise ConfigError("model=clinical takes no images: set clinical.categorical=[…] or clinical.numeric=[…]")
    backbone = build_backbone(name, shape=stored.shape, dropout=dropout, options=options)
    # Fully connected layers carry the dropout; a second one on the same features would double it.
    dropped = any(isinstance(module, nn.Dropout) and module.p for module in backbone.modules())
    head_dropout = 0.0 if dropped and answer.head == "linear" else dropout
    num_logits = count_logits(answer.kind, answer.num_classes)
    head = build_head(answer.head, backbone.levels, num_logits, dropout=head_dropout, width=answer.head_width)
    wide = WidePart(columns, count_wide_outputs(answer.kind, answer.num_classes)) if columns else None
    family = choose_family(name)
    chosen: nn.Module | None = stored.normalize
    if family.colour:
        chosen = (
            InputNormalization(stored.max_value, family.mean, family.std)
            if stored.normalize is None
            else ColourNormalization(stored.normalize, family.mean, family.std)
        )
    return Classifier(backbone, head, max_value=stored.max_value, normalize=chosen, wide=wide)
