from __future__ import annotations

import json
from dataclasses import replace

import pytest

from medcls.report.checklists import CLAIM, TRIPOD, fill_checklist
from medcls.report.content import Evaluation
from medcls.report.documents import describe_facts, describe_headlines, write_documents
from medcls.report.page_tables import build_cards
from medcls.statistics.intervals import measure_predictions
from medcls.statistics.predictions import check_predictions
from medcls.statistics.thresholds import Rule

MODEL = {
    "architecture": "resnet18",
    "dropout": 0.0,
    "in_channels": 1,
    "max_value": 255,
    "task": {"kind": "binary", "class_names": ["healthy", "ill <b>|"]},
    "preprocess": {"height": 64},
    "ancestors": [],
    "training": {"transfer": "scratch", "epoch": 3, "metric": "auc"},
}


@pytest.fixture
def make_evaluation(make_task, make_patients):
    """An evaluation as the stage makes it, with what a test changes."""

    def make(**change):
        task, patients = make_task("binary"), make_patients(60)
        one = check_predictions(**task)
        metrics = measure_predictions(one, patients, replicates=100)
        metrics |= {"n_images": 60, "n_patients": 30}
        given = {"split": "test", "store_name": "knees", "certificate": {"on_leak": "refuse"}, "model": MODEL}
        given = {"predictions": one, "patient_ids": patients, "metrics": metrics} | given
        return Evaluation(**(given | change))

    return make


@pytest.mark.parametrize(("items", "number"), [(CLAIM, 44), (TRIPOD, 52)])
def test_every_item_stands_once_filled_or_left(items, number, make_evaluation):
    answer = fill_checklist(items, describe_facts(make_evaluation()), source="x")
    numbers = [entry["item"] for entry in answer["filled"]] + [entry["item"] for entry in answer["left_to_the_authors"]]
    assert sorted(numbers) == sorted(number for number, _, _ in items)
    assert len(set(numbers)) == number
    assert answer["filled"]
    assert answer["left_to_the_authors"]


def test_every_fact_that_an_item_asks_for_can_be_known(make_evaluation):
    """A misspelt fact would leave its item to the authors for ever."""
    known = set(describe_facts(make_evaluation(facts={"deidentification": "hmac", "imbalance": "none"})))
    assert {fact for _, _, fact in CLAIM + TRIPOD if fact} == known & {fact for _, _, fact in CLAIM + TRIPOD if fact}


@pytest.mark.parametrize("kind", ["regression", "multiclass"])
def test_card_of_grades_has_the_headlines_of_the_page(kind, make_evaluation, make_task, make_patients):
    one = check_predictions(**make_task(kind) | {"grades": True})
    metrics = measure_predictions(one, make_patients(60), replicates=50)
    found = describe_headlines(make_evaluation(predictions=one, metrics=metrics))
    assert list(found) == [card.definition.title for card in build_cards(one, metrics)]
    assert found["Quadratic kappa"].startswith(f"{metrics['quadratic_kappa']['value']:.3f} (")


def test_what_is_not_known_is_left_to_the_authors(make_evaluation):
    def left(evaluation):
        answer = fill_checklist(CLAIM, describe_facts(evaluation), source="x")
        return {entry["item"] for entry in answer["left_to_the_authors"]}

    assert {"2", "5", "14", "44", "30", "33", "38"} <= left(make_evaluation())
    assert "22" in left(make_evaluation(model={})) - left(make_evaluation())
    assert "33" not in left(make_evaluation(notes=["external store knees: …"]))
    assert "20" in left(make_evaluation(certificate={"on_leak": "report"}))


def test_the_files_are_written_and_the_card_is_escaped(make_evaluation, tmp_path):
    point = {"question": "ill|x", "kind": "sensitivity", "target": 0.9, "threshold": 0.4}
    rate = {"value": 0.91234, "low": 0.8, "high": 0.95, "note": "few"}
    lone = {"value": 0.5, "low": None, "high": None, "reason": "1 patient"}
    evaluation = make_evaluation()
    metrics = dict(evaluation.metrics) | {
        "operating_points": [{**point, "rates": {"sensitivity": rate, "specificity": lone}}],
        "decision": {"rule": "sensitivity_0.9", "words": ""},
        "brier": {"value": 0.2, "low": 0.1, "high": 0.3, "note": "4 patients in the smallest class"},
        "chosen_on": {"where": "val (9 images of 8 patients)"},
    }
    write_documents(tmp_path, make_evaluation(metrics=metrics, notes=["opened 1 time"]))
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "Chosen on val (9 images of 8 patients) and frozen" in card
    rule = Rule("sensitivity", 0.9).title
    assert f"| ill\\|x | {rule} (decision) | 0.912 (0.800 – 0.950); few | 0.500; 1 patient |" in card
    assert "| Brier score | 0.200 (0.100 – 0.300); 4 patients in the smallest class |" in card
    assert "ill &lt;b>\\|" in card
    assert "> opened 1 time" in card
    assert f"{metrics['auc']['value']:.3f}" in card
    assert "60 images of 30 patients" in card
    claim = json.loads((tmp_path / "claim.json").read_text())
    accuracy = next(entry for entry in claim["filled"] if entry["item"] == "38")["filled"]
    assert accuracy[0]["sensitivity"]["value"] == 0.91234
    assert (tmp_path / "tripod_ai.json").is_file()


@pytest.mark.parametrize(("kind", "words"), [("ordinal", "grade 2 against all others"), ("multilabel", "2")])
def test_documents_name_the_question_of_a_rate_as_the_page_does(kind, words, make_evaluation):
    rate = {"value": 0.9, "low": None, "high": None}
    point = {"question": "2", "kind": "youden", "target": None, "threshold": 0.4, "rates": {"sensitivity": rate}}
    evaluation = make_evaluation(metrics={"operating_points": [point]})
    facts = describe_facts(replace(evaluation, predictions=replace(evaluation.predictions, kind=kind)))
    assert [entry["question"] for entry in facts["accuracy"]] == [words]


@pytest.mark.parametrize(("training", "epoch"), [({"best_epoch": 4}, 4), ({"epoch": 3}, 4)])
def test_best_epoch_counts_from_one_also_in_cards_that_counted_from_zero(training, epoch, make_evaluation):
    card = {**MODEL, "training": {"transfer": "scratch", "metric": "auc", **training}}
    assert describe_facts(make_evaluation(model=card))["selection"] == f"epoch {epoch} by validation auc"
