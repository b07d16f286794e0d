from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from medcls.data.splits import read_split, rows_of
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.evaluate import evaluate as stage
from medcls.evaluate import split_predictions
from medcls.evaluate.evaluation_data import RowRequest
from medcls.evaluate.split_predictions import SplitRequest
from medcls.explain import explain
from medcls.files import read_json, read_json_lines, sha256_file, write_json
from medcls.models.heads import compute_scores
from medcls.report.page_tables import format_metrics
from medcls.runs.checksums import finish_run
from medcls.runs.model_file import read_model, read_state
from medcls.training.loop import NonFiniteError

pytestmark = pytest.mark.usefixtures("notes_for_report")

Run = Callable[..., Path]


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The split of each pass through the network, in order."""
    passes: list[str] = []
    original = split_predictions.compute_logits

    def note(*args: Any, split: str) -> Any:
        passes.append(split)
        return original(*args, split=split)

    monkeypatch.setattr(split_predictions, "compute_logits", note)
    return passes


@pytest.fixture
def other_store(
    write_source: Callable[..., Path],
    run_prepare: Callable[..., Store],
    draw_picture: Callable[..., Any],
    tmp_path: Path,
) -> Callable[..., Path]:
    """A store of another hospital: other patients, other images, the same grades."""

    def make(
        *arguments: str, prefix: str = "x", name: str = "external", classes: Sequence[str] = ("0", "1", "2")
    ) -> Path:
        def rename(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [row | {"patient_id": prefix + row["patient_id"][1:]} for row in rows]

        raw = write_source(tmp_path / f"{name}-raw", patients=9, classes=classes, rewrite=rename)
        for number, path in enumerate(sorted((raw / "images").iterdir())):
            cv2.imwrite(str(path), draw_picture(number // 2 % 3, 1000 + number))
        store = run_prepare(raw, tmp_path / name, "split.test=0.34", "split.val=0.33", *arguments)
        return store.folder

    return make


# --- what is written


def test_predictions_have_one_row_for_each_image_of_the_split(run_copy: Path, run_evaluate: Run, store: Store) -> None:
    table = pq.read_table(run_evaluate(run_copy, "split=test") / "predictions.parquet")
    assert table.column_names == ["image_id", "patient_id", "y_true", "logits", "y_score"]
    splits, _ = read_split(store, "default")
    rows = rows_of(splits, "test")
    assert table.column("image_id").to_pylist() == store.column("image_id", rows)
    assert table.column("patient_id").to_pylist() == store.column("patient_id", rows)
    labels = pq.read_table(store.folder / "labels.parquet").column("label").to_pylist()
    assert table.column("y_true").to_pylist() == [[float(labels[row])] for row in rows]
    model, card = read_model(run_copy / "model.safetensors")
    images = torch.from_numpy(np.stack([store.image(row) for row in rows]))
    with torch.inference_mode():
        logits = model(images).double()
    np.testing.assert_allclose(table.column("logits").to_pylist(), logits, atol=1e-5)
    expected = compute_scores(card.task.kind, torch.tensor(table.column("logits").to_pylist()))
    np.testing.assert_allclose(table.column("y_score").to_pylist(), expected, atol=1e-6)


@pytest.mark.usefixtures("real_report")
def test_metrics_and_report(run_copy: Path, run_evaluate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_evaluate(run_copy, "split=test")
    metrics = read_json(folder / "metrics.json")
    counts = {key: value for key, value in metrics.items() if key.startswith("n_")}
    assert counts == {"n_images": 12, "n_patients": 6}
    assert {"auc", "accuracy", "balanced_accuracy", "average_precision", "brier", "auc_0"} <= set(metrics)
    beside = {
        "rows",
        "patients_from",
        "openings",
        "chosen_on",
        "decision",
        "operating_points",
        "levels",
        "subgroups",
        "recalibration",
        "conformal",
        "training_distance",
    }
    assert beside <= set(metrics)
    assert metrics["openings"] == 1
    for name in set(metrics) - set(counts) - beside:
        more = {"calibrated"} if name == "ece" else set()
        assert set(metrics[name]) - {"reason", "note"} == {"value", "low", "high"} | more, name
    brier = metrics["brier"]
    assert 0 <= brier["low"] < brier["value"] < brier["high"] <= 2
    printed = capsys.readouterr().out
    assert f"report: {folder / 'report.html'}" in printed
    assert "test: 12 images of 6 patients" in printed
    assert "was opened 1 time by this run" in (folder / "report.html").read_text()
    assert folder == run_copy / "evaluation" / "store-test"


def test_seed_and_replicates_change_the_intervals_only(run_copy: Path, run_evaluate: Run, predicted: list[str]) -> None:
    first = read_json(run_evaluate(run_copy, "split=val") / "metrics.json")
    second = read_json(run_evaluate(run_copy, "split=val", "seed=4") / "metrics.json")
    assert first["brier"]["value"] == second["brier"]["value"]
    assert first["brier"]["low"] != second["brier"]["low"]
    assert predicted == ["val"]


def test_report_false_writes_the_numbers_alone(
    run_copy: Path, run_evaluate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "numbers"
    folder = run_evaluate(run_copy, "split=test", f"out={out}", "report=false", "replicates=1")
    assert {path.name for path in folder.iterdir()} == {
        "metrics.json",
        "predictions.parquet",
        "predictions.parquet.columns.json",
        "inputs.json",
    }
    assert f"metrics: {folder / 'metrics.json'}" in capsys.readouterr().out
    auc = read_json(folder / "metrics.json")["auc"]
    assert auc == {"value": auc["value"], "low": None, "high": None, "reason": "replicates=1: an interval needs 40"}
    whole = read_json(run_evaluate(run_copy, "split=test", f"out={out}") / "metrics.json")
    assert whole["auc"]["value"] == auc["value"]
    run_evaluate(run_copy, "split=test", f"out={out}", "report=false")
    assert "report.html is from an earlier evaluation" in capsys.readouterr().err


# --- openings


def test_unchanged_repetition_reuses_the_predictions_and_opens_nothing(
    run_copy: Path, run_evaluate: Run, predicted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_evaluate(run_copy, "split=test")
    before = (folder / "predictions.parquet").read_bytes()
    assert "opening number 1" in capsys.readouterr().err
    run_evaluate(run_copy, "split=test")
    assert "reused" in capsys.readouterr().err
    assert (predicted, len(read_json_lines(folder / "opened.jsonl"))) == (["val", "test"], 1)
    assert (folder / "predictions.parquet").read_bytes() == before


def retrain(run: Path) -> None:
    """Another model in the run, as if it had been trained again."""
    model, card = read_model(run / "model.safetensors")
    state = model.state_dict()
    state["head.linear.bias"] += 1.5 * torch.arange(3)
    finish_run(run, state, card)


def test_another_model_opens_again(run_copy: Path, run_evaluate: Run, predicted: list[str]) -> None:
    folder = run_evaluate(run_copy, "split=test")
    before = pq.read_table(folder / "predictions.parquet").column("logits").to_pylist()
    retrain(run_copy)
    run_evaluate(run_copy, "split=test")
    after = pq.read_table(folder / "predictions.parquet").column("logits").to_pylist()
    np.testing.assert_allclose(np.array(after) - before, np.tile([0, 1.5, 3], (12, 1)), atol=1e-5)
    assert predicted == ["val", "test", "val", "test"]  # thresholds of another model are chosen anew
    assert len(read_json_lines(folder / "opened.jsonl")) == 2
    assert "was opened 2 times by this run" in (folder / "report.html").read_text()


def test_predictions_of_another_model_are_not_reused_after_an_interruption(
    run_copy: Path, run_evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_evaluate(run_copy, "split=test")
    before = pq.read_table(folder / "predictions.parquet").column("logits").to_pylist()
    retrain(run_copy)

    original = split_predictions.compute_logits

    def interrupt(*args: Any, split: str) -> Any:
        if split == "test":
            raise KeyboardInterrupt
        return original(*args, split=split)

    with monkeypatch.context() as patch:
        patch.setattr(split_predictions, "compute_logits", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_evaluate(run_copy, "split=test")
    assert len(read_json_lines(folder / "opened.jsonl")) == 2  # broken off, and an opening all the same
    run_evaluate(run_copy, "split=test")
    assert pq.read_table(folder / "predictions.parquet").column("logits").to_pylist() != before
    assert len(read_json_lines(folder / "opened.jsonl")) == 3


def test_predictions_changed_by_hand_are_made_anew(run_copy: Path, run_evaluate: Run, predicted: list[str]) -> None:
    folder = run_evaluate(run_copy, "split=val")
    before = (folder / "predictions.parquet").read_bytes()
    table = pq.read_table(folder / "predictions.parquet")
    better = [[0.0 + 9 * (k == y) for k in range(3)] for (y,) in table.column("y_true").to_pylist()]
    pq.write_table(table.set_column(3, "logits", [better]), folder / "predictions.parquet")
    run_evaluate(run_copy, "split=val")
    assert predicted == ["val", "val"]
    assert (folder / "predictions.parquet").read_bytes() == before


def test_results_elsewhere_are_counted_in_the_run(run_copy: Path, run_evaluate: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = run_evaluate(run_copy, "split=test", f"out={tmp_path / name}")
        assert {"predictions.parquet", "metrics.json", "report.html"} <= {path.name for path in folder.iterdir()}
    rows = read_json_lines(run_copy / "evaluation" / "store-test" / "opened.jsonl")
    assert len(rows) == 2
    assert set(rows[0]["key"]) >= {"model_sha256", "store_sha256", "split_sha256", "labels_sha256"}
    assert not (tmp_path / "a" / "opened.jsonl").exists()


def test_validation_is_the_default_and_lies_apart(run_copy: Path, run_evaluate: Run) -> None:
    assert run_evaluate(run_copy).name == "store-val"
    assert not (run_copy / "evaluation" / "store-test").exists()


@pytest.mark.parametrize(("split", "seen", "images"), [("train", 24, 24), ("all", 24, 48)])
def test_rows_that_were_trained_on_are_refused_and_marked_if_allowed(
    split: str, seen: int, images: int, run_copy: Path, run_evaluate: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=f"split={split}: the run was trained on {seen} of {images} images"):
        run_evaluate(run_copy, f"split={split}")
    assert not (run_copy / "evaluation").exists()
    folder = run_evaluate(run_copy, f"split={split}", "in_sample=allow")
    title = f"In-sample: the model was trained on {seen} of {images} images or their patients"
    assert title in capsys.readouterr().out.splitlines()[0]
    assert title in (folder / "report.html").read_text()
    rows = read_json(folder / "metrics.json")["rows"]
    assert (rows["status"], rows["trained"], rows["chose"]) == ("in_sample", seen, 12 if split == "all" else 0)


def test_a_patient_in_training_and_test_is_found_whatever_the_split_is_called(
    run_copy: Path,
    run_train: Run,
    run_evaluate: Run,
    write_source: Callable[..., Path],
    run_prepare: Callable[..., Store],
    tmp_path: Path,
) -> None:
    """split.on_leak=report leaves a patient in both; his test rows are in-sample all the same."""

    def split(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        named = [row | {"split": ("train", "train", "val", "test")[int(row["patient_id"][1:]) % 4]} for row in rows]
        named[0]["split"] = "test"  # a patient of training
        return named

    raw = write_source(tmp_path / "raw", classes=("0", "1", "2"), rewrite=split)
    store = run_prepare(raw, tmp_path / "leaky", "split.on_leak=report")
    run = run_train(tmp_path / "leaky-run", f"store={store.folder}")
    with pytest.raises(DataError, match="the run was trained on 1 of 13 images"):
        run_evaluate(run, "split=test")


def test_validation_is_marked_as_the_rows_that_chose(
    run_copy: Path, run_evaluate: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_evaluate(run_copy)
    title = "Validation rows: 12 of 12 images chose the epoch, the thresholds"
    assert title in capsys.readouterr().out.splitlines()[0]
    assert title in (folder / "report.html").read_text()
    assert read_json(folder / "metrics.json")["rows"]["status"] == "chose"
    capsys.readouterr()
    folder = run_evaluate(run_copy, "split=test")
    assert capsys.readouterr().out.splitlines()[0].startswith("test: 12 images")
    assert read_json(folder / "metrics.json")["rows"]["status"] == "unseen"


def test_external_store_that_shares_patients_partly_is_marked_if_allowed(
    run_copy: Path, run_evaluate: Run, other_store: Callable[..., Path]
) -> None:
    external = other_store(prefix="p")  # patients p00 to p08, some of whom are in the run's test split
    with pytest.raises(DataError, match="or set in_sample=allow"):
        run_evaluate(run_copy, f"store={external}", "split=all")
    folder = run_evaluate(run_copy, f"store={external}", "split=all", "in_sample=allow")
    rows = read_json(folder / "metrics.json")["rows"]
    seen = set(pq.read_table(run_copy / "patients.parquet").column("patient_id").to_pylist())
    expected = 2 * len(seen & {f"p{number:02d}" for number in range(9)})
    assert 0 < expected < 18
    assert (rows["status"], rows["trained"], rows["images"]) == ("in_sample", expected, 18)


# --- every opening of the same rows


def read_openings(run: Path) -> list[tuple[int, str]]:
    lines = [line for log in (run / "evaluation").glob("*/opened.jsonl") for line in read_json_lines(log)]
    return sorted((line["number"], line["use"]) for line in lines if line["unseen"])


def test_openings_of_the_same_rows_count_together_in_every_way(
    run_copy: Path,
    trained: Path,
    run_evaluate: Run,
    copy_store: Callable[..., Path],
    compose_job: Callable[..., Any],
    tmp_path: Path,
) -> None:
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    retrain(other)
    run_evaluate(run_copy, "split=test")
    run_evaluate(run_copy, "split=test")  # the very same: no opening
    run_evaluate(run_copy, "split=test", f"out={tmp_path / 'elsewhere'}")
    run_evaluate(run_copy, "split=test", "views=dense")
    run_evaluate(run_copy, "split=test", f"store={copy_store('moved')}")
    run_evaluate(run_copy, "split=all", "in_sample=allow")
    run_evaluate(run_copy, "split=test", f"against={other}")
    stage.evaluate(
        compose_job(
            "evaluate", f"run=[{run_copy},{other}]", "split=test", f"out={tmp_path / 'fused'}", "replicates=100",
            "workers=0", "device=cpu",
        )
    )  # fmt: skip
    explain.predict(run_copy, SplitRequest(RowRequest("test", in_sample="allow"), device="cpu"))
    found = read_openings(run_copy)
    assert [number for number, _ in found] == list(range(1, 9))
    uses = [use for _, use in found]
    assert uses[:5] == ["evaluated"] * 5
    assert uses[5].startswith("compared with model ")
    assert uses[6].startswith("averaged with 1 other runs")
    assert uses[7] == "explained"
    assert len(read_openings(other)) == 2
    folder = run_evaluate(run_copy, "split=test")
    assert read_json(folder / "metrics.json")["openings"] == 8
    assert "8. explained (split test of store, 12 images)" in (folder / "report.html").read_text()


def test_openings_that_version_0_2_0_logged_count(run_copy: Path, run_evaluate: Run) -> None:
    folder = run_evaluate(run_copy, "split=test")
    (line,) = read_json_lines(folder / "opened.jsonl")
    (folder / "opened.jsonl").write_text(json.dumps({"key": line["key"], "split": "test"}) + "\n")
    folder = run_evaluate(run_copy, "split=test", "precision=fp32")
    assert read_json(folder / "metrics.json")["openings"] == 2
    assert "1. by an earlier version (split test)" in (folder / "report.html").read_text()


def test_validation_of_an_external_store_is_an_opening_too(
    run_copy: Path, run_evaluate: Run, other_store: Callable[..., Path]
) -> None:
    external = other_store()
    run_evaluate(run_copy, f"store={external}", "split=val")
    run_evaluate(run_copy, f"store={external}", "split=all")
    assert [number for number, _ in read_openings(run_copy)] == [1, 2]


# --- another store


def test_external_store_is_evaluated_whole(run_copy: Path, run_evaluate: Run, other_store: Callable[..., Path]) -> None:
    folder = run_evaluate(run_copy, f"store={other_store()}", "split=all")
    assert folder == run_copy / "evaluation" / "external-all"
    assert read_json(folder / "metrics.json")["n_images"] == 18
    assert "no patient id and no image of it was trained or selected on" in (folder / "report.html").read_text()
    assert len(read_json_lines(folder / "opened.jsonl")) == 1


@pytest.mark.usefixtures("real_report")
def test_external_labels_in_another_spelling_are_the_classes_of_the_run(
    run_copy: Path, run_evaluate: Run, other_store: Callable[..., Path]
) -> None:
    folder = run_evaluate(run_copy, f"store={other_store(classes=('0.0', '1.0', '02'))}", "split=all")
    table = pq.read_table(folder / "predictions.parquet")
    assert sorted(value for (value,) in table.column("y_true").to_pylist()) == [0.0] * 6 + [1.0] * 6 + [2.0] * 6
    page = (folder / "report.html").read_text()
    assert "that are spelled &#39;02&#39; are read as the class 2 of the run" in page


def test_external_store_has_splits_of_its_own(
    run_copy: Path, run_evaluate: Run, other_store: Callable[..., Path]
) -> None:
    folder = run_evaluate(run_copy, f"store={other_store()}", "split=test")
    assert read_json(folder / "metrics.json")["n_images"] == 6


def test_patients_that_were_trained_on_are_refused(
    run_copy: Path, run_evaluate: Run, other_store: Callable[..., Path]
) -> None:
    external = other_store(prefix="p")
    with pytest.raises(DataError, match=r"patients of store=.*external were trained or selected on by this run"):
        run_evaluate(run_copy, f"store={external}", "split=all")
    assert not (run_copy / "evaluation").exists()


def test_images_that_were_trained_on_are_refused_under_other_names(
    run_copy: Path,
    run_evaluate: Run,
    write_source: Callable[..., Path],
    run_prepare: Callable[..., Store],
    tmp_path: Path,
) -> None:
    """Two sites' ids never agree; the pixels do."""

    def rename(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"patient_id": f"other-{row['patient_id']}"} for row in rows]

    same = run_prepare(write_source(tmp_path / "raw", rewrite=rename), tmp_path / "same")
    with pytest.raises(DataError, match=r"images of store=.*same were trained or selected on by this run"):
        run_evaluate(run_copy, f"store={same.folder}", "split=all")


def test_other_preprocessing_is_refused_and_named(
    run_copy: Path, run_evaluate: Run, other_store: Callable[..., Path]
) -> None:
    external = other_store("image.size=40", "image.fit=stretch")
    with pytest.raises(DataError, match="preprocessed differently") as caught:
        run_evaluate(run_copy, f"store={external}", "split=all")
    assert "height: 32 -> 40; width: 32 -> 40; fit: pad -> stretch" in str(caught.value)


def test_copy_of_the_same_store_is_not_external(
    run_copy: Path, run_evaluate: Run, copy_store: Callable[..., Path], store: Store
) -> None:
    folder = run_evaluate(run_copy, f"store={copy_store('moved')}", "split=test")
    assert read_json(folder / "metrics.json")["n_images"] == 12
    assert "external" not in (folder / "report.html").read_text()


def test_label_that_is_no_class_of_the_task_is_left_out_and_said(
    run_copy: Path, run_evaluate: Run, other_store: Callable[..., Path], certify: Callable[[Path], None]
) -> None:
    path = other_store() / "labels.parquet"
    table = pq.read_table(path)
    labels = table.column("label").to_pylist()
    labels[0], labels[1] = "7", None
    pq.write_table(table.set_column(table.column_names.index("label"), "label", [labels]), path)
    certify(path.parent)
    folder = run_evaluate(run_copy, f"store={path.parent}", "split=all")
    assert read_json(folder / "metrics.json")["n_images"] == 16
    assert "2 of 18 images are left out" in (folder / "report.html").read_text()


def test_another_store_of_the_same_name_overwrites_nothing(
    run_copy: Path, run_evaluate: Run, other_store: Callable[..., Path], tmp_path: Path
) -> None:
    folder = run_evaluate(run_copy, "split=test")
    before = (folder / "metrics.json").read_bytes()
    namesake = other_store(name="store")
    with pytest.raises(ConfigError, match="holds the results of another store: choose a folder with out=DIR"):
        run_evaluate(run_copy, f"store={namesake}", "split=test")
    other = run_evaluate(run_copy, f"store={namesake}", "split=test", f"out={tmp_path / 'other'}")
    assert (folder / "metrics.json").read_bytes() == before
    assert "was opened 1 time by this run" in (other / "report.html").read_text()
    assert len(read_json_lines(folder / "opened.jsonl")) == 2


# --- what has changed since


def remember(run: Path, folder: Path) -> None:
    """Makes the run remember a copy of its store."""
    settings = read_json(run / "config" / "settings.json")
    write_json(run / "config" / "settings.json", settings | {"store": str(folder)})
    finish_run(run, *read_state(run / "model.safetensors"))


def test_changed_store(run_copy: Path, run_evaluate: Run, copy_store: Callable[..., Path]) -> None:
    folder = copy_store()
    remember(run_copy, folder)
    content = bytearray((folder / "shard-00000.npy").read_bytes())
    content[-1] ^= 1
    (folder / "shard-00000.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"changed since it was written: shard-00000.npy"):
        run_evaluate(run_copy, "split=test")


def test_store_made_anew(
    run_copy: Path, run_evaluate: Run, copy_store: Callable[..., Path], certify: Callable[[Path], None]
) -> None:
    folder = copy_store()
    remember(run_copy, folder)
    pixels = np.load(folder / "shard-00000.npy")
    pixels[0, 0, 0, 0] ^= 1
    np.save(folder / "shard-00000.npy", pixels)
    certify(folder)
    with pytest.raises(DataError, match="has changed since this run was trained"):
        run_evaluate(run_copy, "split=test")
    with pytest.raises(DataError, match="were trained or selected on by this run"):
        run_evaluate(run_copy, f"store={folder}", "split=all")


def test_store_that_is_gone_names_its_checksum(run_copy: Path, run_evaluate: Run, tmp_path: Path, store: Store) -> None:
    remember(run_copy, tmp_path / "gone")
    with pytest.raises(
        MissingInputError, match=f"{store.sha256}\\) does not exist: set store=DIR to its current path"
    ) as caught:
        run_evaluate(run_copy, "split=test")
    assert caught.value.exit_code == 66


def test_changed_split(
    run_copy: Path, run_evaluate: Run, copy_store: Callable[..., Path], certify: Callable[[Path], None]
) -> None:
    folder = copy_store()
    remember(run_copy, folder)
    path = folder / "splits" / "default.parquet"
    table = pq.read_table(path)
    splits = ["dropped" if split == "test" else split for split in table.column("split").to_pylist()]
    pq.write_table(table.set_column(1, "split", [splits]), path)
    with pytest.raises(DataError, match="has changed since its certificate was written"):
        run_evaluate(run_copy, "split=test")
    certify(folder)
    with pytest.raises(DataError, match="is not the one this run was trained on"):
        run_evaluate(run_copy, "split=test")


def test_changed_labels_are_noted_and_predicted_anew(
    run_copy: Path, run_evaluate: Run, copy_store: Callable[..., Path], certify: Callable[[Path], None]
) -> None:
    folder = copy_store()
    remember(run_copy, folder)
    first = run_evaluate(run_copy, "split=test")
    assert "labels have changed" not in (first / "report.html").read_text()
    table = pq.read_table(folder / "labels.parquet")
    labels = [{"0": "1", "1": "2", "2": "0"}[label] for label in table.column("label").to_pylist()]
    index = table.column_names.index("label")
    pq.write_table(table.set_column(index, "label", [labels]), folder / "labels.parquet")
    certify(folder)
    second = run_evaluate(run_copy, "split=test")
    assert "labels have changed since this run was trained" in (second / "report.html").read_text()
    assert len(read_json_lines(second / "opened.jsonl")) == 2


def test_labels_in_another_order_are_refused(
    run_copy: Path, run_evaluate: Run, copy_store: Callable[..., Path], certify: Callable[[Path], None]
) -> None:
    folder = copy_store()
    table = pq.read_table(folder / "labels.parquet")
    pq.write_table(table.take(list(reversed(range(table.num_rows)))), folder / "labels.parquet")
    certify(folder)
    with pytest.raises(DataError, match="its rows are not the store's images"):
        run_evaluate(run_copy, f"store={folder}", "split=test")


# --- what goes wrong


def test_run_that_is_none_and_run_that_is_not_finished(run_copy: Path, run_evaluate: Run, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"is not a folder: python -m medcls.train"):
        run_evaluate(tmp_path / "nowhere")
    (run_copy / "model.safetensors").unlink()
    with pytest.raises(MissingInputError, match="the training of this run has not finished"):
        run_evaluate(run_copy)


def test_damaged_model_is_refused_before_an_image_is_read(
    run_copy: Path, run_evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray((run_copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (run_copy / "model.safetensors").write_bytes(content)
    monkeypatch.setattr(Store, "image", None)
    with pytest.raises(DataError, match="is damaged: its weights have changed"):
        run_evaluate(run_copy, "split=test")


def test_outputs_that_are_not_finite_are_refused(
    run_copy: Path, run_evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.zeros((12, 3))
    logits[2, 1] = np.nan
    monkeypatch.setattr(split_predictions, "predict_rows", lambda *_, **__: logits)
    with pytest.raises(NonFiniteError, match=r"the outputs for 1 of 12 images are not finite: try precision=fp32"):
        run_evaluate(run_copy, "split=val")


def test_headlines_are_printed_with_their_intervals() -> None:
    metrics = {
        "auc": {"value": 0.91234, "low": 0.8, "high": 0.95},
        "f1": {"value": None, "low": None, "high": None, "reason": "no positive"},
        "auc_0": {"value": 0.5, "low": 0.4, "high": 0.6},
        "brier": {"value": 0.2, "low": None, "high": None, "reason": "one patient"},
        "n_images": 4,
        "n_patients": 3,
    }
    lines = format_metrics(json.loads(json.dumps(metrics)), title="test").splitlines()
    assert lines[0] == "test: 4 images of 3 patients, 95 % intervals over patients"
    assert [line.split() for line in lines[1:]] == [
        ["auc", "0.912", "[0.800,", "0.950]"], ["f1", "undefined:", "no", "positive"],
        ["brier", "0.200", "no", "interval:", "one", "patient"],
    ]  # fmt: skip
    several = format_metrics(metrics, title="test", labels=2).splitlines()
    assert several[1].split() == ["auc", "(mean", "of", "2", "labels)", "0.912", "[0.800,", "0.950]"]


@pytest.mark.gpu
def test_gpu_and_cpu_agree(run_copy: Path, run_evaluate: Run, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    logits = []
    for device in ("cpu", "cuda"):
        folder = run_evaluate(run_copy, f"device={device}", "precision=fp32", f"out={tmp_path / device}")
        logits.append(pq.read_table(folder / "predictions.parquet").column("logits").to_pylist())
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-3)
    shutil.rmtree(tmp_path / "cuda")


# --- identifiers on pages


def plant_ids(store: Path) -> None:
    """Writes names into the lists of the split's certificate, where a leak that is only reported would stand."""
    path = store / "splits" / "default.json"
    content = read_json(path)
    pair = {"images": ["Doe_Erika/knee.png", "Mustermann.png"], "splits": ["train", "test"], "identical": True}
    planted = {"patients_in_several_splits": {"Mustermann Erika": ["train", "val"]}, "images_in_several_splits": [pair]}
    write_json(path, content | planted | {"later_list": [{"path": "Doe_Erika/other.png"}]})


@pytest.mark.usefixtures("real_report")
def test_no_page_or_document_lists_ids_unless_asked(
    run_copy: Path, run_evaluate: Run, copy_store: Callable[..., Path]
) -> None:
    store = copy_store()
    plant_ids(store)
    folder = run_evaluate(run_copy, f"store={store}", "split=test")
    written = {path.name: path.read_text() for path in folder.rglob("*") if path.suffix in (".html", ".md", ".json")}
    assert {"report.html", "MODEL_CARD.md", "claim.json", "tripod_ai.json"} <= set(written)
    ids = ["Mustermann", "Doe_Erika", *(pq.read_table(folder / "predictions.parquet").column("image_id").to_pylist())]
    assert [(name, one) for name, text in written.items() for one in ids if one in text] == []
    assert "this page contains no patient or image identifiers" in written["report.html"]
    assert (
        "1 pair of the same image is in more than one split, 1 of them identical: 1 in train" in written["report.html"]
    )
    folder = run_evaluate(run_copy, f"store={store}", "split=test", "show_ids=true")
    page = (folder / "report.html").read_text()
    assert "Doe_Erika/knee.png" in page
    assert "contains no patient or image identifiers" not in page


@pytest.mark.usefixtures("real_report")
def test_report_and_card_say_how_labels_were_read(
    run_copy: Path, run_evaluate: Run, copy_store: Callable[..., Path]
) -> None:
    store = copy_store()
    agreement = {"value": 0.8, "low": 0.7, "high": 0.9}
    readers = {"readers": ["r1", "r2"], "rule": "majority", "ties": 3, "images": 40, "interval_over": "patients"}
    content = {
        "unit": "rows",
        "rows": 48,
        "columns": {
            "label": {
                "spellings": {"Normal": {"Normal": 41, "normal": 3}},
                "uncertain": {"rows": 5, "read_as": "0.5"},
                "blank": {"rows": 4, "read_as": "unknown"},
            }
        },
        "readers": {"label": readers | {"agreement": agreement, "alpha": agreement}},
        "labels_sha256": sha256_file(store / "labels.parquet"),
    }
    write_json(store / "labels.json", content)
    folder = run_evaluate(run_copy, f"store={store}", "split=test")
    sentences = [
        "label: the spellings Normal (41), normal (3) were read as one class, Normal.",
        "label: 5 of 48 rows uncertain, read as 0.5.",
        "label: 4 of 48 rows blank, read as unknown.",
        "label: 2 readers, rule majority, 3 ties unknown; on 40 images of two or more readers 80.0 % of pairs agree, "
        "Krippendorff's alpha 0.80 (95 % interval 0.70 to 0.90, bootstrap over patients).",
    ]
    page, card = ((folder / name).read_text() for name in ("report.html", "MODEL_CARD.md"))
    assert [text for text in sentences if text.replace("'", "&#39;") not in page or text not in card] == []
    filled = {item["item"]: item for item in read_json(folder / "claim.json")["filled"]}
    assert sentences[3] in str(filled["18"])
    (store / "labels.json").unlink()
    page = (run_evaluate(run_copy, f"store={store}", "split=test") / "report.html").read_text()
    assert "How uncertain and blank labels were read is not recorded" in page
