"""Measure maps: whether they mark a known sign, and whether hiding the marked area changes the score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from medcls.explain.perturbation import Score, score_masked
from medcls.reproducibility import make_generator

Heat = NDArray[np.float32]
LEAST_PATIENTS = 6  # of fewer no two-sided p value of sign flips is below 0.05
_MOST_COUNTED = 15
_FLIPS = 20_000


def point_game(heat: Heat, region: NDArray[np.bool_]) -> float | None:
    """Return 1 where the map's largest value lies in the region, 0 where not; None for a constant map.

    Of several largest values (a superpixel has one value) the share inside: the expected hit of a point drawn among
    them.

    Source: Zhang et al., arXiv 1608.00507, section 4.1, without their tolerance.
    """
    if np.ptp(heat) == 0:
        return None
    return float(region[heat == heat.max()].mean())


def compute_iou(heat: Heat, region: NDArray[np.bool_]) -> float | None:
    """Return the intersection over union of the region, not empty, and as many of the map's largest positive pixels.

    None for a map without positive values.

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


CURVE_STEPS = 10


def count_curve_images(maps: int) -> int:
    """Return how many images `compute_curves` scores: the whole and the hidden one are common to all curves."""
    return 2 + maps * 2 * (CURVE_STEPS - 1)


def compute_curves(
    score: Score,
    image: NDArray[Any],
    heats: Sequence[Heat],
    *,
    background: NDArray[np.float32],
    steps: int = CURVE_STEPS,
    batch_size: int = 64,
) -> list[Curves]:
    """Return the deletion and the insertion curve of each map; the images of all of them go through in full batches.

    Each curve has `steps` points after the first.

    Source: Petsiuk, Das and Saenko, arXiv 1806.07421, section 4.3.
    """
    shares = np.linspace(0, 1, steps + 1)

    def draw_masks() -> Iterator[NDArray[np.bool_]]:
        yield np.ones(heats[0].shape, dtype=bool)
        yield np.zeros(heats[0].shape, dtype=bool)
        for order in map(_order, heats):
            limits = np.rint(shares[1:-1] * order.size)
            yield from (order >= limit for limit in limits)
            yield from (order < limit for limit in limits)

    answers = score_masked(score, image, background=background, masks=draw_masks(), batch_size=batch_size)
    whole, hidden = answers[:2]
    curves = []
    for inner in answers[2:].reshape(len(heats), 2, steps - 1):
        deletion = np.array([whole, *inner[0], hidden])
        insertion = np.array([hidden, *inner[1], whole])
        curves.append(Curves(shares, deletion, insertion))
    return curves


def _order(heat: Heat) -> NDArray[np.int64]:
    """Return the rank of each pixel, 0 for the largest value; equal values in a fixed random order."""
    ties = make_generator("ties", heat.shape).random(heat.size)
    places = np.empty(heat.size, dtype=np.int64)
    places[np.lexsort((ties, -heat.ravel()))] = np.arange(heat.size)
    return places.reshape(heat.shape)


def roll_map(heat: Heat, *, seed: tuple[object, ...]) -> Heat:
    """Return the map moved cyclically to a random place: as smooth and as large, but marking something else.

    A map of independent random pixels would be no fair rival: hiding single pixels hurts a network in another way.

    Source: own choice, docs/decisions/0014-explanations.md.
    """
    generator = make_generator("roll", *seed)
    # At least a quarter of a side away, or the map would still point at the same thing.
    shifts = [int(n * generator.uniform(0.25, 0.75)) for n in heat.shape]
    return np.roll(heat, shifts, axis=tuple(range(heat.ndim)))


def compute_chance(gains: Sequence[float], patients: Sequence[str], *, seed: int = 0) -> float | None:
    """Return the p value (two-sided) of maps that matter no more than the same maps moved; None below 6 patients.

    If a map marks nothing, its gain over its moved copies is as likely to have the other sign. The patient is the unit:
    the images of a patient change sign together.

    Args:
        gains: (n,) of each image: by how much its area is better than that of the moved maps.
        patients: (n,) whose image it is.
        seed: Seed of the flips where there are too many to count.

    Source: Fisher 1935, section 21 (sign flips); up to 15 patients all of them, else 20,000 random ones.
    """
    sums: dict[str, float] = {}
    for patient, gain in zip(patients, gains, strict=True):
        sums[patient] = sums.get(patient, 0.0) + gain
    total = np.array(list(sums.values()))
    if len(total) < LEAST_PATIENTS:
        return None
    if len(total) <= _MOST_COUNTED:
        signs = 1 - 2.0 * (np.arange(2 ** len(total))[:, None] >> np.arange(len(total)) & 1)
    else:
        drawn = make_generator("flips", seed).random((_FLIPS, len(total)))
        signs = np.vstack([np.ones(len(total)), np.where(drawn < 0.5, -1.0, 1.0)])
    # Sums that differ by rounding are the same sum.
    reached = np.abs(signs @ total) >= abs(float(total.sum())) * (1 - 1e-9)
    return float(reached.mean())


def correlate_ranks(first: NDArray[np.floating], second: NDArray[np.floating]) -> float | None:
    """Return Spearman's rank correlation of two arrays of one shape; None if one is constant.

    Source: Spearman 1904; ties take their mean rank.
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(rankdata(first, axis=None), rankdata(second, axis=None))[0, 1])


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of the defined values; None if there is none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
