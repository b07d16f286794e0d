"""Several runs together: their mean, each opening in its own run, choices in out= (also for predict), and who may."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MissingInputError, UsageError
from medcls.evaluate import judged_rows
from medcls.evaluate.evaluate import evaluate
from medcls.files import read_json, read_json_lines, sha256_file
from medcls.predict.predict import predict
from medcls.runs.checksums import finish_run
from medcls.runs.model_file import read_model

Run = Callable[..., Path]


@pytest.fixture
def other(trained: Path, tmp_path: Path) -> Path:
    """A run with other weights, on the same split."""
    run = Path(shutil.copytree(trained, tmp_path / "other"))
    model, card = read_model(run / "model.safetensors")
    state = model.state_dict()
    state["head.linear.bias"] += 0.8 * torch.arange(3)
    finish_run(run, state, card)
    return run


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the report was made of; the page takes seconds and is looked at once."""
    seen: dict[str, Any] = {}

    def write(folder: Path, evaluation: Any) -> Path:
        seen["evaluation"] = evaluation
        return folder / "report.html"

    monkeypatch.setattr(judged_rows, "write_report", write)
    return seen


def read_scores(folder: Path) -> np.ndarray:
    return np.array(pq.read_table(folder / "predictions.parquet").column("y_score").to_pylist())


@pytest.fixture
def fuse(compose_job: Callable[..., Any], tmp_path: Path) -> Run:
    """Evaluates runs together into `fused` and returns it: fuse([a, b], "split=test")."""

    def run(runs: list[Path], *arguments: str) -> Path:
        given = [f"out={tmp_path / 'fused'}", "replicates=100", "workers=0", "device=cpu", *arguments]
        job = compose_job("evaluate", f"run=[{','.join(map(str, runs))}]", *given)
        evaluate(job)
        return Path(job.out)

    return run


def test_scores_are_averaged_and_everything_is_counted_where_it_belongs(
    run_copy: Path, other: Path, fuse: Run, noted: dict[str, Any]
) -> None:
    folder = fuse([run_copy, other], "split=test")
    parts = [run / "evaluation" / "store-test" for run in (run_copy, other)]
    scores = [read_scores(part) for part in parts]
    assert np.abs(scores[0] - scores[1]).max() > 0.01
    np.testing.assert_allclose(read_scores(folder), np.mean(scores, axis=0), atol=1e-12)
    assert [len(read_json_lines(part / "opened.jsonl")) for part in parts] == [1, 1]
    assert not (folder / "opened.jsonl").exists()
    metrics = read_json(folder / "metrics.json")
    shas = [sha256_file(run / "model.safetensors") for run in (run_copy, other)]
    assert metrics["runs"] == [
        {"name": name, "model_sha256": sha, "openings": 1} for name, sha in zip(("run", "other"), shas, strict=True)
    ]
    notes = noted["evaluation"].notes
    assert "split test was opened 1 time by run, 1 time by other" in notes
    assert any(note.startswith("scores of 2 runs averaged: run (resnet18, ") for note in notes)
    assert "scores of 2 runs averaged" in noted["evaluation"].facts["ensembling"]
    assert noted["evaluation"].model["architecture"] == "resnet18"
    assert "# run other" in noted["evaluation"].config_yaml


def test_choices_of_the_ensemble_are_its_own_and_frozen_before_test(
    run_copy: Path, other: Path, fuse: Run, noted: dict[str, Any]
) -> None:
    folder = fuse([run_copy, other], "split=test", "alpha=0.3")
    kept = read_json(folder / "operating_points.json")
    assert kept["settings"]["alpha"] == 0.3
    assert kept["chosen_on"]["test_openings_before"] == 0
    assert kept["chosen_on"]["split"] == "val"
    # The single runs' own were frozen before their test split was opened, too, with the defaults.
    for run in (run_copy, other):
        own = read_json(run / "operating_points.json")
        assert (own["settings"]["alpha"], own["chosen_on"]["test_openings_before"]) == (0.1, 0)
    before = (folder / "operating_points.json").read_bytes()
    assert fuse([other, run_copy], "split=test") == folder  # in whichever order
    assert (folder / "operating_points.json").read_bytes() == before
    assert len(read_json_lines(run_copy / "evaluation" / "store-test" / "opened.jsonl")) == 1
    with pytest.raises(ConfigError, match=r"fused/operating_points.json was frozen with other settings"):
        fuse([run_copy, other], "split=test", "alpha=0.2")
    assert noted["evaluation"].operating == kept


def test_predict_calls_the_mean_of_runs_as_their_evaluation_froze_it(
    run_train: Run,
    store: Store,
    fuse: Run,
    noted: dict[str, Any],
    compose_job: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = run_train(tmp_path / "first", "task=binary", "task.classes={0: 0, 1: 1, 2: 1}")
    second = Path(shutil.copytree(first, tmp_path / "second"))
    model, card = read_model(second / "model.safetensors")
    state = model.state_dict()
    # Far from 0.5, so that the rule "half" would call everybody.
    state["head.linear.bias"] += 4
    finish_run(second, state, card)
    folder = fuse([first, second])
    assert f"medcls.predict uses them with choices={folder}" in capsys.readouterr().err

    def answer(*arguments: str) -> list[dict[str, Any]]:
        out, raw = tmp_path / "predictions.parquet", store.folder.parent / "raw"
        predict(compose_job("predict", f"source={raw}", f"out={out}", "workers=0", "device=cpu", *arguments))
        return [row for row in pq.read_table(out).to_pylist() if row["state"] == "ok"]

    rows = {row["image_id"]: row for row in answer(f"run=[{second},{first}]", f"choices={folder}")}
    decision = read_json(folder / "metrics.json")["decision"]
    (threshold,) = decision["thresholds"].values()
    assert threshold > 0.6
    assert {(row["rule"], row["threshold"]) for row in rows.values()} == {(decision["rule"], threshold)}
    evaluated = pq.read_table(folder / "predictions.parquet").to_pylist()
    # A batch of other images may move the score that set the threshold by a rounding error.
    clear = [row for row in evaluated if abs(row["y_score"][0] - threshold) > 1e-6]
    called = [rows[row["image_id"]]["predicted"] == row["positive_class"] for row in clear]
    assert called == [row["y_score"][0] >= threshold for row in clear]
    assert 0 < sum(called) < len(called)
    assert all(rows[row["image_id"]]["score_1+2"] == pytest.approx(row["y_score"][0], abs=1e-6) for row in evaluated)

    capsys.readouterr()
    assert {(row["rule"], row["threshold"]) for row in answer(f"run=[{first},{second}]")} == {("half", 0.5)}
    said = capsys.readouterr().err
    assert "notice: no operating points for the mean of 2 runs: images are called at 0.5" in said
    assert f"run=[{first},{second}] split=val out=DIR chooses them; then set choices=DIR" in said
    with pytest.raises(MissingInputError, match=r"choices=.*contains no operating_points.json: set the out= of "):
        answer(f"run=[{first},{second}]", f"choices={tmp_path}")
    with pytest.raises(ConfigError, match="frozen for other models than run="):
        answer(f"run={first}", f"choices={folder}")
    shutil.copy(folder / "operating_points.json", tmp_path)
    with pytest.raises(MissingInputError, match=r"choices=.*contains no calibration.json: set the out= of "):
        answer(f"run=[{first},{second}]", f"choices={tmp_path}")
    model.head.linear.bias.data += 1
    finish_run(second, model.state_dict(), card)
    with pytest.raises(ConfigError, match="frozen for other models than run="):
        answer(f"run=[{first},{second}]", f"choices={folder}")


def test_views_and_runs_are_averaged_together(run_copy: Path, other: Path, fuse: Run, noted: dict[str, Any]) -> None:
    folder = fuse([run_copy, other], "views=dense")
    parts = [read_scores(run / "evaluation" / "store-val-dense") for run in (run_copy, other)]
    np.testing.assert_allclose(read_scores(folder), np.mean(parts, axis=0), atol=1e-12)
    assert (folder / "operating_points-dense.json").is_file()
    assert any(note.startswith("views of each image: densely") for note in noted["evaluation"].notes)


def test_the_page_is_written_for_several_runs(run_copy: Path, other: Path, fuse: Run) -> None:
    page = (fuse([run_copy, other]) / "report.html").read_text()
    assert "scores of 2 runs averaged" in page
    assert "Explanations exist only for single runs" in page


def test_runs_of_another_split_task_or_store_are_refused(
    run_copy: Path, other: Path, fuse: Run, run_train: Run, tmp_path: Path
) -> None:
    model, card = read_model(other / "model.safetensors")
    for change, part in (
        ({"split_sha256": "0" * 64}, "has another split than"),
        ({"store_sha256": "0" * 64}, "has another store than"),
    ):
        finish_run(other, model.state_dict(), replace(card, **change))
        with pytest.raises(ConfigError, match=part):
            fuse([run_copy, other], "split=test")
    ordinal = run_train(tmp_path / "ordinal", "task=ordinal")
    with pytest.raises(ConfigError, match=r"run=.*ordinal has another task than run="):
        fuse([run_copy, ordinal], "split=test")
    assert not (run_copy / "evaluation").exists()


def test_what_makes_no_sense_of_several_runs_is_refused(
    run_copy: Path, other: Path, fuse: Run, compose_job: Callable[..., Any]
) -> None:
    pair = f"run=[{run_copy},{other}]"
    with pytest.raises(UsageError, match="out=DIR is missing"):
        evaluate(compose_job("evaluate", pair))
    with pytest.raises(UsageError, match="names a run twice"):
        fuse([run_copy, run_copy])
    for argument in (f"against={other}", "robustness=true", "shortcuts=[side]"):
        with pytest.raises(ConfigError, match="take a single run"):
            compose_job("evaluate", pair, argument)
    with pytest.raises(ConfigError, match="is a run: choose a new folder"):
        fuse([run_copy, other], f"out={run_copy}")
    assert not (run_copy / "evaluation").exists()


def test_out_keeps_the_results_of_one_ensemble(
    run_copy: Path, other: Path, trained: Path, fuse: Run, noted: dict[str, Any]
) -> None:
    folder = fuse([run_copy, other])
    before = (folder / "operating_points.json").read_bytes()
    model, card = read_model(other / "model.safetensors")
    finish_run(other, {k: v * 1.1 for k, v in model.state_dict().items()}, card)
    with pytest.raises(ConfigError, match="holds the results of other runs"):
        fuse([run_copy, other])
    assert (folder / "operating_points.json").read_bytes() == before
    assert noted


def test_labels_that_changed_between_two_runs_stop_the_average(
    run_copy: Path, other: Path, fuse: Run, noted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from medcls.evaluate import ensemble

    original = ensemble.open_rows

    def relabel(job: Any, run: Path, card: Any) -> Any:
        opened = original(job, run, card)
        if run == other:
            opened.targets = opened.targets[::-1].copy()
        return opened

    monkeypatch.setattr(ensemble, "open_rows", relabel)
    with pytest.raises(DataError, match="have different images or targets"):
        fuse([run_copy, other], "split=test")
    assert not noted
