"""Check by weight randomisation: a map that survives a scrambled network does not depend on the network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from medcls.explain.faithfulness import correlate_ranks, mean_of
from medcls.explain.method import Explained, Method, Subject
from medcls.models.classifier import Classifier
from medcls.reproducibility import make_generator

Heat = NDArray[np.float32]

# Mean |rank correlation| with the maps of the wholly scrambled network from which a method fails.
SANITY_LIMIT = 0.5


def plan_cascade(names: Sequence[str]) -> list[list[str]]:
    """Return the stages that are scrambled at each level: the last one, the upper half, all; from output to input."""
    upwards = list(reversed(names))
    depths = sorted({1, (len(upwards) + 1) // 2, len(upwards)})
    return [upwards[:depth] for depth in depths]


def scramble(model: Classifier, stages: Sequence[str], *, seed: tuple[object, ...]) -> Classifier:
    """Return a copy of `model` in which the numbers of each tensor of some stages are shuffled, by the seed.

    Shuffled, not drawn again: means and spreads stay, so that the scores stay in a usual range. The running statistics
    of BatchNorm are shuffled, too.

    Source: Adebayo et al., arXiv 1810.03292, section 3.1 (cascading randomisation).
    """
    scrambled = copy.deepcopy(model)
    for stage in stages:
        for name, tensor in scrambled.stages[stage].state_dict(keep_vars=True).items():
            if tensor.is_floating_point() and tensor.numel() > 1:
                order = make_generator("scramble", *seed, stage, name).permutation(tensor.numel())
                with torch.no_grad():
                    tensor.copy_(tensor.reshape(-1)[torch.from_numpy(order)].reshape(tensor.shape))
    return scrambled


def compare_structure(first: Heat, second: Heat) -> float | None:
    """Return the structural similarity of two maps, each stretched to [0, 1]; None where one is constant.

    Source: Wang et al., IEEE TIP 13 (2004), as in scikit-image; window of 7 pixels, or less in small maps.
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    stretched = [(each - each.min()) / np.ptp(each) for each in (first, second)]
    window = min(7, *first.shape)
    size = window - (window + 1) % 2
    return float(structural_similarity(*stretched, win_size=size, data_range=1.0))  # type: ignore[no-untyped-call]


class SanityLevel(TypedDict):
    """How alike maps stay while some stages are scrambled, as explanations.json has it; None if no map has ranks."""

    scrambled: list[str]
    rank_correlation: float | None
    signed_rank_correlation: float | None
    structural_similarity: float | None
    undefined: int


class Sanity(TypedDict):
    """The check by weight randomisation, as explanations.json has it."""

    levels: list[SanityLevel]
    limit: float
    images: int
    verdict: str


def check_sanity(
    method: Method, model: Classifier, subjects: Sequence[Subject], explained: Sequence[Explained]
) -> Sanity:
    """Return how alike the maps stay while the network is scrambled from its output down, and the verdict.

    The verdict: "failed" from a mean |rank correlation| of SANITY_LIMIT with the wholly scrambled network's maps;
    "undecided" if all of these maps are constant.
    """
    levels: list[SanityLevel] = []
    for stages in plan_cascade(list(model.stages)):
        scrambled = scramble(model, stages, seed=(method.job.seed,))
        ranks, structures = [], []
        for subject, before in zip(subjects, explained, strict=True):
            after = method.explain(scrambled, subject.image, target=subject.target, name=subject.image_id)
            ranks.append(correlate_ranks(before.heat, after.heat))
            structures.append(compare_structure(before.heat, after.heat))
        levels.append(
            {
                "scrambled": stages,
                "rank_correlation": mean_of([None if rank is None else abs(rank) for rank in ranks]),
                "signed_rank_correlation": mean_of(ranks),
                "structural_similarity": mean_of(structures),
                "undefined": sum(rank is None for rank in ranks),
            }
        )
    return {"levels": levels, "limit": SANITY_LIMIT, "images": len(subjects), "verdict": judge_sanity(levels)}


def judge_sanity(levels: Sequence[SanityLevel]) -> str:
    """Return "passed", "failed" or "undecided" from the last level."""
    alike = levels[-1]["rank_correlation"]
    if alike is None:
        return "undecided"
    return "failed" if alike >= SANITY_LIMIT else "passed"
