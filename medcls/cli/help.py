"""The text of --help: what a command does, its groups, each setting with default, meaning and values."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from omegaconf import OmegaConf

from medcls.cli.overrides import list_groups, list_options
from medcls.config import NAMED, SCHEMAS, conf_folder, nearest, register_schemas
from medcls.config.schema import Setting, read_settings
from medcls.errors import UsageError
from medcls.files import write_bytes

_INDENT, _COLUMN = 2, 30
_UNBROKEN = "\u00a0"
"""Space at which no line ends, so that "> 0, <= 1" stays together."""

_FEW = 30
"""A command with at most so many settings shows all of them; a larger one the common ones, and all with --help all."""

_REFERENCE = """# Settings

Every setting of every command, as `--help all` prints them; `make settings` writes this file from the schema. A setting
is typed as `key=value`. Options of a group (`optimizer=sgd`) set several at once: the defaults here are those without
options."""


@dataclass(frozen=True, slots=True)
class Row:
    """A setting as a reader sees it.

    Attributes:
        key: As typed, "trainer.epochs".
        group: First part of the key, "" for a setting of the command itself.
        default: As typed, "10".
        known: What its field says.
    """

    key: str
    group: str
    default: str
    known: Setting


def list_rows(name: str, conf: Path, options: Sequence[str] = ()) -> list[Row]:
    """Return every setting of a command, in the order of its schema, with the default that its options give it."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        values = OmegaConf.to_container(hydra.compose(name, overrides=list(options)))
    return list(_walk(SCHEMAS[name], values, group=""))


def _walk(schema: type, values: Any, *, group: str) -> Iterator[Row]:
    settings, hints = read_settings(schema), get_type_hints(schema)
    groups = [f.name for f in fields(schema) if is_dataclass(hints[f.name])]
    for name in (f.name for f in fields(schema) if f.name not in groups):
        yield Row(f"{group}.{name}".removeprefix("."), group, format_value(values[name]), settings[name])
    for name in groups:
        yield from _walk(hints[name], values[name], group=f"{group}.{name}".removeprefix("."))


def format_value(value: Any) -> str:
    """Return a value as a user types it: null, true, [a,b], {a: 1}."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case "":
            return "''"
        case list():
            return f"[{','.join(map(format_value, value))}]"
        case dict():
            return "{" + ", ".join(f"{key}: {format_value(item)}" for key, item in value.items()) + "}"
        case _:
            return str(value)


def describe_group(schema: type, group: str) -> str:
    """Return what a group is for, the first line of its dataclass."""
    if group in NAMED.values():
        return "Whole studies: settings of several groups under one name."
    return (get_type_hints(schema)[group].__doc__ or "").partition("\n")[0]


def describe_option(path: Path) -> str:
    """Return what an option is, the comment at the head of its file; "" if it has none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return " ".join(line for line in comments if not line.startswith("@package"))


def format_help(name: str, conf: Path, words: Sequence[str] = ()) -> str:
    """Return what --help prints.

    Hydra's own help composes each option of each group to list their names, which takes seconds.

    Args:
        name: Key of config.SCHEMAS.
        conf: Folder of the groups.
        words: The command line without its flags. "all", a group or a setting chooses what is shown; without one it is
            an overview. Options (optimizer=sgd) change the defaults; all other settings are ignored here.

    Raises:
        UsageError: a word is neither a group nor a setting; the message names the nearest.
    """
    groups = list_groups(SCHEMAS[name], conf=conf)
    topics = [word for word in words if "=" not in word]
    pairs = [(word, *word.split("=", 1)) for word in words if "=" in word]
    options = [word for word, group, option in pairs if group in groups and option in list_options(group, conf)]
    rows = list_rows(name, conf, options)
    if topics and "all" not in topics:
        return "\n\n".join(_format_topic(topic, name, conf, rows, groups) for topic in topics)
    described: list[str] = []
    examples: list[str] = []
    for line in str(OmegaConf.load(conf / f"{name}.yaml").hydra.help.header).splitlines():
        (examples if line.startswith(" ") else described).append(line)
    parts = ["\n".join(described)]
    chosen = [row for row in rows if row.known.common]
    if groups:
        chosen_options = _read_defaults(name, conf) | dict(option.split("=", 1) for option in options)
        lines = [
            _format_line(f"{group}={chosen_options.get(group, 'null')}", ", ".join(list_options(group, conf)))
            for group in groups
        ]
        parts.append("\n".join(["Groups: choose with group=option", *lines]))
    if topics or len(rows) <= _FEW or not chosen:
        parts += _format_groups(SCHEMAS[name], rows)
        rest = ""
    else:
        parts.append("\n".join(["Most used settings: change with key=value", *map(_format_row, chosen)]))
        rest = f"--help all lists all {len(rows)} settings; "
    if examples:
        parts.append("\n".join(["Examples", *examples]))
    shown = f"--help {rows[0].key} shows one setting."
    if groups:
        option = f"{groups[-1]}={list_options(groups[-1], conf)[-1]}"
        shown = f"--help {groups[-1]} shows a group or a setting; an option beside it ({option}) changes the defaults."
    parts.append(
        "\n".join(
            [
                "More",
                *_wrap(rest + shown),
                *_wrap("--cfg job prints the composed settings; --multirun runs a sweep (seed=1,2 'run=r/${seed}')."),
            ]
        )
    )
    return "\n\n".join(parts)


def _read_defaults(name: str, conf: Path) -> dict[str, str]:
    """Option of each group that a command takes by itself; a group that it leaves alone is not among them."""
    entries: Any = OmegaConf.to_container(OmegaConf.load(conf / f"{name}.yaml").defaults)
    return {str(g): format_value(option) for entry in entries if isinstance(entry, dict) for g, option in entry.items()}


def _format_topic(topic: str, name: str, conf: Path, rows: Sequence[Row], groups: Sequence[str]) -> str:
    topic = topic.rstrip("=.")
    inside = [row for row in rows if row.group == topic or row.group.startswith(f"{topic}.")]
    if topic in groups or inside:
        lines = [f"{topic}: {describe_group(SCHEMAS[name], topic)}"]
        if topic in groups:
            options = {option: describe_option(conf / topic / f"{option}.yaml") for option in list_options(topic, conf)}
            lines += ["", f"Options: {topic}=", *(_format_line(option, text) for option, text in options.items())]
        if inside:
            lines += ["", "Settings", *map(_format_row, inside)]
        return "\n".join(lines)
    found = [row for row in rows if topic in (row.key, row.key.rpartition(".")[2])]
    if not found:
        known = [*groups, *(row.key for row in rows)]
        raise UsageError(
            f"--help {topic}: not a group or setting of this command{nearest(topic, known)}: see --help all"
        )
    return "\n".join(map(_format_row, found))


def _format_groups(schema: type, rows: Sequence[Row]) -> list[str]:
    """Return every setting, one block a group."""
    parts = []
    for group in dict.fromkeys(row.group for row in rows):
        title = "Settings: change with key=value" if not group else f"{group}: {describe_group(schema, group)}"
        parts.append("\n".join([title, *(_format_row(row) for row in rows if row.group == group)]))
    return parts


def _format_row(row: Row) -> str:
    values = row.known.values if row.known.choices else row.known.values.replace(" ", _UNBROKEN)
    return _format_line(f"{row.key}={row.default}", f"{row.known.help} ({values})" if values else row.known.help)


def _format_line(head: str, text: str) -> str:
    """Return one entry in two columns; a head that is too long has a line of its own."""
    indent = " " * _INDENT
    if not text:
        return indent + head
    lines = _wrap(text, indent=_COLUMN)
    if len(head) > _COLUMN - _INDENT - 2:
        return "\n".join([indent + head, *lines])
    return "\n".join([f"{indent}{head:{_COLUMN - _INDENT}}{lines[0][_COLUMN:]}", *lines[1:]])


def _wrap(text: str, *, indent: int = _INDENT) -> list[str]:
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    lines = textwrap.wrap(
        text,
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_UNBROKEN, " ") for line in lines]


def write_reference() -> None:
    """Write docs/settings.md of a checkout."""
    register_schemas()
    conf = conf_folder()
    write_bytes(conf.parent / "docs" / "settings.md", format_reference(conf).encode())


def format_reference(conf: Path) -> str:
    """Return docs/settings.md: a table of each command's own settings, and one of each group that it has."""
    every = {name: {row.key: row for row in list_rows(name, conf)} for name in SCHEMAS}
    sections: dict[tuple[type, str], list[str]] = {}
    for name, rows in every.items():
        for group in dict.fromkeys(row.group for row in rows.values()):
            schema = get_type_hints(SCHEMAS[name])[group] if group else SCHEMAS[name]
            sections.setdefault((schema, group), []).append(name)
    parts = [_REFERENCE]
    for (schema, group), names in sections.items():
        programs = ", ".join(f"`{OmegaConf.load(conf / f'{name}.yaml').hydra.help.app_name}`" for name in names)
        about = (schema.__doc__ or "").partition("\n")[0]
        title = f"## `{group}.`\n\n{about} Commands: {programs}." if group else f"## {programs}"
        lines = [title, "", "| setting | default | meaning | values |", "|---|---|---|---|"]
        for key, row in every[names[0]].items():
            if row.group == group:
                defaults = {name: every[name][key].default for name in names}
                lines.append(_format_cells(row, defaults))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _format_cells(row: Row, defaults: dict[str, str]) -> str:
    """Return one line of a table; a default that differs between commands is named for each."""
    first, *_ = defaults.values()
    other = [f"{name}: `{default}`" for name, default in defaults.items() if default != first]
    default = f"`{first}`" + (f" ({', '.join(other)})" if other else "")
    cells = (f"`{row.key}`", default, row.known.help.replace("*", r"\*"), row.known.values)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
