"""Recognise label texts: equal spellings, words that mean healthy, order of grades, sides of the body."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import pairwise

_PLAIN_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", re.IGNORECASE)
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
    if len(key) <= _LONGEST_NUMBER and _PLAIN_NUMBER.fullmatch(key):
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
    return all(_PLAIN_NUMBER.fullmatch(spelling_key(text)) for text in texts)


def are_measurements(texts: Iterable[str]) -> bool:
    """Return whether labels are values on a scale: all are numbers, and more than 20 of them differ."""
    keys = {spelling_key(text) for text in texts}
    return len(keys) > MOST_NUMBERS and are_numbers(keys)


HEALTHY = frozenset(
    {"normal", "normals", "control", "controls", "cn", "nc", "hc", "benign", "negative", "neg", "healthy", "unaffected"}
    | {"no", "none", "absent", "0", "false", "no finding", "no findings", "normal control", "healthy control"}
    | {"normal controls", "healthy controls", "cognitively normal"}
)
"""Labels that mean healthy, folded as `fold` does: never a positive class unless it is asked for."""

# Each scale from least to most; words of one set mean the same step. Own choice.
_SCALES: tuple[tuple[frozenset[str], ...], ...] = (
    (
        frozenset({"none", "no", "non", "nil", "absent", "negative", "normal", "healthy", "nondemented", "0"}),
        frozenset({"minimal", "trace", "doubtful", "questionable", "very mild", "minor"}),
        frozenset({"mild", "slight", "low"}),
        frozenset({"moderate", "medium", "intermediate"}),
        frozenset({"severe", "high", "marked", "advanced"}),
        frozenset({"very severe", "critical", "extreme", "proliferative", "proliferate"}),
    ),
    (
        frozenset({"normal", "healthy"}),
        frozenset({"benign"}),
        frozenset({"borderline", "atypical", "premalignant", "suspicious"}),
        frozenset({"in situ", "insitu"}),
        frozenset({"malignant", "invasive"}),
    ),
    (
        frozenset({"cn", "nc", "hc", "control", "normal"}),
        frozenset({"smc", "scd"}),
        frozenset({"emci"}),
        frozenset({"mci"}),
        frozenset({"lmci"}),
        frozenset({"ad", "dementia"}),
    ),
    (frozenset({"small"}), frozenset({"medium"}), frozenset({"large"})),
)
_SIDES = frozenset({"left", "right", "sinister", "dexter", "side", "laterality"})
# Too short to be sure of by themselves.
_SIDE_PAIRS = (("l", "r"), ("lt", "rt"), ("os", "od"), ("lh", "rh"))

_ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5, "vi": 6, "vii": 7, "viii": 8, "ix": 9, "x": 10}
_NUMBER = r"-?\d+(?:\.\d+)?"
_NUMBERED = re.compile(rf"(?P<prefix>[^\d<>≤≥+-]*?)(?P<number>{_NUMBER})(?P<letter>[a-d]?)")
_ROMAN_NUMBERED = re.compile(r"(?P<prefix>(?:.*[ ])?)(?P<number>[ivx]+|0)(?P<letter>[a-d]?)")
_BOUND = r"\d+(?:\.\d+)?"
_INTERVAL = re.compile(
    rf"(?P<sign><=?|>=?|≤|≥)\s*(?P<bound>{_BOUND})"
    rf"|(?P<low>{_BOUND})\s*(?:-|–|to)\s*(?P<high>{_BOUND})"
    rf"|(?P<open>{_BOUND})\s*\+"
    rf"|(?P<point>{_BOUND})"
)


def fold(label: str) -> str:
    """Return a label in one spelling, with spaces for _ and -; numbers keep their sign."""
    key = spelling_key(label)
    return key if are_numbers([key]) else " ".join(re.sub(r"[_-]+", " ", key).split())


def is_healthy(name: str) -> bool:
    """Return whether a class name means healthy; a class that joins labels ("NC+control") does if all of them do."""
    return all(fold(part) in HEALTHY for part in name.split("+"))


def find_sides(names: Iterable[str]) -> list[str]:
    """Return the names that contain a side of the body as a word of its own: "left", "eye side", "laterality".

    Short words count in pairs: L with R, OS with OD.
    """
    words = {name: set(split_words(name)) for name in names}
    every = set().union(*words.values())
    sides = _SIDES.union(*(pair for pair in _SIDE_PAIRS if set(pair) <= every))
    return [name for name, found in words.items() if found & sides]


def split_words(name: str) -> list[str]:
    """Return the words of a name in lower case, also those of VeryMildDemented."""
    return re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name)).lower())


def find_order(labels: Sequence[str]) -> list[str] | None:
    """Return the labels from least to most where their numbers leave no doubt; None otherwise.

    No doubt: plain numbers; the same words around one number (KL0 … KL4, "grade 1", T1a, T1b, T2); Roman numbers (I,
    II, "stage IIIa"); bounds that do not overlap ("<10", "10-29", ">=30"). A stage beside its own parts (T1, T1a) has
    no place among them.

    Source: own choice.
    """
    for rank in (_rank_plain, _rank_numbered, _rank_roman, _rank_intervals):
        ranks = rank(labels)
        if ranks is not None:
            return [label for _, label in sorted(zip(ranks, labels, strict=True))]
    return None


def propose_order(labels: Sequence[str]) -> list[str] | None:
    """Return the labels from least to most where each is another step of one known scale; None otherwise."""
    for scale in _SCALES:
        steps = [_find_step(label, scale) for label in labels]
        known = [step for step in steps if step is not None]
        if len(set(known)) == len(labels):
            return [label for _, label in sorted(zip(known, labels, strict=True))]
    return None


def sort_key(label: str) -> tuple[int, float, str]:
    """Return the key that sorts numbers by value, before words by the alphabet."""
    try:
        return 0, float(label), label
    except ValueError:
        return 1, 0.0, label


def _find_step(label: str, scale: Sequence[frozenset[str]]) -> int | None:
    """The only step that the label names: "No_DR", "VeryMildDemented"; None for "mild to moderate" and "not mild"."""
    text = f" {' '.join(split_words(label))} "
    steps = set()
    for word, step in sorted(((w, i) for i, words in enumerate(scale) for w in words), key=lambda one: -len(one[0])):
        if f" {word} " in text:
            # "very mild" is no "mild".
            steps.add(step)
            text = text.replace(f" {word} ", "  ")
    return steps.pop() if len(steps) == 1 and " not " not in text else None


Ranks = list[tuple[float, ...]]


def _rank_plain(labels: Sequence[str]) -> Ranks | None:
    keys = [sort_key(label) for label in labels]
    return [(value,) for _, value, _ in keys] if all(kind == 0 for kind, _, _ in keys) else None


def _rank_numbered(labels: Sequence[str]) -> Ranks | None:
    matches = [_NUMBERED.fullmatch(fold(label)) for label in labels]
    found = [match for match in matches if match]
    return _rank_lettered([(m["prefix"], float(m["number"]), m["letter"]) for m in found], size=len(labels))


def _rank_roman(labels: Sequence[str]) -> Ranks | None:
    matches = [_ROMAN_NUMBERED.fullmatch(fold(label)) for label in labels]
    found = [match for match in matches if match and (match["number"] == "0" or match["number"] in _ROMAN)]
    # "I" and "V" alone are letters as well.
    if not any(len(match["number"]) > 1 for match in found):
        return None
    parts = [(m["prefix"], float(_ROMAN.get(m["number"], 0)), m["letter"]) for m in found]
    return _rank_lettered(parts, size=len(labels))


def _rank_lettered(parts: Sequence[tuple[str, float, str]], *, size: int) -> Ranks | None:
    if len(parts) < size or len({prefix for prefix, _, _ in parts}) > 1 or len(set(parts)) < size:
        return None
    bare = {number for _, number, letter in parts if not letter}
    if any(letter and number in bare for _, number, letter in parts):
        return None
    return [(number, float(ord(letter)) if letter else 0.0) for _, number, letter in parts]


def _rank_intervals(labels: Sequence[str]) -> Ranks | None:
    folded = [re.sub(r"\s+", " ", unicodedata.normalize("NFKC", label)).strip().lower() for label in labels]
    # One unit or name may be around all of them: "<10 mm", "age 10-29".
    around = {re.sub(rf"{_BOUND}|[<>=≤≥+–-]|\bto\b", "", text).strip() for text in folded}
    if len(around) > 1:
        return None
    unit = re.escape(next(iter(around), ""))
    bare = [re.sub(rf"^{unit}\s*|\s*{unit}$", "", text) for text in folded]
    bounds: Ranks = []
    for text in bare:
        match = _INTERVAL.fullmatch(text)
        if match is None:
            return None
        bounds.append(_read_bounds(match))
    ends = sorted(bounds)
    apart = all(high <= low for (_, high), (low, _) in pairwise(ends))
    return bounds if apart and len(set(ends)) == len(labels) else None


def _read_bounds(match: re.Match[str]) -> tuple[float, float]:
    if match["sign"]:
        bound = float(match["bound"])
        return (float("-inf"), bound) if match["sign"][0] in "<≤" else (bound, float("inf"))
    if match["low"]:
        return float(match["low"]), float(match["high"])
    if match["open"]:
        return float(match["open"]), float("inf")
    return float(match["point"]), float(match["point"])
