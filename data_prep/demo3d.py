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

from data_prep.demo.demo_set import README, Row, claim_folder, parse_command, same_readme, to_csv
from data_prep.demo.head_series import build_slices
from data_prep.demo.head_set import DOMAINS, Head, draw_head
from medcls.disk import describe_unwritten
from medcls.errors import MedclsError, UsageError
from medcls.files import TEMPORARY, write_bytes

FORMAT_VERSION = 1  # part of README.txt: a set of another version is written anew
_OWN_SERIES = re.compile(rf"({re.escape(TEMPORARY)})?head-[st]\d{{4,}}")
_USAGE = "python -m data_prep.demo3d out=DIR [num_source=120 num_target=150 seed=0]"
_README = """SYNTHETIC heads (3-D demo set of medcls): drawn by a program, no patient, no diagnosis.
seed={seed} num_source={num_source} num_target={num_target} format={version}
source/labels.csv: path, patient_id, sex, age_years, site; label is blank: for pretraining.
target/labels.csv: the same with label NC, MCI or AD; other patients.
labels-truth.csv: what was drawn (ventricles, hippocampus, cortex, sulci).
Two scanners (site) differ in plane, spacing, contrast, noise and coil: "north" took most of the source, "south" most of
the target. Age and the diagnosis change the anatomy; site, sex, size and pose do not look at the diagnosis.
"""


def write_demo3d(folder: Path, *, num_source: int = 120, num_target: int = 150, seed: int = 0) -> Path:
    """Path of the folder of a complete demo set, written now unless it is there already.

    Args:
        folder: Absent, empty, or holding a demo set (another or an interrupted one is replaced).
        num_source: Unlabelled patients, one volume each; patient i does not depend on it.
        num_target: Labelled patients.
        seed: Key of all random draws, >= 0.

    Raises:
        UsageError: a number out of range.
        WriteError: the folder holds other files, or cannot be written.
    """
    if num_source < 1 or num_target < 1 or not 0 <= seed < 2**63:
        raise UsageError(
            f"num_source={num_source}, num_target={num_target}, seed={seed}: expected >= 1, >= 1 and 0 <= seed < 2**63"
        )
    numbers = {"source": num_source, "target": num_target}
    readme = _README.format(seed=seed, num_source=num_source, num_target=num_target, version=FORMAT_VERSION)
    try:
        if not (same_readme(folder, readme) and all(_is_complete(folder / d, n) for d, n in numbers.items())):
            _clear(folder)
            write_bytes(folder / README, readme.encode())
            for domain, number in numbers.items():
                _write_domain(folder / domain, [draw_head(seed, domain=domain, number=i) for i in range(number)])
    except OSError as error:
        raise describe_unwritten(error, f"out={folder}", remedy="free space or choose another") from error
    return folder


def _write_domain(folder: Path, heads: list[Head]) -> None:
    """Write the series of one domain and, last, its labels."""
    for head in tqdm(heads, desc=f"synthetic heads, {heads[0].domain}", file=sys.stderr):
        _write_series(folder / "images" / head.patient_id, head)
    write_bytes(folder / "labels-truth.csv", to_csv([_truth(head) for head in heads]))
    write_bytes(folder / "labels.csv", to_csv([_label(head) for head in heads]))


def _write_series(folder: Path, head: Head) -> None:
    """Write the slices of one head; a folder of its name is whole."""
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}")
    temporary.mkdir(parents=True)
    for number, content in enumerate(build_slices(head)):
        (temporary / f"{number:03d}.dcm").write_bytes(content)
    temporary.rename(folder)


def _label(head: Head) -> Row:
    """Return the row of labels.csv; the source domain keeps its diagnoses to itself."""
    return {
        "path": f"images/{head.patient_id}", "patient_id": head.patient_id,
        "label": head.diagnosis if head.domain == "target" else "",
        "sex": head.sex, "age_years": head.age_years, "site": head.site,
    }  # fmt: skip


def _truth(head: Head) -> Row:
    """Return what was drawn, for tests; training never reads it."""
    signs: Row = {name: f"{getattr(head, name):.3f}" for name in ("ventricles", "hippocampus", "cortex_mm", "sulci")}
    return {"patient_id": head.patient_id, "diagnosis": head.diagnosis} | signs


def _is_complete(folder: Path, number: int) -> bool:
    """Return whether a domain lies there whole."""
    return (folder / "labels.csv").is_file() and sum(1 for _ in (folder / "images").glob("head-*")) == number


def _clear(folder: Path) -> None:
    """Remove what an earlier demo set left, the labels first; refuses a folder with anything else in it."""
    claim_folder(folder)
    for domain in DOMAINS:
        for name in ("labels.csv", "labels-truth.csv"):
            (folder / domain / name).unlink(missing_ok=True)
        for series in (folder / domain / "images").glob("*"):
            if _OWN_SERIES.fullmatch(series.name):
                shutil.rmtree(series)


def main(arguments: list[str]) -> int:
    """Exit code of the command; prints where the demo set is."""
    try:
        folder, numbers = parse_command(arguments, names=("num_source", "num_target", "seed"), usage=_USAGE)
        folder = write_demo3d(folder, **numbers)
    except MedclsError as error:
        print(f"data_prep.demo3d: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{folder}/source, {folder}/target: SYNTHETIC heads, for trying the software only")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
