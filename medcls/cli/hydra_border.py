"""What of Hydra a command line reaches: what chooses and prints, nothing that loads code, files or the environment.

Hydra builds callbacks, launchers and log handlers from names in its configuration, reads configurations from any folder
and reruns pickles. Overrides travel in scripts, job arrays and mails: they have to stay data
(docs/decisions/0026-hostile-inputs.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import distributions

from medcls.errors import ConfigError, UsageError

FLAGS = frozenset({"--help", "-h", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i", "--multirun", "-m"})
_LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm")
_PACKAGES = {"joblib": "hydra-joblib-launcher"} | dict.fromkeys(_LAUNCHERS[2:], "hydra-submitit-launcher")
_GROUPS = {"hydra/launcher": _LAUNCHERS, "hydra/sweeper": ("basic",)}
# Plain settings of a launcher or a sweep; a name that begins with _ (_target_) is an instruction.
_KEYS = re.compile(r"hydra\.(verbose|sweep\.(dir|subdir)|sweeper\.max_batch_size|launcher\.[a-z][a-z_]*)")


def check_flag(flag: str) -> None:
    """Raises UsageError for a flag that is none of FLAGS, such as Hydra's --config-dir and --experimental-rerun."""
    name = flag.split("=", 1)[0]
    if name not in FLAGS:
        raise UsageError(f"{name}: expected one of {', '.join(sorted(FLAGS))}; settings are given as key=value")


def check_hydra_key(key: str, value: str) -> None:
    """Raises ConfigError for a setting of Hydra itself that is no plain choice of launcher or sweep."""
    if key in _GROUPS and value in _GROUPS[key]:
        package = _PACKAGES.get(value)
        if package and not any(distributions(name=package)):
            raise ConfigError(f"{key}={value}: {package} is not installed: pip install {package}")
        return
    if key in _GROUPS:
        raise ConfigError(f"{key}={value}: expected one of {', '.join(_GROUPS[key])}")
    if not _KEYS.fullmatch(key) or "{" in value:
        raise ConfigError(
            f"{key} is not settable here: of Hydra, hydra/launcher, hydra.launcher.NAME and hydra.sweep are"
        )


def check_no_resolver(argument: str) -> None:
    """Raises ConfigError where a value calls a resolver: ${key} names a setting, ${oc.env:X} would save a secret."""
    if re.search(r"\$\{[^}]*:", argument):
        key, _, value = argument.partition("=")
        raise ConfigError(
            f"{key}={value}: resolvers (oc.env …) are off, saved settings would hold what they read; ${{key}} of "
            "another setting works, and a shell fills in $VARIABLE before"
        )


def check_options(group: str, value: str, options: Iterable[str]) -> bool:
    """Returns whether a group's value is a list, sweep or mapping that is Hydra's to read; no option is a path.

    Raises:
        ConfigError: it names a file elsewhere (experiment=[../../mine]).
    """
    if value.startswith("{"):
        return True
    if re.search(r"[/\\$]|\.\.", value):
        raise ConfigError(f"{group}={value}: expected one of {', '.join(options)}, no path")
    return bool(set(value) & set(",[("))
