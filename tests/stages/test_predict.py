"""Raw files to scores: the store's own pixels, evaluate's own logits, and a reason for everything else."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from data_prep.demo.__main__ import write_demo
from medcls.config import PredictJob
from medcls.data.splits import read_split, rows_of
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MissingInputError, UsageError
from medcls.evaluate import judged_rows
from medcls.files import FEATURE_DISTANCE, MODEL, read_json, sha256_file, sha256_json, write_json
from medcls.identity import write_key
from medcls.predict import predict as stage
from medcls.predict import scoring
from medcls.predict.__main__ import main
from medcls.predict.prediction_table import COLUMNS, Case
from medcls.predict.scoring import judge_distance
from medcls.records import to_json
from medcls.runs.checksums import finish_run
from medcls.runs.model_file import ModelCard, read_card, read_model, read_state
from medcls.training.feature_distance import read_distance, write_distance

Rows = list[dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged_rows, "write_report", lambda folder, evaluation: folder / "report.html")


@pytest.fixture
def raw(store: Store) -> Path:
    """The files that `store` was made of: 48 PNG and labels.csv; do not write into it."""
    return store.folder.parent / "raw"


@pytest.fixture
def few(raw: Path, tmp_path: Path) -> Path:
    """Three of them, in a folder that may be changed."""
    folder = tmp_path / "few"
    (folder / "images").mkdir(parents=True)
    for name in ("p00L.png", "p01L.png", "p02L.png"):
        shutil.copy(raw / "images" / name, folder / "images")
    return folder


@pytest.fixture
def predict(compose_job: Callable[..., Any], tmp_path: Path) -> Callable[..., Rows]:
    """Predicts in this process and returns the rows of images: predict(run, source, "out_of_domain=allow").

    Those of series and patients stand in predictions.parquet, too.
    """

    def run(folder: object, source: Path, *arguments: str) -> Rows:
        out = tmp_path / "predictions.parquet"
        given = (f"run={folder}", f"source={source}", f"out={out}", "workers=0", "device=cpu", *arguments)
        job: PredictJob = compose_job("predict", *given)
        stage.predict(job)
        return [row for row in read_rows(Path(job.out or "")) if row["level"] == "image"]

    return run


def read_rows(out: Path) -> Rows:
    rows: Rows = pq.read_table(out).to_pylist()
    return rows


def by_image(rows: Rows) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for row in rows}


@pytest.fixture
def seen_pixels(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[Any]]:
    """Every image that the network was given, in order."""
    seen: list[NDArray[Any]] = []
    original = scoring.predict_logits

    def record(model: Any, batches: Any, rules: Any) -> Any:
        batches = list(batches)
        seen.extend(image for batch in batches for image in batch.images.numpy())
        return original(model, batches, rules)

    monkeypatch.setattr(scoring, "predict_logits", record)
    return seen


def check_pixels(store: Store, rows: Rows, seen: list[NDArray[Any]]) -> None:
    classified = [row for row in rows if row["state"] == "ok"]
    assert len(classified) == len(seen) == len(store)
    for row, pixels in zip(classified, seen, strict=True):
        stored = store.image(store.column("image_id").index(row["image_id"]))
        assert pixels.dtype == stored.dtype
        assert np.array_equal(pixels, stored)


def check_logits(folder: Path, rows: Rows) -> None:
    expected = read_rows(folder / "predictions.parquet")
    found = by_image(rows)
    assert expected
    logits = [found[row["image_id"]]["logits"] for row in expected]
    np.testing.assert_allclose(logits, [row["logits"] for row in expected], rtol=0, atol=1e-5)


def test_png_pixels_are_the_stores_and_logits_those_of_evaluate(
    predict: Callable[..., Rows],
    run_copy: Path,
    raw: Path,
    store: Store,
    run_evaluate: Callable[..., Path],
    seen_pixels: list[NDArray[Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = predict(run_copy, raw, "batch_size=7")
    check_pixels(store, rows, seen_pixels)
    check_logits(run_evaluate(run_copy, "split=val"), rows)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "files:" in line]
    assert line.startswith("49 files: 48 ok, 0 refused, 1 skipped (1 skipped: no_image); ")
    assert line.endswith("research use; not a medical device")
    assert len({tuple(row["logits"]) for row in rows if row["logits"]}) == 48  # no row has another's scores


def test_a_row_says_what_and_by_what(predict: Callable[..., Rows], trained: Path, few: Path) -> None:
    (few / "note.txt").write_text("no image")
    rows = by_image(predict(trained, few))
    row = rows["images/p01L.png"]
    card = read_card(trained / MODEL)
    assert row["model_sha256"] == sha256_file(trained / MODEL)
    assert row["preprocess_sha256"] == sha256_json(to_json(card.preprocess))
    # A PNG names no patient, study or series.
    assert [row[name] for name in ("patient_id", "study_id", "series_id", "reason", "detail")] == [None] * 5
    scores = [row[f"score_{name}"] for name in ("0", "1", "2")]
    assert scores == pytest.approx(torch.tensor(row["logits"]).double().softmax(0).tolist())
    assert row["predicted"] == str(int(np.argmax(scores)))
    assert (rows["note.txt"]["state"], rows["note.txt"]["reason"]) == ("skipped", "no_image")
    assert rows["note.txt"]["logits"] is rows["note.txt"]["score_0"] is rows["note.txt"]["predicted"] is None


def test_what_was_found_in_a_file_is_in_its_row(predict: Callable[..., Rows], trained: Path, few: Path) -> None:
    picture = Image.open(few / "images" / "p01L.png")
    picture.save(few / "images" / "p01L.jpg", "MPO", save_all=True, append_images=[picture])
    coded = (few / "images" / "p01L.jpg").read_bytes()
    (few / "images" / "p02L.jpg").write_bytes(coded[: coded.index(b"\xff\xda") + 60] + b"\xff\xd9")
    rows = by_image(predict(trained, few, "out_of_domain=allow"))
    row = rows["images/p01L.jpg"]
    found = "a photograph with 2 pictures in one file (MPO): the first was read"
    assert [row["state"], row["reason"], row["detail"]] == ["ok", "first_picture", found]
    assert rows["images/p02L.jpg"]["state"] == "refused"
    assert rows["images/p02L.png"]["reason"] is None


@pytest.fixture(scope="module")
def dicom(
    tmp_path_factory: pytest.TempPathFactory, run_prepare: Callable[..., Store], run_train: Callable[..., Path]
) -> tuple[Path, Store, Path]:
    """A demo set of DICOM files, its pseudonymous store, a run on it; the key lies beside them in key.txt."""
    folder = tmp_path_factory.mktemp("dicom")
    write_key(folder / "key.txt")
    write_demo(folder / "raw", num_images=12)
    split = ("split.test=0.34", "split.val=0.33", "split.on_missing=report")
    key = f"deidentify.key_file={folder / 'key.txt'}"
    store = run_prepare(folder / "raw", folder / "store", "image.size=48", key, *split)
    return folder / "raw", store, run_train(folder / "run", "task=regression", f"store={store.folder}")


def test_dicom_pixels_ids_and_logits_are_those_of_the_store(
    predict: Callable[..., Rows],
    dicom: tuple[Path, Store, Path],
    run_evaluate: Callable[..., Path],
    seen_pixels: list[NDArray[Any]],
    tmp_path: Path,
) -> None:
    raw, store, run = dicom
    key = f"deidentify.key_file={raw.parent / 'key.txt'}"
    rows = predict(run, raw, key, "out_of_domain=allow")
    check_pixels(store, rows, seen_pixels)
    check_logits(run_evaluate(run, "split=val"), rows)
    found = by_image(rows)
    for name in ("patient_id", "study_id", "series_id"):
        assert None not in store.column(name)
        assert [found[image_id][name] for image_id in store.column("image_id")] == store.column(name)
    assert all(row["predicted"] == row["logits"][0] for row in rows if row["state"] == "ok")

    # Neither a path nor a patient's id is in the table; the map beside it has both.
    content = (tmp_path / "predictions.parquet").read_bytes()
    path = tmp_path / "predictions.parquet.identity-map.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="") as file:
        names = list(csv.DictReader(file))
    assert {name["image_id"] for name in names} == set(found)
    images = [name for name in names if name["path"].endswith(".dcm")]
    assert len(images) == 12
    for name in images:
        assert name["patient_id"].encode() not in content
        assert name["path"].encode() not in content
        assert found[name["image_id"]]["patient_id"] == name["patient_pseudonym"]


def test_dicom_series_and_patients_have_rows_of_their_own(
    predict: Callable[..., Rows], dicom: tuple[Path, Store, Path], tmp_path: Path
) -> None:
    raw, store, run = dicom
    # Another test may have had the rule chosen, on patients that a random key put into validation.
    for name in ("operating_points.json", "calibration.json"):
        (run / name).unlink(missing_ok=True)
    given = (f"deidentify.key_file={raw.parent / 'key.txt'}", "out_of_domain=allow")
    predict(run, raw, *given)
    rows = read_rows(tmp_path / "predictions.parquet")
    levels = [row["level"] for row in rows]
    assert levels == ["image"] * 15 + ["series"] * 6 + ["patient"] * 6
    for level in ("series", "patient"):
        units = [row for row in rows if row["level"] == level]
        assert {row[f"{level}_id"] for row in units} == set(store.column(f"{level}_id"))
        for row in units:
            images = [one for one in rows[:15] if one[f"{level}_id"] == row[f"{level}_id"]]
            assert row["images"] == len(images) == 2
            assert row["predicted"] == pytest.approx(sum(one["predicted"] for one in images) / 2, abs=1e-9)
            assert row["patient_id"] == images[0]["patient_id"]
            assert row["model_sha256"] == sha256_file(run / MODEL)
            assert (row["state"], row["aggregation"], row["image_id"], row["logits"]) == ("ok", "mean", None, None)
    assert [row["images"] for row in rows[:15]] == [int(row["state"] == "ok") for row in rows[:15]]


def test_dicom_without_a_key_names_the_command_that_makes_one(
    predict: Callable[..., Rows], dicom: tuple[Path, Store, Path], no_key: None, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"python -m data_prep\.key out=FILE") as error:
        predict(dicom[2], dicom[0])
    assert error.value.exit_code == 78
    assert not (tmp_path / "predictions.parquet").exists()


def test_a_single_dicom_file_with_its_ids_as_they_are(
    predict: Callable[..., Rows], dicom: tuple[Path, Store, Path], no_key: None
) -> None:
    raw, _, run = dicom
    (row,) = predict(run, raw / "images" / "000003-R.dcm", "deidentify=declared", "out_of_domain=allow")
    with (raw / "labels.csv").open(newline="") as file:
        (label,) = [label for label in csv.DictReader(file) if label["path"] == "images/000003-R.dcm"]
    assert (row["image_id"], row["state"]) == ("000003-R.dcm", "ok")
    assert row["patient_id"] == label["patient_id"]


def test_every_file_ends_in_one_row_with_its_reason(
    predict: Callable[..., Rows], trained: Path, few: Path, tmp_path: Path
) -> None:
    (few / "broken.png").write_bytes((few / "images/p00L.png").read_bytes()[:200])
    (few / "text.png").write_text("no image")
    (few / "link.png").symlink_to(few / "images/p00L.png")
    (few / ".hidden.png").write_bytes((few / "images/p00L.png").read_bytes())
    colour = np.zeros((32, 32, 3), np.uint8)
    colour[:, :16] = (0, 0, 255)
    cv2.imwrite(str(few / "colour.png"), colour)
    rows = by_image(predict(trained, few))
    assert len(rows) == 8
    assert {name: row["state"] for name, row in rows.items() if row["state"] != "ok"} == {
        ".hidden.png": "skipped",
        "broken.png": "refused",
        "colour.png": "refused",
        "link.png": "skipped",
        "text.png": "refused",
    }
    reasons = {name: row["reason"] for name, row in rows.items()}
    assert (reasons["colour.png"], reasons["link.png"], reasons[".hidden.png"]) == ("colour", "symbolic_link", "hidden")
    assert reasons["broken.png"]
    assert reasons["text.png"]


def rewrite_card(run: Path, **changes: Any) -> None:
    model, card = read_model(run / MODEL)
    finish_run(run, model.state_dict(), dataclasses.replace(card, **changes))


def narrow(card: ModelCard, **changes: Any) -> dict[str, Any]:
    assert card.domain is not None
    return {"domain": dataclasses.replace(card.domain, **changes)}


def test_training_records_what_it_saw(trained: Path, dicom: tuple[Path, Store, Path]) -> None:
    domain = read_card(trained / MODEL).domain
    assert domain is not None
    assert (domain.modalities, domain.photometrics, domain.spacing_mm) == ([""], ["L"], [])
    _, store, run = dicom
    domain = read_card(run / MODEL).domain
    assert domain is not None
    split = {row["image_id"]: row["split"] for row in read_rows(store.folder / "splits/default.parquet")}
    train = [split[image_id] == "train" for image_id in store.column("image_id")]
    spacings = np.array([store.column("spacing_row_mm"), store.column("spacing_column_mm")])[:, train]
    assert domain.spacing_mm == [spacings.min(), spacings.max()]
    assert domain.modalities == sorted({m for m, seen in zip(store.column("modality"), train, strict=True) if seen})
    assert not all(train)


@pytest.mark.parametrize(
    ("reason", "changes", "word"),
    [
        ("unseen_modality", {"modalities": ["CT"]}, "training had CT"),
        ("unseen_spacing", {"spacing_mm": [99.0, 99.0]}, "training had 99 to 99 mm"),
    ],
)
def test_what_training_never_saw_is_refused_unless_allowed(
    reason: str,
    changes: dict[str, Any],
    word: str,
    predict: Callable[..., Rows],
    dicom: tuple[Path, Store, Path],
    tmp_path: Path,
) -> None:
    raw, _, original = dicom
    run = Path(shutil.copytree(original, tmp_path / "run"))
    # First everything this film has, so that the one change alone decides.
    film = raw / "images" / "000000-L.dcm"
    wide: dict[str, Any] = {
        "modalities": ["CR", "DX"],
        "photometrics": ["MONOCHROME1", "MONOCHROME2"],
        "spacing_mm": [0.01, 99.0],
    }
    rewrite_card(run, **narrow(read_card(run / MODEL), **wide))
    (row,) = predict(run, film, "deidentify=declared")
    assert (row["state"], row["reason"]) == ("ok", None)

    rewrite_card(run, **narrow(read_card(run / MODEL), **changes))
    with pytest.raises(DataError, match=f"1 refused: {reason}") as error:
        predict(run, film, "deidentify=declared")
    assert error.value.exit_code == 65
    (refused,) = read_rows(tmp_path / "predictions.parquet")
    assert (refused["state"], refused["reason"], refused["logits"]) == ("refused", reason, None)
    assert word in refused["detail"]
    assert refused["patient_id"] == row["patient_id"]

    (allowed,) = predict(run, film, "deidentify=declared", "out_of_domain=allow")
    assert (allowed["state"], allowed["reason"], allowed["detail"]) == ("ok", reason, refused["detail"])
    assert allowed["logits"] == row["logits"]


def test_a_run_from_before_domains_were_recorded(
    predict: Callable[..., Rows], run_copy: Path, few: Path, trained: Path
) -> None:
    rewrite_card(run_copy, domain=None)
    with pytest.raises(DataError, match=r"does not record which images it was trained on.*out_of_domain=allow"):
        predict(run_copy, few)
    allowed = predict(run_copy, few, "out_of_domain=allow")
    assert [row["logits"] for row in allowed] == [row["logits"] for row in predict(trained, few)]


@pytest.fixture
def second_run(run_copy: Path) -> Path:
    """A run of the same task with other weights, in a folder with a blank in its name."""
    model, card = read_model(run_copy / MODEL)
    torch.nn.init.normal_(model.head.linear.weight, generator=torch.Generator().manual_seed(1))
    finish_run(run_copy, model.state_dict(), card)
    return run_copy.rename(run_copy.with_name("second run"))


def test_several_runs_are_averaged(predict: Callable[..., Rows], trained: Path, second_run: Path, few: Path) -> None:
    alone = [by_image(predict(run, few)) for run in (trained, second_run)]
    together = by_image(predict(f"[{trained}, {second_run}]", few))
    for image_id, row in together.items():
        for name in ("score_0", "score_1", "score_2"):
            values = [rows[image_id][name] for rows in alone]
            assert values[0] != values[1]
            assert row[name] == pytest.approx(sum(values) / 2, abs=1e-12)
        assert row["logits"] is None
        assert row["model_sha256"] == "+".join(rows[image_id]["model_sha256"] for rows in alone)


@pytest.mark.parametrize("field", ["task", "preprocess"])
def test_runs_that_do_not_belong_together_are_refused(
    field: str, predict: Callable[..., Rows], trained: Path, run_copy: Path, few: Path
) -> None:
    card = read_card(trained / MODEL)
    change = {"task": {"class_names": ["0", "1", "x"]}, "preprocess": {"fit": "crop"}}[field]
    rewrite_card(run_copy, **{field: dataclasses.replace(getattr(card, field), **change)})
    with pytest.raises(ConfigError, match=f"another {field} than"):
        predict(f"[{trained},{run_copy}]", few)


def test_frozen_choices_are_columns_of_this_very_model_alone(
    predict: Callable[..., Rows], run_copy: Path, trained: Path, raw: Path, few: Path, run_evaluate: Callable[..., Path]
) -> None:
    folder = run_evaluate(run_copy, "split=test")
    calibration = read_json(run_copy / "calibration.json")
    assert calibration["chosen"]["method"] == "none"  # too few patients to choose another
    sharper = {"method": "temperature", "inverse": 2.0}
    write_json(run_copy / "calibration.json", calibration | {"chosen": {"method": "temperature"}, "map": sharper})
    rows = by_image(predict(run_copy, raw))
    test = [rows[row["image_id"]] for row in read_rows(folder / "predictions.parquet")]
    points = read_json(folder / "metrics.json")["operating_points"]
    assert [name for name in test[0] if name.startswith("above_")] == [
        f"above_{name}_{rule}" for name in "012" for rule in ("youden", "sensitivity_0.95", "specificity_0.95")
    ]
    assert sum(point["threshold"] is not None for point in points) > len(points) / 2
    for point in points:
        rule = "youden" if point["target"] is None else f"{point['kind']}_0.95"
        above = [row[f"above_{point['question']}_{rule}"] for row in test]
        # Where only "call nobody positive" met the rule on validation, there is no threshold.
        cells = point.get("counts", dict.fromkeys(("tp", "fp", "fn", "tn"), 0))
        assert ("counts" in point) == (point["threshold"] is not None)
        assert above.count(True) == cells["tp"] + cells["fp"]
        assert above.count(False) == cells["fn"] + cells["tn"]
    for row in test:
        calibrated = np.array([row[f"calibrated_{name}"] for name in "012"])
        assert calibrated.sum() == pytest.approx(1)
        assert abs(calibrated - [row[f"score_{name}"] for name in "012"]).max() > 1e-3
    assert rows["labels.csv"]["above_0_youden"] is rows["labels.csv"]["calibrated_0"] is None

    # Chosen for one model, they say nothing of several together, nor of the next one.
    assert not find_chosen(predict(f"[{run_copy},{trained}]", few))
    assert find_chosen(predict(run_copy, few))
    rewrite_card(run_copy, store_sha256="0" * 64)
    assert not find_chosen(predict(run_copy, few))


def find_chosen(rows: Rows) -> list[str]:
    return [name for name in rows[0] if name.startswith(("above_", "calibrated_"))]


def test_json_has_the_same_rows(
    predict: Callable[..., Rows], dicom: tuple[Path, Store, Path], few: Path, tmp_path: Path
) -> None:
    raw, _, run = dicom
    (few / "text.png").write_text("no image")
    shutil.copy(raw / "images" / "000003-R.dcm", few)
    given = ("deidentify=declared", "out_of_domain=allow")
    predict(run, few, *given)
    rows = read_rows(tmp_path / "predictions.parquet")
    assert [row["level"] for row in rows] == ["image"] * 5 + ["series", "patient"]

    def write(name: str) -> str:
        with contextlib.suppress(pa.ArrowInvalid):  # read_rows of the fixture reads parquet alone
            predict(run, few, *given, f"out={tmp_path / name}")
        return (tmp_path / name).read_text(encoding="utf-8")

    assert json.loads(write("rows.json")) == rows
    assert [json.loads(line) for line in write("rows.jsonl").splitlines()] == rows
    table = list(csv.DictReader(write("rows.csv").splitlines()))
    assert [line["image_id"] for line in table] == [row["image_id"] or "" for row in rows]
    for line, row in zip(table, rows, strict=True):
        for name in (name for name in row if name.startswith("score_")):
            assert (float(line[name]) if line[name] else None) == row[name]
        assert json.loads(line["logits"] or "null") == row["logits"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["out=pred.txt"], r"out=pred.txt: its suffix .* choose one of .parquet, .csv, .json, .jsonl"),
        (["out=pred"], "its suffix is not the name of a format"),
        (["out=pred.csv", "format=parquet"], r"format=parquet with out=pred.csv: set out= to a .parquet file"),
        (["out=rows.json", "format=jsonl"], r"set out= to a .jsonl file"),
        (["format=xlsx"], "format=xlsx: expected one of parquet, csv, json, jsonl"),
    ],
)
def test_format_is_that_of_the_suffix_and_a_contradiction_is_refused(
    predict: Callable[..., Rows], trained: Path, few: Path, arguments: list[str], part: str
) -> None:
    with pytest.raises(ConfigError, match=part):
        predict(trained, few, *arguments)
    assert not Path("pred").exists()


def test_columns_file_says_what_each_column_holds(
    predict: Callable[..., Rows], trained: Path, few: Path, tmp_path: Path
) -> None:
    (row, *_) = predict(trained, few)
    content = read_json(tmp_path / "predictions.parquet.columns.json")
    assert set(content["columns"]) == set(row)
    assert all(content["columns"].values())
    assert (content["classes"], content["task"], content["positive_class"]) == (["0", "1", "2"], "multiclass", None)
    documented = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    assert [name for name in COLUMNS if f"`{name}" not in documented] == []


# --- how far from training


@pytest.fixture
def certain(trained: Path, tmp_path: Path) -> Path:
    """A run whose threshold is as sure as that of a hundred validation images."""
    run = tmp_path / "certain"
    shutil.copytree(trained, run)
    distance = read_distance(run / FEATURE_DISTANCE)
    write_distance(run / FEATURE_DISTANCE, dataclasses.replace(distance, false_alarms=0.01))
    state, card = read_state(run / MODEL)
    sha256 = sha256_file(run / FEATURE_DISTANCE)
    finish_run(run, state, dataclasses.replace(card, distance_sha256=sha256))
    return run


@pytest.fixture
def strange(few: Path) -> Path:
    """The folder `few` with a picture of the right kind and size that shows something else."""
    cv2.imwrite(str(few / "images" / "stripes.png"), np.tile(np.uint8([[0], [255]]), (16, 32)))
    return few


def test_distance_is_that_of_the_features_of_training(
    predict: Callable[..., Rows], trained: Path, raw: Path, store: Store
) -> None:
    rows = by_image(predict(trained, raw))
    model, card = read_model(trained / MODEL)
    distance = read_distance(trained / FEATURE_DISTANCE)
    assert card.distance_sha256 == sha256_file(trained / FEATURE_DISTANCE)
    with torch.inference_mode():
        images = torch.from_numpy(store.images(np.arange(len(store))))
        expected = distance.measure(model.backbone(model.normalize(images)).numpy())
    found = [rows[name]["training_distance"] for name in store.column("image_id")]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    val = rows_of(read_split(store, "default")[0], "val")
    # Of twelve validation images the farthest is the threshold.
    assert max(np.array(found)[val]) == pytest.approx(1, abs=1e-3)
    assert distance.false_alarms == pytest.approx(1 / 13)


def test_evaluate_measures_how_many_test_images_predict_would_call_far(
    predict: Callable[..., Rows], run_copy: Path, run_evaluate: Callable[..., Path], raw: Path, store: Store
) -> None:
    rows = by_image(predict(run_copy, raw))
    test = rows_of(read_split(store, "default")[0], "test")
    far = [rows[name]["training_distance"] > 1 for name in store.column("image_id", test)]
    found = read_json(run_evaluate(run_copy, "split=test") / "metrics.json")["training_distance"]
    assert found["share"] == pytest.approx(np.mean(far))
    assert (found["images"], found["patients"]) == (len(test), 6)
    assert found["expected"] == pytest.approx(1 / 13)
    assert 0 <= found["low"] <= found["share"] <= found["high"] <= 1
    assert found["high"] - found["low"] > 0.3  # six patients, not twelve images


@pytest.mark.parametrize(
    ("out_of_domain", "state", "reason"),
    [("refuse", "refused", "far_from_training"), ("note", "ok", "far_from_training"), ("allow", "ok", None)],
)
def test_image_far_from_training_is_refused_noted_or_allowed(
    predict: Callable[..., Rows], certain: Path, strange: Path, out_of_domain: str, state: str, reason: str | None
) -> None:
    row = by_image(predict(certain, strange, f"out_of_domain={out_of_domain}"))["images/stripes.png"]
    assert (row["state"], row["reason"]) == (state, reason)
    assert row["training_distance"] > 1
    assert (row["predicted"] is None) == (state == "refused")


@pytest.mark.parametrize(("distance", "reason"), [(1.0000004, ""), (1.001, "far_from_training")])
def test_the_image_that_set_the_limit_is_not_far_whatever_the_rounding(distance: float, reason: str) -> None:
    case = Case("a.png")
    judge_distance(case, distance, false_alarms=0.01, out_of_domain="note")
    assert (case.state, case.reason, case.distance) == ("ok", reason, distance)


def test_threshold_from_few_validation_images_refuses_nothing(
    predict: Callable[..., Rows], trained: Path, strange: Path
) -> None:
    row = by_image(predict(trained, strange))["images/stripes.png"]
    assert (row["state"], row["reason"]) == ("ok", "far_from_training")


def test_missing_distance_is_said_and_a_changed_one_is_refused(
    predict: Callable[..., Rows], certain: Path, few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = certain / FEATURE_DISTANCE
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="has changed since the training ended"):
        predict(certain, few)
    path.unlink()
    assert {row["training_distance"] for row in predict(certain, few)} == {None}
    assert "is missing, so distances from the training images are unknown" in capsys.readouterr().err


def test_outputs_that_are_not_finite_cost_their_row(
    predict: Callable[..., Rows], trained: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = scoring.predict_logits

    def overflow(*args: Any) -> Any:
        logits = original(*args)
        logits[1, 0] = np.inf
        return logits

    monkeypatch.setattr(scoring, "predict_logits", overflow)
    rows = predict(trained, few)
    assert [row["state"] for row in rows] == ["ok", "refused", "ok"]
    assert (rows[1]["reason"], rows[1]["logits"]) == ("not_finite", None)


def test_wrong_inputs_are_named(predict: Callable[..., Rows], trained: Path, few: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"run=.*gone is not a folder"):
        predict(tmp_path / "gone", few)
    with pytest.raises(MissingInputError, match=r"source=.*gone is not there"):
        predict(trained, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no files"):
        predict(trained, tmp_path / "empty")
    with pytest.raises(ConfigError, match="is a folder"):
        predict(trained, few, f"out={few}")
    image = few / "images" / "p00L.png"
    before = image.read_bytes()
    with pytest.raises(ConfigError, match="is an image"):
        predict(trained, few, f"out={image}")
    assert image.read_bytes() == before


def test_runs_are_written_as_typed(compose_job: Callable[..., Any]) -> None:
    assert compose_job("predict", "run=2024_05(1)").runs == [Path("2024_05(1)")]
    assert compose_job("predict", "run=[a b(1), 1.10,c=d]").runs == [Path("a b(1)"), Path("1.10"), Path("c=d")]
    assert PredictJob(run=["a,b", "c"]).runs == [Path("a,b"), Path("c")]
    with pytest.raises(ConfigError, match="expected a run folder"):
        compose_job("predict", "run=[]")


def test_the_command_predicts_in_worker_processes(trained: Path, few: Path, tmp_path: Path) -> None:
    (few / "text.png").write_text("no image")
    out = tmp_path / "new folder" / "out.parquet"
    command = [sys.executable, "-m", "medcls.predict", f"run={trained}", f"source={few}", f"out={out}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "workers=1", "device=cpu"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 files: 3 ok, 1 refused, 0 skipped")
    assert [row["state"] for row in read_rows(out)] == ["ok", "ok", "ok", "refused"]


def test_the_entry_point_starts_without_torch_and_names_what_is_missing() -> None:
    code = "import sys, medcls.predict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60).returncode == 0
    with pytest.raises(UsageError, match="source= and out= missing"):
        main(PredictJob(run="x"))
