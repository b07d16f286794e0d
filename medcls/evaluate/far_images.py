"""Count the evaluated images that are farther from the training images than predict accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from medcls.evaluate.evaluation_data import Opened
from medcls.files import MODEL
from medcls.runs.model_file import read_model
from medcls.statistics.bounds import compute_wilson
from medcls.train.cached_features import read_more_features
from medcls.train.training_distance import draw_images, read_training_distance, run_backbone
from medcls.training.feature_distance import FAR
from medcls.training.forward import PredictOptions


def measure_far(opened: Opened, options: PredictOptions) -> dict[str, float] | None:
    """Return the share of the opened images that are far from training, with Wilson's interval over patients.

    On test rows of the run's own store these are the false alarms of `predict`.

    Returns:
        share, low, high, images, patients, and expected: the share among images like those of validation. None where
        the run has no distance.
    """
    distance = read_training_distance(opened.run, opened.card)
    if distance is None:
        return None
    model, _ = read_model(opened.run / MODEL)
    drawn = draw_images(opened.store, opened.rows)
    clinical = None if opened.clinical is None else opened.clinical[drawn]
    part = replace(opened, rows=opened.rows[drawn], targets=opened.targets[drawn], clinical=clinical)
    dataset, model = part.build_dataset(crop=opened.card.crop), model.to(options.rules.device)
    cached = read_more_features(opened.run, opened.card, model=model, dataset=dataset, options=options, name="distance")
    features = run_backbone(model, dataset, options) if cached is None else cached.views[0].read(cached.rows)
    far = distance.measure(features) > FAR
    patients = len(set(opened.store.column("patient_id", part.rows)))
    share = float(far.mean())
    # As if the images of a patient were copies: the interval is rather too wide than too narrow.
    low, high = compute_wilson(share, patients)
    return {
        "share": share,
        "low": low,
        "high": high,
        "images": len(far),
        "patients": patients,
        "expected": distance.false_alarms,
    }


def describe_far(found: Mapping[str, Any] | None) -> list[str]:
    """Return what `measure_far` found as a sentence; [] if it found nothing."""
    if found is None:
        return []
    return [
        f"{found['share']:.1%} [{found['low']:.1%}, {found['high']:.1%}] of {found['images']} images are farther from "
        f"training than the threshold frozen on validation ({found['expected']:.1%} expected of images like those): "
        "predict refuses or notes such images"
    ]
