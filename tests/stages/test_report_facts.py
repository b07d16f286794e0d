"""Flow, patients and pictures of the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from medcls.data.duplicates import DuplicatePair
from medcls.data.folds import link_patients
from medcls.data.splits import read_split, write_split
from medcls.data.store import Store
from medcls.evaluate.report_facts import (
    describe_certificate,
    describe_flow,
    describe_splits,
    encode_thumbnail,
    read_subgroup_columns,
)
from medcls.evaluate.report_runs import hide_folders
from medcls.evaluate.split_predictions import name_patients
from medcls.files import read_json


@pytest.fixture
def opened(store: Store) -> SimpleNamespace:
    """The test split without its first two images, as if they had no label."""
    splits, certificate = read_split(store, "default")
    rows = np.flatnonzero(splits == 2)[2:]
    inner = SimpleNamespace(store=store, rows=rows, certificate=certificate)
    return SimpleNamespace(opened=inner, card=SimpleNamespace(split_name="default"))


def test_a_certificate_is_told_in_sentences_without_ids(store: Store) -> None:
    certificate = read_split(store, "default")[1]
    assert describe_certificate(certificate) == [
        "Split default: random by patient, stratified by label.",
        "Dealt at random inside strata of label and number of images, version 2 with seed 0: 50 % train, 25 % val, "
        "25 % test.",
        "Leaks between splits (looked for: the same patient, and the same image under two ids): none.",
    ]
    leaky = {"patients_in_several_splits": {"Doe": ["train", "test"]}, "on_leak": "drop", "dropped": 1}
    said = describe_certificate(certificate | leaky | {"classes_missing": {"val": ["2"]}})
    assert said[2:] == [
        "Leaks between splits (looked for: the same patient, and the same image under two ids): 1 patient is in more "
        "than one split: 1 in train and test.",
        "What was done about them (on_leak=drop): 1 image left out.",
        "No image of 2 in split val.",
    ]
    assert describe_certificate({}) == []


def test_the_flow_adds_up(opened: Any, store: Store) -> None:
    steps = {step["title"]: step for step in describe_flow(opened, split="test")}
    assert list(steps) == ["Files found", "Images stored", "Split test", "Evaluated"]
    assert steps["Files found"]["files"] >= steps["Images stored"]["images"] == len(store) == 48
    out = dict(steps["Images stored"]["left_out"])
    assert set(out) == {"split train", "split val"}
    assert sum(out.values()) + steps["Split test"]["images"] == 48
    assert steps["Split test"]["left_out"] == [("no label of this task", 2)]
    assert steps["Evaluated"] == {"title": "Evaluated", "images": 10, "patients": 5, "left_out": []}
    assert (steps["Images stored"]["patients"], steps["Split test"]["patients"]) == (24, 6)


def test_the_flow_of_another_store_has_no_split(opened: Any) -> None:
    opened.opened.certificate = {}
    steps = describe_flow(opened, split="all")
    assert [step["title"] for step in steps] == ["Files found", "Images stored", "Evaluated"]
    assert steps[1]["left_out"] == [("no label of this task", 38)]


def test_merged_patients_are_one_in_rows_flow_and_splits(fresh_store: Store) -> None:
    """Two patients of the test split who share an image: the split file says that they are one."""
    splits, certificate = read_split(fresh_store, "default")
    patients, rows = fresh_store.codes("patient_id"), np.flatnonzero(splits == 2)
    count = len(np.unique(patients.values[rows]))
    second = next(row for row in rows if patients.values[row] != patients.values[rows[0]])
    linked = link_patients(patients, [DuplicatePair(int(rows[0]), int(second), 1.0, identical=True)])
    certificate = certificate | {"merged_patients": 1}
    write_split(fresh_store, "merged", splits=splits, certificate=certificate, patients=linked)
    opened = SimpleNamespace(store=fresh_store, rows=rows, certificate=read_split(fresh_store, "merged")[1])
    names = name_patients(opened)
    assert (len(names), len(set(names))) == (len(rows), count - 1), "intervals draw one patient less"
    assert names[0] == names[rows.tolist().index(second)]
    predictions = SimpleNamespace(opened=opened, card=SimpleNamespace(split_name="merged"))
    steps = {step["title"]: step for step in describe_flow(predictions, split="test")}
    assert steps["Evaluated"]["patients"] == count - 1
    assert describe_splits(predictions)["test"]["patients"] == count - 1


def test_patients_are_counted_once_in_each_split(opened: Any, store: Store) -> None:
    facts = describe_splits(opened)
    assert list(facts) == ["train", "val", "test"]
    assert sum(fact["patients"] for fact in facts.values()) == 24
    assert facts["test"]["images"] == 12
    assert facts["test"]["modality"].endswith("6 (100%)")


def test_ages_become_bands(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "column", lambda self, name, rows: [17.0, None, 64.5] if name == "age_years" else [])
    columns, absent = read_subgroup_columns(opened, ["age", "hospital"])
    assert columns == {"age": ["0–17", None, "60–79"]}
    assert absent == ["hospital"]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.full((1, 40, 20), 200, np.uint8), (192, 96)),
        (np.full((1, 1000, 500), 200 * 257, np.uint16), (192, 96)),
        (np.full((2, 5, 30, 30), 200, np.uint8), (192, 192)),
    ],
)
def test_thumbnails_are_small_and_keep_grey_and_shape(image: Any, expected: tuple[int, int]) -> None:
    jpeg = encode_thumbnail(image, (0.0, float(np.iinfo(image.dtype).max)))
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture.shape == expected
    assert abs(int(picture.mean()) - 200) <= 2


def test_thumbnails_keep_colours_and_the_range_of_the_store() -> None:
    red = np.stack([np.full((8, 8), 250, np.uint8), *[np.zeros((8, 8), np.uint8)] * 2])
    picture = cv2.imdecode(np.frombuffer(encode_thumbnail(red, (0.0, 255.0)), np.uint8), cv2.IMREAD_COLOR)
    assert picture[4, 4].tolist()[2] > 200 > 60 > picture[4, 4].tolist()[0]
    ramp = np.linspace(-1000, 1000, 64, dtype=np.float16).reshape(1, 8, 8)
    grey = cv2.imdecode(np.frombuffer(encode_thumbnail(ramp, (-1000.0, 1000.0)), np.uint8), cv2.IMREAD_UNCHANGED)
    assert (grey.min(), grey.max()) == (0, 255) or (grey.min() < 12 and grey.max() > 243)


def test_the_real_report_has_flow_patients_pictures_and_documents(
    run_copy: Path, run_evaluate: Callable[..., Path]
) -> None:
    folder = run_evaluate(run_copy, "split=test", "gallery=2")
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "Which patients were evaluated?" in page
    assert "Patients of each split" in page
    claim = read_json(folder / "claim.json")
    filled = {entry["item"] for entry in claim["filled"]}
    assert {"1", "9", "11", "19", "20", "22", "35", "36", "37", "38", "39"} <= filled
    tripod = {entry["item"]: entry["filled"] for entry in read_json(folder / "tripod_ai.json")["filled"]}
    assert tripod["13"] == "class weights none, sampler uniform, loss auto"
    assert (folder / "MODEL_CARD.md").read_text().startswith("# Model card")


def test_paths_of_settings_are_cut_to_their_last_part() -> None:
    text = "store: /home/ann lee/knee/store\nrun: runs/a\nfiles: [/a/b/c.csv, '/x/y/q']\n- /home/ann/d\nrate: 3/4\n"
    shown = "store: …/store\nrun: runs/a\nfiles: […/c.csv, '…/q']\n- …/d\nrate: 3/4\n"
    assert hide_folders(text) == shown
