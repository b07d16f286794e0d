"""The schema of the pixels: how a file or a series becomes a stored array."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from medcls.config.checks import (
    AFFINES,
    IMAGE_DTYPES,
    IMAGE_INTENSITIES,
    SIDES,
    VOLUME_DTYPES,
    VOLUME_INTENSITIES,
    check_grey_range,
    check_image,
    check_percentiles,
    check_sides,
)
from medcls.config.schema import NAMES, TEXT, check_settings, setting
from medcls.errors import ConfigError
from medcls.records import newer


@dataclass(slots=True)
class ImageConfig:
    """How one file, or one series, becomes one stored array."""

    kind: str = setting(
        "image", "What is stored: an image of each file, or a volume of each series.", choices=("image", "volume")
    )
    size: Any = setting(
        224,
        "Size of the stored array: one number for all sides, [height,width], or [depth,height,width].",
        low=SIDES[0],
        high=SIDES[1],
        unit="pixels",
        common=True,
    )
    spacing_mm: Any = setting(
        None,
        "Distance of the stored voxels, one number or [depth,height,width]; null fits each volume to image.size.",
        low=0,
        high=1000,
        open_low=True,
        unit="mm",
        common=True,
    )
    channels: int = setting(1, "Channels of a stored image: 1 for grey, 3 for colour.", choices=(1, 3))
    dtype: str = setting(
        "uint8",
        "Type of the stored values; uint16 keeps more grey levels in twice the space; int16 is for "
        "intensity=hounsfield.",
        choices=tuple(dict.fromkeys((*IMAGE_DTYPES, *VOLUME_DTYPES))),
    )
    fit: str = setting(
        "pad",
        "How another shape is brought to image.size: black borders, cutting the longer side, or changed proportions.",
        choices=("pad", "crop", "stretch"),
    )
    intensity: str = setting(
        "display",
        "How grey values are scaled: as displayed (DICOM window), between the two values of image.range, over each "
        "image's own range or percentiles, through image.windows_hu, or as whole Hounsfield units.",
        choices=tuple(dict.fromkeys((*IMAGE_INTENSITIES, *VOLUME_INTENSITIES))),
        common=True,
    )
    range: list[float] | None = setting(
        None,
        "[low,high] grey values that become black and white with intensity=range, as [0,4095] for 12 bits.",
        low=-math.inf,
    )
    few_levels: str = setting(
        "refuse",
        "Whether a store may be made if most images keep fewer than 32 grey levels of the many in their files.",
        choices=("refuse", "allow"),
    )
    implausible_hu: str = setting(
        "refuse", "Whether a CT is read whose values cannot be Hounsfield units.", choices=("refuse", "allow")
    )
    damaged: str = setting(
        "refuse",
        "Whether an image is read that its decoder calls corrupt and decodes all the same.",
        choices=("refuse", "allow"),
    )
    unreadable: str = setting(
        "stop",
        "What happens to a file that the disk does not give after four tries; quarantine goes on without it.",
        choices=("stop", "quarantine"),
    )
    presentation: str | None = setting(
        None,
        "Which DICOM images are taken if there are raw (processing) and processed ones (presentation); null refuses a "
        "mixture.",
        choices=("presentation", "processing", "any"),
    )
    percentiles: list[float] = setting(
        [0.5, 99.5],
        "[low,high] percentiles of an image that become black and white with intensity=percentile.",
        low=0,
        high=100,
        unit="percent",
    )
    window_index: int = setting(0, "Which of several windows in a DICOM file is used, counted from 0.", low=0)
    windows_hu: list[Any] = setting(
        [],
        "CT windows, one channel each: lung, soft_tissue, bone or other names, or [center,width] in HU.",
    )
    patient_axes: bool = setting(
        False, "Turn oblique volumes to the patient's axes, which resamples them; false keeps them as scanned."
    )
    nifti_unit: str = setting(
        "", "Unit of NIfTI files, which do not state it: HU if they hold Hounsfield units.", choices=("", "HU")
    )
    analyze_axes: str = setting(
        "",
        "Directions in which i, j and k grow in Analyze files and NIfTI files without a transform, as LAS.",
        kind=TEXT,
    )
    nifti_affine: str = setting(
        "auto",
        "Transform used if sform and qform of a NIfTI file lead to different spaces; auto takes the sform unless the "
        "directions differ.",
        choices=AFFINES,
    )
    nifti_volume: int | None = setting(
        None, "Which volume of a NIfTI file with several is taken, counted from 0; null refuses such files.", low=0
    )
    crop_margin_mm: float | None = setting(
        None,
        "Margin around the foreground to which each volume is cut; null keeps the whole field of view.",
        low=0,
        high=1000,
        unit="mm",
    )
    max_voxels: int = setting(
        1 << 28, "Largest volume that is decoded; raise it for larger volumes if memory allows.", low=1, unit="voxels"
    )
    burnt_in: str = setting(
        "refuse",
        "What happens to images that may show text in their pixels; ultrasound_regions keeps only the regions that the "
        "header declares.",
        choices=("refuse", "allow", "ultrasound_regions"),
        common=True,
    )
    mask_boxes: list[list[int]] = setting(
        [], "Boxes [[x,y,width,height],…] that are blacked out in every image.", low=0, unit="pixels"
    )
    keep_box: list[int] | None = setting(
        None, "Box [x,y,width,height] that is kept of every image; the rest is blacked out.", low=0, unit="pixels"
    )

    def __post_init__(self) -> None:
        sizes, axes = self.sizes, 3 if self.kind == "volume" else 2
        if len(sizes) != axes:
            expected = "[depth, height, width]" if axes == 3 else "[height, width]"
            raise ConfigError(f"image.size={self.size}: expected a number or {expected}")
        check_sides("image.size", sizes, given=self.size)
        check_settings(self, "image")
        if self.kind == "image":
            check_image(self)
            if self.spacing_mm is not None or self.patient_axes:
                raise ConfigError("image.spacing_mm and image.patient_axes apply only to volumes: set image=mr_volume")
        else:
            check_grey_range(self)
            check_percentiles("image.percentiles", self.percentiles)
        if not all(isinstance(window, str) or _is_window(window) for window in self.windows_hu):
            raise ConfigError(f"image.windows_hu={self.windows_hu}: expected [[center, width > 1], …] in HU, or names")

    @property
    def sizes(self) -> list[int]:
        """One size an axis."""
        return self.size if isinstance(self.size, list) else [self.size] * (3 if self.kind == "volume" else 2)


def _is_window(window: Any) -> bool:
    # OmegaConf's list[list[float]] refuses [[40, 400]]: the numbers are whole.
    numbers = isinstance(window, list) and all(isinstance(n, int | float) and math.isfinite(n) for n in window)
    return numbers and len(window) == 2 and window[1] > 1


@dataclass(slots=True)
class SeriesConfig:
    """Which series become volumes; an empty setting takes all, words ignore upper and lower case."""

    modality: list[str] = setting([], "Modalities that are taken, as [MR].", kind=NAMES)
    description: str = setting(
        "",
        "Regular expression that SeriesDescription contains; ^(?!.*scout) leaves scouts out.",
        kind=TEXT,
        common=True,
    )
    image_type: list[str] = setting([], "Words that ImageType must all contain.", kind=NAMES)
    not_image_type: list[str] = setting([], "Words that ImageType must not contain, as [LOCALIZER].", kind=NAMES)
    body_part: list[str] = setting(
        [], "Values of BodyPartExamined that are taken; series without one are not.", kind=NAMES
    )
    plane: list[str] = setting([], "Planes that are taken.", choices=("axial", "coronal", "sagittal", "oblique"))
    min_slices: int = setting(1, "Fewest slices of a series that is taken.", low=1, unit="slices")
    max_slices: int | None = setting(
        None, "Most slices of a series that is taken; null sets no limit.", low=1, unit="slices"
    )
    per_study: str = setting(
        "all",
        "Which of the remaining series of a study are taken: all, or one by number or distance of slices, or the "
        "first.",
        choices=("all", "most_slices", "fewest_slices", "thinnest", "first"),
        common=True,
    )

    def __post_init__(self) -> None:
        self.plane = [name.lower() for name in self.plane]
        check_settings(self, "series")


@dataclass(slots=True, unsafe_hash=True)
class StackRule:
    """What is done about irregular slices of a volume.

    The store, the run and the model file carry it.

    Raises:
        ConfigError: a value that no command line could have given.
    """

    gap: str = setting(
        "refuse", "What happens if slices are missing; resample interpolates them.", choices=("refuse", "resample")
    )
    jitter: str = setting(
        "refuse",
        "What happens if distances of slices differ by more than stack.tolerance and less than a quarter.",
        choices=("refuse", "resample"),
    )
    mixed_spacing: str = setting(
        "refuse",
        "What happens if distances of slices differ by more; resample takes their median.",
        choices=("refuse", "resample"),
    )
    tilt: str = setting(
        "shear", "What happens to a tilted gantry; shear moves the slices upright.", choices=("refuse", "shear")
    )
    duplicate: str = setting(
        "refuse",
        "What happens to two different slices at one position; drop keeps the first by SOPInstanceUID.",
        choices=("refuse", "drop"),
    )
    tolerance: float = setting(
        0.01, "Largest deviation of a slice from its place, as a share of the slice distance.", low=1e-6, high=0.1
    )
    max_gap_mm: float = setting(
        10.0, "Largest distance of two slices that resampling may span.", low=1e-6, high=1e6, unit="mm"
    )
    min_slices: int = setting(3, "Fewest positions that make a volume.", low=2, high=1_000_000, unit="slices")
    parts: str = setting(
        "join",
        "What happens to stacks of one series that continue one another: one volume, or one each.",
        choices=("join", "apart"),
        record=newer(omit=True),
    )

    def __post_init__(self) -> None:
        check_settings(self, "stack")
