"""The stage whole: raw files to a store that is complete, private, immutable, and the same every time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from data_prep import prepare as stage
from medcls.data.manifest import column_list, read_table
from medcls.data.splits import read_split
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MissingInputError, UsageError, WriteError
from medcls.identity import KEY_VARIABLE, write_key

Rows = list[dict[str, Any]]
Prepare = Callable[..., Store]
WriteSource = Callable[..., Path]
ROOT = Path(__file__).resolve().parent.parent.parent
KEY = "42" * 32


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def splits_of(store: Store, name: str) -> dict[str, str]:
    """After the check of its certificate."""
    read_split(store, name)
    table = read_table(store.folder / "splits" / f"{name}.parquet")
    return dict(zip(column_list(table, "image_id"), column_list(table, "split"), strict=True))


@pytest.fixture
def raw(source: Path, tmp_path: Path) -> Path:
    """A copy of the source that a test may change."""
    shutil.copytree(source, tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def forbid_decoding(fresh_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on; `fresh_store` is made before."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("something was decoded")

    monkeypatch.setattr(stage, "decode_shards", fail)


def test_a_store_has_the_parts_of_the_contract(small_store: Store) -> None:
    names = {str(p.relative_to(small_store.folder)) for p in small_store.folder.rglob("*") if p.is_file()}
    assert names == {
        "dataset.json",
        "manifest.parquet",
        "labels.parquet",
        "labels.json",
        "ledger.parquet",
        "shard-00000.npy",
        "splits/default.parquet",
        "splits/default.json",
    }
    counts = small_store.info["counts"]
    assert counts == {"files": 49, "images": 48, "patients": 24, "states": {"ok": 48, "skipped: not_in_labels": 1}}
    assert set(small_store.info["sha256"]) == {"manifest.parquet", "ledger.parquet", "shard-00000.npy"}


def test_the_stored_pixels_are_the_images(small_store: Store, source: Path) -> None:
    for index in (0, 17, 47):
        picture = cv2.imread(str(source / small_store.column("image_id")[index]), cv2.IMREAD_UNCHANGED)
        assert (small_store.image(index)[0] == picture).all()


def test_labels_stand_beside_the_pixels(small_store: Store, source: Path) -> None:
    labels = read_table(small_store.folder / "labels.parquet")
    assert labels.column_names == ["image_id", "label"]
    assert column_list(labels, "image_id") == small_store.column("image_id")
    assert Counter(column_list(labels, "label")) == {"mild": 16, "none": 16, "severe": 16}
    assert "label" not in small_store.column_names


@pytest.mark.parametrize("workers", [1, 2])
def test_the_output_is_the_same_to_the_byte(workers: int, make_store: Prepare, small_store: Store) -> None:
    assert digests(make_store(f"workers={workers}").folder) == digests(small_store.folder)


def test_colour_and_16_bits_are_stored(make_store: Prepare, small_store: Store) -> None:
    store = make_store("image=photo", "image.size=[24,16]", "image.dtype=uint16", "image.fit=stretch")
    assert (store.shape, store.image(0).dtype) == ((3, 24, 16), np.uint16)
    assert store.image(0).max() > 255
    assert store.sha256 != small_store.sha256


@pytest.mark.usefixtures("forbid_decoding")
def test_a_second_call_decodes_nothing_and_changes_nothing(
    fresh_store: Store, source: Path, run_prepare: Prepare
) -> None:
    before = digests(fresh_store.folder)
    run_prepare(source, fresh_store.folder)
    assert digests(fresh_store.folder) == before


@pytest.mark.usefixtures("forbid_decoding")
def test_a_new_seed_is_a_new_split_without_decoding(fresh_store: Store, source: Path, run_prepare: Prepare) -> None:
    before = digests(fresh_store.folder)
    run_prepare(source, fresh_store.folder, "split.seed=1", "split.name=second")
    after = digests(fresh_store.folder)
    assert {name: after[name] for name in before} == before
    first, second = (splits_of(fresh_store, name) for name in ("default", "second"))
    assert first != second


@pytest.mark.usefixtures("forbid_decoding")
def test_new_labels_are_taken_without_decoding(
    fresh_store: Store, raw: Path, run_prepare: Prepare, read_labels_csv: Any, write_labels: Any
) -> None:
    rows = read_labels_csv(raw / "labels.csv")
    for row in rows:
        row["label"] = "healthy" if row["label"] == "none" else "ill"
    write_labels(raw / "labels.csv", rows[2:])  # one patient fewer
    run_prepare(raw, fresh_store.folder, "split.name=two")
    labels = column_list(read_table(fresh_store.folder / "labels.parquet"), "label")
    assert Counter(labels) == {"healthy": 14, "ill": 32, None: 2}
    splits = splits_of(fresh_store, "two")
    assert [splits["images/p00L.png"], splits["images/p00R.png"]] == ["dropped", "dropped"]


def test_a_split_of_one_name_never_changes(fresh_store: Store, source: Path, run_prepare: Prepare) -> None:
    before = digests(fresh_store.folder)
    for change in ("split.seed=1", "split.on_leak=drop", "split.near_duplicate_bits=10"):
        with pytest.raises(ConfigError, match=r"split\.name=default is already in the store"):
            run_prepare(source, fresh_store.folder, change)
    assert digests(fresh_store.folder) == before


def test_a_refused_split_leaves_the_labels_as_they_were(
    fresh_store: Store, raw: Path, run_prepare: Prepare, read_labels_csv: Any, write_labels: Any
) -> None:
    before = digests(fresh_store.folder)
    rows = read_labels_csv(raw / "labels.csv")
    for i, row in enumerate(rows):
        row["label"] = "z" if i == 0 else "xy"[i // 6 % 2]
    write_labels(raw / "labels.csv", rows)
    with pytest.raises(DataError, match="classes missing from a split"):
        run_prepare(raw, fresh_store.folder)
    assert digests(fresh_store.folder) == before


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("image.size=16", "image.height: 32 -> 16"),
        ("image.fit=crop", "image.fit: pad -> crop"),
        ("image=photo", "image.channels: 1 -> 3"),
        ("columns=[side]", "side"),
    ],
)
def test_other_settings_need_another_store(
    argument: str, part: str, small_store: Store, source: Path, run_prepare: Prepare
) -> None:
    with pytest.raises(ConfigError, match=part):
        run_prepare(source, small_store.folder, argument)


def test_a_column_that_the_store_was_made_without(
    small_store: Store, raw: Path, run_prepare: Prepare, read_labels_csv: Any, write_labels: Any
) -> None:
    rows = [row | {"site": "north"} for row in read_labels_csv(raw / "labels.csv")]
    write_labels(raw / "labels.csv", rows)
    with pytest.raises(ConfigError, match="without the columns site"):
        run_prepare(raw, small_store.folder, "columns=[site]")
    store = run_prepare(raw, raw.parent / "with", "columns=[site]")
    assert set(store.column("site")) == {"north"}


@pytest.mark.parametrize("columns", ["[patient_id]", "[path]", "[image_id]", "[site,site]"])
def test_columns_cannot_undo_the_pseudonyms(columns: str, source: Path, run_prepare: Prepare, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="columns="):
        run_prepare(source, tmp_path / "store", f"columns={columns}")
    assert list(tmp_path.iterdir()) == []


def test_columns_need_a_labels_file(source: Path, run_prepare: Prepare, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs labels=FILE\.csv"):
        run_prepare(source, tmp_path / "store", "columns=[view]", labels=None)
    with pytest.raises(ConfigError, match=r"no folder level is site: .* labelling\.layout=site/class"):
        run_prepare(source, tmp_path / "store", "columns=[site]", "patients=per_image", labels=None)


def test_changed_and_new_images_need_another_store(
    fresh_store: Store, raw: Path, run_prepare: Prepare, read_labels_csv: Any, write_labels: Any
) -> None:
    rows = read_labels_csv(raw / "labels.csv")
    shutil.copy(raw / rows[1]["path"], raw / rows[0]["path"])
    shutil.copy(raw / rows[3]["path"], raw / "images" / "new.png")
    write_labels(raw / "labels.csv", [*rows, {**rows[0], "path": "images/new.png"}])
    with pytest.raises(DataError, match="1 image of the labels not in it and 1 file changed"):
        run_prepare(raw, fresh_store.folder)


def test_other_patients_need_another_store(
    fresh_store: Store, raw: Path, run_prepare: Prepare, read_labels_csv: Any, write_labels: Any
) -> None:
    rows = read_labels_csv(raw / "labels.csv")
    rows[0]["patient_id"] = rows[1]["patient_id"] = "somebody"
    write_labels(raw / "labels.csv", rows)
    with pytest.raises(DataError, match="2 images with a patient_id that has changed since the store was made"):
        run_prepare(raw, fresh_store.folder)


@pytest.mark.parametrize("part", ["shard-00000.npy", "manifest.parquet", "ledger.parquet"])
def test_a_damaged_store_is_noticed_by_the_next_call(
    part: str, fresh_store: Store, source: Path, run_prepare: Prepare
) -> None:
    path = fresh_store.folder / part
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=part):
        run_prepare(source, fresh_store.folder)


def test_a_store_half_written_is_made_again(fresh_store: Store, source: Path, run_prepare: Prepare) -> None:
    whole = digests(fresh_store.folder)
    (fresh_store.folder / "dataset.json").unlink()
    (fresh_store.folder / "shard-00007.npy").write_bytes(b"half")
    (fresh_store.folder / ".partial-shard-00008.npy").write_bytes(b"half")
    with pytest.raises(DataError, match=r"is incomplete \(no dataset\.json\)"):
        Store(fresh_store.folder)
    run_prepare(source, fresh_store.folder)
    assert digests(fresh_store.folder) == whole


def test_a_run_that_breaks_off_leaves_no_complete_store(
    source: Path, tmp_path: Path, run_prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WriteError, match="No space left on device"):
            run_prepare(source, tmp_path / "store")
    assert not (tmp_path / "store" / "dataset.json").exists()
    assert len(run_prepare(source, tmp_path / "store")) == 48


def test_somebody_elses_folder_is_left_alone(source: Path, tmp_path: Path, run_prepare: Prepare) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(ConfigError, match="holds 1 files or folders that are not parts of a store"):
        run_prepare(source, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.doc"]
    with pytest.raises(ConfigError, match="is a file: expected a folder"):
        run_prepare(source, tmp_path / "thesis.doc")


def test_source_and_store_are_needed_and_apart(source: Path, tmp_path: Path, compose_job: Any) -> None:
    with pytest.raises(UsageError, match="source=DIR and store=DIR are needed"):
        stage.prepare(compose_job("prepare", f"source={source}"))
    with pytest.raises(MissingInputError, match="nowhere is not a folder"):
        stage.prepare(compose_job("prepare", f"source={tmp_path}/nowhere", f"store={tmp_path}/s"))
    for store in (source, source / "store"):
        with pytest.raises(ConfigError, match="is inside source="):
            stage.prepare(compose_job("prepare", f"source={source}", f"store={store}"))


def break_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def test_an_unreadable_image_is_quarantined_and_counted(raw: Path, tmp_path: Path, run_prepare: Prepare) -> None:
    break_file(raw / "images" / "p03L.png")
    store = run_prepare(raw, tmp_path / "store")
    ledger = read_table(store.folder / "ledger.parquet")
    assert store.info["counts"]["states"] == {"ok": 47, "quarantined: truncated": 1, "skipped: not_in_labels": 1}
    assert "images/p03L.png" not in store.column("image_id")
    assert sum(column_list(ledger, "images")) == len(store) == 47
    before = digests(store.folder)
    run_prepare(raw, store.folder)
    assert digests(store.folder) == before


def test_a_file_mended_later_is_not_passed_over(raw: Path, source: Path, tmp_path: Path, run_prepare: Prepare) -> None:
    break_file(raw / "images" / "p03L.png")
    run_prepare(raw, tmp_path / "store")
    shutil.copy(source / "images" / "p03L.png", raw / "images" / "p03L.png")
    with pytest.raises(DataError, match="1 file changed: choose another store="):
        run_prepare(raw, tmp_path / "store")


def test_too_many_unreadable_images_stop(raw: Path, tmp_path: Path, run_prepare: Prepare) -> None:
    for patient in range(3):
        break_file(raw / "images" / f"p0{patient}L.png")
    with pytest.raises(DataError, match="more than 2 of 48 images are unreadable"):
        run_prepare(raw, tmp_path / "store")
    assert not (tmp_path / "store" / "dataset.json").exists()
    assert len(run_prepare(raw, tmp_path / "store", "max_quarantined=0.1")) == 45


def two_knees(rows: Rows) -> Rows:
    """Every film has two regions; the second of the first film leaves the film."""
    regions = []
    for row in rows:
        for x in (0, 16):
            roi = {"roi_x": x, "roi_y": 0, "roi_w": 16, "roi_h": 32}
            regions.append({**row, **roi})
    regions[1]["roi_w"] = 17
    return regions


def test_two_regions_of_one_film_and_a_refused_one(
    write_source: WriteSource, tmp_path: Path, run_prepare: Prepare
) -> None:
    raw = write_source(tmp_path / "raw", rewrite=two_knees)
    store = run_prepare(raw, tmp_path / "store")
    assert len(store) == 95
    assert store.info["counts"]["patients"] == 24
    assert store.info["counts"]["states"] == {
        "ok": 47,
        "quarantined: roi_outside": 1,
        "skipped: not_in_labels": 1,
    }
    picture = cv2.imread(str(raw / "images" / "p01L.png"), cv2.IMREAD_UNCHANGED)
    assert (
        store.image(store.column("image_id").index("images/p01L.png@16,0,16,32"))[0, :, 8:24] == picture[:, 16:]
    ).all()
    before = digests(store.folder)
    run_prepare(raw, store.folder)  # the refused region is not taken for a new one
    assert digests(store.folder) == before


def test_several_labels_with_blanks(write_source: WriteSource, tmp_path: Path, run_prepare: Prepare) -> None:
    def rewrite(rows: Rows) -> Rows:
        shared = ("path", "patient_id", "side")
        return [
            {name: row[name] for name in shared}
            | {"label_a": "1.0" if i % 3 else "0.0", "label_b": ("", "0", "1")[i // 2 % 3]}
            for i, row in enumerate(rows)
        ]

    store = run_prepare(write_source(tmp_path / "raw", rewrite=rewrite), tmp_path / "store")
    labels = read_table(store.folder / "labels.parquet")
    assert labels.column_names == ["image_id", "label_a", "label_b"]
    assert Counter(column_list(labels, "label_b")) == {None: 16, "0": 16, "1": 16}
    strata = read_split(store, "default")[1]["strata"]
    assert sum(counts["label_a"] for counts in strata.values()) == 32
    assert {name for counts in strata.values() for name in counts} == {"label_a", "label_b", "unknown"}
    assert sum(counts["label_b"] for counts in strata.values()) == 16


def test_class_folders(draw_picture: Any, tmp_path: Path, run_prepare: Prepare) -> None:
    for patient in range(16):
        grade = patient % 2
        folder = tmp_path / "raw" / ("ill" if grade else "well")
        folder.mkdir(parents=True, exist_ok=True)
        for image in range(2):
            cv2.imwrite(str(folder / f"p{patient:02d}_{image}.png"), draw_picture(grade, 2 * patient + image))
    with pytest.raises(ConfigError, match="a guess would leak"):
        run_prepare(tmp_path / "raw", tmp_path / "none", labels=None)
    pattern = "patient_id.pattern=(p[0-9]+)_"
    store = run_prepare(tmp_path / "raw", tmp_path / "store", pattern, labels=None)
    assert Counter(store.column("patient_id")) == {f"p{i:02d}": 2 for i in range(16)}
    each = run_prepare(tmp_path / "raw", tmp_path / "each", "patients=per_image", labels=None)
    assert len(set(each.column("patient_id"))) == 32
    assert (store.info["counts"]["patients"], store.patients_from) == (16, "pattern")
    assert (each.info["counts"]["patients"], each.patients_from) == (None, "per_image")
    with pytest.raises(ConfigError, match=r"patients come from per_image, not from pattern: choose another store="):
        run_prepare(tmp_path / "raw", each.folder, r"patient_id.pattern=(.*)", labels=None)


def test_split_folders(draw_picture: Any, tmp_path: Path, run_prepare: Prepare, capsys: Any) -> None:
    for i in range(32):
        folder = tmp_path / "raw" / ("Test" if i >= 24 else "Train") / ("ill" if i % 2 else "well")
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{i:02d}.png"), draw_picture(i % 2, i))
    shares = ("patients=per_image", "split.val=0.25")
    store = run_prepare(tmp_path / "raw", tmp_path / "store", *shares, labels=None)
    splits, certificate = read_split(store, "default")
    names = zip(store.column("image_id"), splits.tolist(), strict=True)
    assert Counter((path.split("/")[0], code) for path, code in names) == {
        ("Train", 0): 18,
        ("Train", 1): 6,
        ("Test", 2): 8,
    }
    assert {split: set(counts) for split, counts in certificate["strata"].items()} == {
        split: {"ill", "well"} for split in ("train", "val", "test")
    }
    assert certificate["source"].startswith("folders; val cut from train at random by image (patients unknown)")
    assert certificate["fractions"] == {"train": 0.75, "val": 0.25, "test": 0.0}
    assert "split.val=0.25 of train is cut off for it" in capsys.readouterr().err


HEADERS = {"PatientID": "Doe^Id-7", "PatientSex": "Doe^Sex", "PatientAge": "093Y", "ImageLaterality": "Doe^Side"}


def write_dicom(path: Path, pixels: NDArray[np.uint8]) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "1.2.3.99", "1.2.3.98", "DX"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = pixels.tobytes()
    dataset.PatientID = HEADERS["PatientID"]
    dataset.PatientAge = HEADERS["PatientAge"]
    element = dataset.data_element("PatientAge")
    assert element is not None
    for keyword in ("PatientSex", "ImageLaterality"):
        # A coded attribute with free text in it, as careless devices write.
        dataset.add_new(keyword, "LO", HEADERS[keyword])
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.usefixtures("no_key")
def test_no_declared_id_or_path_is_in_any_store_file(
    write_source: WriteSource, tmp_path: Path, run_prepare: Prepare, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def rewrite(rows: Rows) -> Rows:
        renamed = [row | {"patient_id": f"Doe-{row['patient_id']}"} for row in rows]
        renamed[0]["path"] = "images/p00L.dcm"
        return renamed

    raw = write_source(tmp_path / "raw", rewrite=rewrite)
    picture = cv2.imread(str(raw / "images" / "p00L.png"), cv2.IMREAD_UNCHANGED)
    write_dicom(raw / "images" / "p00L.dcm", np.asarray(picture, np.uint8))
    break_file(raw / "images" / "p05R.png")
    with pytest.raises(ConfigError, match=r"deidentify=hmac \(the default for DICOM\) needs a key"):
        run_prepare(raw, tmp_path / "store")
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    store = run_prepare(raw, tmp_path / "store")

    written = b"".join(all_values(path) for path in store.folder.rglob("*") if path.is_file())
    said = capfd.readouterr()
    for secret in (b"Doe", b"p00", b"p05", b"images/", b"1.2.3.9", KEY.encode(), str(raw).encode()):
        assert secret not in written, secret
        if secret != str(raw).encode():
            assert secret.decode() not in said.err + said.out, secret
    assert store.column("age_years")[0] == 90.0
    assert (store.column("sex")[0], store.column("side")[0]) == (None, "L")
    assert all(len(image_id) == 32 for image_id in store.column("image_id"))
    assert store.info["counts"]["patients"] == 24


def all_values(path: Path) -> bytes:
    """A file's bytes; of parquet its values, which are compressed on disk."""
    if path.suffix != ".parquet":
        return path.read_bytes()
    table = pq.read_table(path)
    return repr(table.to_pylist()).encode() + repr(table.schema).encode()


def test_the_way_back_is_outside_the_store_and_private(
    source: Path, tmp_path: Path, run_prepare: Prepare, monkeypatch: pytest.MonkeyPatch, read_labels_csv: Any
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    store = run_prepare(source, tmp_path / "store", "deidentify=hmac")
    path = tmp_path / "store.identity-map.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    rows = read_labels_csv(path)
    assert {row["image_id"] for row in rows} == set(store.column("image_id"))
    assert {row["patient_id"] for row in rows} == {f"p{i:02d}" for i in range(24)}
    monkeypatch.setenv(KEY_VARIABLE, "43" * 32)
    with pytest.raises(ConfigError, match="with other identities"):
        run_prepare(source, tmp_path / "store", "deidentify=hmac")


def test_pseudonyms_change_nothing_but_names(
    source: Path, tmp_path: Path, run_prepare: Prepare, monkeypatch: pytest.MonkeyPatch, small_store: Store
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    store = run_prepare(source, tmp_path / "store", "deidentify=hmac")
    assert store.info["sha256"]["shard-00000.npy"] == small_store.info["sha256"]["shard-00000.npy"]
    assert store.column("pixel_sha256") == small_store.column("pixel_sha256")
    assert store.info["counts"] == small_store.info["counts"]


def test_the_command_line_makes_the_same_store(source: Path, tmp_path: Path, small_store: Store) -> None:
    awkward = tmp_path / "stores (ö) = #1"
    arguments = [f"source={source}", f"labels={source}/labels.csv", f"store={awkward}/2024_05_01", "image.size=32"]
    done = subprocess.run(
        [sys.executable, "-m", "data_prep", *arguments, "workers=1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert digests(awkward / "2024_05_01") == digests(small_store.folder)
    assert "48 images" in done.stderr
    assert json.loads((awkward / "2024_05_01" / "dataset.json").read_text())["schema_version"] == 2


def test_the_way_back_never_lies_in_the_store(
    source: Path, tmp_path: Path, run_prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path / "store")
    run_prepare(source, Path(), "deidentify=hmac")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["store.identity-map.csv"]
    assert not list((tmp_path / "store").rglob("*identity-map*"))


def test_a_lost_way_back_is_written_again(
    source: Path, tmp_path: Path, run_prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    run_prepare(source, tmp_path / "store", "deidentify=hmac")
    path = tmp_path / "store.identity-map.csv"
    before = path.read_bytes()
    path.unlink()
    run_prepare(source, tmp_path / "store", "deidentify=hmac")
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["parts_list", "parts.csv", "shard-1.npy", "notes.txt"])
@pytest.mark.parametrize("jobs", [(), ("shard.count=2", "shard.index=0")])
def test_names_like_ours_are_somebody_elses(
    name: str, jobs: tuple[str, ...], source: Path, tmp_path: Path, run_prepare: Prepare
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / name).write_text("precious")
    with pytest.raises(ConfigError, match="holds 1 files or folders that are not parts of a store"):
        run_prepare(source, tmp_path / "store", *jobs)
    assert (tmp_path / "store" / name).read_text() == "precious"


def test_a_file_that_may_not_be_opened_costs_itself_alone(
    raw: Path, tmp_path: Path, run_prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.open

    def forbid(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "p03L.png":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", forbid)
    store = run_prepare(raw, tmp_path / "store")
    assert store.info["counts"]["states"]["quarantined: cannot_open"] == 1
    assert len(store) == 47


def test_patient_ids_that_differ_in_case_alone_are_said(
    write_source: WriteSource, tmp_path: Path, run_prepare: Prepare, capfd: Any
) -> None:
    def rewrite(rows: Rows) -> Rows:
        rows[0]["patient_id"] = rows[0]["patient_id"].upper()
        return rows

    run_prepare(write_source(tmp_path / "raw", rewrite=rewrite), tmp_path / "store", "split.on_leak=report")
    assert "1 patient id differs from another one only in case or spaces" in capfd.readouterr().err


def test_an_empty_source_is_named_first(tmp_path: Path, run_prepare: Prepare) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(MissingInputError, match="contains no files: is the right folder mounted"):
        run_prepare(tmp_path / "raw", tmp_path / "store", labels=None)


def test_ids_that_are_kept_as_declared_are_said(
    write_source: Any, tmp_path: Path, run_prepare: Prepare, capsys: Any
) -> None:
    source = write_source(tmp_path / "raw", patients=6)
    run_prepare(source, tmp_path / "store", "split.on_missing=report")
    assert "deidentify=declared: paths and patient ids are kept as they are" in capsys.readouterr().err
    write_key(tmp_path / "key.txt")
    hidden = ["deidentify=hmac", f"deidentify.key_file={tmp_path / 'key.txt'}", "split.on_missing=report"]
    run_prepare(source, tmp_path / "hidden", *hidden)
    assert "kept as they are" not in capsys.readouterr().err
