"""The bootstrap of AUCs, beside a loop over scikit-learn on the same replicates."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from medcls.statistics.intervals import draw_replicates
from medcls.statistics.ranking import build_ranking, compute_auc

_ROWS, _LABELS, _REPLICATES, _IMAGES_OF_A_PATIENT = 100_000, 14, 2000, 3
_OF_THE_LOOP = 3  # replicates that scikit-learn does; all would take a quarter of an hour


def measure(folder: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields the time of all replicates, and a row beside scikit-learn for each replicate."""
    generator = np.random.default_rng(0)
    prevalences = generator.uniform(0.01, 0.3, _LABELS)  # as of the fourteen findings of chest radiographs
    true = generator.random((_ROWS, _LABELS)) < prevalences
    score = true + generator.normal(size=true.shape)
    patients = np.arange(_ROWS) // _IMAGES_OF_A_PATIENT
    # Processor time: on an idle core it is what the clock says, and other programs do not change it.
    start = time.process_time()
    areas = _bootstrap(true, score, patients, replicates=_REPLICATES)
    seconds = time.process_time() - start
    what = f"AUC of {_LABELS} labels, {_ROWS:,} rows, {_REPLICATES:,} replicates, one core"
    yield what, f"{seconds:.1f} s CPU", "aim 30 s", f"{30 / seconds:.1f}", ">= 1"
    start = time.process_time()
    loop = _loop(true, score, patients, replicates=_OF_THE_LOOP)
    theirs = (time.process_time() - start) / _OF_THE_LOOP
    ours = seconds / _REPLICATES
    np.testing.assert_allclose(areas[:_OF_THE_LOOP], loop, atol=1e-9)
    yield (
        "the same, each replicate",
        f"{1000 * ours:.1f} ms CPU",
        f"scikit-learn loop {1000 * theirs:.0f} ms",
        f"{theirs / ours:.0f}",
        ">= 20",
    )


def _bootstrap(
    true: NDArray[np.bool_], score: NDArray[np.float64], patients: NDArray[np.int64], *, replicates: int
) -> NDArray[np.float64]:
    rankings = [build_ranking(true[:, k], score[:, k]) for k in range(_LABELS)]
    chunks = draw_replicates(patients, replicates=replicates, seed=0)
    return np.concatenate([np.stack([compute_auc(one, weights) for one in rankings], axis=1) for weights in chunks])


def _loop(
    true: NDArray[np.bool_], score: NDArray[np.float64], patients: NDArray[np.int64], *, replicates: int
) -> NDArray[np.float64]:
    """What one writes without a bootstrap at hand: draw the rows, ask scikit-learn for each label."""
    areas = []
    for weights in draw_replicates(patients, replicates=replicates, seed=0):
        for drawn in weights.astype(int):
            rows = np.repeat(np.arange(_ROWS), drawn)
            areas.append([roc_auc_score(true[rows, k], score[rows, k]) for k in range(_LABELS)])
    return np.array(areas)
