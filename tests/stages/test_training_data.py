from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from medcls.config import TrainJob
from medcls.data.splits import read_split, rows_of
from medcls.data.store import Store
from medcls.data.targets import Task
from medcls.errors import DataError, MissingInputError
from medcls.train.training_data import check_grades, select_labelled
from tests.stages.conftest import open_training

Compose = Callable[..., TrainJob]
GRADES = Task("regression", ["0", "1", "2"], ["label"], grades=True)


def test_train_and_val_are_opened_and_only_train_is_augmented(
    compose_train: Compose, store: Store, tmp_path: Path
) -> None:
    data = open_training(compose_train(tmp_path / "run", "augment=radiograph", "seed=3"))
    splits, certificate = read_split(store, "default")
    assert data.train.rows.tolist() == rows_of(splits, "train").tolist()
    assert data.val.rows.tolist() == rows_of(splits, "val").tolist()
    assert data.train.augmentation is not None
    assert data.val.augmentation is None
    assert data.train.seed == 3
    assert data.certificate == certificate
    labels = pq.read_table(store.folder / "labels.parquet").column("label").to_pylist()
    assert data.val.targets[:, 0].tolist() == [float(labels[row]) for row in data.val.rows]


def test_classes_come_from_the_training_rows(
    compose_train: Compose,
    copy_store: Callable[..., Path],
    certify: Callable[[Path], None],
    store: Store,
    split_names: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    path = copy_store() / "labels.parquet"
    splits = split_names(store)
    table = pq.read_table(path)
    pairs = zip(table.column("image_id").to_pylist(), table.column("label").to_pylist(), strict=True)
    labels = ["5" if splits[image] == "test" else label for image, label in pairs]
    pq.write_table(table.set_column(table.column_names.index("label"), "label", [labels]), path)
    certify(path.parent)
    data = open_training(compose_train(tmp_path / "run", f"store={path.parent}"))
    assert data.task.class_names == ["0", "1", "2"]


def test_images_without_a_label_of_the_task_are_left_out_and_said(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task("binary", ["0", "1"], ["label"], {"0": 0, "1": 1})
    rows, targets, soft = select_labelled(task, store.read_labels(), np.arange(len(store)), split="train")
    assert soft is None
    assert (len(rows), targets.shape) == (32, (32, 1))
    assert "train: 16 of 48 images are left out" in capsys.readouterr().err
    with pytest.raises(DataError, match="val: no image has a label of this task"):
        select_labelled(Task("binary", ["x"], ["label"], {"x": 0}), store.read_labels(), rows, split="val")


def test_votes_are_soft_targets_of_training_only(
    vote: Callable[..., None],
    compose_train: Compose,
    copy_store: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = copy_store() / "labels.parquet"
    whole = open_training(compose_train(tmp_path / "run", f"store={path.parent}"))
    assert torch.equal(whole.train.soft, whole.train.targets)
    vote(path)
    data = open_training(compose_train(tmp_path / "run", f"store={path.parent}"))
    tied = np.isin(data.train.rows, range(6))
    assert tied.any()
    assert data.train.rows.tolist() == whole.train.rows.tolist()
    assert data.train.targets[:, 0].isnan().numpy().tolist() == tied.tolist()
    batch = data.train[(0, int(np.flatnonzero(tied)[0]))]
    torch.testing.assert_close(batch.targets, torch.tensor([[0.5, 0.5, 0]]))
    shared = np.isin(data.train.rows, range(6, 12))
    assert sorted(data.train.soft[int(np.flatnonzero(shared)[0])].tolist()) == pytest.approx([0, 1 / 3, 2 / 3])
    assert not set(data.val.rows) & set(range(6)), "a tie is no case of validation"
    assert data.val[(0, 0)].targets.shape == (1, 1)
    said = capsys.readouterr().err
    assert (
        f"train: {int((tied | shared).sum())} images with soft targets (votes of readers, uncertain labels), " in said
    )


def test_ordinal_training_takes_the_label_of_most_readers_and_says_so(
    vote: Callable[..., None],
    compose_train: Compose,
    copy_store: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = copy_store() / "labels.parquet"
    vote(path)
    data = open_training(compose_train(tmp_path / "run", f"store={path.parent}", "task=ordinal"))
    assert not data.train.targets.isnan().any()
    assert torch.equal(data.train.soft, data.train.targets)
    said = capsys.readouterr().err
    assert "train: only the majority label of the readers is used, not their votes: task.kind=ordinal" in said


@pytest.mark.parametrize("grade", [3.0, 1.5, -1.0])
def test_grade_that_training_does_not_know_is_refused(grade: float) -> None:
    targets = np.array([[0.0], [grade], [2.0]])
    with pytest.raises(DataError, match=f"val: grade {grade:g} does not occur in training \\(0 to 2\\)"):
        check_grades(GRADES, targets, split="val")
    check_grades(GRADES, targets[[0, 2]], split="val")
    check_grades(Task("regression", [], ["label"]), targets, split="val")


def test_missing_split_and_empty_split(
    compose_train: Compose,
    write_source: Callable[..., Path],
    run_prepare: Callable[..., Store],
    tmp_path: Path,
) -> None:
    with pytest.raises(MissingInputError, match=r"split.name=fold1: store has default"):
        open_training(compose_train(tmp_path / "run", "split.name=fold1"))
    raw = write_source(tmp_path / "raw", patients=12)
    whole = run_prepare(raw, tmp_path / "whole", "split.test=0.5", "split.val=0")
    with pytest.raises(DataError, match="12 train and 0 val images: expected both; prepare the store with both"):
        open_training(compose_train(tmp_path / "run", f"store={whole.folder}"))
