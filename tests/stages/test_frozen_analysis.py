"""The plan of analysis is frozen before rows are opened; readers and the intended sample size stand in every output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcls.data.splits import read_split, rows_of
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MedclsError, MissingInputError
from medcls.evaluate.evaluate_scores import evaluate_scores
from medcls.evaluate.frozen_analysis import read_plan
from medcls.files import read_json, write_json

pytestmark = pytest.mark.usefixtures("notes_for_report")

Compose = Callable[..., Any]
Rows = list[dict[str, Any]]
Run = Callable[..., Path]

PLAN = "metrics:\n  - {metric: auc, at_least: 0.6}\n  - {metric: brier, at_most: 0.01}\nsubgroups: [site]\n"


@pytest.fixture
def scores(tmp_path: Path, write_labels: Callable[[Path, Rows], None]) -> Path:
    """60 patients with two images each, one in three a case, and a score that knows much."""
    generator = np.random.default_rng(0)
    rows = [
        {
            "patient_id": f"p{patient}",
            "image_id": f"p{patient}-{image}",
            "truth": "AD" if patient % 3 == 0 else "CN",
            "score_AD": round(float(np.clip(0.35 + 0.3 * (patient % 3 == 0) + generator.normal(0, 0.12), 0, 1)), 4),
            "site": "ab"[patient % 2],
        }
        for patient in range(60)
        for image in range(2)
    ]
    write_labels(tmp_path / "scores.csv", rows)
    return tmp_path / "scores.csv"


@pytest.fixture
def run_scores(compose_job: Compose, scores: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Evaluates `scores` and returns metrics.json: run_scores("analysis=FILE")."""

    def run(*arguments: str, out: str = "out") -> dict[str, Any]:
        given = (f"predictions={scores}", f"out={tmp_path / out}", "replicates=100", "subgroups=[]")
        evaluate_scores(compose_job("evaluate", *given, *arguments))
        return read_json(tmp_path / out / "metrics.json")

    return run


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# --- the plan


@pytest.mark.usefixtures("real_report")
def test_the_report_begins_with_the_verdicts(
    run_scores: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = run_scores(f"analysis={write(tmp_path / 'plan.yaml', PLAN)}")
    judged = metrics["analysis"]
    assert [row["verdict"] for row in judged["criteria"]] == ["met", "not met"]
    assert judged["conclusion"] == "not met"
    assert judged["sha256"] == read_json(tmp_path / "out" / "analysis.json")["sha256"]
    assert {group["column"] for group in metrics["subgroups"]} == {"site"}
    printed, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    assert "decided beforehand: not met" in printed
    assert "  met       AUC ≥ 0.6" in printed
    assert page.index("Decided beforehand: not met") < page.index("Headline numbers")
    assert "hether the plan was written before these scores were seen is unknown" in page
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "## Decided beforehand" in card
    assert "| Brier score ≤ 0.01 |" in card


def test_another_plan_is_refused_once_the_scores_were_evaluated(
    run_scores: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    plan = write(tmp_path / "plan.yaml", PLAN)
    first = run_scores(f"analysis={plan}")["analysis"]
    assert run_scores()["analysis"] == first
    with pytest.raises(ConfigError, match=r"differs from the plan that was frozen in out="):
        run_scores(f"analysis={write(tmp_path / 'other.yaml', PLAN.replace('0.6', '0.5'))}")
    assert run_scores(f"analysis={plan}")["analysis"] == first


@pytest.mark.parametrize(
    ("text", "error", "part"),
    [
        (None, MissingInputError, "no such file"),
        ("metrics: [\n", ConfigError, "not YAML of plain data in line 2"),
        ("metrics: !!python/object/apply:os.system [ls]\n", ConfigError, "not YAML of plain data in line 1"),
        ("primary: auc\nprimary: brier\n", ConfigError, "a key occurs twice"),
        ("metrics:\n" + "# long\n" * 20_000, ConfigError, "expected a short YAML file"),
    ],
)
def test_files_that_are_no_plain_data_are_refused(
    text: str | None, error: type[MedclsError], part: str, tmp_path: Path
) -> None:
    path = tmp_path / "plan.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=part):
        read_plan(path, f"analysis={path}")


def test_a_metric_of_another_task_is_refused(run_scores: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    plan = write(tmp_path / "plan.yaml", "metrics: [{metric: quadratic_kappa, at_least: 0.5}]\n")
    with pytest.raises(ConfigError, match="quadratic_kappa is not a metric of kind=binary"):
        run_scores(f"analysis={plan}")


def test_a_run_freezes_its_plan_before_the_test_split_is_opened(
    run_copy: Path, run_evaluate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = "metrics: [{metric: accuracy, at_least: 0.99}]\n"
    first = write(tmp_path / "plan.yaml", limit)
    rehearsed = read_json(run_evaluate(run_copy, "split=val", f"analysis={first}") / "metrics.json")["analysis"]
    assert rehearsed["notes"] == ["these are not test rows: a rehearsal"]
    second = write(tmp_path / "second.yaml", limit.replace("0.99", "0.98"))
    judged = read_json(run_evaluate(run_copy, "split=test", f"analysis={second}") / "metrics.json")["analysis"]
    assert judged["notes"] == []
    assert judged["criteria"][0]["at_least"] == 0.98
    assert read_json(run_copy / "analysis.json")["test_openings_before"] == 0
    assert "decided beforehand: " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="differs from the plan that was frozen"):
        run_evaluate(run_copy, "split=test", f"analysis={first}")
    # Left out, the frozen plan holds.
    again = read_json(run_evaluate(run_copy, "split=test") / "metrics.json")["analysis"]
    assert again == judged


def test_a_plan_that_comes_after_the_opening_says_so(run_copy: Path, run_evaluate: Run, tmp_path: Path) -> None:
    run_evaluate(run_copy, "split=test", "report=false")
    plan = write(tmp_path / "plan.yaml", "metrics: [{metric: accuracy, at_least: 0.1}]\n")
    judged = read_json(run_evaluate(run_copy, "split=test", f"analysis={plan}") / "metrics.json")["analysis"]
    assert judged["notes"] == [
        "the plan was frozen after test rows had been opened 1 time, so it was not decided beforehand"
    ]


def test_a_comparison_without_a_second_run_is_refused_before_the_opening(
    run_copy: Path, run_evaluate: Run, tmp_path: Path
) -> None:
    plan = write(tmp_path / "plan.yaml", "comparison: {metric: auc, margin: 0.05}\n")
    with pytest.raises(ConfigError, match="set against="):
        run_evaluate(run_copy, "split=test", f"analysis={plan}")
    assert not list(run_copy.glob("evaluation/*-test/opened.jsonl"))


# --- readers


def write_readers(path: Path, key: str, names: list[str], say: Callable[[str], Any], column: str = "decision") -> Path:
    lines = [f"reader,{key},{column}"]
    lines += [f"Dr {who},{name},{say(name)}" for who in ("Adams", "Brown") for name in names]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.usefixtures("real_report")
def test_readers_of_images_are_points_and_have_no_names(
    run_scores: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    images = [f"p{patient}-{image}" for patient in range(60) for image in range(2)]
    path = write_readers(tmp_path / "readers.csv", "image_id", images, lambda name: int(int(name[1:-2]) % 3 == 0))
    found = run_scores(f"readers={path}")["readers"]
    assert [entry["reader"] for entry in found["entries"]] == ["reader 1", "reader 2"]
    assert found["entries"][0]["sensitivity"]["value"] == found["entries"][0]["specificity"]["value"] == 1
    assert found["level"] == "image"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "How does it compare with readers?" in page
    assert (tmp_path / "out" / "figures" / "readers_0.png").is_file()
    for text in (page, json.dumps(found), (tmp_path / "out" / "claim.json").read_text()):
        assert "Adams" not in text


def test_readers_of_patients_are_compared_at_the_patient_level(
    run_scores: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    patients = [f"p{patient}" for patient in range(80)]
    path = write_readers(tmp_path / "readers.csv", "patient", patients, lambda name: "AD" if name < "p3" else "CN")
    metrics = run_scores(f"readers={path}")
    assert metrics["readers"]["level"] == "patient"
    assert metrics["readers"]["rule"] == "mean"
    assert metrics["readers"]["entries"][0]["n_images"] == 60
    note = "40 of 160 decisions left out: of images that were not evaluated"
    assert note in (tmp_path / "out" / "report.html").read_text()


def test_readers_of_a_run_answer_with_its_classes(
    run_copy: Path, run_evaluate: Run, store: Store, tmp_path: Path
) -> None:
    rows = rows_of(read_split(store, "default")[0], "test")
    images = store.column("image_id", rows)
    path = write_readers(tmp_path / "readers.csv", "image_id", images, lambda name: 1, "grade")
    found = read_json(run_evaluate(run_copy, "split=test", f"readers={path}") / "metrics.json")["readers"]
    assert [entry["question"] for entry in found["entries"]] == ["0", "0", "1", "1", "2", "2"]
    assert [entry["sensitivity"]["value"] for entry in found["entries"]] == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("image_id,decision\np0-0,1\n", "no column reader"),
        ("reader,decision\na,1\n", "name the image or the patient"),
        ("reader,image_id\na,p0-0\n", "0 columns of decision and grade"),
        ("reader,image_id,decision\na,zz,1\n", "no image_id of its 1 rows is among the evaluated ones"),
        (
            "reader,image_id,decision\na,p0-0,Jane\nb,p0-0,1\n",
            r"1 bad row of 2: decision is not one of CN, AD in line 2",
        ),
        ("reader,image_id,decision\na,p0-0,1\na,p0-0,1\n", "the same reader and image_id as an earlier row in line 3"),
        ("reader,image_id,decision\n,p0-0,1\n", "reader or image_id is blank in line 2"),
    ],
)
def test_files_of_readers_that_are_wrong_are_refused_by_position(
    text: str, part: str, run_scores: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=part) as caught:
        run_scores(f"readers={write(tmp_path / 'readers.csv', text)}")
    assert "Jane" not in str(caught.value)


# --- the intended sample size


@pytest.mark.usefixtures("real_report")
def test_the_sample_size_fills_the_checklists_or_is_not_stated(
    run_scores: Callable[..., dict[str, Any]], compose_job: Compose, tmp_path: Path
) -> None:
    from medcls.samplesize import main

    run_scores(out="none")
    left = {item["item"]: item for item in read_json(tmp_path / "none" / "claim.json")["left_to_the_authors"]}
    assert left["21"]["known"] == "not stated"
    main(
        compose_job(
            "samplesize", "metric=accuracy", "expected=0.9", "half_width=0.1", "replicates=200",
            f"out={tmp_path / 'size.json'}",
        )
    )  # fmt: skip
    run_scores(f"samplesize={tmp_path / 'size.json'}", out="stated")
    for name, number in (("claim.json", "21"), ("tripod_ai.json", "10")):
        filled = {item["item"]: item["filled"] for item in read_json(tmp_path / "stated" / name)["filled"]}
        assert filled[number]["intended"].endswith("patients for a 95 % interval of Accuracy of ± 0.1")
        assert filled[number]["patients_evaluated"] == 60
        assert any("simulated studies" in line for line in filled[number]["assumptions"])
    assert "were intended; 60 were evaluated" in (tmp_path / "stated" / "report.html").read_text()


def test_another_file_is_no_sample_size(run_scores: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    write_json(tmp_path / "size.json", {"patients": 100})
    with pytest.raises(DataError, match="not a file of python -m medcls"):
        run_scores(f"samplesize={tmp_path / 'size.json'}")
