"""Preprocess one raw image to one stored array: a pure function of (image, PreprocessSpec).

data_prep and predict both call `preprocess_image`, so a model sees at the bedside what it saw in training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.burnt_in import Box, BurntInRule
from medcls.imaging.image import RawImage
from medcls.imaging.read_options import ReadOptions
from medcls.records import newer

__all__ = ["Box", "PreparedImage", "PreprocessSpec", "match_channels", "preprocess_image", "stretch_range"]

# Grey images saved as colour JPEG differ by a few levels between their channels; colour differs by far more.
_GREY_TOLERANCE = 8 / 255


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """What is done to every image of a store; part of the store, of the run and of the model file.

    Fields without a line here are the settings image.* of the same names.

    Attributes:
        height: Stored rows.
        width: Stored columns.
        channels: 1 (grey) or 3 (colour, or one channel a window of windows_hu).
        dtype: "uint8" or "uint16".
        fit: "pad" keeps the whole image and its proportions; "crop" fills the frame and cuts the long side;
            "stretch" fills the frame and changes the proportions.
        intensity: "display" keeps the display values (DICOM VOI transform, or the file's full range); "minmax"
            and "percentile" stretch every image to its own range; "range" scales all images alike, by `range`.
        percentiles: (low, high) in percent, for intensity="percentile".
        windows_hu: (centre, width) in HU, each one channel, instead of the file's window.
        burnt_in: What is done about text in the pixels.
        range: (low, high) for intensity="range": the grey values (samples of a picture, modality values of DICOM) that
            become black and white, instead of the file's VOI or the largest value of its type.
        spatial_dims: Number of spatial axes; records of version 0.1.0 have none, and are 2-D.
    """

    height: int = 224
    width: int = 224
    channels: int = 1
    dtype: str = "uint8"
    fit: str = "pad"
    intensity: str = "display"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window_index: int = 0
    windows_hu: tuple[tuple[float, float], ...] = ()
    burnt_in: BurntInRule = field(default_factory=BurntInRule, metadata=newer(before=BurntInRule("allow")))
    range: tuple[float, float] | None = field(default=None, metadata=newer(omit=True))
    implausible_hu: str = field(default="refuse", metadata=newer(omit=True))
    damaged: str = field(default="refuse", metadata=newer(omit=True))
    spatial_dims: Literal[2] = field(default=2, metadata=newer())

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of every stored image."""
        return self.channels, self.height, self.width

    @property
    def value_range(self) -> tuple[float, float]:
        """(lowest, highest) stored value: black and white."""
        return 0.0, float(np.iinfo(self.dtype).max)

    @property
    def read_options(self) -> ReadOptions:
        """The part of the spec that acts while reading a file."""
        return ReadOptions(
            window_index=self.window_index,
            windows_hu=self.windows_hu,
            burnt_in=self.burnt_in,
            grey_range=self.range,
            implausible_hu=self.implausible_hu,
            damaged=self.damaged,
        )


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image as stored.

    Attributes:
        pixels: (C, H, W), spec.dtype; 0 is black.
        valid_extent: (y, x, height, width) of the image inside the frame, pixels; the rest is padding.
        spacing_mm: (row, column) spacing of the stored pixels, mm; None where the file has none.
    """

    pixels: NDArray[Any]
    valid_extent: Box
    spacing_mm: tuple[float, float] | None


def preprocess_image(image: RawImage, spec: PreprocessSpec, *, roi: Box | None = None) -> PreparedImage:
    """Return the stored form of `image`.

    Args:
        image: What image.read_image returned; pixels (C, H, W), float32, [0, 1].
        spec: The store's preprocessing.
        roi: (x, y, width, height) in pixels of the file; the rest is cut away first. Without one, the black
            margins that the burnt-in rule left are cut away.

    Raises:
        ImageRefusedError: the region leaves the image, a colour image meets a grey store, or the image is flat
            where its own range is needed.

    Source: own choice, docs/decisions/0005-preprocessing.md; resampling by area averaging (OpenCV INTER_AREA)
    when shrinking and bilinear when enlarging.
    """
    pixels, mask = image.pixels, image.mask
    if roi is not None or image.kept_box is not None:
        x, y, width, height = roi or image.kept_box or (0, 0, 0, 0)
        rows, columns = pixels.shape[1:]
        if x < 0 or y < 0 or width < 1 or height < 1 or x + width > columns or y + height > rows:
            raise ImageRefusedError("roi_outside", f"roi x={x} y={y} w={width} h={height}: image is {columns} x {rows}")
        pixels = pixels[:, y : y + height, x : x + width]
        if mask is not None:
            mask = mask[y : y + height, x : x + width]
    limits = {"minmax": (0.0, 100.0), "percentile": spec.percentiles}.get(spec.intensity)
    if limits is not None:  # else the file was read so
        pixels = stretch_range(pixels, mask, limits=limits)
    pixels = match_channels(pixels, spec.channels)
    if limits is not None and mask is not None:
        pixels = np.where(mask, np.float32(0), pixels)
    frame, extent, zoom = _fit(pixels, image.aspect, spec)
    spacing = image.spacing_mm and (image.spacing_mm[0] / zoom[0], image.spacing_mm[1] / zoom[1])
    levels = np.clip(frame, 0, 1)
    levels *= np.iinfo(spec.dtype).max
    return PreparedImage(np.rint(levels, out=levels).astype(spec.dtype), extent, spacing)


def stretch_range(
    pixels: NDArray[np.float32], mask: NDArray[np.bool_] | None, *, limits: tuple[float, float]
) -> NDArray[np.float32]:
    """Return pixels (C, *spatial) scaled so that percentiles `limits` of what is not masked become 0 and 1, clipped.

    Raises:
        ImageRefusedError: all_padding, or flat where there is no range.
    """
    valid = pixels
    if mask is not None:
        valid = pixels[:, ~mask]
    if valid.size == 0:
        raise ImageRefusedError("all_padding", "no pixel outside the padding")
    low, high = np.percentile(valid, limits)
    if not high > low:
        raise ImageRefusedError("flat", f"image.intensity needs a range, all values are {low:g}")
    stretched: NDArray[np.float32] = np.clip((pixels - np.float32(low)) / np.float32(high - low), 0, 1)
    return stretched


def match_channels(pixels: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Return (channels, H, W): grey is repeated; colour becomes grey only where it is grey already.

    Raises:
        ImageRefusedError: real colour, and the store is grey.
    """
    if pixels.shape[0] == channels:
        return pixels
    if channels == 3 and pixels.shape[0] == 1:
        return np.repeat(pixels, 3, axis=0)
    if channels == 1 and pixels.shape[0] == 3 and np.ptp(pixels, axis=0).max() <= _GREY_TOLERANCE:
        grey: NDArray[np.float32] = pixels.mean(axis=0, keepdims=True)
        return grey
    raise ImageRefusedError("colour", f"{pixels.shape[0]} channels where image.channels={channels}: image=photo")


def _fit(
    pixels: NDArray[np.float32], aspect: float, spec: PreprocessSpec
) -> tuple[NDArray[np.float32], Box, tuple[float, float]]:
    """Resize into the frame; returns (C, height, width), the valid extent, and the zoom of rows and columns."""
    rows, columns = pixels.shape[1:]
    fill = (spec.height / (rows * aspect), spec.width / columns)
    if spec.fit == "pad":
        fill = (min(fill), min(fill))
    elif spec.fit == "crop":
        fill = (max(fill), max(fill))
    zoom = (fill[0] * aspect, fill[1])
    size = (max(1, round(rows * zoom[0])), max(1, round(columns * zoom[1])))
    resized = pixels
    if size != (rows, columns):
        method = cv2.INTER_LINEAR
        if size[0] < rows or size[1] < columns:
            method = cv2.INTER_AREA
        planes = [cv2.resize(np.ascontiguousarray(plane), size[::-1], interpolation=method) for plane in pixels]
        stacked = planes[0][None] if len(planes) == 1 else np.stack(planes)
        resized = stacked.astype(np.float32, copy=False)
    if size == (spec.height, spec.width):
        return resized, (0, 0, *size), (size[0] / rows, size[1] / columns)
    # One of the two differences is zero or both are of one sign: padding and cropping are never mixed.
    top, left = (spec.height - size[0]) // 2, (spec.width - size[1]) // 2
    frame = np.zeros((pixels.shape[0], spec.height, spec.width), np.float32)
    y, x = max(0, top), max(0, left)
    cut = resized[:, max(0, -top) :, max(0, -left) :][:, : spec.height - y, : spec.width - x]
    frame[:, y : y + cut.shape[1], x : x + cut.shape[2]] = cut
    return frame, (y, x, cut.shape[1], cut.shape[2]), (size[0] / rows, size[1] / columns)
