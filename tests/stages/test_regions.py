"""A run that was trained on regions does not answer for whole images, nor the other way round, without a word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from medcls.config import PredictJob
from medcls.data.regions import summarize_regions
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.files import MODEL
from medcls.predict import predict as stage
from medcls.runs.checksums import finish_run
from medcls.runs.model_file import read_card, read_model

Rows = list[dict[str, Any]]


def join_films(folder: Path) -> Path:
    """Make a film of the two images of each patient, side by side, and name each half as a region of it."""
    lines = (folder / "labels.csv").read_text().splitlines()
    header = lines[0].split(",")
    out = ["path,patient_id,label,roi_x,roi_y,roi_w,roi_h"]
    for line in lines[1:]:
        row = dict(zip(header, line.split(","), strict=True))
        patient, side = row["path"][-7:-5], row["side"]
        halves = [cv2.imread(str(folder / f"images/p{patient}{each}.png"), cv2.IMREAD_UNCHANGED) for each in "LR"]
        height, width = halves[0].shape[:2]
        (folder / "films").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"films/f{patient}.png"), np.hstack(halves))
        box = f"{0 if side == 'L' else width},0,{width},{height}"
        out.append(f"films/f{patient}.png,{row['patient_id']},{row['label']},{box}")
    for image in (folder / "images").iterdir():
        image.unlink()
    (folder / "labels.csv").write_text("\n".join(out) + "\n")
    return folder


@pytest.fixture(scope="module")
def films(
    write_source: Callable[..., Path], run_prepare: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """Both halves of 24 films as regions; raw files beside it; do not write into it."""
    folder = tmp_path_factory.mktemp("films")
    raw = join_films(write_source(folder / "raw"))
    return run_prepare(raw, folder / "store", "split.test=0.25", "split.val=0.25")


@pytest.fixture(scope="module")
def reader(run_train: Callable[..., Path], films: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on the halves."""
    return run_train(tmp_path_factory.mktemp("reader") / "run", f"store={films.folder}")


@pytest.fixture
def predict(compose_job: Callable[..., Any], tmp_path: Path) -> Callable[..., Rows]:
    def run(folder: Path, source: Path, *arguments: str) -> Rows:
        out = tmp_path / "predictions.parquet"
        given = (f"run={folder}", f"source={source}", f"out={out}", "workers=0", "device=cpu", *arguments)
        job: PredictJob = compose_job("predict", *given)
        stage.predict(job)
        return [row for row in pq.read_table(out).to_pylist() if row["level"] == "image"]

    return run


def test_model_card_keeps_that_training_images_were_regions(reader: Path, trained: Path, films: Store) -> None:
    domain = read_card(reader / MODEL).domain
    assert domain is not None
    assert (domain.regions, domain.region_share) == ("all", [1.0, 0.5])
    whole = read_card(trained / MODEL).domain
    assert whole is not None
    assert (whole.regions, whole.region_share) == ("none", [])


def test_store_of_an_older_version_tells_regions_by_its_names(films: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(len(films))
    older = [name for name in films.column_names if not name.startswith("roi_")]
    monkeypatch.setattr(Store, "column_names", older)
    assert summarize_regions(films, rows) == ("all", [1.0, 0.5])
    monkeypatch.setitem(films.info["deidentify"], "kind", "hmac")
    assert summarize_regions(films, rows) == ("", [])


def test_whole_images_for_a_run_of_regions_are_refused_with_the_line_to_type(
    predict: Callable[..., Rows], reader: Path, films: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = films.folder.parent / "raw"
    with pytest.raises(ConfigError, match=r"trained on regions \(typically 100% .* 50% of its width\).*boxes=FILE.csv"):
        predict(reader, raw)
    rows = predict(reader, raw, "out_of_domain=allow")
    assert "was trained on regions" in capsys.readouterr().err
    assert sum(row["state"] == "ok" for row in rows) == 24


def test_regions_of_a_file_are_predicted_as_the_store_has_them(
    predict: Callable[..., Rows], reader: Path, films: Store, run_evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    raw = films.folder.parent / "raw"
    rows = predict(reader, raw, f"boxes={raw / 'labels.csv'}")
    found = {row["image_id"]: row["logits"] for row in rows if row["state"] == "ok"}
    assert set(found) == set(films.column("image_id"))
    kept = pq.read_table(run_evaluate(reader, "report=false") / "predictions.parquet").to_pylist()
    assert kept
    for row in kept:
        np.testing.assert_allclose(found[row["image_id"]], row["logits"], atol=1e-5)
    some = tmp_path / "some.csv"
    some.write_text("path,roi_x,roi_y,roi_w,roi_h\nfilms/f00.png,0,0,10,10\n")
    states = {row["image_id"]: (row["state"], row["reason"]) for row in predict(reader, raw, f"boxes={some}")}
    assert states["films/f00.png@0,0,10,10"][0] == "ok"
    assert states["films/f01.png"] == ("refused", "no_region")


def test_regions_for_a_run_of_whole_images_are_refused(
    predict: Callable[..., Rows], trained: Path, films: Store
) -> None:
    raw = films.folder.parent / "raw"
    with pytest.raises(ConfigError, match="was trained on whole images: remove boxes="):
        predict(trained, raw, f"boxes={raw / 'labels.csv'}")


def test_run_that_does_not_record_regions_is_said(
    predict: Callable[..., Rows], run_copy: Path, films: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    model, card = read_model(run_copy / MODEL)
    assert card.domain is not None
    finish_run(run_copy, model.state_dict(), replace(card, domain=replace(card.domain, regions="")))
    raw = films.folder.parent / "raw"
    predict(run_copy, raw, f"boxes={raw / 'labels.csv'}")
    assert "does not record whether it was trained on regions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("path,roi_x\nfilms/f00.png,0\n", "missing columns roi_y, roi_w, roi_h"),
        ("path,roi_x,roi_y,roi_w,roi_h\nfilms/f00.png,0,0,x,5\n", "row 2: expected whole numbers"),
        ("path,roi_x,roi_y,roi_w,roi_h\nfilms/f00.png,0,0,0,5\n", "row 2: .* width and height from 1"),
        ("path,roi_x,roi_y,roi_w,roi_h\nfilms/f00.png,0,0,5,5\nfilms/f00.png,0,0,5,5\n", "row 3: repeats"),
        ("path,roi_x,roi_y,roi_w,roi_h\nno.png,0,0,5,5\n", r"1 of 1 paths .* \(the first is in row 2\)"),
    ],
)
def test_file_of_regions_with_a_fault_is_refused_by_its_row(
    text: str, part: str, predict: Callable[..., Rows], reader: Path, films: Store, tmp_path: Path
) -> None:
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(DataError, match=part):
        predict(reader, films.folder.parent / "raw", f"boxes={tmp_path / 'boxes.csv'}")


def test_other_store_of_whole_images_is_refused_for_a_run_of_regions(
    reader: Path, trained: Path, films: Store, store: Store, run_evaluate: Callable[..., Path]
) -> None:
    with pytest.raises(
        DataError, match=r"contains whole images, but the run was trained on regions.* prepare it with roi_x"
    ):
        run_evaluate(reader, f"store={store.folder}", "split=all")
    with pytest.raises(
        DataError, match=r"contains regions .* but the run was trained on whole images: prepare it without"
    ):
        run_evaluate(trained, f"store={films.folder}", "split=all")
