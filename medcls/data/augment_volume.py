"""Build MONAI transforms of volumes from {Name: {argument: value}}; their draws depend only on the sample."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.config import nearest
from medcls.data.transform_arguments import check_arguments, exchanges_sides
from medcls.errors import ConfigError

_RAMP, _DRAWS = 16, 8
# Two keys, the first one twice: a volume costs a second where an image costs a millisecond.
_TRIALS = (0, 1, 0)
_REFUSED = {"RandomizableTransform", "RandLambda", "MixUp", "CutMix", "CutOut", "RandGridPatch", "Rand2DElastic"}


class VolumeAugmentation:
    """Augments one stored volume; the same key always gives the same result.

    MONAI's own generators go on from sample to sample, so that what a volume gets depends on the worker that makes it.
    Here one fresh counter-based stream, shared by the transforms in order, is made for every sample. Transforms see
    float32 in [0, 1], black to white of the store, and what leaves that range is clipped.

    Args:
        transforms: Names and arguments of MONAI's random array transforms, applied in this order; {} changes nothing.
        shape: (C, D, H, W) of the volumes.
        dtype: Of the volumes.
        value_range: (lowest, highest) value that the dtype stands for.

    Raises:
        ConfigError: unknown name (with the nearest), misspelt or impossible argument, or a transform that changes
            the shape of these volumes, cannot take them, or draws outside its key.
    """

    def __init__(
        self, transforms: Mapping[str, Any], *, shape: tuple[int, ...], dtype: str, value_range: tuple[float, float]
    ) -> None:
        self.transforms = dict(transforms)
        self.low, self.high = value_range
        self._shape, self._dtype = shape, dtype
        self._built = [_build_transform(name, arguments) for name, arguments in self.transforms.items()]
        if self._built:
            self._check(shape, dtype)

    def __call__(self, image: NDArray[Any], key: int) -> NDArray[Any]:
        """Return the augmented volume.

        Args:
            image: (C, D, H, W).
            key: 64-bit integer, from reproducibility.draw_seed(seed, epoch, image_id).

        Returns:
            (C, D, H, W), same shape and dtype; the volume itself where there is no transform.
        """
        return self._apply(self._built, image, key) if self._built else image

    def find_mirroring(self) -> list[str]:
        """Return the transforms that may exchange sides: mirrors, and turns of about 70 degrees or more.

        Each that moves voxels is tried on small grey ramps: its arguments count, not its name.
        """
        return [name for name, each in zip(self.transforms, self._built, strict=True) if self._is_mirror(each)]

    def _is_mirror(self, transform: Any) -> bool:
        # MONAI's transforms of geometry can be put off; those of grey values cannot.
        if transform.prob == 0 or not hasattr(transform, "lazy"):
            return False
        always = _with_certainty(transform)
        shape = (self._shape[0], *(min(length, _RAMP) for length in self._shape[1:]))
        values = (self.low, self.high)
        return exchanges_sides(
            lambda ramp, key: self._apply([always], ramp, key), shape, self._dtype, value_range=values, draws=_DRAWS
        )

    def _apply(self, built: list[Any], image: NDArray[Any], key: int) -> NDArray[Any]:
        stream = np.random.RandomState(np.random.Philox(key=key))
        values: Any = (image.astype(np.float32) - np.float32(self.low)) / np.float32(self.high - self.low)
        for transform in built:
            transform.set_random_state(state=stream)
            values = transform(values)
        stored = np.clip(np.asarray(values, dtype=np.float32), 0, 1) * np.float32(self.high - self.low)
        stored += np.float32(self.low)
        return (stored if image.dtype.kind == "f" else np.rint(stored)).astype(image.dtype)

    def _check(self, shape: tuple[int, ...], dtype: str) -> None:
        """A dry run: what cannot work must not be found out in the middle of a night."""
        noise = np.random.default_rng(0).random(shape, dtype=np.float32) * (self.high - self.low) + self.low
        image = noise.astype(dtype)
        always = [_with_certainty(transform) for transform in self._built]
        names = list(self.transforms)
        try:
            results = [self._apply(always, image, key) for key in _TRIALS]
        except Exception as error:  # torch, numpy and MONAI raise what they like
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"augment {names} cannot take volumes {shape} {dtype}: {reason}") from error
        if any(result.shape != shape for result in results):
            raise ConfigError(f"augment {names} turns {shape} into {results[0].shape}: expected the same shape")
        if not np.array_equal(results[0], results[2]):
            raise ConfigError(f"augment {names}: one of them uses its own random generator: remove it")


def _build_transform(name: str, arguments: Any) -> Any:
    import monai.transforms as library  # seconds: not for those who have images

    known = [each for each in dir(library) if _is_transform(library, each)]
    if name not in known:
        raise ConfigError(
            f"augment.transforms.{name}: MONAI has no such random transform of volumes{nearest(name, known)}; "
            "ready-made: augment=auto, brain_mri, ct_volume, none"
        )
    constructor = getattr(library, name)
    checked = check_arguments(name, arguments, constructor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return constructor(**checked)
        except (ValueError, TypeError, NotImplementedError, Warning) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"augment.transforms.{name}={dict(arguments)}: {reason}") from error


def _is_transform(library: Any, name: str) -> bool:
    """Random, of arrays (those of dictionaries end in d, Dict or Dictionary), and of images."""
    candidate = getattr(library, name)
    return (
        inspect.isclass(candidate)
        and issubclass(candidate, library.RandomizableTransform)
        and not issubclass(candidate, library.MapTransform)
        and not name.startswith("Signal")
        and name not in _REFUSED
    )


def _with_certainty(transform: Any) -> Any:
    """Return a copy that is applied every time: a rare transform must fail in the dry run, too."""
    certain = copy.deepcopy(transform)
    certain.prob = 1.0
    return certain
