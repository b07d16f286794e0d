"""A small labelled set of PNG files, the store that data_prep makes of it, and seeded predictions of every task."""

from __future__ import annotations

import csv
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Before numpy and torch start: equal bits need equal threads, in fixtures of a session as in tests.
os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import hydra
import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.prepare import prepare
from medcls import disk
from medcls.cli.overrides import prepare_overrides
from medcls.config import SCHEMAS, conf_folder, load, register_schemas
from medcls.console import show_log
from medcls.data.splits import SPLIT_NAMES, read_split
from medcls.data.store import Store
from medcls.files import DATASET, LABELLING, LABELS, SPLITS, read_json, sha256_file, write_json
from medcls.imaging.image import RawImage

# Tests call in this process what commands call, and read what they say.
show_log()

CLASSES = ("none", "mild", "severe")
GRADES = ("KL0", "KL1", "KL2", "KL3")
SIZE = 32


def pytest_collection_finish() -> None:
    """What was imported so far stays to the end: the collector need not look through it again and again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """No file of a test must outlive a power cut, and waiting for the disk would take a fifth of a training.

    Tests of what is synchronised, and when, put their own function in this one's place.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def compose_job() -> Callable[..., Any]:
    """Composes a command line as run_command does, in this process: compose_job("train", "model=vgg11")."""
    register_schemas()

    def compose(command: str, *arguments: str) -> Any:
        overrides = prepare_overrides(arguments, schema=SCHEMAS[command], conf=conf_folder())
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
            return load(hydra.compose(command, overrides=overrides))

    return compose


@pytest.fixture(scope="session")
def draw_picture() -> Callable[..., NDArray[np.uint8]]:
    """An image (32, 32) that shows its grade 0 to 2 and is like no other seed's: draw_picture(grade, seed)."""

    def draw(grade: int, seed: int) -> NDArray[np.uint8]:
        generator = np.random.default_rng(seed)
        picture = generator.normal(90, 25, (SIZE, SIZE))
        picture[4 + 8 * grade : 12 + 8 * grade, 6:26] += 90
        return np.clip(picture, 0, 255).astype(np.uint8)

    return draw


@pytest.fixture(scope="session")
def write_source(draw_picture: Callable[..., NDArray[np.uint8]]) -> Callable[..., Path]:
    """Writes images and labels.csv into a folder and returns it.

    24 patients, two images each, the classes "mild", "none" and "severe" in turn. `patients` and `classes` make it
    smaller; `rewrite(rows)` changes the label rows before they are written.
    """

    def write(
        folder: Path,
        *,
        patients: int = 24,
        classes: Sequence[str] = CLASSES,
        rewrite: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = list,
    ) -> Path:
        (folder / "images").mkdir(parents=True)
        rows = []
        for patient in range(patients):
            for side in "LR":
                path = f"images/p{patient:02d}{side}.png"
                picture = draw_picture(patient % len(classes), 2 * patient + (side == "R"))
                cv2.imwrite(str(folder / path), picture)
                label = classes[patient % len(classes)]
                rows.append({"path": path, "patient_id": f"p{patient:02d}", "label": label, "side": side})
        write_csv(folder / "labels.csv", rewrite(rows))
        return folder

    return write


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="session")
def write_labels() -> Callable[[Path, Sequence[dict[str, Any]]], None]:
    """Writes dictionaries as a CSV file: write_labels(path, rows)."""
    return write_csv


@pytest.fixture(scope="session")
def read_labels_csv() -> Callable[[Path], list[dict[str, str]]]:
    """Rows of a CSV file as dictionaries."""

    def read(path: Path) -> list[dict[str, str]]:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture(scope="session")
def run_prepare(compose_job: Callable[..., Any]) -> Callable[..., Store]:
    """Runs data_prep in this process on a folder that write_source made: run_prepare(source, store, "key=value")."""

    def run(source: Path, store: Path, *arguments: str, labels: str | None = "labels.csv") -> Store:
        given = [f"labels={source / labels}"] if labels else []
        defaults = [f"image.size={SIZE}", "workers=0"]
        return prepare(compose_job("prepare", f"source={source}", f"store={store}", *given, *defaults, *arguments))

    return run


@pytest.fixture(scope="session")
def source(write_source: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source folder of `small_store`; do not write into it."""
    return write_source(tmp_path_factory.mktemp("source") / "raw")


@pytest.fixture(scope="session")
def make_store(
    source: Path, run_prepare: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Store]:
    """Makes a new store of 24 patients, 48 images, 3 classes, 32 pixels: make_store("image.dtype=uint16")."""

    def make(*arguments: str) -> Store:
        return run_prepare(source, tmp_path_factory.mktemp("made") / "store", *arguments)

    return make


@pytest.fixture(scope="session")
def small_store(make_store: Callable[..., Store]) -> Store:
    """One store for all tests that only read: 24 patients, 48 images, 3 classes, 32 pixels, uint8, grey."""
    return make_store()


@pytest.fixture
def fresh_store(make_store: Callable[..., Store]) -> Store:
    """A store that a test may damage."""
    return make_store()


@pytest.fixture(scope="session")
def split_names() -> Callable[..., dict[str, str]]:
    """The split of each image by its image_id: split_names(store, "default")."""

    def read(store: Store, name: str = "default") -> dict[str, str]:
        splits = [SPLIT_NAMES[code] for code in read_split(store, name)[0]]
        return dict(zip(store.column("image_id"), splits, strict=True))

    return read


@pytest.fixture(scope="session")
def make_raw() -> Callable[..., RawImage]:
    """A RawImage of pixels (C, H, W) in [0, 1], as read_image would return it; keywords go over the defaults."""

    def make(pixels: NDArray[Any], **changes: Any) -> RawImage:
        fields: dict[str, Any] = {
            "mask": None,
            "spacing_mm": None,
            "spacing_source": "",
            "aspect": 1.0,
            "bits": 8,
            "photometric": "L",
            "headers": {},
        }
        return RawImage(pixels=np.asarray(pixels, np.float32), **fields | changes)

    return make


@pytest.fixture
def quick_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of reports are drawn but not rendered, which takes a second a page, unless a test uses `real_figures`.

    Pages that a module or a session shares have real figures.
    """
    if "real_figures" in request.fixturenames:
        return
    from matplotlib.figure import Figure

    files = {"png": cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes(), "svg": "<svg></svg>"}

    class Unrendered(Figure):
        def savefig(self, fname: Any, **settings: Any) -> None:
            fname.write(files[settings["format"]])

    class NoLayout:
        def execute(self, figure: Figure) -> None:
            pass

    monkeypatch.setattr("medcls.report.drawing.Figure", Unrendered)
    monkeypatch.setattr("medcls.report.drawing.ConstrainedLayoutEngine", NoLayout)


@pytest.fixture
def real_figures() -> None:
    """For tests that look at the figures of a report themselves."""


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be read is tried again at once."""
    monkeypatch.setattr(disk.time, "sleep", lambda seconds: None)


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """No de-identification key in the environment."""
    monkeypatch.delenv("MEDCLS_DEIDENTIFY_KEY", raising=False)


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
        labelling = read_json(folder / LABELLING)
        write_json(folder / LABELLING, labelling | {"labels_sha256": sha256_file(folder / LABELS)})

    return write_checksums


@pytest.fixture(scope="session")
def make_task() -> Callable[..., dict[str, Any]]:
    """Arguments of compute_metrics for a learnable task in which every class occurs."""
    return _make_task


@pytest.fixture(scope="session")
def make_patients() -> Callable[..., list[str]]:
    """Patient of each row, `each` rows in a line belonging to one."""
    return lambda rows, *, each=2: [f"patient-{row // each}" for row in range(rows)]


def _make_task(kind: str, *, rows: int = 60, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    grade = np.arange(rows) % len(GRADES)
    noisy = grade + generator.normal(0, 0.8, rows)
    logits = -1.5 * np.abs(np.arange(len(GRADES)) - noisy[:, None])
    score = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    match kind:
        case "binary":
            task = {"y_true": (grade >= 2).astype(int), "y_score": score[:, 2:].sum(axis=1, keepdims=True)}
            return {"kind": kind, **task, "class_names": ("healthy", "ill")}
        case "multilabel":
            true = (score > generator.random(score.shape)).astype(float)
            true[generator.random(score.shape) < 0.15] = np.nan
            true[:2] = [[0] * len(GRADES), [1] * len(GRADES)]
            return {"kind": kind, "y_true": true, "y_score": score, "class_names": GRADES}
        case "regression":
            graded = {"class_names": GRADES, "grades": True}
            return {"kind": kind, "y_true": grade.astype(float), "y_score": noisy[:, None], **graded}
        case _:
            return {"kind": kind, "y_true": grade, "y_score": score, "class_names": GRADES}
