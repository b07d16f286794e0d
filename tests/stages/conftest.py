"""A small store that every task can learn from, and trainings of one step."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from medcls.cli import command_line
from medcls.compare import compare as stage
from medcls.compare.comparison_task import ComparisonTask
from medcls.config import EvaluateJob, TrainJob
from medcls.data.store import Store
from medcls.errors import MedclsError
from medcls.evaluate import judged_rows
from medcls.evaluate.evaluate import evaluate
from medcls.models import families
from medcls.models.backbones import Backbone, Blueprint
from medcls.models.families import Family
from medcls.report.content import Evaluation
from medcls.runs.checksums import open_store
from medcls.train.train import train
from medcls.train.training_data import TrainingData, Variation, open_data

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


def open_training(job: TrainJob) -> TrainingData:
    """What a training of this job would learn from, as its settings are."""
    varied = Variation(job.crop, job.augmented, job.seed)
    store = open_store(Path(str(job.store)))
    return open_data(store, job.split.name, task=job.task, varied=varied, clinical=job.clinical)


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """What seed_everything asks of torch is taken back."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def figures_of_reports(quick_figures: None) -> None:
    """How figures look is tested with the report."""


@pytest.fixture
def real_report() -> None:
    """For tests that look at report.html itself; it takes seconds."""


@pytest.fixture
def notes_for_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write notes and the ensemble's sentence in place of the report, unless a test uses `real_report`."""

    def write_notes(folder: Path, evaluation: Evaluation) -> Path:
        lines = [*evaluation.notes, str(evaluation.facts.get("ensembling", ""))]
        (folder / "report.html").write_text("\n".join(lines))
        return folder / "report.html"

    if "real_report" not in request.fixturenames:
        monkeypatch.setattr(judged_rows, "write_report", write_notes)


@pytest.fixture(scope="session")
def vote(certify: Callable[[Path], None]) -> Callable[..., None]:
    """Turn the labels of a store into votes of readers: vote(folder / "labels.parquet")."""

    def write(path: Path, *, tied: int = 6) -> None:
        """Give the first images a tie between 0 and 1, and the next ones two votes of three."""
        table = pq.read_table(path)
        labels = table.column("label").to_pylist()
        votes = [None] * len(labels)
        for row in range(tied):
            votes[row], labels[row] = '{"0": 1, "1": 1}', None
        for row in range(tied, 2 * tied):
            votes[row] = f'{{"{labels[row]}": 2, "{(int(labels[row]) + 1) % 3}": 1}}'
        table = table.set_column(table.column_names.index("label"), "label", pa.array(labels, pa.string()))
        pq.write_table(table.append_column("votes", pa.array(votes, pa.string())), path)
        certify(path.parent)

    return write


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


@pytest.fixture(scope="session")
def write_volumes() -> Callable[..., Path]:
    """Writes 24 NIfTI files of 16 voxels a side and labels.csv: the label, one of three, is where a bright block lies.

    `hounsfield` moves the values into the range of Hounsfield units; another `hospital` has other patients and voxels.
    """

    def write(
        folder: Path,
        *,
        hounsfield: bool = False,
        hospital: str = "p",
        patients: int = 24,
        labels: Sequence[Any] = (0, 1, 2),
    ) -> Path:
        folder.mkdir(parents=True)
        lines = ["path,patient_id,label"]
        for patient in range(patients):
            values = np.random.default_rng([patient, *hospital.encode()]).normal(100, 20, (16, 16, 16))
            values[2:14, 2:14, 2 + 4 * (patient % 3) : 6 + 4 * (patient % 3)] += 150
            image = nibabel.Nifti1Image((values - 200 * hounsfield).astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
            image.header.set_xyzt_units("mm")
            nibabel.save(image, folder / f"v{patient:02d}.nii")
            lines.append(f"v{patient:02d}.nii,{hospital}{patient:02d},{labels[patient % 3]}")
        (folder / "labels.csv").write_text("\n".join(lines) + "\n")
        return folder

    return write


@pytest.fixture(scope="session")
def make_volume_store(
    write_volumes: Callable[..., Path], run_prepare: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Store]:
    """Makes a store of 24 volumes (1, 16, 16, 16) of 24 patients: make_volume_store("image.dtype=float16")."""

    def make(*arguments: str, **source: Any) -> Store:
        folder = tmp_path_factory.mktemp("volumes")
        raw = write_volumes(folder / "raw", **source)
        defaults = ("image=mr_volume", "image.size=[16,16,16]", "split.test=0.25", "split.val=0.25")
        return run_prepare(raw, folder / "store", *defaults, *arguments)

    return make


@pytest.fixture(scope="session")
def volume_store(make_volume_store: Callable[..., Store]) -> Store:
    """24 volumes as uint8, each stretched to its own range; do not write into it."""
    return make_volume_store()


@pytest.fixture
def tiny3d(monkeypatch: pytest.MonkeyPatch) -> None:
    """model.name=tiny3d is a network of one convolution, for tests of what lies around a 3-D network."""

    def build(plan: Blueprint) -> Backbone:
        stage = nn.Sequential(nn.LazyConv3d(4, 3, stride=2), nn.ReLU())
        body = nn.Sequential(stage, nn.AdaptiveAvgPool3d(2), nn.Flatten())
        body(torch.zeros(1, 1, 16, 16, 16))
        return Backbone(body, num_features=32, stages={"stage": [stage]})

    tiny = Family(("tiny3d",), build, spatial_dims=3, colour=False)
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, tiny))


@pytest.fixture(scope="session")
def patch_tiny2d() -> Callable[[pytest.MonkeyPatch], None]:
    """Make every network of images one convolution with BatchNorm, as long as a patch lasts: patch_tiny2d(patch)."""

    def build(plan: Blueprint) -> Backbone:
        stage = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        body = nn.Sequential(stage, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        return Backbone(body, num_features=16, stages={"stage": [stage]})

    tiny = Family(tuple(families.list_names(2)), build)
    return lambda patch: patch.setattr(families, "FAMILIES", (tiny, *families.FAMILIES))


@pytest.fixture
def tiny2d(patch_tiny2d: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A test in which every network of images is tiny: for tests that write a checkpoint after each step."""
    patch_tiny2d(monkeypatch)


@pytest.fixture
def copy_store(store: Store, tmp_path: Path) -> Callable[..., Path]:
    """A copy that may be changed: copy_store("name")."""

    def copy(name: str = "store") -> Path:
        return Path(shutil.copytree(store.folder, tmp_path / name))

    return copy


class InProcess:
    """Runs the commands of a task here, at once: the same arguments, without the start of an interpreter."""

    slots = 2

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def start(self, task: ComparisonTask) -> Future[int]:
        future: Future[int] = Future()
        try:
            task.log.parent.mkdir(parents=True, exist_ok=True)
            future.set_result(self._run(task))
        except OSError as error:
            future.set_exception(error)
        return future

    def _run(self, task: ComparisonTask) -> int:
        for _, _, module, *arguments in task.commands:
            self.commands.append([module, *arguments])
            try:
                job = command_line.compose_job(module.removeprefix("medcls."), arguments)
                (train if module == "medcls.train" else evaluate)(job)
            except (MedclsError, OSError) as error:
                said = io.StringIO()
                with contextlib.redirect_stderr(said):
                    code = command_line._explain(f"python -m {module}", error)
                task.log.write_text(f"first line\n{said.getvalue()}")
                return code
        return 0

    def stop(self) -> None:
        """Nothing runs."""


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """All comparisons of a test run here, and say what they ran."""
    made = InProcess()
    monkeypatch.setattr(stage, "build_executor", lambda job, out: (made, 1))
    return made


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


CLINICAL = ("clinical.categorical=[sex,site]", "clinical.numeric=[age_years]")


def add_clinical(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sex, age (not known of every ninth patient) and site, none of which follows the grade."""
    changed = []
    for row in rows:
        number = int(row["patient_id"][1:])
        clinical = {"sex": "FFM"[number % 5 % 3], "age_years": "" if number % 9 == 4 else 40 + 7 * number % 31}
        clinical |= {"label_bright": int(int(row["label"]) > 0), "label_low": int(row["label"] == "2")}
        changed.append(row | clinical | {"site": "abab"[number // 3 % 4] if number % 7 else "c"})
    return changed


@pytest.fixture(scope="session")
def clinical_store(
    write_source: Callable[..., Path], run_prepare: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """48 patients, 96 images, grades 0 to 2, with sex, age_years and site; do not write into it."""
    folder = tmp_path_factory.mktemp("clinical")
    raw = write_source(folder / "raw", patients=48, classes=("0", "1", "2"), rewrite=add_clinical)
    return run_prepare(raw, folder / "store", "split.test=0.25", "split.val=0.25", "columns=[site]")


@pytest.fixture(scope="session")
def train_wide(run_train: Callable[..., Path], clinical_store: Store) -> Callable[..., Path]:
    """Trains a small network with the clinical columns: train_wide(run, "task=binary")."""

    def run(folder: Path, *arguments: str) -> Path:
        return run_train(folder, f"store={clinical_store.folder}", "model=cbr_small", *CLINICAL, *arguments)

    return run


@pytest.fixture(scope="session")
def wide_run(train_wide: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished binary run with the clinical columns; do not write into it."""
    return train_wide(tmp_path_factory.mktemp("wide") / "run", "task=binary", "task.classes={0: 0, 1: 1, 2: 1}")
