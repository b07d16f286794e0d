"""Mutated volumes through the real entries, as fuzz.py does it for single files: --kind volume.

Every case must end as a whole finite volume or in a refusal with a known word and no planted name, and its files in
exactly one stack each or among the leftovers, whatever their order.
"""

from __future__ import annotations

import os
import random
import warnings
from pathlib import Path

import numpy as np

from medcls.config import StackRule
from medcls.errors import ImageRefusedError
from medcls.imaging.nifti import read_nifti
from medcls.imaging.scan_file import scan_file
from medcls.imaging.volume.geometry import compute_spacing
from medcls.imaging.volume.stack import build_stacks
from medcls.imaging.volume.volume import RawVolume, read_volume
from tests.imaging import fuzz
from tests.imaging.fuzz_corpus import PLANTED
from tests.imaging.fuzz_series import load_volumes
from tests.imaging.modality import read_modality_values
from tests.imaging.volume_mutations import MUTATIONS, mutate_nifti

MAX_VOXELS = 1 << 28  # the default
RULES = (
    StackRule(),
    StackRule(gap="resample", jitter="resample", mixed_spacing="resample", duplicate="drop"),
    StackRule(gap="resample", jitter="resample", mixed_spacing="resample", max_gap_mm=1e6, tolerance=0.1, min_slices=2),
    StackRule(tilt="refuse", tolerance=1e-6),
)
REASONS = frozenset(
    {"gap", "jitter", "leftover_stack", "mixed_spacing", "mosaic", "not_grey", "no_orientation", "no_position"}
) | {
    *("no_spacing", "sparse_stack", "not_dicom", "localizer", "cine", "multi_frame"),
}
"""Words of stacks and geometry that stand in a variable where they are raised."""


def run_case(case: fuzz.Case, *, folder: str) -> fuzz.Outcome:
    """Runs one case as files of this process in the folder; in a worker."""
    name, rule, files = build_case(case)
    here = Path(folder) / f"{os.getpid()}-volume"
    here.mkdir(exist_ok=True)
    for old in here.iterdir():
        old.unlink()
    paths = [here / f"{number}{name}" for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    ending = attempt(paths, nifti=bool(name), rule=rule)
    faults = check_ending(ending)
    if not name:
        faults += check_stacks(paths, rule, one=isinstance(ending, RawVolume))
        faults += check_slices(ending, paths) if isinstance(ending, RawVolume) and len(paths) > 1 else []
    return fuzz.Outcome(ending.reason if isinstance(ending, ImageRefusedError) else "ok", False, tuple(faults))


def attempt(paths: list[Path], *, nifti: bool, rule: StackRule) -> RawVolume | ImageRefusedError:
    try:
        return (
            read_nifti(paths[0], max_voxels=MAX_VOXELS)
            if nifti
            else read_volume(paths, rule=rule, max_voxels=MAX_VOXELS)
        )
    except ImageRefusedError as error:
        return error


def find_reasons() -> frozenset[str]:
    """Every word that a refused volume may carry."""
    return fuzz.find_reasons() | REASONS


def check_ending(ending: RawVolume | ImageRefusedError) -> list[str]:
    """What is wrong with a volume or a refusal; [] where nothing is."""
    if isinstance(ending, ImageRefusedError):
        return check_refusal(ending.reason, str(ending))
    values, mask, affine, faults = ending.values, ending.mask, ending.affine, []
    if values.dtype != np.float32 or values.ndim != 3 or not 0 < values.size <= MAX_VOXELS:
        faults.append(f"values {values.dtype} {values.shape}")
    if not np.isfinite(values).all():
        faults.append("values not finite")
    if mask is not None and (mask.shape != values.shape or mask.dtype != bool or mask.all() or not mask.any()):
        faults.append("a mask of another shape, of all or of none")
    if affine.shape != (4, 4) or affine.dtype != np.float64 or not np.isfinite(affine).all():
        faults.append(f"affine {affine.dtype} {affine.shape}")
    elif not (np.allclose(compute_spacing(affine), ending.spacing_mm, rtol=1e-3) and np.linalg.det(affine) != 0):
        faults.append(f"spacing {ending.spacing_mm} beside an affine of {compute_spacing(affine)}")
    if not all(1e-7 < mm < 1e7 for mm in ending.spacing_mm):
        faults.append(f"spacing {ending.spacing_mm}")
    return faults


def check_refusal(reason: str, text: str) -> list[str]:
    """What is wrong with the word and the text of a refusal."""
    faults = [] if reason in find_reasons() else [f"unknown reason {reason}"]
    return faults + (["a planted name in the detail"] if PLANTED.lower() in text.lower() else [])


def check_stacks(paths: list[Path], rule: StackRule, *, one: bool) -> list[str]:
    """What is wrong with the stacks of the files by their headers alone; one: that they are one is known."""
    instances = [scan_file(path, name=path.name) for path in paths]
    faults = [f"unknown problem {each.problem}" for each in instances if each.problem not in find_reasons() | {""}]
    with warnings.catch_warnings(action="error"):
        stacks, leftovers = build_stacks(instances, rule)
        again = build_stacks(instances[::-1], rule)
    told = sorted([path for stack in stacks for path in stack.paths] + [path for path, *_ in leftovers])
    if told != sorted(path.name for path in paths):
        faults.append(f"{len(paths)} files, in stacks and leftovers {told}")
    if ([stack.paths for stack in stacks], leftovers) != ([stack.paths for stack in again[0]], again[1]):
        faults.append("other stacks in another order of the files")
    for _, state, reason, detail in leftovers:
        faults += check_refusal(reason, detail)
        faults += [] if state in ("skipped", "quarantined") else [f"unknown state {state}"]
    return faults + (["a volume of files that are not one stack"] if one and len(stacks) != 1 else [])


def check_slices(volume: RawVolume, paths: list[Path]) -> list[str]:
    """What is wrong with slices that were not repaired: each must be one of the files as an image of its own."""
    if volume.notes or volume.slices_removed:
        return []
    try:
        images = [read_modality_values(path) for path in paths]
    except ImageRefusedError as error:
        return [f"a slice is no image: {error}"]
    masks = np.zeros(volume.values.shape, bool) if volume.mask is None else volume.mask
    shown = [np.where(hidden, 0, values).tobytes() for values, hidden in zip(volume.values, masks, strict=True)]
    wanted = [np.where(False if each.mask is None else each.mask, 0, each.values).tobytes() for each in images]
    return [] if sorted(shown) == sorted(wanted) else ["slices that no file holds"]


def build_case(case: fuzz.Case) -> tuple[str, StackRule, list[bytes]]:
    """Suffix ("" for DICOM), rule and files of a case: a volume of the corpus after one or two mutations."""
    rng = random.Random(f"volume-{case.seed}-{case.index}")
    kind = rng.choice(("series", "series", "enhanced", "nifti"))
    volume = rng.choice([each for each in load_volumes() if each.kind == kind])
    rule = rng.choice(RULES)
    if kind == "nifti":
        return ".nii", rule, [mutate_nifti(volume.files[0].data, rng)]
    files = list(volume.files)
    for _ in range(rng.choice((1, 1, 2))):
        files = rng.choice(MUTATIONS if kind == "series" else MUTATIONS[:4])(files, rng)
    return "", rule, [file.data for file in files]
