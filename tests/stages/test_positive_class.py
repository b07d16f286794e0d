"""The ill class is the positive one in every number and on every page, and is named there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from medcls.data.store import Store
from medcls.errors import ConfigError
from medcls.files import MODEL, read_json
from medcls.predict import predict as stage
from medcls.runs.checksums import finish_run
from medcls.runs.model_file import read_card, read_model


@pytest.fixture(scope="module")
def clinic(
    write_source: Callable[..., Path], run_prepare: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """Images of "cancer" and "normal", which is the last by the alphabet; do not write into it."""
    folder = tmp_path_factory.mktemp("clinic")
    raw = write_source(folder / "raw", classes=("cancer", "normal"))
    return run_prepare(raw, folder / "store", "split.test=0.25", "split.val=0.25")


@pytest.fixture(scope="module")
def detector(run_train: Callable[..., Path], clinic: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A binary run whose positive class the labels told."""
    return run_train(tmp_path_factory.mktemp("detector") / "run", f"store={clinic.folder}", "task=binary")


def test_sensitivity_is_that_of_the_ill_class(
    detector: Path, clinic: Store, run_evaluate: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_evaluate(detector, "split=test")
    printed = capsys.readouterr()
    assert "positive class: cancer (negative: normal, which means healthy)" in printed.err + printed.out
    assert "positive class cancer" in printed.out
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    labels = {row["image_id"]: row["label"] for row in pq.read_table(clinic.folder / "labels.parquet").to_pylist()}
    ill = np.array([labels[row["image_id"]] == "cancer" for row in rows])
    metrics = read_json(folder / "metrics.json")
    threshold = metrics["decision"]["thresholds"]["cancer"]
    called = np.array([threshold is not None and row["y_score"][0] >= threshold for row in rows])
    assert metrics["positive_class"] == "cancer"
    assert metrics["sensitivity"]["value"] == pytest.approx(called[ill].mean())
    assert metrics["specificity"]["value"] == pytest.approx(1 - called[~ill].mean())
    assert {row["positive_class"] for row in rows} == {"cancer"}
    assert read_card(detector / MODEL).positive_class == "cancer"


def test_pages_and_documents_name_the_positive_class(detector: Path, run_evaluate: Callable[..., Path]) -> None:
    folder = run_evaluate(detector, "split=val")
    page = (folder / "report.html").read_text()
    assert "<li>positive class <b>cancer</b>, negative <b>normal</b></li>" in page
    assert "<th>called cancer</th><th>called normal</th>" in page
    assert "Positive is cancer. " in page
    assert "sensitivity, PPV and scores are those of cancer" in (folder / "MODEL_CARD.md").read_text()
    for name in ("claim.json", "tripod_ai.json"):
        filled = {item["topic"]: item["filled"] for item in read_json(folder / name)["filled"]}
        assert '"Positive class": "cancer"' in json.dumps(filled)


def test_predictions_of_raw_files_name_the_positive_class(
    detector: Path,
    clinic: Store,
    compose_job: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw, out = clinic.folder.parent / "raw", tmp_path / "out.parquet"
    stage.predict(compose_job("predict", f"run={detector}", f"source={raw}", f"out={out}", "workers=0", "device=cpu"))
    printed = capsys.readouterr()
    assert "; positive class cancer; " in printed.out
    # The class is known by its words: nothing is guessed, and nothing said of it.
    assert [line for line in printed.err.splitlines() if line.startswith("notice") and "positive" in line] == []
    rows = pq.read_table(out).to_pylist()
    assert {row["positive_class"] for row in rows} == {"cancer"}
    scored = [row for row in rows if row["score_cancer"] is not None]
    limits = [float("inf") if row["threshold"] is None else row["threshold"] for row in scored]
    assert [row["predicted"] == "cancer" for row in scored] == [
        row["score_cancer"] >= limit for row, limit in zip(scored, limits, strict=True)
    ]


def test_run_of_an_older_version_with_a_healthy_positive_class_gets_a_notice(
    run_train: Callable[..., Path],
    clinic: Store,
    run_evaluate: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = ("task=binary", "task.classes={cancer: 0, normal: 1}")
    run = run_train(tmp_path / "run", f"store={clinic.folder}", *settings)
    assert "positive class: normal, which means healthy, as requested" in capsys.readouterr().err
    run_evaluate(run, "report=false")
    assert "notice: the positive class" not in capsys.readouterr().err
    model, card = read_model(run / MODEL)
    finish_run(run, model.state_dict(), replace(card, positive_class=""))
    folder = run_evaluate(run)
    assert "notice: the positive class is normal, which means healthy" in capsys.readouterr().err
    assert "for those of cancer train again with task.positive=cancer" in (folder / "report.html").read_text()


def test_binary_labels_that_do_not_tell_are_refused_before_training(
    run_train: Callable[..., Path], write_source: Callable[..., Path], run_prepare: Callable[..., Store], tmp_path: Path
) -> None:
    raw = write_source(tmp_path / "raw", classes=("melanoma", "nevus"))
    store = run_prepare(raw, tmp_path / "store", "split.test=0.25", "split.val=0.25")
    with pytest.raises(ConfigError, match=r"set task\.positive=melanoma or task\.positive=nevus"):
        run_train(tmp_path / "run", f"store={store.folder}", "task=binary")
    run = run_train(tmp_path / "run", f"store={store.folder}", "task=binary", "task.positive=melanoma")
    assert read_card(run / MODEL).task.class_names == ["nevus", "melanoma"]
