"""A file of any tool's scores gives the numbers of a run's own evaluation; what it cannot prove reads unknown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from medcls.config import EvaluateJob
from medcls.data.splits import read_split, rows_of
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MedclsError, MissingInputError, UsageError
from medcls.evaluate.evaluate_scores import evaluate_scores
from medcls.files import read_json
from medcls.predict.predict import predict

pytestmark = pytest.mark.usefixtures("notes_for_report")

Compose = Callable[..., Any]
Rows = list[dict[str, Any]]
Write = Callable[[Path, Sequence[dict[str, Any]]], None]

# Settings of the training, names of the score columns in the order of the outputs, and settings of the evaluation.
TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "binary": (("task.classes={0: 0, 1: 1, 2: 1}",), ("1+2",), ("classes=[0,1+2]",)),
    "multiclass": ((), ("0", "1", "2"), ()),
    "ordinal": ((), ("0", "1", "2"), ("kind=ordinal",)),
    "multilabel": (("task.labels=[bright,low]",), ("bright", "low"), ()),
    "regression": (("task.grades=true",), ("",), ("kind=regression", "grades=true")),
}


@pytest.fixture
def run_scores(compose_job: Compose, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Evaluates a file of scores and returns metrics.json: run_scores(predictions, "positive=AD")."""

    def run(predictions: Path, *arguments: str, out: str = "out") -> dict[str, Any]:
        job: EvaluateJob = compose_job(
            "evaluate", f"predictions={predictions}", f"out={tmp_path / out}", "replicates=100", *arguments
        )
        evaluate_scores(job)
        return read_json(tmp_path / out / "metrics.json")

    return run


def make_rows(patients: int = 40, *, images: int = 2, first: int = 0, seed: int = 0) -> Rows:
    """Two images of each patient, AD or CN, with a score that knows a little."""
    generator = np.random.default_rng(seed)
    rows = []
    for patient in range(first, first + patients):
        case = patient % 3 == 0
        for image in range(images):
            score = 1 / (1 + np.exp(-(generator.normal() + 1.5 * case - 1)))
            rows.append(
                {
                    "patient_id": f"p{patient}",
                    "image_id": f"p{patient}-{image}",
                    "truth": "AD" if case else "CN",
                    "score_AD": repr(float(score)),
                    "sex": "FM"[patient % 2],
                    "age": 40 + patient,
                }
            )
    return rows


@pytest.fixture
def write_rows(write_labels: Write, tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as a CSV file: write_rows(rows, "name.csv")."""

    def write(rows: Rows, name: str = "scores.csv") -> Path:
        write_labels(tmp_path / name, rows)
        return tmp_path / name

    return write


# --- the same numbers as a run


def export(folder: Path, store: Store, split: str, kind: str, names: Sequence[str]) -> Rows:
    """The rows of predictions.parquet as another tool would write them, with the columns of the store."""
    table = pq.read_table(folder / "predictions.parquet").to_pylist()
    chosen = rows_of(read_split(store, "default")[0], split)
    sides = dict(zip(store.column("image_id", chosen), store.column("side", chosen), strict=True))
    rows = []
    for row in table:
        out = {"patient_id": row["patient_id"], "image_id": row["image_id"], "side": sides[row["image_id"]]}
        if kind == "multilabel":
            known = {name: true for name, true in zip(names, row["y_true"], strict=True) if true is not None}
            out |= {f"label_{name}": "" if np.isnan(known[name]) else int(known[name]) for name in names}
        else:
            out["truth"] = ["0", "1+2"][int(row["y_true"][0])] if kind == "binary" else row["y_true"][0]
        columns = [f"score_{name}" if name else "score" for name in names]
        rows.append(out | {name: repr(score) for name, score in zip(columns, row["y_score"], strict=True)})
    return rows


@pytest.mark.parametrize("kind", TASKS)
def test_scores_of_a_run_give_its_own_numbers_to_the_bit(
    kind: str,
    run_train: Callable[..., Path],
    run_evaluate: Callable[..., Path],
    store: Store,
    run_scores: Callable[..., dict[str, Any]],
    write_rows: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training, names, evaluation = TASKS[kind]
    run = run_train(tmp_path / "run", f"task={kind}", *training)
    extra = ("subgroups=[side]", "least_patients=2", "report=false")
    files = {}
    for split in ("val", "test"):
        folder = run_evaluate(run, f"split={split}", *extra)
        files[split] = write_rows(export(folder, store, split, kind, names), f"{split}.csv")
    expected = read_json(folder / "metrics.json")
    found = run_scores(files["test"], f"choices={files['val']}", *evaluation, *extra)
    apart = {
        "openings",
        "chosen_on",
        "unproven",
        "source",
        "decision",
        "levels",
        "rows",
        "patients_from",
        "training_distance",
    }
    assert set(expected) - apart == set(found) - apart
    for name in set(expected) - apart:
        assert found[name] == expected[name], name
    assert found["decision"].get("thresholds") == expected["decision"].get("thresholds")
    for level in expected["levels"]:
        for part in ("metrics", "rule", "operating_points", "n_units"):
            assert found["levels"][level][part] == expected["levels"][level][part], (level, part)
    # The run's own tables need no setting: what is beside them says the task and the thresholds.
    tables = {split: run / "evaluation" / f"store-{split}" / "predictions.parquet" for split in ("val", "test")}
    chosen = run_scores(tables["test"], f"choices={tables['val']}", "least_patients=2", "report=false", out="own")
    plain = run_scores(tables["test"], "report=false", out="plain")
    for metrics in (chosen, plain):
        assert metrics["decision"].get("thresholds") == expected["decision"].get("thresholds")
        for name in set(expected) - apart - {"operating_points", "subgroups", "recalibration", "conformal"}:
            assert metrics[name] == expected[name], name
    assert chosen["operating_points"] == expected["operating_points"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_predict_with_a_truth_gives_the_numbers_of_the_run(
    suffix: str,
    run_train: Callable[..., Path],
    run_evaluate: Callable[..., Path],
    store: Store,
    run_scores: Callable[..., dict[str, Any]],
    compose_job: Compose,
    tmp_path: Path,
) -> None:
    run = run_train(tmp_path / "run", "task=binary", "task.classes={0: 0, 1: 1, 2: 1}")
    folder = run_evaluate(run, "split=test", "report=false")
    out = tmp_path / f"predictions.{suffix}"
    raw = store.folder.parent / "raw"
    predict(compose_job("predict", f"run={run}", f"source={raw}", f"out={out}", "workers=0", "device=cpu"))
    with pytest.raises(DataError, match="predict writes no truth: add a column truth"):
        run_scores(out, "patients=per_image")
    truth = {row["image_id"]: row for row in pq.read_table(folder / "predictions.parquet").to_pylist()}
    rows = pq.read_table(out) if suffix == "parquet" else pyarrow.csv.read_csv(out)
    known = [truth.get(name) for name in rows.column("image_id").to_pylist()]
    rows = rows.append_column("truth", pa.array([row and ("0", "1+2")[int(row["y_true"][0])] for row in known]))
    rows = rows.set_column(2, "patient_id", pa.array([row["patient_id"] if row else "other" for row in known]))
    write = pq.write_table if suffix == "parquet" else pyarrow.csv.write_csv
    write(rows, out)
    found, expected = run_scores(out), read_json(folder / "metrics.json")
    assert found["decision"]["thresholds"] == expected["decision"]["thresholds"]
    for name in ("auc", "sensitivity", "specificity", "brier", "n_images", "n_patients", "positive_class"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name
    note = (tmp_path / "out" / "report.html").read_text()
    assert "1 image without a score (refused or skipped by predict) left out" in note
    assert "the threshold is as in the file (rule youden)" in note
    assert "as the file gives it; which rows chose it is unknown here" in found["decision"]["words"]


def test_lists_of_scores_without_their_description_are_refused(
    run_copy: Path, run_evaluate: Callable[..., Path], run_scores: Callable[..., dict[str, Any]]
) -> None:
    table = run_evaluate(run_copy, "split=test", "report=false") / "predictions.parquet"
    table.with_name("predictions.parquet.columns.json").unlink()
    with pytest.raises(DataError, match=r"predictions.parquet.columns.json, which names the classes, is missing"):
        run_scores(table)


def test_parquet_gives_the_numbers_of_csv(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    rows = make_rows()
    typed = [row | {"score_AD": float(row["score_AD"])} for row in rows]
    pq.write_table(pa.Table.from_pylist(typed), tmp_path / "scores.parquet")
    first = run_scores(write_rows(rows), out="csv")
    second = run_scores(tmp_path / "scores.parquet", out="parquet")
    assert {name: first[name] for name in first if name != "source"} == {
        name: second[name] for name in second if name != "source"
    }


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_and_a_byte_order_mark_are_read(
    separator: str, run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_rows(make_rows())
    expected = run_scores(path, out="commas")["auc"]
    (tmp_path / "other.csv").write_text("\ufeff" + path.read_text().replace(",", separator))
    assert run_scores(tmp_path / "other.csv", out="other")["auc"] == expected


# --- what is not known


@pytest.mark.usefixtures("real_report")
def test_what_a_file_cannot_prove_reads_unknown_everywhere(
    run_scores: Callable[..., dict[str, Any]],
    write_rows: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = run_scores(write_rows(make_rows()))
    assert metrics["openings"] == metrics["rows"]["status"] == "unknown"
    assert set(metrics["unproven"].values()) == {"unknown"}
    out = tmp_path / "out"
    page, card = (out / "report.html").read_text(), (out / "MODEL_CARD.md").read_text()
    assert "unknown: whether these rows trained or selected the model" in page
    assert "how often these rows were evaluated" in page
    assert "How images are combined was not chosen." in page
    assert "the file has no such column" not in page
    assert "- training: unknown" in card
    assert "- disjoint: unknown" in card
    assert "disjoint from training by patient" not in card + (out / "claim.json").read_text()
    items = {item["item"]: item.get("filled") for item in read_json(out / "claim.json")["filled"]}
    assert items["19"] == "unknown"
    for number in ("20", "32", "33"):
        assert items[number].startswith("unknown: "), number
    assert "unknown: whether these rows" in capsys.readouterr().out
    for text in (page, card, (out / "claim.json").read_text(), json.dumps(metrics)):
        assert "p12-1" not in text


def test_without_choices_nothing_is_chosen_and_the_threshold_is_said(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    rows = make_rows()
    path = write_rows(rows)
    metrics = run_scores(path)
    assert metrics["decision"]["rule"] == "half"
    assert metrics["operating_points"] == []
    assert metrics["chosen_on"] is None
    assert "recalibration" not in metrics
    assert (
        "nothing was chosen on other rows: the threshold is 0.5 by default"
        in (tmp_path / "out/report.html").read_text()
    )
    set_to = run_scores(path, "threshold=0.3", out="set")
    cases = [float(row["score_AD"]) >= 0.3 for row in rows if row["truth"] == "AD"]
    assert set_to["sensitivity"]["value"] == pytest.approx(np.mean(cases))
    assert set_to["decision"]["thresholds"] == {"AD": 0.3}
    assert "as set, not chosen on any rows" in set_to["decision"]["words"]


def test_choices_are_written_before_the_main_file_is_opened(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    broken = write_rows([row | {"score_AD": "?"} for row in make_rows()], "broken.csv")
    choices = write_rows(make_rows(first=100, seed=1), "val.csv")
    with pytest.raises(DataError, match="80 bad rows of 80"):
        run_scores(broken, f"choices={choices}")
    assert read_json(tmp_path / "out" / "operating_points.json")["chosen_on"]["n_patients"] == 40
    metrics = run_scores(write_rows(make_rows()), f"choices={choices}")
    assert metrics["decision"]["rule"] == "youden"
    assert metrics["chosen_on"]["where"] == "the file val.csv (80 images of 40 patients)"
    with pytest.raises(ConfigError, match=r"evaluated with other choices \(settings differ\)"):
        run_scores(write_rows(make_rows()), f"choices={choices}", "sensitivity_at_least=[0.9]")


def test_few_patients_of_the_choices_and_rows_left_out_are_said_on_terminal_and_page(
    run_scores: Callable[..., dict[str, Any]],
    write_rows: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    choices = write_rows(make_rows(9, first=100, seed=1), "val.csv")  # 3 of 9 patients are cases
    rows = make_rows()
    run_scores(write_rows([rows[0] | {"truth": ""}, *rows[1:]]), f"choices={choices}")
    page, captured = (tmp_path / "out" / "report.html").read_text(), capsys.readouterr()
    few = "the file val.csv has 6 patients of class CN, 3 patients of class AD (fewer than 10)"
    for expected in (few, "1 row without a truth left out"):
        assert expected in page
        assert expected in captured.out + captured.err
    # Choices that an earlier version wrote without these counts are the same choices.
    path = tmp_path / "out" / "operating_points.json"
    before = read_json(path)
    del before["chosen_on"]["patients_by_class"]
    path.write_text(json.dumps(before))
    run_scores(tmp_path / "scores.csv", f"choices={choices}")


@pytest.mark.usefixtures("real_report")
def test_the_page_says_that_a_file_chose_and_for_which_class_no_bound_could_be_set(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    choices = write_rows(make_rows(15, first=100, seed=1), "val.csv")  # 5 of 15 patients are cases
    metrics = run_scores(write_rows(make_rows()), f"choices={choices}")
    assert metrics["conformal"]["problems"][0]["unbounded"] == [{"class": "AD", "patients": 5, "needed": 9}]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No bound could be set for AD (5 patients; 9 needed): every set contains it." in page
    assert "Fitted on the file val.csv; whether that was before these rows were seen is unknown." in page
    assert "How images are combined was chosen on the file val.csv (" in page
    assert "Their bounds were set on the file val.csv (30 images of 15 patients)." in page
    assert not re.search("validation (split|patients)", page)
    tripod = (tmp_path / "out" / "tripod_ai.json").read_text()
    assert "as the number of patients allows, fitted on the file val.csv" in tripod
    assert "validation" not in (tmp_path / "out" / "MODEL_CARD.md").read_text()


def test_a_patient_of_two_sexes_is_refused_by_position(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path]
) -> None:
    rows = make_rows()
    blank = write_rows([row | {"sex": ""} if at in (1, 4) else row for at, row in enumerate(rows)], "blank.csv")
    run_scores(blank, out="blank")
    path = write_rows([row | {"sex": "M"} if at in (1, 4) else row for at, row in enumerate(rows)])
    message = "2 bad rows of 80: sex is not that of an earlier row of the same patient in lines 3, 7: correct the file"
    with pytest.raises(DataError, match=message):
        run_scores(path)


def test_patients_in_both_files_are_refused(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path]
) -> None:
    choices = write_rows(make_rows(first=37, seed=1), "val.csv")
    with pytest.raises(DataError, match="share 3 of 40 patients"):
        run_scores(write_rows(make_rows()), f"choices={choices}")


def test_patients_that_are_not_known_are_said(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_rows([{key: row[key] for key in row if key != "patient_id"} for row in make_rows()])
    with pytest.raises(ConfigError, match=r"no column patient_id: .* set patients=per_image"):
        run_scores(path)
    metrics = run_scores(path, "patients=per_image")
    assert metrics["source"]["patients_known"] is False
    assert metrics["patients_from"] == "per_image"
    assert "patients are unknown" in (tmp_path / "out" / "report.html").read_text()


# --- scores that are not probabilities


def test_margins_are_ranked_and_their_calibration_says_why_not(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    rows = make_rows()
    margins = [row | {"score_AD": repr(float(np.log(p / (1 - p))))} for row in rows for p in [float(row["score_AD"])]]
    plain, found = run_scores(write_rows(rows), out="plain"), run_scores(write_rows(margins, "margins.csv"))
    for name in ("auc", "average_precision"):
        assert found[name] == plain[name]
    for name in ("brier", "log_loss", "ece", "calibration_slope"):
        assert found[name]["value"] is None
        assert found[name]["reason"] == "the scores are not probabilities in [0, 1]"
    assert found["sensitivity"]["reason"] == "no threshold is known"
    assert found["decision"]["rule"] == "none"
    assert "scores outside [0, 1]" in (tmp_path / "out" / "report.html").read_text()
    at_zero = run_scores(write_rows(margins, "margins.csv"), "threshold=0", out="zero")
    for name in ("sensitivity", "specificity", "ppv"):
        assert at_zero[name] == plain[name]


def test_choices_on_margins_choose_thresholds_and_no_map(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    def widen(rows: Rows) -> Rows:
        return [row | {"score_AD": repr(10 * float(row["score_AD"]))} for row in rows]

    choices = write_rows(widen(make_rows(first=100, seed=1)), "val.csv")
    metrics = run_scores(write_rows(widen(make_rows())), f"choices={choices}")
    assert metrics["decision"]["rule"] == "youden"
    assert metrics["sensitivity"]["value"] is not None
    assert "recalibration" not in metrics
    assert read_json(tmp_path / "out" / "calibration.json")["reason"] == "the scores are not probabilities in [0, 1]"
    assert metrics["levels"]["patient"]["rule"] in ("mean", "max")
    inside = write_rows(make_rows(first=100, seed=1), "inside.csv")
    with pytest.raises(DataError, match="give both on one scale"):
        run_scores(write_rows(widen(make_rows())), f"choices={inside}", out="other")


@pytest.mark.usefixtures("real_report")
@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_a_report_of_margins_is_written(
    kind: str, run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    rows: Rows = []
    for patient in range(60):
        grade = patient % 3
        scores = {f"score_{name}": generator.normal() + 2 * (k == grade) for k, name in enumerate("abc")}
        truth: dict[str, Any] = {"truth": "abc"[grade]}
        if kind == "multilabel":
            truth = {f"label_{name}": int(k == grade) for k, name in enumerate("abc")}
        rows.append({"patient": f"p{patient}", **truth, **scores})
    metrics = run_scores(write_rows(rows), "least_patients=5")
    assert metrics["auc"]["value"] > 0.7
    assert metrics["brier"]["value"] is None
    assert (metrics["accuracy"]["value"] is None) == (kind == "multilabel")
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("confusion matrix and the subgroups use it" in page) == (kind == "multiclass")


def test_rows_that_do_not_sum_to_one_are_refused_or_normalized(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path]
) -> None:
    rows = [row | {"score_CN": repr(1 - float(row["score_AD"]))} for row in make_rows()]
    expected = run_scores(write_rows(rows), out="sum")["auc"]
    half = [row | {name: repr(float(row[name]) / 2) for name in ("score_AD", "score_CN")} for row in rows]
    half[0] = rows[0]
    path = write_rows(half)
    with pytest.raises(DataError, match=r"79 bad rows of 80: the scores do not sum to 1 in lines 3, 4, 5, 6, 7 and 74"):
        run_scores(path)
    metrics = run_scores(path, "sums=normalize")
    assert metrics["auc"] == expected
    assert metrics["source"]["normalized"] == 79


# --- the positive class


def test_the_positive_class_is_the_one_that_is_not_healthy(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "score": row["score_AD"]} for row in make_rows()]
    plain = [{key: row[key] for key in row if key != "score_AD"} for row in rows]
    assert run_scores(write_rows(plain))["auc"]["value"] > 0.6
    assert "positive class AD, negative CN" in capsys.readouterr().out
    renamed = [row | {"truth": {"AD": "left", "CN": "right"}[row["truth"]]} for row in plain]
    with pytest.raises(ConfigError, match="the positive class is not known: set positive=left or positive=right"):
        run_scores(write_rows(renamed))
    assert run_scores(write_rows(renamed), "positive=left", out="left")["auc"]["value"] > 0.6
    assert run_scores(write_rows(renamed), "positive=right", out="right")["auc"]["value"] < 0.4


def test_the_score_of_the_healthy_class_alone_is_refused(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path]
) -> None:
    rows = [{**row, "score_CN": repr(1 - float(row["score_AD"]))} for row in make_rows()]
    alone = write_rows([{key: row[key] for key in row if key != "score_AD"} for row in rows])
    with pytest.raises(ConfigError, match="the only column of scores is that of CN, the negative class"):
        run_scores(alone)
    assert run_scores(alone, "positive=CN")["auc"]["value"] > 0.6


def test_zero_and_one_take_the_name_of_the_score(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"truth": "1.0" if row["truth"] == "AD" else "0"} for row in make_rows()]
    run_scores(write_rows(rows))
    assert "positive class AD, negative no AD" in capsys.readouterr().out


# --- against=


def test_another_tool_is_compared_in_pairs_whatever_its_order(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows, generator = make_rows(), np.random.default_rng(1)
    worse = [row | {"score_AD": repr(float(generator.random()))} for row in rows]
    path = write_rows(rows)
    found = run_scores(path, f"against={write_rows(worse, 'other.csv')}")["comparison"]
    assert (found["first"], found["second"]) == ("scores.csv", "other.csv")
    auc = found["metrics"]["auc"]
    assert auc["difference"] > 0.1
    printed = capsys.readouterr().out
    assert "scores.csv minus other.csv, paired over patients; p corrected for" in printed
    line = next(line for line in printed.splitlines() if line.split()[:1] == ["auc"] and "p " in line)
    assert line.split()[1:4] == [f"{auc['difference']:+.3f}", f"[{auc['low']:+.3f},", f"{auc['high']:+.3f}]"]
    turned = run_scores(path, f"against={write_rows(worse[::-1], 'other.csv')}", out="turned")["comparison"]
    assert turned == found


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda rows: rows[1:], "1 row of predictions= missing in it and 0 not in"),
        (lambda rows: [rows[0] | {"truth": "CN"}, *rows[1:]], "some truths differ"),
        (lambda rows: [rows[0] | {"patient_id": "p99"}, *rows[1:]], "some patients differ"),
        (lambda rows: [{k: v for k, v in row.items() if k != "image_id"} for row in rows], "matched by image_id"),
    ],
)
def test_files_of_other_rows_are_not_compared(
    change: Callable[[Rows], Rows],
    part: str,
    run_scores: Callable[..., dict[str, Any]],
    write_rows: Callable[..., Path],
) -> None:
    other = write_rows(change(make_rows()), "other.csv")
    with pytest.raises(DataError, match=part):
        run_scores(write_rows(make_rows()), f"against={other}")


# --- refusals


def drop(*names: str) -> Callable[[Rows], Rows]:
    return lambda rows: [{key: value for key, value in row.items() if key not in names} for row in rows]


REFUSED: list[tuple[Callable[[Rows], Rows], tuple[str, ...], type[MedclsError], str]] = [
    (drop("score_AD"), (), DataError, "no column of scores among 5"),
    (drop("truth"), (), DataError, "no column of the truth"),
    (lambda rows: [row | {"score": 1} for row in rows], (), DataError, "a column score beside 1 columns"),
    (lambda rows: [row | {"label": "AD"} for row in rows], (), DataError, "columns truth and label mean the same"),
    (lambda rows: [row | {"label_x": 1} for row in rows], (), DataError, "a column truth beside 1 columns label_NAME"),
    (lambda rows: [row | {"weight": 1} for row in rows], (), DataError, "rows have no weights here"),
    (lambda rows: [row | {"truth": ""} for row in rows], (), DataError, "column truth is blank in every row"),
    (lambda rows: [row | {"truth": "AD"} for row in rows], (), ConfigError, "set classes="),
    (lambda rows: rows[:1] * 2, ("classes=[CN,AD]",), DataError, "image_id is that of an earlier row in line 3"),
    (list, ("kind=multilabel",), ConfigError, "kind=multilabel: the file has other columns of the truth"),
    (list, ("kind=ordinal",), ConfigError, "expected a column score_NAME for each class"),
    (list, ("positive=XY",), ConfigError, "positive=XY is not a label"),
    (list, ("classes=[AD,CN]", "positive=AD"), ConfigError, "positive=AD contradicts"),
    (list, ("sensitivity_at_least=[0.9]",), ConfigError, "set choices=FILE"),
    (list, ("robustness=true",), ConfigError, "robustness=True needs images"),
    (list, ("store=/nowhere",), ConfigError, "store=/nowhere needs images"),
    (lambda rows: [row | {"truth": k} for k, row in enumerate(rows)], ("threshold=1",), ConfigError, "no threshold"),
    (lambda rows: [row | {"score_XY": 0} for row in rows], (), DataError, "3 names in all"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "arguments", "error", "part"), REFUSED)
def test_files_and_settings_that_contradict_are_refused(
    change: Callable[[Rows], Rows],
    arguments: tuple[str, ...],
    error: type[MedclsError],
    part: str,
    run_scores: Callable[..., dict[str, Any]],
    write_rows: Callable[..., Path],
) -> None:
    with pytest.raises(error, match=part.replace("[", r"\[")):
        run_scores(write_rows(change(make_rows())), *arguments)


def test_all_bad_rows_are_named_at_once_by_position_and_never_by_value(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path]
) -> None:
    rows = make_rows()
    rows[0]["patient_id"] = ""
    rows[1]["truth"] = "Jane Doe"
    rows[2]["score_AD"] = "Jane Doe"
    rows[3]["score_AD"] = "inf"
    rows[4]["score_AD"] = "1_0"
    with pytest.raises(DataError) as caught:
        run_scores(write_rows(rows), "classes=[CN,AD]")
    said = str(caught.value)
    assert "5 bad rows of 80" in said
    assert "truth is not one of the classes (CN, AD) in line 3" in said
    assert "score_AD is not a finite number in lines 4, 5, 6" in said
    assert "patient_id is blank in line 2" in said
    assert "Jane" not in said


@pytest.mark.parametrize(
    ("name", "text", "error", "part"),
    [
        ("none.csv", None, MissingInputError, "no such file"),
        ("scores.txt", "a", DataError, "expected a .csv, .tsv or .parquet file"),
        ("scores.csv", "", DataError, "the file is empty"),
        ("scores.csv", "truth,score\n", DataError, "the table has no rows"),
        ("scores.csv", "truth,score\nAD,1,2\n", DataError, "1 line without the 2 cells of the header (line 2)"),
        ("scores.csv", "truth,score,score\nAD,1,2\n", DataError, "columns 3 repeat the name of another"),
        ("scores.csv", "truth,,score\nAD,1,2\n", DataError, "columns 2 have no name"),
        ("scores.csv", 'truth,score\n"AD,1\n', DataError, "not CSV in UTF-8"),
        ("scores.parquet", "truth,score\nAD,1\n", DataError, "not a whole Parquet file"),
    ],
)
def test_files_that_are_no_tables_are_refused(
    name: str,
    text: str | None,
    error: type[MedclsError],
    part: str,
    run_scores: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(error) as caught:
        run_scores(tmp_path / name)
    assert part in str(caught.value)


def test_lists_in_parquet_are_refused(run_scores: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    pq.write_table(pa.table({"truth": ["a"], "score": [[0.5, 0.5]]}), tmp_path / "scores.parquet")
    with pytest.raises(DataError, match="1 column of lists"):
        run_scores(tmp_path / "scores.parquet")


def test_the_folder_of_other_results_is_kept(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], compose_job: Compose, tmp_path: Path
) -> None:
    run_scores(write_rows(make_rows()))
    with pytest.raises(ConfigError, match="holds the results of other predictions"):
        run_scores(write_rows(make_rows(seed=3)))
    with pytest.raises(UsageError, match="out=DIR is missing"):
        evaluate_scores(compose_job("evaluate", "predictions=scores.csv"))
    with pytest.raises(ConfigError, match="run= and predictions= are both set"):
        compose_job("evaluate", "predictions=scores.csv", "run=r")
    with pytest.raises(ConfigError, match="belongs to predictions=FILE"):
        compose_job("evaluate", "run=r", "threshold=0.3")


def test_rows_without_a_truth_are_left_out_and_counted(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    rows = make_rows()
    for row in rows[:3]:
        row["truth"] = ""
    metrics = run_scores(write_rows(rows))
    assert (metrics["n_images"], metrics["n_patients"], metrics["source"]["left_out"]) == (77, 39, 3)
    assert "3 rows without a truth left out" in (tmp_path / "out" / "report.html").read_text()


def test_a_predicted_grade_in_one_column_is_a_regression_of_grades(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path]
) -> None:
    rows = [
        {"patient": f"p{k}", "truth": k % 4, "score": min(3, k % 4 + (k % 5 == 0))} for k in range(60)
    ]  # fmt: skip
    metrics = run_scores(write_rows(rows), "kind=ordinal")
    right = np.mean([row["truth"] == row["score"] for row in rows])
    assert metrics["accuracy"]["value"] == pytest.approx(right)
    assert metrics["quadratic_kappa"]["value"] > 0.8


def test_subgroups_come_from_the_files_columns(
    run_scores: Callable[..., dict[str, Any]], write_rows: Callable[..., Path]
) -> None:
    metrics = run_scores(write_rows(make_rows()), "subgroups=[sex,age,site]", "least_patients=5")
    groups = {(group["column"], group["value"]) for group in metrics["subgroups"]}
    assert {("sex", "F"), ("sex", "M"), ("age", "40–59"), ("age", "60–79")} == groups


def test_no_torch_is_loaded(write_rows: Callable[..., Path], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom medcls.cli.command_line import compose_job\n"
        "from medcls.evaluate.evaluate_scores import evaluate_scores\n"
        f"evaluate_scores(compose_job('evaluate', ['predictions={write_rows(make_rows())}', 'out={tmp_path / 'out'}', "
        "'report=false', 'replicates=1']))\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
