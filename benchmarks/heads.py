"""Heads that are solved on cached features, beside scikit-learn's own fits of the same problems, in processor time.

`OMP_NUM_THREADS=1 python -m benchmarks heads`: on one core.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC

from medcls.train.logistic_head import STRENGTHS, fit_logistic_head
from medcls.train.svm import GRID, fit_svm

_CLASSES = 5
_FOLDS = 5


def measure(folder: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields the time of both heads, what scikit-learn takes, and how the time grows with the number of images."""
    del folder
    features, targets = _draw(1000, 1000)
    folds = np.arange(1000) % 3
    ours = _time(lambda: [_solve(features, targets, folds, strengths=[c]) for c in STRENGTHS])
    theirs = _time(lambda: [_fit_logistic(features, targets, folds, strength=c) for c in STRENGTHS])
    what = "1,000 features of 1,000 images, 5 classes: 3 folds, 10 C"
    yield f"{what}, each from zero", f"{ours:.1f} s", f"scikit-learn {theirs:.1f} s", f"{theirs / ours:.1f}", "< 10 s"
    path = _time(lambda: _solve(features, targets, folds, strengths=STRENGTHS))
    yield (
        "the same, as a run does it",
        f"{path:.1f} s",
        f"scikit-learn {theirs:.1f} s",
        f"{theirs / path:.1f}",
        "< 10 s",
    )
    seconds: dict[int, float] = {}
    for count, width in ((1000, 1000), (1500, 512), (6000, 512)):
        features, targets = _draw(count, width)
        folds = np.arange(count) % _FOLDS
        rows, answers = features, targets
        seconds[count] = _time(lambda x=rows, y=answers, f=folds: fit_svm(x, y, folds=f))
        theirs = _time(lambda x=rows, y=answers, f=folds: [_fit_svm(x, y, f, cost=c) for c in GRID])
        what = f"SVM, {count:,} images, {width:,} features: 5 folds, 8 C"
        yield what, f"{seconds[count]:.1f} s", f"liblinear {theirs:.1f} s", f"{theirs / seconds[count]:.1f}", "> 1"
    growth = seconds[6000] / seconds[1500]
    yield "SVM: time of 6,000 images over that of 1,500", f"{growth:.1f}", "linear 4.0", f"{growth / 4:.2f}", "<= 1.25"


def _draw(count: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features (N, F) as a network gives them, none negative and much alike, and classes that some show."""
    rng = np.random.default_rng(0)
    targets = rng.choice(_CLASSES, count, p=np.arange(1, _CLASSES + 1) / 15)
    common = rng.normal(size=(count, width // 8)) @ rng.normal(size=(width // 8, width)) / np.sqrt(width / 8)
    own = rng.normal(size=(count, width)) + 0.2 * rng.normal(size=(_CLASSES, width))[targets]
    return np.maximum(0, common + own).astype(np.float32), targets


def _time(work: Callable[[], Any]) -> float:
    """Return the processor seconds of all threads."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        work()
    return time.process_time() - start


def _solve(features: NDArray[Any], targets: NDArray[np.int64], folds: NDArray[np.int64], *, strengths: Any) -> None:
    fit_logistic_head("multiclass", features, targets[:, None].astype(np.float64), folds=folds, strengths=strengths)


def _fit_logistic(
    features: NDArray[Any], targets: NDArray[np.int64], folds: NDArray[np.int64], *, strength: float
) -> None:
    """Fit one strength without each fold and on all rows, as `fit_logistic_head` does."""
    for kept in (*(folds != fold for fold in np.unique(folds)), np.ones(len(folds), dtype=np.bool_)):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        model.fit(features[kept].astype(np.float64), targets[kept])


def _fit_svm(features: NDArray[Any], targets: NDArray[np.int64], folds: NDArray[np.int64], *, cost: float) -> None:
    """Fit one C without each fold."""
    for fold in np.unique(folds):
        machine = LinearSVC(C=cost, class_weight="balanced", dual=False, max_iter=10_000)
        make_pipeline(Normalizer(), machine).fit(features[folds != fold].astype(np.float64), targets[folds != fold])
