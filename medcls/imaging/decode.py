"""One file to one stored image, as worker processes do it: the one way in for data_prep and predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medcls.imaging.preprocess import Box, PreparedImage, PreprocessSpec, preprocess_image
from medcls.imaging.readers import read_image


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """One image to decode.

    Attributes:
        file: Where it lies.
        roi: (x, y, width, height) of its region in pixels of the file; None for the whole image.
        spec: What is done to it.
    """

    file: Path
    roi: Box | None
    spec: PreprocessSpec


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """What a worker sends back.

    Attributes:
        prepared: The stored pixels with their geometry.
        source_size: (rows, columns) of the file.
        spacing_source: The attribute that the spacing came from, "" when unknown.
        photometric: PhotometricInterpretation, or "L" or "RGB" for other formats.
        headers: Allow-listed DICOM attributes by keyword ("" absent); {} for other formats.
    """

    prepared: PreparedImage
    source_size: tuple[int, int]
    spacing_source: str
    photometric: str
    headers: dict[str, str]


def decode_image(task: DecodeTask) -> DecodedImage:
    """Returns one image as stored. Runs in a worker process: no torch, nothing global.

    Raises:
        ImageRefusedError: as of read_image and preprocess_image.
    """
    image = read_image(task.file, options=task.spec.read_options)
    return DecodedImage(
        prepared=preprocess_image(image, task.spec, roi=task.roi),
        source_size=(image.pixels.shape[1], image.pixels.shape[2]),
        spacing_source=image.spacing_source,
        photometric=image.photometric,
        headers=image.headers,
    )
