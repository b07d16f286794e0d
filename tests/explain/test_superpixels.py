from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medcls.explain.lime import cut_superpixels


@pytest.mark.parametrize("kind", ["slic", "quickshift", "grid"])
@pytest.mark.parametrize("channels", [1, 3])
def test_regions_are_numbered_without_a_gap(image: NDArray[np.uint8], kind: str, channels: int) -> None:
    regions = cut_superpixels(np.repeat(image, channels, axis=0), kind=kind, count=30)
    assert regions.shape == image.shape[1:]
    assert np.unique(regions).tolist() == list(range(regions.max() + 1))
    assert regions.max() >= (1 if kind == "quickshift" else 15)  # quickshift chooses its own number
    again = cut_superpixels(np.repeat(image, channels, axis=0), kind=kind, count=30)
    np.testing.assert_array_equal(regions, again)


def test_slic_follows_edges_where_a_grid_does_not(image: NDArray[np.uint8]) -> None:
    def spread(kind: str) -> float:
        regions = cut_superpixels(image, kind=kind, count=30)
        return float(np.mean([image[0][regions == r].std() for r in range(regions.max() + 1)]))

    assert spread("slic") < 0.6 * spread("grid")


def test_grid_of_a_volume_has_blocks_of_one_size() -> None:
    regions = cut_superpixels(np.zeros((1, 8, 16, 16), np.uint8), kind="grid", count=32)
    assert regions.max() == 31
    assert set(np.bincount(regions.ravel())) == {64}
    first = np.argwhere(regions == 0)
    np.testing.assert_array_equal(first.max(axis=0) - first.min(axis=0), [3, 3, 3])


def test_slic_cuts_volumes(volume_parts: tuple[NDArray[np.uint8], object, NDArray[np.bool_]]) -> None:
    volume, _, place = volume_parts
    regions = cut_superpixels(volume, kind="slic", count=20)
    inside = {int(r) for r in np.unique(regions[place])}
    # Supervoxels of the bright block hold nothing else.
    pure = sum(place[regions == r].all() for r in inside)
    assert pure >= len(inside) - 1


def test_flat_image_is_cut_too() -> None:
    assert cut_superpixels(np.full((1, 32, 32), 7, np.uint8), kind="slic", count=16).max() >= 8


def test_quickshift_of_a_volume_is_refused() -> None:
    with pytest.raises(ValueError, match="quickshift of 3-D images"):
        cut_superpixels(np.zeros((1, 4, 8, 8), np.uint8), kind="quickshift")
    with pytest.raises(ValueError, match="superpixels=slik"):
        cut_superpixels(np.zeros((1, 8, 8), np.uint8), kind="slik")
