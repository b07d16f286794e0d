"""The split of a store: obeyed or made, searched for leaks, certified."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from medcls.data.splits import ORDER, read_split, write_split
from medcls.data.store import Store
from medcls.data.stratification import DEALING
from medcls.errors import ConfigError, DataError
from medcls.files import read_json

Rows = list[dict[str, Any]]
Prepare = Callable[..., Store]
WriteSource = Callable[..., Path]
SplitNames = Callable[..., dict[str, str]]


def give_splits(rows: Rows) -> Rows:
    """Patients 0-11 train, 12-17 val, 18-23 test: four or two of each class."""
    names = ["train"] * 24 + ["val"] * 12 + ["test"] * 12
    return [row | {"split": name} for row, name in zip(rows, names, strict=True)]


@pytest.fixture
def given(write_source: WriteSource, tmp_path: Path) -> Callable[..., Path]:
    """A source with a split column; `change` edits its rows."""
    return lambda change=list: write_source(tmp_path / "raw", rewrite=lambda rows: change(give_splits(rows)))


def certificate_of(store: Store) -> dict[str, Any]:
    return read_split(store, "default")[1]


def test_a_split_is_made_by_patient_with_every_class(small_store: Store, split_names: SplitNames) -> None:
    certificate = certificate_of(small_store)
    where: dict[str, set[str]] = {}
    for patient, name in zip(small_store.column("patient_id"), split_names(small_store).values(), strict=True):
        where.setdefault(patient, set()).add(name)
    assert all(len(names) == 1 for names in where.values())
    assert certificate["source"] == "random by patient, stratified by label"
    assert certificate["seed"] == 0
    assert set(certificate["strata"]) == set(ORDER)
    assert all(count > 0 for counts in certificate["strata"].values() for count in counts.values())
    assert certificate["patients_in_several_splits"] == {}
    assert certificate["images_in_several_splits"] == []
    assert sum(certificate["images"].values()) == 48
    assert sum(certificate["patients"].values()) == 24


def test_a_given_split_is_obeyed(
    given: Callable[..., Path], run_prepare: Prepare, tmp_path: Path, split_names: SplitNames
) -> None:
    store = run_prepare(given(), tmp_path / "store", "split.test=0.5")
    certificate = certificate_of(store)
    assert list(split_names(store).values()) == ["train"] * 24 + ["val"] * 12 + ["test"] * 12
    assert (certificate["source"], certificate["seed"], certificate["fractions"]) == ("labels file", None, None)


def test_damaged_certificate_is_made_again_once_it_is_removed_as_the_message_says(
    given: Callable[..., Path], run_prepare: Prepare, tmp_path: Path, split_names: SplitNames
) -> None:
    raw = given()
    store = run_prepare(raw, tmp_path / "store")
    certificate, before = store.folder / "splits" / "default.json", split_names(store)
    whole = certificate.read_bytes()
    certificate.write_bytes(whole.replace(b'"source": "l', b'"source": "L'))
    with pytest.raises(DataError, match="restore it, or remove it and run data_prep again"):
        run_prepare(raw, store.folder)
    certificate.unlink()
    assert split_names(run_prepare(raw, store.folder)) == before
    assert certificate.read_bytes() == whole


def two_splits(rows: Rows) -> Rows:
    rows[1]["split"] = "test"
    return rows


def test_a_patient_in_two_splits_is_refused_by_name(
    given: Callable[..., Path], run_prepare: Prepare, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="1 patient is in more than one split: 1 in train and test"):
        run_prepare(given(two_splits), tmp_path / "store")
    assert not (tmp_path / "store" / "splits").exists()


def test_a_patient_in_two_split_folders_is_not_offered_a_merge(
    given: Callable[..., Path], run_prepare: Prepare, tmp_path: Path
) -> None:
    raw = given()
    (raw / "labels.csv").unlink()
    for number, path in enumerate(sorted((raw / "images").iterdir())):
        split = "Training" if number % 4 else "Testing"
        target = raw / split / "ab"[number // 4 % 2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    (raw / "images").rmdir()
    with pytest.raises(DataError, match=r"correct the folders or patient_id\.pattern") as refused:
        run_prepare(raw, tmp_path / "store", r"patient_id.pattern='p(\d+)'", "split.on_missing=report", labels=None)
    assert "merge_linked" not in str(refused.value)
    assert "labels file" not in str(refused.value)


def test_a_patient_in_two_splits_is_dropped_from_training(
    given: Callable[..., Path],
    run_prepare: Prepare,
    tmp_path: Path,
    split_names: SplitNames,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = run_prepare(given(two_splits), tmp_path / "store", "split.on_leak=drop")
    splits, certificate = split_names(store), certificate_of(store)
    assert (splits["images/p00L.png"], splits["images/p00R.png"]) == ("dropped", "test")
    assert certificate["dropped"] == 1
    assert certificate["patients_in_several_splits"] == {"p00": ["train", "test"]}
    said = capsys.readouterr().err
    assert (
        "leaks found: 1 (on_leak=drop): 1 patient is in more than one split: 1 in train and test: 1 image left out of "
        "the split nearer to training; splits/default.json of the store lists them"
    ) in said
    assert "p00" not in said


def test_a_patient_in_two_splits_is_reported(
    given: Callable[..., Path],
    run_prepare: Prepare,
    tmp_path: Path,
    split_names: SplitNames,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = run_prepare(given(two_splits), tmp_path / "store", "split.on_leak=report")
    assert "1 in train and test: nothing is left out; splits/default.json of the store" in capsys.readouterr().err
    splits, certificate = split_names(store), certificate_of(store)
    assert (splits["images/p00L.png"], splits["images/p00R.png"]) == ("train", "test")
    assert certificate["patients_in_several_splits"] == {"p00": ["train", "test"]}


def copy_image(raw: Path, *, brightness: float = 1.0) -> None:
    """Patient 18 (test) gets patient 0's (train) left image."""
    source, target = raw / "images" / "p00L.png", raw / "images" / "p18L.png"
    if brightness == 1.0:
        shutil.copy(source, target)
        return
    picture = cv2.imread(str(source), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(target), np.clip(picture * brightness, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("brightness", "identical"), [(1.0, 1), (0.9, 0)])
def test_an_image_in_two_splits_is_refused_with_the_private_list(
    brightness: float, identical: int, given: Callable[..., Path], run_prepare: Prepare, tmp_path: Path
) -> None:
    raw = given()
    copy_image(raw, brightness=brightness)
    with pytest.raises(DataError) as error:
        run_prepare(raw, tmp_path / "store")
    message, listed = str(error.value), tmp_path / "store.same-images.csv"
    assert f"1 pair of the same image is in more than one split, {identical} of them identical: 1 in" in message
    assert f"{listed} lists the same images, mode 0600" in message
    assert "p00L" not in message
    assert listed.stat().st_mode & 0o777 == 0o600
    assert "images/p00L.png" in listed.read_text()
    assert "images/p18L.png" in listed.read_text()
    assert "split.on_leak=drop" in str(error.value)


def test_an_image_in_two_splits_is_dropped_from_training(
    given: Callable[..., Path],
    run_prepare: Prepare,
    tmp_path: Path,
    split_names: SplitNames,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw = given()
    copy_image(raw)
    store = run_prepare(raw, tmp_path / "store", "split.on_leak=drop")
    said = capsys.readouterr().err
    assert (
        "leaks found: 1 (on_leak=drop): 1 pair of the same image is in more than one split, 1 of them identical: 1 in "
        "train and test: 1 image left out"
    ) in said
    splits, certificate = split_names(store), certificate_of(store)
    assert (splits["images/p00L.png"], splits["images/p18L.png"]) == ("dropped", "test")
    assert certificate["images"]["test"] == 12
    assert certificate["images_in_several_splits"][0]["identical"] is True


def test_a_copy_within_one_split_is_only_counted(
    given: Callable[..., Path], run_prepare: Prepare, tmp_path: Path
) -> None:
    raw = given()
    shutil.copy(raw / "images" / "p00L.png", raw / "images" / "p03L.png")
    store = run_prepare(raw, tmp_path / "store")
    assert certificate_of(store)["linked_patients_in_one_split"] == 1


def test_a_burnt_in_border_does_not_hide_a_copy(
    given: Callable[..., Path], run_prepare: Prepare, tmp_path: Path
) -> None:
    """The same stored pixels, once with the border in the file and once padded while storing."""
    raw = given()
    picture = np.random.default_rng(0).integers(1, 255, (32, 16), np.uint8)
    cv2.imwrite(str(raw / "images" / "p00L.png"), picture)
    cv2.imwrite(str(raw / "images" / "p18L.png"), np.pad(picture, ((0, 0), (8, 8))))
    with pytest.raises(DataError, match="more than one split, 1 of them identical: 1 in train and test"):
        run_prepare(raw, tmp_path / "store")


def test_a_class_missing_from_a_given_split(given: Callable[..., Path], run_prepare: Prepare, tmp_path: Path) -> None:
    def change(rows: Rows) -> Rows:
        return [row for row in rows if (row["split"], row["label"]) != ("val", "severe")]

    raw = given(change)
    with pytest.raises(DataError, match="classes missing from a split: val has no image of severe: add patients"):
        run_prepare(raw, tmp_path / "store")
    store = run_prepare(raw, tmp_path / "store", "split.on_missing=report")
    assert certificate_of(store)["classes_missing"] == {"val": ["severe"]}


def test_a_class_too_rare_for_all_splits(write_source: WriteSource, run_prepare: Prepare, tmp_path: Path) -> None:
    def rewrite(rows: Rows) -> Rows:
        return [row | {"label": "rare" if row["patient_id"] == "p00" else "common"} for row in rows]

    raw = write_source(tmp_path / "raw", rewrite=rewrite)
    with pytest.raises(DataError, match="val has no image of rare; test has no image of rare"):
        run_prepare(raw, tmp_path / "store")


@pytest.mark.parametrize("patients", [1, 2])
def test_too_few_patients(patients: int, write_source: WriteSource, run_prepare: Prepare, tmp_path: Path) -> None:
    raw = write_source(tmp_path / "raw", patients=patients)
    with pytest.raises(DataError, match=rf"{patients} patients?.*3"):
        run_prepare(raw, tmp_path / "store")


def test_a_share_of_zero_makes_no_such_split(
    source: Path, run_prepare: Prepare, tmp_path: Path, split_names: SplitNames
) -> None:
    store = run_prepare(source, tmp_path / "store", "split.val=0")
    assert set(split_names(store).values()) == {"train", "test"}


def test_the_certificate_follows_new_labels(
    given: Callable[..., Path], run_prepare: Prepare, tmp_path: Path, read_labels_csv: Any, write_labels: Any
) -> None:
    raw = given()
    store = run_prepare(raw, tmp_path / "store")
    before = (store.folder / "splits" / "default.parquet").read_bytes()
    rows = [
        row | {"label": "ill" if row["label"] == "severe" else "well"} for row in read_labels_csv(raw / "labels.csv")
    ]
    write_labels(raw / "labels.csv", rows)
    run_prepare(raw, tmp_path / "store")
    assert certificate_of(store)["strata"]["train"] == {"ill": 8, "well": 16}
    assert (store.folder / "splits" / "default.parquet").read_bytes() == before


def test_corrected_label_keeps_the_split_and_its_certificate_counts_anew(
    source: Path,
    run_prepare: Prepare,
    tmp_path: Path,
    read_labels_csv: Any,
    write_labels: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw = Path(shutil.copytree(source, tmp_path / "raw"))
    store = run_prepare(raw, tmp_path / "store")
    before, first = (store.folder / "splits" / "default.parquet").read_bytes(), certificate_of(store)
    rows = read_labels_csv(raw / "labels.csv")
    labels = [row["label"] for row in rows]
    other = next(label for label in labels if label != labels[0])
    corrected = [row | {"label": other} if row["patient_id"] == rows[0]["patient_id"] else row for row in rows]
    write_labels(raw / "labels.csv", corrected)
    for _ in range(2):
        capsys.readouterr()
        run_prepare(raw, tmp_path / "store")
        assert "notice: split default is kept as it was made" in capsys.readouterr().err
        assert (store.folder / "splits" / "default.parquet").read_bytes() == before
        certificate = certificate_of(store)
        assert certificate["source"] == f"{first['source']} as they were when it was made"
        assert certificate["strata"] != first["strata"]
        assert {**certificate["images"], **certificate["patients"]} == {**first["images"], **first["patients"]}
    for change in ("split.seed=1", "split.test=0.3", "split.on_leak=report"):
        with pytest.raises(
            ConfigError, match=r"already in the store, made with other .*default\.json leaves patients where they are"
        ):
            run_prepare(raw, tmp_path / "store", change)
    # Dealt anew under another name, and as before with the labels of before.
    run_prepare(raw, tmp_path / "store", "split.name=new")
    assert read_split(store, "new")[1]["source"] == first["source"]
    write_labels(raw / "labels.csv", rows)
    run_prepare(raw, tmp_path / "store")
    assert {**certificate_of(store), "content_sha256": ""} == {**first, "content_sha256": ""}


def test_image_that_gains_or_loses_its_label_row_is_refused_under_the_same_name(
    source: Path, run_prepare: Prepare, tmp_path: Path, read_labels_csv: Any, write_labels: Any
) -> None:
    """An image without a row is in no split: with a row it has to be dealt."""
    raw = Path(shutil.copytree(source, tmp_path / "raw"))
    rows = read_labels_csv(raw / "labels.csv")
    store = run_prepare(raw, tmp_path / "store")
    before = (store.folder / "splits" / "default.parquet").read_bytes()
    write_labels(raw / "labels.csv", rows[1:])
    with pytest.raises(ConfigError, match=r"split\.name=default is already in the store, made with other"):
        run_prepare(raw, tmp_path / "store")
    assert (store.folder / "splits" / "default.parquet").read_bytes() == before


def test_continuous_labels_of_few_patients_fill_every_split(
    write_source: WriteSource, run_prepare: Prepare, tmp_path: Path
) -> None:
    """Quantile bins only guide the split: a user never hears of them, and no split stays empty."""
    raw = write_source(
        tmp_path / "raw", rewrite=lambda rows: [row | {"label": str(i / 7)} for i, row in enumerate(rows)]
    )
    certificate = read_json(run_prepare(raw, tmp_path / "store").folder / "splits" / "default.json")
    assert min(certificate["images"][name] for name in ("train", "val", "test")) > 0
    assert certificate["classes_missing"] == {}


def make_earlier(store: Store) -> bytes:
    """Give the store a split as version 0.2.0 wrote it: other patients in train, no algorithm in the certificate."""
    splits, certificate = read_split(store, "default")
    moved = np.where(splits == 0, 2, np.where(splits == 2, 0, splits)).astype(np.int8)
    old = {name: value for name, value in certificate.items() if name != "algorithm"}
    write_split(store, "default", splits=moved, certificate=old)
    return (store.folder / "splits" / "default.parquet").read_bytes()


def test_a_split_of_version_0_2_0_is_kept_by_the_same_command(
    source: Path, run_prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = run_prepare(source, tmp_path / "store")
    assert certificate_of(store)["algorithm"] == DEALING
    before = make_earlier(store)
    capsys.readouterr()
    run_prepare(source, tmp_path / "store")
    assert "split default was made by version 0.2.0" in capsys.readouterr().err
    assert (store.folder / "splits" / "default.parquet").read_bytes() == before
    assert "algorithm" not in certificate_of(store)
    run_prepare(source, tmp_path / "store", "split.name=random")
    assert read_split(store, "random")[1]["algorithm"] == DEALING


@pytest.mark.parametrize("change", ["split.seed=1", "split.test=0.3", "split.on_leak=report", "labels"])
def test_a_split_of_version_0_2_0_from_other_settings_or_labels_is_refused(
    change: str, source: Path, run_prepare: Prepare, tmp_path: Path, read_labels_csv: Any, write_labels: Any
) -> None:
    raw = Path(shutil.copytree(source, tmp_path / "raw"))
    store = run_prepare(raw, tmp_path / "store")
    before = make_earlier(store)
    rows = read_labels_csv(raw / "labels.csv")
    if change == "labels":
        write_labels(raw / "labels.csv", [row | {"label": "mild"} for row in rows[:2]] + rows[2:])
    with pytest.raises(ConfigError, match=r"split\.name=default is already in the store, made with other"):
        run_prepare(raw, tmp_path / "store", *([] if change == "labels" else [change]))
    assert (store.folder / "splits" / "default.parquet").read_bytes() == before
