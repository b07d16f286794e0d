"""The people of the demo set: their knees, and how a Kellgren-Lawrence grade changes each.

Every number is a pure function of (seed, patient, side), through counter-based generators. The films drawn
from them (data_prep/demo/phantom.py) resemble radiographs; they are no model of the disease.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medcls.reproducibility import make_generator

SIDES = ("L", "R")
# (rows, columns, pixel spacing in mm) of three imaginary detectors; a patient is seen on one of them.
DETECTORS = ((320, 256, 0.40), (352, 288, 0.36), (300, 248, 0.42))
# Ten patients a block, so that every run of 20 knees has grades 0-4 as 6, 4, 5, 3, 2 whatever num_images is.
# In one kind of block the two knees of a patient are alike, in the other less so; together r is about 0.5.
_PAIRS = (
    ((0, 0), (0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2), (2, 3), (3, 4), (3, 4)),
    ((0, 0), (0, 1), (0, 1), (0, 2), (0, 3), (1, 2), (1, 2), (2, 4), (2, 4), (3, 3)),
)


@dataclass(frozen=True, slots=True)
class Knee:
    """What one film shows; lengths in mm, pairs ordered medial, lateral; osteophytes of the femur first."""

    seed: int
    patient: int
    side: str
    grade: int
    size: float
    rotation_deg: float
    shift_mm: tuple[float, float]
    joint_space_mm: tuple[float, float]
    osteophytes_mm: tuple[float, float, float, float]
    sclerosis: tuple[float, float]
    roughness_mm: float
    detector: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the film."""
        return DETECTORS[self.detector][:2]

    @property
    def spacing_mm(self) -> float:
        """Pixel spacing at the detector, mm, the same along rows and columns."""
        return DETECTORS[self.detector][2]


def draw_grades(seed: int, patient: int) -> tuple[int, int]:
    """Return the Kellgren-Lawrence grades (0-4) of the left and the right knee of one patient.

    Source: own choice; in the set of real knees nearest to it the correlation between sides is 0.54.
    """
    block, place = divmod(patient, 10)
    rng = make_generator("demo grades", seed, block)
    order, swaps, kind = rng.permutation(10), rng.random(10) < 0.5, rng.integers(2)
    left, right = _PAIRS[kind][order[place]]
    if swaps[place]:
        left, right = right, left
    return left, right


def draw_knee(seed: int, *, patient: int, side: str) -> Knee:
    """Return one knee with all that its film will show: the patient's anatomy, and the changes of its grade.

    The grade acts through a severity with noise, and each sign has noise of its own, so neighbouring grades
    overlap. Nothing else (size, position, detector) looks at the grade.

    Source: signs from Kellgren and Lawrence, 1957; amounts are own choice.
    """
    grade = draw_grades(seed, patient)[SIDES.index(side)]
    person = make_generator("demo person", seed, patient)
    size = 1.04 + 0.05 * person.normal() - 0.09 * (draw_sex(seed, patient) == "F")
    space_mm, turn_deg = person.normal(5.3, 0.4), person.normal(0.0, 2.0)
    rng = make_generator("demo knee", seed, patient, side)
    severity = float(np.clip(grade + 0.3 * rng.normal(), -0.4, 4.6))
    # The joint space is lost more on the medial side in 85 of 100.
    lost = float(np.interp(severity, (0.5, 1, 2, 3, 4), (0.0, 0.1, 0.3, 0.6, 0.92)))
    medial, lateral = min(lost + rng.normal(0, 0.07), 0.97), min(0.3 * lost + rng.normal(0, 0.07), 0.97)
    if rng.random() >= 0.85:
        medial, lateral = lateral, medial
    rotation_deg = turn_deg + rng.normal(0.0, 3.0)
    shift_mm = (rng.normal(-2.0, 5.0), rng.normal(0.0, 3.5))
    spur_mm = float(np.interp(severity, (0.3, 1, 2, 3, 4), (0.0, 1.1, 3.0, 5.0, 7.0)))
    one, two, three, four = (max(float(spur_mm * rng.normal(0.75, 0.35) + rng.normal(0.0, 0.3)), 0.0) for _ in range(4))
    hard = float(np.interp(severity, (0.5, 2, 3, 4), (0.0, 0.2, 0.6, 1.0)))
    return Knee(
        seed=seed, patient=patient, side=side, grade=grade,
        detector=int(person.integers(len(DETECTORS))),
        size=size, rotation_deg=rotation_deg, shift_mm=shift_mm,
        joint_space_mm=(max(space_mm * (1 - medial), 0.2), max(space_mm * 1.08 * (1 - lateral), 0.2)),
        osteophytes_mm=(one, two, three, four),
        sclerosis=(max(hard * rng.normal(1.0, 0.2), 0.0), max(hard * rng.normal(0.4, 0.2), 0.0)),
        roughness_mm=0.12 + 0.16 * max(severity - 1.5, 0.0),
    )  # fmt: skip


def draw_sex(seed: int, patient: int) -> str:
    """Return the sex of a patient, "F" or "M", independent of the grade."""
    if make_generator("demo sex", seed, patient).random() < 0.58:
        return "F"
    return "M"
