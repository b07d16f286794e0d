"""VolumeSpec: what is done to every volume; part of the store, the run and the model file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from medcls.config import StackRule, check_record
from medcls.config.checks import VOLUME_DTYPES, VOLUME_INTENSITIES, check_choice, check_image, check_sides
from medcls.errors import ConfigError, DataError
from medcls.imaging.dicom.burnt_in import BurntInRule
from medcls.imaging.preprocess import PreprocessSpec
from medcls.imaging.volume.select import SeriesRule
from medcls.records import from_json, newer

WINDOWS_HU = {"lung": (-600.0, 1500.0), "bone": (400.0, 1800.0), "brain": (40.0, 80.0), "soft_tissue": (50.0, 400.0)}
"""(centre, width) in HU by name. Source: Murphy et al., Windowing (CT), Radiopaedia.org rID-52108."""

HU_RANGE = (-1024, 3071)
"""What intensity="hounsfield" keeps: the range of a 12-bit CT with the usual intercept. Own choice."""

MAX_VOXELS = 1 << 28


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """What is done to every volume of a store; fields without a line here are the settings image.* of the same names.

    Attributes:
        depth: Stored slices, from inferior to superior.
        height: Stored rows, from anterior to posterior.
        width: Stored columns, from the patient's right to left.
        spacing_mm: (D, H, W) distance of stored voxels, mm. None fits each volume to the frame: rows and columns by
            one scale, slices by their own so that they fill the depth.
        fit: "pad" keeps the whole field of view, and with spacing_mm refuses one larger than the frame; "crop"
            keeps the middle; "stretch" (without spacing_mm) fills the frame and changes the proportions in plane.
        intensity: "percentile" and "minmax" stretch every volume to its own range, over the stored part of its
            field of view without padding; "window" shows windows_hu; "hounsfield" keeps whole HU within HU_RANGE.
        percentiles: (low, high) in percent, for intensity="percentile".
        windows_hu: CT: (centre, width) in HU, each one channel, for intensity="window".
        dtype: "uint8", "uint16" or "float16" of [0, 1]; "int16" is that of intensity="hounsfield".
        patient_axes: Turn oblique volumes to the patient's axes; else they stay oblique, as their affine says.
        burnt_in: What is done about text in the pixels; volumes take no boxes and no ultrasound regions.
        stack: How the slices of a series become volumes.
        series: Which series of a study are taken.
        spatial_dims: Number of spatial axes.

    Raises:
        ConfigError: values out of range or that contradict one another.
    """

    depth: int = 64
    height: int = 128
    width: int = 128
    spacing_mm: tuple[float, float, float] | None = None
    fit: str = "pad"
    intensity: str = "percentile"
    percentiles: tuple[float, float] = (0.5, 99.5)
    windows_hu: tuple[tuple[float, float], ...] = ()
    dtype: str = "uint8"
    patient_axes: bool = False
    nifti_unit: str = ""
    analyze_axes: str = field(default="", metadata=newer())
    crop_margin_mm: float | None = field(default=None, metadata=newer())
    max_voxels: int = 1 << 28
    burnt_in: BurntInRule = field(default_factory=BurntInRule)
    stack: StackRule = field(default_factory=StackRule)
    series: SeriesRule = field(default_factory=SeriesRule)
    implausible_hu: str = field(default="refuse", metadata=newer(omit=True))
    nifti_affine: str = field(default="auto", metadata=newer(omit=True))
    nifti_volume: int | None = field(default=None, metadata=newer(omit=True))
    damaged: str = field(default="refuse", metadata=newer(omit=True))
    spatial_dims: Literal[3] = 3

    def __post_init__(self) -> None:
        check_record("image", self)
        check_choice("image.intensity", self.intensity, VOLUME_INTENSITIES)
        check_choice("image.dtype", self.dtype, VOLUME_DTYPES)
        channels, *size = self.shape
        if min(size) < 1 or channels * size[0] * size[1] * size[2] > MAX_VOXELS:
            raise ConfigError(f"image.size={size}: expected [depth, height, width], at most {MAX_VOXELS} voxels")
        if self.spacing_mm is not None and not all(0 < each < 1000 for each in self.spacing_mm):
            raise ConfigError(f"image.spacing_mm={list(self.spacing_mm)}: expected [D, H, W] in mm, > 0")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ConfigError(f"image.percentiles={[low, high]}: expected [low, high] within 0 to 100")
        if self.analyze_axes and not is_orientation(self.analyze_axes):
            raise ConfigError(f"image.analyze_axes={self.analyze_axes}: expected one of L R, of A P and of I S, as LAS")
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Refuse values that are right alone and wrong together."""
        if (self.intensity == "window") != bool(self.windows_hu):
            raise ConfigError(
                "image.windows_hu and image.intensity=window go together: set both, with at least one window, or "
                "neither"
            )
        check_windows(self.windows_hu)
        if (self.intensity == "hounsfield") != (self.dtype == "int16"):
            raise ConfigError("image.intensity=hounsfield and image.dtype=int16 go together: set both, or neither")
        if self.fit == "stretch" and self.spacing_mm is not None:
            raise ConfigError("image.fit=stretch contradicts image.spacing_mm: set image.fit=pad or crop")
        rule = self.burnt_in
        if rule.policy == "ultrasound_regions" or rule.mask_boxes or rule.keep_box:
            raise ConfigError(
                "image.burnt_in: volumes take only refuse or allow: remove image.mask_boxes and image.keep_box"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, D, H, W) of every stored volume."""
        return max(1, len(self.windows_hu)), self.depth, self.height, self.width

    @property
    def channels(self) -> int:
        """Number of channels: one a window, else 1."""
        return self.shape[0]

    @property
    def value_range(self) -> tuple[float, float]:
        """(lowest, highest) stored value."""
        if self.intensity == "hounsfield":
            return float(HU_RANGE[0]), float(HU_RANGE[1])
        if self.dtype == "float16":
            return 0.0, 1.0
        return 0.0, float(np.iinfo(self.dtype).max)


def read_spec(content: Any) -> PreprocessSpec | VolumeSpec:
    """Return the spec that a store recorded; without spatial_dims it is 2-D (version 0.1.0).

    Raises:
        DataError: a record of another version, or numbers that no setting could have given.
    """
    spec: PreprocessSpec | VolumeSpec = from_json(PreprocessSpec | VolumeSpec, content, name="preprocess")
    check_spec(spec)
    return spec


def check_spec(spec: PreprocessSpec | VolumeSpec) -> None:
    """Check the numbers of a spec from a file: the bounds are those of the settings.

    Raises:
        DataError: a value that no command line could have given.
    """
    try:
        check_sides("image.size", spec.shape[1:], given=list(spec.shape[1:]))
        if isinstance(spec, PreprocessSpec):
            check_record("image", spec)
            check_image(spec)
            check_windows(spec.windows_hu)
    except ConfigError as error:
        raise DataError(f"preprocess: {error}") from error


def check_windows(windows: Sequence[tuple[float, float]]) -> None:
    """Raise ConfigError for a (centre, width) in HU whose width is not above 1."""
    if not all(width > 1 for _, width in windows):
        raise ConfigError(f"image.windows_hu={[list(w) for w in windows]}: expected [[center, width > 1], …]")


def is_orientation(text: str) -> bool:
    """Return whether three letters name each of the patient's axes once: one of L R, of A P and of I S."""
    return len(text) == 3 and all(sum(letter in pair for letter in text) == 1 for pair in ("LR", "AP", "IS"))


def find_windows(entries: Sequence[Any]) -> tuple[tuple[float, float], ...]:
    """Return (centre, width) in HU of each entry, which is a pair of numbers or a name of WINDOWS_HU.

    Raises:
        ConfigError: an unknown name, or no pair.
    """
    windows = []
    for entry in entries:
        if isinstance(entry, str) and entry not in WINDOWS_HU:
            raise ConfigError(f"image.windows_hu has {entry}: expected one of {', '.join(WINDOWS_HU)}")
        pair = entry
        if isinstance(entry, str):
            pair = WINDOWS_HU[entry]
        if len(pair) != 2:
            raise ConfigError(f"image.windows_hu has {pair}: expected [center, width] in HU")
        windows.append((float(pair[0]), float(pair[1])))
    return tuple(windows)
