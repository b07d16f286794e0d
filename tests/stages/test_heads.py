"""Heads by configuration: from store to report, and through every command that reads the model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC

from medcls.config import TrainJob
from medcls.data.splits import read_split, rows_of
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.evaluate.evaluation_data import list_lineage_notes
from medcls.explain.explain import explain
from medcls.files import read_json, read_json_lines, sha256_file
from medcls.models.heads import LinearHead
from medcls.predict.predict import predict
from medcls.runs.model_file import read_card, read_model
from medcls.train.solved_head import fill_head
from medcls.train.svm import fit_svm

Run = Callable[..., Path]
SVM = ("transfer=frozen", "augment=none", "model.head=svm")
BINARY = ("task=binary", "task.classes={0: 0, 1: 1, 2: 1}")
MLP = ("transfer=frozen", "augment=none", "model.head=mlp", "model.head_width=12", "model.dropout=0.2")


def features_of(run: Path, rows: np.ndarray) -> np.ndarray:
    (folder,) = (run.parent / "features").iterdir()
    values: np.ndarray = np.load(folder / "features.npy")[rows]
    return values.astype(np.float64)


@pytest.mark.parametrize("task", [(), BINARY], ids=["multiclass", "binary"])
def test_svm_is_the_pipeline_of_scikit_learn_on_the_features(
    run_train: Run, run_evaluate: Run, store: Store, tmp_path: Path, task: tuple[str, ...]
) -> None:
    run = run_train(tmp_path / "run", *SVM, *task)
    (row,) = read_json_lines(run / "metrics.jsonl")
    chosen = row["svm"]
    assert [entry["C"] for entry in chosen["table"]] == [10.0**e for e in range(-3, 5)]
    assert chosen["C"] == max(chosen["table"], key=lambda entry: entry["auc"])["C"]
    splits = read_split(store, "default")[0]
    train, val = (rows_of(splits, name) for name in ("train", "val"))
    labels = np.array([int(label) for label in store_labels(store)])
    targets = np.minimum(labels, 1) if task else labels
    machine = LinearSVC(C=chosen["C"], class_weight="balanced", dual=False, tol=1e-10, max_iter=100_000)
    pipeline = make_pipeline(Normalizer(), machine).fit(features_of(run, train), targets[train])
    decisions = pipeline.decision_function(features_of(run, val)).reshape(len(val), -1)
    model, card = read_model(run / "model.safetensors")
    with torch.inference_mode():
        logits = model(torch.from_numpy(store.images(val))).double().numpy()
    np.testing.assert_allclose(logits, chosen["logit"]["slope"] * decisions + chosen["logit"]["shift"], atol=1e-3)
    assert (card.head, card.head_width, card.training["best_epoch"]) == ("svm", 0, 1)
    metrics = read_json(run_evaluate(run, "split=val") / "metrics.json")
    assert metrics["auc"]["value"] == pytest.approx(row["val_auc"], abs=1e-6)
    assert (run / "patients.parquet").is_file()


def store_labels(store: Store) -> list[str]:
    import pyarrow.parquet as pq

    labels: list[str] = pq.read_table(store.folder / "labels.parquet").column("label").to_pylist()
    return labels


def test_svm_is_the_same_to_the_bit_and_does_not_look_at_validation(
    run_train: Run, tmp_path: Path, copy_store: Callable[..., Path], certify: Callable[[Path], None], store: Store
) -> None:
    first, second = (run_train(tmp_path / name, *SVM) for name in ("a", "b"))
    assert sha256_file(first / "model.safetensors") == sha256_file(second / "model.safetensors")
    folder = copy_store()
    val = rows_of(read_split(store, "default")[0], "val")
    shard = np.load(folder / "shard-00000.npy")
    shard[val] = 255 - shard[val]
    np.save(folder / "shard-00000.npy", shard)
    certify(folder)
    other = run_train(tmp_path / "c", *SVM, f"store={folder}")
    states = [read_model(run / "model.safetensors")[0].state_dict() for run in (first, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    (one,), (two,) = (read_json_lines(run / "metrics.jsonl") for run in (first, other))
    assert one["svm"] == two["svm"]
    assert one["val_loss"] != two["val_loss"]


def test_svm_folds_keep_patients_whole(run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medcls.train import solved_head

    seen = {}
    original = solved_head.assign_folds

    def record(data, targets, *, seed):  # type: ignore[no-untyped-def]
        folds = original(data, targets, seed=seed)
        seen.update(folds=folds, patients=data.store.column("patient_id", data.train.rows), targets=targets[:, 0])
        return folds

    monkeypatch.setattr(solved_head, "assign_folds", record)
    run_train(tmp_path / "run", *SVM)
    for patient in set(seen["patients"]):
        assert len({f for f, p in zip(seen["folds"], seen["patients"], strict=True) if p == patient}) == 1
    # Four patients of each of three classes in train: as many folds.
    assert set(seen["folds"].tolist()) == {0, 1, 2, 3}
    for fold in range(4):
        assert set(seen["targets"][seen["folds"] == fold].tolist()) == {0, 1, 2}


def test_views_of_an_image_are_further_rows_of_the_svm(run_train: Run, tmp_path: Path) -> None:
    run = run_train(tmp_path / "run", "transfer=frozen", "augment=radiograph", "transfer.views=2", "model.head=svm")
    one = run_train(tmp_path / "one", "transfer=frozen", "augment=radiograph", "transfer.views=1", "model.head=svm")
    weights = [read_model(r / "model.safetensors")[0].head.linear.weight for r in (run, one)]
    assert not torch.equal(*weights)


def test_two_classes_have_the_same_probabilities_with_one_logit_and_with_two() -> None:
    features = np.random.default_rng(0).normal(size=(60, 5))
    targets = (features[:, 0] + 0.5 > 0).astype(np.int64)
    svm = fit_svm(features, targets, folds=np.arange(60) % 3, costs=[1.0])
    one, two = LinearHead(5, 1), LinearHead(5, 2)
    fill_head(one, svm)
    fill_head(two, svm)
    images = torch.from_numpy(features).float()
    with torch.no_grad():
        expected, found = one.eval()(images).sigmoid()[:, 0], two.eval()(images).softmax(dim=1)[:, 1]
    assert expected.std() > 0.1
    assert svm.shift != 0
    torch.testing.assert_close(found, expected)


def test_two_labels_as_classes_are_told_apart(run_train: Run, tmp_path: Path) -> None:
    two = "task.classes={0: 0, 1: 0, 2: 1}"
    runs = [run_train(tmp_path / kind, *SVM, f"task={kind}", two) for kind in ("binary", "multiclass")]
    rows = [read_json_lines(run / "metrics.jsonl")[0] for run in runs]
    assert rows[0]["val_auc"] == pytest.approx(rows[1]["val_auc"])
    assert rows[0]["val_accuracy"] == pytest.approx(rows[1]["val_accuracy"])


def test_a_machine_of_other_size_than_the_head_is_refused() -> None:
    features = np.random.default_rng(0).normal(size=(60, 5))
    svm = fit_svm(features, np.arange(60) % 2, folds=np.arange(60) % 3, costs=[1.0])
    with pytest.raises(ValueError, match="a machine of"):
        fill_head(LinearHead(5, 3), svm)


def test_a_class_of_one_patient_is_refused_in_one_line(
    run_train: Run, tmp_path: Path, write_source: Run, run_prepare: Callable[..., Store]
) -> None:
    raw = write_source(tmp_path / "raw", patients=3, classes=("0", "1", "2"), rewrite=one_patient_each)
    store = run_prepare(raw, tmp_path / "store", "split.on_leak=report")
    with pytest.raises(DataError, match="has one patient in train"):
        run_train(tmp_path / "run", *SVM, f"store={store.folder}")


def one_patient_each(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The left images train, the right ones validate."""
    return [row | {"split": "train" if row["side"] == "L" else "val"} for row in rows]


@pytest.mark.parametrize("head", [SVM, MLP], ids=["svm", "mlp"])
def test_every_command_takes_the_model(
    run_train: Run, run_evaluate: Run, compose_job: Callable[..., object], source: Path, tmp_path: Path,
    head: tuple[str, ...],
) -> None:  # fmt: skip
    run = run_train(tmp_path / "run", *head, *BINARY)
    assert (run_evaluate(run, "split=test") / "report.html").is_file()
    out = tmp_path / "out.parquet"
    predict(compose_job("predict", f"run={run}", f"source={source / 'images'}", f"out={out}", "device=cpu"))  # type: ignore[arg-type]
    assert out.is_file()
    settings = ("split=val", "method=gradcam", "worst=1", "device=cpu", "sanity_images=0")
    explain(compose_job("explain", f"run={run}", *settings))  # type: ignore[arg-type]
    (page,) = (run / "evaluation").glob("*/explanation-gradcam/*.html")
    assert page.is_file()


def test_mlp_is_trained_on_cached_features_and_through_the_network(run_train: Run, tmp_path: Path) -> None:
    cached = run_train(tmp_path / "cached", *MLP, "trainer.max_steps=4")
    live = run_train(tmp_path / "live", *MLP, "trainer.max_steps=4", "transfer.features=live")
    heads = [read_model(run / "model.safetensors")[0].head for run in (cached, live)]
    assert heads[0].before[0].weight.shape == (12, 512)
    for name, value in heads[0].state_dict().items():
        torch.testing.assert_close(value, heads[1].state_dict()[name], rtol=1e-4, atol=1e-5)
    card = read_card(cached / "model.safetensors")
    assert (card.head, card.head_width) == ("mlp", 12)
    assert run_train(tmp_path / "tuned", *MLP, "transfer=finetune").is_dir()


def test_a_fine_tuned_run_gives_its_features_to_an_svm(
    run_train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = run_train(tmp_path / "tuned", "augment=none")
    with pytest.raises(DataError, match=r"biased transfer.*transfer.val_seen=allow"):
        run_train(tmp_path / "refused", *SVM, f"model.weights={tuned}")
    run = run_train(tmp_path / "svm", *SVM, f"model.weights={tuned}", "transfer.val_seen=allow")
    err = capsys.readouterr().err
    assert "val is not held out for this run: its ancestor tuned was selected on it" in err
    assert "the map to probabilities is fitted on the validation rows" in err
    (row,) = read_json_lines(run / "metrics.jsonl")
    assert '"fitted_on": "val"' in json.dumps(row)
    assert '"fitted_on": "train, held out by fold"' in json.dumps(
        read_json_lines(run_train(tmp_path / "plain", *SVM) / "metrics.jsonl")
    )
    ours, theirs = (read_model(r / "model.safetensors")[0].backbone.state_dict() for r in (run, tuned))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    card = read_card(run / "model.safetensors")
    assert card.ancestors
    (note,) = list_lineage_notes(card)
    assert "val is not held out" in note
    assert list_lineage_notes(read_card(tuned / "model.safetensors")) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["task=ordinal"], "task.kind=ordinal: only binary and multiclass"),
        (["task=regression", "task.label=hurt"], "task.kind=regression: only binary and multiclass"),
        (["transfer=finetune"], "model.weights=RUN transfer=frozen model.head=svm"),
        (["augment=radiograph"], "augment=none crop=none, or transfer.views=K"),
        (["transfer.features=live"], "fixed views"),
        (["clinical.numeric=[age_years]"], "takes only images"),
        (["task.loss=focal"], "task.loss=focal has no effect"),
        (["task.sampler=balanced"], "task.sampler=balanced has no effect"),
        (["model.head=svn"], "nearest: svm"),
        (["model.head=mlp", "model.head_width=0"], ">= 1"),
        (["model.head=linear", "model.head_width=7"], "only model.head=mlp has it, not linear"),
    ],
)
def test_what_a_head_cannot_do_is_refused(
    compose_train: Callable[..., TrainJob], tmp_path: Path, arguments: list[str], part: str
) -> None:
    given = {a.partition("=")[0]: a for a in (*SVM, *arguments)}
    with pytest.raises(ConfigError, match=part):
        compose_train(tmp_path / "run", *given.values())


# --- the linear head, solved

SOLVED = ("transfer=frozen", "augment=none")


@pytest.mark.parametrize(
    "task",
    [
        (),
        BINARY,
        ("task=multilabel", "task.labels=[bright,low]"),
        ("task=ordinal",),
        ("task=regression", "task.label=hurt"),
        ("task=grade_classification", "task.class_weights=balanced"),
    ],
    ids=["multiclass", "binary", "multilabel", "ordinal", "regression", "grades"],
)
def test_frozen_head_is_solved_for_every_kind_of_task(
    run_train: Run, run_evaluate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: tuple[str, ...]
) -> None:
    run = run_train(tmp_path / "run", *SOLVED, *task)
    assert "the head is solved, not trained" in capsys.readouterr().err
    (row,) = read_json_lines(run / "metrics.jsonl")
    assert row["logistic"]["C"] == min(row["logistic"]["table"], key=lambda entry: entry["loss"])["C"]
    card = read_card(run / "model.safetensors")
    assert (card.head, card.training["best_epoch"]) == ("linear", 1)
    metrics = read_json(run_evaluate(run, "split=val") / "metrics.json")
    name = "mae" if "task=regression" in task else "auc"
    assert metrics[name]["value"] == pytest.approx(row[f"val_{name}"], abs=1e-5)


def test_solved_head_is_logistic_regression_on_the_training_rows_alone(
    run_train: Run, store: Store, tmp_path: Path
) -> None:
    first, second = (run_train(tmp_path / name, *SOLVED) for name in ("a", "b"))
    assert sha256_file(first / "model.safetensors") == sha256_file(second / "model.safetensors")
    (row,) = read_json_lines(first / "metrics.jsonl")
    train = rows_of(read_split(store, "default")[0], "train")
    targets = np.array([int(label) for label in store_labels(store)])[train]
    machine = LogisticRegression(C=row["logistic"]["C"], max_iter=5000, tol=1e-8)
    expected = make_pipeline(StandardScaler(), machine).fit(features_of(first, train), targets)
    head = read_model(first / "model.safetensors")[0].head
    with torch.inference_mode():
        found = head(torch.from_numpy(features_of(first, train)).float()).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, expected.predict_proba(features_of(first, train)), atol=2e-3)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["task.loss=focal"], "task.loss=focal"),
        (["task.sampler=balanced"], "task.sampler"),
        (["clinical.categorical=[side]"], r"clinical\.\*"),
    ],
)
def test_head_without_a_closed_form_is_trained_and_says_why(
    run_train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    run = run_train(tmp_path / "run", *SOLVED, *arguments)
    assert re.search(rf"the head is trained, not solved: .*{why}", capsys.readouterr().err)
    assert "train_loss" in read_json_lines(run / "metrics.jsonl")[0]


def test_linear_head_is_trained_if_asked(run_train: Run, tmp_path: Path) -> None:
    run = run_train(tmp_path / "run", *SOLVED, "model.head=linear")
    assert "train_loss" in read_json_lines(run / "metrics.jsonl")[0]


def test_solved_head_needs_two_patients_of_each_class(
    run_train: Run, copy_store: Callable[..., Path], certify: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = copy_store()
    train = rows_of(read_split(Store(folder), "default")[0], "train")
    table, patients = pq.read_table(folder / "labels.parquet"), Store(folder).column("patient_id")
    labels = table.column("label").to_pylist()
    kept = next(patients[row] for row in train if labels[row] == "2")
    fewer = [
        "1" if row in train and labels[row] == "2" and patients[row] != kept else labels[row]
        for row in range(len(labels))
    ]
    table = table.set_column(table.column_names.index("label"), "label", pa.array(fewer))
    pq.write_table(table, folder / "labels.parquet")
    certify(folder)
    with pytest.raises(DataError, match=r"class 2 has one patient in train, .*set model.head=linear"):
        run_train(tmp_path / "run", *SOLVED, f"store={folder}")
