"""New data must not reshuffle: split.extends, and the notice where it is left out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.identity_map import map_path
from medcls.data.splits import SPLIT_NAMES, read_split
from medcls.data.store import Store
from medcls.errors import ConfigError, MissingInputError
from medcls.identity import write_key

Rows = list[dict[str, Any]]
Prepare = Callable[..., Store]


@pytest.fixture
def stores(write_source: Callable[..., Path], run_prepare: Prepare, tmp_path: Path) -> tuple[Path, Store]:
    """A source of 30 patients, and the store of its first 20."""
    raw = write_source(tmp_path / "raw", patients=30)
    rows = (raw / "labels.csv").read_text().splitlines()
    (raw / "old.csv").write_text("\n".join(rows[:41]) + "\n")
    return raw, run_prepare(raw, tmp_path / "stores" / "old", labels="old.csv")


def places(store: Store, name: str = "default") -> dict[str, str]:
    splits = read_split(store, name)[0]
    return {p: SPLIT_NAMES[code] for p, code in zip(store.column("patient_id"), splits, strict=True)}


def test_known_patients_stay_and_new_ones_fill_the_shares(
    stores: tuple[Path, Store], run_prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, old = stores
    for seed in range(3):
        new = run_prepare(
            raw,
            tmp_path / "stores" / f"new{seed}",
            f"split.extends={old.folder}",
            f"split.seed={seed}",
            "split.val=0.2",
        )
        before, after = places(old), places(new)
        assert {patient: after[patient] for patient in before} == before
        counts = [list(after.values()).count(name) for name in ("train", "val", "test")]
        assert counts == [18, 6, 6], "the new ones make up for the old shares"
    certificate = read_split(new, "default")[1]
    assert certificate["extends"][0] | {"store_sha256": "", "split_sha256": ""} == {
        "store": "old",
        "store_sha256": "",
        "split": "default",
        "split_sha256": "",
        "patients_known": 20,
        "patients_known_by_image": 0,
    }
    said = capsys.readouterr().err
    assert "split default extends split default of store old: 20 patients keep their split" in said
    assert "another of its splits" not in said


def test_chains_are_recorded(stores: tuple[Path, Store], run_prepare: Prepare, tmp_path: Path) -> None:
    raw, old = stores
    second = run_prepare(raw, tmp_path / "stores" / "second", f"split.extends={old.folder}")
    third = run_prepare(raw, tmp_path / "stores" / "third", f"split.extends={second.folder}/splits/default.json")
    chain = read_split(third, "default")[1]["extends"]
    assert [(link["store"], link["store_sha256"]) for link in chain] == [("second", second.sha256), ("old", old.sha256)]
    assert places(third) == places(second)


def test_a_new_patient_follows_an_identical_image(
    stores: tuple[Path, Store], run_prepare: Prepare, tmp_path: Path, read_labels_csv: Any, write_labels: Any
) -> None:
    """The known patient of that image is not in the new store: only its picture says who it is."""
    raw, old = stores
    rows = read_labels_csv(raw / "labels.csv")
    for split in ("train", "val", "test"):
        patient = next(p for p, name in places(old).items() if name == split)
        copy = next(row for row in rows if row["patient_id"] == patient)
        shutil.copy(raw / copy["path"], raw / "copy.png")
        others = [row for row in rows if row["patient_id"] != patient]
        write_labels(raw / "new.csv", [*others, copy | {"path": "copy.png", "patient_id": "q"}])
        new = run_prepare(raw, tmp_path / "stores" / split, f"split.extends={old.folder}", labels="new.csv")
        assert places(new)["q"] == split
        assert read_split(new, "default")[1]["extends"][0]["patients_known_by_image"] == 1


def test_what_does_not_fit_is_refused(
    stores: tuple[Path, Store], run_prepare: Prepare, tmp_path: Path, read_labels_csv: Any, write_labels: Any
) -> None:
    raw, old = stores
    extends, new = f"split.extends={old.folder}", tmp_path / "stores" / "new"
    rows = read_labels_csv(raw / "labels.csv")
    write_labels(raw / "given.csv", [row | {"split": "train"} for row in rows])
    with pytest.raises(ConfigError, match=r"split\.extends=.*already gives a split \(labels file\)"):
        run_prepare(raw, new, extends, labels="given.csv")
    write_labels(raw / "strange.csv", [row | {"patient_id": f"x{row['patient_id']}"} for row in rows[40:]])
    with pytest.raises(ConfigError, match=r"none of the 10 patients of this store is in it \(20 patients\)"):
        run_prepare(raw, tmp_path / "stores" / "strange", extends, labels="strange.csv")
    with pytest.raises(MissingInputError, match=r"expected a store's folder, or STORE/splits/NAME\.json"):
        run_prepare(raw, new, f"split.extends={tmp_path}")
    write_key(tmp_path / "key.txt")
    arguments = ["deidentify=hmac", f"deidentify.key_file={tmp_path / 'key.txt'}"]
    with pytest.raises(ConfigError, match=r"its patients have other pseudonyms \(found declared, key None; here hmac"):
        run_prepare(raw, tmp_path / "stores" / "named", extends, *arguments)
    assert map_path(tmp_path / "stores" / "named").is_file()


def test_pseudonyms_of_one_key_are_known(stores: tuple[Path, Store], run_prepare: Prepare, tmp_path: Path) -> None:
    raw, _ = stores
    write_key(tmp_path / "key.txt")
    arguments = ["deidentify=hmac", f"deidentify.key_file={tmp_path / 'key.txt'}"]
    old = run_prepare(raw, tmp_path / "hidden" / "old", *arguments, labels="old.csv")
    new = run_prepare(raw, tmp_path / "hidden" / "new", *arguments, f"split.extends={old.folder}")
    assert {patient: places(new)[patient] for patient in places(old)} == places(old)


def test_a_store_beside_with_the_same_patients_in_other_splits_is_named(
    stores: tuple[Path, Store], run_prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, old = stores
    new = run_prepare(raw, tmp_path / "stores" / "new", "split.seed=5")
    moved = sum(places(old)[patient] != places(new)[patient] for patient in places(old))
    assert moved > 0
    expected = f"notice: 20 patient ids are also in store {old.folder}, {moved} in another of its splits"
    assert expected in capsys.readouterr().err
    run_prepare(raw, tmp_path / "elsewhere" / "new", "split.seed=5", f"reuse={old.folder}")
    assert expected in capsys.readouterr().err
    run_prepare(raw, tmp_path / "elsewhere" / "new", "split.seed=5", f"reuse={old.folder}")
    assert "another of its splits" not in capsys.readouterr().err, "said once, when the split is made"
    run_prepare(raw, tmp_path / "stores" / "third", "split.seed=6")
    said = capsys.readouterr().err
    assert (said.count("split.extends="), said.count("(and 1 more store beside it)")) == (1, 1)
