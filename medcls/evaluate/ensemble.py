"""Open one run, or several whose scores are averaged; check that they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from medcls.errors import ConfigError, DataError, UsageError
from medcls.evaluate.evaluation_data import Opened, RowRequest, open_rows
from medcls.evaluate.split_predictions import (
    EVALUATED,
    INPUTS,
    SplitPredictions,
    SplitRequest,
    build_rows,
    check_folder,
    predict_split,
    write_predictions,
)
from medcls.files import MODEL, read_json, sha256_file, sha256_json
from medcls.inputs import check_run_folder
from medcls.models.heads import average_logits
from medcls.runs.checksums import check_run
from medcls.runs.model_file import ModelCard, read_card

# What must be equal, and what it is called.
_ALIKE = {
    "task": "task",
    "preprocess": "preprocessing",
    "store_sha256": "store",
    "split_name": "split",
    "split_sha256": "split",
}


def open_members(runs: Sequence[Path], wanted: RowRequest) -> list[Opened]:
    """Open the rows to evaluate, once for each run: each may forbid patients that only it has seen.

    Raises:
        UsageError: A run named twice.
        ConfigError: runs of different tasks, preprocessing, stores or splits.
        MissingInputError, DataError: as for one run.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise UsageError(f"run=[{','.join(map(str, runs))}] names a run twice: name each run once")
    cards = [read_run_card(run) for run in runs]
    for run, card in zip(runs, cards, strict=True):
        check_alike(run, card, runs[0], cards[0])
    return [open_rows(wanted, run, card) for run, card in zip(runs, cards, strict=True)]


def read_run_card(run: Path) -> ModelCard:
    """Return the card of a finished run."""
    check_run_folder(run)
    card = read_card(run / MODEL)
    check_run(run)
    return card


def check_alike(run: Path, card: ModelCard, first: Path, like: ModelCard) -> None:
    """Check that two runs may be averaged: of two folds, the test images of one trained the other."""
    changed = [name for field, name in _ALIKE.items() if getattr(card, field) != getattr(like, field)]
    if changed:
        what = " and ".join(dict.fromkeys(changed))
        raise ConfigError(
            f"run={run} has another {what} than run={first}: only runs of one task, preprocessing, store and split are "
            "averaged"
        )


def predict_members(
    request: SplitRequest, members: list[Opened], *, folder: Path | None = None, use: str = EVALUATED
) -> SplitPredictions:
    """Return the predictions of one run, or the mean of several; each run keeps its own and counts its own opening."""
    if len(members) == 1:
        return predict_split(request, members[0], folder=folder, use=use)
    if folder is not None:
        check_out(folder, members)
    use = f"averaged with {len(members) - 1} other runs, models {sha256_json(identify(members))[:12]}"
    return fuse([predict_split(request, each, use=use) for each in members], folder=folder)


def check_out(folder: Path, members: list[Opened]) -> None:
    """Check that out= is not a run, and holds nothing that other runs together have answered or chosen."""
    if (folder / MODEL).exists():
        raise ConfigError(f"out={folder} is a run: choose a new folder for the results of several")
    check_folder(folder, members[0].store)
    if (folder / INPUTS).is_file() and read_json(folder / INPUTS)["model_sha256"] != identify(members):
        raise ConfigError(f"out={folder} holds the results of other runs: choose a new folder")


def identify(members: list[Opened]) -> str:
    """Return the checksum of the model file, or of several, in whichever order they were named."""
    return join_checksums([sha256_file(member.run / MODEL) for member in members])


def join_checksums(models_sha256: Sequence[str]) -> str:
    """Return what names one model, or several together, in whichever order they are given."""
    return "+".join(sorted(models_sha256))


def fuse(parts: list[SplitPredictions], *, folder: Path | None) -> SplitPredictions:
    """Return the predictions whose scores are the mean of the runs', kept in a folder where one is given.

    Raises:
        DataError: the runs have different images or targets (labels were changed between them).
    """
    first = parts[0]
    for part in parts[1:]:
        same_rows = np.array_equal(part.opened.rows, first.opened.rows)
        if not same_rows or not np.array_equal(part.opened.targets, first.opened.targets, equal_nan=True):
            raise DataError(f"run={part.run} and run={first.run} have different images or targets in this split")
    stacked = torch.from_numpy(np.stack([part.logits for part in parts]))
    logits = average_logits(first.card.task.output, stacked).numpy()
    rows = build_rows(first.opened, logits)
    model_sha256 = join_checksums([part.key["model_sha256"] for part in parts])
    key = {**first.key, "model_sha256": model_sha256, "runs": [part.key for part in parts]}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_predictions(folder, first.opened, rows=rows, logits=logits, key=key)
    return replace(first, rows=rows, logits=logits, key=key, folder=folder or first.folder, members=tuple(parts))
