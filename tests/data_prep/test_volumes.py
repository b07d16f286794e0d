"""Folders of slices to a store of volumes: the right voxels at the right place, and a reason for every other file."""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import prepare as stage
from medcls.data.manifest import column_list, read_table
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.identity import KEY_VARIABLE
from medcls.imaging.catalog import scan_batches, write_index
from medcls.imaging.source import list_files

_BUILDERS = Path(__file__).resolve().parent.parent / "imaging" / "build_series.py"
SPEC = importlib.util.spec_from_file_location("build_series", _BUILDERS)
assert SPEC is not None
assert SPEC.loader is not None
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)

PATIENTS = 8
Prepare = Callable[..., Store]


def write_patient(folder: Path, number: int, **elements: Any) -> list[Any]:
    """One series of eight slices; every patient stands a little elsewhere, so that no two volumes are the same."""
    slices = build.build_slices(origin=(-30.0 - number, 20.0, 5.0), PatientID=f"Doe-{number}", **elements)
    build.write_series(folder / f"case{number}", slices)
    return list(slices)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight patients: a good series each; patient 0 has a gap, patient 1 a localizer beside the series."""
    folder = tmp_path_factory.mktemp("volumes")
    for number in range(PATIENTS):
        if number == 0:
            slices = build.build_slices((0.0, 2.5, 5.0, 10.0, 12.5, 15.0), PatientID="Doe-0")
            build.write_series(folder / "case0", slices)
            continue
        slices = write_patient(folder, number)
        if number == 1:
            (localizer,) = build.build_slices((0.0,), PatientID="Doe-1", orientation=build.rotate(90, 0, 0))
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
                setattr(localizer, keyword, getattr(slices[0], keyword))
            localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            build.write_series(folder / "case1", [localizer])
    lines = [f"case{n},p{n},{'ab'[n % 2]}" for n in range(PATIENTS)]
    (folder / "labels.csv").write_text("path,patient_id,label\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture
def make(source: Path, tmp_path: Path, compose_job: Any, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Makes a store of volumes; keywords source and labels change where from."""
    monkeypatch.setenv(KEY_VARIABLE, "42" * 32)

    def run(*arguments: str, folder: Path = source, labels: str = "labels.csv", name: str = "store") -> Store:
        defaults = ("image=mr_volume", "image.size=[8,12,12]", "workers=0", "max_quarantined=0.5")
        given = (f"source={folder}", f"labels={folder / labels}", f"store={tmp_path / name}")
        small = ("split.test=0.25", "split.val=0", "split.on_missing=report")
        store = stage.prepare(compose_job("prepare", *given, *defaults, *small, *arguments))
        assert store is not None
        return store

    return run


def test_every_file_has_an_end_and_every_good_series_is_a_volume(make: Prepare, source: Path) -> None:
    store = make()
    assert (len(store), store.shape) == (7, (1, 8, 12, 12))
    ledger = read_table(store.folder / "ledger.parquet")
    counts = Counter(zip(column_list(ledger, "state"), column_list(ledger, "reason"), strict=True))
    assert counts == {
        ("ok", ""): 7 * 8,
        ("quarantined", "gap"): 6,
        ("skipped", "localizer"): 1,
        ("skipped", "not_in_labels"): 1,
    }
    assert sum(counts.values()) == sum(path.is_file() for path in source.rglob("*"))
    assert sum(column_list(ledger, "images")) == 7
    assert store.info["counts"]["may_show_face"] == 7


def test_the_affine_of_a_stored_volume_places_its_voxels(make: Prepare) -> None:
    """Float volumes of the whole range: equal to the phantom up to the linear stretch to [0, 1]."""
    store = make(
        "image.dtype=float16", "image.intensity=minmax", "image.spacing_mm=[2.5,0.8,0.6]", "image.size=[10,16,16]"
    )
    affines = store.column("affine")
    for row in range(len(store)):
        affine = np.array(affines[row]).reshape(4, 4)
        voxels = store.image(row)[0].astype(np.float64)
        z, y, x, d, h, w = (store.column(f"valid_{n}")[row] for n in ("z", "y", "x", "depth", "height", "width"))
        inside = np.s_[z : z + d, y : y + h, x : x + w]
        expected = build.phantom(build.locate(affine, voxels.shape))[inside]
        stretched = (expected - expected.min()) / np.ptp(expected)
        assert np.abs(voxels[inside] - stretched).max() < 2e-3


def test_the_store_is_the_same_whatever_the_files_are_called(make: Prepare, source: Path, tmp_path: Path) -> None:
    first = make()
    again = tmp_path / "renamed"
    for number, path in enumerate(sorted(source.rglob("*.dcm"), reverse=True)):
        target = again / path.parent.name / f"{number}.ima"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (again / "labels.csv").write_text((source / "labels.csv").read_text())
    second = make(folder=again, name="second")
    for name in ("image_id", "patient_id", "pixel_sha256", "affine"):
        assert first.column(name) == second.column(name), name


def test_labels_may_name_series_instead_of_paths(make: Prepare, source: Path) -> None:
    import pydicom

    lines = ["SeriesInstanceUID,patient_id,label"]
    for number in range(PATIENTS):
        file = next((source / f"case{number}").iterdir())
        lines.append(f"{pydicom.dcmread(file).SeriesInstanceUID},p{number},{'ab'[number % 2]}")
    (source / "by_series.csv").write_text("\n".join(lines) + "\n")
    by_path, by_series = make(), make(labels="by_series.csv", name="by_series")
    assert by_path.column("image_id") == by_series.column("image_id")
    assert by_path.column("pixel_sha256") == by_series.column("pixel_sha256")


def test_a_labels_file_that_contradicts_the_headers_is_refused(make: Prepare, source: Path) -> None:
    lines = [f"case{n},p{n // 2},{'ab'[n % 2]}" for n in range(PATIENTS)]  # two header patients under one name
    (source / "wrong.csv").write_text("path,patient_id,label\n" + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match="labels and source do not fit"):
        make(labels="wrong.csv")
    assert len(make("compare=[study,sex,age,side]", labels="wrong.csv")) == 7


def test_a_rule_fills_the_gap_where_it_is_told_to(make: Prepare) -> None:
    store = make("stack.gap=resample")
    assert len(store) == 8
    assert sum("resampled_gap" in (note or "") for note in store.column("notes")) == 1


def copy_source(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    return folder


def test_a_slice_that_cannot_be_read_is_no_shorter_volume(make: Prepare, source: Path, tmp_path: Path) -> None:
    import pydicom

    raw = copy_source(source, tmp_path / "raw")
    files = list((raw / "case3").iterdir())
    last = max(files, key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2])
    last.write_bytes(last.read_bytes()[:-40])
    states = make(folder=raw).info["counts"]["states"]
    assert states["quarantined: truncated"] == 1
    assert states["quarantined: incomplete_series"] == 7


def test_volumes_refused_while_planning_count_as_refused(make: Prepare) -> None:
    with pytest.raises(DataError, match=r"more than 0 of 8 images are unreadable: .* gap"):
        make("max_quarantined=0")


def test_a_bad_series_that_no_label_names_costs_nothing(make: Prepare, source: Path) -> None:
    lines = [f"case{n},p{n},{'ab'[n % 2]}" for n in range(1, PATIENTS)]
    (source / "good.csv").write_text("path,patient_id,label\n" + "\n".join(lines) + "\n")
    store = make("max_quarantined=0", labels="good.csv")
    assert (len(store), store.info["counts"]["states"]["quarantined: gap"]) == (7, 6)


def test_an_index_of_other_files_of_the_same_size_is_noticed(make: Prepare, source: Path, tmp_path: Path) -> None:
    raw, index = copy_source(source, tmp_path / "raw"), tmp_path / "index.parquet"
    write_index(index, scan_batches(raw, list_files(raw), workers=0))
    for old, new in zip(sorted((raw / "case4").iterdir()), sorted((raw / "case5").iterdir()), strict=True):
        old.write_bytes(new.read_bytes())
    states = make(f"index={index}", folder=raw).info["counts"]["states"]
    assert states["quarantined: changed_since_index"] == 8
    assert states["ok"] == 6 * 8


def write_two_types(raw: Path, *, distances: tuple[float, ...], start: int) -> None:
    """Four patients; the series of the first has a second ImageType from a slice on."""
    for number in range(4):
        slices = build.build_slices(distances, origin=(-30.0 - number, 20.0, 5.0), PatientID=f"Doe-{number}")
        for slice_ in slices[start:] if number == 0 else ():
            slice_.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "OTHER"]
        build.write_series(raw / f"case{number}", slices[:start] if number else slices)
    (raw / "labels.csv").write_text("path,label\n" + "".join(f"case{n},{'ab'[n % 2]}\n" for n in range(4)))


def test_series_of_two_image_types_at_the_same_places_is_said(make: Prepare, tmp_path: Path, capfd: Any) -> None:
    places = tuple(2.5 * k for k in range(8))
    write_two_types(tmp_path / "raw", distances=(*places, *places), start=8)
    assert len(make(folder=tmp_path / "raw")) == 5
    assert "1 series was read as several volumes each" in capfd.readouterr().err


def test_two_halves_of_a_scan_are_one_volume_and_said(make: Prepare, tmp_path: Path, capfd: Any) -> None:
    places = tuple(2.5 * k for k in range(16))
    write_two_types(tmp_path / "raw", distances=places, start=8)
    store = make(folder=tmp_path / "raw")
    assert sorted(store.column("source_depth")) == [8, 8, 8, 16]
    said = capfd.readouterr().err
    assert "several volumes" not in said
    assert "notice: 1 volume: joined_parts: " in said
    assert len(make("stack.parts=apart", folder=tmp_path / "raw", name="apart")) == 5


def test_two_halves_that_cannot_be_joined_are_one_refusal(make: Prepare, tmp_path: Path) -> None:
    places = tuple(2.5 * k for k in range(17) if k != 8)
    write_two_types(tmp_path / "raw", distances=places, start=8)
    with pytest.raises(DataError, match=r"gap: 2 parts .*ImageType.*stack\.gap=resample.*stack\.parts=apart"):
        make("max_quarantined=0", folder=tmp_path / "raw")
    assert len(make("stack.gap=resample", folder=tmp_path / "raw", name="filled")) == 4


def test_rules_of_volumes_are_refused_for_images(make: Prepare) -> None:
    with pytest.raises(ConfigError, match=r"series\.\*: only for volumes"):
        make("image=xray", "image.size=32", "series.modality=[CT]")


def test_where_nothing_is_left_the_reasons_are_named(make: Prepare, tmp_path: Path) -> None:
    for number in range(2):
        gap = build.build_slices((0.0, 2.5, 5.0, 10.0, 12.5, 15.0), PatientID=f"Doe-{number}")
        build.write_series(tmp_path / "raw" / f"case{number}", gap)
    (tmp_path / "raw" / "labels.csv").write_text("path,label\ncase0,a\ncase1,b\n")
    with pytest.raises(DataError, match=r"no image is left to decode: .* gap"):
        make("max_quarantined=1", folder=tmp_path / "raw")


def test_the_preference_is_among_series_that_make_a_volume(make: Prepare, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for number in range(4):
        best = build.build_slices(origin=(-30.0 - number, 20.0, 5.0), PatientID=f"Doe-{number}")
        if number == 0:  # the longest series has a gap
            del best[4]
        other = build.build_slices((0.0, 2.5, 5.0, 7.5), origin=(-60.0 - number, 20.0, 5.0), PatientID=f"Doe-{number}")
        for slice_ in other:
            slice_.StudyInstanceUID = best[0].StudyInstanceUID
        build.write_series(raw / f"case{number}" / "best", best)
        build.write_series(raw / f"case{number}" / "other", other)
    (raw / "labels.csv").write_text("path,label\n" + "".join(f"case{n},{'ab'[n % 2]}\n" for n in range(4)))
    store = make("series.per_study=most_slices", folder=raw)
    assert sorted(store.column("source_depth")) == [4, 8, 8, 8]
    assert store.info["counts"]["states"] == {
        "ok": 4 + 3 * 8,
        "quarantined: gap": 7,
        "skipped: not_in_labels": 1,
        "skipped: not_preferred": 3 * 4,
    }


@pytest.mark.parametrize("change", ["added", "removed", "replaced"])
def test_a_volume_of_other_files_needs_another_store(change: str, make: Prepare, source: Path, tmp_path: Path) -> None:
    raw = copy_source(source, tmp_path / "raw")
    make(folder=raw)
    if change != "added":
        next((raw / "case2").iterdir()).unlink()
    if change != "removed":
        (late,) = build.build_slices((20.0,), origin=(-32.0, 20.0, 5.0), PatientID="Doe-2")
        import pydicom

        first = pydicom.dcmread(next((raw / "case2").iterdir()))
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(late, keyword, getattr(first, keyword))
        build.write_series(raw / "case2", [late])
    with pytest.raises(DataError, match="choose another store="):
        make(folder=raw)


def test_a_ct_without_rescale_is_not_in_hounsfield_units(make: Prepare, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for number in range(4):
        slices = build.build_slices(origin=(-30.0 - number, 20.0, 5.0), PatientID=f"Doe-{number}", Modality="CT")
        for slice_ in slices if number == 1 else ():
            for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
                if keyword in slice_:
                    delattr(slice_, keyword)
        build.write_series(raw / f"case{number}", slices)
    (raw / "labels.csv").write_text("path,label\n" + "".join(f"case{n},{'ab'[n % 2]}\n" for n in range(4)))
    states = make("image.intensity=hounsfield", "image.dtype=int16", folder=raw).info["counts"]["states"]
    assert states["quarantined: not_hounsfield"] == 8


def test_nifti_in_hounsfield_units_where_the_user_says_so(make: Prepare, tmp_path: Path) -> None:
    import nibabel

    (tmp_path / "raw").mkdir()
    generator = np.random.default_rng(0)
    for number in range(4):
        values = generator.integers(-900, 900, (10, 12, 8)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([0.7, 0.7, 2.0, 1.0])), tmp_path / "raw" / f"{number}.nii.gz")
    rows = "".join(f"{n}.nii.gz,p{n},{'ab'[n % 2]}\n" for n in range(4))
    (tmp_path / "raw" / "labels.csv").write_text("path,patient_id,label\n" + rows)
    settings = ("image=ct_volume", "image.size=[8,12,12]", "max_quarantined=1")
    with pytest.raises(DataError, match=r"not_hounsfield: .*image\.nifti_unit=HU"):
        make(*settings, folder=tmp_path / "raw")
    store = make(*settings, "image.nifti_unit=HU", folder=tmp_path / "raw", name="hu")
    assert (len(store), store.shape) == (4, (3, 8, 12, 12))


def test_analyze_pairs_are_volumes_of_two_files(make: Prepare, tmp_path: Path) -> None:
    import nibabel

    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(5):
        values = np.random.default_rng(number).integers(0, 900, (10, 12, 8)).astype(np.int16)
        image = nibabel.AnalyzeImage(values, None)
        image.header.set_zooms((0.7, 0.7, 2.0))
        image.to_filename(raw / f"{number}.img")
        (raw / f"{number}.mat").unlink(missing_ok=True)
    (raw / "4.img").unlink()
    names = ["0.hdr", "1.hdr", "2.hdr", "3.hdr"]
    rows = "".join(f"{name},p{n},{'ab'[n % 2]}\n" for n, name in enumerate(names))
    (raw / "labels.csv").write_text("path,patient_id,label\n" + rows)
    with pytest.raises(DataError, match=r"orientation: .*image\.analyze_axes=LAS"):
        make("max_quarantined=0.1", folder=raw)
    store = make("image.analyze_axes=LAS", folder=raw, name="las")
    assert len(store) == 4
    assert store.column("source_files") == [2] * 4
    assert store.info["counts"]["states"] == {"ok": 8, "quarantined: nifti_pair": 1, "skipped: not_in_labels": 1}


def test_what_the_series_rule_leaves_out_has_its_reason(make: Prepare) -> None:
    store = make("series.min_slices=7")
    states = store.info["counts"]["states"]
    assert states["skipped: too_few_slices"] == 6
    assert "quarantined: gap" not in states


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("image.size=[8,12]", r"expected a number or \[depth, height, width\]"),
        ("image.intensity=window", "windows_hu"),
        ("image.dtype=int16", "hounsfield"),
        ("stack.gap=guess", "gap=guess: expected one of refuse, resample"),
        ("series.per_study=best", "per_study=best"),
        ("series.description=(", "not a regular expression"),
    ],
)
def test_wrong_settings_are_named(argument: str, part: str, make: Prepare) -> None:
    with pytest.raises(ConfigError, match=part):
        make(argument)


def test_one_slice_with_text_in_it_is_a_volume_with_text_in_it(make: Prepare, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    for number in range(4):
        slices = build.build_slices(origin=(-30.0 - number, 20.0, 5.0), PatientID=f"Doe-{number}")
        if number == 2:
            slices[5].BurnedInAnnotation = "YES"
        build.write_series(folder / f"case{number}", slices)
    lines = [f"case{n},{'ab'[n % 2]}" for n in range(4)]  # the patients are the headers'
    (folder / "labels.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    assert make(folder=folder).info["counts"]["states"]["quarantined: burnt_in"] == 8
    assert len(make("image.burnt_in=allow", folder=folder, name="allowed")) == 4


def test_what_a_file_leaves_open_is_said_with_its_setting(make: Prepare, tmp_path: Path, capfd: Any) -> None:
    import nibabel as nib

    raw, rng = tmp_path / "raw", np.random.default_rng(0)
    raw.mkdir()
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for number in range(4):
        image = nib.Nifti1Image(rng.integers(0, 900, (12, 12, 8)).astype(np.int16), affine)
        image.set_sform(affine, 4 if number else 0)
        image.set_qform(affine + np.pad(np.full((3, 1), 9.0), ((0, 1), (3, 0))), 1 if number else 0)
        image.to_filename(raw / f"case{number}.nii")
    lines = [f"case{n}.nii,p{n},{'ab'[n % 2]}" for n in range(4)]
    (raw / "labels.csv").write_text("path,patient_id,label\n" + "\n".join(lines) + "\n")
    store = make(folder=raw)
    assert sorted(store.column("notes")) == ["axes_assumed", *["sform_taken"] * 3]
    said = capfd.readouterr().err
    assert "notice: 1 volume: axes_assumed: " in said
    assert "image.analyze_axes=" in said
    assert "notice: 3 volumes: sform_taken: " in said
    assert "image.nifti_affine=qform" in said
    assert sorted(make("image.nifti_affine=qform", folder=raw, name="q").column("notes"))[1:] == ["qform_taken"] * 3
