"""A head trained on cached features is the head that the ordinary loop trains."""

from __future__ import annotations

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
from medcls.errors import ConfigError
from medcls.files import read_json, read_json_lines, sha256_file
from medcls.runs.model_file import read_card, read_model
from medcls.train import cached_features
from medcls.training.checkpoint_manager import CheckpointManager

Run = Callable[..., Path]
FROZEN = (
    "model=cbr_small", "transfer=frozen", "model.head=linear", "trainer.epochs=3", "trainer.max_steps=null",
    "optimizer.lr=0.01",
)  # fmt: skip
NONE, AUGMENTED = ("augment=none",), ("augment=radiograph",)
TASKS = {
    "binary": ["task=binary", "task.classes={0: 0, 1: 1, 2: 1}"],
    "multiclass": ["task=multiclass", "model.dropout=0.3", "trainer.ema_decay=0.8"],
    "multilabel": ["task=multilabel", "task.labels=[bright,low]"],
    "ordinal": ["task=ordinal", "task.sampler=balanced"],
    "joint": ["task=ordinal", "task.loss=joint"],
    "regression": ["task=regression", "task.label=hurt", "trainer.accumulate=2"],
    # Wide kernels take long in half precision on a CPU.
    "half": ["task=multiclass", "precision=fp16", "trainer.epochs=1", "model=resnet18"],
}


def log_of(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without the clock; lr is that of the head."""
    clock = ("seconds", "images_per_second", "data_wait_share")
    rows = read_json_lines(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in clock} | {"lr": row["lr"]["head"]} for row in rows]


def folders(run: Path) -> list[Path]:
    return sorted((run.parent / "features").iterdir())


def assert_same_training(cached: Path, live: Path) -> None:
    """Losses, validation scores and weights are equal within float tolerance."""
    ours, theirs = log_of(cached), log_of(live)
    assert len(ours) == len(theirs)
    for row, other in zip(ours, theirs, strict=True):
        assert row == {k: v if v is None else pytest.approx(v, rel=1e-4, abs=1e-5) for k, v in other.items()}
    (model, card), (reference, reference_card) = (read_model(run / "model.safetensors") for run in (cached, live))
    assert model.state_dict().keys() == reference.state_dict().keys()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    score, reference_score = card.training.pop("score"), reference_card.training.pop("score")
    assert score == pytest.approx(reference_score, rel=1e-4)
    assert card.training == reference_card.training


@pytest.mark.parametrize("name", TASKS)
def test_cached_run_equals_the_ordinary_loop(run_train: Run, tmp_path: Path, name: str) -> None:
    settings = [*FROZEN, *NONE, *TASKS[name]]
    cached = run_train(tmp_path / "cached", *settings)
    live = run_train(tmp_path / "live", *settings, "transfer.features=live")
    assert_same_training(cached, live)
    assert len(folders(cached)) == 1
    assert {path.name for path in live.iterdir()} == {path.name for path in cached.iterdir()}


@pytest.mark.parametrize("name", ["binary", "multiclass", "ordinal", "regression"])
def test_as_many_views_as_epochs_equal_the_ordinary_loop(run_train: Run, tmp_path: Path, name: str) -> None:
    settings = [*FROZEN, *AUGMENTED, *TASKS[name]]
    cached = run_train(tmp_path / "cached", *settings, "transfer.views=3")
    live = run_train(tmp_path / "live", *settings)
    assert_same_training(cached, live)
    assert len(folders(cached)) == 4
    keys = [read_json(folder / "key.json")["view"] for folder in folders(cached)]
    assert sorted(-1 if key is None else key["epoch"] for key in keys) == [-1, 0, 1, 2]


def test_soft_targets_are_learnt_from_cached_features_as_through_the_network(
    run_train: Run,
    copy_store: Callable[..., Path],
    certify: Callable[[Path], None],
    vote: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = copy_store()
    vote(store / "labels.parquet")
    certify(store)
    settings = [f"store={store}", *NONE, *FROZEN, "model.head=auto"]
    cached = run_train(tmp_path / "cached", *settings)
    said = capsys.readouterr().err
    assert "the head is trained, not solved: it has no closed form with soft targets" in said
    assert_same_training(cached, run_train(tmp_path / "live", *settings, "transfer.features=live"))
    # The labels alone give other weights: the votes were used.
    plain = run_train(tmp_path / "plain", *NONE, *FROZEN)
    weights = [read_model(run / "model.safetensors")[0].head.linear.weight for run in (cached, plain)]
    assert (weights[0] - weights[1]).abs().max() > 1e-3


def test_runs_of_one_network_share_the_features_of_their_evaluations(
    run_train: Run, run_evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = {"auto": "model.head=auto", "svm": "model.head=svm", "linear": "model.head=linear"}
    runs = [run_train(tmp_path / name, *FROZEN, *NONE, head) for name, head in heads.items()]
    computed: list[int] = []
    original = cached_features.compute_features

    def count(*arguments: Any) -> Any:
        for places, features in original(*arguments):
            computed.append(len(places))
            yield places, features

    monkeypatch.setattr(cached_features, "compute_features", count)
    run_evaluate(runs[0], "split=test")
    # One batch holds all test images; those of validation are there since the training.
    assert len(computed) == 1
    cached = [run_evaluate(run, "split=test") for run in runs]
    assert len(computed) == 1
    assert len(folders(runs[0])) == 1
    shutil.rmtree(tmp_path / "features")
    for run, folder in zip(runs, cached, strict=True):
        live = run_evaluate(run, "split=test", f"out={tmp_path / 'again' / run.name}")
        scores, others = (
            pq.read_table(one / "predictions.parquet").column("logits").to_pylist() for one in (folder, live)
        )
        np.testing.assert_allclose(scores, others, rtol=1e-4, atol=1e-4)
    assert len(computed) == 1
    assert not (tmp_path / "features").exists()


def test_features_of_another_network_are_not_taken(run_train: Run, run_evaluate: Run, tmp_path: Path) -> None:
    frozen = run_train(tmp_path / "frozen", *FROZEN, *NONE)
    before = [sha256_file(path) for path in sorted(folders(frozen)[0].iterdir())]
    other = run_train(tmp_path / "other", *FROZEN, *NONE, "transfer=finetune")
    run_evaluate(other, "split=test")
    assert [sha256_file(path) for path in sorted(folders(frozen)[0].iterdir())] == before


def test_random_crops_are_views_and_validation_is_the_middle(run_train: Run, tmp_path: Path) -> None:
    crops = [*FROZEN, *NONE, "crop.scales=[26,32]", "crop.size=24"]
    cached, live = run_train(tmp_path / "cached", *crops, "transfer.views=3"), run_train(tmp_path / "live", *crops)
    assert_same_training(cached, live)
    run_train(tmp_path / "whole", *FROZEN, *NONE)
    assert len(folders(cached)) == 4 + 1


def test_features_of_volumes_are_those_of_their_normalisation(
    volume_store: Store, run_train: Run, tmp_path: Path, tiny3d: None
) -> None:
    volumes = [*FROZEN, *NONE, "model.name=tiny3d", f"store={volume_store.folder}"]
    cached = run_train(tmp_path / "cached", *volumes)
    assert_same_training(cached, run_train(tmp_path / "live", *volumes, "transfer.features=live"))
    run_train(tmp_path / "other", *volumes, "model.normalize=min_max")
    assert len(folders(cached)) == 2


def test_fewer_views_come_again(run_train: Run, tmp_path: Path) -> None:
    settings = [*FROZEN, *AUGMENTED, "optimizer.lr=1e-9", "trainer.batch_size=64"]
    two = log_of(run_train(tmp_path / "two", *settings, "transfer.features=cached", "transfer.views=2"))
    losses = [row["train_loss"] for row in two]
    assert losses[0] == pytest.approx(losses[2], abs=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-5


def test_a_second_run_computes_nothing_and_is_the_same_to_the_bit(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*FROZEN, *NONE, "model.dropout=0.5"]
    first = run_train(tmp_path / "first", *settings)
    assert "features train: 24 of 24 images computed, 0 read from the cache" in capsys.readouterr().err
    monkeypatch.setattr(cached_features, "compute_features", lambda *arguments: pytest.fail("computed again"))
    second = run_train(tmp_path / "second", *settings)
    assert "features val: 0 of 12 images computed, 12 read from the cache" in capsys.readouterr().err
    assert log_of(first) == log_of(second)
    assert sha256_file(first / "model.safetensors") == sha256_file(second / "model.safetensors")


def test_a_run_does_not_depend_on_what_others_computed_before(
    run_train: Run, tmp_path: Path, copy_store: Callable[..., Path], store: Store
) -> None:
    """Another batch size, labels that leave rows out: other portions of the same rows, and the same bits."""
    settings = [*FROZEN, *NONE]
    run_train(tmp_path / "a" / "other", *settings, "task=multilabel", "task.labels=[low]", "trainer.batch_size=5")
    shared = run_train(tmp_path / "a" / "run", *settings)
    alone = run_train(tmp_path / "b" / "run", *settings)
    assert len(folders(shared)) == 1
    assert log_of(shared) == log_of(alone)
    assert sha256_file(shared / "model.safetensors") == sha256_file(alone / "model.safetensors")


def test_a_damaged_row_is_computed_again_and_said(
    run_train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], store: Store
) -> None:
    settings = [*FROZEN, *NONE]
    first = run_train(tmp_path / "first", *settings)
    (folder,) = folders(first)
    row = int(rows_of(read_split(store, "default")[0], "train")[3])
    values = np.load(folder / "features.npy", mmap_mode="r+")
    values[row, 7] += 1
    values.flush()
    capsys.readouterr()
    second = run_train(tmp_path / "second", *settings)
    said = capsys.readouterr().err
    assert "notice: features train: 1 image in the cache damaged: computed again" in said
    assert log_of(first) == log_of(second)


def test_a_run_that_is_broken_off_goes_on(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*FROZEN, *AUGMENTED, "transfer.views=2"]
    original, calls = cached_features.compute_features, []

    def fail_at_the_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(cached_features, "compute_features", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_train(tmp_path / "a" / "run", *settings)
    monkeypatch.setattr(cached_features, "compute_features", original)
    capsys.readouterr()
    broken = run_train(tmp_path / "a" / "run", *settings)
    assert "view 1/2: 0 of 24 images computed" in capsys.readouterr().err
    whole = run_train(tmp_path / "b" / "run", *settings)
    assert sha256_file(broken / "model.safetensors") == sha256_file(whole / "model.safetensors")


def test_a_training_on_features_is_resumed_to_the_bit(run_train: Run, tmp_path: Path) -> None:
    settings = [*FROZEN, *NONE, "model.dropout=0.3", "trainer.ema_decay=0.8", "checkpoint.minutes=0"]
    looks: list[int] = []

    class KilledError(BaseException):
        pass

    def look(self: CheckpointManager, **given: bool) -> None:
        looks.append(1)
        if len(looks) == 6:
            raise KilledError
        original(self, **given)

    original = CheckpointManager.checkpoint_if_due
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointManager, "checkpoint_if_due", look)
        with pytest.raises(KilledError):
            run_train(tmp_path / "run", *settings)
    broken = run_train(tmp_path / "run", *settings)
    whole = run_train(tmp_path / "whole", *settings)
    assert log_of(broken) == log_of(whole)
    assert sha256_file(broken / "model.safetensors") == sha256_file(whole / "model.safetensors")


def test_other_weights_seeds_and_augmentations_have_their_own_features(
    run_train: Run, tmp_path: Path, store: Store
) -> None:
    settings = [*FROZEN, *AUGMENTED, "trainer.max_steps=1", "transfer.views=1"]
    # Random weights: the seed is the network's, too.
    for name, more in (("a", []), ("b", ["seed=1"]), ("c", ["augment.transforms.Affine.rotate=[-1,1]"])):
        run_train(tmp_path / name, *settings, *more)
    keys = [read_json(folder / "key.json") for folder in folders(tmp_path / "a")]
    assert len(keys) == 2 + 2 + 1
    assert len({key["weights_sha256"] for key in keys}) == 2
    assert {(key["store_sha256"], key["precision"], key["device"]) for key in keys} == {(store.sha256, "fp32", "cpu")}


def test_no_row_of_the_test_split_is_read_or_kept(
    run_train: Run, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[int] = set()
    images = Store.images
    monkeypatch.setattr(Store, "images", lambda self, rows: read.update(rows.tolist()) or images(self, rows))
    run = run_train(tmp_path / "run", *FROZEN, *AUGMENTED, "transfer.views=2")
    test = rows_of(read_split(store, "default")[0], TEST)
    assert len(test) == 12
    assert read
    assert not read & set(test.tolist())
    for folder in folders(run):
        assert (np.load(folder / "digests.npy")[test] == 0).all()
        assert (np.load(folder / "features.npy")[test] == 0).all()


def test_what_is_kept_is_a_model_like_any_other(run_train: Run, run_evaluate: Run, tmp_path: Path) -> None:
    run = run_train(tmp_path / "run", *FROZEN, *NONE)
    metrics = read_json(run_evaluate(run, "split=val") / "metrics.json")
    card = read_card(run / "model.safetensors")
    assert metrics["auc"]["value"] == pytest.approx(card.training["score"], abs=1e-6)
    assert set(read_json_lines(run / "metrics.jsonl")[0]["lr"]) == {"head"}


# --- when


def test_without_augmentation_a_frozen_run_is_cached_and_with_it_a_notice_says_how(
    run_train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train(tmp_path / "live", "transfer=frozen", "augment=radiograph")
    assert "transfer.views=K" in capsys.readouterr().err
    assert not (tmp_path / "features").exists()
    run_train(tmp_path / "cached", "transfer=frozen", "augment=auto")
    assert (tmp_path / "features").is_dir()
    assert "augment=auto: none, since features of a frozen network are computed once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["transfer=finetune", "transfer.features=cached", "augment=none"], "layer4 of the network is trained"),
        (["transfer=finetune", "transfer.views=2"], "transfer=frozen"),
    ],
)
def test_a_network_that_changes_has_no_fixed_features(
    run_train: Run, tmp_path: Path, arguments: list[str], part: str
) -> None:
    with pytest.raises(ConfigError, match=part):
        run_train(tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_the_folder_of_the_features_is_no_run(run_train: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose another name"):
        run_train(tmp_path / "features", *FROZEN, *NONE)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["transfer.views=2", "augment=none"], "only one view"),
        (["transfer.features=cached", "augment=none", "crop.scales=[32,32]", "crop.size=24"], "transfer.views=10"),
        (["transfer.features=cached", "augment=radiograph"], "transfer.views=10"),
        (["transfer.features=live", "transfer.views=2"], "recomputes them in every epoch: remove one of the two"),
        (["transfer.features=cache"], "nearest: cached"),
        (["transfer.views=0"], ">= 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    compose_train: Callable[..., TrainJob], tmp_path: Path, arguments: list[str], part: str
) -> None:
    with pytest.raises(ConfigError, match=part):
        compose_train(tmp_path / "run", "transfer=frozen", *arguments)
