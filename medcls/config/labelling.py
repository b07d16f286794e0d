"""The schema of how labels are read: spellings, levels of folders, and which files of a folder are images."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from medcls.config.checks import check_choice, check_range, nearest
from medcls.errors import ConfigError

LEVELS = ("split", "class", "patient", "site")
"""What a level of folders can be; any other level is *."""

_FIELD = re.compile(r"\{([^{}/]*)\}")


@dataclass(slots=True)
class LabellingConfig:
    """labelling.*: how labels are read from files and folders (labels= itself is the path).

    Attributes:
        strict: Refuse labels that differ in spelling only, instead of reading them as one class with a notice.
        uncertain: What -1, u, uncertain and ? in 0/1 columns are read as: "unknown", "0", "1" or "0.5"; None refuses.
        blank: What blanks in 0/1 columns are read as: "unknown" or "0".
        readers: Columns of several readers, or the ends of their label columns.
        readers_rule: "majority", "share" (soft targets in training), or one of `readers`.
        max_classes: Largest number of different texts that a label column may have.
        layout: "auto", or what each level of folders below source is, as in split/class/patient or */class:
            split, class, patient, site, or a pattern with * and, for a part of a name, {class} as in study*_{class}.
        files: Only files of this pattern are images of the job, as in *_T1w.nii*; several are separated by |. A
            pattern with / is compared with the end of the path. "" takes every file that is an image.
        not_files: Files of this pattern are left out, as in *_mask*.
    """

    strict: bool = False
    uncertain: Any = None
    blank: Any = "unknown"
    readers: list[str] = field(default_factory=list)
    readers_rule: str = "majority"
    max_classes: int = 50
    layout: str = "auto"
    files: str = ""
    not_files: str = ""

    def __post_init__(self) -> None:
        # Hydra reads 0 and 0.5 as numbers.
        self.blank = str(self.blank)
        check_choice("labelling.blank", self.blank, ("unknown", "0"))
        if self.uncertain is not None:
            self.uncertain = str(self.uncertain)
            check_choice("labelling.uncertain", self.uncertain, ("unknown", "0", "1", "0.5"))
        if len(self.readers) == 1 or len(set(self.readers)) < len(self.readers):
            raise ConfigError(f"labelling.readers={self.readers}: expected two or more different readers")
        if self.readers:
            check_choice("labelling.readers_rule", self.readers_rule, ("majority", "share", *self.readers))
        elif self.readers_rule != "majority":
            raise ConfigError(f"labelling.readers_rule={self.readers_rule} needs labelling.readers=[NAME,NAME,…]")
        check_range("labelling.max_classes", self.max_classes, low=2)
        if self.layout != "auto":
            compile_layout(self.layout)


def compile_layout(layout: str, *, last: str = "") -> str:
    """Return a layout as a regular expression of RE2 that the whole path of a folder matches.

    Args:
        layout: As of LabellingConfig, not "auto".
        last: Level that a folder has to reach; "" means all.

    Returns:
        Named groups split, class, patient, site, for those that the layout has; folders below the last level match.

    Raises:
        ConfigError: an unknown level, one level twice, or no class.
    """
    levels = layout.strip("/").split("/")
    found = [level for level in levels if level in LEVELS]
    found += [name for level in levels for name in _FIELD.findall(level)]
    expected = f"expected levels out of {', '.join(LEVELS)} and *, as in split/class/patient"
    for level in levels:
        if level not in LEVELS and not _FIELD.search(level) and "*" not in level:
            raise ConfigError(
                f"labelling.layout={layout}: {level!r} is not a level{nearest(level, LEVELS)}: {expected}"
            )
    for name in found:
        if name not in LEVELS:
            raise ConfigError(
                f"labelling.layout={layout}: {{{name}}} is not a level{nearest(name, LEVELS)}: {expected}"
            )
        if found.count(name) > 1:
            raise ConfigError(f"labelling.layout={layout}: {name} occurs twice: {expected}")
    if "class" not in found:
        raise ConfigError(f"labelling.layout={layout}: no level is the class: {expected}")
    needed = levels[: find_level(layout, last) + 1] if last else levels
    return r"(?s)\A" + "/".join(map(_compile_level, needed)) + r"(?:/.*)?\z"


def find_level(layout: str, name: str) -> int:
    """Return the place of a level (0 is the first) in a layout, -1 if it does not have it."""
    found = [i for i, level in enumerate(layout.strip("/").split("/")) if name in (level, *_FIELD.findall(level))]
    return found[0] if found else -1


def _compile_level(level: str) -> str:
    if level in LEVELS:
        return f"(?P<{level}>[^/]+)"
    parts = _FIELD.split(level)
    texts = [re.escape(part).replace(r"\*", "[^/]*") for part in parts[::2]]
    fields = [f"(?P<{name}>[^/]+?)" for name in parts[1::2]] + [""]
    return "".join(text + field for text, field in zip(texts, fields, strict=True))
