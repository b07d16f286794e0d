"""A small store that every task can learn from, and trainings of one step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medcls.config import EvaluateJob, TrainJob
from medcls.data.store import Store
from medcls.files import DATASET, SPLITS, read_json, sha256_file, write_json
from medcls.stages.evaluate import evaluate
from medcls.stages.train import train

# The quickest training there is; a test adds what it is about.
QUICK = (
    "model.weights=null",
    "trainer.batch_size=8",
    "trainer.epochs=2",
    "trainer.max_steps=1",
    "trainer.channels_last=false",
    "workers=0",
    "device=cpu",
)


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """What seed_everything asks of torch is taken back."""
    yield
    torch.use_deterministic_algorithms(False)


def label_every_task(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Grades 0 to 2; flags of two findings, the second not known of every sixth image."""
    return [
        row
        | {
            "label_bright": int(int(row["label"]) > 0),
            "label_low": "" if number % 6 == 5 else int(row["label"] == "2"),
            "label_hurt": 20 + 3.5 * int(row["label"]),
        }
        for number, row in enumerate(rows)
    ]


@pytest.fixture(scope="session")
def store(
    write_source: Callable[..., Path], run_prepare: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """24 patients, 48 images of 32 pixels, grades 0 to 2; do not write into it."""
    folder = tmp_path_factory.mktemp("stages")
    raw = write_source(folder / "raw", classes=("0", "1", "2"), rewrite=label_every_task)
    return run_prepare(raw, folder / "store", "split.test=0.25", "split.val=0.25")


@pytest.fixture
def copy_store(store: Store, tmp_path: Path) -> Callable[..., Path]:
    """A copy that may be changed: copy_store("name")."""

    def copy(name: str = "store") -> Path:
        return Path(shutil.copytree(store.folder, tmp_path / name))

    return copy


@pytest.fixture(scope="session")
def certify() -> Callable[[Path], None]:
    """Writes the checksums of a changed store anew, as if data_prep had made it so."""

    def write_checksums(folder: Path) -> None:
        info = read_json(folder / DATASET)
        info["sha256"] = {name: sha256_file(folder / name) for name in info["sha256"]}
        write_json(folder / DATASET, info)
        for path in (folder / SPLITS).glob("*.json"):
            split = {"split_sha256": sha256_file(path.with_suffix(".parquet")), "store_sha256": Store(folder).sha256}
            write_json(path, read_json(path) | split)

    return write_checksums


@pytest.fixture(scope="session")
def compose_train(compose_job: Callable[..., Any], store: Store) -> Callable[..., TrainJob]:
    """A job of one step: compose_train(run, "task=ordinal")."""

    def compose(run: Path, *arguments: str) -> TrainJob:
        # A later argument goes over an earlier one.
        given = {argument.partition("=")[0]: argument for argument in (f"store={store.folder}", *QUICK, *arguments)}
        job: TrainJob = compose_job("train", f"run={run}", *given.values())
        return job

    return compose


@pytest.fixture(scope="session")
def run_train(compose_train: Callable[..., TrainJob]) -> Callable[..., Path]:
    """Trains and returns the run folder: run_train(run, "task=ordinal")."""

    def run(folder: Path, *arguments: str) -> Path:
        train(compose_train(folder, *arguments))
        return folder

    return run


@pytest.fixture(scope="session")
def run_evaluate(compose_job: Callable[..., Any]) -> Callable[..., Path]:
    """Evaluates and returns the folder of the results: run_evaluate(run, "split=test")."""

    def run(folder: Path, *arguments: str) -> Path:
        job: EvaluateJob = compose_job(
            "evaluate", f"run={folder}", "replicates=100", "workers=0", "device=cpu", *arguments
        )
        evaluate(job)
        return (
            Path(job.out) if job.out else max((folder / "evaluation").iterdir(), key=lambda path: path.stat().st_mtime)
        )

    return run


@pytest.fixture(scope="session")
def trained(run_train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished multiclass run; do not write into it."""
    return run_train(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def run_copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` that may be evaluated and damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
