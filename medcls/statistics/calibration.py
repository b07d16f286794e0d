"""Calibration of probabilities: proper scores, calibration error, slope and intercept, reliability curve."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medcls.statistics.logistic import fit_logistic
from medcls.statistics.predictions import Floats, Integers, ratio

NUM_BINS = 15
CONSISTENCY_DRAWS = 200
SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)
LOGIT_LIMIT = 1e-7  # closest to 0 or 1 that a logit is taken of: about +-16


def compute_brier_rows(true: Integers, score: Floats) -> Floats:
    """Squared error of the probabilities of each row, summed over the classes; (N,), in [0, 2].

    With one column it is (P - y)^2, in [0, 1]: half of what the two-column form of the same forecast gives.

    Args:
        true: (N,) class.
        score: (N, K) probabilities, or (N, 1) of class 1.

    Source: Brier 1950.
    """
    if score.shape[1] == 1:
        return np.asarray((score[:, 0] - true) ** 2)
    return np.asarray(((score - np.eye(score.shape[1])[true]) ** 2).sum(axis=1))


def compute_log_loss_rows(true: Integers, score: Floats) -> Floats:
    """Negative natural log of the probability given to the true class; (N,), at most 36.04.

    Probabilities are clipped to [2.2e-16, 1 - 2.2e-16].

    Args:
        true: (N,) class.
        score: (N, K) probabilities, or (N, 1) of class 1.

    Source: Good 1952; clipping as in scikit-learn.
    """
    if score.shape[1] == 1:
        given = np.where(true == 1, score[:, 0], 1 - score[:, 0])
    else:
        given = np.take_along_axis(score, true[:, None], axis=1)[:, 0]
    return np.asarray(-np.log(np.clip(given, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)))


def compute_confidence(true: Integers, score: Floats) -> tuple[Floats, Floats]:
    """Forecast and outcome whose agreement calibration is; two (N,).

    One column: P(class 1), and whether the row is of class 1. K columns: the probability of the most probable
    class, and whether it is the true one.

    Source: Guo et al. 2017, section 2 (K columns); Naeini, Cooper & Hauskrecht 2015 (one column).
    """
    if score.shape[1] == 1:
        return score[:, 0], (true == 1).astype(np.float64)
    return score.max(axis=1), (score.argmax(axis=1) == true).astype(np.float64)


def assign_bins(confidence: Floats, *, num_bins: int = NUM_BINS) -> Integers:
    """Bin of each forecast among equal-width bins of [0, 1]; (N,), in [0, num_bins).

    A forecast on an edge belongs to the bin above it, 1.0 to the last.
    """
    return np.clip((confidence * num_bins).astype(np.int64), 0, num_bins - 1)


def compute_ece(confidence: Floats, outcome: Floats, *, weights: Floats, num_bins: int = NUM_BINS) -> Floats:
    """Expected calibration error of each replicate; (R,), in [0, 1].

    The mean over rows of the distance between mean forecast and mean outcome in the row's bin.

    Args:
        confidence: (N,) forecast, in [0, 1].
        outcome: (N,) 0 or 1.
        weights: (R, N) multiplicities.
        num_bins: Number of equal-width bins.

    Source: Guo et al. 2017, equation 3; 15 bins as there.
    """
    gap = np.zeros((len(confidence), num_bins))
    gap[np.arange(len(confidence)), assign_bins(confidence, num_bins=num_bins)] = confidence - outcome
    return ratio(np.abs(weights @ gap).sum(axis=1), weights.sum(axis=1))


def expect_ece(confidence: Floats, outcome: Floats, patients: Integers, *, seed: int = 0) -> float:
    """Return the calibration error that a perfectly calibrated model would show on these rows by chance.

    Outcomes are drawn from the forecasts themselves. Rows of one patient err together: the spread is enlarged by how
    much more their errors in a bin add up to than those of independent rows.

    Args:
        confidence: (N,) forecast, in [0, 1].
        outcome: (N,) 0 or 1.
        patients: (N,) patient number of each row.
        seed: Of the draws.

    Source: Bröcker & Smith 2007 (consistency resampling); the factor for patients is our own choice, decision 0047.
    """
    bins = assign_bins(confidence)
    drawn = np.random.default_rng(seed).random((CONSISTENCY_DRAWS, len(confidence))) < confidence
    gap = np.zeros((NUM_BINS, len(confidence)))
    gap[bins, np.arange(len(confidence))] = 1.0
    errors = np.abs((drawn - confidence) @ gap.T).sum(axis=1) / len(confidence)
    residual = outcome - confidence
    together = np.bincount(patients * NUM_BINS + bins, weights=residual)
    factor = float(together @ together) / max(float(residual @ residual), 1e-12)
    return float(errors.mean()) * float(np.sqrt(max(1.0, factor)))


class Reliability(NamedTuple):
    """Filled bins of a reliability curve; all (B,), B <= num_bins."""

    forecast: Floats
    observed: Floats
    size: Floats


def compute_reliability(confidence: Floats, outcome: Floats, *, num_bins: int = NUM_BINS) -> Reliability:
    """Mean forecast, mean outcome and number of rows of each bin that has rows.

    Source: DeGroot & Fienberg 1983; Guo et al. 2017.
    """
    bins = assign_bins(confidence, num_bins=num_bins)
    count = np.bincount(bins, minlength=num_bins).astype(np.float64)
    forecast = np.bincount(bins, weights=confidence, minlength=num_bins)
    observed = np.bincount(bins, weights=outcome, minlength=num_bins)
    filled = count > 0
    return Reliability(forecast[filled] / count[filled], observed[filled] / count[filled], count[filled])


def compute_slope_and_intercept(probability: Floats, outcome: Floats, *, weights: Floats) -> tuple[Floats, Floats]:
    """Calibration slope and calibration-in-the-large of each replicate; two (R,), ideal 1 and 0.

    Slope: b of logit P(y=1) = a + b logit(p), by maximum likelihood; below 1 means too extreme probabilities.
    Intercept: a of logit P(y=1) = a + logit(p); below 0 means probabilities that are too high overall.
    NaN where a class is absent or the likelihood has no maximum (complete separation).

    Args:
        probability: (N,) P(class 1); taken within [1e-7, 1 - 1e-7].
        outcome: (N,) 0 or 1.
        weights: (R, N) multiplicities.

    Source: Cox 1958; Van Calster et al. 2019 (levels of calibration).
    """
    clipped = np.clip(probability, LOGIT_LIMIT, 1 - LOGIT_LIMIT)
    logit = np.log(clipped / (1 - clipped))
    line = np.stack([np.ones_like(logit), logit])
    slope = fit_logistic(line, outcome, offset=np.zeros_like(logit), weights=weights)[:, 1]
    intercept = fit_logistic(line[:1], outcome, offset=logit, weights=weights)[:, 0]
    return slope, intercept
