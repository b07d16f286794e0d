"""Is a map true? Where the sign is known: does it point there. Where it is not: does hiding what it marks matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.explanation.perturbation import Score, score_masked
from medcls.reproducibility import make_generator

Heat = NDArray[np.float32]


def point_game(heat: Heat, region: NDArray[np.bool_]) -> float | None:
    """Returns 1 where the map's largest value lies in the region, 0 where not; None for a constant map.

    Of several largest values (a superpixel has one value) the share that lies inside: the hit to be expected of a
    point drawn among them.

    Args:
        heat: (*spatial).
        region: (*spatial): where the sign is.

    Source: Zhang et al., arXiv 1608.00507, section 4.1, without their tolerance.
    """
    if np.ptp(heat) == 0:
        return None
    return float(region[heat == heat.max()].mean())


def compute_iou(heat: Heat, region: NDArray[np.bool_]) -> float | None:
    """Returns the intersection over union of the region and as many of the map's largest positive pixels.

    None for a map without positive values.

    Args:
        heat: (*spatial).
        region: (*spatial), not empty.

    Source: own choice: the area is given, so that no threshold has to be chosen.
    """
    if not (heat > 0).any():
        return None
    least = np.partition(heat.ravel(), -int(region.sum()))[-int(region.sum())]
    marked = (heat >= least) & (heat > 0)
    return float((marked & region).sum() / (marked | region).sum())


@dataclass(frozen=True, slots=True)
class Curves:
    """What the score does while an image loses, or wins, its pixels in a map's order.

    Attributes:
        shares: (T,), of the pixels, 0 to 1.
        deletion: (T,), scores while the most marked pixels are hidden first: good maps fall fast.
        insertion: (T,), scores while the most marked pixels are shown first: good maps rise fast.
    """

    shares: NDArray[np.float64]
    deletion: NDArray[np.float64]
    insertion: NDArray[np.float64]

    @property
    def areas(self) -> tuple[float, float]:
        """Areas under the deletion and the insertion curve, in units of the score."""
        return float(np.trapezoid(self.deletion, self.shares)), float(np.trapezoid(self.insertion, self.shares))


def compute_curves(
    score: Score,
    image: NDArray[Any],
    heat: Heat,
    *,
    background: NDArray[np.float32],
    steps: int = 20,
    batch_size: int = 64,
) -> Curves:
    """Returns the deletion and the insertion curve of a map.

    Args:
        score: What the map explains.
        image: (C, *spatial).
        heat: (*spatial).
        background: (C, *spatial): stands where pixels are hidden.
        steps: Points after the first.
        batch_size: Images in one call of `score`.

    Source: Petsiuk, Das and Saenko, arXiv 1806.07421, section 4.3.
    """
    order = _order(heat)
    shares = np.linspace(0, 1, steps + 1)
    limits = np.rint(shares * heat.size)
    masks = [order >= limit for limit in limits] + [order < limit for limit in limits]
    answers = score_masked(score, image, background=background, masks=masks, batch_size=batch_size)
    return Curves(shares, answers[: steps + 1], answers[steps + 1 :])


def _order(heat: Heat) -> NDArray[np.int64]:
    """The place of each pixel, the largest value 0; equal values in a fixed random order, not from top to bottom."""
    ties = make_generator("ties", heat.shape).random(heat.size)
    places = np.empty(heat.size, dtype=np.int64)
    places[np.lexsort((ties, -heat.ravel()))] = np.arange(heat.size)
    return places.reshape(heat.shape)


def roll_map(heat: Heat, *, seed: tuple[object, ...]) -> Heat:
    """Returns the map moved cyclically to a random place: as smooth and as large, but marking something else.

    A map of independent random pixels would be no fair rival: hiding single pixels hurts a network in another way.

    Source: own choice, docs/decisions/0014-explanations.md.
    """
    generator = make_generator("roll", *seed)
    # At least a quarter of a side away, or the map would still point at the same thing.
    shifts = [int(n * generator.uniform(0.25, 0.75)) for n in heat.shape]
    return np.roll(heat, shifts, axis=tuple(range(heat.ndim)))
