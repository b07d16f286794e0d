"""Check that the folders and files of a command exist, before anything slow is imported."""

from __future__ import annotations

import os
from pathlib import Path

from medcls.errors import DataError, MissingInputError
from medcls.files import DATASET, MODEL

IMAGENET, PRETRAINED = "imagenet", "pretrained"
NAMED = (IMAGENET, PRETRAINED)
"""Values of model.weights that are not a path: the weights published for the network, of ImageNet or others."""
WEIGHTS_VARIABLE = "MEDCLS_WEIGHTS_DIR"


def check_store_folder(folder: Path) -> None:
    """Check that a complete store is there.

    Raises:
        MissingInputError: no such folder.
        DataError: data_prep has not finished it.
    """
    if not folder.is_dir():
        raise MissingInputError(f"store={folder} is not there: make it with python -m data_prep … store={folder}")
    if not (folder / DATASET).is_file():
        raise DataError(f"store={folder} is incomplete (no {DATASET}): run the same python -m data_prep command again")


def check_run_folder(run: Path, *, setting: str = "run") -> None:
    """Check that a finished run is there.

    Raises:
        MissingInputError: no such folder, or one without a model.
    """
    if not run.is_dir():
        raise MissingInputError(f"{setting}={run} is not a folder: python -m medcls.train run={run} makes it")
    check_model_file(run / MODEL)


def check_model_file(path: Path) -> None:
    """Raise MissingInputError if a run has no model file."""
    if not path.is_file():
        raise MissingInputError(f"{path} is missing: the training of this run has not finished; run it again")


def check_source_folder(source: Path) -> None:
    """Raise MissingInputError if the folder of the raw files is not there."""
    if not source.is_dir():
        raise MissingInputError(f"source={source} is not a folder")


def check_images(source: Path) -> None:
    """Raise MissingInputError if there are neither images nor one image."""
    if not source.exists():
        raise MissingInputError(f"source={source} is not there: expected a folder of images, or one image")


def check_file(path: str | Path | None, setting: str) -> None:
    """Check that a file is there; None is a setting that is not set.

    Raises:
        MissingInputError: no such file.
    """
    if path is not None and not Path(path).is_file():
        raise MissingInputError(f"{setting}={path}: no such file: correct the path")


def check_training_inputs(
    run: str | None, *, store: str, weights: str | None = None, weights_dir: str | None = None
) -> None:
    """Check that a training finds its store and the weights that it starts from.

    A finished run is left to `confirm_finished`: repeated, its command needs neither of them any more.

    Raises:
        MissingInputError, DataError: one of them is not there, or is incomplete.
    """
    if run is not None and (Path(run) / MODEL).is_file():
        return
    check_store_folder(Path(store))
    if weights in NAMED:
        find_weights_dir(None if weights_dir is None else Path(weights_dir))
    elif weights is not None:
        check_weights(weights)


def find_weights_dir(weights_dir: Path | None) -> Path | None:
    """Return the folder of weights for machines without a network: weights_dir, or else $MEDCLS_WEIGHTS_DIR.

    Raises:
        MissingInputError: it is not a folder.
    """
    folder = weights_dir or (Path(os.environ[WEIGHTS_VARIABLE]) if os.environ.get(WEIGHTS_VARIABLE) else None)
    if folder is not None and not folder.is_dir():
        raise MissingInputError(f"weights_dir={folder} (or {WEIGHTS_VARIABLE}) is not a folder")
    return folder


INFLATED, SLICES = "inflated_", "slices_"
"""Prefixes of the name of a network for images that is applied to volumes (models.families.VOLUME_FORMS)."""


def flat_name(architecture: str) -> str:
    """Return the 2-D network whose weights a network for volumes starts from; other names stay as they are."""
    return architecture.removeprefix(INFLATED).removeprefix(SLICES)


def locate_weights(weights: str) -> Path:
    """Return the file of a path to weights: of a run's folder its model file, whether it is there or not."""
    return Path(weights) / MODEL if Path(weights).is_dir() else Path(weights)


def find_own_weights(weights: str | None) -> Path | None:
    """Return the file that model.weights names, there or not; None for published weights or random ones."""
    if weights is None or weights in NAMED:
        return None
    return locate_weights(weights)


def check_weights(weights: str) -> None:
    """Raise MissingInputError if model.weights names a path that has no weights."""
    if not locate_weights(weights).is_file():
        fault = f"is a folder without {MODEL} (an unfinished run?)" if Path(weights).is_dir() else "is not there"
        raise MissingInputError(f"model.weights={weights} {fault}: give a file, a run's folder, imagenet, or null")
