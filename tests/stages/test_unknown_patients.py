"""Where patients are unknown, every page says so and claims nothing about them; older stores say "not recorded"."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from medcls.data.splits import read_split
from medcls.data.store import Store
from medcls.evaluate.judged_rows import name_reasons
from medcls.evaluate.report_facts import hide_ids
from medcls.files import DATASET, MODEL, read_json, write_json
from medcls.identity import count_patients, describe_patients, name_units
from medcls.runs.model_file import read_card


@pytest.fixture(scope="module")
def unknown_store(
    write_source: Callable[..., Path], run_prepare: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """A store whose images count as one patient each; do not write into it."""
    folder = tmp_path_factory.mktemp("unknown")
    without = lambda rows: [{k: v for k, v in row.items() if k != "patient_id"} for row in rows]
    raw = write_source(folder / "raw", classes=("cancer", "normal"), rewrite=without)
    return run_prepare(raw, folder / "store", "patients=per_image", "split.test=0.25", "split.val=0.25")


@pytest.fixture(scope="module")
def unknown_run(run_train: Callable[..., Path], unknown_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_train(tmp_path_factory.mktemp("unknown_run") / "run", f"store={unknown_store.folder}", "task=binary")


def test_store_and_split_record_that_patients_are_unknown(unknown_store: Store) -> None:
    _, certificate = read_split(unknown_store, "default")
    assert (unknown_store.patients_from, unknown_store.info["counts"]["patients"]) == ("per_image", None)
    assert (certificate["patients_from"], set(certificate["patients"].values())) == ("per_image", {None})
    assert certificate["source"] == "random by image (patients unknown), stratified by label"


def test_pages_and_documents_claim_nothing_about_unknown_patients(
    unknown_run: Path, run_evaluate: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_evaluate(unknown_run, "split=test")
    assert "12 images; patients unknown, 95 % intervals over images (patients unknown)" in capsys.readouterr().out
    metrics = read_json(folder / "metrics.json")
    assert (metrics["n_images"], metrics["n_patients"], metrics["patients_from"]) == (12, None, "per_image")
    assert metrics["chosen_on"]["where"] == "val (12 images; patients unknown)"
    assert read_card(unknown_run / MODEL).training["patients_from"] == "per_image"
    claim = json.dumps(read_json(folder / "claim.json"))
    assert "disjoint from training by image; patients unknown" in claim
    card = (folder / "MODEL_CARD.md").read_text()
    assert "12 images; patients unknown." in card
    assert "- disjoint: by image; patients unknown" in card
    assert "95 % interval over images (patients unknown)" in card
    page = (folder / "report.html").read_text()
    assert "patients <b>unknown</b>" in page
    assert "95 % intervals over images (patients unknown), each with all their images: Wilson" in page
    for text in (card, claim, page.split("<h3>Split certificate")[0]):
        assert not re.search(r"[0-9]</b> patients|[0-9] patients|over patients|by patient\b", text)


def test_reasons_and_notes_speak_of_images_where_patients_are_unknown() -> None:
    entry = {"value": 0.5, "note": "4 patients in the smallest class", "reason": "1 patient of class ill: nothing"}
    found = name_reasons({"brier": entry}, patients_from="per_image")["brier"]
    assert found["note"] == "4 images (patients unknown) in the smallest class"
    assert found["reason"] == "1 image (patients unknown) of class ill: nothing"
    assert name_reasons({"brier": entry}, patients_from="labels")["brier"] == entry


def test_known_patients_are_counted_as_before(trained: Path, run_evaluate: Callable[..., Path]) -> None:
    folder = run_evaluate(trained, "split=val")
    metrics = read_json(folder / "metrics.json")
    assert metrics["patients_from"] == "labels"
    assert (
        f"{metrics['n_images']} images of {metrics['n_patients']} patients." in (folder / "MODEL_CARD.md").read_text()
    )
    assert "patients unknown" not in (folder / "claim.json").read_text() + (folder / "report.html").read_text()


def test_store_of_an_earlier_version_says_not_recorded(copy_store: Callable[..., Path]) -> None:
    folder = copy_store()
    info = read_json(folder / DATASET)
    del info["patients_from"]
    write_json(folder / DATASET, info)
    store = Store(folder)
    assert store.patients_from == ""
    assert "not recorded" in describe_patients(store.patients_from)


@pytest.mark.parametrize(
    ("origin", "counted", "named"),
    [
        ("per_image", "9 images; patients unknown", "over images (patients unknown)"),
        ("labels", "9 images of 4 patients", "over patients"),
        ("", "9 images of 4 patients", "over patients"),
    ],
)
def test_units_are_named_by_what_told_patients_apart(origin: str, counted: str, named: str) -> None:
    assert count_patients(9, 4, origin) == counted
    assert name_units("over patients", origin) == named


def test_one_patient_is_one_image_where_patients_are_unknown() -> None:
    text = "an image drawn at random from a new patient, if that patient is one. Each patient counts equally."
    named = "an image drawn at random, if that image is one. Each image counts equally."
    assert name_units(text, "per_image") == named
    assert hide_ids({"patients_from": "per_image", "patients_in_several_splits": {}}) == {
        "patients_from": "per_image",
        "patients_in_several_splits": "unknown",
    }
