"""What is chosen on validation is chosen before a test split is opened, and never after."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medcls.compare import comparison_results
from medcls.errors import ConfigError, DataError, UsageError
from medcls.evaluate import split_predictions
from medcls.evaluate.evaluation_data import RowRequest
from medcls.evaluate.split_predictions import SplitRequest
from medcls.explain import explain
from medcls.files import read_json, read_json_lines, sha256_file, write_json
from medcls.predict.scoring import find_choices
from medcls.runs.checksums import finish_run
from medcls.runs.model_file import read_model

pytestmark = pytest.mark.usefixtures("notes_for_report")

Run = Callable[..., Path]
FILES = ("operating_points.json", "calibration.json")


def change_model(run: Path) -> None:
    """Another model in the run, as if it had been trained again."""
    model, card = read_model(run / "model.safetensors")
    state = model.state_dict()
    state["head.linear.bias"] += 0.5 * torch.arange(3)
    finish_run(run, state, card)


@pytest.fixture
def other_run(trained: Path, tmp_path: Path) -> Path:
    """A run with other weights, trained on the same split."""
    run = Path(shutil.copytree(trained, tmp_path / "other"))
    change_model(run)
    return run


def read_thresholds(folder: Path) -> list[float | None]:
    return [point["threshold"] for point in read_json(folder / "metrics.json")["operating_points"]]


def test_test_applies_what_was_frozen_on_validation(run_copy: Path, run_evaluate: Run) -> None:
    run_evaluate(run_copy, "split=val", "sensitivity_at_least=[0.8,0.9]", "alpha=0.2")
    frozen = {name: (run_copy / name).read_bytes() for name in ("operating_points.json", "calibration.json")}
    folder = run_evaluate(run_copy, "split=test")
    assert {name: (run_copy / name).read_bytes() for name in frozen} == frozen
    operating = read_json(run_copy / "operating_points.json")
    rules = {"sensitivity": [0.8, 0.9], "specificity": [0.95], "cost": []}
    assert operating["settings"] == rules | {"alpha": 0.2, "decision": "highest"}
    points = operating["levels"]["image"]["points"]
    assert read_thresholds(folder) == [point["threshold"] for point in points]
    assert len(points) == 3 * 4
    chosen_on = operating["chosen_on"]
    assert chosen_on["model_sha256"] == sha256_file(run_copy / "model.safetensors")
    assert (chosen_on["split"], chosen_on["test_openings_before"]) == ("val", 0)
    metrics = read_json(folder / "metrics.json")
    assert metrics["conformal"]["alpha"] == 0.2
    assert metrics["recalibration"]["chosen"] == read_json(run_copy / "calibration.json")["chosen"]
    assert metrics["chosen_on"]["where"] == "val (12 images of 6 patients)"


def test_few_patients_of_the_choices_are_said_when_they_are_made_and_when_test_is_evaluated(
    run_copy: Path, run_evaluate: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("val", "test"):
        run_evaluate(run_copy, f"split={split}")
        captured = capsys.readouterr()
        said = (captured.out + captured.err).count("notice: few patients made the choices: split val has")
        assert said == 1, split


def test_nothing_frozen_is_chosen_on_validation_before_test_is_opened(
    run_copy: Path, run_evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the test images are read, the choices lie in the run already."""
    seen: list[tuple[str, bool]] = []
    original = split_predictions.compute_logits

    def note(*args: Any, split: str) -> Any:
        seen.append((split, (run_copy / "operating_points.json").is_file()))
        return original(*args, split=split)

    monkeypatch.setattr(split_predictions, "compute_logits", note)
    run_evaluate(run_copy, "split=test")
    assert seen == [("val", False), ("test", True)]
    val = run_copy / "evaluation" / "store-val"
    assert len(read_json_lines(val / "opened.jsonl")) == 1
    run_evaluate(run_copy, "split=val")  # its predictions are there already
    assert len(seen) == 2
    assert len(read_json_lines(val / "opened.jsonl")) == 1


def test_other_rules_are_free_before_test_and_refused_after(run_copy: Path, run_evaluate: Run) -> None:
    run_evaluate(run_copy, "split=val", "miss_costs=[3]")
    run_evaluate(run_copy, "split=val", "alpha=0.3")
    settings = read_json(run_copy / "operating_points.json")["settings"]
    assert (settings["cost"], settings["alpha"]) == ([3.0], 0.3)
    folder = run_evaluate(run_copy, "split=test", "miss_costs=[3]")
    before = (run_copy / "operating_points.json").read_bytes()
    for split in ("val", "test"):
        with pytest.raises(ConfigError, match=r"frozen with other settings \(cost: \[3.0\] -> \[9.0\]\)"):
            run_evaluate(run_copy, f"split={split}", "miss_costs=[9]")
    assert (run_copy / "operating_points.json").read_bytes() == before
    assert len(read_json_lines(folder / "opened.jsonl")) == 1


def test_decision_is_frozen_with_the_points_and_decides_evaluate_explain_and_compare(
    run_train: Run, run_evaluate: Run, tmp_path: Path
) -> None:
    run = run_train(tmp_path / "binary", "task=binary", "task.classes={0: 0, 1: 0, 2: 1}")
    with pytest.raises(ConfigError, match=r"decision=yuden: expected one of youden, .*half \(nearest: youden\)"):
        run_evaluate(run, "decision=yuden")
    run_evaluate(run, "decision=sensitivity_0.95")
    folder = run_evaluate(run, "split=test")
    metrics, frozen = read_json(folder / "metrics.json"), read_json(run / "operating_points.json")
    points = {point["kind"]: point for point in metrics["operating_points"]}
    assert frozen["settings"]["decision"] == metrics["decision"]["rule"] == "sensitivity_0.95"
    assert metrics["decision"]["thresholds"] == {"2": points["sensitivity"]["threshold"]}
    for rate in ("sensitivity", "specificity"):
        assert metrics[rate]["value"] == points["sensitivity"]["rates"][rate]["value"]
    with pytest.raises(ConfigError, match=r"decision: sensitivity_0\.95 -> youden"):
        run_evaluate(run, "decision=youden")
    request = SplitRequest(RowRequest("test", in_sample="allow"))
    threshold = points["sensitivity"]["threshold"]
    assert explain.predict(run, request).rows.predictions.thresholds == (threshold,)
    # Arms of a comparison are called by their own decision, too.
    out: Any = SimpleNamespace(run=lambda work: run, evaluation=lambda work: folder)
    fold: Any = SimpleNamespace(name="f", repeat=1, number=1)
    work: Any = SimpleNamespace(name="run")
    assert comparison_results.read_fold(out, fold, work).predictions.thresholds == (threshold,)


def test_a_map_that_version_0_2_0_chose_is_not_applied(run_copy: Path, run_evaluate: Run) -> None:
    folder = run_evaluate(run_copy, "split=test")
    frozen = read_json(run_copy / "calibration.json")
    del frozen["map"]
    write_json(run_copy / "calibration.json", frozen | {"chosen": {"method": "isotonic", "log_loss": {}}})
    folder = run_evaluate(run_copy, "split=test")
    assert read_json(folder / "metrics.json")["recalibration"]["chosen"]["method"] == "none"
    assert "no recalibration is applied: version 0.2.0 chose it" in (folder / "report.html").read_text()


def test_points_of_version_0_2_0_are_decided_by_the_default(run_train: Run, run_evaluate: Run, tmp_path: Path) -> None:
    run = run_train(tmp_path / "binary", "task=binary", "task.classes={0: 0, 1: 0, 2: 1}")
    run_evaluate(run, "split=test")
    for name in ("operating_points.json", "calibration.json"):
        frozen = read_json(run / name)
        del frozen["settings"]["decision"]
        write_json(run / name, frozen)
    metrics = read_json(run_evaluate(run, "split=test") / "metrics.json")
    assert metrics["decision"]["rule"] == "youden"
    assert metrics["decision"]["thresholds"]["2"] == metrics["operating_points"][0]["threshold"]
    with pytest.raises(ConfigError, match="decision: None -> half"):
        run_evaluate(run, "decision=half")


def test_choices_of_another_model_are_not_applied(run_copy: Path, run_evaluate: Run) -> None:
    first = read_thresholds(run_evaluate(run_copy, "split=test"))
    change_model(run_copy)
    second = read_thresholds(run_evaluate(run_copy, "split=test"))
    assert first != second
    operating = read_json(run_copy / "operating_points.json")
    assert operating["chosen_on"]["model_sha256"] == sha256_file(run_copy / "model.safetensors")
    assert operating["chosen_on"]["test_openings_before"] == 0  # of this model


def test_choosing_after_test_was_opened_is_said(run_copy: Path, run_evaluate: Run) -> None:
    run_evaluate(run_copy, "split=test")
    for name in FILES:
        (run_copy / name).unlink()
    folder = run_evaluate(run_copy, "split=test")
    note = "operating points were chosen on validation after a test split had been opened 1 time"
    assert note in (folder / "report.html").read_text()


@pytest.mark.parametrize("name", FILES)
def test_frozen_choice_without_its_other_file_is_refused_after_test_was_opened(
    name: str, run_copy: Path, run_evaluate: Run
) -> None:
    run_evaluate(run_copy, "split=val", "sensitivity_at_least=[0.8]", "alpha=0.2")
    run_evaluate(run_copy, "split=test")
    frozen = {each: (run_copy / each).read_bytes() for each in FILES}
    (run_copy / name).unlink()
    (other,) = set(FILES) - {name}
    expected = f"{name} is missing: restore both from one copy, or remove both files and evaluate again"
    for split in ("val", "test"):
        with pytest.raises(DataError, match=expected):
            run_evaluate(run_copy, f"split={split}")
    with pytest.raises(DataError, match=expected):
        explain.predict(run_copy, SplitRequest(RowRequest("test", in_sample="allow")))
    with pytest.raises(DataError, match=expected):
        find_choices([run_copy], [sha256_file(run_copy / "model.safetensors")])
    assert {each: (run_copy / each).read_bytes() for each in FILES if each != name} == {other: frozen[other]}
    assert not (run_copy / name).exists()
    content = read_json(run_copy / other)
    write_json(run_copy / name, content | {"settings": content["settings"] | {"alpha": 0.3}})
    with pytest.raises(DataError, match=r"operating_points\.json and calibration\.json were not written together: "):
        run_evaluate(run_copy, "split=test")
    (run_copy / name).write_bytes(frozen[name])
    run_evaluate(run_copy, "split=test")
    assert {each: (run_copy / each).read_bytes() for each in FILES} == frozen


@pytest.mark.parametrize("name", FILES)
def test_choice_that_was_interrupted_between_its_files_is_made_again_with_the_same_settings(
    name: str, run_copy: Path, run_evaluate: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run_evaluate(run_copy, "split=val", "sensitivity_at_least=[0.8]", "alpha=0.2")
    frozen = {each: read_json(run_copy / each) for each in FILES}
    (run_copy / name).unlink()
    run_evaluate(run_copy, "split=test")
    assert {each: read_json(run_copy / each) for each in FILES} == frozen
    assert "was written without its other file: both are chosen again with its settings" in capsys.readouterr().err


def test_without_the_runs_own_store_there_are_none_and_it_is_said(
    run_copy: Path, run_evaluate: Run, copy_store: Callable[..., Path], tmp_path: Path
) -> None:
    moved = copy_store("moved")
    folder = run_evaluate(run_copy, f"store={moved}", "split=test")
    assert read_thresholds(folder)  # a copy serves as well
    settings = read_json(run_copy / "config" / "settings.json")
    write_json(run_copy / "config" / "settings.json", settings | {"store": str(tmp_path / "gone")})
    change_model(run_copy)
    folder = run_evaluate(run_copy, f"store={moved}", "split=test")
    assert read_thresholds(folder)


# --- two runs


def test_two_runs_are_compared_on_the_same_images(run_copy: Path, other_run: Path, run_evaluate: Run) -> None:
    folder = run_evaluate(run_copy, f"against={other_run}", "split=test")
    compared = read_json(folder / "metrics.json")["comparison"]
    assert (compared["first"], compared["second"]) == ("run", "other")
    alone = read_json(run_evaluate(other_run, "split=test") / "metrics.json")
    assert compared["metrics"]["brier"]["second"] == alone["brier"]["value"]
    assert compared["metrics"]["brier"]["difference"] != 0
    assert set(compared["auc"]) == {"0", "1", "2"}
    # The other run's test rows were opened for the comparison, and again to judge it alone.
    lines = read_json_lines(other_run / "evaluation" / "store-test" / "opened.jsonl")
    assert [line["use"].split(" model")[0] for line in lines] == ["compared with", "evaluated"]
    assert (other_run / "operating_points.json").is_file()


def test_a_run_is_not_compared_with_itself_or_another_task(
    run_copy: Path, run_evaluate: Run, run_train: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is run= itself"):
        run_evaluate(run_copy, f"against={run_copy}", "split=test")
    ordinal = run_train(tmp_path / "ordinal", "task=ordinal")
    with pytest.raises(ConfigError, match="has another task than run="):
        run_evaluate(run_copy, f"against={ordinal}", "split=test")
    assert not (run_copy / "evaluation" / "store-test").exists()
    assert not (ordinal / "evaluation").exists()


def test_a_run_of_another_split_is_refused_before_anything_is_opened(
    run_copy: Path, other_run: Path, run_evaluate: Run
) -> None:
    model, card = read_model(other_run / "model.safetensors")
    finish_run(other_run, model.state_dict(), replace(card, split_sha256="0" * 64))
    with pytest.raises(DataError, match="is not the one this run was trained on"):
        run_evaluate(run_copy, f"against={other_run}", "split=test")
    assert not (run_copy / "evaluation" / "store-test").exists()


# --- what else is measured


def test_subgroups_by_asked_columns_and_a_note_for_absent_ones(run_copy: Path, run_evaluate: Run) -> None:
    folder = run_evaluate(run_copy, "split=val", "subgroups=[side,hospital]", "least_patients=2")
    assert "no subgroups by hospital: the store has no such column" in (folder / "report.html").read_text()
    columns = {group["column"] for group in read_json(folder / "metrics.json")["subgroups"]}
    assert columns <= {"side"}


def test_robustness_is_measured_when_asked_for(run_copy: Path, run_evaluate: Run) -> None:
    folder = run_evaluate(run_copy, "split=val")
    assert "robustness" not in read_json(folder / "metrics.json")
    folder = run_evaluate(run_copy, "split=val", "robustness=true")
    found = read_json(folder / "metrics.json")
    curves = found["robustness"]["curves"]
    assert set(curves) == {"noise", "blur", "window", "resampling", "jpeg", "rotation"}
    assert [point["strength"] for point in curves["blur"]["points"]] == [0.5, 1.0, 1.5, 2.0, 3.0]
    assert found["robustness"]["unchanged"]["value"] == found["auc"]["value"]
    values = {point["value"] for curve in curves.values() for point in curve["points"]}
    assert len(values) > 3
    assert len(read_json_lines(folder / "opened.jsonl")) == 1


def test_shortcuts_are_measured_by_the_columns_asked_for(run_copy: Path, run_evaluate: Run) -> None:
    folder = run_evaluate(run_copy, "split=val", "shortcuts=[side,hospital]", "least_patients=2")
    found = read_json(folder / "metrics.json")["shortcuts"]
    assert found["hospital"] == {"reason": "the store has no such column"}
    assert set(found["side"]) in ({"values", "features", "labels"}, {"reason"})
