"""Choose the image files of a source: name patterns (labelling.files, not_files), and the check for masks."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.labels.label_rows import Column
from data_prep.ledger import LEFT_OUT
from medcls.config import LabellingConfig
from medcls.errors import DataError

_MASK_WORDS = frozenset(
    {"mask", "masks", "seg", "segm", "segs", "segmentation", "segmentations", "gt", "groundtruth", "labelmap"}
    | {"annotation", "annotations", "annotated", "contour", "contours", "superpixels", "overlay"}
)
_WORD = re.compile(r"[^\W\d_]+")
_SUFFIX = re.compile(r"(\.nii|\.hdr|\.img)?(\.gz)?(\.[^./]{1,5})?\Z", re.IGNORECASE)
_SEPARATOR = re.compile(r"[_.\s-]+")
_LAST_WORD = re.compile(r"(?s)(.*?)([_.\s-]?)([^\W\d_][^_.\s-]*|)\Z")
_NUMBER = re.compile(r"(?i)(?<![a-z])(t[12])|\d+")
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class FileChoice:
    """The patterns of labelling.files and labelling.not_files.

    Attributes:
        files: Patterns of files to take, "" for all.
        not_files: Patterns of files to leave out.
    """

    files: str = ""
    not_files: str = ""

    @classmethod
    def of(cls, config: LabellingConfig) -> FileChoice:
        """Return the choice of a job."""
        return cls(config.files, config.not_files)

    @property
    def is_set(self) -> bool:
        """Whether the user has chosen."""
        return bool(self.files or self.not_files)

    @property
    def takes_all(self) -> bool:
        """Whether the user takes masks and several files of one scan as images."""
        return self.files == "*"

    def keep(self, paths: Column) -> Any:
        """Return for each path (with /) whether its file is taken."""
        kept: Any = pc.is_valid(paths)
        if self.files:
            kept = pc.match_substring_regex(paths, _compile(self.files))
        if self.not_files:
            kept = pc.and_(kept, pc.invert(pc.match_substring_regex(paths, _compile(self.not_files))))
        return kept

    def ignores(self, folder: str) -> bool:
        """Return whether all files of a folder (with / at its end) are left out."""
        return not self.keep(pa.array([f"{folder}x"])).to_pylist()[0]


def _compile(patterns: str) -> str:
    """Patterns as a regular expression of RE2: * is any text, of a name alone where a pattern has no /."""
    found = []
    for pattern in patterns.split("|"):
        anything = ".*" if "/" in pattern else "[^/]*"
        found.append("".join({"*": anything, "?": "."}.get(c, re.escape(c)) for c in pattern.strip().lstrip("/")))
    return rf"(?is)(?:\A|/)(?:{'|'.join(found)})\z"


def leave_out(paths: Any) -> pa.Table:
    """Return LEFT_OUT of files that the patterns leave out."""
    detail = "set labelling.files or labelling.not_files to leave it out"
    return pa.table([paths, pa.repeat("other_file", len(paths)), pa.repeat(detail, len(paths))], schema=LEFT_OUT)


def check_masks(paths: Column, *, source: str, below: int) -> None:
    """Refuse masks among images: a network would be trained on them as images of their class.

    Args:
        paths: Images, with /.
        source: What the message calls the source.
        below: Number of leading folders (splits, classes) whose names are not looked at.

    Raises:
        DataError: some names have a word such as mask or seg, and others have not.
    """
    patterns: Counter[str] = Counter()
    masks = 0
    for chunk in paths.chunks if isinstance(paths, pa.ChunkedArray) else [paths]:
        for path in map(str, chunk.to_pylist()):
            found = _find_mask_patterns(path.split("/")[below:])
            masks += bool(found)
            patterns.update(found)
    if 0 < masks < len(paths):
        common = [pattern for pattern, _ in patterns.most_common(_SHOWN)]
        raise DataError(
            f"source={source}: {masks} of {len(paths)} images have a name like {', '.join(common)}: they look like "
            "masks of the other images and would be trained on as images: set "
            f"labelling.not_files='{'|'.join(common)}' to leave them out, or labelling.files='*' to take every file"
        )


def _find_mask_patterns(parts: list[str]) -> set[str]:
    """Patterns of the mask words in the folders and the name of a path."""
    *folders, name = parts
    found = {f"*{word}*/*" for folder in folders for word in _find_mask_words(folder)}
    return found | {f"*{word}*" for word in _find_mask_words(_SUFFIX.sub("", name))}


def _find_mask_words(text: str) -> list[str]:
    words = [word.lower() for word in _WORD.findall(text)]
    pairs = [f"{first}*{second}" for first, second in pairwise(words) if first + second in _MASK_WORDS]
    return [word for word in words if word in _MASK_WORDS] + pairs


def is_mask_name(name: str) -> bool:
    """Return whether a folder's name has a word of masks, as "masks" or "Ground Truth"."""
    return bool(_find_mask_words(name))


def find_differing_parts(groups: Iterable[Sequence[str]]) -> list[str]:
    """Return what tells the files of one group apart, if it recurs in other groups: T1w, FLAIR; masks last.

    What occurs in one group only may be an id or a person's name.

    Args:
        groups: Paths of files that one label stands for.
    """
    parts: Counter[str] = Counter()
    for paths in groups:
        words = [_SEPARATOR.split(_SUFFIX.sub("", path.rpartition("/")[2])) for path in paths]
        common = set.intersection(*map(set, words))
        parts.update({"_".join(w for w in each if w not in common) for each in words})
    recurring = [part for part, count in parts.items() if part and count > 1]
    return sorted(recurring, key=lambda part: (is_mask_name(part), part))


def check_companions(paths: Column, *, source: str, below: int) -> None:
    """Refuse several files of one scan (T1w and FLAIR, or channels) among volumes of class folders.

    Args:
        paths: NIfTI files, with /.
        source: What the message calls the source.
        below: Number of leading folders that are splits or classes.

    Raises:
        DataError: files of one folder, or of one name up to its last word, differ in words that recur.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for path in map(str, paths.to_pylist()):
        folder, _, name = path.rpartition("/")
        stem, mark = _LAST_WORD.findall(_SUFFIX.sub("", name))[0][:2]
        if mark or folder.count("/") + 1 > below:
            groups[f"{folder}/{stem}"].append(path)
    several = [each for each in groups.values() if len(each) > 1]
    parts = find_differing_parts(several)
    if len(parts) > 1 and not are_numbered(parts):
        raise DataError(describe_several(f"source={source}: {len(several)} folders or names", parts))


def are_numbered(names: Iterable[str]) -> bool:
    """Return whether names differ in their numbers only, as ses-1 and ses-2 do; T1 and T2 are two kinds of image."""
    return len({_NUMBER.sub(lambda found: found[1] or "", name) for name in names}) == 1


def describe_several(what: str, parts: Sequence[str]) -> str:
    """Return the message of labels that stand for several files each, which differ in `parts`."""
    shown = ", ".join(parts[:_SHOWN]) or "names that occur once"
    example = f"*{parts[0]}.nii*" if parts else "PATTERN.nii*"
    return (
        f"{what} have several NIfTI files under one label, which differ in {shown}: choose one of them with "
        f"labelling.files='{example}', or take every file as an image of that label with labelling.files='*'"
    )
