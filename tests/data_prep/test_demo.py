"""The demo set: deterministic, valid, with a grade that shows in the joint and nowhere else."""

from __future__ import annotations

import csv
import hashlib
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import pixel_array

from data_prep.demo import __main__ as demo
from data_prep.demo import film, knees, phantom
from medcls.errors import UsageError, WriteError

NUM_IMAGES = 40
# What a film shows besides the grade.
NUISANCES = ("detector", "size", "rotation_deg", "shift_mm")


@pytest.fixture(scope="module")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "set"
    demo.write_demo(folder, num_images=NUM_IMAGES, seed=3)
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def knee_of(row: dict[str, str]) -> knees.Knee:
    return knees.draw_knee(3, patient=int(row["patient_id"].removeprefix("demo-")), side=row["side"])


def all_knees(num_patients: int, seed: int = 0) -> list[knees.Knee]:
    return [knees.draw_knee(seed, patient=p, side=s) for p in range(num_patients) for s in knees.SIDES]


def test_labels_have_the_columns_and_every_file(demo_set: Path) -> None:
    rows = read_rows(demo_set / "labels.csv")
    assert list(rows[0]) == ["path", "patient_id", "label", "side", "sex", "age_years"]
    on_disk = {f"images/{file.name}" for file in (demo_set / "images").iterdir()}
    assert {row["path"] for row in rows} == on_disk
    assert len(rows) == NUM_IMAGES
    assert set(Counter(row["patient_id"] for row in rows).values()) == {2}
    assert rows[1]["path"] == "images/000001-R.dcm"


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_images(demo_set: Path, tmp_path: Path) -> None:
    demo.write_demo(tmp_path / "again", num_images=8, seed=3)
    demo.write_demo(tmp_path / "other", num_images=8, seed=4)
    whole, part, other = digests(demo_set), digests(tmp_path / "again"), digests(tmp_path / "other")
    images = [name for name in part if name.endswith(".dcm")]
    assert len(images) == 8
    assert all(whole[name] == part[name] for name in images)
    assert not set(other.values()) & set(part.values())
    first = (demo_set / "labels.csv").read_text().splitlines()[:9]
    assert (tmp_path / "again" / "labels.csv").read_text().splitlines() == first


def test_two_processes_write_the_same_bytes(demo_set: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "data_prep.demo",
        f"out={tmp_path / 'again'}",
        f"num_images={NUM_IMAGES}",
        "seed=3",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert digests(tmp_path / "again") == digests(demo_set)
    assert "SYNTHETIC" in done.stdout
    assert str(tmp_path / "again" / "labels.csv") in done.stdout


def test_dicom_says_what_labels_say_and_stays_synthetic(demo_set: Path) -> None:
    for row in read_rows(demo_set / "labels.csv"):
        dataset = pydicom.dcmread(demo_set / row["path"])
        assert (dataset.PatientID, dataset.ImageLaterality) == (row["patient_id"], row["side"])
        assert (dataset.PatientSex, dataset.PatientAge) == (row["sex"], f"{int(row['age_years']):03d}Y")
        assert (dataset.PatientName, dataset.Manufacturer) == ("SYNTHETIC^DEMO", "medcls demo (synthetic)")
        assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (16, 12, 11)
        assert dataset.SOPClassUID.name == "Digital X-Ray Image Storage - For Presentation"
        assert dataset.Rows != dataset.Columns


def test_every_storage_form_occurs_and_decodes_to_the_exposed_pixels(demo_set: Path) -> None:
    seen = set()
    for row in read_rows(demo_set / "labels.csv"):
        dataset = pydicom.dcmread(demo_set / row["path"])
        syntax, kind = dataset.file_meta.TransferSyntaxUID, dataset.PhotometricInterpretation
        if (syntax, kind) in seen:
            continue
        seen.add((syntax, kind))
        knee = knee_of(row)
        shown = film.expose(knee, film.draw_exposure(knee))
        np.testing.assert_array_equal(pixel_array(dataset), 4095 - shown if kind == "MONOCHROME1" else shown)
    assert len(seen) == 6


@pytest.mark.oracle
def test_dicom_passes_dciodvfy(demo_set: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    for path in sorted((demo_set / "images").iterdir()):
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        assert done.returncode == 0
        assert (done.stdout + done.stderr).split() == ["DXImageForPresentation"]


@pytest.mark.parametrize("num_images", [40, 47, 59, 100, 600])
def test_every_grade_has_its_share(num_images: int) -> None:
    grades = [grade for patient in range(300) for grade in knees.draw_grades(0, patient)][:num_images]
    shares = np.bincount(grades, minlength=5) / num_images
    assert shares.min() >= 0.06
    assert shares[0] == shares.max()
    assert shares[4] == shares.min()


def test_the_knees_of_a_patient_are_alike() -> None:
    left, right = np.array([knees.draw_grades(0, patient) for patient in range(300)]).T
    assert 0.35 < np.corrcoef(left, right)[0, 1] < 0.75
    assert np.mean(left != right) > 0.25


def test_signs_grow_with_the_grade_and_neighbours_overlap() -> None:
    drawn = all_knees(150)
    grades = np.array([knee.grade for knee in drawn])
    space = np.array([min(knee.joint_space_mm) for knee in drawn])
    spurs = np.array([max(knee.osteophytes_mm) for knee in drawn])
    hard = np.array([max(knee.sclerosis) for knee in drawn])
    by_grade = [grades == grade for grade in range(5)]
    assert np.all(np.diff([space[these].mean() for these in by_grade]) < 0)
    assert np.all(np.diff([spurs[these].mean() for these in by_grade]) > 0)
    assert np.all(np.diff([hard[these].mean() for these in by_grade]) >= 0)
    for lower, higher in pairwise(by_grade):
        assert space[lower].min() < space[higher].max()
        assert spurs[lower].max() > spurs[higher].min()


def test_nothing_but_the_joint_looks_at_the_grade(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy, ill = [], []
    for grades, found in (((0, 0), healthy), ((4, 4), ill)):
        monkeypatch.setattr(knees, "draw_grades", lambda seed, patient, grades=grades: grades)
        found.extend(all_knees(10))
    for one, other in zip(healthy, ill, strict=True):
        assert min(one.joint_space_mm) > min(other.joint_space_mm)
        assert [getattr(one, name) for name in NUISANCES] == [getattr(other, name) for name in NUISANCES]
        assert film.draw_exposure(one) == film.draw_exposure(other)


def test_brightness_and_contrast_are_those_drawn_for_any_grade() -> None:
    for knee in all_knees(6):
        exposure = film.draw_exposure(knee)
        for grade_seen in (knee, replace(knee, joint_space_mm=(0.2, 2.0), sclerosis=(1.5, 1.0))):
            pixels = film.expose(grade_seen, exposure)
            assert abs(pixels.mean() - exposure.mean) < 30  # clipping at 0 and 4095 moves it a little
            assert abs(pixels.std() - exposure.deviation) < 30


def test_the_box_holds_what_the_grade_changes() -> None:
    for knee in all_knees(8):
        ill = replace(knee, osteophytes_mm=(5.0,) * 4, sclerosis=(1.0, 0.4), roughness_mm=0.6)
        box_y, box_x, box_h, box_w = phantom.signal_box(ill)
        change = np.abs(phantom.render(ill) - phantom.render(knee))
        inside = change[box_y : box_y + box_h, box_x : box_x + box_w].sum()
        assert inside > 0.85 * change.sum()
        assert 0 <= box_y < box_y + box_h <= knee.shape[0]
        assert 0 <= box_x < box_x + box_w <= knee.shape[1]
        assert box_h * box_w < 0.5 * knee.shape[0] * knee.shape[1]


def test_left_and_right_are_mirrored() -> None:
    left = knees.draw_knee(0, patient=0, side="L")
    other = replace(left, side="R")
    # Shape and texture differ a little between the sides of a person, so the two are alike, not equal.
    flipped = phantom.render(other)[:, ::-1]
    same = np.corrcoef(phantom.render(left).ravel(), flipped.ravel())[0, 1]
    unflipped = np.corrcoef(phantom.render(left).ravel(), phantom.render(other).ravel())[0, 1]
    assert same > unflipped


def test_an_interrupted_set_is_not_complete_and_is_redone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, written = demo.build_dicom, []

    def fail_at_third(*args: object, **kwargs: object) -> object:
        written.append(1)
        if len(written) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(demo, "build_dicom", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        demo.write_demo(tmp_path / "set", num_images=4)
    assert not (tmp_path / "set" / "labels.csv").exists()
    assert len(list((tmp_path / "set" / "images").iterdir())) == 2
    labels = demo.write_demo(tmp_path / "set", num_images=4)
    assert len(read_rows(labels)) == 4
    assert len(written) == 3 + 4


def test_a_complete_set_is_reused_and_another_one_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.write_demo(tmp_path, num_images=4)
    first = (tmp_path / "images" / "000000-L.dcm").stat().st_mtime_ns
    demo.write_demo(tmp_path, num_images=4)
    assert (tmp_path / "images" / "000000-L.dcm").stat().st_mtime_ns == first
    demo.write_demo(tmp_path, num_images=2, seed=1)
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == ["000000-L.dcm", "000001-R.dcm"]
    (tmp_path / "images" / "000000-L.dcm").unlink()
    demo.write_demo(tmp_path, num_images=2, seed=1)
    assert (tmp_path / "images" / "000000-L.dcm").is_file()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("mine")
    with pytest.raises(WriteError, match="contains files that are not a demo set"):
        demo.write_demo(tmp_path, num_images=2)
    assert [file.name for file in tmp_path.iterdir()] == ["labels.csv"]
    assert (tmp_path / "labels.csv").read_text() == "mine"


@pytest.mark.parametrize(("num_images", "seed"), [(0, 0), (-1, 0), (2, -1)])
def test_numbers_out_of_range_are_refused(tmp_path: Path, num_images: int, seed: int) -> None:
    with pytest.raises(UsageError, match=f"num_images={num_images}, seed={seed}"):
        demo.write_demo(tmp_path / "set", num_images=num_images, seed=seed)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["out=x", "images=3"], 64, "unknown argument 'images'"),
        (["num_images=3"], 64, "out is missing"),
        (["out=x", "num_images=many"], 64, "num_images=many"),
        (["out=x", "num_images=0"], 64, "num_images=0"),
        (["out=file/set", "num_images=2"], 74, "file/set"),
    ],
)
def test_wrong_use_gets_one_line_and_its_code(
    arguments: list[str],
    code: int,
    words: str,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no folder")
    assert demo.main(arguments) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not Path("x").exists()


def test_help_lists_each_number_with_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["--help"], ["out=x", "-h"]):
        assert demo.main(arguments) == 0
        captured = capsys.readouterr()
        assert captured.out.startswith("python -m data_prep.demo out=DIR [num_images=600 seed=0]\n")
        assert all(f"\n  {name}" in captured.out for name in ("out=DIR ", "num_images=600 ", "seed=0 "))
        assert captured.err == ""
    assert list(tmp_path.iterdir()) == []
