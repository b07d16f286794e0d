"""Guess which folder levels of a source are splits, classes and patients; refuse if several readings fit."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from data_prep.file_choice import is_mask_name
from medcls.errors import DataError
from medcls.identity import format_count

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Words for a split, of folders and of the column split."""
_BESIDE_SPLIT = frozenset({"set", "data", "dataset", "image", "images", "img", "imgs", "split", "folder"})
# Words of other names, too: normal development, valid.
_ALONE = frozenset({"valid", "dev", "development"})
# Archives come in parts: HAM10000_images_part_1, images_001, subset0.
_PARTS = frozenset({"part", "subset", "batch", "chunk", "fold", "volume", "disc", "disk", "archive", "images", "data"})
# More names at a level are patients, series or dates; fewer are listed in a message.
_MOST_CLASSES = 30
_SHOWN = 6
_FEWEST_IMAGES = 5
_ORDINALS = ("first", "second", "third")

Folder = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the folders are taken for.

    Attributes:
        layout: As labelling.layout spells it.
        base: Folders around all others, one inside the other; images below them.
        copy: Folder that holds all others of `base` a second time, or None.
    """

    layout: str
    base: Folder = ()
    copy: Folder | None = None


def find_split(name: str) -> str:
    """Return train, val or test for a folder's name in any spelling ("Training_Set", "dev"), "" for another name.

    "stage_2_train_images" and "seg_test" are splits, too: a name with one word out of train, val or test.
    """
    words = [word for word in re.split(r"[\W_]+", name.casefold()) if word]
    rest = [word for word in words if word not in _BESIDE_SPLIT]
    if len(rest) == 1:
        return SPLIT_WORDS.get(rest[0], "")
    named = [word for word in words if word in SPLIT_WORDS and word not in _ALONE]
    return SPLIT_WORDS[named[0]] if len(named) == 1 else ""


def guess_layout(images: Mapping[str, int], *, source: str) -> Reading:
    """Return the one reading of the folders that fits.

    Args:
        images: Images by folder (path with /, "" for the source itself), each above 0.
        source: What messages call the source.

    Raises:
        DataError: images outside class folders, or several readings; the message has each with its setting.
    """
    folders = {tuple(path.split("/")) if path else (): count for path, count in images.items()}
    base: Folder = ()
    while _is_wrapper(folders):
        top = next(iter(folders))[0]
        base, folders = (*base, top), {folder[1:]: count for folder, count in folders.items()}
    copy = _find_copy(folders)
    if copy is not None:
        folders = {folder: count for folder, count in folders.items() if folder[0] != copy}
    here = _Here(source, "*/" * len(base))
    layout = here.read(folders)
    return Reading(layout, base, None if copy is None else (*base, copy))


def _is_wrapper(folders: Mapping[Folder, int]) -> bool:
    """Return whether one folder holds all others and splits are further down: how archives unpack."""
    tops = {folder[:1] for folder in folders}
    if len(tops) != 1 or any(len(folder) < 2 for folder in folders):
        return False
    (top,) = tops
    if find_split(top[0]):
        return False
    inner = {folder[1:]: count for folder, count in folders.items()}
    return any(find_split(folder[0]) for folder in inner) or _is_wrapper(inner)


def _find_copy(folders: Mapping[Folder, int]) -> str | None:
    """Return the folder that holds the split folders beside it a second time, or None."""
    tops = {folder[0] for folder in folders if folder}
    others = [top for top in tops if not find_split(top)]
    if len(others) != 1 or len(tops) < 2:
        return None
    inside = {folder[1:]: n for folder, n in folders.items() if folder[:1] == (others[0],)}
    return others[0] if inside == {folder: n for folder, n in folders.items() if folder[:1] != (others[0],)} else None


@dataclass(frozen=True, slots=True)
class _Here:
    """Where a reading begins: the source, and the levels around all folders as a layout spells them."""

    source: str
    around: str

    def read(self, folders: Mapping[Folder, int]) -> str:
        """Return the layout of these folders, or a refusal."""
        outside = folders.get((), 0)
        if outside:
            raise DataError(
                f"source={self.source}: {format_count(outside, 'image')} outside class folders: give labels=FILE.csv, "
                "move them into class folders, or leave them out with labelling.not_files=PATTERN"
            )
        splits = {folder[0] for folder in folders if find_split(folder[0])}
        others = {folder[0] for folder in folders} - splits
        if splits and others:
            shown = _list_names(splits, most=_SHOWN, level=0)
            self._refuse(
                f"{format_count(len(splits), 'folder')} named like splits ({shown}) and "
                f"{format_count(len(others), 'other folder')} are side by side",
                [
                    ("each of them is a class", "class"),
                    (
                        "the splits contain the classes, with labelling.not_files='FOLDER/*' for the others",
                        "split/class",
                    ),
                ],
            )
        if splits:
            return self._read_splits(folders)
        seconds = {folder[1] for folder in folders if len(folder) > 1}
        if any(map(find_split, seconds)):
            return self._read_inner_splits(folders)
        return self._read_classes(folders, before="")

    def _read_splits(self, folders: Mapping[Folder, int]) -> str:
        train = {folder for folder in folders if find_split(folder[0]) == "train"}
        if not train:
            raise DataError(
                f"source={self.source}: the first-level folders are splits, but none is train: add a train folder, or "
                "give labels=FILE.csv"
            )
        direct = sum(folders[folder] for folder in train if len(folder) == 1)
        if direct:
            raise DataError(
                f"source={self.source}: {format_count(direct, 'image')} directly in the train folder, so no folder "
                "names their class: give labels=FILE.csv, or move them into class folders"
            )
        inner: dict[Folder, int] = defaultdict(int)
        for folder in train:
            inner[folder[1:]] += folders[folder]
        return self._read_classes(inner, before="split/")

    def _read_inner_splits(self, folders: Mapping[Folder, int]) -> str:
        """First-level folders that hold splits: classes, where no deeper folders could be the classes instead."""
        whole = all(len(folder) > 1 and find_split(folder[1]) for folder in folders)
        below = {(folder[0], *folder[2:]): count for folder, count in folders.items() if len(folder) > 2}
        if whole and not below:
            return f"{self.around}class/split"
        firsts = {folder[0] for folder in folders}
        self._refuse(
            f"{format_count(len(firsts), 'first-level folder')} contain folders named like splits"
            + ("" if whole else ", not all of them"),
            [
                ("the first-level folders are the classes", "class/split"),
                ("the folders below the splits are the classes", "*/split/class"),
                ("the first-level folders are the classes and no folder is a split", "class"),
            ],
        )

    def _read_classes(self, folders: Mapping[Folder, int], *, before: str) -> str:
        """Return the first level as classes, where no deeper level could be the classes instead."""
        firsts = {folder[0] for folder in folders}
        depth = max(map(len, folders), default=0)
        recurring = {level: names for level in range(1, depth) if (names := _find_vocabulary(folders, level))}
        if recurring:
            above = f"{self.around}{before}".count("/")
            most = max(3, *map(len, recurring.values()))
            readings = [(f"{_list_names(firsts, most=most, level=above)} are the classes", f"{before}class")]
            for level, parents in recurring.items():
                # A name under one parent only may be a person's.
                most = _SHOWN if min(parents.values()) > 1 else 0
                listed = _list_names(parents, most=most, level=above + level)
                readings.append((f"{listed} are the classes", f"{before}{'*/' * level}class"))
            hint = f" (add /patient if the next folders are patients, as in {before}class/patient)"
            self._refuse("the same folder names recur on a deeper level", readings, hint=hint)
        if _are_parts(firsts):
            raise DataError(
                f"source={self.source}: the {len(firsts)} first-level folders look like parts of one collection, "
                f"not like classes: give labels=FILE.csv, or set labelling.layout={self.around}{before}class if each "
                "folder is a class"
            )
        images = sum(folders.values())
        if len(firsts) > 20 and images < _FEWEST_IMAGES * len(firsts):
            raise DataError(
                f"source={self.source}: {len(firsts)} folders hold {images} images: they look like patients, not "
                "like classes: give labels=FILE.csv with a class for each, or set "
                f"labelling.layout={self.around}{before}class if each folder is a class"
            )
        return f"{self.around}{before}class"

    def _refuse(self, found: str, readings: Iterable[tuple[str, str]], *, hint: str = "") -> NoReturn:
        listed = "; ".join(f"set labelling.layout={self.around}{layout} if {what}" for what, layout in readings)
        raise DataError(f"source={self.source}: {found}, so the classes are ambiguous: {listed}{hint}")


def _find_vocabulary(folders: Iterable[Folder], level: int) -> dict[str, int]:
    """Parents by name of a level (0 is the first) whose names recur as those of classes do, else nothing."""
    parents: dict[str, set[Folder]] = defaultdict(set)
    for folder in folders:
        if len(folder) > level and not is_mask_name(folder[level]) and folder[level].casefold() not in _BESIDE_SPLIT:
            parents[folder[level]].add(folder[:level])
    recurring = [name for name, above in parents.items() if len(above) > 1]
    if not 2 <= len(parents) <= _MOST_CLASSES or 2 * len(recurring) < len(parents):
        return {}
    # ses-1, ses-2 far down are visits; directly below the first level class0, class1 may be anything.
    numbered = len({re.sub(r"\d+", "", name) for name in parents}) == 1
    return {} if numbered and level > 1 else {name: len(above) for name, above in parents.items()}


def _are_parts(names: Iterable[str]) -> bool:
    """Return whether names differ in their numbers only and have a word of parts, as part_1 and part_2 do."""
    listed = list(names)
    bare = {re.sub(r"\d+", " ", name.casefold()) for name in listed}
    return len(bare) == 1 < len(listed) and not _PARTS.isdisjoint(re.split(r"[\W_]+", bare.pop()))


def _list_names(names: Iterable[str], *, most: int, level: int) -> str:
    """Return the names, if they are few enough to be a vocabulary; many, and those as "Doe, John", may be persons."""
    listed = sorted(names)
    if len(listed) <= min(most, _SHOWN) and not any(re.search(r"[\s^,]", name) for name in listed):
        return ", ".join(listed)
    place = _ORDINALS[level] if level < len(_ORDINALS) else f"{level + 1}th"
    return f"the {len(listed)} folders of the {place} level"
