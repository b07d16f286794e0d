"""A store of volumes through training, evaluation and explanation, by a network of one convolution."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file, save

from medcls.config import TrainJob
from medcls.data.loaders import EpochSampler, build_loader
from medcls.data.manifest import column_list, read_table
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.evaluate import baseline as baseline_file
from medcls.evaluate.robustness import PERTURBATIONS
from medcls.explain.explain import explain
from medcls.files import read_json, sha256_file, write_json
from medcls.predict.predict import predict
from medcls.runs.model_file import read_card, read_model
from medcls.train.network import check_dims, choose_normalization
from tests.stages.conftest import open_training

TINY = ("model.name=tiny3d", "augment=none")
Train = Callable[..., Path]


def test_volumes_are_learnt_from_and_evaluated(
    volume_store: Store, run_train: Train, run_evaluate: Callable[..., Path], tiny3d: None, tmp_path: Path
) -> None:
    settings = (f"store={volume_store.folder}", "trainer.epochs=25", "trainer.max_steps=null", "optimizer.lr=0.02")
    run = run_train(tmp_path / "run", *TINY, *settings)
    card = read_card(run / "model.safetensors")
    assert card.preprocess == volume_store.spec
    assert (card.normalize, card.in_channels) == ("z_score", 1)
    folder = run_evaluate(run, "split=test", "gallery=1", "shortcuts=[sex]")
    metrics = read_json(folder / "metrics.json")
    assert metrics["n_images"] == 6
    assert metrics["auc"]["value"] > 0.9
    assert "data:image/jpeg;base64," in (folder / "report.html").read_text()


@pytest.mark.parametrize("dtype", ["uint16", "float16", "int16"])
def test_every_stored_type_is_read_and_comes_back(
    make_volume_store: Callable[..., Store], run_train: Train, tiny3d: None, tmp_path: Path, dtype: str
) -> None:
    hounsfield = ("image.intensity=hounsfield", "image.nifti_unit=HU") if dtype == "int16" else ()
    store = make_volume_store(f"image.dtype={dtype}", *hounsfield, hounsfield=dtype == "int16")
    run = run_train(tmp_path / "run", *TINY, f"store={store.folder}", "model.normalize=min_max")
    model, card = read_model(run / "model.safetensors")
    assert (card.normalize, model.normalize.kind) == ("min_max", "min_max")
    assert (model.normalize.low, model.normalize.high) == store.spec.value_range
    sheet = cv2.imread(str(run / "contact_sheet.png"))
    assert sheet is not None
    assert sheet[20:130, :112].std() > 0.5


def test_the_batch_holds_what_is_stored(compose_train: Callable[..., TrainJob], volume_store: Store) -> None:
    data = open_training(compose_train(Path("run"), *TINY, f"store={volume_store.folder}"))
    batch = data.train.__getitems__([(0, 1), (0, 0)])
    assert batch.images.shape == (2, 1, 16, 16, 16)
    np.testing.assert_array_equal(batch.images[0].numpy(), volume_store.image(int(data.train.rows[1])))


def test_what_values_mean_decides_their_normalisation(make_volume_store: Callable[..., Store], store: Store) -> None:
    hounsfield = make_volume_store(
        "image.dtype=int16", "image.intensity=hounsfield", "image.nifti_unit=HU", hounsfield=True
    )
    assert choose_normalization("auto", hounsfield.spec) == "stored"
    assert choose_normalization("z_score", hounsfield.spec) == "z_score"
    assert choose_normalization("auto", store.spec) == "imagenet"
    with pytest.raises(ConfigError, match="normalize=z_score: images are always normalised like ImageNet's"):
        choose_normalization("z_score", store.spec)


def test_network_and_store_of_other_dimensions_are_refused(
    run_train: Train, store: Store, volume_store: Store, tiny3d: None, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"model.name=tiny3d takes volumes, the store holds images \(1, 32, 32\)"):
        run_train(tmp_path / "run", *TINY)
    assert not (tmp_path / "run").exists()


def test_network_for_images_takes_no_volumes() -> None:
    with pytest.raises(DataError, match=r"resnet18 takes images, the store holds volumes \(1, 16, 16, 16\)"):
        check_dims("resnet18", (1, 16, 16, 16))


def test_what_volumes_do_not_have_is_refused_in_one_line(
    volume_store: Store,
    run_train: Train,
    compose_job: Callable[..., object],
    tiny3d: None,
    tmp_path: Path,
) -> None:
    run = run_train(tmp_path / "run", *TINY, f"store={volume_store.folder}")
    settings = ("split=val", "method=lime", "superpixels=quickshift", "worst=1", "device=cpu")
    with pytest.raises(ConfigError, match=r"superpixels=quickshift of 3-D images: expected slic or grid"):
        explain(compose_job("explain", f"run={run}", *settings))


def test_robustness_is_measured_on_volumes(
    volume_store: Store, run_train: Train, run_evaluate: Callable[..., Path], tiny3d: None, tmp_path: Path
) -> None:
    run = run_train(tmp_path / "run", *TINY, f"store={volume_store.folder}")
    found = read_json(run_evaluate(run, "split=val", "robustness=true") / "metrics.json")["robustness"]
    assert set(found["curves"]) == set(PERTURBATIONS)
    assert all(len(curve["points"]) == 5 for curve in found["curves"].values())


@pytest.mark.parametrize("method", ["occlusion", "gradcam", "gradcam++", "integrated_gradients", "lime"])
def test_volumes_are_explained(
    volume_store: Store,
    run_train: Train,
    compose_job: Callable[..., object],
    tiny3d: None,
    tmp_path: Path,
    method: str,
) -> None:
    run = run_train(tmp_path / "run", *TINY, f"store={volume_store.folder}")
    quick = ("window=0.5", "sanity_images=0", "steps=8", "num_samples=50", "num_superpixels=8")
    settings = ("split=val", f"method={method}", "worst=1", "device=cpu", *quick)
    explain(compose_job("explain", f"run={run}", *settings))  # type: ignore[arg-type]
    (heat,) = (run / "evaluation").glob(f"*/explanation-{method}/maps/*.npy")
    assert np.load(heat).shape == (16, 16, 16)
    assert heat.with_suffix(".nii.gz").is_file()


def test_crops_are_of_images(compose_train: Callable[..., TrainJob], volume_store: Store) -> None:
    with pytest.raises(ConfigError, match="only images are rescaled and cropped"):
        open_training(compose_train(Path("run"), *TINY, f"store={volume_store.folder}", "crop.scales=[16,16]"))


def test_augmented_volumes_are_the_same_for_any_number_of_workers(
    compose_train: Callable[..., TrainJob], volume_store: Store
) -> None:
    changes = ("augment.transforms={RandAffine: {rotate_range: [0.2], prob: 0.9}, RandGaussianNoise: {prob: 0.5}}",)
    data = open_training(compose_train(Path("run"), *TINY, f"store={volume_store.folder}", *changes))

    def read(workers: int) -> list[np.ndarray]:
        sampler = EpochSampler(len(data.train), batch_size=4, shuffle=True)
        sampler.epoch = 1
        return [b.images.numpy() for b in build_loader(data.train, sampler, workers=workers, device="cpu")]

    alone = read(0)
    assert any((batch != volume_store.images(data.train.rows[:4])).any() for batch in alone)
    for workers in (1, 2):
        for one, other in zip(alone, read(workers), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_baseline_stands_beside_the_network(
    volume_store: Store, run_train: Train, run_evaluate: Callable[..., Path], tiny3d: None, tmp_path: Path
) -> None:
    run = run_train(tmp_path / "run", *TINY, f"store={volume_store.folder}")
    facts = read_json(run / "baseline.json")
    assert facts["rows"] == 12
    assert facts["val"]["auc"] == 1.0  # the block is easy for a linear model
    folder = run_evaluate(run, "split=test")
    baseline = read_json(folder / "metrics.json")["baseline"]
    assert baseline["metrics"]["auc"]["value"] == 1.0
    assert baseline["comparison"]["metrics"]["auc"]["second"] == 1.0
    table = read_table(folder / "baseline_predictions.parquet")
    assert column_list(table, "image_id") == column_list(read_table(folder / "predictions.parquet"), "image_id")
    assert "Is it better than a linear model?" in (folder / "report.html").read_text()
    (run / "baseline.safetensors").write_bytes((run / "baseline.safetensors").read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"changed since the training ended: baseline\.safetensors"):
        run_evaluate(run, "split=test")


def test_a_baseline_decides_by_the_networks_rule_at_its_own_threshold(
    volume_store: Store,
    run_train: Train,
    run_evaluate: Callable[..., Path],
    tiny3d: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = ("task=binary", "task.classes={0: 0, 1: 1, 2: 1}")
    run = run_train(tmp_path / "run", *TINY, f"store={volume_store.folder}", *task)
    # Scores far from 0.5, which a threshold of 0.5 would all call.
    tensors = load_file(run / "baseline.safetensors")
    (run / "baseline.safetensors").write_bytes(save({**tensors, "bias": tensors["bias"] + 20}))
    facts = read_json(run / "baseline.json") | {"weights_sha256": sha256_file(run / "baseline.safetensors")}
    write_json(run / "baseline.json", facts)
    (run / "checksums.json").unlink()
    baseline = read_json(run_evaluate(run, "split=test") / "metrics.json")["baseline"]
    assert baseline["metrics"]["auc"]["value"] == 1.0
    assert baseline["metrics"]["specificity"]["value"] == 1.0
    assert baseline["comparison"]["metrics"]["specificity"]["second"] == 1.0
    assert "with its own threshold. Decision: 1+2 if its score is at least 0.9999" in baseline["comparison"]["note"]
    assert "chosen on val (" in baseline["comparison"]["note"]
    # Without the rows that choose it only numbers that need no threshold are left.
    monkeypatch.setattr(baseline_file, "choose_decision", lambda *given, **named: None)
    baseline = read_json(run_evaluate(run, "split=test") / "metrics.json")["baseline"]
    assert set(baseline["metrics"]) & {"auc", "sensitivity", "accuracy"} == {"auc"}
    assert "sensitivity" not in baseline["comparison"]["metrics"]
    assert "mcnemar" not in baseline["comparison"]
    assert "Numbers that need a threshold are left out" in baseline["comparison"]["note"]


def test_a_baseline_can_be_left_out_and_images_have_none(
    volume_store: Store, run_train: Train, trained: Path, tiny3d: None, tmp_path: Path
) -> None:
    run = run_train(tmp_path / "run", *TINY, f"store={volume_store.folder}", "baseline=false")
    assert not (run / "baseline.json").exists()
    assert not (trained / "baseline.json").exists()


@pytest.mark.parametrize("task", ["binary", "multiclass", "ordinal", "grade_joint", "grade_regression", "regression"])
def test_every_task_has_its_baseline(
    volume_store: Store, run_train: Train, run_evaluate: Callable[..., Path], tiny3d: None, tmp_path: Path, task: str
) -> None:
    classes = ("task.classes={0: 0, 1: 1, 2: 1}",) if task == "binary" else ()
    run = run_train(tmp_path / "run", *TINY, f"store={volume_store.folder}", f"task={task}", *classes)
    folder = run_evaluate(run, "split=test", "report=false")
    compared = read_json(folder / "metrics.json")["baseline"]["comparison"]["metrics"]
    first = next(iter(compared.values()))
    assert first["second"] is not None


def test_labels_without_meaning_give_an_auc_of_a_half(
    write_volumes: Callable[..., Path],
    run_prepare: Callable[..., Store],
    run_train: Train,
    run_evaluate: Callable[..., Path],
    tiny3d: None,
    tmp_path: Path,
) -> None:
    """Labels permuted by patient: where network or baseline still tell them apart, something has leaked."""
    raw = write_volumes(tmp_path / "raw", patients=48)
    lines = (raw / "labels.csv").read_text().splitlines()
    rows = [line.rsplit(",", 1) for line in lines[1:]]
    labels = np.random.default_rng(5).permutation([label == "0" for _, label in rows]).astype(int)
    content = [lines[0], *(f"{start},{label}" for (start, _), label in zip(rows, labels, strict=True))]
    (raw / "labels.csv").write_text("\n".join(content) + "\n")
    sizes = ("image=mr_volume", "image.size=[16,16,16]", "split.test=0.4", "split.val=0.1")
    store = run_prepare(raw, tmp_path / "store", *sizes)
    settings = (f"store={store.folder}", "task=binary", "trainer.epochs=5", "trainer.max_steps=null")
    run = run_train(tmp_path / "run", *TINY, *settings, "optimizer.lr=0.02")
    metrics = read_json(run_evaluate(run, "split=test", "report=false", "replicates=500") / "metrics.json")
    for auc in (metrics["auc"], metrics["baseline"]["metrics"]["auc"]):
        assert auc["low"] < 0.5 < auc["high"]


def test_raw_volumes_get_the_scores_of_the_stored_ones(
    volume_store: Store,
    run_train: Train,
    run_evaluate: Callable[..., Path],
    compose_job: Callable[..., Any],
    tiny3d: None,
    tmp_path: Path,
) -> None:
    run = run_train(tmp_path / "run", *TINY, f"store={volume_store.folder}")
    raw = volume_store.folder.parent / "raw"
    settings = (f"source={raw}", f"out={tmp_path / 'out.parquet'}", "workers=0", "device=cpu", "deidentify=declared")
    predict(compose_job("predict", f"run={run}", *settings))
    rows = [row for row in read_table(tmp_path / "out.parquet").to_pylist() if row["level"] == "image"]
    states = Counter((row["state"], row["reason"]) for row in rows)
    assert states == {("ok", None): 24, ("skipped", "no_volume"): 1}
    stored = read_table(
        run_evaluate(run, "split=all", "in_sample=allow", "report=false") / "predictions.parquet"
    ).to_pylist()
    logits = {row["image_id"]: row["logits"] for row in stored}
    assert len(logits) == 24
    for row in rows:
        if row["state"] == "ok":
            np.testing.assert_allclose(row["logits"], logits[row["image_id"]], atol=1e-5)


@pytest.fixture(scope="module")
def series() -> ModuleType:
    """The builders of synthetic series of tests/imaging."""
    path = Path(__file__).resolve().parent.parent / "imaging" / "build_series.py"
    spec = importlib.util.spec_from_file_location("build_series", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_series_and_broken_ones_are_named_each_with_its_reason(
    series: ModuleType,
    run_prepare: Callable[..., Store],
    run_train: Train,
    compose_job: Callable[..., Any],
    tiny3d: None,
    tmp_path: Path,
) -> None:
    raw = tmp_path / "raw"
    for number in range(9):
        slices = series.build_slices(
            tuple(2.5 * k for k in range(6)), origin=(-30.0 - number, 20.0, 5.0), PatientID=f"P{number}"
        )
        series.write_series(raw / f"case{number}", slices if number < 8 else [*slices[:2], *slices[3:]])
    lines = [f"case{n},{n % 2}" for n in range(8)]
    (raw / "labels.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    sizes = ("image=mr_volume", "image.size=[16,16,16]", "split.test=0.25", "split.val=0.25")
    store = run_prepare(raw, tmp_path / "store", *sizes, "deidentify=declared", "max_quarantined=0.2")
    run = run_train(tmp_path / "run", *TINY, f"store={store.folder}", "trainer.batch_size=4")
    settings = (f"source={raw}", f"out={tmp_path / 'out.parquet'}", "workers=0", "device=cpu", "deidentify=declared")
    predict(compose_job("predict", f"run={run}", *settings))
    rows = read_table(tmp_path / "out.parquet").to_pylist()
    assert Counter((row["level"], row["state"], row["reason"]) for row in rows) == {
        ("image", "ok", None): 8,
        ("image", "refused", "gap"): 5,
        ("image", "skipped", "no_volume"): 1,
        ("series", "ok", None): 8,
        ("patient", "ok", None): 8,
    }
    assert {row["patient_id"] for row in rows if row["state"] == "ok"} == {f"P{number}" for number in range(8)}
    named = {row["image_id"]: row["patient_id"] for row in rows if (row["level"], row["state"]) == ("image", "ok")}
    assert named == dict(zip(*(store.column(name) for name in ("image_id", "patient_id")), strict=True))
