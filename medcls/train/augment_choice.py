"""Choose the augmentation for a store and a task (augment=auto): a preset, without mirrors if sides matter."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.config import AugmentConfig, read_option
from medcls.data.augment import Augment, build_augmentation
from medcls.data.columns import code_column
from medcls.data.label_words import find_sides
from medcls.data.store import Store
from medcls.data.targets import Task
from medcls.errors import ConfigError
from medcls.imaging.dicom.terms import name_body_part, name_modality
from medcls.imaging.preprocess import PreprocessSpec
from medcls.imaging.volume.spec import VolumeSpec

# Lesions and sections have no up: photographs of skin, dermoscopy, general and slide microscopy.
_NO_UP = frozenset({"XC", "DMS", "GM", "SM"})
_SMALL = 16
_HEAD = frozenset({"HEAD", "BRAIN", "SKULL"})


@dataclass(frozen=True, slots=True)
class AugmentChoice:
    """An augmentation and why it is that one.

    Attributes:
        augmentation: For the training rows.
        preset: Name in conf/augment, without the transforms that were left out; "" if the settings gave transforms.
        sides: Names of classes and columns that are sides of the body, which no flip may exchange.
        notice: One line for the user; "" if the settings gave the transforms.
    """

    augmentation: Augment
    preset: str
    sides: list[str]
    notice: str

    def to_json(self) -> dict[str, object]:
        """Return what a model card keeps."""
        return {"preset": self.preset, "transforms": self.augmentation.transforms, "sides": self.sides}


def list_sides(task: Task, *, clinical: Sequence[str] = ()) -> list[str]:
    """Return the classes, label columns and clinical columns that name sides of the body."""
    columns = [name for name in task.columns if not task.traits.multiple]
    return find_sides(dict.fromkeys([*task.class_names, *columns, *clinical]))


def read_kinds(store: Store, rows: NDArray[np.int64]) -> dict[str, set[str]]:
    """Return the known modalities and body parts of manifest rows, by the standard's words."""
    kinds = store.read("modality", "body_part", rows=rows, coded=True)
    modality, part = (code_column(column).texts.to_pylist() for column in kinds.columns)
    parts = {name_body_part(text) for text in part if text} - {""}
    return {"modalities": {name_modality(text) for text in modality if text} - {""}, "body_parts": parts}


def choose_augmentation(
    config: AugmentConfig,
    spec: PreprocessSpec | VolumeSpec,
    *,
    shape: tuple[int, ...],
    sides: Sequence[str],
    modalities: Collection[str] = (),
    body_parts: Collection[str] = (),
) -> AugmentChoice:
    """Return the augmentation that the settings ask for, with `auto` resolved for the store.

    Args:
        config: The settings.
        spec: Of the store.
        shape: (C, *spatial) of what is augmented.
        sides: Of `list_sides`.
        modalities: DICOM modalities of the training rows, without unknown ones.
        body_parts: Body parts of the training rows by the standard's words, without unknown ones.

    Raises:
        ConfigError: a transform that exchanges sides although labels name them, or one that these images cannot take.

    Source: own choice (docs/decisions/0040).
    """
    sides = [] if config.sides == "ignore" else list(sides)

    def build(transforms: Mapping[str, Any], shape: tuple[int, ...] = shape) -> Augment:
        return build_augmentation(transforms, shape=shape, dtype=spec.dtype, value_range=spec.value_range)

    preset, transforms, notice = "", dict(config.transforms), ""
    if config.auto:
        preset = _choose_preset(spec, modalities=modalities, sided=bool(sides))
        transforms, notice = read_option("augment", preset)["transforms"], f"augment=auto: {preset}"
        unknown_side = preset == "brain_mri" and not (body_parts and set(body_parts) <= _HEAD)
        if sides or unknown_side:
            # A small volume does: Rand3DElastic takes seconds of a large one.
            mirrors = build(transforms, (shape[0], *(min(length, _SMALL) for length in shape[1:]))).find_mirroring()
            transforms = {name: arguments for name, arguments in transforms.items() if name not in mirrors}
            if mirrors:
                why = f"{_name(sides)} sides" if sides else "only of heads are left and right known to be alike"
                notice += f" without {', '.join(mirrors)} ({why})"
        for name, arguments in config.transforms.items():
            known = transforms.get(name, {})
            both = isinstance(known, Mapping) and isinstance(arguments, Mapping)
            transforms[name] = {**known, **arguments} if both else arguments
        notice += f": {', '.join(transforms)}"
    augmentation = build(transforms)
    mirrors = augmentation.find_mirroring() if sides else []
    if mirrors:
        chance = "prob" if spec.spatial_dims == 3 else "p"
        raise ConfigError(
            f"augment.transforms.{mirrors[0]} mirrors or turns images, but {_name(sides)} sides: set "
            f"augment.transforms.{mirrors[0]}.{chance}=0 or augment=auto (augment.sides=ignore if these are not sides "
            "of the images)"
        )
    return AugmentChoice(augmentation, preset, sides, notice)


def _choose_preset(spec: PreprocessSpec | VolumeSpec, *, modalities: Collection[str], sided: bool) -> str:
    if isinstance(spec, VolumeSpec):
        is_ct = set(modalities) == {"CT"} or spec.intensity in ("window", "hounsfield") or spec.nifti_unit == "HU"
        return "ct_volume" if is_ct else "brain_mri"
    # Turned at will, a lesion keeps no side at all.
    no_up = spec.channels == 3 and modalities and set(modalities) <= _NO_UP
    return "dermoscopy" if no_up and not sided else "radiograph"


def _name(sides: Sequence[str]) -> str:
    shown = ", ".join(sides[:3]) + (" …" if len(sides) > 3 else "")
    return f"{shown} {'names' if len(sides) == 1 else 'name'}"
