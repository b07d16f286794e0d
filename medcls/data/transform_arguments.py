"""The arguments of a transform from a configuration, checked before a library ignores them or fails late."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from medcls.config import nearest
from medcls.errors import ConfigError


def check_arguments(name: str, arguments: Any, constructor: Callable[..., Any]) -> dict[str, Any]:
    """Returns the arguments with lists as tuples.

    Args:
        name: Of the transform.
        arguments: As configured.
        constructor: The library's class.

    Raises:
        ConfigError: no mapping, or an argument that the constructor does not have, with the nearest that it has.
    """
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"augment.transforms.{name}={arguments}: expected {{argument: value}}")
    names = list(inspect.signature(constructor).parameters)
    for argument in arguments:
        if argument not in names:
            hint = nearest(str(argument), names)
            raise ConfigError(f"augment.transforms.{name}.{argument}: no argument of {name}{hint}")
    return {key: _to_tuple(value) for key, value in arguments.items()}


def _to_tuple(value: Any) -> Any:
    return tuple(_to_tuple(item) for item in value) if isinstance(value, list) else value
