"""Networks without memory for questions of structure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medcls.models.classifier import Classifier, build_classifier


@pytest.fixture
def build_meta() -> Callable[..., Classifier]:
    """A classifier with shapes and no numbers: 138 million parameters of a VGG cost nothing."""

    def build(name: str, **settings: object) -> Classifier:
        with torch.device("meta"):
            return build_classifier(name, **({"kind": "multiclass", "num_classes": 3} | settings))

    return build
