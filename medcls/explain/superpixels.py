"""An image cut into regions that are hidden as one: superpixels in 2-D, supervoxels in 3-D."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import quickshift, slic

KINDS = ("slic", "quickshift", "grid")
# With intensities in [0, 1]: edges win over a regular shape (scikit-image's own example for grey images).
_COMPACTNESS = 0.1


def cut_superpixels(image: NDArray[Any], *, kind: str = "slic", count: int = 50) -> NDArray[np.int64]:
    """Returns the region of each pixel, (*spatial), numbers 0 to S - 1 without a gap; S is near `count`.

    Args:
        image: (C, H, W) or (C, D, H, W), any real dtype; its own range is taken for [0, 1].
        kind: "slic"; "quickshift" (2-D only; finds its own number of regions); "grid" of blocks.
        count: Regions asked for, >= 2.

    Raises:
        ValueError: unknown kind, or quickshift of a volume.

    Source: SLIC, Achanta et al., TPAMI 2012; quickshift, Vedaldi and Soatto, ECCV 2008, with the settings of the
    lime package (kernel_size 4, max_dist 200, ratio 0.2); both as in scikit-image.
    """
    if kind == "grid":
        return _cut_grid(image.shape[1:], count)
    scaled = _scale(image)
    if kind == "slic":
        regions = slic(
            scaled, n_segments=count, compactness=_COMPACTNESS, channel_axis=0, convert2lab=False, start_label=0
        )
    elif kind == "quickshift" and image.ndim == 3:
        colour = np.broadcast_to(scaled, (3, *image.shape[1:])) if len(image) == 1 else scaled
        settings = {"kernel_size": 4, "max_dist": 200, "ratio": 0.2, "rng": 0}
        regions = quickshift(colour, channel_axis=0, **settings)  # type: ignore[no-untyped-call]
    else:
        raise ValueError(f"superpixels={kind} of {image.ndim - 1}-D images: expected slic or grid (quickshift in 2-D)")
    return _renumber(np.asarray(regions))


def _scale(image: NDArray[Any]) -> NDArray[np.float64]:
    values = image.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _cut_grid(shape: tuple[int, ...], count: int) -> NDArray[np.int64]:
    """Blocks as near to cubes as the shape allows: their edge is the root of the pixels each may have."""
    edge = (np.prod(shape) / count) ** (1 / len(shape))
    cuts = [max(1, round(length / edge)) for length in shape]
    blocks = [np.arange(length) * number // length for length, number in zip(shape, cuts, strict=True)]
    places = np.meshgrid(*blocks, indexing="ij")
    return _renumber(np.ravel_multi_index(places, cuts))


def _renumber(regions: NDArray[Any]) -> NDArray[np.int64]:
    _, numbers = np.unique(regions, return_inverse=True)
    return numbers.reshape(regions.shape).astype(np.int64)
