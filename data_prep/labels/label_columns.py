"""One label column while its values are read: spellings, uncertain and blank values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.config import LabellingConfig
from medcls.console import say
from medcls.data.columns import Codes, code_column
from medcls.data.label_words import are_measurements, are_numbers, clean_label, name_labels, spelling_key
from medcls.errors import DataError
from medcls.identity import format_count, list_first

# How files spell "the reader was not sure", by spelling_key: CheXpert and MIMIC-CXR write -1 and -1.0.
UNCERTAIN = ("-1", "u", "uncertain", "?")
FLAGS = ("0", "1")
# Fewer different texts than this are accepted whatever the number of rows.
_FEW_CLASSES = 5
_SHOWN = 5


@dataclass(slots=True)
class LabelColumn:
    """A label column while its values are read.

    Attributes:
        name: Name of the column.
        codes: Its texts; blank is -1.
        is_flag: The column says yes or no: apart from uncertain values it has only 0 and 1.
        blank: (N,): the rows that are blank in the file.
        undecided: (N,): the rows whose target is half and half (labelling.uncertain=0.5); -1 in `codes`.
        record: What was read how, for labels.json.
    """

    name: str
    codes: Codes
    is_flag: bool
    blank: NDArray[np.bool_]
    undecided: NDArray[np.bool_]
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How often each text occurs."""
        counts = np.bincount(self.codes.values[self.codes.values >= 0], minlength=len(self.codes.texts))
        return dict(zip(map(str, self.codes.texts.to_pylist()), counts.tolist(), strict=True))

    def rename(self, names: Mapping[str, str | None]) -> None:
        """Replace texts by others, or by blank."""
        kept = sorted({name for name in names.values() if name is not None})
        place: dict[str | None, int] = {name: number for number, name in enumerate(kept)} | {None: -1}
        places = [place[names[text]] for text in self.counts]
        self.codes = Codes(np.array([*places, -1], dtype=np.int32)[self.codes.values], pa.array(kept, pa.string()))

    def fill(self, rows: NDArray[np.bool_], text: str) -> None:
        """Write one text into some rows."""
        texts = list(dict.fromkeys([*self.counts, text]))
        values = self.codes.values.copy()
        values[rows] = texts.index(text)
        self.codes = Codes(values, pa.array(texts, pa.string()))

    def spell_flag(self, flag: str) -> str:
        """Return how the column spells 0 or 1."""
        known = {spelling_key(text): text for text in self.counts}
        usual = flag
        if any(text.endswith(".0") for text in known.values()):
            usual = f"{flag}.0"
        return known.get(flag, usual)

    def to_arrow(self) -> Any:
        """Return the column; unknown is null."""
        places: Any = pa.array(self.codes.values, mask=self.codes.values < 0)
        return self.codes.texts.take(places)


def open_column(labels: pa.Table, name: str) -> LabelColumn:
    """Return a label column as it is in the file."""
    codes = code_column(labels.column(name))
    keys = {spelling_key(str(text)) for text in codes.texts.to_pylist()} - set(UNCERTAIN)
    is_flag = keys <= set(FLAGS) and (bool(keys) or name != "label")
    return LabelColumn(name, codes, is_flag, codes.values < 0, np.zeros(len(codes.values), dtype=np.bool_))


def check_are_classes(column: LabelColumn, config: LabellingConfig, *, patients: int, unit: str) -> None:
    """Check that a column holds classes or numbers; what it holds instead may be names, so it is not shown.

    Args:
        column: Column as it is in the file.
        config: The limit.
        patients: Number of patients in the file, or of rows if it does not name them.
        unit: What a row is called.

    Raises:
        DataError: more different texts than labelling.max_classes, or than half of the patients.
    """
    name, counts = column.name, column.counts
    labels = {spelling_key(text) for text in counts}
    rows = sum(counts.values())
    if len(labels) > config.max_classes and not are_measurements(counts):
        raise DataError(
            f"{name}: {len(labels)} different texts in {rows} {unit} (expected at most "
            f"labelling.max_classes={config.max_classes}); they are not shown, since they may be names or free text: "
            "correct the column, or set labelling.max_classes"
        )
    if len(labels) > max(_FEW_CLASSES, min(rows, patients) / 2) and not are_numbers(counts):
        raise DataError(
            f"{name}: {len(labels)} different texts in {rows} {unit} of {patients} patients (expected at most half as "
            "many as patients); they are not shown, since they may be names or free text: name the column of classes "
            "label, or add patients"
        )


def check_uncertain(columns: Sequence[LabelColumn], config: LabellingConfig, *, unit: str) -> None:
    """Check that it is known how to read the uncertain values of 0/1 columns; in others they are a class, as is said.

    Raises:
        DataError: there are some, and labelling.uncertain is not set; columns, values and counts are named.
    """
    asked, read = [], []
    for column in columns:
        counts = sorted(_count_uncertain(column).items())
        if not counts:
            continue
        texts = ", ".join(f"{text!r} in {_count(count, unit)}" for text, count in counts)
        listed = f"{column.name} ({texts})"
        if column.is_flag:
            asked.append(listed)
        elif config.uncertain != "unknown" and not are_measurements(column.counts):
            read.append(listed)
    if asked and config.uncertain is None:
        raise DataError(
            f"uncertain values in {len(asked)} label columns: {list_first(asked, _SHOWN, 'columns')}: set "
            "labelling.uncertain=unknown, 0, 1, or 0.5 (a target of one half in training, unknown everywhere else)"
        )
    for listed in read:
        say(
            f"notice: {listed} is read as a class, since the column has other values than 0 and 1; "
            "labelling.uncertain=unknown reads it as unknown"
        )


def _count_uncertain(column: LabelColumn) -> dict[str, int]:
    return {text: count for text, count in column.counts.items() if spelling_key(text) in UNCERTAIN}


def _count(number: int, unit: str) -> str:
    return format_count(number, unit.removesuffix("s"))


def merge_spellings(columns: Sequence[LabelColumn], config: LabellingConfig, *, unit: str) -> None:
    """Give each label its most frequent spelling, in one column or in several with the same classes.

    Raises:
        DataError: there are several spellings, under labelling.strict.
    """
    counts: Counter[str] = Counter()
    for column in columns:
        counts.update(column.counts)
    if are_measurements(counts):
        return
    name, names = ", ".join(column.name for column in columns), name_labels(counts)
    merged: dict[str, dict[str, int]] = {}
    for kept in sorted(set(names.values())):
        spellings = sorted((text for text in counts if names[text] == kept), key=lambda text: (-counts[text], text))
        if len(spellings) == 1:
            continue
        merged[kept] = {text: counts[text] for text in spellings}
        looks = Counter(map(clean_label, spellings))
        listed = []
        for text in spellings:
            # Unicode forms and invisible characters make spellings that look the same.
            shown = ascii(text) if looks[clean_label(text)] > 1 else repr(text)
            listed.append(f"{shown} ({_count(counts[text], unit)})")
        if config.strict:
            raise DataError(
                f"labelling.strict=true: {name} has one class in {len(spellings)} spellings: {', '.join(listed)}: "
                "spell it the same everywhere, or set labelling.strict=false"
            )
        say(
            f"notice: {name}: {', '.join(listed[:-1])} and {listed[-1]} are read as one class, {kept}; "
            "labelling.strict=true refuses"
        )
    for column in columns:
        column.rename({text: names[text] for text in column.counts})
        if merged:
            column.record["spellings"] = merged


def read_uncertain(column: LabelColumn, config: LabellingConfig) -> None:
    """Read the uncertain values as labelling.uncertain says."""
    texts = list(_count_uncertain(column))
    as_flag = config.uncertain in (*FLAGS, "0.5")
    if config.uncertain is None or not texts or (as_flag and not column.is_flag) or are_measurements(column.counts):
        return
    rows = np.isin(column.codes.values, [i for i, text in enumerate(column.counts) if text in texts])
    column.rename({text: None if text in texts else text for text in column.counts})
    if config.uncertain in FLAGS:
        column.fill(rows, column.spell_flag(config.uncertain))
    if config.uncertain == "0.5":
        column.undecided = rows
    column.record["uncertain"] = {"rows": int(rows.sum()), "read_as": config.uncertain}


def read_blank(column: LabelColumn, config: LabellingConfig) -> None:
    """Read the blank values as labelling.blank says; only a 0/1 column can read them as 0."""
    read_as = "unknown"
    if column.is_flag:
        read_as = config.blank
    if column.blank.any() and read_as == "0":
        column.fill(column.blank, column.spell_flag("0"))
    column.record["blank"] = {"rows": int(column.blank.sum()), "read_as": read_as}


def say_values(columns: Sequence[LabelColumn], *, readers: Container[str] = (), unit: str) -> None:
    """Print how many uncertain and blank values were read how; a blank of `readers` is no vote, so 0 is not offered."""
    flags = any(column.is_flag and column.blank.any() and column.name not in readers for column in columns)
    for kind in ("uncertain", "blank"):
        by_reading: dict[str, list[str]] = {}
        for column in columns:
            found = column.record.get(kind, {"rows": 0})
            if found["rows"]:
                by_reading.setdefault(found["read_as"], []).append(f"{column.name} ({_count(found['rows'], unit)})")
        for read_as, names in sorted(by_reading.items()):
            hint = ""
            if flags and (kind, read_as) == ("blank", "unknown"):
                hint = "; labelling.blank=0 reads blanks of 0/1 columns as 0"
            say(f"notice: {kind} labels are read as {read_as}: {list_first(names, _SHOWN, 'columns')}{hint}")
