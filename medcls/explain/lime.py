"""LIME: a sparse linear model of the score around one image, over superpixels that are shown or hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import quickshift, slic
from sklearn.linear_model import lars_path

from medcls.errors import DataError
from medcls.explain.perturbation import Score, score_masked
from medcls.reproducibility import make_generator

# With intensities in [0, 1]: edges win over a regular shape (scikit-image's own example for grey images).
_COMPACTNESS = 0.1


def cut_superpixels(image: NDArray[Any], *, kind: str = "slic", count: int = 50) -> NDArray[np.int64]:
    """Return the region of each pixel, (*spatial), numbers 0 to S - 1 without a gap; S is near `count`.

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
    scaled = image.astype(np.float64)
    low, high = float(scaled.min()), float(scaled.max())
    scaled = (scaled - low) / (high - low if high > low else 1.0)
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


def _cut_grid(shape: tuple[int, ...], count: int) -> NDArray[np.int64]:
    """Return blocks as near to cubes as the shape allows: their edge is the root of the pixels each may have."""
    edge = (np.prod(shape) / count) ** (1 / len(shape))
    cuts = [max(1, round(length / edge)) for length in shape]
    blocks = [np.arange(length) * number // length for length, number in zip(shape, cuts, strict=True)]
    places = np.meshgrid(*blocks, indexing="ij")
    return _renumber(np.ravel_multi_index(places, cuts))


def _renumber(regions: NDArray[Any]) -> NDArray[np.int64]:
    _, numbers = np.unique(regions, return_inverse=True)
    return numbers.reshape(regions.shape).astype(np.int64)


Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LimeSettings:
    """How the neighbourhood is drawn and fitted.

    Attributes:
        num_samples: N, masks drawn; the first shows everything.
        num_features: K, regions with a weight; None = all.
        kernel_width: sigma of the kernel exp(-d^2 / sigma^2), d the distance of the mask from "all shown". The
            lime package's kernel_width 0.25 is 0.25 * sqrt(2) here: it takes the root of its kernel.
        distance: "cosine" on the masks (the package) or "euclidean": root of the share that is hidden.
        sampling: "count" draws how many regions are shown, then which (the paper); "coin" throws one for each
            region (the package).
        ridge: L2 penalty of the last fit; 0 = least squares (the paper), 1 = the package.
        batch_size: Images in one call of the network.
    """

    num_samples: int = 1000
    num_features: int | None = 10
    kernel_width: float = 0.25 * 2**0.5
    distance: str = "cosine"
    sampling: str = "count"
    ridge: float = 0.0
    batch_size: int = 64


@dataclass(frozen=True, slots=True)
class LocalModel:
    """The linear model around one image.

    Attributes:
        weights: (S,), what showing each region adds to the score; 0 where it was not selected.
        intercept: The model's score with everything hidden.
        r2: Weighted R^2 of the fit, at most 1; None where the score never changed.
        score: The network's score of the whole image.
        prediction: The linear model's score of the whole image.
    """

    weights: Floats
    intercept: float
    r2: float | None
    score: float
    prediction: float

    def paint(self, regions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the map (*spatial): each region in the colour of its weight."""
        return self.weights[regions].astype(np.float32)


def explain_lime(
    score: Score,
    image: NDArray[Any],
    *,
    regions: NDArray[np.int64],
    background: NDArray[np.float32],
    settings: LimeSettings,
    seed: tuple[object, ...],
) -> LocalModel:
    """Return the local linear model of `score`, best a probability or a value, around `image`.

    The regions are numbered 0 to S - 1. The masks are a pure function of `seed`, such as (seed, image_id).

    Raises:
        DataError: fewer than two regions.

    Source: Ribeiro, Singh and Guestrin, arXiv 1602.04938, section 3.4, algorithm 1 (K-LASSO).
    """
    count = int(regions.max()) + 1
    if count < 2:
        raise DataError("LIME found one superpixel: raise num_superpixels, or set superpixels=grid")
    masks = draw_masks(settings, count, make_generator("lime", *seed))
    shown = (mask[regions] for mask in masks)
    answers = score_masked(score, image, background=background, masks=shown, batch_size=settings.batch_size)
    closeness = weigh_masks(masks, width=settings.kernel_width, distance=settings.distance)
    return fit_local_model(masks, answers, closeness, num_features=settings.num_features, ridge=settings.ridge)


def draw_masks(settings: LimeSettings, count: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return which regions each sample shows, (N, S) bool; the first row shows all."""
    draws = generator.random((settings.num_samples, count))
    if settings.sampling == "coin":
        masks = draws < 0.5
    else:
        shown = generator.integers(1, count + 1, size=(settings.num_samples, 1))
        masks = draws.argsort(axis=1).argsort(axis=1) < shown
    masks[0] = True
    return masks


def weigh_masks(masks: NDArray[np.bool_], *, width: float, distance: str) -> Floats:
    """Return the kernel's weight of each mask, (N,), in (0, 1]; 1 for all shown."""
    share = masks.mean(axis=1)
    far = 1 - np.sqrt(share) if distance == "cosine" else np.sqrt(1 - share)
    weights: Floats = np.exp(-((far / width) ** 2))
    return weights


def fit_local_model(
    masks: NDArray[np.bool_], scores: Floats, closeness: Floats, *, num_features: int | None, ridge: float
) -> LocalModel:
    """Return the linear fit of the scores (N,) on at most num_features of the regions; None = all.

    Args:
        masks: (N, S); the first row shows all.
        scores: Score under each mask, (N,).
        closeness: Weights of the samples, (N,).
        num_features: K, the most regions with a weight.
        ridge: L2 penalty.
    """
    total = closeness.sum()
    middle, level = closeness @ masks / total, float(closeness @ scores / total)
    root = np.sqrt(closeness)
    X, y = root[:, None] * (masks - middle), root * (scores - level)
    size = masks.shape[1]
    kept = np.arange(size)
    if num_features is not None and num_features < size:
        kept = select_features(X, y, num_features)
    weights = np.zeros(size)
    if ridge > 0:
        inner = X[:, kept].T @ X[:, kept] + ridge * np.eye(len(kept))
        weights[kept] = np.linalg.solve(inner, X[:, kept].T @ y)
    else:
        weights[kept] = np.linalg.lstsq(X[:, kept], y, rcond=None)[0]
    spread = float(y @ y)
    # Rounding of the score alone is no change of it.
    r2 = None
    if spread > total * (1e-7 * max(1.0, abs(level))) ** 2:
        r2 = 1 - float(((y - X @ weights) ** 2).sum()) / spread
    intercept = level - float(middle @ weights)
    return LocalModel(
        weights=weights,
        intercept=intercept,
        r2=r2,
        score=float(scores[0]),
        prediction=intercept + float(weights.sum()),
    )


def select_features(X: Floats, y: Floats, count: int) -> NDArray[np.int64]:
    """Return at most `count` columns of X (n, S), ascending: those with a weight before the Lasso path has more.

    X and y (n,) are centred.
    """
    _, _, path = lars_path(X, y, method="lasso")  # (S, corners of the path)
    beyond = np.flatnonzero((path != 0).sum(axis=0) > count)
    # A feature may leave again, and the path come back to K later: the first corner with more ends it.
    last = (beyond[0] if len(beyond) else path.shape[1]) - 1
    return np.flatnonzero(path[:, last])


def pick_submodular(weights: Floats, budget: int) -> list[int]:
    """Return the images that together show most of what the model looks at, the most telling one first.

    Args:
        weights: (n, S): of n images over the same S features (the cells of one grid).
        budget: B, images to pick; fewer where the rest adds nothing.

    Source: Ribeiro et al., arXiv 1602.04938, section 4, algorithm 2 (SP-LIME, greedy). The paper leaves the
    importance of superpixels open; the cells of one grid are taken as features (own choice).
    """
    present = np.abs(weights) > 0
    importance = np.sqrt(np.abs(weights).sum(axis=0))
    picked: list[int] = []
    covered = np.zeros(weights.shape[1], dtype=bool)
    while len(picked) < budget:
        gains = (present & ~covered) @ importance
        best = int(gains.argmax())
        if gains[best] <= 0:
            break
        picked.append(best)
        covered |= present[best]
    return picked
