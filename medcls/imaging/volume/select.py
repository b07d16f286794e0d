"""Choose the series of a study by a configured rule; every other series gets a reason."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import hypot
from operator import mul
from typing import TypeAlias

import numpy as np

from medcls.config import check_value
from medcls.errors import ConfigError
from medcls.imaging.instance import Instance

SeriesKey: TypeAlias = tuple[str, str, str]
"""(patient_id, study_uid, series_uid); a UID alone is used twice by broken exports."""

_AXIS_COSINE = 0.8
"""A normal farther from an axis than this (37 degrees) is oblique, as in pixelmed's plane labels."""

_SAME_MM = 1e-3


@dataclass(frozen=True, slots=True)
class SeriesRule:
    """Which series are taken; an empty field takes all. Words and patterns ignore upper and lower case.

    Its fields are the settings series.* (arrays.SeriesConfig). Of several series of a study that per_study
    ranks alike the first by SeriesInstanceUID is taken; an unknown slice distance ranks last.

    Raises:
        ConfigError: a value that no command line could have given, or limits that contradict.
    """

    modality: tuple[str, ...] = ()
    description: str = ""
    image_type: tuple[str, ...] = ()
    not_image_type: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    plane: tuple[str, ...] = ()
    min_slices: int = 1
    max_slices: int | None = None
    per_study: str = "all"

    def __post_init__(self) -> None:
        check_value("series.plane", [name.lower() for name in self.plane])
        check_value("series.per_study", self.per_study)
        if self.min_slices < 1 or (self.max_slices is not None and self.max_slices < self.min_slices):
            raise ConfigError(
                f"series.min_slices={self.min_slices}, max_slices={self.max_slices}: expected 1 <= min <= max"
            )
        try:
            re.compile(self.description)
        except re.error as error:
            raise ConfigError(f"series.description={self.description}: not a regular expression ({error})") from error


@dataclass(frozen=True, slots=True)
class Series:
    """What the headers of one series say together. It holds real identifiers, as Instance does.

    Attributes:
        key: Patient, study and series.
        modality: Of most slices, as all the texts below.
        description: SeriesDescription.
        image_type: ImageType, joined by a backslash.
        body_part: BodyPartExamined.
        plane: "axial", "coronal", "sagittal", "oblique", or "" where no orientation is known.
        slices: Frames of all files that can be images.
        distance_mm: Median distance of neighbouring slices; None where it is unknown.
    """

    key: SeriesKey
    modality: str = ""
    description: str = ""
    image_type: str = ""
    body_part: str = ""
    plane: str = ""
    slices: int = 0
    distance_mm: float | None = None


def _rank_by_distance(series: Series) -> float:
    if series.distance_mm is None:
        return float("inf")
    return round(series.distance_mm, 3)


_RANKS: dict[str, Callable[[Series], float]] = {
    "thinnest": _rank_by_distance,
    "most_slices": lambda series: -series.slices,
    "fewest_slices": lambda series: series.slices,
    "first": lambda series: 0,
}
"""By series.per_study: the series with the smallest number is taken."""


@dataclass(slots=True)
class _Tally:
    """Counts of one series while its instances pass; eight bytes a slice."""

    texts: tuple[Counter[str], ...] = field(default_factory=lambda: tuple(Counter() for _ in range(5)))
    slices: int = 0
    places: array[float] = field(default_factory=lambda: array("d"))

    def add(self, instance: Instance) -> None:
        plane = name_plane(instance.orientation)
        seen = (instance.modality, instance.series_description, instance.image_type, instance.body_part, plane)
        for counter, text in zip(self.texts, seen, strict=True):
            counter[text] += instance.frames
        self.slices += instance.frames
        if instance.frames == 1 and len(instance.position) == 3 and plane:
            self.places.append(sum(map(mul, _normal(instance.orientation), instance.position)))

    def close(self, key: SeriesKey) -> Series:
        texts = [min(counter, key=lambda text: (-counter[text], text), default="") for counter in self.texts]
        steps, distance = np.diff(np.sort(np.array(self.places))), None
        steps = steps[steps > _SAME_MM]  # two echoes of one slice are no distance
        if len(steps):
            distance = float(np.median(steps))
        modality, description, image_type, body_part, plane = texts
        return Series(key, modality, description, image_type, body_part, plane, self.slices, distance)


def series_key(instance: Instance) -> SeriesKey:
    """Return what a series is known by."""
    return instance.patient_id, instance.study_uid, instance.series_uid


def summarize_series(instances: Iterable[Instance]) -> list[Series]:
    """Return the series of DICOM instances, sorted by key; memory grows with series, not with instances.

    A series of files that cannot be images is there with 0 slices.
    """
    tallies: dict[SeriesKey, _Tally] = {}
    for instance in instances:
        if instance.kind == "dicom" and (instance.series_uid or not instance.problem):
            tally = tallies.setdefault(series_key(instance), _Tally())
            if not instance.problem:
                tally.add(instance)
    return [tallies[key].close(key) for key in sorted(tallies)]


def select_series(series: Iterable[Series], rule: SeriesRule) -> tuple[list[Series], dict[SeriesKey, str]]:
    """Return the series that are taken, sorted by key, and the reason for each other one.

    Reasons, the first that applies: no_image, wrong_modality, wrong_description, wrong_image_type, wrong_body_part,
    wrong_plane, too_few_slices, too_many_slices, and for what the preference leaves over: not_preferred.

    Source: own choice, docs/decisions/0011-index-and-selection.md.
    """
    pattern = re.compile(rule.description, re.IGNORECASE)
    taken: list[Series] = []
    skipped: dict[SeriesKey, str] = {}
    for each in sorted(series, key=lambda s: s.key):
        if reason := _find_reason(each, rule, pattern):
            skipped[each.key] = reason
        else:
            taken.append(each)
    if rule.per_study == "all":
        return taken, skipped
    best: dict[tuple[str, str], Series] = {}
    rank = _RANKS[rule.per_study]
    for each in sorted(taken, key=lambda s: (rank(s), s.key)):
        best.setdefault(each.key[:2], each)
    kept = {each.key for each in best.values()}
    skipped |= {each.key: "not_preferred" for each in taken if each.key not in kept}
    return [each for each in taken if each.key in kept], skipped


def _find_reason(series: Series, rule: SeriesRule, pattern: re.Pattern[str]) -> str:
    words = series.image_type.lower().split("\\")
    checks = (
        ("no_image", series.slices > 0),
        ("wrong_modality", _is_one_of(series.modality, rule.modality)),
        ("wrong_description", pattern.search(series.description) is not None),
        ("wrong_image_type", all(word.lower() in words for word in rule.image_type)),
        ("wrong_image_type", not any(word.lower() in words for word in rule.not_image_type)),
        ("wrong_body_part", _is_one_of(series.body_part, rule.body_part)),
        ("wrong_plane", _is_one_of(series.plane, rule.plane)),
        ("too_few_slices", series.slices >= rule.min_slices),
        ("too_many_slices", rule.max_slices is None or series.slices <= rule.max_slices),
    )
    return next((reason for reason, passed in checks if not passed), "")


def _is_one_of(value: str, allowed: Sequence[str]) -> bool:
    return not allowed or value.lower() in {each.lower() for each in allowed}


def name_plane(orientation: Sequence[float]) -> str:
    """Return the plane of a slice by its normal: "axial", "coronal", "sagittal" or "oblique"; "" where unknown.

    Args:
        orientation: ImageOrientationPatient, six cosines.

    Source: PS3.3 C.7.6.2.1.1; the limit is pixelmed's.
    """
    if len(orientation) != 6:
        return ""
    normal = [abs(each) for each in _normal(orientation)]
    length = hypot(*normal)
    if not 0.5 < length < 2:
        return ""
    axis = normal.index(max(normal))
    if normal[axis] < _AXIS_COSINE * length:
        return "oblique"
    return ("sagittal", "coronal", "axial")[axis]


def _normal(orientation: Sequence[float]) -> tuple[float, float, float]:
    """Return the cross product of row and column, in plain Python: it is called for every file of an index."""
    a, b, c, x, y, z = orientation
    return b * z - c * y, c * x - a * z, a * y - b * x
