"""The demo set: SYNTHETIC knee radiographs as DICOM files, with labels.csv.

    python -m data_prep.demo out=DIR [num_images=600 seed=0]

Everything is a pure function of the seed: the same bytes tomorrow. The knees are in data_prep/demo/knees.py, how
they are drawn in phantom.py, how they are exposed and stored in film.py.
"""

from __future__ import annotations

import medcls.entry  # noqa: F401 (before all others: it keeps the working folder's files from being imported)

# isort: split
import io
import re
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.demo.demo_set import README, Row, claim_folder, parse_command, same_readme, to_csv
from data_prep.demo.film import build_dicom, draw_exposure, patient_id
from data_prep.demo.knees import SIDES, Knee, draw_grades, draw_knee, draw_sex
from data_prep.demo.phantom import signal_box
from medcls.disk import describe_unwritten
from medcls.errors import MedclsError, UsageError
from medcls.files import TEMPORARY, write_bytes
from medcls.reproducibility import make_generator

FORMAT_VERSION = 1  # part of README.txt: a set of another version is written anew
_OWN_FILE = re.compile(rf"({re.escape(TEMPORARY)}.*)?\d{{6,}}-[LR]\.dcm")
_USAGE = "python -m data_prep.demo out=DIR [num_images=600 seed=0]"
_README = """SYNTHETIC knee radiographs (demo set of medcls): drawn by a program, no patient, no diagnosis.
seed={seed} num_images={num_images} format={version}
labels.csv: path, patient_id, label (Kellgren-Lawrence grade 0-4), side, sex, age_years.
labels-truth.csv: what was drawn (joint space, osteophytes) and the box in pixels where the grade shows.
Age rises a little with the grade, as in life; sex, exposure, contrast, marker and file format do not.
"""


def write_demo(folder: Path, *, num_images: int = 600, seed: int = 0) -> Path:
    """Path of labels.csv of a complete demo set in the folder, written now unless it is there already.

    Args:
        folder: Absent, empty, or holding a demo set (another or an interrupted one is replaced).
        num_images: Number of films, >= 1, two of each patient; film i does not depend on it.
        seed: Key of all random draws, >= 0.

    Raises:
        UsageError: num_images or seed out of range.
        WriteError: the folder holds other files, or cannot be written.
    """
    if num_images < 1 or not 0 <= seed < 2**63:
        raise UsageError(f"num_images={num_images}, seed={seed}: expected num_images >= 1, 0 <= seed < 2**63")
    readme = _README.format(seed=seed, num_images=num_images, version=FORMAT_VERSION)
    try:
        if not _is_complete(folder, readme, num_images):
            _clear(folder)
            write_bytes(folder / README, readme.encode())
            films = (_write_film(folder, index, seed) for index in range(num_images))
            rows = list(tqdm(films, desc="synthetic knees", total=num_images, file=sys.stderr))
            write_bytes(folder / "labels-truth.csv", to_csv([truth for _, truth in rows]))
            write_bytes(folder / "labels.csv", to_csv([row for row, _ in rows]))  # last: the set is whole
    except OSError as error:
        raise describe_unwritten(error, f"out={folder}", remedy="free space or choose another") from error
    return folder / "labels.csv"


def _write_film(folder: Path, index: int, seed: int) -> tuple[Row, Row]:
    """Write one film; its rows of labels.csv and of labels-truth.csv."""
    patient, side = index // 2, SIDES[index % 2]
    knee, age_years = draw_knee(seed, patient=patient, side=side), _age_years(seed, patient)
    film = io.BytesIO()
    build_dicom(knee, draw_exposure(knee), age_years=age_years).save_as(film, enforce_file_format=True)
    path = f"images/{index:06d}-{side}.dcm"
    write_bytes(folder / path, film.getvalue())
    label: Row = {"path": path, "patient_id": patient_id(patient), "label": knee.grade, "side": side}
    return label | {"sex": draw_sex(seed, patient), "age_years": age_years}, {"path": path} | _truth(knee)


def _age_years(seed: int, patient: int) -> int:
    """Age of a patient, 40-89, a little higher with higher grades."""
    age = 60 + 1.2 * max(draw_grades(seed, patient)) + 8 * make_generator("demo age", seed, patient).normal()
    return int(np.clip(round(age), 40, 89))


def _truth(knee: Knee) -> Row:
    """Return what was drawn, for tests of explanations; training never reads it."""
    box_y, box_x, box_h, box_w = signal_box(knee)
    medial, lateral = knee.joint_space_mm
    return {
        "box_y": box_y, "box_x": box_x, "box_h": box_h, "box_w": box_w,
        "joint_space_medial_mm": f"{medial:.2f}", "joint_space_lateral_mm": f"{lateral:.2f}",
        "osteophyte_mm": f"{max(knee.osteophytes_mm):.2f}",
    }  # fmt: skip


def _is_complete(folder: Path, readme: str, num_images: int) -> bool:
    """Return whether the same demo set lies there whole."""
    if not (folder / "labels.csv").is_file() or not same_readme(folder, readme):
        return False
    return sum(1 for _ in (folder / "images").glob("*.dcm")) == num_images


def _clear(folder: Path) -> None:
    """Remove what an earlier demo set left, labels.csv first; refuses a folder with anything else in it."""
    claim_folder(folder)
    for name in ("labels.csv", "labels-truth.csv"):
        (folder / name).unlink(missing_ok=True)
    for file in (folder / "images").glob("*"):
        if _OWN_FILE.fullmatch(file.name):
            file.unlink()


def main(arguments: list[str]) -> int:
    """Exit code of the command; prints where the demo set is."""
    try:
        folder, numbers = parse_command(arguments, names=("num_images", "seed"), usage=_USAGE)
        labels = write_demo(folder, **numbers)
    except MedclsError as error:
        print(f"data_prep.demo: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{labels}: SYNTHETIC knee radiographs, for trying the software only")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
