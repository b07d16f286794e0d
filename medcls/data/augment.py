"""Build albumentations transforms from {Name: {argument: value}}; their draws depend only on the sample."""

from __future__ import annotations

import copy
import inspect
import os
import random
import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medcls.config import nearest
from medcls.data.augment_volume import VolumeAugmentation
from medcls.data.transform_arguments import check_arguments, exchanges_sides
from medcls.errors import ConfigError

# It would ask the network for a newer release of itself while being imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

_TRIALS = 8
_REFUSED = {"Lambda", "NoOp", "Normalize", "ToTensorV2", "ToTensor3D"}


class Augmentation:
    """Augments one stored image; the same key always gives the same result.

    albumentations' own generators repeat between DataLoader workers and epochs, and its set_random_seed gives every
    transform the same stream (a flip then decides the brightness). Here one fresh counter-based stream, shared by
    the transforms in order, is made for every sample.

    Args:
        transforms: albumentations' names and arguments, applied in this order; {} changes nothing.
        shape: (C, H, W) of the images.
        dtype: Of the images, "uint8" or "uint16".

    Raises:
        ConfigError: unknown name (with the nearest), misspelt or impossible argument, or a transform that changes
            the shape or dtype of these images or cannot take them.
    """

    def __init__(self, transforms: Mapping[str, Any], *, shape: tuple[int, ...], dtype: str = "uint8") -> None:
        self.transforms = dict(transforms)
        self._shape, self._dtype = shape, dtype
        built = [_build_transform(name, arguments) for name, arguments in self.transforms.items()]
        self._compose = A.Compose(built) if built else None
        if built:
            self._check(shape, dtype)

    def __call__(self, image: NDArray[Any], key: int) -> NDArray[Any]:
        """Return the augmented image.

        Args:
            image: (C, H, W).
            key: 64-bit integer, from reproducibility.draw_seed(seed, epoch, image_id).

        Returns:
            (C, H, W), same shape and dtype; the image itself where there is no transform.
        """
        if self._compose is None:
            return image
        generator = np.random.Generator(np.random.Philox(key=key))
        self._compose.set_random_state(generator, random.Random(key))
        augmented: NDArray[Any] = self._compose(image=np.ascontiguousarray(image.transpose(1, 2, 0)))["image"]
        return augmented.transpose(2, 0, 1)

    def find_mirroring(self) -> list[str]:
        """Return the transforms that may exchange sides: mirrors, transpositions, turns of about 70 degrees or more.

        Each is tried on grey ramps: its arguments count, not its name.
        """
        transforms = self._compose.transforms if self._compose else []
        return [name for name, each in zip(self.transforms, transforms, strict=True) if self._is_mirror(each)]

    def _is_mirror(self, transform: A.BasicTransform) -> bool:
        if transform.p == 0 or not isinstance(transform, A.DualTransform):
            return False
        always = Augmentation.__new__(Augmentation)
        always._compose = A.Compose([_with_certainty(transform)])
        return exchanges_sides(always, self._shape, self._dtype, value_range=(0, float(np.iinfo(self._dtype).max)))

    def _check(self, shape: tuple[int, ...], dtype: str) -> None:
        """A dry run: what cannot work must not be found out in the middle of a night."""
        image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
        always = Augmentation.__new__(Augmentation)
        always._compose = self._compose and A.Compose([_with_certainty(t) for t in self._compose.transforms])
        for key in range(_TRIALS):
            try:
                result = always(image, key)
            except (ValueError, TypeError, IndexError, KeyError) as error:
                reason = str(error).splitlines()[0]
                raise ConfigError(f"augment {list(self.transforms)} cannot take {dtype} images: {reason}") from error
            except Exception as error:  # cv2.error derives from Exception alone
                raise ConfigError(f"augment {list(self.transforms)} fails on {shape} {dtype}: {error}") from error
            if result.shape != shape or result.dtype != dtype:
                raise ConfigError(
                    f"augment {list(self.transforms)} turns {shape} {dtype} into {result.shape} {result.dtype}: "
                    "expected the same shape and dtype"
                )


def _build_transform(name: str, arguments: Any) -> A.BasicTransform:
    known = [n for n in dir(A) if _is_transform(getattr(A, n)) and n not in _REFUSED]
    if name not in known:
        raise ConfigError(f"augment.transforms.{name}: albumentations has no such transform{nearest(name, known)}")
    constructor = getattr(A, name)
    checked = check_arguments(name, arguments, constructor)
    with warnings.catch_warnings():
        # albumentations only warns about an argument that it then ignores.
        warnings.simplefilter("error")
        try:
            return constructor(**checked)
        except (ValueError, TypeError, UserWarning) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ConfigError(f"augment.transforms.{name}={dict(arguments)}: {' '.join(lines[:4])}") from error


def _with_certainty(transform: A.BasicTransform) -> A.BasicTransform:
    """Return a copy that is applied every time: a rare transform must fail in the dry run, too."""
    certain = copy.copy(transform)
    certain.p = 1.0
    return certain


def _is_transform(candidate: object) -> bool:
    return inspect.isclass(candidate) and issubclass(candidate, A.ImageOnlyTransform | A.DualTransform)


Augment: TypeAlias = Augmentation | VolumeAugmentation


def build_augmentation(
    transforms: Mapping[str, Any], *, shape: tuple[int, ...], dtype: str, value_range: tuple[float, float]
) -> Augment:
    """Return the augmentation of stored images (C, H, W) by albumentations, or of volumes (C, D, H, W) by MONAI.

    Raises:
        ConfigError: as the classes say.
    """
    if len(shape) == 4:
        return VolumeAugmentation(transforms, shape=shape, dtype=dtype, value_range=value_range)
    return Augmentation(transforms, shape=shape, dtype=dtype)
