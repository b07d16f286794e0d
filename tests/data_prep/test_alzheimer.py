"""The script of docs/alzheimer.md, on files made up after what is publicly said of ADNI's: never on real ones."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medcls.data.store import Store

DOC = Path(__file__).resolve().parents[2] / "docs" / "alzheimer.md"
Rows = list[dict[str, Any]]
DX = ("CN", "MCI", "Dementia")


@pytest.fixture(scope="module")
def adni(tmp_path_factory: pytest.TempPathFactory, write_labels: Callable[[Path, Rows], None]) -> Path:
    """Nine subjects with a scan as NIfTI, and a tenth with slices as DICOM names; visits before and after each scan."""
    folder = tmp_path_factory.mktemp("adni")
    collection, merge = [], []
    for number in range(10):
        subject, image = f"00{number}_S_{1000 + number}", f"I{500 + number}"
        place = folder / "ADNI" / subject / "MPRAGE" / "2006-11-02_08_16_44.0" / f"S{number}"
        place.mkdir(parents=True)
        name = f"ADNI_{subject}_MR_MPRAGE_br_raw_20061102_1_S{number}_{image}"
        if number < 9:
            volume = np.random.default_rng(number).normal(100, 20, (10, 10, 10)).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), place / f"{name}.nii")
        else:
            for slice_number in range(3):
                (place / f"ADNI_{subject}_MR_MPRAGE_br_raw_{slice_number}_S{number}_{image}.dcm").touch()
        row = {
            "Image Data ID": image if number % 2 else image[1:],
            "Subject": subject,
            "Group": "Patient",
            "Sex": "FM"[number % 2],
        }
        collection.append(row | {"Age": "75", "Visit": "1", "Acq Date": "11/02/2006", "Format": "NiFTI"})
        # The nearest visit counts, whatever is known of others; the last of these subjects has none near.
        visits = [("2006-10-20", DX[number % 3]), ("2007-06-01", DX[(number + 1) % 3]), ("2006-11-02", "")]
        for day, diagnosis in visits if number else [("2005-01-01", "CN")]:
            merge.append({"PTID": subject, "VISCODE": "m06", "EXAMDATE": day, "DX_bl": "CN", "DX": diagnosis})
    write_labels(folder / "collection.csv", collection)
    write_labels(folder / "ADNIMERGE.csv", merge)
    return folder


def run_script(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    (code,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    names = [str(folder / name) for name in ("ADNI", "collection.csv", "ADNIMERGE.csv")]
    return subprocess.run([sys.executable, "-c", code, *names, str(out)], capture_output=True, text=True, check=False)


def test_the_scripts_labels_are_what_data_prep_takes(
    adni: Path,
    read_labels_csv: Callable[[Path], list[dict[str, str]]],
    write_labels: Callable[[Path, Rows], None],
    run_prepare: Callable[..., Store],
    tmp_path: Path,
) -> None:
    done = run_script(adni, tmp_path / "labels.csv")
    assert (done.returncode, done.stdout) == (0, "10 scans, 1 without a diagnosis within 90 days of them\n"), (
        done.stderr
    )
    rows = read_labels_csv(tmp_path / "labels.csv")
    assert [row["label"] for row in rows] == ["", "MCI", "AD", "NC", "MCI", "AD", "NC", "MCI", "AD", "NC"]
    assert rows[9]["path"] == "009_S_1009/MPRAGE/2006-11-02_08_16_44.0/S9", "of DICOM the folder of its slices"
    write_labels(tmp_path / "nine.csv", rows[:9])
    settings = ("image=mr_volume", "image.size=[8,8,8]", "split.on_missing=report", "split.val=0.3")
    store = run_prepare(adni / "ADNI", tmp_path / "store", *settings, f"labels={tmp_path / 'nine.csv'}", labels=None)
    assert store.column("patient_id") == [row["patient_id"] for row in rows[:9]]
    assert store.column("sex") == [row["sex"] for row in rows[:9]]


def test_a_scan_of_the_list_without_a_file_ends_the_script(adni: Path, tmp_path: Path) -> None:
    for name in ("collection.csv", "ADNIMERGE.csv"):
        text = (adni / name).read_text()
        (tmp_path / name).write_text(text.replace("I501,", "I601,"))
    (tmp_path / "ADNI").symlink_to(adni / "ADNI")
    done = run_script(tmp_path, tmp_path / "labels.csv")
    assert done.returncode == 1
    assert "I601: no file of" in done.stderr
    assert not (tmp_path / "labels.csv").exists()
