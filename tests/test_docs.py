"""The documents name files, modules and links that exist, and list the files that an image really passes."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from data_prep.demo.film import build_dicom, draw_exposure
from data_prep.demo.knees import draw_knee
from data_prep.shard_work import StoreTask, store_image
from medcls.config import ScheduleConfig
from medcls.data.augment import build_augmentation
from medcls.data.dataset import ImageView, StoreDataset
from medcls.data.loaders import EpochSampler, build_loader
from medcls.data.shards import ShardFile
from medcls.data.store import Store
from medcls.imaging.decode import DecodeTask
from medcls.imaging.preprocess import PreprocessSpec
from medcls.models.classifier import Answer, build_classifier
from medcls.training.loop import accumulate_gradients
from medcls.training.losses import build_loss
from medcls.training.optimizers import build_optimizer, build_schedule
from medcls.training.precision import build_scaler
from medcls.training.state import Learner, StepRules

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
SOURCES = sorted(path for package in ("medcls", "data_prep") for path in (ROOT / package).rglob("*.py"))
_FOLDERS = ("medcls", "data_prep", "tests", "benchmarks", "deploy")
TREE = {path.name for folder in _FOLDERS for path in (ROOT / folder).rglob("*.py")}
_PATH = re.compile(r"(?<![\w/.…-])((?:medcls|data_prep|tests|conf|deploy|benchmarks|docs)/[\w/.-]*+)(?![*{<…])")
_FILE = re.compile(r"`[\w/.-]*?([\w.-]+\.py)`")
_MODULE = re.compile(r"(?<![\w/.-])((?:medcls|data_prep)(?!\.sif)(?:\.\w+)+)")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[\w-]*)?\)")
_NAME = re.compile(r"(?<![\w./])(?:\w+\.)*(\w+)\.(\w+)\b(?!\.\w|=)")


def list_definitions() -> dict[str, set[str]]:
    """Each name that a module defines at its top -> the modules (and their folders) that it may be called by."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = [*getattr(node, "targets", []), getattr(node, "target", None)]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            names += [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            for name in names:
                found.setdefault(name, set()).add(path.parent.name if path.stem == "__init__" else path.stem)
    return found


DEFINED = list_definitions()


def find_stale_paths(text: str) -> list[str]:
    """Paths from the root, and names of Python files, that are nowhere."""
    # A decision may go by its number; GROUP and NAME are the reader's own.
    named = [path.rstrip("./") for path in _PATH.findall(text) if not re.search(r"/(GROUP|NAME)\b", path)]
    paths = [path for path in named if not (ROOT / path).exists() and not any(ROOT.glob(f"{path}-*.md"))]
    return sorted(paths + [name for name in _FILE.findall(text) if name not in TREE])


def find_stale_modules(text: str) -> list[str]:
    """Full names of modules, or of what is in them, that are nowhere."""
    return sorted(name for name in _MODULE.findall(text) if not is_there(name))


def is_there(name: str) -> bool:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        for path in (ROOT.joinpath(*parts[:count]).with_suffix(".py"), ROOT.joinpath(*parts[:count], "__init__.py")):
            if path.is_file():
                return count == len(parts) or re.search(rf"\b{parts[count]}\b", path.read_text("utf-8")) is not None
    return False


def find_stale_names(text: str) -> list[str]:
    """References module.name to a name that other modules define, and this one does not."""
    return [
        match[0]
        for match in _NAME.finditer(text)
        if match[1] not in ("pyarrow", "stores")
        and ("_" in match[2] or match[2][0].isupper())
        and match[1] not in DEFINED.get(match[2], {match[1]})
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_modules_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert find_stale_paths(text) == []
    assert find_stale_modules(text) == []
    assert find_stale_names(" ".join(re.findall("`([^`]+)`", text))) == []
    assert [link for link in _LINK.findall(text) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_name_what_exists(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    texts = [
        ast.get_docstring(node) or "" for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    text = "\n".join(texts)
    assert find_stale_paths(text) == []
    assert find_stale_modules(text) == []
    assert find_stale_names(text) == []


def test_stale_references_are_found() -> None:
    text = (
        "`medcls/attic/nowhere.py` and `attic.py`, but `medcls/data/store.py`, `store.py` and conf/task/ad_*.yaml; "
        "medcls.data.nowhere and medcls.data.store.Nothing, but medcls.data.store.Store and medcls.open_store; "
        "readers.read_image, but image.read_image"
    )
    assert find_stale_paths(text) == ["attic.py", "medcls/attic/nowhere.py", "nowhere.py"]
    assert find_stale_modules(text) == ["medcls.data.nowhere", "medcls.data.store.Nothing"]
    assert find_stale_names(text) == ["readers.read_image"]


def trace_files(function: Callable[[], Any]) -> set[str]:
    """Files of the project in which a function is called, those of building objects and of generators' ends aside."""
    found: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and frame.f_code.co_name != "__init__" and path.is_relative_to(ROOT):
            found.add(str(path.relative_to(ROOT)))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return {path for path in found if path.startswith(("medcls/", "data_prep/"))}


def list_files(text: str) -> list[str]:
    """The paths of a text; a bare name is in the folder of the path before it."""
    found: list[str] = []
    for name in re.findall(r"`([\w/]+\.py)`", text):
        found.append(name if "/" in name else f"{Path(found[-1]).parent}/{name}")
    return found


def test_architecture_lists_the_files_that_an_image_passes(tmp_path: Path, small_store: Store) -> None:
    knee = draw_knee(0, patient=0, side="R")
    film, spec = tmp_path / "film.dcm", PreprocessSpec(height=32, width=32)
    build_dicom(knee, draw_exposure(knee), age_years=60).save_as(film, enforce_file_format=True)
    shard = ShardFile(tmp_path, 0, shape=spec.shape, dtype=spec.dtype, slots=1)
    shard.create()
    task = StoreTask(DecodeTask((film,), None, spec), shard.slot(0))

    images = StoreDataset(
        small_store,
        np.arange(2),
        targets=np.zeros((2, 1)),
        view=ImageView(
            augmentation=build_augmentation(
                {"HorizontalFlip": {}}, shape=small_store.shape, dtype="uint8", value_range=(0, 255)
            )
        ),
    )
    model = build_classifier("resnet18", Answer("binary", 2))
    optimizer = build_optimizer("sgd", [{"params": model.parameters(), "stage": "all"}], lr=0.1)
    learner = Learner(
        model=model,
        loss=build_loss("binary"),
        optimizer=optimizer,
        schedule=build_schedule(optimizer, ScheduleConfig("constant"), steps_per_epoch=1, epochs=1),
        scaler=build_scaler("fp32", device="cpu"),
        average=None,
        forward=model,
    )
    loader = build_loader(images, EpochSampler(2, batch_size=2, shuffle=True), workers=0, device="cpu")

    passed = trace_files(lambda: store_image(task))
    passed |= trace_files(lambda: accumulate_gradients(learner, list(loader), StepRules()))

    chapter = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    way, _, beside = chapter.split("## One image from DICOM to the loss")[1].partition("A profiler counts")
    steps = list_files("".join(line for line in way.splitlines() if re.match(r"\d+\. ", line)))
    helpers = list_files(beside.partition("\n\n")[0])
    assert len(steps) <= 20
    assert sorted(steps + helpers) == sorted(passed)
    assert beside.startswith(f" {len(helpers)} more")
