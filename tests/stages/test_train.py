from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from medcls.config import TrainJob
from medcls.data.splits import TEST, read_split, rows_of
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.files import read_json, read_json_lines, sha256_file
from medcls.models.families import count_dims
from medcls.runs.model_file import read_card, read_model
from medcls.train import train as stage
from medcls.train.session import Session
from medcls.training.loop import NonFiniteError

Run = Callable[..., Path]
CONF = Path(__file__).resolve().parents[2] / "conf"
TASKS = {
    "binary": ["task=binary", "task.classes={0: 0, 1: 1, 2: 1}"],
    "multiclass": ["task=multiclass"],
    "multilabel": ["task=multilabel", "task.labels=[bright,low]"],
    "ordinal": ["task=ordinal"],
    "classified": ["task=grade_classification", "task.class_weights=balanced"],
    "joint": ["task=grade_joint", "task.joint_lambda=0.3"],
    "regression": ["task=regression", "task.label=hurt"],
    "grades": ["task=grade_regression"],
}


def model_sha256(run: Path) -> str:
    return sha256_file(run / "model.safetensors")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs_from_store_to_report(run_train: Run, run_evaluate: Run, tmp_path: Path, name: str) -> None:
    run = run_train(tmp_path / "run", *TASKS[name])
    (row,) = read_json_lines(run / "metrics.jsonl")
    assert (row["steps"], row["skipped_steps"]) == (1, 0)
    assert 0 <= row["data_wait_share"] <= 1
    assert math.isfinite(row["train_loss"])
    assert math.isfinite(row["val_loss"])
    metrics = read_json(run_evaluate(run, "split=test") / "metrics.json")
    graded = ("ordinal", "classified", "joint", "grades")
    headline = "quadratic_kappa" if name in graded else {"regression": "rmse"}.get(name, "auc")
    assert set(metrics[headline]) >= {"value", "low", "high"}
    assert (metrics["n_images"], metrics["n_patients"]) == (12, 6)


def test_run_folder_has_what_the_design_says(trained: Path, store: Store) -> None:
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert names == {
        "checksums.json", "config/config.yaml", "config/settings.json", "contact_sheet.png", "environment.json",
        "feature_distance.safetensors", "images.parquet", "metrics.jsonl", "model.safetensors", "patients.parquet",
    }  # fmt: skip
    card = read_card(trained / "model.safetensors")
    assert (card.store_sha256, card.architecture, card.ancestors) == (store.sha256, "resnet18", [])
    assert card.task.class_names == ["0", "1", "2"]
    assert card.training["best_epoch"] == 1
    assert set(read_json_lines(trained / "metrics.jsonl")[0]["lr"]) == {
        "stem", "layer1", "layer2", "layer3", "layer4", "head",
    }  # fmt: skip


def test_patients_of_train_and_val_are_recorded_and_those_of_test_are_not(
    trained: Path, store: Store, split_names: Callable[..., dict[str, str]]
) -> None:
    splits = split_names(store).values()
    patients = store.column("patient_id")
    table = pq.read_table(trained / "patients.parquet").to_pylist()
    expected = {(p, name) for p, name in zip(patients, splits, strict=True) if name != TEST}
    assert {(row["patient_id"], row["split"]) for row in table} == expected
    assert len(table) == len(expected) == 18


# --- determinism


def test_same_seed_gives_the_same_file_and_another_seed_another(run_train: Run, tmp_path: Path, trained: Path) -> None:
    assert model_sha256(run_train(tmp_path / "again")) == model_sha256(trained)
    other = run_train(tmp_path / "other", "seed=1")
    weights = [read_model(run / "model.safetensors")[0].backbone.body.conv1.weight for run in (trained, other)]
    assert not torch.equal(*weights)


def test_workers_change_no_bit(run_train: Run, tmp_path: Path) -> None:
    settings = ["trainer.max_steps=5", "augment=radiograph", "model.dropout=0.2"]
    runs = [run_train(tmp_path / f"{n}", f"workers={n}", *settings) for n in (0, 2)]
    assert model_sha256(runs[0]) == model_sha256(runs[1])
    rows = [read_json_lines(run / "metrics.jsonl") for run in runs]
    assert [row["train_loss"] for row in rows[0]] == [row["train_loss"] for row in rows[1]]
    assert len(rows[0]) == 2


# --- the test split


def test_no_row_of_the_test_split_is_read(
    run_train: Run, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[int] = set()
    one, many = Store.image, Store.images

    def record_one(self: Store, index: int) -> np.ndarray:
        read.add(int(index))
        return one(self, index)

    def record_many(self: Store, indices: np.ndarray) -> np.ndarray:
        read.update(indices.tolist())
        return many(self, indices)

    monkeypatch.setattr(Store, "image", record_one)
    monkeypatch.setattr(Store, "images", record_many)
    run_train(tmp_path / "run", "trainer.max_steps=3", "trainer.epochs=1")
    splits, _ = read_split(store, "default")
    rows = {name: set(rows_of(splits, name).tolist()) for name in ("train", "val", "test")}
    assert rows["train"] | rows["val"] == read
    assert len(rows["test"]) == 12
    assert not read & rows["test"]


def test_other_pixels_and_labels_in_the_test_split_change_no_bit_of_the_model(
    run_train: Run, tmp_path: Path, copy_store: Callable[..., Path], certify: Callable[[Path], None], trained: Path
) -> None:
    folder = copy_store()
    opened = Store(folder)
    splits, _ = read_split(opened, "default")
    test_rows = rows_of(splits, TEST)
    shard = np.load(folder / "shard-00000.npy")
    shard[test_rows] = np.random.default_rng(0).integers(0, 256, shard[test_rows].shape, dtype=np.uint8)
    np.save(folder / "shard-00000.npy", shard)
    labels = pq.read_table(folder / "labels.parquet")
    values = labels.column("label").to_pylist()
    poisoned = ["9" if row in set(test_rows.tolist()) else value for row, value in enumerate(values)]
    index = labels.column_names.index("label")
    pq.write_table(labels.set_column(index, "label", [poisoned]), folder / "labels.parquet")
    certify(folder)
    run = run_train(tmp_path / "run", f"store={folder}")
    states = [read_model(path / "model.safetensors")[0].state_dict() for path in (run, trained)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert read_card(run / "model.safetensors").store_sha256 != read_card(trained / "model.safetensors").store_sha256


# --- what is trained


def test_frozen_run_keeps_every_bit_of_the_pretrained_network(run_train: Run, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    torch.manual_seed(7)
    pretrained = resnet18(weights=None).state_dict()
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(pretrained, folder / "resnet18-imagenet.safetensors")
    frozen = run_train(
        tmp_path / "run", "model.weights=imagenet", f"weights_dir={folder}", "transfer=frozen", "model.head=linear"
    )
    model, card = read_model(frozen / "model.safetensors")
    for name, value in model.backbone.body.state_dict().items():
        assert torch.equal(value, pretrained[name]), name
    assert card.ancestors[0]["sha256"] == sha256_file(folder / "resnet18-imagenet.safetensors")
    assert set(read_json_lines(frozen / "metrics.jsonl")[0]["lr"]) == {"head"}


def test_average_of_the_weights_is_what_is_kept(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original = Session.run

    def record(self: Session, *args: Any) -> None:
        original(self, *args)
        # Afterwards the network gets the weights that are kept, to measure training images by them.
        last = {name: value.clone() for name, value in self.learner.model.state_dict().items()}
        seen.append((self.learner, last))

    monkeypatch.setattr(Session, "run", record)
    run = run_train(tmp_path / "run", "trainer.ema_decay=0.9", "trainer.max_steps=3", "trainer.epochs=1")
    ((learner, last),) = seen
    kept = read_model(run / "model.safetensors")[0].state_dict()
    averaged = learner.average.module.state_dict()
    assert all(torch.equal(value, averaged[name]) for name, value in kept.items())
    for name in ("head.linear.weight", "backbone.body.bn1.running_mean"):
        assert not torch.equal(kept[name], last[name]), name


def test_half_precision_with_accumulation_and_clipping_runs(run_train: Run, tmp_path: Path) -> None:
    settings = ["precision=fp16", "trainer.batch_size=4", "trainer.accumulate=2", "trainer.clip_norm=1.0"]
    run = run_train(tmp_path / "run", *settings)
    assert read_json(run / "environment.json")["precision"] == "fp16"
    assert math.isfinite(read_json_lines(run / "metrics.jsonl")[0]["train_loss"])


def test_balanced_sampling_and_channels_last_run(run_train: Run, tmp_path: Path) -> None:
    settings = ["task.sampler=balanced", "trainer.channels_last=true", "task.loss=focal"]
    assert model_sha256(run_train(tmp_path / "run", *settings, "trainer.tensorboard=true"))
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize("image", [["image.dtype=uint16"], ["image.dtype=uint16", "image.channels=3"]])
def test_sixteen_bits_and_colour_run(
    run_train: Run, run_evaluate: Run, make_store: Callable[..., Store], tmp_path: Path, image: list[str]
) -> None:
    store = make_store("split.val=0.25", *image)
    settings = [f"store={store.folder}", "trainer.channels_last=true", "augment=none"]
    run = run_train(tmp_path / "run", *settings)
    card = read_card(run / "model.safetensors")
    assert (card.max_value, card.in_channels) == (65535, store.spec.channels)
    assert math.isfinite(read_json_lines(run / "metrics.jsonl")[0]["train_loss"])


def test_pairs_of_an_odd_number_of_images_never_leave_one_alone(
    compose_train: Callable[..., TrainJob], tmp_path: Path
) -> None:
    class Data:
        def __init__(self, size: int) -> None:
            self.train = self
            self.targets = torch.zeros(size, 1)
            self.size = size

        def __len__(self) -> int:
            return self.size

    for size, batch in ((5, 2), (7, 2), (8, 2), (9, 4), (24, 32), (3, 2)):
        sampler = stage.build_sampler(Data(size), batch_size=batch, seed=0)  # type: ignore[arg-type]
        sizes = [len(positions) for positions in sampler]
        assert sum(sizes) == size
        assert min(sizes) >= 2
        assert max(sizes) <= max(3, batch)


# --- what goes wrong


def test_finished_run_is_left_alone(
    run_train: Run, compose_train: Callable[..., TrainJob], run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_copy.rglob("*")}
    run_train(run_copy)
    assert "finished already with these settings" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run_copy.rglob("*")} == before
    with pytest.raises(ConfigError, match="seed: 0 -> 5"):
        run_train(run_copy, "seed=5")


def test_finished_run_of_a_store_with_other_content_is_no_answer(
    run_train: Run, tmp_path: Path, copy_store: Callable[..., Path], certify: Callable[[Path], None]
) -> None:
    folder = copy_store()
    run = run_train(tmp_path / "run", f"store={folder}")
    table = pq.read_table(folder / "labels.parquet")
    labels = [{"0": "2", "1": "1", "2": "0"}[label] for label in table.column("label").to_pylist()]
    pq.write_table(table.set_column(table.column_names.index("label"), "label", [labels]), folder / "labels.parquet")
    certify(folder)
    with pytest.raises(ConfigError, match=r"was trained on other labels than store=.* have now: choose another run="):
        run_train(run, f"store={folder}")
    shutil.rmtree(folder)
    run_train(run, f"store={folder}")  # finished, and the store gone: nothing to do


def test_unfinished_run_without_a_checkpoint_starts_again_and_ends_the_same(
    run_train: Run, run_copy: Path, trained: Path
) -> None:
    (run_copy / "model.safetensors").unlink()
    run_train(run_copy)
    assert model_sha256(run_copy) == model_sha256(trained)
    assert len(read_json_lines(run_copy / "metrics.jsonl")) == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("task.metric=quadratic_kapa", "task.metric=quadratic_kapa"),
        ("schedule.warmup_epochs=7", "schedule.warmup_epochs=7"),
        ("model.name=resnet19", "model.name=resnet19"),
    ],
)
def test_wrong_settings_are_found_before_the_run_is_begun(
    run_train: Run, tmp_path: Path, setting: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_train(tmp_path / "run", setting)
    assert not (tmp_path / "run").exists()


def test_class_weights_of_a_task_without_are_found_before_the_run_is_begun(run_train: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task.kind=ordinal has none"):
        run_train(tmp_path / "run", "task=ordinal", "task.class_weights=balanced")
    assert not (tmp_path / "run").exists()


def test_non_finite_training_stops_and_writes_no_model(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "build_task_loss", lambda *_, **__: lambda logits, targets: logits.sum() * math.nan)
    with pytest.raises(NonFiniteError, match="for 2 steps in a row"):
        run_train(tmp_path / "run", "trainer.max_steps=5", "trainer.max_nonfinite=2")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_network_whose_outputs_are_not_finite_is_never_kept(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "predict_logits", lambda *_, **__: np.full((12, 3), math.nan))
    with pytest.raises(NonFiniteError, match="no epoch gave finite outputs"):
        run_train(tmp_path / "run")
    (row,) = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert row["val_loss"] is None
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_changed_shard_is_refused(run_train: Run, tmp_path: Path, copy_store: Callable[..., Path]) -> None:
    folder = copy_store()
    content = bytearray((folder / "shard-00000.npy").read_bytes())
    content[-1] ^= 1
    (folder / "shard-00000.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"changed since it was written: shard-00000.npy"):
        run_train(tmp_path / "run", f"store={folder}")


def test_labels_in_another_order_are_refused(
    run_train: Run, tmp_path: Path, copy_store: Callable[..., Path], certify: Callable[[Path], None]
) -> None:
    path = copy_store() / "labels.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(list(reversed(range(table.num_rows)))), path)
    certify(path.parent)
    with pytest.raises(DataError, match="its rows are not the store's images"):
        run_train(tmp_path / "run", f"store={path.parent}")


def test_split_that_leaks_is_refused_although_certified(
    run_train: Run, tmp_path: Path, copy_store: Callable[..., Path], certify: Callable[[Path], None]
) -> None:
    path = copy_store() / "splits" / "default.parquet"
    table = pq.read_table(path)
    splits = table.column("split").to_pylist()
    splits[0] = {"train": "test", "val": "train", "test": "train"}[splits[0]]
    pq.write_table(table.set_column(1, "split", [splits]), path)
    with pytest.raises(DataError, match="has changed since its certificate was written"):
        run_train(tmp_path / "run", f"store={path.parent.parent}")
    certify(path.parent.parent)
    with pytest.raises(DataError, match="which must be disjoint by patient"):
        run_train(tmp_path / "run", f"store={path.parent.parent}")


def test_class_missing_from_validation_is_refused(
    run_train: Run,
    tmp_path: Path,
    copy_store: Callable[..., Path],
    certify: Callable[[Path], None],
    store: Store,
    split_names: Callable[..., dict[str, str]],
) -> None:
    path = copy_store() / "labels.parquet"
    splits = split_names(store)
    table = pq.read_table(path)
    labels = [
        "1" if splits[image] == "val" else label
        for image, label in zip(table.column("image_id").to_pylist(), table.column("label").to_pylist(), strict=True)
    ]
    pq.write_table(table.set_column(table.column_names.index("label"), "label", [labels]), path)
    certify(path.parent)
    with pytest.raises(DataError, match="classes without an image in the val split: 0, 2"):
        run_train(tmp_path / "run", f"store={path.parent}")


# --- the experiments


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_runs_one_step(
    compose_job: Callable[..., Any], tmp_path: Path, store: Store, make_volume_store: Callable[..., Store], path: Path
) -> None:
    small = ["trainer.max_steps=1", "trainer.batch_size=2", "workers=0", "device=cpu"]
    job = compose_job("train", f"experiment={path.stem}", f"run={tmp_path / 'run'}", *small)
    volumes = count_dims(job.model.name) == 3
    # The smallest that every network of volumes takes.
    job.store = str((make_volume_store("image.size=[24,24,24]") if volumes else store).folder)
    if job.model.weights is not None:
        job.model.weights = None  # no download in a test
    # Classes that an experiment names by its own words are the store's here.
    job.task.classes = dict(zip("012", job.task.classes.values(), strict=False))
    stage.train(job)
    (row,) = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert row["steps"] == 1
    assert read_model(tmp_path / "run" / "model.safetensors")[1].architecture == job.model.name


def test_every_experiment_begins_with_its_command() -> None:
    paths = sorted((CONF / "experiment").glob("*.yaml"))
    assert paths
    for path in paths:
        comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
        assert any("python -m medcls." in line for line in comments), path


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [["trainer.compile=true"], ["trainer.channels_last=true", "precision=auto"]])
def test_training_on_the_gpu_learns(run_train: Run, run_evaluate: Run, tmp_path: Path, settings: list[str]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run = run_train(tmp_path / "run", "device=cuda", "trainer.epochs=10", "trainer.max_steps=30", *settings)
    losses = [row["train_loss"] for row in read_json_lines(run / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    assert (run_evaluate(run, "split=val", "device=cuda") / "report.html").is_file()
