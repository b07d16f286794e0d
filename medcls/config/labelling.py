"""The schema of labels: spellings, folder levels, and which files of a folder are images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from medcls.config.checks import check_choice, nearest
from medcls.config.schema import NAME, NAMES, TEXT, check_settings, setting
from medcls.errors import ConfigError

LEVELS = ("split", "class", "patient", "site")
"""What a level of folders can be; any other level is *."""

_FIELD = re.compile(r"\{([^{}/]*)\}")


@dataclass(slots=True)
class LabellingConfig:
    """How labels are read from files and folders."""

    strict: bool = setting(
        False, "Refuse labels that differ only in spelling, instead of reading them as one class with a notice."
    )
    uncertain: Any = setting(
        None,
        "How -1, u, uncertain and ? in columns of 0 and 1 are read; null refuses them, with their counts.",
        choices=("unknown", "0", "1", "0.5"),
        kind=NAME,
    )
    blank: Any = setting("unknown", "How blanks in columns of 0 and 1 are read.", choices=("unknown", "0"), kind=NAME)
    readers: list[str] = setting(
        [],
        "Label columns of several readers, or the ends of their names, as [r1,r2,r3] for label_r1 and so on.",
        kind=NAMES,
    )
    readers_rule: str = setting(
        "majority",
        "How several readers become one label: majority, share (soft targets in training), or one of "
        "labelling.readers.",
        kind=NAME,
    )
    max_classes: int = setting(
        50,
        "Most different texts in a column of labels; more are refused, since the column may hold names.",
        low=2,
        unit="classes",
    )
    layout: str = setting(
        "auto",
        "What each level of folders below source is: split, class, patient, site or *, as */class/patient; {class} "
        "reads a "
        "part of a name, as study*_{class}.",
        kind=TEXT,
        common=True,
    )
    files: str = setting(
        "",
        "Pattern of the files that are images of this job, as *_T1w.nii*; | separates several, and one with / is "
        "compared "
        "with the end of the path.",
        kind=TEXT,
        common=True,
    )
    not_files: str = setting("", "Pattern of files that are left out, as *_mask*.", kind=TEXT, common=True)

    def __post_init__(self) -> None:
        # A file of settings has 0 and 0.5 as numbers.
        self.blank = str(self.blank)
        self.uncertain = None if self.uncertain is None else str(self.uncertain)
        check_settings(self, "labelling")
        if len(self.readers) == 1 or len(set(self.readers)) < len(self.readers):
            raise ConfigError(f"labelling.readers={self.readers}: expected two or more different readers")
        if self.readers:
            check_choice("labelling.readers_rule", self.readers_rule, ("majority", "share", *self.readers))
        elif self.readers_rule != "majority":
            raise ConfigError(f"labelling.readers_rule={self.readers_rule} needs labelling.readers=[NAME,NAME,…]")
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
