"""Odds ratios of clinical columns beside the image, with intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.statistics.intervals import MetricEntry, summarize
from medcls.statistics.logistic import fit_linear, fit_logistic
from medcls.statistics.metrics import Estimates
from medcls.statistics.predictions import Floats, Integers
from medcls.statistics.support import Basis

REGRESSION = "regression"
_SAME = 1e-12  # variance below which a column has one value


@dataclass(frozen=True, slots=True)
class Contrast:
    """One comparison, of which the log odds (of a regression the value) are what the image says and the columns add.

    Attributes:
        name: For readers.
        rows: (M,) rows that take part; one may several times.
        outcome: (M,) 0 or 1; a value for regression.
        image: (M,) what the image alone says of it, in log odds or in the value's unit.
        steps: (M,) which of the S intercepts a row has.
        linear: The outcome is a value: least squares instead of log odds.
    """

    name: str
    rows: Integers
    outcome: Floats
    image: Floats
    steps: Integers
    linear: bool = False


def list_contrasts(output: str, targets: Floats, image: Floats, *, class_names: Sequence[str]) -> list[Contrast]:
    """Return the comparisons of a task.

    Args:
        output: What the network's outputs are (data.targets.Task.output).
        targets: (N, T); NaN = unknown.
        image: (N, L) logits by the image alone.
        class_names: K names.

    Returns:
        binary: the second class against the first. multilabel: with against without each label. multiclass and joint:
        each class against the first, among the images of the two. ordinal: going on to a higher grade, at all grades
        together. regression: the value.

    Source: pairs of classes: Begg & Gray 1984 (individualized logistic regressions); grades: the continuation-ratio
        model that CORN is, Shi et al., arXiv 2111.08851, equation 4.
    """
    first = targets[:, 0]
    if output == "ordinal":
        rows, steps = np.nonzero(first[:, None] >= np.arange(image.shape[1]))
        higher = (first[rows] > steps).astype(np.float64)
        return [Contrast("a higher grade, from each grade on", rows, higher, image[rows, steps], steps)]
    known = ~np.isnan(targets)
    if output == REGRESSION:
        return [replace(_plain("value", known[:, 0], first, image[:, 0]), linear=True)]
    if output == "binary":
        return [_plain(f"{class_names[1]} against {class_names[0]}", known[:, 0], first, image[:, 0])]
    if output == "multilabel":
        return [_plain(name, known[:, k], targets[:, k], image[:, k]) for k, name in enumerate(class_names)]
    contrasts = []
    for k, name in enumerate(class_names[1:], start=1):
        either = (first == 0) | (first == k)
        contrasts.append(_plain(f"{name} against {class_names[0]}", either, first == k, image[:, k] - image[:, 0]))
    return contrasts


def _plain(name: str, known: NDArray[np.bool_], outcome: NDArray[Any], image: Floats) -> Contrast:
    """Return the contrast of the known rows, with a single intercept."""
    rows = np.flatnonzero(known)
    return Contrast(name, rows, outcome[rows].astype(np.float64), image[rows], np.zeros(len(rows), dtype=np.int64))


def fit_contrast(contrast: Contrast, clinical: Floats, *, weights: Floats, l2: float) -> tuple[Floats, Floats]:
    """Return the intercepts (R, S) and the coefficients of the columns (R, C); NaN where they have no maximum.

    What the image says is held fixed, but for one factor on it, which is drawn towards 1: on patients that a network
    did not learn from its logits are too extreme, and a fixed offset would bend the coefficients.

    Args:
        contrast: What is compared.
        clinical: (N, C) design columns.
        weights: (R, N) multiplicities.
        l2: Penalty on the mean log likelihood, > 0.
    """
    chosen = weights[:, contrast.rows]
    columns = clinical[contrast.rows].T
    intercepts = (contrast.steps == np.arange(contrast.steps.max() + 1)[:, None]).astype(np.float64)
    factor = [contrast.image[None]] if np.ptp(contrast.image) > 0 else []
    design = np.concatenate([intercepts, *factor, columns])
    free = len(intercepts)
    penalty = l2 * chosen.sum(axis=1)[:, None] * (np.arange(len(design)) >= free)
    fit = fit_linear if contrast.linear else fit_logistic
    fitted = fit(design, contrast.outcome, offset=contrast.image, weights=chosen, penalty=penalty)
    coefficients = fitted[:, len(design) - len(columns) :]
    means = (chosen @ columns.T) / np.maximum(chosen.sum(axis=1), 1)[:, None]
    spread = (chosen @ (columns.T**2)) / np.maximum(chosen.sum(axis=1), 1)[:, None] - means**2
    return fitted[:, :free], np.where(spread > _SAME, coefficients, np.nan)


def compute_ratios(
    contrasts: Sequence[Contrast], clinical: Floats, patients: Integers, *, l2: float, replicates: int, seed: int
) -> list[list[MetricEntry]]:
    """Return the entry of each contrast and design column.

    Odds ratios for a level against its reference or for one standard deviation, adjusted for what the image says and
    for the other columns; coefficients for a regression. The intervals rest on refits on patients drawn with
    replacement. They leave out that another training would give another network, that its epoch was chosen,
    and that levels and standard deviations are those of these training rows.

    Args:
        contrasts: From `list_contrasts`.
        clinical: (N, C) design columns.
        patients: (N,) patient number of each row, 0 … P-1, each present.
        l2: As in `fit_contrast`.
        replicates: Number of bootstrap samples.
        seed: Seed of the samples.

    Source: Efron & Tibshirani 1993, chapter 12; patients as the unit: Field & Welsh 2007; the rest own choice,
        docs/decisions/0018.
    """
    names = [str(column) for column in range(clinical.shape[1])]
    answers = []
    for contrast in contrasts:

        def estimate(weights: Floats, contrast: Contrast = contrast) -> Estimates:
            _, found = fit_contrast(contrast, clinical, weights=weights, l2=l2)
            return dict(zip(names, found.T, strict=True))

        sides = [contrast.rows]
        if not contrast.linear:
            sides = [contrast.rows[contrast.outcome == outcome] for outcome in (0, 1)]
        masks = tuple(np.isin(np.arange(len(patients)), rows) for rows in sides)
        support = dict.fromkeys(names, Basis("real", masks))
        found = summarize(
            estimate,
            patients,
            support,
            replicates=replicates,
            seed=seed,
            explain=lambda name: "one class or one value only among these patients",
        )
        entries = [found[name] for name in names]
        for entry in () if contrast.linear else entries:
            for key in ("value", "low", "high"):
                number = entry[key]
                entry[key] = None if number is None else float(np.exp(number))
        answers.append(entries)
    return answers


def read_own(output: str, weight: Floats) -> list[Floats]:
    """Return the coefficients (C,) of each contrast in a model's wide part, in the order of `list_contrasts`.

    Args:
        output: What the network's outputs are.
        weight: (O, C).
    """
    if output in ("multiclass", "joint"):
        classes = weight[:-1] if output == "joint" else weight
        return list(classes[1:] - classes[0])
    return list(weight)
