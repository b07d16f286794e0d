"""The people of the 3-D demo set: their heads, and how atrophy from NC to MCI to AD changes each.

Every number is a pure function of (seed, domain, number), through counter-based generators. The volumes drawn from them
(data_prep/demo/head_phantom.py) resemble T1-weighted MR; they are no model of the disease.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medcls.reproducibility import make_generator

DIAGNOSES = ("NC", "MCI", "AD")
DOMAINS = ("source", "target")
# Share of each domain's heads that the scanner "north" has seen; the others are the scanner "south"'s.
_NORTH = {"source": 0.75, "target": 0.25}


@dataclass(frozen=True, slots=True)
class Head:
    """What one volume shows.

    Attributes:
        seed: Of the set.
        domain: "source" or "target"; no patient is in both.
        number: Of the patient in its domain.
        diagnosis: One of DIAGNOSES.
        sex: "F" or "M".
        age_years: 55 to 90.
        site: "north" or "south": the scanner.
        size: Of the head along x, y, z; 1 is the mean.
        turn_deg: Rotation about x, y, z.
        shift_mm: Along x, y, z.
        ventricles: Length of the ventricles' axes; 1 is a healthy mean.
        hippocampus: Length of the hippocampus' axes.
        cortex_mm: Thickness of the cortex; thicker than life, for voxels of 3 mm.
        sulci: Width of the furrows; 1 is a healthy mean.
    """

    seed: int
    domain: str
    number: int
    diagnosis: str
    sex: str
    age_years: int
    site: str
    size: tuple[float, float, float]
    turn_deg: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    ventricles: float
    hippocampus: float
    cortex_mm: float
    sulci: float

    @property
    def patient_id(self) -> str:
        """The identifier of the patient."""
        return f"head-{self.domain[0]}{self.number:04d}"


def draw_head(seed: int, *, domain: str, number: int) -> Head:
    """Return one head with all that its volume will show: the patient's anatomy, and the changes of the diagnosis.

    The diagnosis acts through a severity with noise, age adds to it, and each sign has noise of its own, so that
    diagnoses overlap. Nothing else (site, sex, size, pose) looks at the diagnosis.

    Source: signs and their order after Frisoni et al., Nat Rev Neurol 2010;6:67; amounts are own choice.
    """
    who = ("demo head", seed, domain, number)
    person = make_generator(*who)
    sex = "F" if person.random() < 0.55 else "M"
    age = int(np.clip(round(person.normal(73, 7)), 55, 90))
    size = (1 - 0.04 * (sex == "F")) * (1 + 0.03 * person.normal()) * (1 + 0.015 * person.normal(size=3))
    site = "north" if person.random() < _NORTH[domain] else "south"
    pose = make_generator(*who, "pose")
    turn, shift = pose.normal(0.0, (3.0, 2.0, 2.0)), pose.normal(0.0, (1.5, 2.5, 2.5))
    diagnosis = draw_diagnosis(seed, domain=domain, number=number)
    signs = make_generator(*who, "signs")
    severity = DIAGNOSES.index(diagnosis) + 0.45 * signs.normal() + 0.03 * (age - 73)
    return Head(
        seed=seed, domain=domain, number=number, diagnosis=diagnosis, sex=sex, age_years=age, site=site,
        size=(float(size[0]), float(size[1]), float(size[2])),
        turn_deg=(float(turn[0]), float(turn[1]), float(turn[2])),
        shift_mm=(float(shift[0]), float(shift[1]), float(shift[2])),
        ventricles=float(np.exp(0.17 * severity + 0.12 * signs.normal())),
        hippocampus=float(np.exp(-0.11 * severity + 0.05 * signs.normal())),
        cortex_mm=float(7.5 * np.exp(-0.12 * severity + 0.06 * signs.normal())),
        sulci=float(np.exp(0.28 * severity + 0.18 * signs.normal())),
    )  # fmt: skip


def draw_diagnosis(seed: int, *, domain: str, number: int) -> str:
    """Return the diagnosis of a patient: every three in a row have one of each, in an order of their own."""
    block, place = divmod(number, len(DIAGNOSES))
    order = make_generator("demo diagnoses", seed, domain, block).permutation(len(DIAGNOSES))
    return DIAGNOSES[int(order[place])]
