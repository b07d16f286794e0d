"""Reports, plans, scouts and screen shots beside images: skipped, counted, and no reason to refuse a good study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid

from data_prep.labels.joining import find_companions
from medcls.config import StackRule
from medcls.data.manifest import read_table
from medcls.data.store import Store
from medcls.errors import DataError
from medcls.imaging.catalog import build_index
from medcls.imaging.companions import name_companion
from medcls.imaging.source import list_files
from medcls.imaging.volume.find import find_series
from medcls.imaging.volume.select import SeriesRule
from tests.data_prep.test_index import write_slice
from tests.imaging import build_series as build

DECLARED = ("deidentify=declared",)
Edit = Callable[[Any], None]


def drop_pixels(ds: Any) -> None:
    del ds.PixelData
    ds.SOPClassUID = uid.ComprehensiveSRStorage


def cut_raw_data(ds: Any) -> None:
    """A raw-data object that is not whole in the place of pixels."""
    ds.SOPClassUID, ds.Rows = uid.RawDataStorage, 4000


def make_dose(ds: Any) -> None:
    ds.SOPClassUID = uid.RTDoseStorage


def make_scout(ds: Any) -> None:
    ds.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def make_localizer(ds: Any) -> None:
    make_scout(ds)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def make_colour(ds: Any) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.SOPClassUID, ds.PixelData = uid.SecondaryCaptureImageStorage, ds.PixelData * 3


COMPANIONS: dict[str, tuple[Edit, str]] = {
    "report": (drop_pixels, "no_pixel_data"),
    "raw": (cut_raw_data, "not_an_image"),
    "dose": (make_dose, "not_an_image"),
    "scout": (make_scout, "too_few_slices"),
    "localizer": (make_localizer, "localizer"),
    "sheet": (make_colour, "not_grey"),
}


def write_study(folder: Path, number: int, *, own_series: bool, names: list[str]) -> None:
    """A volume, and companions in its series or in series of their own."""
    slices = build.build_slices(origin=(-30.0 - number, 20.0, 5.0), PatientID=f"p{number}")
    build.write_series(folder / f"case{number}", slices)
    for name in names:
        (ds,) = build.build_slices([5.0], origin=(-30.0 - number, 20.0, 5.0), PatientID=f"p{number}")
        ds.StudyInstanceUID, ds.FrameOfReferenceUID = slices[0].StudyInstanceUID, slices[0].FrameOfReferenceUID
        if not own_series:
            ds.SeriesInstanceUID = slices[0].SeriesInstanceUID
        COMPANIONS[name][0](ds)
        (path,) = build.write_series(folder / f"case{number}", [ds])
        path.rename(path.with_name(f"{name}.dcm"))


@pytest.mark.parametrize("own_series", [False, True], ids=["in_the_series", "in_the_study"])
def test_companions_of_volumes_are_skipped_and_cost_nothing(
    own_series: bool, tmp_path: Path, run_prepare: Callable[..., Store], capfd: Any
) -> None:
    raw = tmp_path / "raw"
    for number in range(6):
        write_study(raw, number, own_series=own_series, names=list(COMPANIONS))
    (raw / "labels.csv").write_text("PatientID,label\n" + "".join(f"p{n},{'ab'[n % 2]}\n" for n in range(6)))
    settings = ("image=mr_volume", "image.size=[8,12,12]", "max_quarantined=0", "deidentify=declared")
    store = run_prepare(raw, tmp_path / "store", *settings, "split.test=0.34", "split.val=0", "split.on_missing=report")
    assert len(store) == 6
    ledger = read_table(store.folder / "ledger.parquet").to_pylist()
    left = {Path(row["path"]).stem: (row["state"], row["reason"]) for row in ledger if row["state"] != "ok"}
    wanted = {name: ("skipped", reason) for name, (_, reason) in COMPANIONS.items()}
    assert left == wanted | {"labels": ("skipped", "not_in_labels")}
    assert "skipped: 6 files: too_few_slices" in capfd.readouterr().err


def states_of(folder: Path, **series: Any) -> dict[str, tuple[str, str]]:
    index = build_index(folder, list_files(folder), workers=0)
    found = find_series(index, series=SeriesRule(**series), stack=StackRule())
    return {Path(path).stem: (state, reason) for each in found for path, state, reason, _ in each.left}


@pytest.mark.parametrize("name", ["scout", "sheet"])
def test_picture_is_a_fault_if_its_study_has_no_volume(name: str, tmp_path: Path) -> None:
    write_study(tmp_path, 0, own_series=True, names=[name])
    for path in (tmp_path / "case0").iterdir():
        if path.stem != name:
            path.unlink()
    assert states_of(tmp_path) == {name: ("quarantined", COMPANIONS[name][1])}


@pytest.mark.parametrize("where", ["in the pixels", "before the pixels"])
def test_damaged_slice_beside_companions_still_costs_its_series(where: str, tmp_path: Path) -> None:
    write_study(tmp_path, 0, own_series=False, names=["report", "raw"])
    whole = next(path for path in (tmp_path / "case0").iterdir() if path.stem not in COMPANIONS)
    data = whole.read_bytes()
    whole.write_bytes(data[: data.rindex(b"\xe0\x7f\x10\0")] if where == "before the pixels" else data[:-40])
    states = states_of(tmp_path)
    assert (states.pop("report"), states.pop("raw")) == (("skipped", "no_pixel_data"), ("skipped", "not_an_image"))
    assert Counter(states.values()) == {("quarantined", "truncated"): 1, ("quarantined", "incomplete_series"): 7}


def test_second_echo_with_a_missing_slice_is_no_companion(tmp_path: Path) -> None:
    slices = build.build_slices(EchoTime="2") + build.build_slices([0, 2.5, 5, 10, 12.5], EchoTime="9")
    for ds in slices:
        ds.SeriesInstanceUID, ds.StudyInstanceUID = slices[0].SeriesInstanceUID, slices[0].StudyInstanceUID
    build.write_series(tmp_path, slices)
    assert Counter(states_of(tmp_path).values()) == {("quarantined", "gap"): 5}


def test_irregular_stack_in_another_plane_is_left_over(tmp_path: Path) -> None:
    slices = build.build_slices()
    other = build.build_slices([0, 2.5, 5, 9], orientation=build.rotate(90, 0, 0))
    for ds in other:
        ds.SeriesInstanceUID, ds.StudyInstanceUID = slices[0].SeriesInstanceUID, slices[0].StudyInstanceUID
    build.write_series(tmp_path, slices + other)
    assert Counter(states_of(tmp_path).values()) == {("skipped", "leftover_stack"): 4}


def test_slices_of_one_series_each_are_refused_by_the_attribute(tmp_path: Path) -> None:
    slices = build.build_slices()
    for ds in slices:
        ds.SeriesInstanceUID = build.make_uid()
    build.write_series(tmp_path, slices)
    index = build_index(tmp_path, list_files(tmp_path), workers=0)
    left = [each for found in find_series(index, series=SeriesRule(), stack=StackRule()) for each in found.left]
    assert {(state, reason) for _, state, reason, _ in left} == {("quarantined", "too_few_slices")}
    assert all("8 slices with a SeriesInstanceUID each" in detail for *_, detail in left)


def write_pictures(raw: Path) -> None:
    """Twelve images in class folders, with a report and a plan in each class."""
    window = {"WindowCenter": "40", "WindowWidth": "400"}
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 2000, 48).astype("u2").tobytes()
        place = {"z": 0, "patient": f"p{number}", "study": f"1.2.{number}"}
        write_slice(raw / "ab"[number % 2] / f"{number}.dcm", **place, PixelData=pixels, **window)
    for name in "ab":
        write_slice(raw / name / "report.dcm", z=0, patient=f"p{'ab'.index(name)}", study=f"1.2.{'ab'.index(name)}")
        ds = pydicom.dcmread(raw / name / "report.dcm")
        drop_pixels(ds)
        ds.save_as(raw / name / "report.dcm")


@pytest.mark.parametrize("labels", ["folders", "studies"])
def test_companions_of_images_are_skipped_and_cost_nothing(
    labels: str, tmp_path: Path, compose_job: Callable[..., Any], run_prepare: Callable[..., Store]
) -> None:
    from data_prep.prepare import prepare

    raw = tmp_path / "raw"
    write_pictures(raw)
    settings = ["max_quarantined=0", "deidentify=declared", "image.few_levels=allow", "split.on_missing=report"]
    if labels == "studies":
        (tmp_path / "labels.csv").write_text(
            "StudyInstanceUID,label\n" + "".join(f"1.2.{n},{'ab'[n % 2]}\n" for n in range(12))
        )
        settings.append(f"labels={tmp_path / 'labels.csv'}")
    job = compose_job("prepare", f"source={raw}", f"store={tmp_path / 'store'}", "image.size=8", "workers=0", *settings)
    store = prepare(job)
    assert store is not None
    assert len(store) == 12
    assert store.info["counts"]["states"] == {"ok": 12, "skipped: no_pixel_data": 2}


def test_damaged_image_of_a_named_study_is_not_lost(tmp_path: Path, compose_job: Callable[..., Any]) -> None:
    """Before, a study's image that is cut short was dropped as if it were a report."""
    from data_prep.prepare import prepare

    raw = tmp_path / "raw"
    write_pictures(raw)
    cut = raw / "a" / "0.dcm"
    cut.write_bytes(cut.read_bytes()[:-9])
    lines = "".join(f"1.2.{n},{'ab'[n % 2]}\n" for n in range(12))
    (tmp_path / "labels.csv").write_text(f"StudyInstanceUID,label\n{lines}")
    places = (f"source={raw}", f"store={tmp_path / 'store'}", f"labels={tmp_path / 'labels.csv'}")
    with pytest.raises(DataError, match="truncated"):
        prepare(compose_job("prepare", *places, "image.size=8", "workers=0", "max_quarantined=0", *DECLARED))


def test_row_that_names_companions_alone_is_said(tmp_path: Path, run_prepare: Callable[..., Store], capfd: Any) -> None:
    raw = tmp_path / "raw"
    for number in range(6):
        write_study(raw, number, own_series=True, names=["scout"] if number == 2 else [])
    scout = pydicom.dcmread(raw / "case2" / "scout.dcm").SeriesInstanceUID
    lines = []
    for number in range(6):
        file = next(path for path in (raw / f"case{number}").iterdir() if path.stem != "scout")
        lines.append(f"{pydicom.dcmread(file).SeriesInstanceUID},{'ab'[number % 2]}\n")
    (raw / "labels.csv").write_text(f"SeriesInstanceUID,label\n{''.join(lines)}{scout},a\n")
    settings = ("image=mr_volume", "image.size=[8,12,12]", "max_quarantined=0", "deidentify=declared")
    store = run_prepare(raw, tmp_path / "store", *settings, "split.test=0.34", "split.val=0", "split.on_missing=report")
    assert len(store) == 6
    assert (
        "notice: 1 row of the labels file with no image, since all files of it are skipped (line 8)"
        in capfd.readouterr().err
    )


def test_index_asks_the_same_of_every_file(tmp_path: Path) -> None:
    write_study(tmp_path, 0, own_series=True, names=list(COMPANIONS))
    index = build_index(tmp_path, list_files(tmp_path), workers=0)
    rows = zip(index["problem"].to_pylist(), index["sop_class_uid"].to_pylist(), strict=True)
    assert find_companions(index).to_pylist() == [name_companion(*row) for row in rows]


@pytest.mark.parametrize(
    ("sop_class", "expected"),
    [
        (uid.CTImageStorage, ""),
        (uid.SecondaryCaptureImageStorage, ""),
        (uid.RTImageStorage, ""),
        (uid.RTStructureSetStorage, "not_an_image"),
        (uid.KeyObjectSelectionDocumentStorage, "not_an_image"),
        (uid.GrayscaleSoftcopyPresentationStateStorage, "not_an_image"),
        (uid.RawDataStorage, "not_an_image"),
        (uid.SpatialRegistrationStorage, "not_an_image"),
        (uid.EncapsulatedPDFStorage, "not_an_image"),
        (uid.MRSpectroscopyStorage, "not_an_image"),
        (uid.EnhancedMRImageStorage, ""),
    ],
)
def test_classes_that_are_no_images(sop_class: str, expected: str) -> None:
    assert name_companion("truncated", sop_class) == expected
