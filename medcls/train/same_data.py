"""Check that a finished run was made from the data and weights given now: same content, any path."""

from __future__ import annotations

from pathlib import Path

from medcls.config import PretrainJob, TrainJob
from medcls.console import say
from medcls.data.splits import read_split
from medcls.data.store import Store
from medcls.distributed import is_first
from medcls.errors import ConfigError, MissingInputError
from medcls.files import LABELS, MODEL, sha256_file
from medcls.inputs import IMAGENET, locate_weights
from medcls.runs.folder import read_settings
from medcls.runs.model_file import read_any_card
from medcls.train.resume import delete_checkpoints


def confirm_finished(job: TrainJob | PretrainJob, run: Path) -> None:
    """Say that a run is finished, and delete what a kill after its last write left; raises as `check_same_data`."""
    check_same_data(job, run)
    if is_first():
        delete_checkpoints(run)
    say(f"run {run}: finished already with these settings; nothing to do")


def check_same_data(job: TrainJob | PretrainJob, run: Path) -> None:
    """Compare store and weights with those of a finished run; where they lie as before they may be gone by now.

    Raises:
        ConfigError: they have other content.
        MissingInputError: they are to lie elsewhere, and are not there.
    """
    check_places(job, run)
    if not Path(job.store or "").is_dir():
        return
    store, card = Store(Path(job.store or "")), read_any_card(run / MODEL)
    now = {
        "images": (card.store_sha256, store.sha256),
        "labels": (card.labels_sha256, card.labels_sha256 and sha256_file(store.folder / LABELS)),
        "splits": (card.split_sha256, read_split(store, job.split.name)[1]["split_sha256"]),
    }
    weights = None if job.model.weights in (None, IMAGENET) else locate_weights(str(job.model.weights))
    if weights is not None and weights.is_file():
        now["weights"] = (card.ancestors[-1]["sha256"], sha256_file(weights))
    changed = [name for name, (before, after) in now.items() if before != after]
    if changed:
        raise ConfigError(
            f"run={run} was trained on other {', '.join(changed)} than store={store.folder} and model.weights= have "
            "now: choose another run="
        )


def check_places(job: TrainJob | PretrainJob, run: Path) -> None:
    """Raise MissingInputError where store or weights are said to lie elsewhere than before, and do not."""
    before, store, weights = read_settings(run), Path(job.store or ""), job.model.weights
    known = {f"store={store}": store.is_dir() or str(store.resolve()) == before.get("store")}
    if weights not in (None, IMAGENET):
        there = locate_weights(str(weights)).is_file()
        known[f"model.weights={weights}"] = there or weights == before.get("model", {}).get("weights")
    missing = [name for name, found in known.items() if not found]
    if missing:
        raise MissingInputError(
            f"{missing[0]} does not exist; run={run} used it at another path: set store= or model.weights= to the "
            "current one"
        )
