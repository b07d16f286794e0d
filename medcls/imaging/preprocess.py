"""One raw image to one stored array: a pure function of (image, PreprocessSpec).

data_prep and predict both call `preprocess_image`, so a model sees at the bedside what it saw in training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medcls.errors import DataError, ImageRefusedError
from medcls.imaging.readers import RawImage, ReadOptions

Box = tuple[int, int, int, int]
# Grey images saved as colour JPEG differ by a few levels between their channels; colour differs by far more.
_GREY_TOLERANCE = 8 / 255


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """What is done to every image of a store; part of the store, of the run and of the model file.

    Attributes:
        height: Stored rows.
        width: Stored columns.
        channels: 1 (grey) or 3 (colour, or one channel a window of windows_hu).
        dtype: "uint8" or "uint16".
        fit: "pad" keeps the whole image and its proportions; "crop" fills the frame and cuts the long side;
            "stretch" fills the frame and changes the proportions.
        intensity: "display" keeps the display values (DICOM VOI transform, or the file's full range); "minmax"
            and "percentile" stretch every image to its own range.
        percentiles: (low, high) in percent, for intensity="percentile".
        window_index: Which of a file's several VOI windows.
        windows_hu: (centre, width) in HU, each one channel, instead of the file's window.
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

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON form that `from_json` reads."""
        return asdict(self) | {
            "percentiles": list(self.percentiles),
            "windows_hu": [list(w) for w in self.windows_hu],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> PreprocessSpec:
        """Returns the spec that `to_json` wrote.

        Raises:
            DataError: an unknown or missing field (written by another version).
        """
        try:
            absent = {f.name for f in fields(cls)} - set(content)
            if absent:
                raise KeyError(*sorted(absent))
            windows = tuple((float(c), float(w)) for c, w in content["windows_hu"])
            low, high = content["percentiles"]
            return cls(**content | {"windows_hu": windows, "percentiles": (float(low), float(high))})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"preprocessing record {content}: not of this version of medcls ({error})") from error

    @property
    def read_options(self) -> ReadOptions:
        """The part of the spec that acts while reading a file."""
        return ReadOptions(window_index=self.window_index, windows_hu=self.windows_hu)


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
    """Returns the stored form of `image`.

    Args:
        image: What readers.read_image returned; pixels (C, H, W), float32, [0, 1].
        spec: The store's preprocessing.
        roi: (x, y, width, height) in pixels of the file; the rest is cut away first.

    Raises:
        ImageRefusedError: the region leaves the image, a colour image meets a grey store, or the image is flat
            where its own range is needed.

    Source: own choice, docs/decisions/0005-preprocessing.md; resampling by area averaging (OpenCV INTER_AREA)
    when shrinking and bilinear when enlarging.
    """
    pixels, mask = _crop(image, roi)
    pixels = match_channels(_rescale(pixels, mask, spec), spec.channels)
    if mask is not None:
        pixels = np.where(mask, np.float32(0), pixels)
    frame, extent, zoom = _fit(pixels, image.aspect, spec)
    spacing = image.spacing_mm and (image.spacing_mm[0] / zoom[0], image.spacing_mm[1] / zoom[1])
    top = np.iinfo(spec.dtype).max
    stored = np.rint(np.clip(frame, 0, 1) * top).astype(spec.dtype)
    return PreparedImage(stored, extent, spacing)


def _crop(image: RawImage, roi: Box | None) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    if roi is None:
        return image.pixels, image.mask
    x, y, width, height = roi
    rows, columns = image.pixels.shape[1:]
    if x < 0 or y < 0 or width < 1 or height < 1 or x + width > columns or y + height > rows:
        raise ImageRefusedError("roi_outside", f"roi x={x} y={y} w={width} h={height}: image is {columns} x {rows}")
    window = np.s_[y : y + height, x : x + width]
    return image.pixels[(slice(None), *window)], None if image.mask is None else image.mask[window]


def _rescale(pixels: NDArray[np.float32], mask: NDArray[np.bool_] | None, spec: PreprocessSpec) -> NDArray[np.float32]:
    if spec.intensity == "display":
        return pixels
    valid = pixels if mask is None else pixels[:, ~mask]
    if valid.size == 0:
        raise ImageRefusedError("all_padding", "no pixel outside the padding")
    limits = (0.0, 100.0) if spec.intensity == "minmax" else spec.percentiles
    low, high = np.percentile(valid, limits)
    if not high > low:
        raise ImageRefusedError("flat", f"image.intensity={spec.intensity} needs a range, all values are {low:g}")
    stretched: NDArray[np.float32] = np.clip((pixels - np.float32(low)) / np.float32(high - low), 0, 1)
    return stretched


def match_channels(pixels: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Returns (channels, H, W): grey is repeated; colour becomes grey only where it is grey already.

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
    """Resizes into the frame; returns (C, height, width), the valid extent, and the zoom of rows and columns."""
    rows, columns = pixels.shape[1:]
    fill = (spec.height / (rows * aspect), spec.width / columns)
    scale = {"pad": min(fill), "crop": max(fill)}.get(spec.fit)
    zoom = (fill[0] * aspect, fill[1]) if scale is None else (scale * aspect, scale)
    size = (max(1, round(rows * zoom[0])), max(1, round(columns * zoom[1])))
    resized = _resize(pixels, size)
    # One of the two differences is zero or both are of one sign: padding and cropping are never mixed.
    top, left = (spec.height - size[0]) // 2, (spec.width - size[1]) // 2
    frame = np.zeros((pixels.shape[0], spec.height, spec.width), np.float32)
    y, x = max(0, top), max(0, left)
    cut = resized[:, max(0, -top) :, max(0, -left) :][:, : spec.height - y, : spec.width - x]
    frame[:, y : y + cut.shape[1], x : x + cut.shape[2]] = cut
    return frame, (y, x, cut.shape[1], cut.shape[2]), (size[0] / rows, size[1] / columns)


def _resize(pixels: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    rows, columns = pixels.shape[1:]
    if (rows, columns) == size:
        return pixels
    method = cv2.INTER_AREA if size[0] < rows or size[1] < columns else cv2.INTER_LINEAR
    planes = [cv2.resize(np.ascontiguousarray(plane), size[::-1], interpolation=method) for plane in pixels]
    return np.stack(planes).astype(np.float32, copy=False)
