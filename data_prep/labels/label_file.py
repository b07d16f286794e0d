"""Read labels.csv: its columns, checked row by row in bounded memory; all bad rows are reported at once."""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa

from data_prep.labels.label_readers import guess_readers
from data_prep.labels.label_rows import (
    CHUNK_ROWS,
    CONTROL,
    KEYS,
    OWN_COLUMNS,
    ROI,
    BadRows,
    Column,
    PatientRule,
    build_schema,
    check_paths,
    check_together,
    is_label,
    with_folders,
)
from data_prep.labels.layouts import SPLIT_WORDS
from medcls.config import LabellingConfig
from medcls.console import say
from medcls.data.label_words import spelling_key
from medcls.data.votes import VOTES
from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.identity import format_count
from medcls.inputs import check_file

__all__ = ["PatientRule", "read_label_table", "with_folders"]

# How programs spell "no value". "none" may be a grade (none, mild, severe); "None" is Python's.
_NO_VALUE = re.compile(r"None|(?i:nan|na|n/a|#n/a|null|[+-]?inf)")
_DRIVE = re.compile(r"[A-Za-z]:")
_MOST_PIXELS = 2**31 - 1
# Words for the codes of a column, by spelling_key; None = unknown. Public sets write male, Female, left, Train.
_CODES: dict[str, dict[str, str | None]] = {
    "split": {**SPLIT_WORDS},
    "sex": {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O", "u": None, "unknown": None},
    "side": {"l": "L", "left": "L", "r": "R", "right": "R"},
}


def read_label_table(
    path: Path,
    *,
    source: Path,
    rule: PatientRule,
    listed: Column,
    columns: Sequence[str] = (),
    config: LabellingConfig | None = None,
) -> pa.Table:
    """Return the rows of a labels file, in its order.

    A row names its images in one of four ways, the same for the whole file: `path`, `SeriesInstanceUID`,
    `StudyInstanceUID` or `PatientID` (or as the table spells them). Only one piece of the file is held as Python
    objects at a time.

    Args:
        path: CSV, UTF-8, with a header.
        source: The folder that paths are relative to.
        rule: Where patient ids come from.
        listed: Every path that a row may name, links left out; for volumes `with_folders` of the files.
        columns: Further columns to keep.
        config: Columns that are labels of readers, whatever they are called, as far as the file has them; `strict`
            refuses words for the codes of split, sex and side, instead of a notice. None = as they are by default.

    Returns:
        number (int64: line of the file, 1 = header); path, series_uid, study_uid, dicom_patient_id (null but for
        the one used); patient_id (null where the header has to say); label or label_NAME …; split, sex, age_years
        (float64), side; roi_x, roi_y, roi_w, roi_h (int32); and `columns`. Strings but for these; null = unknown.

    Raises:
        MissingInputError: no such file, or paths that do not exist.
        DataError: missing columns, bad values, paths that leave `source`; every bad row is counted, ten are shown.
        ConfigError: `rule` would overrule the file, or works on paths that the file does not have.
    """
    config = config or LabellingConfig()
    lines = _read_csv(path)
    layout = _read_header(path, next(lines, (0, []))[1], rule=rule, columns=columns, readers=config.readers)
    bad, batches = BadRows(), []
    while chunk := list(islice(lines, CHUNK_ROWS)):
        rows = []
        for number, cells in chunk:
            try:
                rows.append(_parse(number, cells, layout))
            except ValueError as error:
                bad.add(f"row {number}: {error}")
        batches.append(pa.RecordBatch.from_pylist(rows, schema=layout.schema))
    table = pa.Table.from_batches(batches, schema=layout.schema)
    # Bad rows are not in the table, so each row is counted once for what is wrong with it alone.
    total = table.num_rows + bad.count
    if layout.key == "path":
        check_paths(table, root=source.resolve(), listed=listed, bad=bad)
    check_together(table, key=layout.key, labels=layout.labels, bad=bad)
    if bad.count:
        found = f"labels={path}: {format_count(bad.count, 'bad row')} of {total}: {bad.describe()}"
        if bad.missing:
            found += f" (paths are relative to source={source})"
        if bad.missing == bad.count:
            raise MissingInputError(found)
        raise DataError(found)
    if not total:
        raise DataError(f"labels={path} has a header and no rows")
    _say_words(path, layout.words, strict=config.strict)
    return table


def _say_words(path: Path, words: Mapping[tuple[str, str], int], *, strict: bool) -> None:
    """Print which words were read as codes; all of them are known words, so none is a person's.

    Raises:
        DataError: there are such words, under labelling.strict.
    """
    for column, codes in _CODES.items():
        read = [
            f"{word!r} ({format_count(count, 'row')}) as {codes[spelling_key(word)] or 'unknown'}"
            for (name, word), count in sorted(words.items())
            if name == column
        ]
        if read and strict:
            raise DataError(f"labelling.strict=true: labels={path}: {column} has {', '.join(read)}: write the codes")
        if read:
            say(f"notice: {column} is read by its words: {', '.join(read)}; labelling.strict=true refuses")


def _read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the filled lines with their numbers, the header first."""
    check_file(path, "labels")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for cells in reader:
                if any("\0" in cell for cell in cells):
                    raise csv.Error("NUL bytes")
                if any(cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"labels={path} is not CSV in UTF-8: {error}") from error


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the header of a labels file says: `key` is the table's column, `spelling` the file's.

    `words` counts the words that were read as codes: (column, word) -> rows.
    """

    header: Sequence[str]
    key: str
    spelling: str
    labels: Sequence[str]
    columns: Sequence[str]
    rule: PatientRule
    schema: pa.Schema
    words: Counter[tuple[str, str]] = field(default_factory=Counter)


def _read_header(
    path: Path, header: Sequence[str], *, rule: PatientRule, columns: Sequence[str], readers: Sequence[str]
) -> _Layout:
    _check_names(path, header, columns, readers)
    if "patient_id" in header and rule.derives:
        raise ConfigError(
            f"labels={path} has patient_id, which patients=per_image or patient_id.pattern would override: "
            "remove the setting, or rename the column"
        )
    key, spelling = _read_key(path, header, rule=rule)
    labels = [name for name in header if is_label(name) or name in readers]
    missing, advice = [], ""
    if not key:
        missing.append("path (or SeriesInstanceUID, StudyInstanceUID, PatientID)")
    if rule.needs_column and "patient_id" not in header:
        missing.append("patient_id")
        advice = "; patients=per_image or patient_id.pattern=REGEX replace patient_id"
    missing += [name for name in columns if name not in header]
    if not labels:
        missing.append("label (or label_NAME)")
        guessed = guess_readers(header)
        if guessed and not readers:
            advice += f"; {', '.join(guessed)} look like readers: set labelling.readers=[{','.join(guessed)}]"
    if missing:
        others = [other for other in header if other not in OWN_COLUMNS]
        for place, name in enumerate(missing):
            # The name of the column nearest to it may be a person's if line 1 is not a header.
            for near in difflib.get_close_matches(name.split(" ")[0], others, n=1, cutoff=0.5):
                missing[place] += f" (nearest: column {header.index(near) + 1})"
        raise DataError(
            f"labels={path}: missing columns {', '.join(missing)}; line 1 has {len(header)} columns"
            f"{_ask_for_header(header)}{advice}"
        )
    partial = [name for name in ROI if name not in header]
    if partial and len(partial) < len(ROI):
        raise DataError(f"labels={path}: a region needs all of {', '.join(ROI)}; missing {', '.join(partial)}")
    return _Layout(header, key, spelling, labels, columns, rule, build_schema(labels, columns))


def _check_names(path: Path, header: Sequence[str], columns: Sequence[str], readers: Sequence[str]) -> None:
    """Check that no column occurs twice, in the file or in the settings."""
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise DataError(f"labels={path}: columns are separated by ; or tabs, expected commas")
    twice = [str(i) for i, name in enumerate(header, start=1) if name and header.count(name) > 1]
    if twice:
        raise DataError(
            f"labels={path}: columns {', '.join(twice)} have the name of another column: rename or remove them"
            + _ask_for_header(header)
        )
    taken = [n for n in (*columns, *readers) if n in OWN_COLUMNS or (n in readers and n in columns)]
    taken += [name for name in columns if is_label(name) or name.split("_")[0] == VOTES]
    if taken:
        raise ConfigError(
            f"columns={list(columns)}: {taken[0]} is always read, or is a name that medcls itself uses: remove it"
        )


def _ask_for_header(header: Sequence[str]) -> str:
    if any(name in OWN_COLUMNS or is_label(name) for name in header):
        return ""
    return ", none with a known name: if line 1 is not a header, add one"


def _read_key(path: Path, header: Sequence[str], *, rule: PatientRule) -> tuple[str, str]:
    """Return the column that names the images, and its spelling in this file; blank where there is none."""
    found = [(key, name) for key, spelled in KEYS.items() for name in spelled if name in header]
    if len(found) > 1:
        listed, advice = " and ".join(name for _, name in found), ""
        if any(key == "dicom_patient_id" for key, _ in found):
            advice = ", and rename PatientID to patient_id if it says whose image it is"
        raise DataError(
            f"labels={path}: {listed} all name images, expected one of them: keep {found[0][1]}, the most specific"
            f"{advice}; remove or rename the others"
        )
    if not found:
        return "", ""
    key, spelling = found[0]
    if key != "path" and rule.derives:
        raise ConfigError(
            f"labels={path} names images by {spelling}; patients=per_image and patient_id.pattern work on path: "
            "remove the setting; patient_id or the header's PatientID then says whose images they are"
        )
    if key != "path" and not rule.headers:
        raise DataError(
            f"labels={path} names images by {spelling}, and no headers are read here: name them by path, or give "
            "index=FILE of python -m data_prep.index"
        )
    return key, spelling


def _parse(number: int, cells: Sequence[str], layout: _Layout) -> dict[str, object]:
    """Return one row of the table. Raises ValueError that says what is wrong with it."""
    if len(cells) != len(layout.header):
        raise ValueError(
            f"{len(cells)} cells, but the header has {len(layout.header)}: quote cells that contain commas"
        )
    record = dict(zip(layout.header, cells, strict=True))
    name = _parse_name(record[layout.spelling], layout)
    labels = {label: record[label] or None for label in layout.labels}
    for label, value in labels.items():
        if value is not None and _NO_VALUE.fullmatch(value):
            raise ValueError(f"{label}={value!r}: leave it blank if it is unknown")
    patient = _parse_patient(record.get("patient_id"), name, layout.rule)
    for column, value in {"patient_id": patient, **{c: record[c] for c in (*layout.labels, *layout.columns)}}.items():
        if value and CONTROL.search(value):
            raise ValueError(f"{column} contains a control character or a line break")
    return {
        "number": number,
        layout.key: name,
        "patient_id": patient,
        **labels,
        "split": _parse_code(record, "split", layout.words),
        "sex": _parse_code(record, "sex", layout.words),
        "age_years": _parse_age(record.get("age_years", "")),
        "side": _parse_code(record, "side", layout.words),
        **_parse_roi(record),
        **{column: record[column] or None for column in layout.columns},
    }


def _parse_name(text: str, layout: _Layout) -> str:
    """Return what names the images: a path with / and without detours, or an id as it is."""
    if not text or (layout.key != "path" and _NO_VALUE.fullmatch(text)):
        raise ValueError(f"{layout.spelling} is blank")
    if layout.key != "path":
        return text
    parts = text.replace("\\", "/").split("/")
    if not parts[0] or ".." in parts or _DRIVE.match(text):
        raise ValueError("path leads out of the source folder; expected a path relative to source")
    return "/".join(part for part in parts if part not in ("", ".")) or "."


def _parse_patient(declared: str | None, path: str, rule: PatientRule) -> str | None:
    """Return the patient id; None where only the header can say. A column that is there is filled in every row."""
    if declared is None and not rule.derives:
        return None
    patient = rule.find(path, declared or "")
    if patient and not _NO_VALUE.fullmatch(patient):
        return patient
    if rule.pattern is None:
        raise ValueError("patient_id is blank")
    raise ValueError("patient_id.pattern does not match its path")


def _parse_code(record: dict[str, str], name: str, words: Counter[tuple[str, str]]) -> str | None:
    """Return the code in a column, for a code or a word for it; a wrong value is not shown, since it may be a name."""
    value = record.get(name, "")
    if not value:
        return None
    codes = _CODES[name]
    key = spelling_key(value)
    if key not in codes:
        known = ", ".join(code for code in dict.fromkeys(codes.values()) if code)
        raise ValueError(f"{name}: expected one of {known} or blank")
    if value != codes[key]:
        words[name, value] += 1
    return codes[key]


def _parse_age(text: str) -> float | None:
    if not text:
        return None
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not 0 <= age <= 130:
        raise ValueError("age_years: expected a number from 0 to 130 or blank")
    return age


def _parse_roi(record: dict[str, str]) -> dict[str, int]:
    texts = [record.get(name, "") for name in ROI]
    if not any(texts):
        return {}
    try:
        x, y, width, height = (int(text) for text in texts)
    except ValueError as error:
        raise ValueError("roi_x roi_y roi_w roi_h: expected four whole numbers or four blanks") from error
    if x < 0 or y < 0 or width < 1 or height < 1 or max(x, y, width, height) > _MOST_PIXELS:
        raise ValueError("roi_x roi_y roi_w roi_h: expected x, y >= 0 and w, h >= 1, all below 2^31")
    return dict(zip(ROI, (x, y, width, height), strict=True))
