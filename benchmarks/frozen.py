"""Heads on frozen features beside a scikit-learn probe, on the folds of a store: balanced accuracy, AUC, log loss.

    python -m benchmarks.frozen store=DIR out=DIR [size=0 KEY=VALUE …]

Every fold is trained by medcls.train with `model.head=linear`, `auto` and `svm` (transfer=frozen, KEY=VALUE added), one
after the other in this process. All share the features in out/features, which also hold every test row, since each is a
training row of another fold; the test scores are those of the model file's head on them. size=200 trains on 200 images
of each fold, after a run without size, which leaves the features.

The probe is StandardScaler and LogisticRegression on the same features and training rows, C of ten values from 1e-4 to
1e4 by log loss over five inner folds of patients (StratifiedGroupKFold). "probe again" draws other inner folds: what it
differs by is chance. "probe+val" also trains on the validation rows. Trainings that were there before are not timed.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medcls.cli.command_line import compose_job
from medcls.compare.comparison_folds import PlannedFold, plan_folds
from medcls.config import FoldsConfig
from medcls.data.splits import TEST, TRAIN, VAL, read_patients, read_split, rows_of
from medcls.data.store import Store
from medcls.files import MODEL
from medcls.models.heads import compute_scores
from medcls.runs.checksums import open_store
from medcls.runs.model_file import ModelCard, read_model
from medcls.statistics.arms import FoldPredictions, assess_arms
from medcls.statistics.predictions import Predictions, check_predictions
from medcls.train.train import train

_HEADS = {"trained": ["model.head=linear", "augment=none"], "auto": ["model.head=auto"], "svm": ["model.head=svm"]}
_PROBES = {"probe": ((TRAIN,), 0), "probe again": ((TRAIN,), 1), "probe+val": ((TRAIN, VAL), 0)}
_METRICS = ("balanced_accuracy", "auc", "log_loss")
_STRENGTHS = tuple(np.logspace(-4, 4, 10))

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def main(arguments: list[str]) -> int:
    """Trains all folds and prints two tables: the arms, and the differences from the probe."""
    given = dict(argument.split("=", 1) for argument in arguments)
    out, size = Path(given.pop("out")), int(given.pop("size", "0"))
    store = open_store(Path(given.pop("store")))
    folds, test_share = plan_folds(FoldsConfig(over="all"), store, sizes=[size], seed=0)
    settings = [f"{key}={value}" for key, value in given.items()]
    arms: dict[str, list[FoldPredictions]] = {name: [] for name in (*_HEADS, *_PROBES)}
    seconds = dict.fromkeys(arms, 0.0)
    # Pays for the features of all rows, and for what torch builds once: not timed.
    for fold in folds:
        _train(store, out, fold, "warm", ["model.head=auto", *settings])
    for fold in folds:
        for name, head in _HEADS.items():
            start, there = time.process_time(), (out / f"{name}-{fold.folder}" / MODEL).is_file()
            run = _train(store, out, fold, name, [*head, *settings])
            seconds[name] += math.nan if there else time.process_time() - start
            arms[name].append(_predict(store, run, fold))
        task = read_model(run / MODEL)[1]
        for name, (parts, draw) in _PROBES.items():
            start = time.process_time()
            scores = _probe(store, out, fold, parts, classes=task.task.num_classes, draw=draw)
            seconds[name] += time.process_time() - start
            arms[name].append(_collect(store, fold, task, scores))
    found = assess_arms(arms, design="kfold", metrics=_METRICS, test_share=test_share)
    _print(found, seconds, folds=len(folds))
    return 0


def _train(store: Store, out: Path, fold: PlannedFold, name: str, settings: list[str]) -> Path:
    run = out / f"{name}-{fold.folder}"
    common = [f"store={store.folder}", f"run={run}", f"split.name={fold.split}", f"seed={fold.seed}", "workers=0"]
    train(compose_job("train", [*common, "transfer=frozen", "device=cpu", *settings]))
    return run


def _read_features(out: Path, rows: Integers) -> Floats:
    (folder,) = (out / "features").iterdir()
    digests = np.load(folder / "digests.npy", mmap_mode="r")
    if not digests[rows].all():
        raise SystemExit(f"{folder} lacks features of test rows: run without size= first")
    features: Floats = np.load(folder / "features.npy", mmap_mode="r")[rows].astype(np.float64)
    return features


def _predict(store: Store, run: Path, fold: PlannedFold) -> FoldPredictions:
    model, card = read_model(run / MODEL)
    features = _read_features(run.parent, rows_of(read_split(store, fold.split)[0], TEST))
    with torch.inference_mode():
        scores = compute_scores(card.task.output, model.eval().head(torch.from_numpy(features).float()))
    return _collect(store, fold, card, scores.numpy())


def _collect(store: Store, fold: PlannedFold, card: ModelCard, scores: Floats) -> FoldPredictions:
    splits, certificate = read_split(store, fold.split)
    rows = rows_of(splits, TEST)
    patients = [str(number) for number in read_patients(store, certificate).values[rows]]
    predictions = _check(card, _read_classes(store, card.task.class_names)[rows], scores)
    return FoldPredictions(fold.name, fold.repeat, fold.number, predictions, store.column("image_id", rows), patients)


def _check(card: ModelCard, classes: Integers, scores: Floats) -> Predictions:
    return check_predictions(card.task.kind, classes, scores, class_names=card.task.class_names)


def _read_classes(store: Store, names: list[str]) -> Integers:
    labels = store.read_labels().column("label").to_pylist()
    number = {label: k for k, name in enumerate(names) for label in name.split("+")}
    return np.array([number[str(label)] for label in labels], dtype=np.int64)


def _probe(store: Store, out: Path, fold: PlannedFold, parts: tuple[str, ...], *, classes: int, draw: int) -> Floats:
    """Return the test scores (N, K) of scikit-learn's own pipeline."""
    splits, certificate = read_split(store, fold.split)
    rows, test = np.concatenate([rows_of(splits, part) for part in parts]), rows_of(splits, TEST)
    (names,) = {tuple(read_model(run / MODEL)[1].task.class_names) for run in [out / f"auto-{fold.folder}"]}
    features, targets = _read_features(out, rows), _read_classes(store, list(names))[rows]
    patients = read_patients(store, certificate).values[rows]
    inner = list(StratifiedGroupKFold(5, shuffle=True, random_state=draw).split(features, targets, patients))

    def build(strength: float) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))

    def lose(strength: float) -> float:
        losses = [
            log_loss(
                targets[held],
                build(strength).fit(features[kept], targets[kept]).predict_proba(features[held]),
                labels=range(classes),
            )
            for kept, held in inner
        ]
        return float(np.mean(losses))

    scores = build(min(_STRENGTHS, key=lose)).fit(features, targets).predict_proba(_read_features(out, test))
    return np.asarray(scores, np.float64)


def _print(found: dict[str, Any], seconds: dict[str, float], *, folds: int) -> None:
    def show(entry: Any) -> str:
        return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"

    print(f"| head | {' | '.join(_METRICS)} | processor s/fold |\n|{'---|' * (len(_METRICS) + 2)}")
    for name, arm in found["arms"].items():
        cells = [show(arm["metrics"][metric]) for metric in _METRICS]
        print(f"| {name} | {' | '.join(cells)} | {seconds[name] / folds:.1f} |")
    print(f"\n| less the probe | {' | '.join(_METRICS)} |\n|{'---|' * (len(_METRICS) + 1)}")
    for name in found["arms"]:
        pairs = [_find(found["pairs"][metric], name, "probe") for metric in _METRICS]
        if all(pairs):
            print(f"| {name} | {' | '.join(pairs)} |")


def _find(pairs: list[dict[str, Any]], first: str, second: str) -> str:
    """Return the difference of two arms with its bootstrap interval over patients."""
    for pair in pairs:
        sign = {(first, second): 1, (second, first): -1}.get((pair["first"], pair["second"]))
        if sign:
            entry = pair["bootstrap"]
            if entry["low"] is None:
                return f"{sign * pair['difference']:+.4f}"
            low, high = sorted((sign * entry["low"], sign * entry["high"]))
            return f"{sign * pair['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
