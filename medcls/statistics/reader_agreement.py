"""Agreement among several readers of the same images, beyond chance and with an interval."""

from __future__ import annotations

import numpy as np

from medcls.statistics.intervals import MetricEntry, summarize
from medcls.statistics.metrics import Estimates
from medcls.statistics.predictions import Floats, Integers
from medcls.statistics.support import Basis


def measure_agreement(
    votes: Floats, patients: Integers, *, replicates: int = 1000, seed: int = 0
) -> dict[str, int | MetricEntry]:
    """Return how many images two or more readers have labelled, their agreement and Krippendorff's alpha.

    Alpha is 1 if all readers always agree and 0 if they agree as often as chance would have them; for two readers of
    all images it is Scott's pi with a correction for few images, for several readers Fleiss' kappa with the same one.

    Args:
        votes: (N, K): how many readers gave each image each class; readers may be missing.
        patients: (N,) patient number of each image.
        replicates: Bootstrap samples of patients.
        seed: Seed of the bootstrap.

    Returns:
        "images" and "patients" with at least two votes; "agreement" (share of pairs of readers that agree, the mean
        over images) and "alpha", each with value, low and high (95 %, bootstrap over patients), or a reason why not.

    Source: Krippendorff 2004, Content Analysis, chapter 11 (nominal data); bootstrap over patients after Field &
        Welsh 2007.
    """
    number = votes.sum(axis=1)
    several = number >= 2
    votes, number = votes[several], number[several]
    facts: dict[str, int | MetricEntry] = {"images": len(votes), "patients": len(np.unique(patients[several]))}
    if not len(votes):
        return facts
    pairs = (number**2 - (votes**2).sum(axis=1)) / (number - 1)  # ordered pairs that differ, per vote

    def estimate(weights: Floats) -> Estimates:
        total, classes = weights @ number, weights @ votes
        with np.errstate(invalid="ignore", divide="ignore"):
            observed = weights @ pairs / total
            expected = (total**2 - (classes**2).sum(axis=1)) / (total * (total - 1))
            agreement = weights @ (1 - pairs / number) / weights.sum(axis=1)
            return {"agreement": agreement, "alpha": 1 - observed / expected}

    def explain(name: str) -> str:
        return f"{name} is undefined: all readers gave all images one class"

    codes = np.unique(patients[several], return_inverse=True)[1]
    everyone = (np.ones(len(codes), dtype=bool),)
    support = {"agreement": Basis("precision", everyone), "alpha": Basis("agreement", everyone)}
    found = summarize(estimate, codes, support, replicates=replicates, seed=seed, explain=explain)
    return {**facts, **found}
