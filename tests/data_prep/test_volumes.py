"""Folders of slices to a store of volumes: the right voxels at the right place, and a reason for every other file."""

from __future__ import annotations

import importlib.util
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
from medcls.stages.training_data import image_spec

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
        ("stack.gap=guess", "gap=guess: expected refuse or resample"),
        ("series.per_study=best", "per_study=best"),
        ("series.description=(", "no regular expression"),
    ],
)
def test_wrong_settings_are_named(argument: str, part: str, make: Prepare) -> None:
    with pytest.raises(ConfigError, match=part):
        make(argument)


def test_a_network_for_images_does_not_take_volumes(make: Prepare) -> None:
    with pytest.raises(DataError, match=r"holds volumes \(1, 8, 12, 12\)"):
        image_spec(make())


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
