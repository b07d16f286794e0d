"""The 3-D demo set: SYNTHETIC T1-like heads as DICOM MR series, an unlabelled source domain and a labelled target.

    python -m data_prep.demo3d out=DIR [num_source=120 num_target=150 seed=0]

Everything is a pure function of the seed: the same bytes tomorrow. The patients are in data_prep/demo/head_set.py,
how they are drawn in head_phantom.py, how they are stored in head_series.py. No patient is in both domains.
"""

from __future__ import annotations

import medcls.entry  # noqa: F401 (before all others: it keeps the working folder's files from being imported)

# isort: split
import re
import shutil
import sys
from pathlib import Path

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
from data_prep.demo.head_series import build_slices
from data_prep.demo.head_set import DOMAINS, Head, draw_head
from medcls.errors import UsageError
from medcls.files import TEMPORARY, write_bytes

FORMAT_VERSION = 1  # part of README.txt: a set of another version is written again
_OWN_SERIES = re.compile(rf"({re.escape(TEMPORARY)})?head-[st]\d{{4,}}")
_README = """SYNTHETIC heads (3-D demo set of medcls): drawn by a program, no patient, no diagnosis.
seed={seed} num_source={num_source} num_target={num_target} format={version}
source/labels.csv: path, patient_id, sex, age_years, site; label is blank: for pretraining.
target/labels.csv: the same with label NC, MCI or AD; other patients.
labels-truth.csv: what was drawn (ventricles, hippocampus, cortex, sulci).
Two scanners (site) differ in plane, spacing, contrast, noise and coil: "north" took most of the source, "south" most of
the target. Age and the diagnosis change the anatomy; site, sex, size and pose do not look at the diagnosis.
"""


def write_demo3d(folder: Path, *, num_source: int = 120, num_target: int = 150, seed: int = 0) -> Path:
    """Write a demo set unless it is already in the folder, complete; return the folder.

    Args:
        folder: Absent, empty, or holding a demo set (another or an interrupted one is replaced).
        num_source: Unlabelled patients, one volume each; patient i does not depend on it.
        num_target: Labelled patients.
        seed: Key of all random draws, >= 0.

    Raises:
        UsageError: a number out of range.
        WriteError: the folder holds other files.
        OSError: the folder cannot be written.
    """
    if num_source < 1 or num_target < 1 or not 0 <= seed <= MOST_SEED:
        raise UsageError(
            f"num_source={num_source}, num_target={num_target}, seed={seed}: expected >= 1, >= 1 and 0 <= seed < 2**63"
        )
    numbers = dict(zip(DOMAINS, (num_source, num_target), strict=True))
    readme = _README.format(seed=seed, num_source=num_source, num_target=num_target, version=FORMAT_VERSION)
    if same_readme(folder, readme) and all(_is_complete(folder / domain, n) for domain, n in numbers.items()):
        return folder
    claim_folder(folder)
    for domain in DOMAINS:
        for name in (LABELS, TRUTH):  # before the series: a domain without labels is not complete
            (folder / domain / name).unlink(missing_ok=True)
        for series in (folder / domain / "images").glob("*"):
            if _OWN_SERIES.fullmatch(series.name):
                shutil.rmtree(series)
    write_bytes(folder / README, readme.encode())
    for domain, number in numbers.items():
        heads = [draw_head(seed, domain=domain, number=i) for i in range(number)]
        for head in tqdm(heads, desc=f"synthetic heads, {domain}", file=sys.stderr):
            _write_series(folder / domain / "images" / head.patient_id, head)
        write_bytes(folder / domain / TRUTH, to_csv([_truth(head) for head in heads]))
        write_bytes(folder / domain / LABELS, to_csv([_label(head) for head in heads]))  # last: the domain is whole
    return folder


def _is_complete(folder: Path, number: int) -> bool:
    """Return whether a domain is there with all its series."""
    return (folder / LABELS).is_file() and sum(1 for _ in (folder / "images").glob("head-*")) == number


def _write_series(folder: Path, head: Head) -> None:
    """Write the slices of one head; a folder of its name is whole."""
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}")
    temporary.mkdir(parents=True)
    for number, content in enumerate(build_slices(head)):
        (temporary / f"{number:03d}.dcm").write_bytes(content)
    temporary.rename(folder)


def _label(head: Head) -> Row:
    """Return the row of labels.csv; the source domain keeps its diagnoses to itself."""
    label = {"source": "", "target": head.diagnosis}[head.domain]
    row: Row = {"path": f"images/{head.patient_id}", "patient_id": head.patient_id, "label": label}
    return row | {"sex": head.sex, "age_years": head.age_years, "site": head.site}


def _truth(head: Head) -> Row:
    """Return what was drawn, for tests; training never reads it."""
    signs: Row = {name: f"{getattr(head, name):.3f}" for name in ("ventricles", "hippocampus", "cortex_mm", "sulci")}
    return {"patient_id": head.patient_id, "diagnosis": head.diagnosis} | signs


COMMAND = DemoCommand(
    "python -m data_prep.demo3d",
    "Draw SYNTHETIC T1-like heads as DICOM MR series, to try the software in 3-D: no patient, no diagnosis.",
    {
        "num_source": "Patients without labels in out/source, one volume each, for pretraining.",
        "num_target": "Other patients in out/target, labelled NC, MCI or AD.",
        "seed": "Seed of all random draws; the same numbers give the same bytes.",
    },
    write_demo3d,
    "{path}/source, {path}/target: SYNTHETIC heads, for trying the software only",
)


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    return COMMAND.run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
