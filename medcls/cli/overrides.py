"""Check and quote key=value overrides for Hydra; name the nearest setting for an unknown key.

Hydra's grammar refuses paths with ( ) = # & and letters outside ASCII and rewrites run=2024_05_01 to 20240501
(docs/decisions/0003-command-line.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from medcls.cli.sweeps import is_sweep
from medcls.config import NAMED, SCHEMAS, nearest
from medcls.config.schema import NAMES, PATH, TEXT, read_settings
from medcls.errors import ConfigError, UsageError

FLAGS = frozenset({"--help", "-h", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i", "--multirun", "-m"})
_LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm")
_PACKAGES = {"joblib": "hydra-joblib-launcher"} | dict.fromkeys(_LAUNCHERS[2:], "hydra-submitit-launcher")
_GROUPS = {"hydra/launcher": _LAUNCHERS, "hydra/sweeper": ("basic",)}
# Plain settings of a launcher or a sweep; a name that begins with _ (_target_) is an instruction.
_KEYS = re.compile(r"hydra\.(verbose|sweep\.(dir|subdir)|sweeper\.max_batch_size|launcher\.[a-z][a-z_]*)")


def check_flag(flag: str) -> None:
    """Raise UsageError for a flag that is none of FLAGS, such as Hydra's --config-dir and --experimental-rerun."""
    name = flag.split("=", 1)[0]
    if name not in FLAGS:
        raise UsageError(f"{name}: expected one of {', '.join(sorted(FLAGS))}; settings are given as key=value")


def check_hydra_key(key: str, value: str) -> None:
    """Raise ConfigError for a setting of Hydra itself that is no plain choice of launcher or sweep."""
    if key in _GROUPS and value in _GROUPS[key]:
        package = _PACKAGES.get(value)
        if package and not any(distributions(name=package)):
            raise ConfigError(f"{key}={value}: {package} is not installed: pip install {package}")
        return
    if key in _GROUPS:
        raise ConfigError(f"{key}={value}: expected one of {', '.join(_GROUPS[key])}")
    if not _KEYS.fullmatch(key) or "{" in value:
        raise ConfigError(
            f"{key} cannot be set here: of Hydra's settings, only hydra/launcher, hydra.launcher.NAME and hydra.sweep "
            f"can"
        )


def check_no_resolver(argument: str) -> None:
    """Raise ConfigError where a value calls a resolver: ${key} names a setting, ${oc.env:X} would save a secret."""
    if re.search(r"\$\{[^}]*:", argument):
        key, _, value = argument.partition("=")
        raise ConfigError(
            f"{key}={value}: resolvers (oc.env …) are off, since saved settings would contain what they read; "
            f"${{key}} of "
            "another setting works, and a shell fills in $VARIABLE before"
        )


def check_options(group: str, value: str, options: Iterable[str]) -> bool:
    """Return whether a group's value is a list, sweep or mapping that is Hydra's to read; no option is a path.

    Raises:
        ConfigError: it names a file elsewhere (experiment=[../../mine]).
    """
    if value.startswith("{"):
        return True
    if re.search(r"[/\\$]|\.\.", value):
        raise ConfigError(f"{group}={value}: expected one of {', '.join(options)}, no path")
    return bool(set(value) & set(",[("))


_VALUE_FLAGS = frozenset({"--cfg", "-c", "--package", "-p", "--info", "-i"})


def quote_value(key: str, value: str, form: Form) -> str:
    """Return `key=value` with text quoted so that Hydra's grammar takes it literally.

    null and a value within quotes of its own stay as they are; ~/ of a path becomes the home folder; ${key} still is an
    interpolation (run=runs/${seed}). In a list of names each item is quoted.

    Raises:
        UsageError: a text is blank, as of an unset shell variable; as a path it would mean the current folder.
    """
    if form.kind == NAMES and re.fullmatch(r"\[[^\[\]'\"]*\]", value):
        items = [_quote(item.strip()) for item in value[1:-1].split(",") if item.strip()]
        return f"{key}=[{','.join(items)}]"
    if form.kind in ("", NAMES) or value == "null" or re.fullmatch(r"'[^']*'|\"[^\"]*\"", value):
        return f"{key}={value}"
    if not value.strip():
        raise UsageError(f"{key}= is blank: give a value, or {key}=null for none")
    at_home = form.kind == PATH and value.startswith("~/")
    return f"{key}={_quote(str(Path(value).expanduser()) if at_home else value)}"


def _quote(value: str) -> str:
    """Within quotes Hydra wants an escape for quotes, and for the backslashes that stand before one."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), value) + "'"


def prepare_overrides(arguments: Iterable[str], *, schema: type, conf: Path) -> list[str]:
    """Return the arguments with paths quoted, after checking every key and group option.

    Raises:
        UsageError: an argument is neither a flag nor key=value.
        ConfigError: a key or a group option is unknown; the message names the nearest known one.
    """
    arguments = list(arguments)
    sweeping = is_sweep(arguments)
    prepared: list[str] = []
    flags: list[str] = []
    previous = ""
    for argument in arguments:
        if argument.startswith("-"):
            check_flag(argument)
            flags.append(argument)
        elif previous in _VALUE_FLAGS:
            flags.append(argument)
        else:
            prepared.append(_prepare_one(argument, schema=schema, conf=conf, sweeping=sweeping))
        previous = argument
    # argparse stops taking overrides at the first flag.
    return prepared + flags


def _prepare_one(argument: str, *, schema: type, conf: Path, sweeping: bool) -> str:
    key, equals, value = argument.partition("=")
    if not key or (not equals and not key.startswith("~")):
        raise UsageError(f"{argument!r} is not key=value: see --help")
    check_no_resolver(argument)
    bare = key.lstrip("+~")
    if "@" in bare:
        raise UsageError(f"{key}: a group cannot be placed elsewhere: remove @…")
    if re.match(r"hydra\b", bare):
        check_hydra_key(bare, value)
        return argument
    if key.startswith("~"):
        return argument
    groups = list_groups(schema, conf=conf)
    if bare in groups:
        _check_option(bare, value, conf=conf)
        return argument
    if bare in NAMED.values():
        own = [f"; this one has {group}=" for group in groups if group in NAMED.values()]
        owner = next(name for name, group in NAMED.items() if group == bare)
        raise ConfigError(f"{argument}: {bare}= belongs to medcls.{owner}, not to this command{''.join(own)}")
    form = find_form(bare, schema)
    if bare == "task.classes" and re.search(r":\s*\?\s*[,}]", value):
        raise ConfigError("task.classes: replace each ? by 0 or 1, or remove its label")
    argument = argument if sweeping and "," in value else quote_value(key, value, form)
    # Hydra refuses new keys inside a dictionary ({NC: 0, AD: 1}) unless told to add them.
    return f"++{argument}" if form.is_open and not key.startswith("+") else argument


def list_groups(schema: type, *, conf: Path) -> list[str]:
    """Return the groups of a command: folders of conf/ with the name of a setting, and that of its whole studies."""
    names = {f.name for f in fields(schema)} | {NAMED[name] for name in NAMED if SCHEMAS[name] is schema}
    return sorted(folder.name for folder in conf.iterdir() if folder.is_dir() and folder.name in names)


def list_options(group: str, conf: Path) -> list[str]:
    """Return the options of a group, by name."""
    return sorted(path.stem for path in (conf / group).glob("*.yaml"))


def _check_option(group: str, value: str, *, conf: Path) -> None:
    """A sweep (a,b) or an override of the whole group ({…}) is left to Hydra; it has no words for null."""
    options = list_options(group, conf)
    if not check_options(group, value, options) and value not in options:
        raise ConfigError(f"{group}={value}: expected one of {', '.join(options)}{nearest(value, options)}")


@dataclass(frozen=True, slots=True)
class Form:
    """How a value is typed.

    Attributes:
        kind: A kind of text (config.schema), which is taken literally; NAMES is a list; "" is left to Hydra's grammar.
        is_open: Whether it is a dictionary or in one, where the names are the user's.
    """

    kind: str
    is_open: bool


def find_form(dotted: str, schema: type) -> Form:
    """Return how a setting is typed, by the kind that its field declares, else by its annotation.

    Raises:
        ConfigError: the command has no such setting; the message names the nearest.
    """
    node: Any = schema
    kind = ""
    below = False
    for depth, part in enumerate(dotted.split(".")):
        if not is_dataclass(node):
            below = True
            break
        known = [f.name for f in fields(node)]
        if part not in known:
            where = ".".join(dotted.split(".")[:depth])
            # A key often is right but lacks its group: epochs -> trainer.epochs.
            names = [f"{where}.{n}" if where else n for n in known] + _leaf_names(schema)
            hint = next((f" (nearest: {k})" for k in names if k.split(".")[-1] == part), nearest(dotted, names))
            raise ConfigError(f"{dotted} is not a setting of this command{hint}: --help all lists them")
        declared = read_settings(node if isinstance(node, type) else type(node))
        kind = declared[part].kind if part in declared else ""
        node = get_type_hints(node)[part]
    is_open = get_origin(node) is dict
    if is_open:
        # The names are the user's; what is typed is a value below one of them.
        kind = (kind or _find_kind(get_args(node)[1])) if below else ""
    return Form(kind or _find_kind(node), is_open)


def _find_kind(hint: Any) -> str:
    if hint in (str, str | None):
        return TEXT
    return NAMES if hint == list[str] else ""


def _leaf_names(schema: type, prefix: str = "") -> list[str]:
    names: list[str] = []
    hints = get_type_hints(schema)
    for f in fields(schema):
        inner = hints[f.name]
        if is_dataclass(inner) and isinstance(inner, type):
            names += _leaf_names(inner, f"{prefix}{f.name}.")
        names.append(f"{prefix}{f.name}")
    return names
