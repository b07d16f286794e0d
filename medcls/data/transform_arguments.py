"""Check the arguments of configured transforms, and whether a transform exchanges left and right."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.config import nearest
from medcls.errors import ConfigError


def check_arguments(name: str, arguments: Any, constructor: Callable[..., Any]) -> dict[str, Any]:
    """Return the arguments with lists as tuples.

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


# A turn by an angle leaves about its cosine of a ramp: 0.3 is 73 degrees; a mirror leaves -1.
_LEAST_LIKENESS = 0.3


def exchanges_sides(
    apply: Callable[[NDArray[Any], int], NDArray[Any]],
    shape: tuple[int, ...],
    dtype: str,
    *,
    value_range: tuple[float, float],
    draws: int = 32,
) -> bool:
    """Return whether a transform turns a ramp along any axis round or across, for one of some fixed keys.

    Args:
        apply: Image (C, *spatial) and key to image.
        shape: (C, *spatial).
        dtype: Of the image.
        value_range: Black and white.
        draws: Keys: with 32, what happens in one of five is missed once in a thousand.

    Source: own choice.
    """
    black, white = value_range
    for axis in range(1, len(shape)):
        steps = np.linspace(0.1, 0.9, shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        ramp = np.broadcast_to(black + steps * (white - black), shape).astype(dtype)
        for key in range(draws):
            changed = np.asarray(apply(ramp.copy(), key), dtype=np.float64)
            # The ramp has no black: what is black was filled in, or taken away.
            kept = changed > black + 0.05 * (white - black)
            if kept.any() and np.corrcoef(ramp[kept], changed[kept])[0, 1] < _LEAST_LIKENESS:
                return True
    return False
