"""The overview of a folder: true numbers, no word that names a patient, and a file for many jobs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from data_prep.index import main
from medcls.errors import ConfigError, MissingInputError, UsageError
from medcls.imaging.catalog import read_index

PROBES = ("Doe^Jane", "MRN-4711", "Planted description", "19560203", "1.2.826.99", "Ward^Nurse", "secret-folder")


def write_slice(path: Path, *, z: float, patient: str = "MRN-4711", study: str = "1.2.826.99.1", **more: Any) -> None:
    """A CT slice of 8 x 6 pixels with an identifier in every usual place."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, f"{study}.5", "1.2.3"
    ds.PatientID, ds.PatientName, ds.PatientBirthDate = patient, "Doe^Jane", "19560203"
    ds.SeriesDescription, ds.OperatorsName = "Planted description", "Ward^Nurse"
    ds.Modality, ds.BodyPartExamined, ds.ImageType = "CT", "CHEST", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImageOrientationPatient, ds.ImagePositionPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [0, 0, z], [0.5, 0.7]
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 8, 6, 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.PixelData = 15, 0, bytes(96)
    with pydicom.config.disable_value_validation():
        for keyword, value in more.items():
            ds.pop(keyword, None)  # an element keeps the validation it was made with
            setattr(ds, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Patient 1: a volume and one with a gap; patient 2: a truncated slice; a picture and a text."""
    source = tmp_path / "raw"
    for number in range(5):
        write_slice(source / "secret-folder" / f"{number}", z=2.5 * number)
        write_slice(source / "u" / f"{number}", z=2.5 * (number + (number > 2)), study="1.2.826.99.2")
    write_slice(source / "v" / "cut", z=0, patient="other")
    (source / "v" / "cut").write_bytes((source / "v" / "cut").read_bytes()[:-9])
    cv2.imwrite(str(source / "picture.png"), np.zeros((30, 20), np.uint8))
    (source / "notes.txt").touch()
    return source


def run(compose_job: Callable[..., Any], *arguments: str) -> None:
    main(compose_job("index", *arguments, "workers=0"))


def test_the_overview_says_what_is_there(
    folder: Path, compose_job: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(compose_job, f"source={folder}")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == ["files 13 11 DICOM, 1 pictures, 1 others", "patients 2", "studies 3", "series 3"]
    assert lines[4] == "pictures 1 1 of 30 x 20"
    start = lines.index(
        "patient study series modality body part plane images size spacing mm syntax as volume as images"
    )
    assert lines[start + 1 : start + 4] == [
        "P1 1 S1 CT CHEST axial 5 8 x 6 0.5 x 0.7 x 2.5 explicit ok no_window",
        "2 S1 CT CHEST axial 5 8 x 6 0.5 x 0.7 x 2.5 explicit gap no_window",
        "P2 1 S1 CT - - 0 - - explicit truncated -",
    ]
    assert "1 truncated the file ends early" in lines
    assert "10 no_window CT without a window: image.windows_hu, or as a volume" in lines
    assert lines[-1].startswith("These are the verdicts of data_prep from headers alone.")


def test_no_identifier_is_printed(
    folder: Path, compose_job: Callable[..., Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_slice(folder / "w" / "text", z=0, BodyPartExamined="DOE JANE", Modality="Doe^Jane", study="1.2.826.99.7")
    run(compose_job, f"source={folder}", f"out={tmp_path / 'index.parquet'}")
    captured = capsys.readouterr()
    everything = captured.out + captured.err
    assert "(text)" in everything
    assert [probe for probe in (*PROBES, "DOE JANE") if probe in everything] == []


def test_many_series_are_cut_and_counted(
    folder: Path, compose_job: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(compose_job, f"source={folder}", "lines=1")
    out = capsys.readouterr().out
    assert "… and 2 more series: lines=0 shows all" in out
    assert "all series as volumes: 1 ok; 1 gap; 1 truncated" in out
    assert "all series as images: 2 no_window; 1 -" in out
    run(compose_job, f"source={folder}", "lines=0")
    assert "more series" not in capsys.readouterr().out


def test_out_is_private_and_says_so(
    folder: Path, compose_job: Callable[..., Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "index.parquet"
    run(compose_job, f"source={folder}", f"out={out}")
    assert "13 rows with the real identifiers (mode 0600)" in capsys.readouterr().err
    assert out.stat().st_mode & 0o777 == 0o600
    assert read_index(out, source=folder).num_rows == 13


def test_an_empty_folder_has_nothing(
    tmp_path: Path, compose_job: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(compose_job, f"source={tmp_path}")
    assert capsys.readouterr().out.split() == ["files", "0", "patients", "0", "studies", "0", "series", "0"]


def test_mistakes_are_named(folder: Path, compose_job: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="source=DIR is missing"):
        run(compose_job)
    with pytest.raises(MissingInputError, match="is not a folder"):
        run(compose_job, f"source={folder / 'gone'}")
    with pytest.raises(ConfigError, match="is inside source"):
        run(compose_job, f"source={folder}", f"out={folder / 'index.parquet'}")
    with pytest.raises(ConfigError, match="lines=-1"):
        run(compose_job, f"source={folder}", "lines=-1")


def test_the_files_of_pydicoms_wheel_by_the_command_itself() -> None:
    wheel = Path(pydicom.__file__).parent / "data" / "test_files"
    command = [sys.executable, "-m", "data_prep.index", f"source={wheel}", "workers=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "DICOM" in done.stdout.splitlines()[0]
    assert "CompressedSamples^" not in done.stdout + done.stderr


def test_exit_code_of_a_missing_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep.index", f"source={tmp_path / 'gone'}"]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 66
