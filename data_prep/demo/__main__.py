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

from data_prep.demo.demo_set import (
    LABELS,
    MOST_SEED,
    README,
    TRUTH,
    DemoCommand,
    Row,
    claim_folder,
    same_readme,
    to_csv,
)
from data_prep.demo.film import build_dicom, draw_exposure, patient_id
from data_prep.demo.knees import SIDES, draw_grades, draw_knee, draw_sex
from data_prep.demo.phantom import signal_box
from medcls.errors import UsageError
from medcls.files import TEMPORARY, write_bytes
from medcls.reproducibility import make_generator

FORMAT_VERSION = 1  # part of README.txt: a set of another version is written again
_OWN_FILE = re.compile(rf"({re.escape(TEMPORARY)}.*)?\d{{6,}}-[LR]\.dcm")
_README = """SYNTHETIC knee radiographs (demo set of medcls): drawn by a program, no patient, no diagnosis.
seed={seed} num_images={num_images} format={version}
labels.csv: path, patient_id, label (Kellgren-Lawrence grade 0-4), side, sex, age_years.
labels-truth.csv: what was drawn (joint space, osteophytes) and the box in pixels where the grade shows.
Age rises a little with the grade, as in life; sex, exposure, contrast, marker and file format do not.
"""


def write_demo(folder: Path, *, num_images: int = 600, seed: int = 0) -> Path:
    """Write a demo set unless it is already in the folder, complete; return the path of its labels.csv.

    Args:
        folder: Absent, empty, or holding a demo set (another or an interrupted one is replaced).
        num_images: Number of films, >= 1, two of each patient; film i does not depend on it.
        seed: Key of all random draws, >= 0.

    Raises:
        UsageError: num_images or seed out of range.
        WriteError: the folder holds other files.
        OSError: the folder cannot be written.
    """
    if num_images < 1 or not 0 <= seed <= MOST_SEED:
        raise UsageError(f"num_images={num_images}, seed={seed}: expected num_images >= 1, 0 <= seed < 2**63")
    readme = _README.format(seed=seed, num_images=num_images, version=FORMAT_VERSION)
    whole = (folder / LABELS).is_file() and same_readme(folder, readme)
    if whole and sum(1 for _ in (folder / "images").glob("*.dcm")) == num_images:
        return folder / LABELS
    claim_folder(folder)
    for name in (LABELS, TRUTH):  # before the films: a set without labels is not complete
        (folder / name).unlink(missing_ok=True)
    for file in (folder / "images").glob("*"):
        if _OWN_FILE.fullmatch(file.name):
            file.unlink()
    write_bytes(folder / README, readme.encode())
    films = (_write_film(folder, index, seed) for index in range(num_images))
    rows = list(tqdm(films, desc="synthetic knees", total=num_images, file=sys.stderr))
    write_bytes(folder / TRUTH, to_csv([truth for _, truth in rows]))
    write_bytes(folder / LABELS, to_csv([row for row, _ in rows]))  # last: the set is whole
    return folder / LABELS


def _write_film(folder: Path, index: int, seed: int) -> tuple[Row, Row]:
    """Write one film; return its row of labels.csv, and that of labels-truth.csv, which training never reads."""
    patient, side = index // 2, SIDES[index % 2]
    knee = draw_knee(seed, patient=patient, side=side)
    # 40 to 89 years, a little higher with higher grades.
    age = 60 + 1.2 * max(draw_grades(seed, patient)) + 8 * make_generator("demo age", seed, patient).normal()
    age_years = int(np.clip(round(age), 40, 89))
    film = io.BytesIO()
    build_dicom(knee, draw_exposure(knee), age_years=age_years).save_as(film, enforce_file_format=True)
    path = f"images/{index:06d}-{side}.dcm"
    write_bytes(folder / path, film.getvalue())
    label: Row = {"path": path, "patient_id": patient_id(patient), "label": knee.grade, "side": side}
    label |= {"sex": draw_sex(seed, patient), "age_years": age_years}
    truth: Row = {"path": path}
    truth |= zip(("box_y", "box_x", "box_h", "box_w"), signal_box(knee), strict=True)
    medial, lateral = knee.joint_space_mm
    truth |= {"joint_space_medial_mm": f"{medial:.2f}", "joint_space_lateral_mm": f"{lateral:.2f}"}
    return label, truth | {"osteophyte_mm": f"{max(knee.osteophytes_mm):.2f}"}


COMMAND = DemoCommand(
    "python -m data_prep.demo",
    "Draw SYNTHETIC knee radiographs as DICOM files, with labels.csv, to try the software: no patient, no diagnosis.",
    {
        "num_images": "Number of films, two of each patient.",
        "seed": "Seed of all random draws; the same numbers give the same bytes.",
    },
    write_demo,
    "{path}: SYNTHETIC knee radiographs, for trying the software only",
)


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    return COMMAND.run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
