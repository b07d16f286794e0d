"""Explanations of a run, in the report of its evaluation."""

from __future__ import annotations

import html
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from medcls.config import EvaluateJob
from medcls.data.store import Store
from medcls.evaluate.evaluate import read_request
from medcls.evaluate.evaluation_data import RowRequest, open_rows
from medcls.evaluate.report_explanations import SHOWN, WIDTH, read_explanations
from medcls.evaluate.split_predictions import predict_split
from medcls.explain.explain import explain
from medcls.files import MODEL, read_json, write_json
from medcls.report.content import Explanation
from medcls.runs.model_file import read_card

QUICK = ("device=cpu", "sanity_images=1")
Found = tuple[list[Explanation], list[str]]


@pytest.fixture(scope="module")
def explained(trained: Path, compose_job: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an explanation of two more images than are shown; do not write into it."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("explained") / "run"))
    explain(compose_job("explain", f"run={run}", *QUICK, f"worst={SHOWN + 2}"))
    return run


@pytest.fixture
def explained_copy(explained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(explained, tmp_path / "explained"))


def folder_of(run: Path) -> Path:
    return next(run.glob("evaluation/*-val/explanation-gradcam"))


@pytest.fixture
def read(compose_job: Callable[..., Any]) -> Callable[[Path], Found]:
    def read_of(run: Path) -> Found:
        job: EvaluateJob = compose_job("evaluate", f"run={run}", "device=cpu", "workers=0")
        card = read_card(run / MODEL)
        request = read_request(job)
        found = predict_split(request, open_rows(request.rows, run, card))
        return read_explanations(found, store=job.store)

    return read_of


def width_of(png: bytes) -> int:
    picture = cv2.imdecode(np.frombuffer(png, dtype=np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return int(picture.shape[1])


def test_none_says_which_command_makes_some_and_that_one_says_what_then(
    run_copy: Path, read: Callable[[Path], Found], compose_job: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found, (note,) = read(run_copy)
    assert found == []
    # No page shows folders: they are named after users and studies.
    assert str(run_copy.parent) not in note
    command = note.partition("python -m medcls.explain ")[2].partition(";")[0].replace("…/", f"{run_copy.parent}/")
    explain(compose_job("explain", *command.split(), *QUICK, "worst=1"))
    assert f"python -m medcls.evaluate run={run_copy} split=val" in capsys.readouterr().out
    found, notes = read(run_copy)
    assert [one.method for one in found] == ["Grad-CAM"]
    assert notes == []


def test_verdict_rows_and_small_pictures(explained: Path, read: Callable[[Path], Found], store: Store) -> None:
    written = read_json(folder_of(explained) / "explanations.json")
    (one,), _ = read(explained)
    assert one.sentences == written["found"]
    assert (one.count, len(one.overlays)) == (SHOWN + 2, SHOWN)
    validation = open_rows(RowRequest(), explained, read_card(explained / MODEL)).rows
    ids = store.column("image_id", validation)
    assert [ids[overlay.row] for overlay in one.overlays] == [row["image_id"] for row in written["images"][:SHOWN]]
    assert all(width_of(overlay.png) == WIDTH for overlay in one.overlays)
    assert len({overlay.png for overlay in one.overlays}) == SHOWN


@pytest.mark.parametrize(("verdict", "trusted"), [("passed", True), ("failed", False), ("undecided", False)])
def test_only_a_passed_check_is_trusted(
    explained_copy: Path, read: Callable[[Path], Found], verdict: str, trusted: bool
) -> None:
    path = folder_of(explained_copy) / "explanations.json"
    content = read_json(path)
    content["summary"]["sanity"]["verdict"] = verdict
    write_json(path, content)
    assert read(explained_copy)[0][0].trusted == trusted
    content["summary"]["sanity"] = None  # not made
    write_json(path, content)
    assert not read(explained_copy)[0][0].trusted


def test_picture_that_was_removed_is_not_shown(explained_copy: Path, read: Callable[[Path], Found]) -> None:
    first = read_json(folder_of(explained_copy) / "explanations.json")["images"][0]
    (folder_of(explained_copy) / "images" / first["picture"]).unlink()
    assert len(read(explained_copy)[0][0].overlays) == SHOWN - 1


@pytest.mark.parametrize("what", ["model_sha256", "store_sha256"])
def test_explanations_of_another_model_or_store_are_left_out_and_named(
    explained_copy: Path, read: Callable[[Path], Found], what: str
) -> None:
    path = folder_of(explained_copy) / "explanations.json"
    write_json(path, read_json(path) | {what: "0" * 64})
    found, notes = read(explained_copy)
    assert found == []
    assert notes[0].startswith("explanation-gradcam was made from another model or store")
    assert "python -m medcls.explain" in notes[1]


def test_report_holds_them_without_an_image_id(
    explained_copy: Path, run_evaluate: Callable[..., Path], store: Store
) -> None:
    page = html.unescape((run_evaluate(explained_copy) / "report.html").read_text())
    assert page.count("Grad-CAM over the image of row") == SHOWN
    found = read_json(folder_of(explained_copy) / "explanations.json")["found"]
    assert all(sentence in page for sentence in found)
    assert "None were made for this model" not in page
    assert not [name for name in store.column("image_id") if name in page]
