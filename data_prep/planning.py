"""Build the plan of a store from its source and labels: which images exist, their patients and their labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.file_choice import FileChoice, check_companions, check_masks, leave_out
from data_prep.labels.class_folders import SourceLabels, read_class_folder_table
from data_prep.labels.joining import find_companions, find_named, find_served, join_files, join_series
from data_prep.labels.label_file import read_label_table
from data_prep.labels.label_rows import PatientRule, with_folders
from data_prep.labels.label_values import read_label_values
from data_prep.ledger import LEFT_OUT, LOST
from data_prep.plan import Plan, plan_images
from data_prep.series import find_volumes
from medcls.config import ImageConfig, LabellingConfig, SeriesConfig, StackRule
from medcls.console import say
from medcls.errors import ConfigError
from medcls.identity import PER_IMAGE, Identity, format_count, list_first
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
    files, batches = list_files(source), []
    while batch := list(islice(files, _BATCH)):
        batches.append(pa.record_batch([list(column) for column in zip(*batch, strict=True)], schema=_LISTING))
    return pa.Table.from_batches(batches, schema=_LISTING)


def listed_files(listing: pa.Table) -> Iterator[tuple[str, str]]:
    """Yield (path, skip) of a listing, one batch at a time as Python objects."""
    for batch in listing.to_batches(max_chunksize=_BATCH):
        yield from zip(batch.column("path").to_pylist(), batch.column("skip").to_pylist(), strict=True)


def build_spec(image: ImageConfig, *, series: SeriesConfig, stack: StackRule) -> Spec:
    """Return the preprocessing that the groups image, series and stack describe.

    Raises:
        ConfigError: values out of range or that contradict one another.
    """
    kind: type[Spec] = PreprocessSpec
    if image.kind == "volume":
        kind = VolumeSpec
    # A field that the configuration and the specification both have goes from one to the other by its name.
    given = {field.name: _freeze(getattr(image, field.name)) for field in fields(kind) if hasattr(image, field.name)}
    given |= dict(zip(("width", "height", "depth"), reversed(image.sizes), strict=False))
    given["windows_hu"] = find_windows(image.windows_hu)
    given["burnt_in"] = BurntInRule(image.burnt_in, _freeze(image.mask_boxes), _freeze(image.keep_box))
    if kind is VolumeSpec:
        spacing = image.spacing_mm
        if isinstance(spacing, int | float):
            spacing = [spacing] * 3
        given["spacing_mm"] = tuple(map(float, spacing or ())) or None
        given["stack"] = stack
        given["series"] = SeriesRule(**{name: _freeze(value) for name, value in asdict(series).items()})
    return kind(**given)


def _freeze(value: Any) -> Any:
    """Return lists as tuples: a specification never changes."""
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class RawSource:
    """The raw files of a store.

    Attributes:
        folder: Where they are.
        listing: path and skip ("" or a reason) of every file, sorted by path.
        spec: What is made of an image or a volume.
        identity: What outputs may show of paths and ids.
        choice: Patterns of the files that are taken.
        index: Headers of the files that are taken, catalog.INDEX; None if headers are not read.
        left_out: LEFT_OUT: images that the patterns leave out, as far as headers tell images.
    """

    folder: Path
    listing: pa.Table
    spec: Spec
    identity: Identity
    choice: FileChoice = field(default_factory=FileChoice)
    index: pa.Table | None = None
    left_out: pa.Table = field(default_factory=LEFT_OUT.empty_table)

    def with_index(self, index: pa.Table) -> RawSource:
        """Return the source with the headers of the files that the patterns take."""
        if not self.choice.is_set:
            return replace(self, index=index)
        images = replace(self, index=index).find_images()
        left_out = leave_out(images.filter(pc.invert(self.choice.keep(images))))
        return replace(self, index=index.filter(self.choice.keep(index["path"])), left_out=left_out)

    def find_images(self) -> Any:
        """Return the paths of the files that may be images of the kind asked for, by header, name or content."""
        if self.index is not None:
            kinds = pa.array([{2: "raster", 3: "nifti"}[self.spec.spatial_dims], "dicom"])
            wanted = pc.is_in(self.index["kind"], value_set=kinds)
            return self.index.filter(pc.and_(wanted, pc.equal(find_companions(self.index), "")))["path"]
        seen = self.listing.filter(pc.equal(self.listing.column("skip"), "")).column("path")
        worth = [
            pa.array([is_image(self.folder / path.as_py()) for path in chunk], pa.bool_()) for chunk in seen.chunks
        ]
        return seen.filter(pa.chunked_array(worth, pa.bool_()))

    def show(self, path: str) -> str:
        """Return what a message may show of a path."""
        return self.identity.name("path", path)


def read_folders(
    source: RawSource, config: LabellingConfig, *, rule: PatientRule, columns: Sequence[str]
) -> SourceLabels:
    """Return what the class folders of a source say, and print how they are read.

    Raises:
        ConfigError, DataError: the folders cannot be read, or hold masks or several files of one scan.
    """
    images, left_out, choice = source.find_images(), source.left_out, source.choice
    if source.index is None:
        kept = choice.keep(images)
        left_out = leave_out(images.filter(pc.invert(kept)))
        images = images.filter(kept)
    read = read_class_folder_table(
        source.folder, files=images, elsewhere=left_out["path"], rule=rule, config=config, columns=columns
    )
    below = read.layout.count("/") + 1
    if not choice.takes_all:
        check_masks(read.table["path"], source=str(source.folder), below=below)
    for line in read.notices:
        say(line)
    if source.index is not None and source.spec.spatial_dims == 3 and not choice.takes_all:
        nifti = source.index.filter(pc.equal(source.index["kind"], "nifti"))["path"]
        check_companions(nifti.filter(pc.is_in(nifti, value_set=images)), source=str(source.folder), below=below)
    table, record = read_label_values(read.table, config, unit="images")
    return replace(read, table=table, record=record, left_out=pa.concat_tables([left_out, read.left_out]))


def read_file(
    path: Path, source: RawSource, config: LabellingConfig, *, rule: PatientRule, columns: Sequence[str]
) -> SourceLabels:
    """Return what a labels file says of a source.

    Raises:
        ConfigError: settings of class folders, which nothing would obey beside a labels file.
        MissingInputError, DataError: as `read_label_table`.
    """
    if config.layout != "auto":
        raise ConfigError(
            f"labelling.layout={config.layout} reads labels from folders, but labels={path} is set: "
            "remove one of the two"
        )
    if source.choice.is_set and source.index is None:
        raise ConfigError(
            "labelling.files and labelling.not_files choose among the files of folders, and each row of "
            f"labels={path} names one file: remove them"
        )
    listed = source.listing.filter(pc.not_equal(source.listing.column("skip"), "symbolic_link")).column("path")
    if source.spec.spatial_dims == 3:
        listed = with_folders(listed)
    table = read_label_table(path, source=source.folder, rule=rule, columns=columns, listed=listed, config=config)
    table, record = read_label_values(table, config, unit="rows")
    return SourceLabels(table, record=record, left_out=source.left_out)


def build_plan(source: RawSource, labels: SourceLabels, *, rule: PatientRule, compare: Collection[str]) -> Plan:
    """Return what is to be decoded, in the order of the labels file or of the paths.

    If headers were read, labels can name series, studies and patients, and what contradicts the headers is refused
    before hours of decoding.

    Args:
        source: The raw files.
        labels: What `read_folders` or `read_file` returned.
        rule: Where patient ids come from.
        compare: What labels and headers have to agree on, of CHECKS.

    Raises:
        MissingInputError, DataError, ConfigError: labels and headers do not fit.
    """
    spec, index = source.spec, source.index
    show: Callable[[str], str] = source.show
    if source.identity.kind == "declared" and not labels.layout:
        show = _show_nothing  # a declared path may hold a name; the line of the labels file says which one it is
    skipped = refused = LEFT_OUT.empty_table()
    lost = LOST.empty_table()
    if index is not None and isinstance(spec, VolumeSpec):
        found = find_volumes(index, series=spec.series, stack=spec.stack)
        skipped, refused = found.skipped_files, found.refused_files
        lost = _describe_lost(labels.table, found.lost, source.identity)
        if found.several:
            say(
                f"{format_count(found.several, 'series was', 'series were')} read as several volumes each "
                "(image type, echo, time, orientation …), all under the label of their series: "
                "series.per_study=most_slices keeps one of a study"
            )
        table = join_series(labels.table, found.series, rule=rule, show=show, compare=compare, choice=source.choice)
        rows = table.filter(pc.greater(table["number"], 0)).group_by("number").aggregate([([], "count_all")])
        several = pc.sum(pc.greater(rows["count_all"], 1)).as_py()
        if several:
            say(
                f"notice: {format_count(several, 'row')} of the labels file with several volumes each, all under the "
                "label of their row: series.description, series.per_study or labelling.files choose among them"
            )
        _say_empty_rows(labels.table, find_served(labels.table, found.series, found.lost))
    elif index is not None:
        table = plan_images(join_files(labels.table, index, show=show, compare=compare))
        reasons = find_companions(index)
        companions = pc.not_equal(reasons, "")
        paths, reasons = index["path"].filter(companions), reasons.filter(companions)
        skipped = pa.table([paths, reasons, pa.repeat("", len(paths))], schema=LEFT_OUT)
        _say_empty_rows(labels.table, table["number"].combine_chunks())
    else:
        table = plan_images(labels.table)
    patients = pc.unique(table["patient_id"])
    alike = len(patients) - pc.count_distinct(pc.utf8_lower(pc.utf8_trim_whitespace(patients))).as_py()
    if alike:
        # Two spellings of one patient would be two patients, in two splits perhaps; only the user can tell.
        say(
            f"notice: {format_count(alike, 'patient id differs', 'patient ids differ')} from another one only in case "
            "or spaces; each counts as a separate patient: correct the labels file if they are the same"
        )
    return Plan(
        table,
        skipped=pa.concat_tables([skipped, labels.left_out]),
        refused=refused,
        lost=lost,
        patients_from=_name_origin(labels, rule),
        layout=labels.layout,
    )


def _show_nothing(_: str) -> str:
    return ""


def _name_origin(labels: SourceLabels, rule: PatientRule) -> str:
    """Return what tells patients apart; ids that neither labels nor folders give come from the headers."""
    if rule.patients == PER_IMAGE:
        return PER_IMAGE
    if rule.pattern is not None:
        return "pattern"
    if labels.table["patient_id"].null_count == labels.table.num_rows:
        return "headers"
    return "folders" if labels.layout else "labels"


def _describe_lost(labels: pa.Table, lost: pa.Table, identity: Identity) -> pa.Table:
    """LOST of the volumes that a label names and that were refused before decoding, called by their first file."""
    label_rows, rows = (pa.array(each) for each in find_named(labels, lost))
    lost, labels = lost.take(rows), labels.take(label_rows)
    classes: Any = pa.nulls(len(rows), pa.string())
    if "label" in labels.column_names:
        classes = labels["label"]
    names = [identity.name("path", paths[0].as_py()) for paths in lost["files"]]
    return pa.table([labels["number"], classes, lost["reason"], lost["detail"], names], schema=LOST)


def _say_empty_rows(labels: pa.Table, served: Any) -> None:
    """Print a notice of rows that name only scouts and reports: nobody would miss their image.

    `served` are the line numbers of the rows that name an image, or one that was refused.
    """
    empty = pc.and_(pc.greater(labels["number"], 0), pc.invert(pc.is_in(labels["number"], value_set=served)))
    lines = labels.filter(empty)["number"].to_pylist()
    if lines:
        where = f"{'line' if len(lines) == 1 else 'lines'} {list_first(lines, _SHOWN)}"
        say(
            f"notice: {format_count(len(lines), 'row')} of the labels file with no image, since all files of it are "
            f"skipped ({where}): ledger.parquet has the reasons"
        )
