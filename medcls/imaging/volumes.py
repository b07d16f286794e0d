"""The volumes of a source: series chosen by rule, their slices sorted into stacks, the rest with a reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from medcls.imaging.index import instances_of
from medcls.imaging.instances import Instance
from medcls.imaging.selection import SeriesKey, SeriesRule, select_series, series_key, summarize_series
from medcls.imaging.stacks import Leftover, Stack, StackRule, build_stacks

QUARANTINED, SKIPPED = "quarantined", "skipped"
_KEY = ("patient_id", "study_uid", "series_uid")
NO_SLICE = frozenset({"no_pixel_data", "not_an_image", "dicomdir", "hidden", "symbolic_link", "special_file"})
"""Problems of files of a series that are not slices: none is missing without them."""


@dataclass(frozen=True, slots=True)
class FoundSeries:
    """What became of a DICOM series, or of a NIfTI file.

    Attributes:
        first: One of its files.
        volumes: (key, files) of each volume; the key is the same whatever the files are called.
        left: Files of no volume, each with its state and reason.
    """

    first: Instance
    volumes: list[tuple[str, tuple[str, ...]]]
    left: list[Leftover]


def find_series(index: pa.Table, *, series: SeriesRule, stack: StackRule) -> Iterator[FoundSeries]:
    """Yields what an index of a source promises; one series at a time is held as objects.

    Args:
        index: imaging.index.INDEX, one row a file.
        series: Which series are taken.
        stack: How slices become volumes.
    """
    taken, unchosen = _choose(index, series=series, stack=stack)
    for key, instances in _by_series(index):
        first = instances[0]
        if key not in taken:
            yield FoundSeries(first, [], [_leave_out(i, unchosen.get(key, "no_image")) for i in instances])
            continue
        stacks, left = stack_series(instances, stack)
        # One of a study is one volume, also where its series holds several (two echoes).
        others = stacks[1:] if series.per_study != "all" else []
        left += [(path, SKIPPED, "not_preferred", "") for other in others for path in other.paths]
        chosen = stacks[: len(stacks) - len(others)]
        yield FoundSeries(first, [(f"{first.series_uid}{each.name}", each.paths) for each in chosen], left)
    images = _find_images(index)
    for nifti in instances_of(index.filter(pc.equal(index["kind"], "nifti"))):
        header = PurePosixPath(nifti.path).suffix.lower() == ".hdr"
        image = images.get(_without_suffix(nifti.path)) if header else None
        if nifti.problem:
            yield FoundSeries(nifti, [], [_leave_out(nifti, "")])
        elif header and image is None:
            yield FoundSeries(nifti, [], [(nifti.path, QUARANTINED, "nifti_pair", "its .img is missing")])
        else:
            yield FoundSeries(nifti, [(nifti.path, (nifti.path, image) if image else (nifti.path,))], [])


def _find_images(index: pa.Table) -> dict[str, str]:
    """The image files of headers beside them, by their path without .img."""
    paths = index.filter(pc.match_like(index["path"], "%.img", ignore_case=True))["path"].to_pylist()
    return {_without_suffix(str(path)): str(path) for path in paths}


def _without_suffix(path: str) -> str:
    return path[: -len(".img")]


def _choose(index: pa.Table, *, series: SeriesRule, stack: StackRule) -> tuple[set[SeriesKey], dict[SeriesKey, str]]:
    """The series that are taken, and a reason for each other; a preference chooses among those that make a volume."""
    candidates, unchosen = select_series(summarize_series(instances_of(index)), replace(series, per_study="all"))
    taken = {each.key for each in candidates}
    if series.per_study == "all":
        return taken, unchosen
    whole = {key for key, instances in _by_series(index) if key in taken and stack_series(instances, stack)[0]}
    chosen, left = select_series((each for each in candidates if each.key in whole), series)
    # Those that make none go on, so that each file gets its own reason.
    return {each.key for each in chosen} | (taken - whole), unchosen | left


def stack_series(instances: Sequence[Instance], rule: StackRule) -> tuple[list[Stack], list[Leftover]]:
    """Return the stacks of all files of a series, and what is in none.

    There is no stack if a slice cannot be read: without it a volume would be short, and look whole. data_prep, predict
    and the overview of an index ask this.
    """
    broken = [each for each in instances if each.problem and each.problem not in NO_SLICE]
    if not broken:
        return build_stacks(instances, rule)
    detail = f"{len(broken)} of its files cannot be read"
    return [], [(i.path, QUARANTINED, i.problem or "incomplete_series", "" if i.problem else detail) for i in instances]


def _leave_out(instance: Instance, reason: str) -> Leftover:
    """A file of no volume: a broken one is quarantined whatever the rules say."""
    problem = instance.problem
    return instance.path, QUARANTINED if problem and problem not in NO_SLICE else SKIPPED, problem or reason, ""


def _by_series(index: pa.Table) -> Iterator[tuple[SeriesKey, list[Instance]]]:
    """The DICOM files of each series, series by series."""
    dicom = index.filter(pc.equal(index["kind"], "dicom"))
    ordered = dicom.sort_by([(name, "ascending") for name in (*_KEY, "path")])
    for key, instances in groupby(instances_of(ordered), key=series_key):
        yield key, list(instances)
