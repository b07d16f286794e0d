"""When several spellings are one label: spaces, upper and lower case, Unicode forms, and the same number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from decimal import Decimal

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", re.IGNORECASE)
_LONGEST_NUMBER = 24
# Numbers with more different values than this are a measurement, not classes.
MOST_NUMBERS = 20


def spelling_key(text: str) -> str:
    """Return the text that all spellings of one label share, such as "normal" for "Normal" and "normal ".

    Compatible Unicode forms, upper and lower case, kinds and numbers of spaces, and invisible characters do not
    count; numbers are compared by value, so that 1, 1.0 and 01 are one label.

    Source: Unicode Standard Annex 15 (NFKC) and section 3.13 (case folding); numbers are our own choice,
    docs/decisions/0037.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    key = _drop_invisible(folded)
    if len(key) <= _LONGEST_NUMBER and _NUMBER.fullmatch(key):
        value = Decimal(key)
        return str(value.normalize()) if value else "0"
    return key


def clean_label(text: str) -> str:
    """Return a label as tables and figures show it: composed (NFC), single spaces, nothing invisible."""
    return _drop_invisible(unicodedata.normalize("NFC", text))


def _drop_invisible(text: str) -> str:
    return " ".join("".join(c for c in text if unicodedata.category(c) != "Cf").split())


def name_labels(counts: Mapping[str, int]) -> dict[str, str]:
    """Return the one name of each spelling: the most frequent spelling of its label, cleaned.

    Args:
        counts: Spelling -> how often it occurs, in any order. Of equally frequent spellings the first by code points
            is kept ("Normal" before "normal"), so that the order of rows does not matter.
    """
    frequency: dict[str, dict[str, int]] = {}
    for text, count in counts.items():
        of_label = frequency.setdefault(spelling_key(text), {})
        cleaned = clean_label(text)
        of_label[cleaned] = of_label.get(cleaned, 0) + count
    kept = {key: min(of_label, key=lambda text: (-of_label[text], text)) for key, of_label in frequency.items()}
    return {text: kept[spelling_key(text)] for text in counts}


def are_numbers(texts: Iterable[str]) -> bool:
    """Return whether all labels are numbers."""
    return all(_NUMBER.fullmatch(spelling_key(text)) for text in texts)


def are_measurements(texts: Iterable[str]) -> bool:
    """Return whether labels are values on a scale: all are numbers, and more than 20 of them differ."""
    keys = {spelling_key(text) for text in texts}
    return len(keys) > MOST_NUMBERS and are_numbers(keys)
