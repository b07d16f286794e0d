"""labels.csv or class-named folders to label rows; all bad rows are reported at once."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from medcls.config import SPLITS, nearest
from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.imaging.preprocess import Box

_ROI = ("roi_x", "roi_y", "roi_w", "roi_h")
_KNOWN = ("path", "patient_id", "label", "split", "sex", "age_years", "side", *_ROI)
# How programs spell "no value". "none" may be a grade (none, mild, severe); "None" is Python's.
_NO_VALUE = re.compile(r"None|(?i:nan|na|n/a|#n/a|null|[+-]?inf)")
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One image to classify: a file, or a region of one.

    Attributes:
        number: Line of the labels file, 1 = header; 0 for class-named folders.
        path: Relative to the source folder, with /.
        patient_id: As declared.
        labels: Column name ("label" or "label_NAME") -> value; None = unknown.
        split: "train", "val", "test" or None.
        sex: "M", "F", "O" or None.
        age_years: Years, or None.
        side: "L", "R" or None.
        roi: (x, y, width, height) in pixels of the file, or None for the whole image.
        extra: Further columns asked for by columns=[…].
    """

    number: int
    path: str
    patient_id: str
    labels: dict[str, str | None]
    split: str | None = None
    sex: str | None = None
    age_years: float | None = None
    side: str | None = None
    roi: Box | None = None
    extra: dict[str, str | None] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names the image: its path, and its region where it has one."""
        return self.path if self.roi is None else "{}@{},{},{},{}".format(self.path, *self.roi)


@dataclass(frozen=True, slots=True)
class PatientRule:
    """Where the patient id comes from: the column, a pattern on the path, or every image for itself."""

    patients: str = "declared"
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.pattern is not None and self.patients != "declared":
            raise ConfigError(f"patient_id.pattern with patients={self.patients}: leave one of the two out")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ConfigError(f"patient_id.pattern={self.pattern!r} is no regular expression: {error}") from error
            if groups < 1:
                raise ConfigError(f"patient_id.pattern={self.pattern!r}: expected one group, as in '^([0-9]+)'")

    @property
    def needs_column(self) -> bool:
        """No rule derives the patient, so the labels file has to name it."""
        return self.pattern is None and self.patients == "declared"

    def find(self, path: str, declared: str) -> str:
        """Returns the patient id of one image; "" where the pattern does not match."""
        if self.patients == "per_image":
            return path
        if self.pattern is None:
            return declared
        match = re.search(self.pattern, path)
        return (match.group(1) or "") if match else ""


def read_labels(
    path: Path,
    *,
    source: Path,
    rule: PatientRule,
    columns: Sequence[str] = (),
    show: Callable[[str], str] = str,
) -> list[LabelRow]:
    """Returns the rows of a labels file, in its order.

    Args:
        path: CSV, UTF-8, with a header.
        source: The folder that paths are relative to.
        rule: Where patient ids come from.
        columns: Further columns to keep.
        show: What an error message may show of a path.

    Raises:
        MissingInputError: no such file, or paths that do not exist.
        DataError: missing columns, bad values, paths that leave `source`; every bad row is counted, ten are shown.
    """
    records, header = _read_csv(path)
    _check_header(path, header, rule=rule, columns=columns)
    label_columns = [name for name in header if name == "label" or name.startswith("label_")]
    rows: list[LabelRow] = []
    problems: list[str] = []
    missing = 0
    root = source.resolve()
    for number, cells in records:
        try:
            if len(cells) != len(header):
                raise ValueError(f"{len(cells)} cells where the header has {len(header)}; quote cells that hold commas")
            record = dict(zip(header, cells, strict=True))
            row = _parse(number, record, label_columns=label_columns, rule=rule, columns=columns)
            absent = _check_path(row, root)
            missing += absent
            if absent:
                problems.append(f"row {number}: no file {show(row.path)}")
            rows.append(row)
        except ValueError as error:
            problems.append(f"row {number}: {error}")
    problems += _check_together(rows)
    if problems:
        only_missing = missing == len(problems)
        raise (MissingInputError if only_missing else DataError)(
            f"labels={path}: {len(problems)} bad rows of {len(records)}: {'; '.join(problems[:_SHOWN])}"
            + (f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else "")
            + (f" (paths are relative to source={source})" if missing else "")
        )
    if not rows:
        raise DataError(f"labels={path} has a header and no rows")
    return rows


def _read_csv(path: Path) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """The filled lines with their numbers, and the header."""
    if not path.is_file():
        raise MissingInputError(f"labels={path} is missing, or no file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
            return lines[1:], lines[0][1] if lines else []
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"labels={path} is not CSV in UTF-8: {error}") from error


def _check_header(path: Path, header: Sequence[str], *, rule: PatientRule, columns: Sequence[str]) -> None:
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise DataError(f"labels={path}: columns are separated by ; or tabs, expected commas")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"labels={path}: columns {', '.join(twice)} stand in it twice; expected once")
    if "patient_id" in header and not rule.needs_column:
        raise ConfigError(
            f"labels={path} has patient_id, and patients=per_image or patient_id.pattern would overrule it: "
            "leave the setting out, or rename the column"
        )
    needed = ["path", *(["patient_id"] if rule.needs_column else []), *columns]
    missing = [name for name in needed if name not in header]
    if not any(name == "label" or name.startswith("label_") for name in header):
        missing.append("label (or label_NAME)")
    if missing:
        others = [name for name in header if name not in _KNOWN]
        listed = ", ".join(name + nearest(name.split(" ")[0], others) for name in missing)
        advice = (
            "; patients=per_image or patient_id.pattern=REGEX replace patient_id" if "patient_id" in missing else ""
        )
        raise DataError(f"labels={path}: missing columns {listed}; it has {', '.join(header) or 'none'}{advice}")
    partial = [name for name in _ROI if name not in header]
    if partial and len(partial) < len(_ROI):
        raise DataError(f"labels={path}: a region needs all of {', '.join(_ROI)}; missing {', '.join(partial)}")


def _parse(
    number: int,
    record: dict[str, str],
    *,
    label_columns: Sequence[str],
    rule: PatientRule,
    columns: Sequence[str],
) -> LabelRow:
    """Raises ValueError that says what is wrong with this row."""
    path = _parse_path(record.get("path", ""))
    patient = rule.find(path, record.get("patient_id", ""))
    if not patient or _NO_VALUE.fullmatch(patient):
        raise ValueError(
            "patient_id is blank" if rule.pattern is None else "patient_id.pattern does not match its path"
        )
    labels = {name: record.get(name, "") or None for name in label_columns}
    for name, value in labels.items():
        if value is not None and _NO_VALUE.fullmatch(value):
            raise ValueError(f"{name}={value!r}: leave it blank where it is unknown")
    return LabelRow(
        number=number,
        path=path,
        patient_id=patient,
        labels=labels,
        split=_parse_choice(record, "split", SPLITS),
        sex=_parse_choice(record, "sex", ("M", "F", "O")),
        age_years=_parse_age(record.get("age_years", "")),
        side=_parse_choice(record, "side", ("L", "R")),
        roi=_parse_roi(record),
        extra={name: record.get(name, "") or None for name in columns},
    )


def _parse_path(text: str) -> str:
    path = PurePosixPath(text.replace("\\", "/"))
    if not text:
        raise ValueError("path is blank")
    if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:", text):
        raise ValueError("path leaves the source folder; expected a path relative to source")
    return str(path)


def _parse_choice(record: dict[str, str], name: str, known: Sequence[str]) -> str | None:
    value = record.get(name, "")
    if value and value not in known:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)} or blank")
    return value or None


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


def _parse_roi(record: dict[str, str]) -> Box | None:
    texts = [record.get(name, "") for name in _ROI]
    if not any(texts):
        return None
    try:
        x, y, width, height = (int(text) for text in texts)
    except ValueError as error:
        raise ValueError("roi_x roi_y roi_w roi_h: expected four whole numbers or four blanks") from error
    if x < 0 or y < 0 or width < 1 or height < 1:
        raise ValueError(f"roi x={x} y={y} w={width} h={height}: expected x, y >= 0 and w, h >= 1")
    return x, y, width, height


def _check_path(row: LabelRow, root: Path) -> bool:
    """Returns whether the file is missing; raises ValueError where a link leads to it.

    A link out of the source reads somebody else's files; one inside gives a file two names.
    """
    file = (root / row.path).resolve()
    if not file.is_relative_to(root):
        raise ValueError("path is a link that leaves the source folder")
    if file != root / row.path:
        raise ValueError("path is or passes a symbolic link; expected the file itself")
    return not file.is_file()


def _check_together(rows: Sequence[LabelRow]) -> list[str]:
    counts = Counter(row.key for row in rows)
    problems = [f"row {row.number}: the same image and region as another row" for row in rows if counts[row.key] > 1]
    given = [row for row in rows if row.split is not None]
    if given and len(given) < len(rows):
        problems += [f"row {row.number}: split is blank; fill all or none" for row in rows if row.split is None]
    return problems


def read_class_folders(source: Path, *, files: Iterable[str], rule: PatientRule) -> list[LabelRow]:
    """Returns a row for each image of a source whose first-level folders are the classes.

    Args:
        source: For messages.
        files: Relative paths of the image files.
        rule: Where patient ids come from; the "declared" rule has nothing to read here.

    Raises:
        ConfigError: no rule for the patients; guessing would leak.
        DataError: images outside class folders, fewer than two classes, an empty class, or no match.
    """
    if rule.needs_column:
        raise ConfigError(
            "without labels=FILE.csv the patients are unknown and a guess would leak between splits: give "
            "patient_id.pattern=REGEX (one group, matched on the path), or patients=per_image where every image "
            "is another patient"
        )
    paths = sorted(files)
    outside = [path for path in paths if "/" not in path]
    if outside:
        raise DataError(f"{len(outside)} images lie outside class folders in source={source}: give labels=FILE.csv")
    classes = sorted({path.split("/")[0] for path in paths})
    empty = sorted(p.name for p in source.iterdir() if p.is_dir() and p.name not in classes and p.name[0] != ".")
    if empty:
        raise DataError(f"class folders without an image: {', '.join(empty)}; fill or remove them")
    if len(classes) < 2:
        raise DataError(f"source={source} has {len(classes)} class folders with images; expected at least 2")
    rows = [
        LabelRow(number=0, path=path, patient_id=rule.find(path, ""), labels={"label": path.split("/")[0]})
        for path in paths
    ]
    unmatched = sum(not row.patient_id for row in rows)
    if unmatched:
        raise DataError(f"patient_id.pattern={rule.pattern!r} does not match {unmatched} of {len(rows)} paths")
    return rows
