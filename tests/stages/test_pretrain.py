"""Pretraining without labels: what it reads, what it writes, and what classifiers take from it."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from medcls.config import PretrainJob
from medcls.data.splits import TEST, TRAIN, VAL, read_split, rows_of
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.evaluate.evaluate import evaluate
from medcls.explain.explain import explain
from medcls.files import IMAGES, METRICS_LOG, MODEL, PATIENTS, RECONSTRUCTIONS, read_json_lines, sha256_file
from medcls.predict.predict import predict
from medcls.pretrain.pretrain import LevelSequence, pretrain
from medcls.pretrain.pretraining_data import open_volumes
from medcls.runs.model_file import find_card, read_any_card, read_autoencoder, read_card, read_model
from medcls.training.checkpoint_manager import CheckpointManager
from medcls.training.preemption import PreemptedError

Run = Callable[..., Path]
QUICK = ("trainer.batch_size=6", "trainer.epochs=2", "workers=0", "device=cpu", "figures=1")
PAPER = ("model=autoencoder3d_hosseini", "optimizer=adadelta", "schedule=constant")


@pytest.fixture(scope="session")
def compose_pretrain(compose_job: Callable[..., Any], volume_store: Store) -> Callable[..., PretrainJob]:
    """A job of two epochs: compose_pretrain(run, "loss=l1")."""

    def compose(run: Path, *arguments: str) -> PretrainJob:
        given = {a.partition("=")[0]: a for a in (f"store={volume_store.folder}", *QUICK, *arguments)}
        job: PretrainJob = compose_job("pretrain", f"run={run}", *given.values())
        return job

    return compose


@pytest.fixture(scope="session")
def run_pretrain(compose_pretrain: Callable[..., PretrainJob]) -> Run:
    """Pretrains and returns the run folder."""

    def run(folder: Path, *arguments: str) -> Path:
        pretrain(compose_pretrain(folder, *arguments))
        return folder

    return run


@pytest.fixture(scope="module")
def modern(run_pretrain: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished autoencoder3d of corrupted volumes; do not write into it."""
    return run_pretrain(tmp_path_factory.mktemp("modern") / "run", "corruption=inpaint", "trainer.epochs=4")


@pytest.fixture(scope="module")
def greedy(run_pretrain: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished autoencoder3d_hosseini; do not write into it."""
    return run_pretrain(tmp_path_factory.mktemp("greedy") / "run", *PAPER)


@pytest.fixture(scope="module")
def target(make_volume_store: Callable[..., Store]) -> Store:
    """Volumes of other patients, large enough for acnn3d."""
    return make_volume_store("image.size=[24,24,24]", hospital="target")


def test_validation_loss_falls_and_the_best_epoch_is_written(modern: Path) -> None:
    rows = read_json_lines(modern / METRICS_LOG)
    losses = [row["val_loss"] for row in rows]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    card = read_any_card(modern / MODEL)
    assert card.training["score"] == pytest.approx(min(losses))
    assert card.training["best_epoch"] == 1 + int(np.argmin(losses))
    assert (card.training["stacking"], card.training["loss"], card.labels_sha256) == ("joint", "mse", "")


def test_only_train_and_val_are_seen_with_and_without_labels(modern: Path, volume_store: Store) -> None:
    splits, _ = read_split(volume_store, "default")
    for file, column in ((PATIENTS, "patient_id"), (IMAGES, "pixel_sha256")):
        seen = pq.read_table(modern / file).to_pydict()
        for name in (TRAIN, VAL):
            expected = set(volume_store.column(column, rows_of(splits, name)))
            assert {v for v, s in zip(seen[column], seen["split"], strict=True) if s == name} == expected
        assert not set(seen[column]) & set(volume_store.column(column, rows_of(splits, TEST)))


def test_volumes_without_a_label_take_part(
    make_volume_store: Callable[..., Store], compose_pretrain: Callable[..., PretrainJob], tmp_path: Path
) -> None:
    store = make_volume_store(labels=("", "", ""))
    job = compose_pretrain(tmp_path / "run", f"store={store.folder}")
    data = open_volumes(
        store, "default", patch=job.patch, augment=job.augment, corruption=job.corruption, seed=job.seed
    )
    splits, _ = read_split(store, "default")
    assert data.train.rows.tolist() == rows_of(splits, TRAIN).tolist()
    assert len(data.train) > 0


def test_figure_shows_input_corrupted_and_output(modern: Path, greedy: Path) -> None:
    shapes = [cv2.imread(str(run / RECONSTRUCTIONS)).shape for run in (modern, greedy)]
    assert shapes[0][0] == shapes[1][0]
    assert shapes[0][1] * 2 == shapes[1][1] * 3


def test_greedy_trains_one_level_after_the_other_on_the_best_of_those_below(greedy: Path) -> None:
    rows = read_json_lines(greedy / METRICS_LOG)
    assert [row["level"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    card = read_any_card(greedy / MODEL)
    assert card.training["best_epoch"] in (5, 6)
    assert (card.training["stacking"], card.training["loss"]) == ("greedy", "half_sse")


def test_a_level_that_was_trained_stays_as_it_was(
    run_pretrain: Run, greedy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept: list[dict[str, torch.Tensor]] = []
    original = LevelSequence.start_level

    def watch(self: LevelSequence, *, epoch: int) -> None:
        original(self, epoch=epoch)
        kept.append({name: value.clone() for name, value in self.model.state_dict().items()})

    monkeypatch.setattr(LevelSequence, "start_level", watch)
    run = run_pretrain(tmp_path / "run", *PAPER)
    assert sha256_file(run / MODEL) == sha256_file(greedy / MODEL)  # the same result again
    final = read_autoencoder(run / MODEL)[0].state_dict()
    for level, state in enumerate(kept):
        names = [name for name in state if name.startswith(tuple(f"levels.conv{i + 1}." for i in range(level + 1)))]
        assert names
        assert all(torch.equal(state[name], final[name]) for name in names)
        later = [name for name in state if name.startswith(f"levels.conv{level + 2}.") and name.endswith("weight")]
        assert not any(torch.equal(state[name], final[name]) for name in later)


def test_patience_ends_a_level_and_not_the_training(run_pretrain: Run, tmp_path: Path) -> None:
    # With a rate this small no epoch after the first is better by much; some level waits in vain.
    settings = ["trainer.epochs=4", "trainer.patience=1", "optimizer=sgd", "optimizer.lr=10", "trainer.clip_norm=1e6"]
    run = run_pretrain(tmp_path / "run", *PAPER[:1], *settings, "schedule=constant")
    levels = [row["level"] for row in read_json_lines(run / METRICS_LOG)]
    assert sorted(levels) == levels
    assert set(levels) == {0, 1, 2}
    assert len(levels) < 12


@pytest.mark.parametrize("settings", [("trainer.ema_decay=0.5",), ("stacking=joint", "loss=ssim"), ()])
def test_broken_off_it_goes_on_to_the_same_model(
    compose_pretrain: Callable[..., PretrainJob],
    run_pretrain: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    settings: tuple[str, ...],
) -> None:
    whole = run_pretrain(tmp_path / "whole", *PAPER, *settings)
    original, steps = CheckpointManager.checkpoint_if_due, []

    def stop(self: CheckpointManager, *, validated: bool = False) -> None:
        steps.append(validated)
        if len(steps) == 5:
            signal.raise_signal(signal.SIGTERM)
        original(self, validated=validated)

    monkeypatch.setattr(CheckpointManager, "checkpoint_if_due", stop)
    with pytest.raises(PreemptedError):
        run_pretrain(tmp_path / "broken", *PAPER, *settings)
    broken = run_pretrain(tmp_path / "broken", *PAPER, *settings)
    assert sha256_file(broken / MODEL) == sha256_file(whole / MODEL)
    assert not (broken / "checkpoints").exists()
    rows = [[row["val_loss"] for row in read_json_lines(run / METRICS_LOG)] for run in (whole, broken)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("corruption", ["noise", "mask", "inpaint"])
@pytest.mark.parametrize("loss", ["l1", "ssim"])
def test_every_corruption_and_loss_runs_on_patches(
    run_pretrain: Run, tmp_path: Path, corruption: str, loss: str
) -> None:
    settings = [f"corruption={corruption}", f"loss={loss}", "patch.size=[12,10,8]", "trainer.epochs=1"]
    run = run_pretrain(tmp_path / "run", *settings, "trainer.activation_checkpointing=true")
    assert np.isfinite(read_json_lines(run / METRICS_LOG)[0]["val_loss"])


@pytest.mark.parametrize(
    ("source", "model", "stages"), [("modern", "encoder3d", "block"), ("greedy", "acnn3d", "conv")]
)
@pytest.mark.parametrize("transfer", ["frozen", "finetune"])
def test_classifier_starts_from_the_encoder_and_from_nothing_else(
    request: pytest.FixtureRequest,
    target: Store,
    run_train: Run,
    tmp_path: Path,
    source: str,
    model: str,
    stages: str,
    transfer: str,
) -> None:
    pretrained: Path = request.getfixturevalue(source)
    settings = [f"store={target.folder}", f"model={model}", f"model.weights={pretrained}", f"transfer={transfer}"]
    run = run_train(tmp_path / "run", *settings, "augment=none", "optimizer.lr=1e-9", "trainer.epochs=1")
    network, card = read_model(run / MODEL)
    encoder = read_autoencoder(pretrained / MODEL)[0]
    levels = {name: level.encode.state_dict() for name, level in encoder.stages.items()}  # type: ignore[union-attr, operator]
    assert all(name.startswith(stages) for name in levels)
    for name, expected in levels.items():
        found = network.backbone.body.get_submodule(name).state_dict()
        assert list(found) == list(expected)
        for key, value in expected.items():
            exact = torch.equal(found[key], value)
            assert exact if transfer == "frozen" else torch.allclose(found[key], value, atol=1e-6)
    assert card.ancestors[-1]["architecture"] == read_any_card(pretrained / MODEL).architecture
    assert card.ancestors[-1]["sha256"] == sha256_file(pretrained / MODEL)


def test_frozen_encoder_leaves_the_fully_connected_layers_to_be_trained(
    greedy: Path, target: Store, run_train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"store={target.folder}", "model=dsa3dcnn", f"model.weights={greedy}", "transfer=frozen"]
    run_train(tmp_path / "run", *settings, "augment=none")
    said = capsys.readouterr().err
    assert "random: fc1.bias, fc1.weight, fc2.bias, fc2.weight" in said
    trained = {line.split()[0]: "frozen" not in line for line in said.splitlines() if line[:3] in ("con", "fc1", "fc2")}
    assert trained == {"conv1": False, "conv2": False, "conv3": False, "fc1": True, "fc2": True}


@pytest.mark.parametrize(("model", "name"), [("encoder3d", "acnn3d"), ("resnet10_3d", "acnn3d")])
def test_another_classifier_is_refused(
    greedy: Path, target: Store, run_train: Run, tmp_path: Path, model: str, name: str
) -> None:
    with pytest.raises(ConfigError, match=rf"is a autoencoder3d_hosseini, model.name={model} .*: say model={name}"):
        run_train(
            tmp_path / "run", f"store={target.folder}", f"model={model}", f"model.weights={greedy}", "augment=none"
        )


def test_what_it_has_seen_may_not_be_held_out_later(
    modern: Path, volume_store: Store, run_train: Run, tmp_path: Path
) -> None:
    settings = [f"store={volume_store.folder}", "model=encoder3d", f"model.weights={modern}", "augment=none"]
    with pytest.raises(DataError, match=r"were trained or selected on by its ancestor run .*\(biased transfer\)"):
        run_train(tmp_path / "run", *settings)


def test_what_asks_for_classes_refuses_it_in_one_line(modern: Path, compose_job: Callable[..., Any]) -> None:
    message = r"holds an autoencoder, which has no classes: python -m medcls.train model=encoder3d model.weights="
    for function, job in (
        (evaluate, compose_job("evaluate", f"run={modern}")),
        (predict, compose_job("predict", f"run={modern}", f"source={modern}", f"out={modern}/p.parquet")),
        (explain, compose_job("explain", f"run={modern}")),
        (read_card, modern / MODEL),
        (read_model, modern / MODEL),
    ):
        with pytest.raises(DataError, match=message) as error:
            function(job)
        assert "\n" not in str(error.value)
    assert find_card(modern / MODEL) is not None


def test_a_classifier_is_no_autoencoder(volume_store: Store, run_train: Run, tmp_path: Path) -> None:
    run = run_train(tmp_path / "run", f"store={volume_store.folder}", "model=encoder3d", "augment=none")
    with pytest.raises(DataError, match="is a encoder3d, which classifies"):
        read_autoencoder(run / MODEL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model=encoder3d"], r"model.name=encoder3d: expected one of autoencoder3d_hosseini, autoencoder3d"),
        ([*PAPER, "model.normalize=z_score"], r"ends in a ReLU, .*: set model.normalize=min_max"),
        (["patch.size=[17,8,8]"], r"patch.size=\[17, 8, 8\]: the store holds volumes"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    run_pretrain: Run, tmp_path: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_pretrain(tmp_path / "run", *settings)
    assert not (tmp_path / "run").exists()


def test_a_store_of_images_is_refused(run_pretrain: Run, store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"contains images \(1, 32, 32\), but an autoencoder takes volumes"):
        run_pretrain(tmp_path / "run", f"store={store.folder}")


def test_finished_run_is_left_alone_also_where_labels_have_changed(
    run_pretrain: Run, volume_store: Store, modern: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["corruption=inpaint", "trainer.epochs=4"]
    copy = Path(shutil.copytree(modern, tmp_path / "run"))
    run_pretrain(copy, *settings)
    assert "finished already with these settings" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"corruption.kind: inpaint -> noise"):
        run_pretrain(copy, "corruption=noise", "trainer.epochs=4")


def test_killed_while_it_draws_it_is_not_finished(run_pretrain: Run, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medcls.pretrain.pretrain.draw_reconstructions", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_pretrain(tmp_path / "run", *PAPER)
    assert not (tmp_path / "run" / MODEL).exists()
    assert (run_pretrain(tmp_path / "run", *PAPER) / RECONSTRUCTIONS).is_file()
