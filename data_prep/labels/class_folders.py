"""Read a table of labels from folders named as classes, splits and patients."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.file_choice import FileChoice
from data_prep.labels.label_rows import (
    CHUNK_ROWS,
    CONTROL,
    Column,
    PatientRule,
    build_schema,
    parent_folders,
    set_columns,
)
from data_prep.labels.layouts import Folder, find_split, guess_layout
from data_prep.ledger import LEFT_OUT
from medcls.config import SPLITS, LabellingConfig
from medcls.config.labelling import LEVELS, compile_layout, find_level
from medcls.errors import ConfigError, DataError
from medcls.identity import format_count, list_first
from medcls.imaging.source import is_system_folder

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class SourceLabels:
    """Labels of the images of a source.

    Attributes:
        table: A row for each label, as `read_label_table` returns; of class folders sorted by path, number is 0.
        layout: How class folders were read, as labelling.layout spells it; "" = a labels file.
        left_out: LEFT_OUT: images that patterns leave out, without a class folder, or in a second copy of the folders.
        notices: What the user has to know of the reading, a line each.
        cut: Splits without a folder, which are cut from train.
        record: What was read how in the label columns, as `read_label_values` records it.
    """

    table: pa.Table
    layout: str = ""
    left_out: pa.Table = field(default_factory=LEFT_OUT.empty_table)
    notices: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    record: Mapping[str, object] = field(default_factory=dict)


def read_class_folder_table(
    source: Path,
    *,
    files: Column,
    rule: PatientRule,
    config: LabellingConfig | None = None,
    columns: Sequence[str] = (),
    elsewhere: Column | None = None,
) -> SourceLabels:
    """Return the labels that the folders of a source say.

    Args:
        source: Folder that `files` are relative to.
        files: Relative paths of the image files, with /, in any order.
        rule: Where patient ids come from; without headers the "declared" rule has nothing to read here.
        config: The layout, and the patterns of files that are left out; None = as they are by default.
        columns: Further columns to keep: "site", if the layout has it.
        elsewhere: Images that a pattern leaves out; their folders are not empty.

    Raises:
        ConfigError: no rule for the patients, or two; a column that is not a level.
        DataError: folders that can be read in several ways, images outside class folders, fewer than two classes, a
            class folder without an image, or no match.
    """
    config = config or LabellingConfig()
    paths: Any = files.take(pc.sort_indices(files))
    folders: Any = parent_folders(paths)
    read = SourceLabels(pa.table({"path": paths}), config.layout)
    if config.layout == "auto":
        counts = {each["values"]: each["counts"] for each in pc.value_counts(folders).to_pylist()}
        reading = guess_layout(counts, source=str(source))
        read = replace(read, layout=reading.layout)
        if reading.copy is not None:
            paths, left_out = _leave_copy(source, paths, inside="/".join(reading.copy), base=reading.base)
            folders, read = parent_folders(paths), replace(read, left_out=left_out)
    levels = _extract(folders, read.layout)
    _check_no_splits(source, levels["class"], folders, read.layout)
    _check_patients(rule, levels, columns, folders=folders, layout=read.layout)
    read = replace(read, table=pa.table({"path": paths, **levels}))
    if "split" in levels:
        read = _read_splits(source, read, guessed=config.layout == "auto")
    else:
        _check_fits(source, read.table["class"], read.layout)
    seen: list[Column] = [read.table["path"], read.left_out["path"]]
    if elsewhere is not None:
        seen.append(elsewhere)
    _check_classes(source, read, seen=seen, choice=FileChoice.of(config))
    notices = read.notices + _share_notice(read.table, read.layout)
    return replace(read, table=_build(read.table, rule, columns), notices=notices)


def _extract(folders: Any, layout: str) -> dict[str, pa.ChunkedArray[Any]]:
    """Return what each image's folder says of the levels, null where the layout does not fit it."""
    coded: Any = pc.dictionary_encode(_flat(folders))
    found = pc.extract_regex(coded.dictionary, compile_layout(layout))
    return {name: pc.struct_field(found, name).take(coded.indices) for name in LEVELS if find_level(layout, name) >= 0}


def name_classes(paths: Any, layout: str) -> list[str | None]:
    """Return the class folder that each path is below, None without one.

    Args:
        paths: Relative paths, with /.
        layout: What was read, as labelling.layout spells it.
    """
    found: list[str | None] = _extract(parent_folders(paths), layout)["class"].to_pylist()
    return found


def _check_no_splits(source: Path, classes: Any, folders: Any, layout: str) -> None:
    """Refuse classes that are train and test: a network would learn to tell one split from another."""
    names = pc.unique(classes.drop_null()).to_pylist()
    if not names or not all(map(find_split, names)):
        return
    above = layout.strip("/").split("/")[: find_level(layout, "class")]
    advice = ""
    if find_level(layout, "split") < 0 and pc.any(pc.greater(pc.count_substring(folders, "/"), len(above))).as_py():
        deeper = "/".join((*above, "split", "class"))
        advice = f"set labelling.layout={deeper} if the folders below are the classes, or "
    raise DataError(
        f"source={source}: labelling.layout={layout}: all {len(names)} class folders are named like splits (train, "
        f"val or test), not like classes: {advice}give labels=FILE.csv"
    )


def _check_patients(
    rule: PatientRule, levels: Mapping[str, object], columns: Sequence[str], *, folders: Any, layout: str
) -> None:
    absent = [name for name in columns if name not in levels]
    if absent:
        raise ConfigError(f"columns={list(columns)}: no folder level is {absent[0]}: set labelling.layout=site/class")
    if "patient" in levels and rule.derives:
        raise ConfigError(
            "labelling.layout names a patient level, which patients=per_image or patient_id.pattern would override: "
            "remove one of the two"
        )
    if "patient" not in levels and rule.needs_column:
        advice = ""
        if (pc.min(pc.count_substring(folders, "/")).as_py() or 0) > layout.strip("/").count("/"):
            # Each image has a folder for it.
            advice = f"labelling.layout={layout.strip('/')}/patient if the next folders are patients, "
        raise ConfigError(
            f"the folders are read as labelling.layout={layout}, without labels=FILE.csv the patients are unknown and "
            "a guess would leak between splits: give patient_id.pattern=REGEX (one group, matched on the path), "
            f"{advice}or patients=per_image if every image is from a different patient"
        )


def _check_fits(source: Path, level: pa.ChunkedArray[Any], layout: str) -> None:
    if level.null_count:
        raise DataError(
            f"source={source}: labelling.layout={layout} does not fit the folders of {level.null_count} of "
            f"{len(level)} images: correct it, or leave these images out with labelling.not_files=PATTERN"
        )


def _read_splits(source: Path, read: SourceLabels, *, guessed: bool) -> SourceLabels:
    """Return the labels with train, val and test for the folders' names; splits without classes are left out."""
    table, layout = read.table, read.layout
    if find_level(layout, "split") < find_level(layout, "class"):  # known although no class folder is below it
        found = pc.extract_regex(parent_folders(table["path"]), compile_layout(layout, last="split"))
        table = set_columns(table, split=pc.struct_field(found, "split"))
    names = {str(name): find_split(name) for name in pc.unique(table["split"].drop_null()).to_pylist()}
    unknown = sum(not split for split in names.values())
    if unknown:
        raise DataError(
            f"source={source}: labelling.layout={layout}: {unknown} folders of the split level are not named "
            "train, val or test: leave them out with labelling.not_files='FOLDER/*', or correct the layout"
        )
    _check_fits(source, table["split"], layout)
    place = pc.index_in(table["split"], value_set=pa.array(names.keys(), pa.string())).combine_chunks()
    table = set_columns(table, split=pa.array(names.values(), pa.string()).take(place))
    trained = _find_classes(table, "train")
    left, notices = [read.left_out], []
    for split in SPLITS[1:]:
        here = pc.equal(table["split"], split)
        paths = table.filter(here)["path"]
        if len(paths) and not _find_classes(table, split) & trained:
            left.append(_leave(paths, "no_class", f"in {split}, where no folder names a class"))
            table = table.filter(pc.invert(here))
            notices.append(
                f"notice: {format_count(len(paths), 'image')} of {split} left out (no_class): in no class folder of "
                "train, so without a label; medcls.predict scores them, and labels=FILE.csv can name them"
            )
    _check_fits(source, table["class"], layout)
    present = set(pc.unique(table["split"]).to_pylist())
    if "train" not in present:
        raise DataError(f"source={source}: labelling.layout={layout}: no folder of the split level is train: add one")
    shown = ", ".join(f"{name}/" for name in sorted(names, key=lambda name: SPLITS.index(names[name])))
    classes = list_first(sorted(pc.unique(table["class"]).to_pylist()), _SHOWN)
    if not guessed:
        said = f"splits {shown}; classes {classes}"
    elif layout.endswith("class/split"):
        said = f"the first-level folders are read as classes ({classes}) and the folders below ({shown}) as splits"
    else:
        said = f"{shown} are read as splits and the folders below as classes ({classes})"
    notices.insert(0, f"labelling.layout={layout}: {said}")
    cut = [split for split in SPLITS if split not in present]
    return replace(read, table=table, left_out=pa.concat_tables(left), notices=notices, cut=cut)


def _find_classes(table: pa.Table, split: str) -> set[str]:
    """Return the classes of a split; upper and lower case and spaces make no other class."""
    names = pc.unique(table.filter(pc.equal(table["split"], split))["class"].drop_null()).to_pylist()
    return {str(name).strip().casefold() for name in names}


def _leave(paths: Any, reason: str, detail: str) -> pa.Table:
    return pa.table([paths, pa.repeat(reason, len(paths)), pa.repeat(detail, len(paths))], schema=LEFT_OUT)


def _leave_copy(source: Path, paths: Any, *, inside: str, base: Folder) -> tuple[Any, pa.Table]:
    """Return the paths without those of a folder that holds all others again, and these; size and name must agree."""
    within = pc.starts_with(paths, f"{inside}/")
    copies, rest = paths.filter(within), paths.filter(pc.invert(within))
    before, known = "/".join((*base, "")), set(rest.to_pylist())
    for copy in copies.to_pylist():
        original = before + copy[len(inside) + 1 :]
        if original not in known or (source / copy).stat().st_size != (source / original).stat().st_size:
            raise DataError(
                f"source={source}: a folder contains a second copy of the split folders beside it, with other files: "
                "remove one of the two, or exclude one with labelling.not_files='FOLDER/FOLDER/*'"
            )
    return rest, _leave(copies, "second_copy", "the folder around it contains a file with the same name and size")


def _check_classes(source: Path, read: SourceLabels, *, seen: Sequence[Any], choice: FileChoice) -> None:
    """Check that there are two classes or more, and that no folder down to their level is without images.

    `seen` are the paths of images, those that are left out too; folders that `choice` leaves out may be empty.
    """
    classes = pc.unique(read.table["class"]).to_pylist()
    if any(map(CONTROL.search, classes)):
        raise DataError(f"source={source} has a class folder whose name contains a control character: rename it")
    used: set[str] = set()
    for folder in pc.unique(parent_folders(pa.concat_arrays([_flat(each) for each in seen]))).to_pylist():
        while folder and folder not in used:
            used.add(folder)
            folder = folder.rpartition("/")[0]
    empty = list(_find_empty(source, used, depth=find_level(read.layout, "class"), choice=choice))
    if empty:
        raise DataError(
            f"source={source}: {format_count(len(empty), 'folder holds', 'folders hold')} no image where class "
            f"folders are expected: {'; '.join(empty[:3])} in the order of names (ignoring case): fill or remove "
            "them, or leave them out with labelling.not_files='FOLDER/*'"
        )
    if len(classes) < 2:
        advice = ""
        if pc.any(pc.greater(pc.count_substring(read.table["path"], "/"), read.layout.count("/") + 1)).as_py():
            deeper = read.layout.replace("class", "*/class")
            advice = f": if the folders one level further down are the classes, set labelling.layout={deeper}"
        raise DataError(
            f"source={source} has {len(classes)} class folders with images (labelling.layout={read.layout}), expected "
            f"at least 2{advice}"
        )


def _find_empty(source: Path, used: set[str], *, depth: int, choice: FileChoice, folder: str = "") -> Iterator[str]:
    """Yield "folder 2 of 5" for each folder down to the class level without an image; its name may be a person's."""
    names = [p.name for p in (source / folder).iterdir() if p.is_dir() and not is_system_folder(p.name)]
    for number, name in enumerate(sorted(names, key=lambda name: (name.casefold(), name)), start=1):
        path = f"{folder}{name}"
        if path in used:
            if depth:
                yield from _find_empty(source, used, depth=depth - 1, choice=choice, folder=f"{path}/")
        elif not choice.ignores(f"{path}/"):
            yield f"folder {number} of {len(names)}"


def _flat(column: Any) -> Any:
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks()
    return column


def _share_notice(table: pa.Table, layout: str) -> list[str]:
    """Folders of one name under two classes: one patient, unless the numbers start anew in each class."""
    first, last = find_level(layout, "class"), find_level(layout, "patient")
    if last <= first:  # a patient with images of several classes is one folder
        return []
    pairs = table.select(["class", "patient"]).group_by(["class", "patient"]).aggregate([])
    several = pairs.num_rows - pc.count_distinct(pairs["patient"]).as_py()
    if not several:
        return []
    pattern = f"^{'[^/]+/' * first}({'/'.join(['[^/]+'] * (last - first + 1))})/"
    levels = layout.strip("/").split("/")
    levels[last] = re.sub(r"\{patient\}|\Apatient\Z", "*", levels[last])
    return [
        f"notice: {several} patient folders have the name of a patient folder in another class; each name counts as "
        "one patient: if numbers restart in each class, set "
        f"labelling.layout='{'/'.join(levels)}' patient_id.pattern='{pattern}'"
    ]


def _build(table: pa.Table, rule: PatientRule, columns: Sequence[str]) -> pa.Table:
    """Return the table as `read_label_table` does; a patient is null if only the header can say who it is."""
    paths, rows = table["path"], table.num_rows
    patients: Any = pa.nulls(rows, pa.string())
    if "patient" in table.column_names:
        patients = table["patient"]
    elif rule.pattern is not None:
        pieces: Any = (paths.slice(start, CHUNK_ROWS).to_pylist() for start in range(0, rows, CHUNK_ROWS))
        chunks = [pa.array([rule.find(path, "") for path in piece], pa.string()) for piece in pieces]
        patients = pa.chunked_array(chunks, type=pa.string())
        unmatched = len(patients.filter(pc.equal(patients, pa.scalar(""))))
        if unmatched:
            raise DataError(f"patient_id.pattern={rule.pattern!r} does not match {unmatched} of {rows} paths")
    elif rule.derives:
        patients = paths
    known = {"path": paths, "patient_id": patients, "label": table["class"], "number": pa.repeat(0, rows)}
    known |= {name: table[name] for name in ("split", *columns) if name in table.column_names}
    schema = build_schema(["label"], columns)
    return pa.table([known.get(f.name, pa.nulls(rows, f.type)) for f in schema], schema=schema)
