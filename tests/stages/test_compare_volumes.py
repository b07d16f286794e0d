"""The recipe of Hosseini-Asl et al.: pretrained without labels on one store, five tasks on another, the same folds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcls.compare.compare import compare
from medcls.data.manifest import column_list, read_table
from medcls.data.store import Store
from medcls.errors import DataError
from medcls.files import read_json
from medcls.pretrain.pretrain import pretrain
from medcls.runs.model_file import read_card

LABELS = ("NC", "MCI", "AD")
TASKS = {
    "ad_nc": {"NC", "AD"},
    "ad_mci": {"MCI", "AD"},
    "mci_nc": {"NC", "MCI"},
    "admci_nc": {"NC", "AD+MCI"},
    "ad_mci_nc": {"NC", "MCI", "AD"},
}
ARMS = ("scratch", "icip_frozen", "dsa_frozen", "dsa_finetuned")
SHORT = ("trainer.batch_size=4", "trainer.epochs=2", "trainer.max_steps=2", "workers=0", "device=cpu")
Compare = Callable[..., Path]


@pytest.fixture(scope="module")
def heads(make_volume_store: Callable[..., Store]) -> Store:
    """24 volumes of 24 patients, large enough for acnn3d, labelled NC, MCI or AD."""
    return make_volume_store("image.size=[24,24,24]", hospital="target", labels=LABELS)


@pytest.fixture(scope="module")
def run_pretrain(compose_job: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Store], Path]:
    """An autoencoder of a store's volumes, by the settings of the study, in one epoch a level."""

    def run(store: Store) -> Path:
        folder = tmp_path_factory.mktemp("pretrained") / "cae"
        quick = ("trainer.epochs=1", "workers=0", "device=cpu", "figures=0")
        pretrain(compose_job("pretrain", "pretraining=ad_cae", f"store={store.folder}", f"run={folder}", *quick))
        return folder

    return run


@pytest.fixture(scope="module")
def pretrained(run_pretrain: Callable[[Store], Path], volume_store: Store) -> Path:
    """An autoencoder that has seen other patients than `heads`."""
    return run_pretrain(volume_store)


@pytest.fixture
def run_compare(heads: Store, executor: Any, compose_job: Callable[..., Any], tmp_path: Path) -> Compare:
    """Runs the comparison over two folds of heads and returns out: run_compare("ad_nc", weights=RUN)."""

    def run(task: str, *arguments: str, weights: Path) -> Path:
        out = tmp_path / task
        extra = f"extra=[{','.join((f'task={task}', f'model.weights={weights}', *SHORT))}]"
        given = (f"store={heads.folder}", f"out={out}", "folds.k=2", "folds.val=0.34", "replicates=100", extra)
        compare(compose_job("compare", "comparison=ad_dsa3dcnn", *given, *arguments))
        return out

    return run


def test_every_task_is_planned_on_the_same_folds(run_compare: Compare, pretrained: Path, executor: Any) -> None:
    tasks = ("ad_nc", "admci_nc")
    plans = [read_json(run_compare(task, "plan_only=true", weights=pretrained) / "plan.json") for task in tasks]
    assert executor.commands == []
    assert all(plan["folds"] == plans[0]["folds"] for plan in plans)
    for task, plan in zip(tasks, plans, strict=True):
        assert [work["name"] for work in plan["works"]] == [
            f"{arm}-{fold}" for fold in ("r1f1", "r1f2") for arm in ARMS
        ]
        assert all(f"task={task}" in work["settings"] for work in plan["works"])
    weights = {
        work["arms"][0]: next(text for text in work["settings"] if "model.weights" in text) for work in plan["works"]
    }
    assert weights == dict.fromkeys(ARMS, f"model.weights={pretrained}") | {"scratch": "model.weights=null"}


def test_other_labels_are_left_out_and_the_baseline_is_compared_with_every_arm(
    run_compare: Compare, pretrained: Path, heads: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run_compare("ad_nc", "only=[dsa_frozen,scratch]", weights=pretrained)
    folders = [out / "runs" / f"{arm}-r1f1" for arm in ("scratch", "dsa_frozen")]
    assert read_card(folders[1] / "model.safetensors").task.class_names == ["NC", "AD"]
    patients = dict(zip(heads.column("image_id"), heads.column("patient_id"), strict=True))
    found = read_json(out / "comparison.json")["sizes"]["all"]
    tested = {
        image: int(np.ravel(row)[0])
        for path in out.glob("runs/dsa_frozen-*/evaluation/*/predictions.parquet")
        for image, row in zip(*(column_list(read_table(path), name) for name in ("image_id", "y_true")), strict=True)
    }
    assert Counter(tested.values()) == {0: 6, 1: 6}, "of 18 patients that are not in the store's test split"
    assert {LABELS[int(patients[image][-2:]) % 3]: true for image, true in tested.items()} == {"NC": 0, "AD": 1}
    assert re.search(
        r"train: \d of \d images are left out: their label is not a class of the task", capsys.readouterr().err
    )

    assert set(found["arms"]) == {"scratch", "dsa_frozen", "voxels"}
    pairs = {(pair["first"], pair["second"]) for pair in found["pairs"]["auc"]}
    assert pairs == {("scratch", "dsa_frozen"), ("scratch", "voxels"), ("dsa_frozen", "voxels")}
    baselines = [read_json(f / "evaluation" / f"{heads.name}-test" / "metrics.json")["baseline"] for f in folders]
    assert baselines[0]["metrics"] == baselines[1]["metrics"], "one baseline for equal rows"
    fold = found["arms"]["voxels"]["folds"][0]["metrics"]
    assert fold["auc"] == pytest.approx(baselines[0]["metrics"]["auc"]["value"])
    page = (out / "report.html").read_text()
    assert "voxels is not a network" in page


def test_an_autoencoder_of_the_same_patients_is_refused_before_anything_runs(
    run_compare: Compare, run_pretrain: Callable[[Store], Path], heads: Store, executor: Any
) -> None:
    """Late split: it saw train and val of the store, which the folds test; labels or not."""
    with pytest.raises(
        DataError, match=r"arms\.icip_frozen: 18 patients .*by its ancestor cae .*the folds hold them out"
    ):
        run_compare("ad_nc", weights=run_pretrain(heads))
    assert executor.commands == []


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_whole_recipe(task: str, run_compare: Compare, pretrained: Path) -> None:
    """Four arms over two folds: eight trainings, each with its evaluation and its baseline."""
    out = run_compare(task, weights=pretrained)
    found = read_json(out / "comparison.json")
    assert found["failed"] == {}
    everything = found["sizes"]["all"]
    assert set(everything["arms"]) == {*ARMS, "voxels"}
    assert len(everything["pairs"]["auc"]) == 10
    for arm in ARMS:
        card = read_card(out / "runs" / f"{arm}-r1f1" / "model.safetensors")
        assert set(card.task.class_names) == TASKS[task]
        ancestors = [one["architecture"] for one in card.ancestors]
        assert ancestors == ([] if arm == "scratch" else ["autoencoder3d_hosseini"])
