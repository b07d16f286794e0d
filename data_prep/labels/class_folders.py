"""Read a table of labels from folders named as classes, splits and patients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.labels.label_rows import CHUNK_ROWS, CONTROL, Column, PatientRule, build_schema, parent_folders
from data_prep.labels.layouts import Folder, find_split, guess_layout
from data_prep.ledger import LEFT_OUT
from medcls.config import SPLITS
from medcls.config.labelling import LEVELS, compile_layout, find_level
from medcls.errors import ConfigError, DataError
from medcls.identity import format_count
from medcls.imaging.source import is_system_folder

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class FolderLabels:
    """What the folders of a source say.

    Attributes:
        table: A row for each image, as `read_label_table` returns, sorted by path; number is 0.
        layout: What was read, as labelling.layout spells it.
        left_out: LEFT_OUT: images without a class folder, and a second copy of the folders.
        notices: What the user has to know of the reading, a line each.
        cut: Splits without a folder, which are cut from train.
    """

    table: pa.Table
    layout: str
    left_out: pa.Table
    notices: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)


def read_class_folder_table(
    source: Path,
    *,
    files: Column,
    rule: PatientRule,
    layout: str = "auto",
    columns: Sequence[str] = (),
    elsewhere: Column | None = None,
    ignored: Callable[[str], bool] = lambda _: False,
) -> FolderLabels:
    """Return the labels that the folders of a source say.

    Args:
        source: Folder that `files` are relative to.
        files: Relative paths of the image files, with /, in any order.
        rule: Where patient ids come from; without headers the "declared" rule has nothing to read here.
        layout: As labelling.layout.
        columns: Further columns to keep: "site", if the layout has it.
        elsewhere: Images that a pattern leaves out; their folders are not empty.
        ignored: Whether a folder (with a / at its end) may be without images.

    Raises:
        ConfigError: no rule for the patients, or two; a column that is not a level.
        DataError: folders that can be read in several ways, images outside class folders, fewer than two classes, a
            class folder without an image, or no match.
    """
    paths: Any = files.take(pc.sort_indices(files))
    folders: Any = parent_folders(paths)
    left_out, known = LEFT_OUT.empty_table(), layout
    if layout == "auto":
        counts = {each["values"]: each["counts"] for each in pc.value_counts(folders).to_pylist()}
        reading = guess_layout(counts, source=str(source))
        known = reading.layout
        if reading.copy is not None:
            paths, left_out = _leave_copy(source, paths, inside="/".join(reading.copy), base=reading.base)
            folders = parent_folders(paths)
    levels = _extract(folders, known)
    _check_no_splits(source, levels["class"], folders, known)
    _check_patients(rule, levels, columns, folders=folders, layout=known)
    read = FolderLabels(pa.table({"path": paths, **levels}), known, left_out)
    if "split" in levels:
        read = _read_splits(source, read, guessed=layout == "auto")
    else:
        _check_fits(source, read.table, known)
    others = [read.left_out["path"], *([] if elsewhere is None else [elsewhere])]
    _check_classes(source, read, others=others, ignored=ignored)
    return FolderLabels(
        _build(read.table, rule, columns),
        known,
        read.left_out,
        read.notices + _share_notice(read.table, known),
        read.cut,
    )


def _extract(folders: Any, layout: str) -> dict[str, Any]:
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
    deeper = pc.any(pc.greater(pc.count_substring(folders, "/"), len(above))).as_py()
    deeper = deeper and find_level(layout, "split") < 0
    advice = f"set labelling.layout={'/'.join((*above, 'split', 'class'))} if the folders below are the classes, or "
    raise DataError(
        f"source={source}: labelling.layout={layout}: all {len(names)} class folders are named like splits (train, "
        f"val or test), not like classes: {advice if deeper else ''}give labels=FILE.csv"
    )


def _check_patients(
    rule: PatientRule, levels: dict[str, Any], columns: Sequence[str], *, folders: Any, layout: str
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
        # A patient level is advised only where each image has a folder for it.
        below = (pc.min(pc.count_substring(folders, "/")).as_py() or 0) > layout.strip("/").count("/")
        advice = f"labelling.layout={layout.strip('/')}/patient if the next folders are patients, " if below else ""
        raise ConfigError(
            f"the folders are read as labelling.layout={layout}, without labels=FILE.csv the patients are unknown and "
            "a guess would leak between splits: give patient_id.pattern=REGEX (one group, matched on the path), "
            f"{advice}or patients=per_image if every image is from a different patient"
        )


def _check_fits(source: Path, table: pa.Table, layout: str, *, level: str = "class") -> None:
    misfits = table[level].null_count
    if misfits:
        raise DataError(
            f"source={source}: labelling.layout={layout} does not fit the folders of {misfits} of {table.num_rows} "
            "images: correct it, or leave these images out with labelling.not_files=PATTERN"
        )


def _read_splits(source: Path, read: FolderLabels, *, guessed: bool) -> FolderLabels:
    """The labels with train, val and test in the place of the folders' names; a split without classes left out."""
    table, layout = read.table, read.layout
    if find_level(layout, "split") < find_level(layout, "class"):  # known although no class folder is below it
        folders = pc.extract_regex(parent_folders(table["path"]), compile_layout(layout, last="split"))
        table = _set(table, "split", pc.struct_field(folders, "split"))
    names: list[str] = pc.unique(table["split"].drop_null()).to_pylist()
    unknown = [name for name in names if not find_split(name)]
    if unknown:
        raise DataError(
            f"source={source}: labelling.layout={layout}: {len(unknown)} folders of the split level are not named "
            "train, val or test: leave them out with labelling.not_files='FOLDER/*', or correct the layout"
        )
    _check_fits(source, table, layout, level="split")
    table = _set(table, "split", _rename(table["split"], {name: find_split(name) for name in names}))
    trained = _find_classes(table, "train")
    left, notices = [read.left_out], []
    for split in SPLITS[1:]:
        here = pc.equal(table["split"], split)
        rows = pc.sum(here).as_py() or 0
        if rows and not _find_classes(table, split) & trained:
            left.append(_leave(table.filter(here)["path"], "no_class", f"in {split}, where no folder names a class"))
            table = table.filter(pc.invert(here))
            notices.append(
                f"notice: {format_count(rows, 'image')} of {split} left out (no_class): in no class folder of train, "
                "so without a label; medcls.predict scores them, and labels=FILE.csv can name them"
            )
    _check_fits(source, table, layout)
    present = [split for split in SPLITS if pc.any(pc.equal(table["split"], split)).as_py()]
    if "train" not in present:
        raise DataError(f"source={source}: labelling.layout={layout}: no folder of the split level is train: add one")
    shown = ", ".join(f"{name}/" for name in sorted(names, key=lambda name: SPLITS.index(find_split(name))))
    classes = _list_classes(table["class"])
    if not guessed:
        said = f"splits {shown}; classes {classes}"
    elif layout.endswith("class/split"):
        said = f"the first-level folders are read as classes ({classes}) and the folders below ({shown}) as splits"
    else:
        said = f"{shown} are read as splits and the folders below as classes ({classes})"
    notices.insert(0, f"labelling.layout={layout}: {said}")
    return FolderLabels(table, layout, pa.concat_tables(left), notices, [s for s in SPLITS if s not in present])


def _find_classes(table: pa.Table, split: str) -> set[str]:
    """Return the classes of a split; upper and lower case and spaces make no other class."""
    names = pc.unique(table.filter(pc.equal(table["split"], split))["class"].drop_null()).to_pylist()
    return {str(name).strip().casefold() for name in names}


def _list_classes(column: Any) -> str:
    names = sorted(pc.unique(column).to_pylist())
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _rename(column: Any, names: dict[str, str]) -> Any:
    old, new = pa.array(names.keys(), pa.string()), pa.array(names.values(), pa.string())
    return new.take(pc.index_in(column, value_set=old).combine_chunks())


def _set(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def _leave(paths: Any, reason: str, detail: str) -> pa.Table:
    return pa.table([paths, pa.repeat(reason, len(paths)), pa.repeat(detail, len(paths))], schema=LEFT_OUT)


def _leave_copy(source: Path, paths: Any, *, inside: str, base: Folder) -> tuple[Any, pa.Table]:
    """The paths without those of a folder that holds all others again, and these, once size and name of each agree."""
    within = pc.starts_with(paths, f"{inside}/")
    copies, rest = paths.filter(within), paths.filter(pc.invert(within))
    before = "/".join((*base, ""))
    originals = pa.array([before + path.as_py()[len(inside) + 1 :] for path in copies], pa.string())
    same = all(pc.is_in(originals, value_set=pa.array(rest.to_pylist(), pa.string())).to_pylist()) and all(
        (source / one.as_py()).stat().st_size == (source / other.as_py()).stat().st_size
        for one, other in zip(copies, originals, strict=True)
    )
    if not same:
        raise DataError(
            f"source={source}: a folder contains a second copy of the split folders beside it, with other files: "
            "remove one of the two, or exclude one with labelling.not_files='FOLDER/FOLDER/*'"
        )
    return rest, _leave(copies, "second_copy", "the folder around it contains a file with the same name and size")


def _check_classes(source: Path, read: FolderLabels, *, others: Sequence[Any], ignored: Callable[[str], bool]) -> None:
    classes = pc.unique(read.table["class"]).to_pylist()
    if any(map(CONTROL.search, classes)):
        raise DataError(f"source={source} has a class folder whose name contains a control character: rename it")
    every = pc.unique(parent_folders(pa.concat_arrays([_flat(each) for each in (read.table["path"], *others)])))
    used = _with_parents(every.to_pylist())
    empty = list(_find_empty(source, used, depth=find_level(read.layout, "class"), ignored=ignored))
    if empty:
        raise DataError(
            f"source={source}: {format_count(len(empty), 'folder')} {'holds' if len(empty) == 1 else 'hold'} no image "
            f"where class folders are expected: {'; '.join(empty[:3])} in the order of names (ignoring "
            "case): fill or remove them, or leave them out with labelling.not_files='FOLDER/*'"
        )
    if len(classes) < 2:
        deeper = pc.any(pc.greater(pc.count_substring(read.table["path"], "/"), read.layout.count("/") + 1)).as_py()
        advice = read.layout.replace("class", "*/class")
        raise DataError(
            f"source={source} has {len(classes)} class folders with images (labelling.layout={read.layout}), expected "
            "at least 2"
            + (
                f": if the folders one level further down are the classes, set labelling.layout={advice}"
                if deeper
                else ""
            )
        )


def _flat(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _with_parents(folders: list[str]) -> set[str]:
    found: set[str] = set()
    for folder in folders:
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _find_empty(
    source: Path, used: set[str], *, depth: int, ignored: Callable[[str], bool], folder: str = ""
) -> Iterator[str]:
    """Yield "folder 2 of 5" for each folder down to the class level without an image; its name may be a person's."""
    names = [p.name for p in (source / folder).iterdir() if p.is_dir() and not is_system_folder(p.name)]
    folders = sorted(names, key=lambda name: (name.casefold(), name))
    for number, name in enumerate(folders, start=1):
        path = f"{folder}{name}"
        if path in used:
            if depth:
                yield from _find_empty(source, used, depth=depth - 1, ignored=ignored, folder=f"{path}/")
        elif not ignored(f"{path}/"):
            yield f"folder {number} of {len(folders)}"


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
    levels[last] = "*" if levels[last] == "patient" else levels[last].replace("{patient}", "*")
    return [
        f"notice: {several} patient folders have the name of a patient folder in another class; each name counts as "
        "one patient: if numbers restart in each class, set "
        f"labelling.layout='{'/'.join(levels)}' patient_id.pattern='{pattern}'"
    ]


def _build(table: pa.Table, rule: PatientRule, columns: Sequence[str]) -> pa.Table:
    paths = table["path"]
    if "patient" in table.column_names:
        patients = table["patient"]
    else:
        patients = _find_patients(paths, rule)
        unmatched = len(patients.filter(pc.equal(patients, pa.scalar(""))))
        if unmatched:
            raise DataError(f"patient_id.pattern={rule.pattern!r} does not match {unmatched} of {len(paths)} paths")
    rows = table.num_rows
    known = {"path": paths, "patient_id": patients, "label": table["class"], "number": pa.repeat(0, rows)}
    known |= {name: table[name] for name in ("split", *columns) if name in table.column_names}
    schema = build_schema(["label"], columns)
    return pa.table([known.get(f.name, pa.nulls(rows, f.type)) for f in schema], schema=schema)


def _find_patients(paths: Any, rule: PatientRule) -> Any:
    """Return the patient of each path, null where only its header can say."""
    if rule.pattern is None:
        return paths if rule.derives else pa.nulls(len(paths), pa.string())
    starts = range(0, len(paths), CHUNK_ROWS)
    pieces = (paths.slice(start, CHUNK_ROWS).to_pylist() for start in starts)
    chunks = [pa.array([rule.find(path, "") for path in piece], pa.string()) for piece in pieces]
    return pa.chunked_array(chunks, type=pa.string())
