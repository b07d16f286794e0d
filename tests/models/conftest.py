"""Networks without memory for questions of structure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medcls.models.classifier import GREY, Answer, Classifier, Input, build_classifier

THREE_CLASSES = Answer("multiclass", 3)


@pytest.fixture
def build_meta() -> Callable[..., Classifier]:
    """A classifier with shapes and no numbers: 138 million parameters of a VGG cost nothing."""

    def build(name: str, answer: Answer = THREE_CLASSES, stored: Input = GREY, *, dropout: float = 0.0) -> Classifier:
        with torch.device("meta"):
            return build_classifier(name, answer, stored, dropout=dropout)

    return build
