"""Find the volumes of a source: series chosen by rule, slices sorted into stacks, the rest with a reason."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from medcls.config import StackRule
from medcls.imaging.catalog import instances_of
from medcls.imaging.companions import name_companion
from medcls.imaging.instance import Instance
from medcls.imaging.source import SKIP_REASONS
from medcls.imaging.volume.select import SeriesKey, SeriesRule, select_series, series_key, summarize_series
from medcls.imaging.volume.stack import PICTURES, Leftover, Stack, build_stacks, find_fault

QUARANTINED, SKIPPED = "quarantined", "skipped"
_KEY = ("patient_id", "study_uid", "series_uid")
_BESIDE = PICTURES | {"too_few_slices", "no_orientation", "no_position", "no_spacing"}
"""Reasons of whole series that accompany the volumes of their study: scouts, dose sheets, screen shots."""


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
    """Yield what an index of a source promises; one study at a time is held as objects.

    Args:
        index: catalog.INDEX, one row a file.
        series: Which series are taken.
        stack: How slices become volumes.
    """
    unnamed = find_unnamed(index)
    taken, unchosen = _choose(index, series=series, stack=stack, unnamed=unnamed)
    for _, study in groupby(_by_series(index), key=lambda each: each[0][:2]):
        found: list[FoundSeries] = []
        small: list[Instance] = []
        for key, instances in study:
            first = instances[0]
            if key not in taken:
                reason = unchosen.get(key, "no_image")
                found.append(FoundSeries(first, [], [_leave_out(each, reason) for each in instances]))
                continue
            stacks, left = stack_series(instances, stack, unnamed=unnamed.get(key, 0))
            if not stacks and {reason for _, _, reason, _ in left} == {"too_few_slices"}:
                small += instances
            if series.per_study != "all":  # one of a study is one volume, even if its series holds two echoes
                left += [(path, SKIPPED, "not_preferred", "") for other in stacks[1:] for path in other.paths]
                stacks = stacks[:1]
            volumes = [(f"{first.series_uid}{each.name}", each.paths) for each in stacks]
            found.append(FoundSeries(first, volumes, left))
        yield from _judge_study(found, _find_scattered(small, stack))
    yield from _find_nifti(index)


def _find_nifti(index: pa.Table) -> Iterator[FoundSeries]:
    """Yield each NIfTI file, and each header with the image file beside it."""
    paths = index.filter(pc.match_like(index["path"], "%.img", ignore_case=True))["path"].to_pylist()
    images = {str(path)[: -len(".img")]: str(path) for path in paths}
    for nifti in instances_of(index.filter(pc.equal(index["kind"], "nifti"))):
        if nifti.problem:
            yield FoundSeries(nifti, [], [_leave_out(nifti, "")])
        elif PurePosixPath(nifti.path).suffix.lower() != ".hdr":
            yield FoundSeries(nifti, [(nifti.path, (nifti.path,))], [])
        elif image := images.get(nifti.path[: -len(".hdr")]):
            yield FoundSeries(nifti, [(nifti.path, (nifti.path, image))], [])
        else:
            yield FoundSeries(nifti, [], [(nifti.path, QUARANTINED, "nifti_pair", "its .img is missing")])


def _judge_study(found: list[FoundSeries], scattered: dict[str, str]) -> Iterator[FoundSeries]:
    """Yield the series of one study: pictures and scouts beside a volume are skipped, and are faults without one.

    Args:
        found: Of one study.
        scattered: Detail by the path of slices that would be a volume if their series were one.
    """
    has_volume = any(each.volumes for each in found)
    for each in found:
        left = []
        for path, state, reason, detail in each.left:
            if has_volume and not each.volumes and reason in _BESIDE and path not in scattered:
                state = SKIPPED
            left.append((path, state, reason, scattered.get(path, detail)))
        yield FoundSeries(each.first, each.volumes, left)


def _find_scattered(small: list[Instance], stack: StackRule) -> dict[str, str]:
    """Return a detail for each path of slices that make a volume together although each series has too few."""
    if len({each.series_uid for each in small}) < 2:
        return {}
    stacks, _ = build_stacks(small, stack)
    detail = (
        "{} slices with a SeriesInstanceUID each continue one another: give the slices of a scan one "
        "SeriesInstanceUID, or convert it with dcm2niix"
    )
    return {path: detail.format(len(each.paths)) for each in stacks for path in each.paths}


def _choose(
    index: pa.Table, *, series: SeriesRule, stack: StackRule, unnamed: dict[SeriesKey, int]
) -> tuple[set[SeriesKey], dict[SeriesKey, str]]:
    """The series that are taken, and a reason for each other; a preference chooses among those that make a volume."""
    candidates, unchosen = select_series(summarize_series(instances_of(index)), replace(series, per_study="all"))
    taken = {each.key for each in candidates}
    if series.per_study == "all":
        return taken, unchosen
    whole = set()
    for key, instances in _by_series(index):
        if key in taken and stack_series(instances, stack, unnamed=unnamed.get(key, 0))[0]:
            whole.add(key)
    chosen, left = select_series((each for each in candidates if each.key in whole), series)
    # Those that make none go on, so that each file gets its own reason.
    return {each.key for each in chosen} | (taken - whole), unchosen | left


def find_unnamed(index: pa.Table) -> dict[SeriesKey, int]:
    """Return how many files that cannot be read, and do not say of which series they are, lie among slices of each.

    A copy that was broken off leaves its last file empty or cut in its header: the volume without it looks whole. Such
    a file may be a slice of the series of the files before and after it in its folder, in the order of their names.
    """
    kind, size = index["kind"], index["size_bytes"]
    is_broken = pc.and_(pc.is_in(kind, pa.array(["dicom", "other"])), pc.not_equal(index["problem"], ""))
    is_empty = pc.and_(pc.equal(kind, "other"), pc.and_(pc.equal(size, 0), pc.equal(index["problem"], "")))
    nameless = index.filter(pc.and_(pc.equal(index["series_uid"], ""), pc.or_(is_broken, is_empty)))
    lost = []
    for each in instances_of(nameless):  # empty or unreadable, and not one that is never read
        if not each.problem or (_is_broken(each) and each.problem not in SKIP_REASONS):
            lost.append(each)
    if not lost:
        return {}
    folders = pc.replace_substring_regex(index["path"], "[^/]*$", "")
    wanted = pa.array(sorted({each.path.rpartition("/")[0] + "/" * ("/" in each.path) for each in lost}), pa.string())
    slices: dict[str, list[tuple[str, SeriesKey]]] = {}
    for each in instances_of(index.filter(pc.and_(pc.is_in(folders, wanted), pc.equal(kind, "dicom")))):
        if each.position and each.series_uid:
            folder, _, name = each.path.rpartition("/")
            slices.setdefault(folder, []).append((name, series_key(each)))
    counts: Counter[SeriesKey] = Counter()
    for each in lost:
        folder, _, name = each.path.rpartition("/")
        beside = slices.get(folder, [])
        at = bisect_left(beside, (name, ("", "", "")))
        near = beside[max(at - 1, 0) : at + 1]
        # An empty file of another kind of name marks something: that a copy is complete, for one.
        counts.update({key for other, key in near if each.kind == "dicom" or _are_alike(name, other)})
    return dict(counts)


def _are_alike(name: str, other: str) -> bool:
    """Whether two files could be slices of one series by their names: a number in each, and one suffix, or a number."""
    suffixes = {"" if suffix[1:].isdigit() else suffix for suffix in (PurePosixPath(n).suffix for n in (name, other))}
    return len(suffixes) == 1 and any(map(str.isdigit, name))


def stack_series(
    instances: Sequence[Instance], rule: StackRule, *, unnamed: int = 0
) -> tuple[list[Stack], list[Leftover]]:
    """Return the stacks of all files of a series, and what is in none.

    There is no stack if a slice cannot be read: without it a volume would be short, and look whole. data_prep, predict
    and the overview of an index ask this.

    Args:
        instances: Of one series.
        rule: What is repaired and what is refused.
        unnamed: Files among them that may be slices, of find_unnamed.
    """
    broken = sum(map(_is_broken, instances))
    if not broken:
        stacks, others = build_stacks(instances, rule)
        if not unnamed or not stacks:
            return stacks, others
    detail = f"{broken} of its files cannot be read"
    if unnamed:
        detail = f"{unnamed} of the files among its slices cannot be read or are empty: copy them again, or remove them"
    left: list[Leftover] = []
    for each in instances:
        state, reason = find_fault(each) or (QUARANTINED, "")
        if _is_broken(each):
            left.append((each.path, QUARANTINED, each.problem, ""))
        elif state == SKIPPED:
            left.append((each.path, SKIPPED, reason, ""))
        else:
            left.append((each.path, QUARANTINED, "incomplete_series", detail))
    return [], left


def _is_broken(instance: Instance) -> bool:
    """Return whether a file should have been a slice and cannot be read."""
    return bool(instance.problem) and not name_companion(instance.problem, instance.sop_class_uid)


def _leave_out(instance: Instance, reason: str) -> Leftover:
    """Return a file of no volume: a broken one is quarantined whatever the rules say."""
    if _is_broken(instance):
        return instance.path, QUARANTINED, instance.problem, ""
    return instance.path, SKIPPED, name_companion(instance.problem, instance.sop_class_uid) or reason, ""


def _by_series(index: pa.Table) -> Iterator[tuple[SeriesKey, list[Instance]]]:
    """The DICOM files of each series, series by series."""
    dicom = index.filter(pc.equal(index["kind"], "dicom"))
    ordered = dicom.sort_by([(name, "ascending") for name in (*_KEY, "path")])
    for key, instances in groupby(instances_of(ordered), key=series_key):
        yield key, list(instances)
