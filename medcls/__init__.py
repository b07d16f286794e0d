"""medcls: medical-image classification with transfer learning.

From Python: `medcls.load(run).predict(images)` and `medcls.open_store(folder)`. Importing the package imports nothing
else; torch comes with the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medcls.errors import MedclsError

if TYPE_CHECKING:
    from medcls.notebook import LoadedModel, OpenedStore

__all__ = ["MedclsError", "__version__", "load", "open_store"]

__version__ = "0.2.0"


def load(
    run: str | Path | Sequence[str | Path],
    *,
    device: str = "auto",
    precision: str = "auto",
    out_of_domain: str = "refuse",
    choices: str | Path | None = None,
) -> LoadedModel:
    """Return a trained run, ready to predict; several runs of one task are averaged, as run=[A,B] does.

    Args:
        run: Folder of a finished run, its model.safetensors, or several.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "fp32", "bf16" or "fp16".
        out_of_domain: What is done about images unlike those of training: "refuse", "note" or "allow".
        choices: Folder of frozen thresholds, the out= of an evaluation of several runs; None = as frozen in the run.

    Raises:
        MissingInputError: There is no finished run.
        DataError: The run is damaged, or does not say what it was trained on.
        ConfigError: Runs of different tasks or preprocessing, or a setting that is unknown.
    """
    from medcls.notebook import LoadedModel

    return LoadedModel(run, device=device, precision=precision, out_of_domain=out_of_domain, choices=choices)


def open_store(folder: str | Path, *, split: str = "default") -> OpenedStore:
    """Return a store of data_prep, every part of it checked, with the train and val rows of a split.

    Args:
        folder: Folder of the store.
        split: Name of the split.

    Raises:
        MissingInputError: There is no such store or split.
        DataError: The store is incomplete, or has changed since it was written.
    """
    from medcls.notebook import OpenedStore

    return OpenedStore(folder, split=split)
