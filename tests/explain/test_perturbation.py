from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medcls.explain.perturbation import build_background, score_masked


def test_backgrounds(image: NDArray[np.uint8]) -> None:
    assert not build_background(image, kind="black").any()
    np.testing.assert_allclose(build_background(image, kind="mean"), image.mean(), rtol=1e-5)
    blurred = build_background(image, kind="blur")
    assert blurred.shape == image.shape
    assert blurred.std() < 0.7 * image.std()
    assert blurred.mean() == pytest.approx(image.mean(), rel=0.1)
    regions = np.zeros(image.shape[1:], np.int64)
    regions[:, 24:] = 1
    by_segment = build_background(image, kind="segment", regions=regions)
    np.testing.assert_allclose(by_segment[0, :, :24], image[0, :, :24].mean(), rtol=1e-5)
    np.testing.assert_allclose(by_segment[0, :, 24:], image[0, :, 24:].mean(), rtol=1e-5)


def test_channels_are_blurred_apart() -> None:
    image = np.zeros((3, 20, 20), np.uint8)
    image[1] = 200
    blurred = build_background(image, kind="blur")
    assert blurred[0].max() == 0
    assert blurred[1].min() == pytest.approx(200)


def test_segment_needs_regions(image: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="with regions"):
        build_background(image, kind="segment")
    with pytest.raises(ValueError, match="background=white"):
        build_background(image, kind="white")


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_masked_images_reach_the_score(batch_size: int) -> None:
    image = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)
    background = np.full((2, 4, 5), -1.0, np.float32)
    masks = np.random.default_rng(0).random((7, 4, 5)) < 0.5
    sizes: list[int] = []

    def score(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return images.sum(dim=(1, 2, 3))

    got = score_masked(score, image, background=background, masks=iter(masks), batch_size=batch_size)
    np.testing.assert_allclose(got, [np.where(mask, image, background).sum() for mask in masks])
    assert max(sizes) <= batch_size
    assert sum(sizes) == 7


def test_no_mask_is_no_score(image: NDArray[np.uint8]) -> None:
    assert score_masked(lambda x: x, image, background=image.astype(np.float32), masks=[]).shape == (0,)
