"""The 3-D demo set: deterministic, valid, in two domains of different patients, with atrophy that shows."""

from __future__ import annotations

import csv
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest

from data_prep import demo3d
from data_prep.demo import head_set as heads
from data_prep.demo.head_phantom import SCANNERS, place_voxels, render, scan
from medcls.data.store import Store
from medcls.errors import UsageError, WriteError
from medcls.imaging.volume.spec import VolumeSpec
from medcls.imaging.volume.standardize import preprocess_volume
from medcls.imaging.volume.volume import read_volume

SPEC = VolumeSpec(48, 48, 48, spacing_mm=(4.0, 4.0, 4.0), fit="crop", dtype="float16")
NUISANCES = ("site", "sex", "age_years", "size", "turn_deg", "shift_mm")


@pytest.fixture(scope="module")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo3d.write_demo3d(tmp_path_factory.mktemp("demo3d") / "set", num_source=4, num_target=6, seed=3)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def prepare(folder: Path) -> np.ndarray:
    return preprocess_volume(read_volume(tuple(folder.iterdir()), rule=SPEC.stack), SPEC).pixels[0].astype(np.float32)


def test_domains_have_other_patients_and_the_source_tells_no_diagnosis(demo_set: Path) -> None:
    source, target = (read_rows(demo_set / domain / "labels.csv") for domain in heads.DOMAINS)
    assert [row["label"] for row in source] == [""] * 4
    assert sorted(row["label"] for row in target) == sorted(2 * heads.DIAGNOSES)
    assert not {row["patient_id"] for row in source} & {row["patient_id"] for row in target}
    for domain, rows in (("source", source), ("target", target)):
        folders = {f"images/{path.name}" for path in (demo_set / domain / "images").iterdir()}
        assert {row["path"] for row in rows} == folders
    drawn = {d: [heads.draw_head(0, domain=d, number=i).site for i in range(200)] for d in heads.DOMAINS}
    assert drawn["source"].count("north") > 130 > 70 > drawn["target"].count("north") > 20


def test_a_patient_has_the_same_bytes_whatever_the_numbers(demo_set: Path, tmp_path: Path) -> None:
    part = digests(demo3d.write_demo3d(tmp_path / "part", num_source=1, num_target=2, seed=3))
    other = digests(demo3d.write_demo3d(tmp_path / "other", num_source=1, num_target=1, seed=4))
    whole = digests(demo_set)
    files = [name for name in part if name.endswith(".dcm")]
    assert len(files) > 140
    assert all(whole[name] == part[name] for name in files)
    assert not set(other.values()) & set(part.values())


def test_headers_say_what_labels_say_and_stay_synthetic(demo_set: Path) -> None:
    for row in read_rows(demo_set / "target/labels.csv"):
        slices = [pydicom.dcmread(file) for file in (demo_set / "target" / row["path"]).iterdir()]
        assert {s.PatientID for s in slices} == {row["patient_id"]}
        assert {(s.PatientSex, s.PatientAge) for s in slices} == {(row["sex"], f"{int(row['age_years']):03d}Y")}
        assert {(str(s.PatientName), s.Manufacturer) for s in slices} == {("SYNTHETIC^DEMO", "medcls demo (synthetic)")}
        assert {s.ManufacturerModelName for s in slices} == {SCANNERS[row["site"]].name}
        assert len({s.SOPInstanceUID for s in slices}) == len(slices) == SCANNERS[row["site"]].shape[0]


@pytest.mark.oracle
def test_dicom_passes_dciodvfy(demo_set: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    for path in sorted(demo_set.glob("*/images/*/000.dcm")):
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        assert done.returncode == 0
        assert (done.stdout + done.stderr).split() == ["MRImage"]


def test_files_decode_to_the_volume_and_place_that_were_drawn(demo_set: Path) -> None:
    for row in read_rows(demo_set / "source/labels.csv"):
        head = heads.draw_head(3, domain="source", number=int(row["patient_id"].removeprefix("head-s")))
        raw = read_volume(tuple((demo_set / "source" / row["path"]).iterdir()), rule=SPEC.stack)
        affine = place_voxels(SCANNERS[head.site])
        turned = np.linalg.inv(affine) @ raw.affine  # the reader may run through the slices the other way
        steps = np.rint(np.diag(turned)[:3]).astype(int)
        assert np.allclose(turned[:3, :3], np.diag(steps), atol=1e-6)
        np.testing.assert_array_equal(raw.values, scan(head)[:: steps[0], :: steps[1], :: steps[2]])


def test_both_scanners_see_the_same_head_in_the_same_place(tmp_path: Path) -> None:
    head = heads.draw_head(1, domain="target", number=0)
    volumes = []
    for site in SCANNERS:
        demo3d._write_series(tmp_path / site, replace(head, site=site))
        volumes.append(prepare(tmp_path / site))
    north, south = volumes
    assert np.corrcoef(north.ravel(), south.ravel())[0, 1] > 0.9
    for axis in range(2):  # a head is not its mirror image from top to bottom or from front to back
        assert np.corrcoef(np.flip(north, axis).ravel(), south.ravel())[0, 1] < 0.8
    # The nose stands out in front, the neck below.
    seen = np.flatnonzero(north[11:15, :, 22:26].max(axis=(0, 2)) > 0.3)
    assert 23.5 - seen[0] > seen[-1] - 23.5
    assert north[:3].mean() > 1.5 * north[-3:].mean()


def test_signs_grow_with_the_diagnosis_and_neighbours_overlap() -> None:
    drawn = [heads.draw_head(0, domain="target", number=i) for i in range(300)]
    by_diagnosis = [[head for head in drawn if head.diagnosis == name] for name in heads.DIAGNOSES]
    assert [len(group) for group in by_diagnosis] == [100] * 3
    for sign, direction in (("ventricles", 1), ("sulci", 1), ("hippocampus", -1), ("cortex_mm", -1)):
        values = [np.array([getattr(head, sign) for head in group]) * direction for group in by_diagnosis]
        for less, more in pairwise(values):
            assert more.mean() > less.mean() + 0.3 * less.std()
            assert np.quantile(less, 0.9) > np.quantile(more, 0.1)


def test_nothing_but_the_anatomy_looks_at_the_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for diagnosis in ("NC", "AD"):
        monkeypatch.setattr(heads, "draw_diagnosis", lambda *_, diagnosis=diagnosis, **__: diagnosis)
        found.append([heads.draw_head(0, domain="target", number=i) for i in range(10)])
    for healthy, ill in zip(*found, strict=True):
        assert healthy.ventricles < ill.ventricles
        assert [getattr(healthy, name) for name in NUISANCES] == [getattr(ill, name) for name in NUISANCES]


@pytest.mark.parametrize(
    ("change", "tissue", "sign"),
    [
        ({"ventricles": 1.5}, "csf", 1),
        ({"hippocampus": 0.7}, "csf", 1),
        ({"cortex_mm": 4.0}, "white", 1),
        ({"sulci": 2.0}, "csf", 1),
    ],
)
def test_each_sign_shows_in_the_voxels(change: dict[str, float], tissue: str, sign: int) -> None:
    head, scanner = heads.draw_head(0, domain="target", number=1), SCANNERS["north"]
    plain, changed = render(head, scanner), render(replace(head, **change), scanner)
    # Signals of water and of white matter in the drawing of "north".
    level = {"csf": 0.15, "white": 0.80}[tissue]
    count = [int((np.abs(volume - level) < 0.05).sum()) for volume in (plain, changed)]
    assert sign * (count[1] - count[0]) > 50
    assert (plain != changed).mean() < 0.25


def test_heads_go_through_data_prep_by_their_labels(
    demo_set: Path, compose_job: Callable[..., object], tmp_path: Path
) -> None:
    from data_prep.prepare import prepare as run

    for domain, labelled in (("source", 0), ("target", 6)):
        folder = demo_set / domain
        given = (f"source={folder}", f"labels={folder / 'labels.csv'}", f"store={tmp_path / domain}")
        settings = ("image=mr_volume", "image.size=[24,24,24]", "image.spacing_mm=8", "image.fit=crop", "workers=0")
        splits = ("split.test=0.34", "split.val=0", "split.on_missing=report", "columns=[site]", "deidentify=declared")
        store = run(compose_job("prepare", *given, *settings, *splits))  # type: ignore[arg-type]
        assert isinstance(store, Store)
        assert store.info["counts"]["states"]["ok"] == len(list(folder.rglob("*.dcm")))
        assert set(store.column("site")) <= {"north", "south"}
        labels = read_rows(folder / "labels.csv")
        assert sum(bool(row["label"]) for row in labels) == labelled


def test_an_interrupted_set_is_redone_and_a_complete_one_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, written = demo3d.build_slices, []

    def fail_at_second(head: heads.Head) -> object:
        written.append(head.patient_id)
        if len(written) == 2:
            raise KeyboardInterrupt
        return original(head)

    monkeypatch.setattr(demo3d, "build_slices", fail_at_second)
    with pytest.raises(KeyboardInterrupt):
        demo3d.write_demo3d(tmp_path / "set", num_source=1, num_target=1)
    assert not (tmp_path / "set/target/labels.csv").exists()
    demo3d.write_demo3d(tmp_path / "set", num_source=1, num_target=1)
    demo3d.write_demo3d(tmp_path / "set", num_source=1, num_target=1)
    assert len(written) == 4
    assert [path.name for path in (tmp_path / "set/target/images").iterdir()] == ["head-t0000"]


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("mine")
    with pytest.raises(WriteError, match="contains files that are not a demo set"):
        demo3d.write_demo3d(tmp_path, num_source=1, num_target=1)
    assert [file.name for file in tmp_path.iterdir()] == ["labels.csv"]


def test_wrong_use_gets_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="num_source=0, num_target=1"):
        demo3d.write_demo3d(tmp_path / "set", num_source=0, num_target=1)
    assert demo3d.main([f"out={tmp_path / 'set'}", "num_images=3"]) == 64
    assert "unknown argument 'num_images'" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_help_lists_each_number_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo3d.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("python -m data_prep.demo3d out=DIR [num_source=120 num_target=150 seed=0]\n")
    assert all(f"\n  {name}" in printed for name in ("out=DIR ", "num_source=120 ", "num_target=150 ", "seed=0 "))
