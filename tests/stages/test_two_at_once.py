"""Two commands over the same files: one waits for the other, and nothing of one is taken for the other's."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from medcls.config import EvaluateJob
from medcls.errors import BusyError
from medcls.evaluate import judged_rows, split_predictions
from medcls.evaluate.evaluate import evaluate
from medcls.evaluate.judged_rows import hold_evaluations
from medcls.explain.explain import explain
from medcls.files import PRIVATE, read_json, read_json_lines, sha256_file
from medcls.locks import lock_file, lock_folder
from medcls.predict import predict as predict_stage
from tests.failing_disk import Disk, KilledError

Job = Callable[..., Any]


@pytest.fixture
def evaluation(compose_job: Job, run_copy: Path) -> EvaluateJob:
    job: EvaluateJob = compose_job(
        "evaluate", f"run={run_copy}", "split=val", "report=false", "replicates=100", "workers=0", "device=cpu"
    )
    return job


def test_predictions_of_another_process_are_not_stored_as_ones_own(
    evaluation: EvaluateJob, run_copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a lock, as on a file system that has none: the other one's file is there before ours is described."""
    original = split_predictions.write_json
    theirs = tmp_path / "theirs.parquet"

    def write(path: Path, content: Any) -> None:
        if path.name == "inputs.json":
            table = pq.read_table(path.with_name("predictions.parquet"))
            rest = table.drop_columns(["logits"])
            wrong = [[-value for value in row] for row in table["logits"].to_pylist()]
            pq.write_table(rest.append_column("logits", [wrong]), theirs)
            shutil.copy(theirs, path.with_name("predictions.parquet"))
        original(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(split_predictions, "write_json", write)
        evaluate(evaluation)
    folder = run_copy / "evaluation" / "store-val"
    wrong = np.array(pq.read_table(theirs)["logits"].to_pylist())
    evaluate(evaluation)
    right = np.array(pq.read_table(folder / "predictions.parquet")["logits"].to_pylist())
    np.testing.assert_array_equal(right, -wrong)
    assert read_json(folder / "inputs.json")["predictions_sha256"] == sha256_file(folder / "predictions.parquet")


@pytest.mark.parametrize("second", ["evaluate", "explain"])
def test_second_command_of_a_run_waits_for_the_first_and_both_give_what_they_give_alone(
    second: str, evaluation: EvaluateJob, run_copy: Path, compose_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, told = threading.Event(), threading.Event()
    original = split_predictions.write_predictions
    lines: list[str] = []

    def write(*args: Any, **named: Any) -> None:
        begun.set()
        assert told.wait(60)
        original(*args, **named)

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("waiting for"):
            told.set()

    monkeypatch.setattr(split_predictions, "write_predictions", write)
    monkeypatch.setattr(judged_rows, "say", say)
    if second == "evaluate":
        given = ("split=test", "report=false", "replicates=100", "workers=0", "device=cpu")
        other = compose_job("evaluate", f"run={run_copy}", *given)
    else:
        given = ("split=val", "worst=1", "curves=false", "sanity_images=0", "device=cpu")
        other = compose_job("explain", f"run={run_copy}", *given)
    first = threading.Thread(target=evaluate, args=(evaluation,))
    first.start()
    assert begun.wait(60)
    (evaluate if second == "evaluate" else explain)(other)
    first.join()
    (line,) = [line for line in lines if line.startswith("waiting for")]
    assert "is in use by another process: medcls.evaluate, process" in line
    folders = [run_copy / "evaluation" / f"store-{split}" for split in ("val", "test")[: 1 + (second == "evaluate")]]
    for folder in folders:
        assert read_json(folder / "inputs.json")["predictions_sha256"] == sha256_file(folder / "predictions.parquet")
        assert [row["number"] for row in read_json_lines(folder / "opened.jsonl")] == [1]
    # The choices were frozen once, before the test rows were opened.
    assert read_json(run_copy / "operating_points.json")["chosen_on"]["test_openings_before"] == 0


def test_evaluation_that_waits_in_vain_ends_with_75(
    evaluation: EvaluateJob, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judged_rows, "WAIT_SECONDS", 0.0)
    with lock_folder(run_copy / "evaluation", command="medcls.explain"), pytest.raises(BusyError) as caught:
        evaluate(evaluation)
    assert caught.value.exit_code == 75
    assert "in use by another process: medcls.explain, process" in str(caught.value)


def test_evaluation_clears_what_a_killed_one_left(evaluation: EvaluateJob, run_copy: Path) -> None:
    places = [run_copy, run_copy / "evaluation" / "store-val", run_copy / "evaluation" / "store-val" / "figures"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / ".partial-a1b2c3d4predictions.parquet").write_bytes(b"half")
    evaluate(evaluation)
    assert list(run_copy.rglob(".partial-*")) == []


def test_checkpoint_that_is_being_written_below_the_results_stays(tmp_path: Path) -> None:
    writing, left = tmp_path / "runs" / "a" / "checkpoints" / ".partial-a1b2c3d4", tmp_path / "maps" / ".partial-x.npy"
    for each in (writing / "tensors.safetensors", left):
        each.parent.mkdir(parents=True)
        each.write_bytes(b"half")
    with hold_evaluations([], str(tmp_path), command="medcls.evaluate"):
        pass
    assert (writing / "tensors.safetensors").exists()
    assert not left.exists()


def test_run_that_is_not_there_is_not_made(evaluation: EvaluateJob, tmp_path: Path) -> None:
    evaluation.run = str(tmp_path / "none")
    with pytest.raises(Exception, match="is not a folder"):
        evaluate(evaluation)
    assert not (tmp_path / "none").exists()


@pytest.fixture
def prediction(compose_job: Job, trained: Path, store: Any, tmp_path: Path) -> Any:
    """Three images with pseudonyms, so that an identity map is written."""
    raw, few = store.folder.parent / "raw", tmp_path / "few"
    few.mkdir()
    for name in ("p00L.png", "p01L.png", "p02L.png"):
        shutil.copy(raw / "images" / name, few)
    (tmp_path / "out").mkdir()
    (tmp_path / "key.txt").write_text("ab" * 32)
    given = (f"run={trained}", f"source={few}", f"out={tmp_path / 'out' / 'p.csv'}", "workers=0", "device=cpu")
    return compose_job("predict", *given, "deidentify.kind=hmac", f"deidentify.key_file={tmp_path / 'key.txt'}")


def test_prediction_killed_at_any_step_leaves_no_name_beside_its_output(prediction: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Disk(out) as disk:
        predict_stage.predict(prediction)
    ours = {"p.csv", "p.csv.columns.json", "p.csv.identity-map.csv"}
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(whole) == ours
    for step in (*range(1, len(disk.steps) + 1, 4), len(disk.steps)):
        with Disk(out, kill_at=step), pytest.raises(KilledError):
            predict_stage.predict(prediction)
        assert {path.name for path in out.iterdir()} <= {*ours, PRIVATE}
    predict_stage.predict(prediction)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole


def test_two_predictions_into_one_file_are_refused(prediction: Any, tmp_path: Path) -> None:
    with lock_file(tmp_path / "out" / "p.csv"), pytest.raises(BusyError, match=r"p\.csv is going to be written"):
        predict_stage.predict(prediction)
    assert list((tmp_path / "out").iterdir()) == []


def test_lock_inside_the_source_is_no_file_of_it_and_images_are_whatever_its_name(
    prediction: Any, tmp_path: Path
) -> None:
    source = (tmp_path / "few").rename(tmp_path / f"{PRIVATE}-scans")
    prediction.source, prediction.out = str(source), str(source / "p.csv")
    predict_stage.predict(prediction)
    lines = (source / "p.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["level", *["image"] * 3]
