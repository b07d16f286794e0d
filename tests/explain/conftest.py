"""Small networks whose answer depends on one known place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SIZE = 48
# (y, x) of the only pixels that the planted networks look at.
PLACE = (slice(8, 18), slice(28, 40))


class PlantedNetwork(nn.Module):
    """Two convolutions and a mean; the answer is the brightness of the planted place, whatever stands elsewhere.

    Args:
        spatial_dims: 2 or 3.
        place: Slices of the place.
        shape: Of the images.
    """

    def __init__(self, shape: tuple[int, ...], place: tuple[slice, ...]) -> None:
        super().__init__()
        convolution = nn.Conv2d if len(shape) == 2 else nn.Conv3d
        window = torch.zeros(shape)
        window[place] = 1
        self.register_buffer("window", window)
        torch.manual_seed(3)
        self.first = convolution(1, 4, 3, padding=1)
        self.second = convolution(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 1)
        with torch.no_grad():
            for layer in (self.first, self.second, self.head):
                layer.weight.abs_()  # every path speaks for the answer
                layer.bias.zero_()

    @property
    def stages(self) -> dict[str, nn.Module]:
        return {"first": self.first, "second": self.second, "head": self.head}

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.first(images * self.window / 255).relu()).relu()
        return self.head(features.flatten(2).mean(dim=2))


@pytest.fixture
def network() -> PlantedNetwork:
    return PlantedNetwork((SIZE, SIZE), PLACE)


@pytest.fixture
def score(network: PlantedNetwork) -> Callable[[Tensor], Tensor]:
    return lambda images: network(images)[:, 0]


@pytest.fixture
def region() -> NDArray[np.bool_]:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[PLACE] = True
    return mask


@pytest.fixture
def image() -> NDArray[np.uint8]:
    """Bright discs: one in the planted place, and larger and brighter ones elsewhere that the network never sees."""
    picture = np.random.default_rng(0).normal(60, 6, (SIZE, SIZE))
    picture[9:17, 29:39] += 110
    picture[26:44, 4:24] += 160
    picture[4:12, 4:14] += 160
    return np.clip(picture, 0, 255).astype(np.uint8)[None]


@pytest.fixture
def volume_parts() -> tuple[NDArray[np.uint8], nn.Module, NDArray[np.bool_]]:
    """A volume (1, 12, 16, 16), its planted network and the place."""
    place = (slice(2, 7), slice(8, 14), slice(1, 8))
    picture = np.random.default_rng(1).normal(60, 6, (12, 16, 16))
    picture[place] += 100
    picture[8:, 2:7, 9:15] += 150
    mask = np.zeros(picture.shape, dtype=bool)
    mask[place] = True
    return np.clip(picture, 0, 255).astype(np.uint8)[None], PlantedNetwork(picture.shape, place), mask
