"""The run folder: its file names, and its settings and environment read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medcls.errors import DataError
from medcls.files import (
    ANCESTORS,
    BASELINE,
    BASELINE_WEIGHTS,
    CHECKPOINTS,
    CHECKSUMS,
    CONTACT_SHEET,
    ENVIRONMENT,
    EVALUATION,
    FAULTS,
    FEATURE_DISTANCE,
    IMAGES,
    METRICS_LOG,
    MODEL,
    ODDS_RATIOS,
    PATIENTS,
    RECONSTRUCTIONS,
    read_json,
)

SETTINGS = "config/settings.json"
OURS = {
    "config",
    CHECKPOINTS,
    FAULTS,
    EVALUATION,
    "tensorboard",
    METRICS_LOG,
    PATIENTS,
    IMAGES,
    ANCESTORS,
    MODEL,
    CHECKSUMS,
    ENVIRONMENT,
    CONTACT_SHEET,
    BASELINE,
    BASELINE_WEIGHTS,
    ODDS_RATIOS,
    FEATURE_DISTANCE,
    RECONSTRUCTIONS,
}
"""Every name that may be in a run folder when a training starts or resumes."""


def read_settings(run: Path) -> dict[str, Any]:
    """Return what a run was asked for; raises MissingInputError or DataError where it is missing or has changed."""
    return read_json(run / SETTINGS, remedy="restore it from a copy of the run")


def read_environment(run: Path) -> dict[str, object]:
    """Return what a run was trained with; raises as `read_settings` does."""
    return read_json(run / ENVIRONMENT, remedy="restore it from a copy of the run")


def read_store_folder(run: Path) -> Path:
    """Return the folder of the store that a run was trained on; it stands here, not in the model file, which travels.

    Raises:
        MissingInputError: the run has no settings.
        DataError: they name no store.
    """
    store = read_settings(run).get("store")
    if not isinstance(store, str):
        raise DataError(f"{run / SETTINGS} names no store: set store=DIR")
    return Path(store)
