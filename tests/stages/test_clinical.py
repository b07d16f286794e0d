"""Clinical columns from the store's manifest to the model, and what happens where they are not as in training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from medcls.data.columns import read_columns
from medcls.data.splits import read_split, rows_of
from medcls.data.store import Store
from medcls.data.targets import encode_targets
from medcls.errors import ConfigError, DataError
from medcls.evaluate import robustness
from medcls.evaluate.evaluation_data import RowRequest, open_rows
from medcls.evaluate.image_views import Pass
from medcls.evaluate.split_predictions import compute_logits
from medcls.explain.explain import explain
from medcls.files import MANIFEST, MODEL, ODDS_RATIOS, read_json
from medcls.runs.model_file import read_card, read_model
from medcls.training.forward import PredictOptions
from medcls.training.state import StepRules

Run = Callable[..., Path]

BINARY = ("task=binary", "task.classes={0: 0, 1: 1, 2: 1}")


def read_training(store: Store, run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Design columns and targets of the training rows, made without the code under test."""
    rows = rows_of(read_split(store, "default")[0], "train")
    table = store.read("sex", "site", "age_years", rows=rows).to_pydict()
    age = np.array([np.nan if x is None else x for x in table["age_years"]])
    columns = {f"sex={x}": [y == x for y in table["sex"]] for x in "FM"}
    columns |= {f"site={x}": [y == x for y in table["site"]] for x in "abc"}
    columns["age_years"] = np.nan_to_num((age - np.nanmean(age)) / np.nanstd(age)).tolist()
    columns["age_years=missing"] = np.isnan(age).tolist()
    card = read_card(run / MODEL)
    assert card.clinical is not None
    design = np.array([columns[term.name] for term in card.clinical.terms], dtype=float).T
    return design, encode_targets(card.task, store.read_labels().take(pa.array(rows)))[0]


@pytest.mark.parametrize("task", ["binary", "multiclass", "ordinal", "grade_joint", "grade_regression"])
def test_every_task_trains_with_clinical_columns_and_is_evaluated(
    train_wide: Run, run_evaluate: Run, tmp_path: Path, task: str
) -> None:
    run = train_wide(tmp_path / "run", *(BINARY if task == "binary" else (f"task={task}",)))
    folder = run_evaluate(run, "split=test", "report=false")
    assert np.isfinite(np.array(read_columns(folder / "predictions.parquet", "logits").column(0).to_pylist())).all()


def test_the_card_says_how_columns_are_encoded_by_the_training_rows(wide_run: Path, clinical_store: Store) -> None:
    spec = read_card(wide_run / MODEL).clinical
    assert spec is not None
    rows = rows_of(read_split(clinical_store, "default")[0], "train")
    age = np.array([x for x in clinical_store.column("age_years", rows) if x is not None])
    assert [each.name for each in spec.levels] == ["sex", "site"]
    assert (spec.numbers[0].mean, spec.numbers[0].std) == (pytest.approx(age.mean()), pytest.approx(age.std()))
    assert spec.numbers[0].missing


def test_values_of_other_splits_change_no_bit_of_the_model(
    train_wide: Run, wide_run: Path, clinical_store: Store, tmp_path: Path, certify: Callable[[Path], None]
) -> None:
    copy = Path(shutil.copytree(clinical_store.folder, tmp_path / "store"))
    test = rows_of(read_split(clinical_store, "default")[0], "test")
    table = clinical_store.read(*clinical_store.column_names)
    age = np.array([np.nan if x is None else x for x in table.column("age_years").to_pylist()])
    age[test] = 99.0
    place = table.column_names.index("age_years")
    pq.write_table(table.set_column(place, "age_years", pa.array(age, from_pandas=True)), copy / MANIFEST)
    certify(copy)
    again, _ = read_model(train_wide(tmp_path / "run", *BINARY, f"store={copy}") / MODEL)
    before, _ = read_model(wide_run / MODEL)
    assert all((again.state_dict()[name] == value).all() for name, value in before.state_dict().items())


def test_the_wide_part_starts_at_the_logistic_regression(
    train_wide: Run, clinical_store: Store, tmp_path: Path
) -> None:
    run = train_wide(tmp_path / "run", *BINARY, "model=clinical", "clinical.lr_scale=0", "optimizer.lr=1e-9")
    model, card = read_model(run / MODEL)
    assert (card.architecture, list(model.stages)) == ("clinical", ["head"])
    design, targets = read_training(clinical_store, run)
    reference = LogisticRegression(C=1 / (1e-3 * len(design)), tol=1e-10, max_iter=1000).fit(design, targets[:, 0])
    assert model.wide is not None
    np.testing.assert_allclose(model.wide.weight.detach(), reference.coef_, atol=1e-4)
    np.testing.assert_allclose(model.head.linear.bias.detach(), reference.intercept_, atol=1e-4)


def test_the_wide_part_of_a_value_starts_at_the_ridge_in_its_unit(
    train_wide: Run, clinical_store: Store, tmp_path: Path
) -> None:
    settings = ("task=regression", "model=clinical", "clinical.lr_scale=0", "optimizer.lr=1e-9")
    model, _ = read_model(train_wide(tmp_path / "run", *settings) / MODEL)
    design, targets = read_training(clinical_store, tmp_path / "run")
    reference = Ridge(alpha=1e-3 * len(design)).fit(design, targets[:, 0])
    assert model.wide is not None
    np.testing.assert_allclose(model.wide.weight[0].detach(), reference.coef_, atol=1e-4)
    bias = model.head.linear.bias.detach() * model.head.scale + model.head.shift
    np.testing.assert_allclose(bias, reference.intercept_, atol=1e-4)


def test_the_wide_part_is_trained_also_where_the_network_is_frozen(train_wide: Run, tmp_path: Path) -> None:
    settings = ("transfer=frozen", "model.weights=null", "clinical.lr_scale=1")
    first, second = (
        read_model(train_wide(tmp_path / name, *BINARY, *settings, f"optimizer.lr={lr}") / MODEL)[0]
        for name, lr in (("slow", 1e-9), ("fast", 1e-2))
    )
    assert first.wide is not None
    assert second.wide is not None
    assert not np.allclose(first.wide.weight.detach(), second.wide.weight.detach(), atol=1e-4)


def test_cached_features_give_the_same_wide_part(train_wide: Run, tmp_path: Path) -> None:
    settings = ("transfer=frozen", "augment=none", "clinical.lr_scale=1", "trainer.max_steps=8")
    live, cached = (
        read_model(train_wide(tmp_path / name, *BINARY, *settings, f"transfer.features={name}") / MODEL)[0]
        for name in ("live", "cached")
    )
    assert live.wide is not None
    assert cached.wide is not None
    torch.testing.assert_close(cached.wide.weight, live.wide.weight)


def test_the_columns_change_the_predictions(wide_run: Path, run_evaluate: Run, clinical_store: Store) -> None:
    model, card = read_model(wide_run / MODEL)
    opened = open_rows(RowRequest("val"), wide_run, card)
    assert opened.clinical is not None
    predict = partial(compute_logits, opened, Pass("", model, None), PredictOptions(StepRules(), 64), split="val")
    with_columns = predict()
    expected = opened.clinical @ model.wide.weight.detach().numpy().T  # type: ignore[union-attr]
    opened.clinical = np.zeros_like(opened.clinical)
    np.testing.assert_allclose(with_columns - predict(), expected, atol=1e-5)


@pytest.mark.parametrize("task", ["binary", "ordinal", "multilabel", "regression"])
def test_odds_ratios_are_written_for_each_contrast_and_column(train_wide: Run, tmp_path: Path, task: str) -> None:
    run = train_wide(tmp_path / "run", *(BINARY if task == "binary" else (f"task={task}",)))
    found, card = read_json(run / ODDS_RATIOS), read_card(run / MODEL)
    assert card.clinical is not None
    assert [term["name"] for term in found["terms"]] == [term.name for term in card.clinical.terms]
    assert found["measure"] == ("coefficient" if task == "regression" else "odds ratio")
    names = {"binary": ["1+2 against 0"], "ordinal": ["a higher grade, from each grade on"]}
    names |= {"multilabel": ["bright", "low"], "regression": ["value"]}
    assert [each["name"] for each in found["contrasts"]] == names[task]
    for contrast in found["contrasts"]:
        for part in (contrast["model"], contrast["train"], contrast["val"]):
            assert len(part) == len(found["terms"])
        assert all(entry["value"] is not None for entry in contrast["train"])


def test_the_model_of_the_columns_alone_has_the_ratios_of_its_regression(train_wide: Run, tmp_path: Path) -> None:
    run = train_wide(tmp_path / "run", *BINARY, "model=clinical", "clinical.lr_scale=0", "optimizer.lr=1e-9")
    (contrast,) = read_json(run / ODDS_RATIOS)["contrasts"]
    assert [entry["value"] for entry in contrast["train"]] == pytest.approx(contrast["model"], rel=1e-4)


def test_a_run_without_columns_writes_none(trained: Path) -> None:
    assert not (trained / ODDS_RATIOS).exists()


def test_the_report_shows_the_ratios(wide_run: Path, run_evaluate: Run, tmp_path: Path) -> None:
    folder = run_evaluate(Path(shutil.copytree(wide_run, tmp_path / "run")), "split=val")
    assert "sex: M against F" in (folder / "report.html").read_text()
    assert "sex: M against F" in (folder / "MODEL_CARD.md").read_text()


def test_the_table_of_stages_has_the_wide_part(
    train_wide: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_wide(tmp_path / "run", *BINARY)
    printed = capsys.readouterr().err
    assert "clinical columns: sex=" in printed
    assert [line.split()[2] for line in printed.splitlines() if line.startswith("wide ")] == ["5"]


def test_two_runs_with_and_without_columns_are_compared(
    train_wide: Run, wide_run: Path, run_train: Run, run_evaluate: Run, clinical_store: Store, tmp_path: Path
) -> None:
    both = Path(shutil.copytree(wide_run, tmp_path / "both"))
    image = run_train(tmp_path / "image", f"store={clinical_store.folder}", *BINARY)
    metrics = read_json(run_evaluate(both, "split=test", f"against={image}", "report=false") / "metrics.json")
    assert (metrics["comparison"]["first"], metrics["comparison"]["second"]) == ("both", "image")


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("clinical.categorical=[patient_id]", "identifies patients or images"),
        ("clinical.categorical=[sexx]", "nearest: sex"),
        ("clinical.categorical=[modality]", "modality is missing in every training row: remove it"),
    ],
)
def test_columns_that_cannot_be_used_stop_before_the_run_is_begun(
    train_wide: Run, tmp_path: Path, argument: str, part: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=part):
        train_wide(tmp_path / "run", *BINARY, argument)
    assert not (tmp_path / "run" / MODEL).exists()


def test_an_external_store_must_have_the_columns_and_their_levels(
    wide_run: Path,
    run_evaluate: Run,
    tmp_path: Path,
    write_source: Callable[..., Path],
    run_prepare: Any,
    draw_picture: Any,
) -> None:
    def rename(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"patient_id": f"x{row['patient_id']}", "sex": "F", "age_years": 50, "site": "d"} for row in rows]

    raw = write_source(tmp_path / "raw", classes=("0", "1", "2"), patients=6, rewrite=rename)
    for number, path in enumerate(sorted((raw / "images").iterdir())):
        cv2.imwrite(str(path), draw_picture(number % 3, 1000 + number))
    without = run_prepare(raw, tmp_path / "without", "split.test=0", "split.val=0")
    run = Path(shutil.copytree(wide_run, tmp_path / "run"))
    with pytest.raises(DataError, match=r"has no column site.*prepare it with columns=\[site\]"):
        run_evaluate(run, f"store={without.folder}", "split=all")
    other = run_prepare(raw, tmp_path / "other", "split.test=0", "split.val=0", "columns=[site]")
    with pytest.raises(
        DataError, match="12 of 12 rows of split=all have no values: site has a value that was not seen in training"
    ):
        run_evaluate(run, f"store={other.folder}", "split=all")
    assert not list(run.glob("evaluation/other*/opened.jsonl"))


# --- explanations


def test_maps_are_of_the_image_with_the_columns_held(
    wide_run: Path, clinical_store: Store, compose_job: Callable[..., Any], tmp_path: Path
) -> None:
    settings = ("method=occlusion", "device=cpu", "worst=2", "sanity_images=1")
    explain(compose_job("explain", f"run={wide_run}", f"out={tmp_path / 'out'}", *settings))
    found = read_json(tmp_path / "out" / "explanations.json")
    assert "held fixed" in found["found"][-1]
    assert "sex, site, age_years" in found["found"][-1]
    predicted = read_columns(wide_run / "evaluation" / "store-val" / "predictions.parquet", "image_id", "y_score")
    scores = dict(zip(predicted.column(0).to_pylist(), predicted.column(1).to_pylist(), strict=True))
    for row in found["images"]:
        (score,) = scores[row["image_id"]]
        assert row["score"] == pytest.approx(score, abs=1e-4)


def test_a_run_that_looks_at_no_image_has_nothing_to_explain_or_to_blur(
    train_wide: Run, run_evaluate: Run, compose_job: Callable[..., Any], tmp_path: Path
) -> None:
    run = train_wide(tmp_path / "run", *BINARY, "model=clinical")
    with pytest.raises(ConfigError, match="takes no images"):
        explain(compose_job("explain", f"run={run}", "device=cpu"))
    with pytest.raises(ConfigError, match="does not take"):
        run_evaluate(run, "robustness=true")


def test_robustness_and_shortcuts_take_the_columns_along(
    wide_run: Path, run_evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robustness, "PERTURBATIONS", {"noise": ("sd", (0.0,))})
    run = Path(shutil.copytree(wide_run, tmp_path / "run"))
    metrics = read_json(run_evaluate(run, "robustness=true", "shortcuts=[site]", "report=false") / "metrics.json")
    (point,) = metrics["robustness"]["curves"]["noise"]["points"]
    assert point["value"] == pytest.approx(metrics["robustness"]["unchanged"]["value"])
    assert "site" in metrics["shortcuts"]


# --- known odds ratios

TRUE = {"site=b": np.log(3.0), "age_years": np.log(0.4)}


@pytest.fixture
def make_known(
    write_labels: Callable[..., None],
    draw_picture: Callable[..., Any],
    run_prepare: Callable[..., Store],
    tmp_path: Path,
) -> Callable[..., Store]:
    """600 patients whose log odds are what site, age and (where signal is not 0) the picture add."""

    def make(*, signal: float) -> Store:
        raw, generator, rows = tmp_path / "raw", np.random.default_rng(0), []
        (raw / "images").mkdir(parents=True)
        for number in range(600):
            picture, site, age = int(generator.integers(0, 2)), generator.integers(0, 2), generator.normal()
            odds = -0.3 + TRUE["site=b"] * site + TRUE["age_years"] * age + signal * (picture - 0.5)
            row = {"path": f"images/{number}.png", "patient_id": str(number), "site": "ab"[site], "picture": picture}
            row |= {"label": int(generator.random() < 1 / (1 + np.exp(-odds))), "age_years": round(50 + 10 * age, 3)}
            cv2.imwrite(str(raw / str(row["path"])), draw_picture(2 * picture, number))
            rows.append(row)
        write_labels(raw / "labels.csv", rows)
        return run_prepare(raw, tmp_path / "store", "split.test=0.1", "split.val=0.4", "columns=[site,picture]")

    return make


def fit_known(store: Store, split: str, *, signal: float) -> list[float]:
    """The odds ratios on a split by scikit-learn, with the picture itself as a column."""
    rows, train = (rows_of(read_split(store, "default")[0], name) for name in (split, "train"))
    site, age, picture = (store.column(name, rows) for name in ("site", "age_years", "picture"))
    scaled = np.array(age) / np.std(store.column("age_years", train))
    columns = [[x == "b" for x in site], scaled, *([[x == "1" for x in picture]] if signal else [])]
    labels = store.read_labels().take(pa.array(rows)).column("label").to_pylist()
    fit = LogisticRegression(C=1e6, max_iter=10_000).fit(np.array(columns, dtype=float).T, labels)
    ratios: list[float] = np.exp(fit.coef_[0, :2]).tolist()
    return ratios


@pytest.mark.slow
@pytest.mark.parametrize("signal", [0.0, 2.0], ids=["images say nothing", "images say something of their own"])
def test_known_odds_ratios_come_back_through_images(
    make_known: Callable[..., Store], run_train: Run, run_evaluate: Run, tmp_path: Path, signal: float
) -> None:
    store = make_known(signal=signal)
    # A frozen network of random numbers tells the two pictures apart, and its features are computed once.
    settings = ("task=binary", "transfer=frozen", "augment=none", "trainer.epochs=20", "trainer.max_steps=null")
    columns = ("clinical.categorical=[site]", "clinical.numeric=[age_years]", "clinical.reference={site: a}")
    both = run_train(tmp_path / "both", f"store={store.folder}", *settings, *columns)
    (contrast,) = read_json(both / ODDS_RATIOS)["contrasts"]
    for split in ("train", "val"):
        # A sample is off the truth by chance; what the network makes of the picture does as well as the picture.
        known = fit_known(store, split, signal=signal)
        assert [entry["value"] for entry in contrast[split]] == pytest.approx(known, rel=0.15)
    for entry, true in zip(contrast["val"], TRUE.values(), strict=True):
        assert entry["low"] < np.exp(true) < entry["high"]
    image = run_train(tmp_path / "image", f"store={store.folder}", *settings)
    metrics = read_json(run_evaluate(both, f"against={image}", "split=val", "report=false") / "metrics.json")
    (gain,) = metrics["comparison"]["auc"].values()
    assert gain["low"] > 0
