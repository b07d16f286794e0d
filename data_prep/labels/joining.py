"""Join labels with image headers: one row per image or volume; refuse rows that do not match."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.file_choice import FileChoice, are_numbered, describe_several, find_differing_parts
from data_prep.labels.contradictions import CHECKS, find_contradictions, find_split
from data_prep.labels.label_rows import (
    KEYS,
    OPTIONAL_COLUMNS,
    OWN_COLUMNS,
    ROI,
    BadRows,
    Column,
    PatientRule,
    is_label,
    parent_folders,
    set_columns,
)
from medcls.errors import ConfigError, DataError
from medcls.identity import format_count, list_first
from medcls.imaging.companions import name_companion

Rows = NDArray[np.int64]


def match_values(wanted: Column, present: Column) -> tuple[Rows, Rows]:
    """Return (rows of `wanted`, rows of `present`) of all equal values, sorted by the first, then the second."""
    left = pa.table({"value": wanted, "label": np.arange(len(wanted))})
    right = pa.table({"value": pc.cast(present, pa.string()), "image": np.arange(len(present))})
    pairs = left.join(right, "value", join_type="inner", use_threads=False).select(["label", "image"])
    pairs = pairs.sort_by([("label", "ascending"), ("image", "ascending")])
    return pairs["label"].to_numpy(), pairs["image"].to_numpy()


def match_paths(wanted: Column, files: Column) -> tuple[Rows, Rows]:
    """Return (rows of `wanted`, rows of `files`) where a wanted path is the file or a folder above it.

    Args:
        wanted: Paths with /, each once.
        files: Paths with /.

    Returns:
        Sorted by the first, then the second.
    """
    hits = [_rows_in(files, wanted)]
    folders: Any = parent_folders(files)
    level: Any = pc.unique(folders)
    code = _rows_in(folders, level)
    # Folders are far fewer than files, so the climb to the source is theirs.
    while pc.any(pc.not_equal(level, pa.scalar(""))).as_py():
        hits.append(_rows_in(level, wanted)[code])
        level = parent_folders(level)
    label_rows = np.concatenate([found[found >= 0] for found in hits])
    file_rows = np.concatenate([np.flatnonzero(found >= 0) for found in hits])
    order = np.lexsort((file_rows, label_rows))
    return label_rows[order], file_rows[order]


def _rows_in(values: Any, known: Any) -> Rows:
    """Return the row of each value in `known`, -1 where it is not there."""
    rows: Rows = pc.fill_null(pc.index_in(values, value_set=known), -1).to_numpy().astype(np.int64)
    return rows


# The table of series: a row for every volume, and a row for files together that became none. It may have more.
SERIES = pa.schema(
    [
        ("key", pa.string()),
        ("files", pa.large_list(pa.string())),
        ("series_uid", pa.string()),
        ("study_uid", pa.string()),
        ("patient_id", pa.string()),
        ("chosen", pa.bool_()),
    ]
)
# Columns of the headers by their names beside the labels.
_HEADERS = {
    "header_series": "series_uid",
    "header_study": "study_uid",
    "header_patient": "patient_id",
    "header_sex": "patient_sex",
    "header_age": "patient_age",
    "header_side": "laterality",
}
_SHOWN = 5
_NO_CHOICE = FileChoice()
_HEADER_OF = {"series_uid": "header_series", "study_uid": "header_study", "dicom_patient_id": "header_patient"}


def join_files(
    labels: pa.Table,
    index: pa.Table,
    *,
    show: Callable[[str], str] = str,
    compare: Collection[str] = CHECKS,
) -> pa.Table:
    """Return the labels of a 2-D store: the columns of `labels`, a row for each image file (or region of one).

    A row that names a series, study or patient stands for every file of it that can be an image.

    Args:
        labels: `read_label_table` or `read_class_folder_table`.
        index: Columns path, problem, series_uid, study_uid, patient_id, and where it has them patient_sex,
            patient_age ("061Y") and laterality; real identifiers, "" where absent, one row a file.
        show: What an error message may show of a path.
        compare: What labels and headers have to agree on, of CHECKS; leave out what the headers only pretend to say.

    Returns:
        In the order of `labels`, then of `index`. path and patient_id are filled in every row; series_uid,
        study_uid and dicom_patient_id come from the header, null where it has none.

    Raises:
        DataError: rows that name no file, contradictions, patients that nobody names; all counted, ten shown.
    """
    key = _used_key(labels)
    names = index["path"]
    if key != "path":
        names = _trim(index[_HEADERS[_HEADER_OF[key]]])
    label_rows, image_rows = match_values(labels[key], names)
    bad = BadRows(show)
    _add_unmatched(labels, label_rows, key=key, bad=bad)
    if key != "path":
        # A file of a named study that is broken gets its reason from the decoder; a report in it is just not an image.
        usable = np.asarray(pc.equal(find_companions(index), ""))[image_rows]
        label_rows, image_rows = label_rows[usable], image_rows[usable]
    elif index.num_rows:
        # A broken file cannot say whose it is, and need not: the decoder will refuse it.
        broken = pc.not_equal(index["problem"].take(pa.array(image_rows)), pa.scalar(""))
        nobody = pc.and_(broken, pc.is_null(labels["patient_id"].take(pa.array(label_rows))))
        labels = labels.take(pa.array(label_rows))
        labels = set_columns(labels, patient_id=pc.if_else(nobody, "", labels["patient_id"]))
        label_rows = np.arange(len(label_rows))
    images = _headers(index, image_rows)
    joined = set_columns(labels.take(label_rows), path=index["path"].take(image_rows))
    return _finish(joined, images, compare=compare, bad=bad)


def find_companions(index: pa.Table) -> Any:
    """Return for each file of an index why it is skipped wherever it is found (a report, a plan …); "" for the rest."""
    classes = index["sop_class_uid"] if "sop_class_uid" in index.column_names else pa.repeat("", index.num_rows)
    found = pa.table({"problem": index["problem"], "sop_class_uid": classes})
    kinds = found.group_by(["problem", "sop_class_uid"]).aggregate([]).to_pylist()  # a few, of millions of files
    names: Any = pa.array(["|".join(kind.values()) for kind in kinds], pa.string())
    reasons: Any = pa.array([name_companion(**kind) for kind in kinds], pa.string())
    joined = pc.binary_join_element_wise(found["problem"], found["sop_class_uid"], "|")
    return reasons.take(pc.index_in(joined, value_set=names).combine_chunks())


def join_series(
    labels: pa.Table,
    series: pa.Table,
    *,
    rule: PatientRule,
    show: Callable[[str], str] = str,
    compare: Collection[str] = CHECKS,
    choice: FileChoice = _NO_CHOICE,
) -> pa.Table:
    """Return the labels of a store of volumes: the columns of `labels`, key and files, a row for each volume.

    A path is a file or a folder with all below. Several rows may name one volume (a row a slice) where they agree
    and together name all its files.

    Args:
        labels: `read_label_table` or `read_class_folder_table`, without regions.
        series: SERIES, and where it has them patient_sex, patient_age, laterality. Every file that could be part of
            a volume stands in one row: with `chosen` where it is a volume to decode (series_uid is "" for NIfTI),
            without where the selection, a localizer or a gap left it out: such files satisfy a label row, no more.
        rule: That the labels were read by: under per_image every volume is another patient.
        show: What an error message may show of a path.
        compare: What labels and headers have to agree on, of CHECKS.
        choice: Of the files; without one a row of a labels file may not stand for several NIfTI files.

    Returns:
        In the order of `labels`, then of `series`; number is of the first line that names the volume, path its
        first file, key and files are of `series`. The rest as `join_files`.

    Raises:
        ConfigError: the labels have regions.
        DataError: as `join_files`; and volumes that are named in part, or by rows that differ.
    """
    if labels["roi_x"].null_count < labels.num_rows:
        raise ConfigError(
            "labels of volumes cannot have roi_x, roi_y, roi_w, roi_h, which are regions of an image: remove these "
            "columns"
        )
    if rule.patients == "per_image":
        labels = set_columns(labels, patient_id=pa.nulls(labels.num_rows, pa.string()))
    bad = BadRows(show)
    label_rows, series_rows = _match_series(labels, series, bad)
    if not choice.takes_all:
        _check_one_file_each(labels.take(label_rows), series.take(series_rows), chosen=bool(choice.files))
    _add_differing(labels, label_rows, series_rows, bad)
    series_rows, first = np.unique(series_rows, return_index=True)  # the first label row of each
    order = np.lexsort((series_rows, label_rows[first]))
    label_rows, series_rows = label_rows[first][order], series_rows[order]
    volumes = series.select(["key", "files"]).take(series_rows)
    joined = set_columns(labels.take(label_rows), path=pc.list_element(volumes["files"], 0))
    if rule.patients == "per_image":
        joined = set_columns(joined, patient_id=volumes["key"])
    rows = np.arange(joined.num_rows)
    for ends in find_split(pa.table({"at": rows, "key": volumes["key"], "row": rows}), "key", "row"):
        # Nothing tells them apart: they would be one image of the store.
        bad.add_at(joined, ends, "two volumes of one SeriesInstanceUID, in two studies or patients")
    table = _finish(joined, _headers(series, series_rows), compare=compare, bad=bad)
    return set_columns(table, key=volumes["key"], files=volumes["files"])


def find_named(labels: pa.Table, series: pa.Table) -> tuple[Rows, Rows]:
    """Return (rows of `labels`, rows of `series`) of all series that a label names, each with the first that does.

    Args:
        labels: As of `join_series`.
        series: SERIES; rows that are not chosen are named by nothing.
    """
    if not series.num_rows:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    label_rows, series_rows = _match_series(labels, series, BadRows())
    named, first = np.unique(series_rows, return_index=True)
    return label_rows[first], named


def find_served(labels: pa.Table, *series: pa.Table) -> Any:
    """Return the line numbers of all rows of `labels` that name a chosen row of one of the tables of SERIES."""
    rows = [_match_series(labels, each, BadRows())[0] for each in series if each.num_rows]
    return labels["number"].take(pa.array(np.unique(np.concatenate([np.empty(0, np.int64), *rows])))).combine_chunks()


def _match_series(labels: pa.Table, series: pa.Table, bad: BadRows) -> tuple[Rows, Rows]:
    """Return pairs of label row and chosen series, each once, sorted by series, then label row."""
    key = _used_key(labels)
    sizes = np.asarray(pc.list_value_length(series["files"]))
    named = sizes
    if key == "path":
        owners = np.repeat(np.arange(len(sizes)), sizes)
        label_rows, file_rows = match_paths(labels["path"], pc.list_flatten(series["files"]))
        series_rows = owners[file_rows]
        named = np.bincount(owners[np.unique(file_rows)], minlength=len(sizes))
    else:
        label_rows, series_rows = match_values(labels[key], _trim(series[_HEADERS[_HEADER_OF[key]]]))
    _add_unmatched(labels, label_rows, key=key, bad=bad)
    chosen = np.asarray(series["chosen"])[series_rows]
    pairs = np.unique(np.stack([series_rows[chosen], label_rows[chosen]], axis=1), axis=0)
    every, first = np.unique(pairs[:, 0], return_index=True)
    for row, at in zip(every, first, strict=True):
        header = str(series["files"][int(row)][0]).lower().endswith(".hdr")  # stands for its image, too
        if named[row] < sizes[row] and not header:
            problem = f"{named[row]} of the {sizes[row]} files of a volume are named; name its folder"
            bad.add_at(labels, [int(pairs[at, 1])], problem)
    return pairs[:, 1], pairs[:, 0]


def _check_one_file_each(labels: pa.Table, series: pa.Table, *, chosen: bool) -> None:
    """Refuse rows that stand for several NIfTI files: T1w and FLAIR, or an image and its segmentation.

    If the user has `chosen` one kind by labelling.files, files that differ in numbers (sessions) are several of it.
    """
    loose = pc.and_(pc.equal(series["series_uid"], ""), pc.greater(labels["number"], 0))
    lines: Any = labels.filter(loose)["number"].to_pylist()
    files = pc.list_element(series.filter(loose)["files"], 0).to_pylist()
    groups: dict[int, set[str]] = defaultdict(set)
    for line, path in zip(lines, files, strict=True):
        groups[line].add(path)
    several = {line: sorted(paths) for line, paths in groups.items() if len(paths) > 1}
    if chosen:
        several = {line: paths for line, paths in several.items() if not are_numbered(paths)}
    if several:
        where = f"{'line' if len(several) == 1 else 'lines'} {list_first(sorted(several), _SHOWN)}"
        rows = f"{format_count(len(several), 'row')} of the labels file ({where})"
        raise DataError(describe_several(rows, find_differing_parts(several.values())))


def _add_differing(labels: pa.Table, label_rows: Rows, series_rows: Rows, bad: BadRows) -> None:
    """Find volumes whose label rows do not say the same."""
    _, counts = np.unique(series_rows, return_counts=True)
    several = np.repeat(counts > 1, counts)
    if not several.any():
        return
    label_rows, series_rows = label_rows[several], series_rows[several]
    content = [n for n in labels.column_names if is_label(n) or n not in OWN_COLUMNS]
    for name in ("patient_id", *content, *(own for own, _ in OPTIONAL_COLUMNS if own not in ROI)):
        values: Any = {"series": series_rows, "at": label_rows, name: labels[name].take(label_rows)}
        for ends in find_split(pa.table(values), "series", name):
            bad.add_at(labels, ends, f"one volume in two rows that differ in {name}")


def _finish(joined: pa.Table, headers: pa.Table, *, compare: Collection[str], bad: BadRows) -> pa.Table:
    """Return the joined table with all that the headers say, once nothing is bad."""
    ids: dict[str, Any] = {
        name: pc.if_else(pc.equal(headers[header], pa.scalar("")), pa.scalar(None, pa.string()), headers[header])
        for name, header in _HEADER_OF.items()
    }
    joined = set_columns(joined, **ids, patient_id=pc.coalesce(joined["patient_id"], ids["dicom_patient_id"]))
    for at in np.flatnonzero(np.asarray(pc.is_null(joined["patient_id"]))):
        bad.add_at(joined, [int(at)], "no patient_id, and its header has no PatientID")
    both = set_columns(joined, **{name: headers[name] for name in headers.column_names})
    find_contradictions(both, compare=compare, bad=bad)
    if bad.count:
        checked = ", ".join(name for name in CHECKS if name in compare) or "nothing"
        raise DataError(
            f"labels and source do not fit: {bad.count} problems: {bad.describe()} (labels and headers are "
            f"compared by: {checked}; if headers are unreliable, drop that check from compare=[…])"
        )
    return joined


def _used_key(labels: pa.Table) -> str:
    """Return the column that names the images: the one that is filled."""
    return next((key for key in KEYS if labels[key].null_count < labels.num_rows), "path")


def _headers(images: pa.Table, rows: Rows) -> pa.Table:
    """Return what the headers of the images say, trimmed, "" where they do not."""
    known = {name: column for name, column in _HEADERS.items() if column in images.column_names}
    return pa.table({name: _trim(images[column].take(rows)) for name, column in known.items()})


def _trim(texts: Any) -> Any:
    return pc.utf8_trim_whitespace(pc.fill_null(pc.cast(texts, pa.string()), ""))


def _add_unmatched(labels: pa.Table, label_rows: Rows, *, key: str, bad: BadRows) -> None:
    """Find lines that name nothing; a class folder may hold files that are not images."""
    alone = np.ones(labels.num_rows, dtype=bool)
    alone[label_rows] = False
    what = "no image is there"
    if key != "path":
        what = f"no file of the source has this {KEYS[key][-1]}"
    if key == "dicom_patient_id":
        what += "; spreadsheets drop leading zeros"
    for at in np.flatnonzero(alone & (np.asarray(labels["number"]) > 0)):
        bad.add_at(labels, [int(at)], what)
