"""Raw (FOR PROCESSING) and processed images in one source: refused until one kind is chosen, and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from data_prep.overview import describe_folder
from data_prep.presentation import describe_mixture
from medcls.data.manifest import read_table
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.imaging import catalog as index
from medcls.imaging.catalog import build_index
from medcls.imaging.source import list_files

RAW, SHOWN = uid.DigitalXRayImageStorageForProcessing, uid.DigitalXRayImageStorageForPresentation
SETTINGS = ("deidentify=declared", "split.test=0.25", "split.val=0.25")


def write_radiograph(path: Path, pixels: NDArray[Any], *, study: int, intent: str | None, sop_class: str) -> None:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid.generate_uid(entropy_srcs=[str(path.name), str(study)])
    ds.PatientID, ds.Modality, ds.BodyPartExamined, ds.BurnedInAnnotation = f"P{study}", "DX", "KNEE", "NO"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.{study}", f"1.2.{study}.{len(intent or '')}"
    if intent is not None:
        ds.PresentationIntentType = intent
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = pixels.tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


@pytest.fixture
def exposures(tmp_path: Path, draw_picture: Callable[..., NDArray[np.uint8]]) -> Path:
    """Twelve exposures, each raw and processed; every third raw one says so by its class alone. Labels by study."""
    folder = tmp_path / "raw"
    lines = ["StudyInstanceUID,label"]
    for study in range(12):
        picture = draw_picture(study % 2, study)
        raw = None if study % 3 == 0 else "FOR PROCESSING"
        write_radiograph(folder / f"{study}/a.dcm", 255 - picture, study=study, intent=raw, sop_class=RAW)
        write_radiograph(folder / f"{study}/b.dcm", picture, study=study, intent="FOR PRESENTATION", sop_class=SHOWN)
        lines.append(f"1.2.{study},{study % 2}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_mixture_is_refused_with_counts_and_settings(
    exposures: Path, run_prepare: Callable[..., Store], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"of 24 images 12 are FOR PROCESSING .* 12 FOR PRESENTATION .*=any"):
        run_prepare(exposures, tmp_path / "store", *SETTINGS)


@pytest.mark.parametrize("choice", ["presentation", "processing"])
def test_one_kind_is_taken_and_the_other_is_in_the_ledger(
    exposures: Path, run_prepare: Callable[..., Store], tmp_path: Path, choice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = run_prepare(exposures, tmp_path / "store", *SETTINGS, f"image.presentation={choice}")
    other = {"presentation": "processing", "processing": "presentation"}[choice]
    assert store.column("intent") == [choice] * 12
    assert store.info["counts"]["states"] == {"ok": 12, f"skipped: for_{other}": 12, "skipped: not_in_labels": 1}
    ledger = read_table(store.folder / "ledger.parquet").to_pylist()
    letter = {"presentation": "a", "processing": "b"}[choice]
    assert all(row["path"].endswith(f"{letter}.dcm") for row in ledger if row["reason"] == f"for_{other}")
    assert f"12 images FOR {other.upper()} (0 6, 1 6) are left out" in capsys.readouterr().err


def test_both_kinds_are_taken_if_the_user_wants_them(
    exposures: Path, run_prepare: Callable[..., Store], tmp_path: Path
) -> None:
    store = run_prepare(exposures, tmp_path / "store", *SETTINGS, "image.presentation=any", "split.on_leak=report")
    assert sorted(store.column("intent")) == ["presentation"] * 12 + ["processing"] * 12


def test_files_that_say_nothing_stay_with_either_kind_and_mix_with_it(
    exposures: Path,
    run_prepare: Callable[..., Store],
    draw_picture: Callable[..., NDArray[np.uint8]],
    tmp_path: Path,
) -> None:
    for study in range(12):
        (exposures / f"{study}/a.dcm").unlink()
        plain = uid.ComputedRadiographyImageStorage
        write_radiograph(
            exposures / f"{study}/c.dcm", draw_picture(0, 99 + study), study=study, intent=None, sop_class=plain
        )
    for number, settings in enumerate(((), ("image.presentation=presentation",))):
        store = run_prepare(exposures, tmp_path / f"store{number}", *SETTINGS, *settings)
        assert sorted(map(str, store.column("intent"))) == ["None"] * 12 + ["presentation"] * 12


def test_labels_that_name_one_kind_by_its_files_need_no_choice(
    exposures: Path, run_prepare: Callable[..., Store], tmp_path: Path
) -> None:
    lines = ["path,label", *(f"{study}/b.dcm,{study % 2}" for study in range(12))]
    (exposures / "labels.csv").write_text("\n".join(lines) + "\n")
    assert run_prepare(exposures, tmp_path / "store", *SETTINGS).column("intent") == ["presentation"] * 12


def test_an_index_of_version_0_2_0_says_nothing_of_intents(exposures: Path, tmp_path: Path) -> None:
    table = build_index(exposures, list_files(exposures), workers=0)
    assert table["intent"].to_pylist() == ["processing", "presentation"] * 12 + [""]
    path = tmp_path / "index.parquet"
    index.write_index(path, table.to_batches())
    old = index.read_index(path, source=exposures).drop_columns(["intent"])
    pq.write_table(old.replace_schema_metadata({"medcls_index": "1"}), path)
    assert index.read_index(path, source=exposures)["intent"].to_pylist() == [""] * 25


def test_another_word_is_refused(compose_job: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"image\.presentation=raw: expected one of presentation, processing, any"):
        compose_job("prepare", "image.presentation=raw")


def test_the_overview_refuses_a_mixture_in_the_words_of_data_prep(exposures: Path) -> None:
    table = build_index(exposures, list_files(exposures), workers=0)
    said = "\n".join(describe_folder(table, lines=0))
    expected = describe_mixture(pa.chunked_array([["processing"] * 12 + ["presentation"] * 12]))
    assert f"refused as a whole by data_prep (default settings): {expected}" in said
    one = table.filter(pc.equal(table["intent"], "presentation"))
    assert "refused as a whole" not in "\n".join(describe_folder(one, lines=0))
