"""Checksums of a store and a run, verified by every command that reads them again.

A run ends with checksums.json, which covers every file of the training and the model, and then the model itself, whose
card carries its own checksum, since model files travel alone. Source: own choice, docs/decisions/0061-checksums.md.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from medcls.console import say
from medcls.data.store import Store
from medcls.errors import DataError
from medcls.files import (
    CHECKSUMS,
    CONFIG,
    DATASET,
    ENVIRONMENT,
    MODEL,
    is_sealed,
    read_json,
    sha256_file,
    write_bytes,
    write_json,
)
from medcls.runs.folder import OURS, SETTINGS
from medcls.runs.model_file import ModelCard, pack_model, read_card_checksum

_FORMAT = 1
_said: set[str] = set()


def open_store(folder: Path) -> Store:
    """Return a store after checking every part of it; say once if version 0.2.0 wrote it, with fewer checksums.

    Raises:
        MissingInputError, DataError: it is not there, incomplete or changed.
    """
    store = Store(folder)
    store.verify()
    if not is_sealed(folder / DATASET) or not store.read_labelling():
        _say_once(
            f"notice: store={folder} lacks checksums of dataset.json or its labels (version 0.2.0 wrote none), so "
            "damage there would go unnoticed: run its data_prep command again, which adds them and decodes nothing"
        )
    return store


def finish_run(run: Path, state: dict[str, Tensor], card: ModelCard) -> None:
    """Write checksums.json and, last of all, model.safetensors: a run with a model file is a finished run."""
    content, checksum = pack_model(state, card)
    write_json(run / CHECKSUMS, {"format": _FORMAT, "model": checksum, "sha256": _hash_files(run)})
    write_bytes(run / MODEL, content)


def check_run(run: Path) -> None:
    """Check the files of a finished run against checksums.json, and say once if version 0.2.0 wrote it, without one.

    A file that is missing is left to its reader.

    Raises:
        DataError: a file has changed, or the model is another run's; all changed files are named.
        MissingInputError: the run is not finished.
    """
    checksum = read_card_checksum(run / MODEL)
    if not (run / CHECKSUMS).is_file():
        note_version(run / MODEL)
        return
    record = read_json(run / CHECKSUMS, remedy="restore it from a copy of the run")
    if record.get("model") != checksum:
        raise DataError(f"{run / MODEL} is not the model that {CHECKSUMS} was written with: restore both from one copy")
    written, found = record.get("sha256"), _hash_files(run)
    if not isinstance(written, dict):
        raise DataError(f"{run / CHECKSUMS} lists no files: restore it from a copy of the run")
    changed = sorted(name for name, sha256 in found.items() if written.get(name) != sha256)
    if changed:
        raise DataError(f"run={run}: changed since the training ended: {', '.join(changed)}: restore these files")


def note_version(model: Path) -> None:
    """Say once that damage to a run cannot be noticed: version 0.2.0 wrote no checksum, neither of files nor card."""
    checksum = read_card_checksum(model)
    if not checksum:
        _say_once(
            f"notice: {model} lacks a checksum of its card (version 0.2.0 wrote none), so damage to its classes and "
            "settings would go unnoticed: compare it with a copy, or train again"
        )
    elif (model.parent / ENVIRONMENT).is_file() and not (model.parent / CHECKSUMS).is_file():
        _say_once(
            f"notice: run={model.parent} has no {CHECKSUMS}, so damage to the files beside its model would go "
            "unnoticed: copy that file as well"
        )


def _hash_files(run: Path) -> dict[str, str]:
    """Return the sha256 of every file of the training but the two that are written last."""
    # By name: what a file browser leaves beside them (.DS_Store) is read by nobody.
    ours = [run / name for name in OURS - {MODEL, CHECKSUMS} | {SETTINGS, CONFIG}]
    files = [path for path in ours if path.is_file()]
    return {str(path.relative_to(run)): sha256_file(path) for path in sorted(files)}


def _say_once(notice: str) -> None:
    if notice not in _said:
        _said.add(notice)
        say(notice)
