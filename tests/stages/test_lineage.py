"""Chains of weights: what a run inherits, and whom none of its ancestors may have seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.files import read_json, sha256_file
from medcls.models.families import build_backbone
from medcls.runs.model_file import read_card, read_model

Run = Callable[..., Path]
Make = Callable[..., Store]


@pytest.fixture(scope="session")
def make_hospital(
    write_source: Callable[..., Path],
    run_prepare: Callable[..., Store],
    draw_picture: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Make:
    """A store of patients name00, name01 …: make_hospital("a", pictures=1); `prefix` gives them other names.

    Two hospitals of the same `pictures` have the same pixels. `splits` says of every three patients, one of each grade,
    where they are: t train, v val, e test.
    """

    def make(name: str, *arguments: str, pictures: int, prefix: str | None = None, splits: str = "ttve") -> Store:
        folder = tmp_path_factory.mktemp(name)
        names = {"t": "train", "v": "val", "e": "test"}

        def rewrite(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            numbers = [int(row["patient_id"][1:]) for row in rows]
            return [
                row | {"patient_id": f"{prefix or name}{number:02d}", "split": names[splits[number // 3]]}
                for row, number in zip(rows, numbers, strict=True)
            ]

        raw = write_source(folder / "raw", patients=3 * len(splits), classes=("0", "1", "2"), rewrite=rewrite)
        for number, path in enumerate(sorted((raw / "images").iterdir())):
            cv2.imwrite(str(path), draw_picture(number // 2 % 3, 1000 * pictures + number))
        return run_prepare(raw, folder / name, *arguments)

    return make


@pytest.fixture(scope="session")
def hospitals(make_hospital: Make) -> dict[str, Store]:
    """Three that share neither patients nor pixels; do not write into them."""
    return {name: make_hospital(name, pictures=number) for number, name in enumerate("abc", start=1)}


@pytest.fixture(scope="session")
def chain(run_train: Run, hospitals: dict[str, Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three runs: c was started from b, which was started from a; do not write into them."""
    folder = tmp_path_factory.mktemp("chain")
    run_train(folder / "a", f"store={hospitals['a'].folder}", "seed=1")
    run_train(folder / "b", f"store={hospitals['b'].folder}", f"model.weights={folder / 'a'}", "seed=2")
    weights = f"model.weights={folder / 'b' / 'model.safetensors'}"
    run_train(folder / "c", f"store={hospitals['c'].folder}", weights, "transfer=frozen", "task=binary",
              "task.classes={0: 0, 1: 1, 2: 1}", "seed=3")  # fmt: skip
    return folder


def model_of(run: Path) -> Path:
    return run / "model.safetensors"


def seen_by(store: Store, splits: Sequence[str] = "ttv") -> set[tuple[str, str]]:
    """(kind, value) of the patients and images of the first groups of three patients."""
    patients = sorted(set(store.column("patient_id")))[: 3 * len(splits)]
    rows = [i for i, patient in enumerate(store.column("patient_id")) if patient in patients]
    images = store.column("pixel_sha256", rows)
    return {("patient_id", patient) for patient in patients} | {("pixel_sha256", image) for image in images}


# --- what a run inherits


def test_backbone_comes_from_the_run_and_the_head_is_new(chain: Path) -> None:
    parent, child = read_model(model_of(chain / "b"))[0], read_model(model_of(chain / "c"))[0]
    inherited = parent.backbone.state_dict()
    assert all(torch.equal(value, inherited[name]) for name, value in child.backbone.state_dict().items())
    assert (parent.head.linear.out_features, child.head.linear.out_features) == (3, 1)
    assert not torch.equal(parent.head.linear.weight[:1], child.head.linear.weight)


def test_card_names_every_ancestor_oldest_first(chain: Path, hospitals: dict[str, Store]) -> None:
    assert read_card(model_of(chain / "a")).ancestors == []
    for run, names in (("b", "a"), ("c", "ab")):
        ancestors = read_card(model_of(chain / run)).ancestors
        assert [ancestor["run"] for ancestor in ancestors] == list(names)
        for ancestor, name in zip(ancestors, names, strict=True):
            assert ancestor["sha256"] == sha256_file(model_of(chain / name))
            assert ancestor["store_sha256"] == hospitals[name].sha256
            assert ancestor["task"] == {"kind": "multiclass", "classes": ["0", "1", "2"]}
            assert ancestor["deidentify"] == {"kind": "declared", "key_fingerprint": None}
            assert ancestor["seed"] == {"a": 1, "b": 2}[name]
            assert (ancestor["weights"], ancestor["seen"]) == ("run", True)
    assert str(chain) not in str(read_card(model_of(chain / "c")))


def test_run_keeps_whom_all_its_ancestors_have_seen(chain: Path, hospitals: dict[str, Store]) -> None:
    assert not (chain / "a" / "ancestors.parquet").exists()
    table = pq.read_table(chain / "c" / "ancestors.parquet")
    assert table.column_names == ["ancestor", "kind", "value"]
    rows = table.to_pylist()
    for name in "ab":
        sha256 = sha256_file(model_of(chain / name))
        found = [(row["kind"], row["value"]) for row in rows if row["ancestor"] == sha256]
        assert len(found) == len(set(found)) == 9 + 18  # two images of each of the nine patients of train and val
        assert set(found) == seen_by(hospitals[name])
    assert len(rows) == 2 * 27


def test_imagenet_has_no_patients(
    run_train: Run, hospitals: dict[str, Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").mkdir()
    save_file(build_backbone("resnet18").body.state_dict(), tmp_path / "weights" / "resnet18-imagenet.safetensors")
    settings = ["model.weights=imagenet", f"weights_dir={tmp_path / 'weights'}"]
    run = run_train(tmp_path / "run", f"store={hospitals['a'].folder}", *settings)
    (ancestor,) = read_card(model_of(run)).ancestors
    assert set(ancestor) == {"weights", "file", "sha256"}
    assert ancestor["weights"] == "imagenet"
    assert not (run / "ancestors.parquet").exists()
    assert "not comparable" not in capsys.readouterr().err


# --- biased transfer


def test_patients_that_the_parent_was_selected_on_are_no_validation(
    run_train: Run, chain: Path, hospitals: dict[str, Store], tmp_path: Path
) -> None:
    parent = chain / "a"
    with pytest.raises(
        DataError, match=r"3 patients of store=.* by its ancestor a \(sha256 .*, the first in row [0-9]+ of manifest"
    ) as error:
        run_train(tmp_path / "run", f"store={hospitals['a'].folder}", f"model.weights={parent}")
    assert error.value.exit_code == 65
    assert "they are in val or test of split.name=default (biased transfer); make a split" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_no_ancestor_of_any_generation_may_have_seen_them_although_its_run_is_gone(
    run_train: Run, chain: Path, make_hospital: Make, tmp_path: Path
) -> None:
    shutil.copytree(chain / "c", tmp_path / "only")
    # Patients a00 to a08, whom the first of three models has seen, lie in test now; the pixels are others.
    again = make_hospital("again", prefix="a", pictures=8, splits="eeetv")
    task = ["task=binary", "task.classes={0: 0, 1: 1, 2: 1}"]
    with pytest.raises(
        DataError, match=r"9 patients of .* by its ancestor a \(sha256 .*, the first in row 0 of manifest"
    ):
        run_train(tmp_path / "run", f"store={again.folder}", f"model.weights={tmp_path / 'only'}", *task)


def test_images_are_known_again_under_other_names(
    run_train: Run, chain: Path, make_hospital: Make, tmp_path: Path
) -> None:
    renamed = make_hospital("renamed", prefix="z", pictures=1, splits="ettv")
    with pytest.raises(DataError, match=r"6 images of store=.* by its ancestor a \(sha256"):
        run_train(tmp_path / "run", f"store={renamed.folder}", f"model.weights={chain / 'b'}")


def test_patients_of_an_ancestor_may_be_trained_on_again(
    run_train: Run, chain: Path, make_hospital: Make, tmp_path: Path
) -> None:
    """The test patients of a, a09 to a11, were never seen; the nine others are all in train now."""
    later = make_hospital("later", prefix="a", pictures=1, splits="tttev")
    run = run_train(tmp_path / "run", f"store={later.folder}", f"model.weights={chain / 'a'}")
    assert read_card(model_of(run)).ancestors[0]["run"] == "a"


def test_evaluation_elsewhere_asks_for_the_ancestors_too(
    run_evaluate: Run, chain: Path, hospitals: dict[str, Store], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(chain / "c", tmp_path / "c"))
    for name in "ab":
        with pytest.raises(DataError, match=rf"9 patients of .* by its ancestor {name} \(sha256 .*: remove them from"):
            run_evaluate(run, f"store={hospitals[name].folder}", "split=all")
    folder = run_evaluate(run, f"store={hospitals['a'].folder}", "split=test")
    assert read_json(folder / "metrics.json")["n_patients"] == 3


# --- what cannot be compared


def write_key(path: Path, byte: str) -> str:
    path.write_text(byte * 64)
    return f"deidentify.key_file={path}"


def test_pseudonyms_of_one_key_are_compared(
    run_train: Run, make_hospital: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = write_key(tmp_path / "key.txt", "1")
    first = make_hospital("p", "deidentify=hmac", key, pictures=4)
    second = make_hospital("q", "deidentify=hmac", key, prefix="p", pictures=5, splits="vtte")
    parent = run_train(tmp_path / "parent", f"store={first.folder}")
    fingerprint = first.info["deidentify"]["key_fingerprint"]
    assert read_card(model_of(parent)).deidentify == {"kind": "hmac", "key_fingerprint": fingerprint}
    with pytest.raises(
        DataError, match=r"3 patients of .* by its ancestor parent .*, the first in row [0-9]+ of manifest"
    ):
        run_train(tmp_path / "run", f"store={second.folder}", f"model.weights={parent}")
    assert "not comparable" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["other key", "declared"])
def test_pseudonyms_of_two_keys_are_said_not_to_compare_and_pixels_still_are(
    run_train: Run,
    chain: Path,
    make_hospital: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    first = chain / "a"
    if kind == "other key":
        key = write_key(tmp_path / "first.txt", "1")
        store = make_hospital("k", "deidentify=hmac", key, prefix="a", pictures=1)
        first = run_train(tmp_path / "first", f"store={store.folder}")
    key = write_key(tmp_path / "second.txt", "2")
    other = make_hospital("l", "deidentify=hmac", key, prefix="a", pictures=6)
    run_train(tmp_path / "run", f"store={other.folder}", f"model.weights={first}")
    said = [line for line in capsys.readouterr().err.splitlines() if "not comparable" in line]
    assert len(said) == 1
    assert f"patients of {first.name} (sha256" in said[0]
    assert "whose store has other pseudonym keys, or declared ids" in said[0]
    same = make_hospital("m", "deidentify=hmac", key, prefix="a", pictures=1)
    with pytest.raises(DataError, match=r"6 images of .* were trained or selected on"):
        run_train(tmp_path / "again", f"store={same.folder}", f"model.weights={first}")


def test_pixels_of_another_preparation_are_said_not_to_compare(
    run_train: Run, chain: Path, make_hospital: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = make_hospital("d", "image.size=40", pictures=1)
    run_train(tmp_path / "run", f"store={larger.folder}", f"model.weights={chain / 'b'}")
    said = [line for line in capsys.readouterr().err.splitlines() if "not comparable" in line]
    assert len(said) == 1
    assert "images of a (sha256" in said[0]
    assert "images of b (sha256" in said[0]
    assert "patients of" not in said[0]


def test_file_without_its_run_has_unknown_patients(
    run_train: Run, chain: Path, hospitals: dict[str, Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = Path(shutil.copy(model_of(chain / "b"), tmp_path / "sent-by-mail.safetensors"))
    run = run_train(tmp_path / "run", f"store={hospitals['a'].folder}", f"model.weights={bare}")
    said = [line for line in capsys.readouterr().err.splitlines() if "not comparable" in line]
    assert len(said) == 1
    assert said[0].count("which are unknown (a file without its run)") == 2  # a and b
    ancestors = read_card(model_of(run)).ancestors
    assert [(a["run"], a["seen"]) for a in ancestors] == [("a", False), (tmp_path.name, False)]
    assert not (run / "ancestors.parquet").exists()


def test_foreign_weights_have_unknown_patients(
    run_train: Run, hospitals: dict[str, Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(build_backbone("resnet18").body.state_dict(), tmp_path / "foreign.safetensors")
    run = run_train(
        tmp_path / "run", f"store={hospitals['a'].folder}", f"model.weights={tmp_path / 'foreign.safetensors'}"
    )
    assert "patients and images of foreign.safetensors (sha256" in capsys.readouterr().err
    (ancestor,) = read_card(model_of(run)).ancestors
    assert (ancestor["weights"], ancestor["file"]) == ("file", "foreign.safetensors")


# --- refused


def test_other_architecture_is_refused_by_name(run_train: Run, chain: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a resnet18, model.name=resnet34 .*: say model=resnet18"):
        run_train(tmp_path / "run", "model=resnet34", f"model.weights={chain / 'a'}")


def test_run_that_has_not_finished(run_train: Run, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    with pytest.raises(MissingInputError, match=r"half is a folder without model.safetensors \(an unfinished run\?\)"):
        run_train(tmp_path / "run", f"model.weights={tmp_path / 'half'}")


@pytest.mark.parametrize("name", ["patients.parquet", "images.parquet", "ancestors.parquet"])
def test_patients_of_another_run_beside_a_model_are_noticed(
    run_train: Run, run_evaluate: Run, chain: Path, hospitals: dict[str, Store], tmp_path: Path, name: str
) -> None:
    run = Path(shutil.copytree(chain / "b", tmp_path / "b"))
    shutil.copy(chain / "c" / name, run / name)
    with pytest.raises(DataError, match=f"{name} is not the file that was written with this run's model"):
        run_train(tmp_path / "run", f"store={hospitals['c'].folder}", f"model.weights={run}")
    with pytest.raises(DataError, match=f"changed since the training ended: {name}"):
        run_evaluate(run, f"store={hospitals['c'].folder}", "split=test")


def test_damaged_model_is_refused(run_train: Run, chain: Path, hospitals: dict[str, Store], tmp_path: Path) -> None:
    run = Path(shutil.copytree(chain / "a", tmp_path / "a"))
    content = bytearray(model_of(run).read_bytes())
    content[-1] ^= 1
    model_of(run).write_bytes(content)
    with pytest.raises(DataError, match="its weights have changed since they were written"):
        run_train(tmp_path / "run", f"store={hospitals['b'].folder}", f"model.weights={run}")


def test_finished_run_of_a_parent_that_has_changed_is_no_answer(
    run_train: Run, chain: Path, hospitals: dict[str, Store], tmp_path: Path
) -> None:
    parent = Path(shutil.copytree(chain / "a", tmp_path / "a"))
    given = (tmp_path / "run", f"store={hospitals['b'].folder}", f"model.weights={parent}")
    run = run_train(*given)
    before = sha256_file(model_of(run))
    run_train(*given)
    assert sha256_file(model_of(run)) == before
    shutil.copy(model_of(chain / "b"), model_of(parent))
    with pytest.raises(ConfigError, match="was trained on other weights than"):
        run_train(*given)
    shutil.rmtree(parent)
    run_train(*given)
