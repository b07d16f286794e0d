"""Build the plan from a job's source and labels: which images exist, their patients and their labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.file_choice import FileChoice, check_companions, check_masks, leave_out
from data_prep.labels.class_folders import FolderLabels, read_class_folder_table
from data_prep.labels.joining import find_companions, find_named, find_served, join_files, join_series
from data_prep.labels.label_file import read_label_table
from data_prep.labels.label_rows import PatientRule, with_folders
from data_prep.labels.label_values import read_label_values
from data_prep.ledger import LEFT_OUT, LOST, describe_refusal
from data_prep.plan import Plan, plan_images, rows_per_shard
from data_prep.presentation import choose_presentation
from data_prep.series import find_volumes
from medcls.config import PrepareJob
from medcls.console import say
from medcls.errors import ConfigError
from medcls.identity import PER_IMAGE, Identity, format_count
from medcls.imaging.catalog import build_index, read_index
from medcls.imaging.decode import Spec
from medcls.imaging.dicom.burnt_in import BurntInRule
from medcls.imaging.preprocess import PreprocessSpec
from medcls.imaging.source import is_image, list_files
from medcls.imaging.volume.select import SeriesRule
from medcls.imaging.volume.spec import VolumeSpec, find_windows

_BATCH = 8192
_SHOWN = 5
_LISTING = pa.schema([("path", pa.string()), ("skip", pa.string())])


def list_source(source: Path) -> pa.Table:
    """Return path and skip ("" or a reason) of every file under `source`, sorted by path."""
    return pa.Table.from_batches(_list_batches(source), schema=_LISTING)


def _list_batches(source: Path) -> Iterator[pa.RecordBatch]:
    files = list_files(source)
    while batch := list(islice(files, _BATCH)):
        yield pa.record_batch([list(column) for column in zip(*batch, strict=True)], schema=_LISTING)


def listed_files(listing: pa.Table) -> Iterator[tuple[str, str]]:
    """Yield (path, skip) of a listing, one batch at a time as Python objects."""
    for batch in listing.to_batches(max_chunksize=_BATCH):
        yield from zip(batch.column("path").to_pylist(), batch.column("skip").to_pylist(), strict=True)


def build_spec(job: PrepareJob) -> Spec:
    """Return the preprocessing that the groups image, series and stack describe.

    Raises:
        ConfigError: values out of range or that contradict one another.
    """
    image = job.image
    kind = VolumeSpec if image.kind == "volume" else PreprocessSpec
    # A field that the configuration and the specification both have goes from one to the other by its name.
    given = {field.name: _freeze(getattr(image, field.name)) for field in fields(kind) if hasattr(image, field.name)}
    given |= dict(zip(("width", "height", "depth"), reversed(image.sizes), strict=False))
    given["windows_hu"] = find_windows(image.windows_hu)
    given["burnt_in"] = BurntInRule(image.burnt_in, _freeze(image.mask_boxes), _freeze(image.keep_box))
    if kind is VolumeSpec:
        spacing = image.spacing_mm
        spacing = [spacing] * 3 if isinstance(spacing, int | float) else spacing
        given["spacing_mm"] = tuple(map(float, spacing)) if spacing else None
        given["stack"] = job.stack
        given["series"] = SeriesRule(**{name: _freeze(value) for name, value in asdict(job.series).items()})
    return kind(**given)


def _freeze(value: Any) -> Any:
    """Return lists as tuples: a specification never changes."""
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


def build_plan(
    job: PrepareJob, *, source: Path, listing: pa.Table, identity: Identity, has_dicom: bool = False
) -> Plan:
    """Return what is to be decoded, in the order of the labels file or of the paths.

    Where the source has DICOM files or volumes are asked for, the headers of all files are read first: labels can
    then name series, studies and patients, and what contradicts the headers is refused before hours of decoding.

    Raises:
        MissingInputError, DataError, ConfigError: the labels file, the class folders or the headers are wrong.
    """
    spec = build_spec(job)
    volumes = isinstance(spec, VolumeSpec)
    headers = volumes or has_dicom or job.index is not None
    index = _read_headers(job, source=source, listing=listing) if headers else None
    choice = FileChoice.of(job.labelling)
    left_out, cut, layout = LEFT_OUT.empty_table(), list[str](), ""
    if choice.is_set and index is not None:
        images = _images_of(index, volumes=volumes)
        left_out = leave_out(images.filter(pc.invert(choice.keep(images))))
        index = index.filter(choice.keep(index["path"]))

    def show(path: str) -> str:
        # A declared path may hold a name; the line of the labels file says which one it is.
        return "" if identity.kind == "declared" and job.labels is not None else identity.name("path", path)

    rule = PatientRule(job.patients, job.patient_id.pattern, headers=index is not None)
    if job.labels is None:
        if index is None:
            images = _images(source, listing)
            left_out = leave_out(images.filter(pc.invert(choice.keep(images))))
        else:
            images = _images_of(index, volumes=volumes)
        read = _read_folders(
            job, source=source, images=images.filter(choice.keep(images)), left_out=left_out, rule=rule
        )
        if volumes and index is not None and not choice.takes_all:
            nifti = index.filter(pc.equal(index["kind"], "nifti"))["path"]
            below = read.layout.count("/") + 1
            check_companions(nifti.filter(pc.is_in(nifti, value_set=images)), source=str(source), below=below)
        labels, left_out, cut = read.table, pa.concat_tables([left_out, read.left_out]), read.cut
        layout = read.layout
    else:
        _check_file_rows(job, choice, has_headers=index is not None)
        labels = _read_labels(job, source=source, listing=listing, rule=rule)
    patients_from = _name_origin(job, labels)
    labels, labelling = read_label_values(labels, job.labelling, unit="images" if job.labels is None else "rows")
    skipped = refused = LEFT_OUT.empty_table()
    early, lost = list[str](), LOST.empty_table()
    if index is not None and isinstance(spec, VolumeSpec):
        found = find_volumes(index, series=spec.series, stack=spec.stack)
        skipped, refused = found.skipped_files, found.refused_files
        lost = _describe_lost(labels, found.lost, identity)
        early = [describe_refusal(0, row["image_id"], row["reason"], row["detail"]) for row in lost.to_pylist()]
        if found.several:
            say(
                f"{found.several} series {'was' if found.several == 1 else 'were'} read as several volumes each "
                "(image type, echo, time, orientation …), all "
                "under the label of their series: series.per_study=most_slices keeps one of a study"
            )
        table = join_series(labels, found.series, rule=rule, show=show, compare=job.compare, choice=choice)
        _say_several(table)
        _say_empty_rows(labels, find_served(labels, found.series, found.lost))
    elif index is not None:
        table = plan_images(join_files(labels, index, show=show, compare=job.compare))
        skipped = _leave_companions(index)
        _say_empty_rows(labels, table["number"].combine_chunks())
    else:
        table = plan_images(labels)
    _say_alike(table)
    if index is not None:
        table, others = choose_presentation(table, index, job.image.presentation)
        left_out = pa.concat_tables([left_out, others])
    skipped = pa.concat_tables([skipped, left_out])
    most = rows_per_shard(spec.shape, spec.dtype, most=job.shard.rows)
    return Plan(
        table,
        skipped,
        refused,
        columns=tuple(job.columns),
        rows_per_shard=most,
        early=early,
        labelling=labelling,
        cut=cut,
        lost=lost,
        patients_from=patients_from,
        rest="no_image" if job.labels is None else "not_in_labels",
        layout=layout,
    )


def _name_origin(job: PrepareJob, labels: pa.Table) -> str:
    """Return what tells patients apart; ids that neither labels nor folders give come from the headers."""
    if job.patients == PER_IMAGE:
        return PER_IMAGE
    if job.patient_id.pattern is not None:
        return "pattern"
    if labels["patient_id"].null_count == labels.num_rows:
        return "headers"
    return "folders" if job.labels is None else "labels"


def _describe_lost(labels: pa.Table, lost: pa.Table, identity: Identity) -> pa.Table:
    """LOST of the volumes that a label names and that were refused before decoding, called by their first file."""
    label_rows, rows = (pa.array(each) for each in find_named(labels, lost))
    lost, labels = lost.take(rows), labels.take(label_rows)
    label = labels["label"] if "label" in labels.column_names else pa.nulls(len(rows), pa.string())
    files: list[Any] = lost["files"].to_pylist()
    names = [identity.name("path", paths[0]) for paths in files]
    return pa.table([labels["number"], label, lost["reason"], lost["detail"], names], schema=LOST)


def _read_folders(
    job: PrepareJob, *, source: Path, images: pa.ChunkedArray[Any], left_out: pa.Table, rule: PatientRule
) -> FolderLabels:
    """Return what the folders say, said in a line each."""
    choice = FileChoice.of(job.labelling)
    read = read_class_folder_table(
        source,
        files=images,
        elsewhere=left_out["path"],
        rule=rule,
        layout=job.labelling.layout,
        columns=job.columns,
        ignored=choice.ignores,
    )
    if not choice.takes_all:
        check_masks(read.table["path"], source=str(source), below=read.layout.count("/") + 1)
    for line in [*read.notices, *_describe_cut(read.cut, job)]:
        say(line)
    return read


def _check_file_rows(job: PrepareJob, choice: FileChoice, *, has_headers: bool) -> None:
    """Settings of folders beside a labels file would be obeyed by nobody."""
    if job.labelling.layout != "auto":
        raise ConfigError(
            f"labelling.layout={job.labelling.layout} reads labels from folders, but labels={job.labels} is set: "
            "remove one of the two"
        )
    if choice.is_set and not has_headers:
        raise ConfigError(
            "labelling.files and labelling.not_files choose among the files of folders, and each row of "
            f"labels={job.labels} names one file: remove them"
        )


def _describe_cut(cut: list[str], job: PrepareJob) -> Iterator[str]:
    """A line for each split that no folder is of; a share of 0 is the user's own wish."""
    unit = "image (patients are unknown)" if job.patients == "per_image" else "patient"
    for split in cut:
        share = getattr(job.split, split)
        if share:
            yield (
                f"notice: no folder of {split} has classes: split.{split}={share:g} of train is cut off for "
                f"it by {unit}; split.{split}=0 leaves train whole"
            )


def _say_several(table: pa.Table) -> None:
    """A row that stands for T1 and FLAIR trains a network on both under one label."""
    rows = table.filter(pc.greater(table["number"], 0)).group_by("number").aggregate([([], "count_all")])
    several = pc.sum(pc.greater(rows["count_all"], 1)).as_py()
    if several:
        say(
            f"notice: {format_count(several, 'row')} of the labels file with several volumes each, all under the "
            "label of their row: series.description, series.per_study or labelling.files choose among them"
        )


def _say_empty_rows(labels: pa.Table, served: Any) -> None:
    """A row that names scouts and reports alone has no image, and nobody would miss it.

    Args:
        labels: A row a label.
        served: Line numbers of the rows that name an image, or one that was refused.
    """
    empty = pc.and_(pc.greater(labels["number"], 0), pc.invert(pc.is_in(labels["number"], value_set=served)))
    lines = labels.filter(empty)["number"].to_pylist()
    if lines:
        shown = ", ".join(map(str, lines[:_SHOWN])) + (" …" if len(lines) > _SHOWN else "")
        say(
            f"notice: {format_count(len(lines), 'row')} of the labels file with no image, since all files of it are "
            f"skipped (line{'s' * (len(lines) > 1)} {shown}): ledger.parquet has the reasons"
        )


def _leave_companions(index: pa.Table) -> pa.Table:
    """Return LEFT_OUT of files that are not images: reports, plans, raw data, directories."""
    reasons = find_companions(index)
    found = pc.not_equal(reasons, "")
    paths, reasons = index["path"].filter(found), reasons.filter(found)
    return pa.table([paths, reasons, pa.repeat("", len(paths))], schema=LEFT_OUT)


def _say_alike(table: pa.Table) -> None:
    """Two spellings of one patient would be two patients, in two splits perhaps; nobody but the user can tell."""
    patients = pc.unique(table["patient_id"])
    alike = len(patients) - pc.count_distinct(pc.utf8_lower(pc.utf8_trim_whitespace(patients))).as_py()
    if alike:
        say(
            f"notice: {format_count(alike, 'patient id')} {'differs' if alike == 1 else 'differ'} from another one "
            "only in case or spaces; each counts as a separate patient: correct the labels file if they are the same"
        )


def _read_headers(job: PrepareJob, *, source: Path, listing: pa.Table) -> pa.Table:
    if job.index is not None:
        return read_index(Path(job.index), source=source)
    workers = job.workers if job.workers >= 0 else os.cpu_count() or 1
    # Of a series nobody knows then that a slice is missing: a volume without its last one looks whole.
    refuse = job.image.unreadable == "quarantine" and job.image.kind == "image"
    return build_index(source, listed_files(listing), workers=workers, refuse_unreadable=refuse)


def _read_labels(job: PrepareJob, *, source: Path, listing: pa.Table, rule: PatientRule) -> pa.Table:
    real = listing.filter(pc.not_equal(listing.column("skip"), "symbolic_link")).column("path")
    return read_label_table(
        Path(str(job.labels)),
        source=source,
        rule=rule,
        columns=job.columns,
        listed=with_folders(real) if job.image.kind == "volume" else real,
        strict=job.labelling.strict,
        readers=job.labelling.readers,
    )


def _images(source: Path, listing: pa.Table) -> pa.ChunkedArray[Any]:
    """Return the paths of the files that are images by name or content, hidden ones and links apart."""
    seen = listing.filter(pc.equal(listing.column("skip"), "")).column("path")
    worth = [pa.array([is_image(source / path.as_py()) for path in chunk], pa.bool_()) for chunk in seen.chunks]
    return seen.filter(pa.chunked_array(worth, pa.bool_()))


def _images_of(index: pa.Table, *, volumes: bool) -> pa.ChunkedArray[Any]:
    """Return the paths of the files that may be images of the kind asked for, by their headers."""
    wanted = pc.is_in(index["kind"], value_set=pa.array(_kinds(volumes)))
    return index.filter(pc.and_(wanted, pc.equal(find_companions(index), "")))["path"]


def _kinds(volumes: bool) -> list[str]:
    """Return the kinds of files that may be images of the job."""
    return ["dicom", "nifti"] if volumes else ["dicom", "raster"]
