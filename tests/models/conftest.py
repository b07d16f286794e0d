"""One thread, so that the tests do not fight for the cores; networks without memory for questions of structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from medcls.models.classifier import Classifier, build_classifier


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def build_meta() -> Callable[..., Classifier]:
    """A classifier with shapes and no numbers: 138 million parameters of a VGG cost nothing."""

    def build(name: str, **settings: object) -> Classifier:
        with torch.device("meta"):
            return build_classifier(name, **({"kind": "multiclass", "num_classes": 3} | settings))

    return build
